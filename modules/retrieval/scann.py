"""ScaNN: what it learns about a catalogue, and search with its own ops.

Guo et al., "Accelerating Large-Scale Inference with Anisotropic Vector Quantization", ICML 2020.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from modules.retrieval.scann_settings import default_partitions, hashing_settings, sample_size, tree_settings
from modules.retrieval.top_k import NO_ROW, InOrder, Partitions, SearchParameters, Strategy, best, nearest
from modules.retrieval.vectors import Vectors

# How far ScaNN's ops, which know no filters, look beyond k for a filtered query before it is answered exactly instead.
_FILTER_OVERFETCH = 4


@dataclasses.dataclass(frozen=True)
class TrainedScann:
    """What ScaNN learned about a catalogue."""

    state: tf.Module
    """ScaNN's `ScannState`: variables that its ops restore a searcher from."""
    strategy: Strategy
    partitions: Partitions | None = None
    """None without a tree."""


def train_partitions(
    vectors: Vectors, *, partitions: int | None = None, spherical: bool = False, seed: int = 42
) -> Partitions:
    """The partitions of `train_scann`, learned from a sample; the other vectors are only read, part by part.

    Args:
        vectors: As `train_scann`, as the other arguments.
        partitions: Leaves of the tree.
        spherical: Whether its k-means goes by direction alone.
        seed: Of the k-means, and of the sample.
    """
    leaves = min(partitions or default_partitions(len(vectors)), len(vectors))
    size = sample_size(len(vectors), leaves)
    if size == len(vectors):
        return _partitions(vectors[:], leaves, spherical, seed)
    sample = np.sort(np.random.default_rng(seed).choice(len(vectors), size, replace=False))
    centroids = _partitions(vectors[sample], leaves, spherical, seed).centroids
    return Partitions(centroids, nearest(centroids, vectors))


def _partitions(vectors: np.ndarray, leaves: int, spherical: bool, seed: int) -> Partitions:
    trained = train_scann(vectors, "tree", partitions=leaves, spherical=spherical, codes=False, seed=seed).partitions
    assert trained is not None
    return trained


def train_scann(
    vectors: Vectors,
    strategy: Strategy,
    *,
    partitions: int | None = None,
    spherical: bool = False,
    codes: bool = True,
    dimensions_per_block: int = 2,
    seed: int = 42,
) -> TrainedScann:
    """Trains ScaNN: nothing for `exact`, asymmetric hashing for `quantized`, partitions and hashing for `tree`.

    Args:
        vectors: [C, D] float32; `quantized` and `tree` need at least `SMALLEST_TRAINED` rows.
        strategy: What is trained.
        partitions: Leaves of the tree; by default the square root of C.
        spherical: Whether the tree's k-means goes by direction alone.
        codes: False leaves the hashing out of a tree; its partitions are the same.
        dimensions_per_block: Dimensions that share one code.
        seed: Of the tree's k-means.

    Returns:
        Its state, and the partitions where there is a tree.
    """
    # Imported here: the other layers must work in a process without ScaNN and its ops.
    from scann.partitioning import partitioner_pb2
    from scann.scann_ops.py import scann_ops

    size, dimension = vectors.shape
    leaves = min(partitions or default_partitions(size), size)
    # ScaNN takes all vectors at once, and copies them several times.
    vectors = vectors[:]
    builder = scann_ops.builder(vectors, 1, "dot_product")
    if strategy == "tree":
        # ScaNN's random initialisation takes no seed; its k-means++ does.
        builder = builder.tree(**tree_settings(size, leaves), spherical=spherical, random_init=False)
    if strategy == "exact" or not codes:
        builder = builder.score_brute_force()
    else:
        block = min(dimensions_per_block, dimension)
        builder = builder.score_ah(**hashing_settings(block)).reorder(1)
    config = builder.create_config().replace("partitioning {", f"partitioning {{ clustering_seed: {seed}", 1)
    state = scann_ops.create_searcher(vectors, config).serialize_to_module()
    if strategy != "tree":
        return TrainedScann(state, strategy)
    partitioner = partitioner_pb2.SerializedPartitioner.FromString(state.serialized_partitioner.numpy()[0])
    centers = partitioner.kmeans.kmeans_tree.root.centers
    centroids = np.array([center.dimension for center in centers], np.float32)
    return TrainedScann(state, strategy, Partitions(centroids, state.datapoint_to_token.numpy()))


class Scann(InOrder):
    """Search with ScaNN's own ops, for a TensorFlow Serving that was built with them and for Python.

    Args:
        trained: ScaNN's state.
        parameters: How much a search looks at.
    """

    namespaces = ("Scann",)
    _takes_empty_batches = False

    def __init__(self, trained: TrainedScann, parameters: SearchParameters) -> None:
        super().__init__(int(trained.state.dataset.shape[0]), parameters)
        self._state = trained.state
        self._strategy = trained.strategy
        self.partitions = trained.partitions

    def _all_vectors(self) -> tf.Tensor:
        # ScaNN creates its variables without a static shape.
        return tf.ensure_shape(self._state.dataset.read_value(), self._state.dataset.shape)

    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        from scann.scann_ops.py import scann_ops

        fetch = k if allowed is None else _FILTER_OVERFETCH * k
        settings: dict[str, Any] = {"final_num_neighbors": self._depth(fetch, excluded)}
        if self._strategy != "exact":
            settings["pre_reorder_num_neighbors"] = self._depth(tf.maximum(fetch, parameters.reorder), excluded)
        if self._strategy == "tree":
            settings["leaves_to_search"] = parameters.partitions_to_search
        nearest = scann_ops.searcher_from_module(self._state).search_batched(queries, **settings)
        # Queries with fewer results than others of their batch are padded with row 0 and a distance of NaN.
        rows = tf.where(tf.math.is_nan(nearest.distances), NO_ROW, nearest.indices)
        return best(nearest.distances, rows, k, excluded, allowed)
