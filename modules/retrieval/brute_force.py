"""Exact search: one matrix product with the whole catalogue."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import InOrder, SearchParameters, first, mask, variable, without


class BruteForce(InOrder):
    """Exact search: one matrix product with the whole catalogue.

    Args:
        vectors: [C, D] float32.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(len(vectors))
        self._vectors = variable(vectors)

    def _all_vectors(self) -> tf.Tensor:
        return self._vectors

    def _is_exact(self) -> bool:
        return True

    def search_both(self, queries: tf.Tensor, k: int, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The matrix product is most of a search, and is the same for both.
        scores = self._scores(queries)
        return *first(without(scores, excluded), k), first(scores, k)[1]

    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return first(without(mask(self._scores(queries), allowed), excluded), k)
