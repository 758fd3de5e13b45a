"""The index layers: three interchangeable ways to find a query's best candidates by inner product.

`BruteForce` is exact. `Scann` searches with ScaNN's own ops. `Stock` searches what ScaNN trained with stock TensorFlow
ops only. ScaNN: Guo et al., "Accelerating Large-Scale Inference with Anisotropic Vector Quantization", ICML 2020.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import numpy as np
import tensorflow as tf

NO_ROW = -1
"""Pads rows where fewer than k candidates exist; the score beside it is −inf."""

Strategy = Literal["exact", "quantized", "tree"]

SMALLEST_TRAINED = 100
"""Asymmetric hashing learns 16 centres per block and a tree needs leaves: a smaller catalogue is searched exactly."""

_EXACT_BELOW = 20_000
_QUANTIZED_BELOW = 100_000
# Vectors of one partition lie in blocks of this many, so that a partition is read as a few long runs of memory. Larger
# blocks pad more (half a block per partition on average), smaller ones make the gather slower.
_BLOCK = 32
# How far ScaNN's ops, which know no filters, look beyond k for a filtered query before it is answered exactly instead.
_FILTER_OVERFETCH = 4
# The value that ScaNN's authors recommend for inner products: errors along the vector cost more than across it.
_ANISOTROPIC_THRESHOLD = 0.2
# Share of the vectors' energy that the first pass over a quantised stock index sees.
_ENERGY = 0.95


def resolve_strategy(strategy: Literal["auto", "exact", "quantized", "tree"], size: int) -> Strategy:
    """The search strategy for a catalogue of `size` items: ScaNN's own rule for `auto`, always exact for tiny ones."""
    if size < SMALLEST_TRAINED:
        return "exact"
    if strategy != "auto":
        return strategy
    if size < _EXACT_BELOW:
        return "exact"
    return "quantized" if size < _QUANTIZED_BELOW else "tree"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much of an index a search looks at: more finds more and takes longer."""

    partitions_to_search: int = 1
    """Leaves of the tree whose members are scored."""
    reorder: int = 1
    """Candidates of the approximate pass that are scored again exactly."""


@dataclasses.dataclass(frozen=True)
class TrainedScann:
    """What ScaNN learned about a catalogue: the state that `Scann` searches and `Stock` is built from."""

    state: tf.Module
    """ScaNN's `ScannState`: variables that its ops restore a searcher from."""
    strategy: Strategy
    centroids: np.ndarray | None = None
    """[P, D] float32 centres of the partitions; None without a tree."""
    partition_of: np.ndarray | None = None
    """[C] int32 partition of each row."""


def default_partitions(size: int) -> int:
    """Number of leaves: the square root of the catalogue's size balances scoring the leaves and their members."""
    return max(1, round(size**0.5))


def train_scann(
    vectors: np.ndarray,
    strategy: Strategy,
    *,
    partitions: int | None = None,
    dimensions_per_block: int = 2,
    seed: int = 42,
) -> TrainedScann:
    """Trains ScaNN: nothing for `exact`, asymmetric hashing for `quantized`, partitions and hashing for `tree`.

    Args:
        vectors: [C, D] float32; `quantized` and `tree` need at least `SMALLEST_TRAINED` rows.
        strategy: What is trained.
        partitions: Leaves of the tree; by default the square root of C.
        dimensions_per_block: Dimensions that share one code.
        seed: Of the tree's k-means.
    """
    # Imported here: the other layers must work in a process without ScaNN and its ops.
    from scann.partitioning import partitioner_pb2
    from scann.scann_ops.py import scann_ops

    size, dimension = vectors.shape
    leaves = min(partitions or default_partitions(size), size)
    builder = scann_ops.builder(vectors, 1, "dot_product")
    if strategy == "tree":
        builder = builder.tree(
            num_leaves=leaves,
            num_leaves_to_search=1,
            min_partition_size=max(1, size // (4 * leaves)),
            # ScaNN's random initialisation takes no seed; its k-means++ does.
            random_init=False,
        )
    if strategy == "exact":
        builder = builder.score_brute_force()
    else:
        block = min(dimensions_per_block, dimension)
        builder = builder.score_ah(block, anisotropic_quantization_threshold=_ANISOTROPIC_THRESHOLD).reorder(1)
    config = builder.create_config().replace("partitioning {", f"partitioning {{ clustering_seed: {seed}", 1)
    state = scann_ops.create_searcher(vectors, config).serialize_to_module()
    if strategy != "tree":
        return TrainedScann(state, strategy)
    partitioner = partitioner_pb2.SerializedPartitioner.FromString(state.serialized_partitioner.numpy()[0])
    centers = partitioner.kmeans.kmeans_tree.root.centers
    centroids = np.array([center.dimension for center in centers], np.float32)
    return TrainedScann(state, strategy, centroids, state.datapoint_to_token.numpy())


class TopK(tf.Module, abc.ABC):
    """A searchable catalogue. Rows are positions in the [C, D] float32 vectors that it was built from.

    Everything large is a non-trainable `tf.Variable`, never a constant of the graph: a graph is limited to 2 GB.
    """

    namespaces: tuple[str, ...] = ()
    """Namespaces of custom ops, which `tf.saved_model.SaveOptions` must be told about."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def search(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the candidates with the highest inner products.

        An approximate layer may miss some of the best ones. It never returns an excluded or disallowed row, nor a row
        twice, and never fewer than k rows when k exist: a query for which its approximation finds fewer is searched
        exactly.

        Args:
            queries: [B, D] float32.
            k: Number of results.
            excluded: [B, E] int32 rows that must not come back, padded with -1.
            allowed: [B, C] bool; where given, no other rows come back.

        Returns:
            Scores [B, k] float32, best first, padded with −inf, and rows [B, k] int32, padded with -1.
        """
        # Neither ScaNN's ops nor map_fn take an empty batch: it gets one query that is dropped again.
        batch = tf.shape(queries)[0]
        queries, excluded, allowed = (_at_least_one(x) for x in (queries, excluded, allowed))
        scores, rows = self._search(queries, k, excluded, allowed)
        return scores[:batch], rows[:batch]

    def _search(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # At most E of the best k + E are excluded, so k are left.
        spare = tf.shape(excluded)[1]
        scores, rows = best(*self._candidates(queries, k, spare, allowed), k, excluded, allowed)
        if self._is_exact():
            return scores, rows
        exist = self.size if allowed is None else tf.reduce_sum(tf.cast(allowed, tf.int32), axis=1)
        found = tf.reduce_sum(tf.cast(rows != NO_ROW, tf.int32), axis=1)
        short = tf.reshape(tf.where(found < tf.minimum(k, exist)), [-1])

        def complete() -> tuple[tf.Tensor, tf.Tensor]:
            some = [None if x is None else tf.gather(x, short) for x in (queries, excluded, allowed)]
            all_scores, all_rows = best(*self._exhaustive(some[0], k, spare, some[2]), k, some[1], some[2])
            where = short[:, tf.newaxis]
            return (
                tf.tensor_scatter_nd_update(scores, where, all_scores),
                tf.tensor_scatter_nd_update(rows, where, all_rows),
            )

        return tf.cond(tf.size(short) > 0, complete, lambda: (scores, rows))

    @abc.abstractmethod
    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Vectors [..., D] float32 of rows [...] int32."""

    @abc.abstractmethod
    def _score_all(self, queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Scores [B, N] and the row of each column, [N], -1 for none; None when column i is row i."""

    @abc.abstractmethod
    def _candidates(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and rows [B, N] of what the layer finds: its k + spare best, if it finds so many."""

    def _depth(self, count: int, spare: tf.Tensor) -> tf.Tensor:
        return tf.minimum(count + spare, self.size)

    def _is_exact(self) -> bool:
        return False

    def _exhaustive(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scores, row_of = self._score_all(queries)
        scores, columns = tf.math.top_k(_mask(scores, row_of, allowed), self._depth(k, spare))
        return scores, columns if row_of is None else tf.gather(row_of, columns)


class BruteForce(TopK):
    """Exact search: one matrix product with the whole catalogue.

    Args:
        vectors: [C, D] float32.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(len(vectors))
        self._vectors = _variable(vectors)

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._vectors, rows)

    def _is_exact(self) -> bool:
        return True

    def _score_all(self, queries: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.matmul(queries, self._vectors, transpose_b=True), None

    def _candidates(self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None) -> Any:
        return self._exhaustive(queries, k, spare, allowed)


class Scann(TopK):
    """Search with ScaNN's own ops, for a TensorFlow Serving that was built with them and for Python.

    Args:
        trained: ScaNN's state.
        effort: What a search looks at.
    """

    namespaces = ("Scann",)

    def __init__(self, trained: TrainedScann, effort: Effort) -> None:
        super().__init__(int(trained.state.dataset.shape[0]))
        self._state = trained.state
        self._strategy = trained.strategy
        self._effort = effort

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._dataset(), rows)

    def _dataset(self) -> tf.Tensor:
        # ScaNN creates its variables without a static shape.
        return tf.ensure_shape(self._state.dataset.read_value(), self._state.dataset.shape)

    def _score_all(self, queries: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.matmul(queries, self._dataset(), transpose_b=True), None

    def _candidates(self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None) -> Any:
        from scann.scann_ops.py import scann_ops

        fetch = k if allowed is None else _FILTER_OVERFETCH * k
        settings: dict[str, Any] = {"final_num_neighbors": self._depth(fetch, spare)}
        if self._strategy != "exact":
            settings["pre_reorder_num_neighbors"] = self._depth(max(fetch, self._effort.reorder), spare)
        if self._strategy == "tree":
            settings["leaves_to_search"] = self._effort.partitions_to_search
        found = scann_ops.searcher_from_module(self._state).search_batched(queries, **settings)
        # Queries with fewer results than others of their batch are padded with row 0 and a distance of NaN.
        return found.distances, tf.where(tf.math.is_nan(found.distances), NO_ROW, found.indices)


class Stock(TopK):
    """Search of what ScaNN trained, with stock TensorFlow ops only.

    - `tree`: ScaNN's partitions, stored one after the other in blocks of equal size. The partitions with the highest
      centroid scores are gathered block by block and all their members are scored exactly.
    - `quantized`: a first pass over the whole catalogue sees only its leading principal dimensions, its best `reorder`
      candidates are scored exactly. ScaNN's codes are of no use here: gathering their look-up tables with stock ops
      takes six times as long as scoring all vectors exactly.
    - `exact`: one matrix product.

    Args:
        vectors: [C, D] float32.
        strategy: How to search; the default is exact.
        effort: What a search looks at.
        trained: ScaNN's state; needed for `tree` only.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        strategy: Strategy = "exact",
        effort: Effort | None = None,
        trained: TrainedScann | None = None,
    ) -> None:
        super().__init__(len(vectors))
        self._strategy = strategy
        self._effort = effort or Effort()
        self._dimension = vectors.shape[1]
        if strategy == "tree":
            if trained is None or trained.centroids is None or trained.partition_of is None:
                raise ValueError("the tree strategy needs the partitions that ScaNN trained")
            blocks, block_counts = _blocks(trained.partition_of, len(trained.centroids))
            self._centroids = _variable(trained.centroids)
            self._first_block = _variable(np.cumsum(block_counts, dtype=np.int32) - block_counts)
            self._end_block = _variable(np.cumsum(block_counts, dtype=np.int32))
            self._rows = _variable(blocks)
            place = np.flatnonzero(blocks.ravel() != NO_ROW)
            place_of_row = np.empty(len(vectors), np.int32)
            place_of_row[blocks.ravel()[place]] = place
            self._place = _variable(place_of_row)
            stored = np.zeros((blocks.size, self._dimension), np.float32)
            stored[place_of_row] = vectors
            self._vectors = _variable(stored.reshape(*blocks.shape, self._dimension))
        else:
            self._vectors = _variable(vectors)
        if strategy == "quantized":
            leading = _leading_directions(vectors)
            self._leading = _variable(leading)
            self._reduced = _variable(vectors @ leading)

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        if self._strategy != "tree":
            return tf.gather(self._vectors, rows)
        return tf.gather(self._flat(), tf.gather(self._place, rows))

    def _is_exact(self) -> bool:
        return self._strategy == "exact"

    def _flat(self) -> tf.Tensor:
        return tf.reshape(self._vectors, [-1, self._dimension])

    def _score_all(self, queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        if self._strategy != "tree":
            return tf.matmul(queries, self._vectors, transpose_b=True), None
        return tf.matmul(queries, self._flat(), transpose_b=True), tf.reshape(self._rows, [-1])

    def _candidates(self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None) -> Any:
        if self._strategy == "tree":
            return self._search_partitions(queries, k, spare, allowed)
        if self._strategy == "quantized":
            return self._search_reduced(queries, k, spare, allowed)
        return self._exhaustive(queries, k, spare, allowed)

    def _search_reduced(self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None) -> Any:
        approximate = tf.matmul(queries @ self._leading, self._reduced, transpose_b=True)
        _, rows = tf.math.top_k(_mask(approximate, None, allowed), self._depth(max(k, self._effort.reorder), spare))
        return tf.linalg.matvec(tf.gather(self._vectors, rows), queries), rows

    def _search_partitions(self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None) -> Any:
        leaves = min(self._effort.partitions_to_search, int(self._centroids.shape[0]))
        _, partitions = tf.math.top_k(tf.matmul(queries, self._centroids, transpose_b=True), leaves)
        fetch = self._depth(k, spare)
        first, end = tf.gather(self._first_block, partitions), tf.gather(self._end_block, partitions)

        # One query at a time: partitions differ in size, and a batch's blocks side by side would need gigabytes.
        def search_one(inputs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
            query, first, end, *mask = inputs
            blocks = tf.ragged.range(first, end).flat_values
            rows = tf.reshape(tf.gather(self._rows, blocks), [-1])
            members = tf.reshape(tf.gather(self._vectors, blocks), [-1, self._dimension])
            scores = tf.where(rows == NO_ROW, -np.inf, tf.linalg.matvec(members, query))
            if mask:
                scores = tf.where(tf.gather(mask[0], tf.maximum(rows, 0)), scores, -np.inf)
            missing = tf.maximum(fetch - tf.size(rows), 0)
            scores = tf.pad(scores, [[0, missing]], constant_values=-np.inf)
            rows = tf.pad(rows, [[0, missing]], constant_values=NO_ROW)
            scores, columns = tf.math.top_k(scores, fetch)
            return scores, tf.gather(rows, columns)

        inputs = (queries, first, end) if allowed is None else (queries, first, end, allowed)
        return tf.map_fn(
            search_one,
            inputs,
            fn_output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32)),
        )


def best(
    scores: tf.Tensor, rows: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best of some candidates that may come back.

    Args:
        scores: [B, N] float32, in any order.
        rows: [B, N] int32, -1 for none.
        k: Number of results.
        excluded: [B, E] int32, padded with -1.
        allowed: [B, C] bool or None.

    Returns:
        Scores [B, k], best first, padded with −inf, and rows [B, k], padded with -1.
    """
    keep = ~_contains(excluded, rows)
    if allowed is not None:
        keep &= tf.gather(allowed, tf.maximum(rows, 0), batch_dims=1)
    missing = tf.maximum(k - tf.shape(rows)[1], 0)
    scores = tf.pad(tf.where(keep, scores, -np.inf), [[0, 0], [0, missing]], constant_values=-np.inf)
    rows = tf.pad(rows, [[0, 0], [0, missing]], constant_values=NO_ROW)
    scores, columns = tf.math.top_k(scores, k)
    return scores, tf.where(tf.math.is_inf(scores), NO_ROW, tf.gather(rows, columns, batch_dims=1))


def _at_least_one(batch: tf.Tensor | None) -> tf.Tensor | None:
    if batch is None:
        return None
    one = tf.concat([[1], tf.shape(batch)[1:]], axis=0)
    padded = tf.cond(tf.shape(batch)[0] == 0, lambda: tf.zeros(one, batch.dtype), lambda: batch)
    return tf.ensure_shape(padded, [None, *batch.shape[1:]])


def _contains(sets: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Whether each value [B, N] is in its row's set [B, E]; -1 is in every set."""
    ordered = tf.sort(tf.pad(sets, [[0, 0], [0, 1]], constant_values=NO_ROW), axis=1)
    last = tf.shape(ordered)[1] - 1
    # tf.searchsorted is this op behind a reshape that fails for an empty batch.
    position = tf.minimum(tf.raw_ops.LowerBound(sorted_inputs=ordered, values=values, out_type=tf.int32), last)
    return tf.gather(ordered, position, batch_dims=1) == values


def _mask(scores: tf.Tensor, row_of: tf.Tensor | None, allowed: tf.Tensor | None) -> tf.Tensor:
    """Scores [B, N] with −inf in columns without a row and in those whose row is not allowed."""
    if row_of is not None:
        scores = tf.where(row_of == NO_ROW, -np.inf, scores)
        allowed = None if allowed is None else tf.gather(allowed, tf.maximum(row_of, 0), axis=1)
    return scores if allowed is None else tf.where(allowed, scores, -np.inf)


def _blocks(partition_of: np.ndarray, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, _BLOCK] int32, partition by partition, each padded with -1 to whole blocks, and blocks per partition."""
    sizes = np.bincount(partition_of, minlength=partitions)
    counts = -(-sizes // _BLOCK)
    start = (np.cumsum(counts) - counts) * _BLOCK
    order = np.argsort(partition_of, kind="stable")
    within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.full(int(counts.sum()) * _BLOCK, NO_ROW, np.int32)
    rows[start[partition_of[order]] + within] = order
    return rows.reshape(-1, _BLOCK), counts.astype(np.int32)


def _leading_directions(vectors: np.ndarray) -> np.ndarray:
    """[D, R] float32: the principal directions that hold most of the vectors' energy."""
    energy, directions = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    share = np.cumsum(energy[::-1]) / max(energy.sum(), np.finfo(np.float64).tiny)
    count = int(np.searchsorted(share, _ENERGY)) + 1
    return directions[:, ::-1][:, :count].astype(np.float32)


def _variable(value: np.ndarray) -> tf.Variable:
    return tf.Variable(value, trainable=False)
