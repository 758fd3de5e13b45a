"""Exact search: one matrix product with the whole catalogue."""

from __future__ import annotations

import tensorflow as tf

from modules.retrieval.top_k import InOrder, SearchParameters, first, mask, variable, without
from modules.retrieval.vectors import Vectors, in_memory


class BruteForce(InOrder):
    """Exact search: one matrix product with the whole catalogue.

    Args:
        vectors: [C, D] float32.
    """

    def __init__(self, vectors: Vectors) -> None:
        super().__init__(len(vectors))
        self._vectors = variable(in_memory(vectors))

    def _all_vectors(self) -> tf.Tensor:
        return self._vectors.read_value()

    def _is_exact(self) -> bool:
        return True

    def search_both(self, queries: tf.Tensor, k: int, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The matrix product is most of a search, and is the same for both.
        def search(queries: tf.Tensor, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            scores = self._scores(queries)
            return *first(without(scores, excluded), k), first(scores, k)[1]

        found, rows, rows_with_excluded = self._in_slices(search, k, queries, excluded, rows=2)
        return found, rows, rows_with_excluded

    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scores, rows = self._in_slices(
            lambda q, e, a: first(without(mask(self._scores(q), a), e), k), k, queries, excluded, allowed
        )
        return scores, rows
