"""Exact search: one matrix product with the whole catalogue."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import InOrder, SearchParameters, variable


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

    def _candidates(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> Any:
        return self._exhaustive(queries, k, spare, allowed)
