"""The index layers: three interchangeable ways to find a query's best candidates by inner product.

`BruteForce` is exact. `Scann` searches with ScaNN's own ops. `stock` gives what searches with stock TensorFlow ops
alone: `BruteForce`, `Quantized` or a `Tree` of the partitions that ScaNN trained. ScaNN: Guo et al., "Accelerating
Large-Scale Inference with Anisotropic Vector Quantization", ICML 2020.
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
# Members of one partition lie in blocks of this many, so that a partition is read as a few long runs of memory. Larger
# blocks pad more (half a block per partition on average), smaller ones make the gather slower.
_BLOCK = 16
# A filter that leaves at most this share of the catalogue is answered exactly: reading so few rows is cheap, and what a
# partition tree finds among rare members is neither the best of them nor enough.
_FEW = 1 / 16
# How far ScaNN's ops, which know no filters, look beyond k for a filtered query before it is answered exactly instead.
_FILTER_OVERFETCH = 4
# The value that ScaNN's authors recommend for inner products: errors along the vector cost more than across it.
_ANISOTROPIC_THRESHOLD = 0.2
# What ScaNN learns from. At 1M vectors and 2,000 partitions, 50 vectors a partition and 12 rounds take a third longer
# to build and searches look at as many members for the same recall; with 20 a partition they look at more.
_SAMPLE_PER_PARTITION = 32
_LEAST_SAMPLE = 20_000
_PARTITION_ROUNDS = 8
_CODE_SAMPLE = 20_000
_CODE_ROUNDS = 5
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

    partitions_to_search: int | tf.Tensor = 1
    """Leaves of the tree whose members are scored."""
    reorder: int | tf.Tensor = 1
    """Candidates of the approximate pass that are scored again exactly; the stock tree scores exactly at once."""


@dataclasses.dataclass(frozen=True)
class TrainedScann:
    """What ScaNN learned about a catalogue: the state that `Scann` searches and a `Tree` is built from."""

    state: tf.Module
    """ScaNN's `ScannState`: variables that its ops restore a searcher from."""
    strategy: Strategy
    centroids: np.ndarray | None = None
    """[P, D] float32 centres of the partitions; None without a tree."""
    partition_of: np.ndarray | None = None
    """[C] int32 partition of each row."""

    def with_rows(self, kept: np.ndarray, new: np.ndarray) -> TrainedScann:
        """The same partitions for other rows, without ScaNN's own state.

        Args:
            kept: Rows that stay, in the order they will have.
            new: [N, D] vectors of the rows after them; each goes to the partition with the nearest centroid.
        """
        assert self.centroids is not None and self.partition_of is not None
        norms = np.sum(self.centroids**2, axis=1)
        nearest = [
            np.argmin(norms - 2 * part @ self.centroids.T, axis=1).astype(np.int32)
            for part in np.array_split(new, max(1, len(new) // 1000))
        ]
        return TrainedScann(
            tf.Module(), "tree", self.centroids, np.concatenate([self.partition_of[kept], *nearest]).astype(np.int32)
        )


def default_partitions(size: int) -> int:
    """Number of leaves: the square root of the catalogue's size balances scoring the leaves and their members."""
    return max(1, round(size**0.5))


def tree_settings(size: int, partitions: int) -> dict[str, int]:
    """Arguments of ScaNN's `tree` for a catalogue: how many partitions, and what they are learned from."""
    sample = min(size, max(_LEAST_SAMPLE, _SAMPLE_PER_PARTITION * partitions))
    return {
        "num_leaves": partitions,
        "num_leaves_to_search": 1,
        "training_sample_size": sample,
        "training_iterations": _PARTITION_ROUNDS,
        # A quarter of the average. ScaNN counts it in its training sample: more than the sample's partitions hold
        # leaves many of them empty and makes the others wide.
        "min_partition_size": max(1, sample // (4 * partitions)),
    }


def hashing_settings(dimensions_per_block: int) -> dict[str, float]:
    """Arguments of ScaNN's `score_ah`."""
    return {
        "dimensions_per_block": dimensions_per_block,
        "anisotropic_quantization_threshold": _ANISOTROPIC_THRESHOLD,
        "training_sample_size": _CODE_SAMPLE,
        "training_iterations": _CODE_ROUNDS,
    }


def train_scann(
    vectors: np.ndarray,
    strategy: Strategy,
    *,
    partitions: int | None = None,
    spherical: bool = False,
    dimensions_per_block: int = 2,
    seed: int = 42,
) -> TrainedScann:
    """Trains ScaNN: nothing for `exact`, asymmetric hashing for `quantized`, partitions and hashing for `tree`.

    Args:
        vectors: [C, D] float32; `quantized` and `tree` need at least `SMALLEST_TRAINED` rows.
        strategy: What is trained.
        partitions: Leaves of the tree; by default the square root of C.
        spherical: Whether the tree's k-means goes by direction alone.
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
        # ScaNN's random initialisation takes no seed; its k-means++ does.
        builder = builder.tree(**tree_settings(size, leaves), spherical=spherical, random_init=False)
    if strategy == "exact":
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
    return TrainedScann(state, strategy, centroids, state.datapoint_to_token.numpy())


class TopK(tf.Module, abc.ABC):
    """A searchable catalogue. Rows are positions in the [C, D] float32 vectors that it was built from.

    Everything large is a non-trainable `tf.Variable`, never a constant of the graph: a graph is limited to 2 GB.
    """

    namespaces: tuple[str, ...] = ()
    """Namespaces of custom ops, which `tf.saved_model.SaveOptions` must be told about."""

    def __init__(self, size: int, effort: Effort | None = None) -> None:
        super().__init__()
        self.size = size
        self.effort = effort or Effort()

    def search(
        self,
        queries: tf.Tensor,
        k: int,
        excluded: tf.Tensor,
        allowed: tf.Tensor | None = None,
        effort: Effort | None = None,
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
            effort: Instead of the index's own; its numbers may be scalar int32 tensors, so that one graph tries many.

        Returns:
            Scores [B, k] float32, best first, padded with −inf, and rows [B, k] int32, padded with -1.
        """
        # Neither ScaNN's ops nor map_fn take an empty batch: it gets one query that is dropped again.
        batch = tf.shape(queries)[0]
        queries, excluded, allowed = (_at_least_one(x) for x in (queries, excluded, allowed))
        scores, rows = self._search(queries, k, excluded, allowed, effort or self.effort)
        return scores[:batch], rows[:batch]

    def _search(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, effort: Effort
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # At most E of the best k + E are excluded, so k are left.
        spare = tf.shape(excluded)[1]

        def approximate() -> tuple[tf.Tensor, tf.Tensor]:
            return best(*self._candidates(queries, k, spare, allowed, effort), k, excluded, allowed)

        if allowed is None:
            exist, few = tf.constant(self.size), tf.constant(False)
            scores, rows = approximate()
        else:
            exist = tf.math.count_nonzero(allowed, axis=1, dtype=tf.int32)
            few = exist <= int(_FEW * self.size)
            shape = [tf.shape(queries)[0], k]
            scores, rows = tf.cond(
                tf.reduce_all(few), lambda: (tf.fill(shape, -np.inf), tf.fill(shape, NO_ROW)), approximate
            )
        if self._is_exact():
            if allowed is None:
                return scores, rows
            again = few
        else:
            found = tf.math.count_nonzero(rows != NO_ROW, axis=1, dtype=tf.int32)
            again = few | (found < tf.minimum(k, exist))
        chosen = tf.reshape(tf.where(again), [-1])

        def exact() -> tuple[tf.Tensor, tf.Tensor]:
            some, without = tf.gather(queries, chosen), tf.gather(excluded, chosen)
            if allowed is None:
                found = best(*self._exhaustive(some, k, spare), k, without)
            else:
                found = best(*self._among_allowed(some, chosen, k, spare, allowed), k, without)
            where = chosen[:, tf.newaxis]
            return tf.tensor_scatter_nd_update(scores, where, found[0]), tf.tensor_scatter_nd_update(
                rows, where, found[1]
            )

        return tf.cond(tf.size(chosen) > 0, exact, lambda: (scores, rows))

    def _among_allowed(
        self, queries: tf.Tensor, numbers: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The exactly best allowed rows of some of the batch's queries, which are at these numbers in it."""
        depth = self._depth(k, spare)

        def search_one(inputs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            query, number = inputs
            rows = tf.cast(tf.reshape(tf.where(allowed[number]), [-1]), tf.int32)
            return _padded_top_k(tf.linalg.matvec(self.vectors(rows), query), rows, depth)

        return tf.map_fn(
            search_one,
            (queries, numbers),
            fn_output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32)),
        )

    @abc.abstractmethod
    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Vectors [..., D] float32 of rows [...] int32."""

    @abc.abstractmethod
    def _exhaustive(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and rows [B, k + spare] of the exactly best, best first."""

    @abc.abstractmethod
    def _candidates(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None, effort: Effort
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and rows [B, N] of what the layer finds: its k + spare best, if it finds so many."""

    def _depth(self, count: int | tf.Tensor, spare: tf.Tensor) -> tf.Tensor:
        return tf.minimum(count + spare, self.size)

    def _is_exact(self) -> bool:
        return False


class _InOrder(TopK):
    """An index that holds the vectors in the order of its rows."""

    @abc.abstractmethod
    def _all_vectors(self) -> tf.Tensor:
        """[C, D] float32."""

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._all_vectors(), rows)

    def _exhaustive(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scores = tf.matmul(queries, self._all_vectors(), transpose_b=True)
        return tf.math.top_k(_mask(scores, allowed), self._depth(k, spare))


class BruteForce(_InOrder):
    """Exact search: one matrix product with the whole catalogue.

    Args:
        vectors: [C, D] float32.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(len(vectors))
        self._vectors = _variable(vectors)

    def _all_vectors(self) -> tf.Tensor:
        return self._vectors

    def _is_exact(self) -> bool:
        return True

    def _candidates(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None, effort: Effort
    ) -> Any:
        return self._exhaustive(queries, k, spare, allowed)


class Scann(_InOrder):
    """Search with ScaNN's own ops, for a TensorFlow Serving that was built with them and for Python.

    Args:
        trained: ScaNN's state.
        effort: What a search looks at.
    """

    namespaces = ("Scann",)

    def __init__(self, trained: TrainedScann, effort: Effort) -> None:
        super().__init__(int(trained.state.dataset.shape[0]), effort)
        self._state = trained.state
        self._strategy = trained.strategy

    def _all_vectors(self) -> tf.Tensor:
        # ScaNN creates its variables without a static shape.
        return tf.ensure_shape(self._state.dataset.read_value(), self._state.dataset.shape)

    def _candidates(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None, effort: Effort
    ) -> Any:
        from scann.scann_ops.py import scann_ops

        fetch = k if allowed is None else _FILTER_OVERFETCH * k
        settings: dict[str, Any] = {"final_num_neighbors": self._depth(fetch, spare)}
        if self._strategy != "exact":
            settings["pre_reorder_num_neighbors"] = self._depth(tf.maximum(fetch, effort.reorder), spare)
        if self._strategy == "tree":
            settings["leaves_to_search"] = effort.partitions_to_search
        found = scann_ops.searcher_from_module(self._state).search_batched(queries, **settings)
        # Queries with fewer results than others of their batch are padded with row 0 and a distance of NaN.
        return found.distances, tf.where(tf.math.is_nan(found.distances), NO_ROW, found.indices)


class Quantized(_InOrder):
    """Search with stock ops: the leading principal dimensions of the whole catalogue, then the best `reorder` exactly.

    Args:
        vectors: [C, D] float32.
        effort: What a search looks at.
    """

    def __init__(self, vectors: np.ndarray, effort: Effort | None = None) -> None:
        super().__init__(len(vectors), effort)
        leading = _leading_directions(vectors)
        self._vectors = _variable(vectors)
        self._leading = _variable(leading)
        self._reduced = _variable(vectors @ leading)

    def _all_vectors(self) -> tf.Tensor:
        return self._vectors

    def _candidates(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None, effort: Effort
    ) -> Any:
        depth = self._depth(tf.maximum(k, effort.reorder), spare)
        approximate = tf.matmul(queries @ self._leading, self._reduced, transpose_b=True)
        _, rows = tf.math.top_k(_mask(approximate, allowed), depth, sorted=False)
        return tf.reduce_sum(self.vectors(rows) * queries[:, tf.newaxis], axis=2), rows


class Tree(TopK):
    """Search with stock ops of the partitions that ScaNN trained: exact scores of the members of the best of them.

    The vectors lie partition by partition, in blocks of equal size, and nowhere else. ScaNN's codes are of no use here:
    gathering their look-up tables with stock ops takes longer than scoring vectors, and few partitions hold what is
    looked for.

    Args:
        vectors: [C, D] float32.
        trained: The partitions.
        effort: What a search looks at.
    """

    def __init__(self, vectors: np.ndarray, trained: TrainedScann, effort: Effort | None = None) -> None:
        super().__init__(len(vectors), effort)
        if trained.centroids is None or trained.partition_of is None:
            raise ValueError(f"a tree needs partitions, and ScaNN trained {trained.strategy!r}")
        blocks, counts = _blocks(trained.partition_of, len(trained.centroids))
        self._centroids = _variable(trained.centroids)
        self._first_block = _variable(np.cumsum(counts, dtype=np.int32) - counts)
        self._end_block = _variable(np.cumsum(counts, dtype=np.int32))
        self._rows = _variable(blocks)
        rows = blocks.ravel()
        places = np.flatnonzero(rows != NO_ROW)
        members = np.zeros((len(rows), vectors.shape[1]), np.float32)
        members[places] = vectors[rows[places]]
        self._members = _variable(members.reshape(len(blocks), -1))
        place_of = np.empty(len(vectors), np.int32)
        place_of[rows[places]] = places
        self._place_of = _variable(place_of)

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._all_members(), tf.gather(self._place_of, rows))

    def _all_members(self) -> tf.Tensor:
        """[places, D]: vectors in the order of the blocks, 0 at padding."""
        return tf.reshape(self._members, [-1, int(self._centroids.shape[1])])

    def _exhaustive(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.reshape(self._rows, [1, -1])
        scores = _mask(tf.matmul(queries, self._all_members(), transpose_b=True), rows != NO_ROW)
        scores, places = tf.math.top_k(scores, self._depth(k, spare))
        return scores, tf.gather(rows[0], places)

    def _candidates(
        self, queries: tf.Tensor, k: int, spare: tf.Tensor, allowed: tf.Tensor | None, effort: Effort
    ) -> Any:
        leaves = tf.minimum(effort.partitions_to_search, int(self._centroids.shape[0]))
        by_centroid = tf.matmul(queries, self._centroids, transpose_b=True)
        _, partitions = tf.math.top_k(by_centroid, leaves, sorted=False)
        depth = self._depth(k, spare)
        # One query after another: what one looks at stays in the processor's cache from its gathering to its scoring.
        return tf.map_fn(
            lambda number: self._search_partitions(
                queries[number], partitions[number], depth, None if allowed is None else allowed[number]
            ),
            tf.range(tf.shape(queries)[0]),
            fn_output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32)),
        )

    def _search_partitions(
        self, query: tf.Tensor, partitions: tf.Tensor, depth: tf.Tensor, allowed: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The `depth` best members of some partitions [P] for one query [D], by exact score; padded if fewer."""
        ranges = tf.ragged.range(tf.gather(self._first_block, partitions), tf.gather(self._end_block, partitions))
        members = tf.reshape(tf.gather(self._members, ranges.values), [-1, int(self._centroids.shape[1])])
        rows = tf.reshape(tf.gather(self._rows, ranges.values), [-1])
        scores = _mask(tf.linalg.matvec(members, query), rows != NO_ROW)
        if allowed is not None:
            scores = _mask(scores, tf.gather(allowed, tf.maximum(rows, 0)))
        return _padded_top_k(scores, rows, depth)


def stock(
    vectors: np.ndarray, strategy: Strategy, effort: Effort | None = None, trained: TrainedScann | None = None
) -> TopK:
    """The index of the stock layer, which uses stock TensorFlow ops only.

    Args:
        vectors: [C, D] float32.
        strategy: How to search.
        effort: What a search looks at.
        trained: What ScaNN learned; needed for `tree` only.
    """
    if strategy == "exact":
        return BruteForce(vectors)
    if strategy == "quantized":
        return Quantized(vectors, effort)
    if trained is None:
        raise ValueError("a tree needs the partitions that ScaNN trained")
    return Tree(vectors, trained, effort)


def vectors_of(index: Any) -> np.ndarray:
    """[C, D]: the vectors of an index of the stock layer, also of one inside a loaded SavedModel."""
    if not hasattr(index, "_members"):
        return index._vectors.numpy()
    return index._members.numpy().reshape(-1, index._centroids.shape[1])[index._place_of.numpy()]


def partitions_of(index: Any) -> TrainedScann:
    """The partitions of a `Tree`, also of one inside a loaded SavedModel; without ScaNN's own state."""
    partition_of_block = np.searchsorted(index._end_block.numpy(), index._place_of.numpy() // _BLOCK, side="right")
    return TrainedScann(tf.Module(), "tree", index._centroids.numpy(), partition_of_block.astype(np.int32))


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


def _mask(scores: tf.Tensor, allowed: tf.Tensor | None) -> tf.Tensor:
    return scores if allowed is None else tf.where(allowed, scores, -np.inf)


def _padded_top_k(scores: tf.Tensor, rows: tf.Tensor, depth: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The `depth` best of some rows [N], in any order, padded with −inf and -1."""
    missing = tf.maximum(depth - tf.size(rows), 0)
    scores, columns = tf.math.top_k(scores, depth - missing, sorted=False)
    padding = [[0, missing]]
    return (
        tf.pad(scores, padding, constant_values=-np.inf),
        tf.pad(tf.gather(rows, columns), padding, constant_values=NO_ROW),
    )


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
    energy, directions = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    share = np.cumsum(energy[::-1]) / max(energy.sum(), np.finfo(np.float64).tiny)
    count = min(int(np.searchsorted(share, _ENERGY)) + 1, len(energy))
    return directions[:, ::-1][:, :count].astype(np.float32)


def _variable(value: np.ndarray) -> tf.Variable:
    return tf.Variable(value, trainable=False)
