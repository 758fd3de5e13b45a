"""The layer that any TensorFlow Serving can run: an index of stock TensorFlow ops for each strategy."""

from __future__ import annotations

from modules.retrieval.brute_force import BruteForce
from modules.retrieval.quantized import Quantized
from modules.retrieval.top_k import Partitions, SearchParameters, Strategy, TopK
from modules.retrieval.tree import Tree
from modules.retrieval.vectors import Vectors


def stock(
    vectors: Vectors,
    strategy: Strategy,
    parameters: SearchParameters | None = None,
    partitions: Partitions | None = None,
) -> TopK:
    """The index of the stock layer, which uses stock TensorFlow ops only.

    Args:
        vectors: [C, D] float32.
        strategy: How to search.
        parameters: How much a search looks at.
        partitions: As ScaNN trained them; needed for `tree` only.
    """
    if strategy == "exact":
        return BruteForce(vectors)
    if strategy == "quantized":
        return Quantized(vectors, parameters)
    if partitions is None:
        raise ValueError("a tree needs partitions")
    return Tree(vectors, partitions, parameters)
