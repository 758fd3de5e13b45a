"""Approximate search with stock ops: a first pass over few dimensions, the best of it scored again exactly.

The first pass is a principal component analysis: the projection onto the leading eigenvectors of VᵀV keeps most of what
decides an inner product (Jolliffe, "Principal Component Analysis", 2002; not centred, since inner products are not).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import InOrder, SearchParameters, best, mask, variable

# Share of the vectors' energy (squared length) that the first pass sees.
_ENERGY = 0.95


class Quantized(InOrder):
    """Search with stock ops: the leading principal dimensions of the whole catalogue, then the best `reorder` exactly.

    Args:
        vectors: [C, D] float32.
        parameters: How much a search looks at.
    """

    def __init__(self, vectors: np.ndarray, parameters: SearchParameters | None = None) -> None:
        super().__init__(len(vectors), parameters)
        leading = _leading_directions(vectors)
        self._vectors = variable(vectors)
        self._leading = variable(leading)
        self._reduced = variable(vectors @ leading)

    def _all_vectors(self) -> tf.Tensor:
        return self._vectors

    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        depth = self._depth(tf.maximum(k, parameters.reorder), excluded)
        approximate = tf.matmul(queries @ self._leading, self._reduced, transpose_b=True)
        _, rows = tf.math.top_k(mask(approximate, allowed), depth, sorted=False)
        scores = tf.reduce_sum(self.vectors(rows) * queries[:, tf.newaxis], axis=2)
        return best(scores, rows, k, excluded, allowed)


def _leading_directions(vectors: np.ndarray) -> np.ndarray:
    """[D, R] float32: the principal directions that hold most of the vectors' energy."""
    energy, directions = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    share = np.cumsum(energy[::-1]) / max(energy.sum(), np.finfo(np.float64).tiny)
    count = min(int(np.searchsorted(share, _ENERGY)) + 1, len(energy))
    return directions[:, ::-1][:, :count].astype(np.float32)
