"""Approximate search with stock ops: a first pass over few dimensions, the best of it scored again exactly.

The first pass is a principal component analysis: the projection onto the leading eigenvectors of VᵀV keeps most of what
decides an inner product (Jolliffe, "Principal Component Analysis", 2002; not centred, since inner products are not).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import InOrder, SearchParameters, best, mask, variable
from modules.retrieval.vectors import Vectors, as_tensor, in_memory, parts, zeros

# Share of the vectors' energy (squared length) that the first pass sees.
_ENERGY = 0.95


class Quantized(InOrder):
    """Search with stock ops: the leading principal dimensions of the whole catalogue, then the best `reorder` exactly.

    Args:
        vectors: [C, D] float32.
        parameters: How much a search looks at.
    """

    def __init__(self, vectors: Vectors, parameters: SearchParameters | None = None) -> None:
        super().__init__(len(vectors), parameters)
        leading = _leading_directions(vectors)
        reduced = zeros(len(vectors), leading.shape[1])
        for start, part in parts(vectors):
            np.matmul(part, leading, out=reduced[start : start + len(part)])
        self._vectors = variable(in_memory(vectors))
        self._leading = variable(leading)
        self._reduced = variable(as_tensor(reduced))

    def _all_vectors(self) -> tf.Tensor:
        return self._vectors.read_value()

    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        depth = self._depth(tf.maximum(k, parameters.reorder), excluded)

        def search(queries: tf.Tensor, excluded: tf.Tensor, allowed: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            approximate = tf.matmul(queries @ self._leading, self._reduced, transpose_b=True)
            _, rows = tf.math.top_k(mask(approximate, allowed), depth, sorted=False)
            scores = tf.reduce_sum(self.vectors(rows) * queries[:, tf.newaxis], axis=2)
            return best(scores, rows, k, excluded, allowed)

        scores, rows = self._in_slices(search, k, queries, excluded, allowed)
        return scores, rows


def _leading_directions(vectors: Vectors) -> np.ndarray:
    """[D, R] float32: the principal directions that hold most of the vectors' energy."""
    moments = np.sum([(part.T @ part).astype(np.float64) for _, part in parts(vectors)], axis=0)
    energy, directions = np.linalg.eigh(moments)
    share = np.cumsum(energy[::-1]) / max(energy.sum(), np.finfo(np.float64).tiny)
    count = min(int(np.searchsorted(share, _ENERGY)) + 1, len(energy))
    return directions[:, ::-1][:, :count].astype(np.float32)
