"""What every index layer is: k best candidates by inner product, without excluded rows, under a filter.

The layers: `BruteForce` is exact, `Scann` searches with ScaNN's own ops, `Quantized` and `Tree` are approximate with
stock TensorFlow ops alone.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from modules.retrieval.vectors import Vectors, parts

NO_ROW = -1
"""Pads rows where fewer than k candidates exist; the score beside it is −inf."""

Layer = Literal["stock", "scann", "brute_force"]
Strategy = Literal["exact", "quantized", "tree"]

SMALLEST_TRAINED = 100
"""Asymmetric hashing learns 16 centres per block and a tree needs leaves: a smaller catalogue is searched exactly."""

# The rule of thumb in ScaNN's documentation: brute force, from here on asymmetric hashing, from there on a tree.
_EXACT_BELOW = 20_000
_QUANTIZED_BELOW = 100_000
FEW = 1 / 16
"""A filter that leaves at most this share of the catalogue is answered exactly: reading so few rows is cheap, and what
a partition tree finds among rare members is neither the best of them nor enough."""

_CACHED_DISTANCES = 2**20
# Scores of all items that are in memory at once: 64 MiB.
_SCORES_AT_ONCE = 2**24
# Batches are not cut into slices of as many queries or more.
_LARGE_SLICE = 512


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
class SearchParameters:
    """How much of an index a search looks at: more finds more and takes longer."""

    partitions_to_search: int | tf.Tensor = 1
    """Leaves of the tree whose members may be scored."""
    reorder: int | tf.Tensor = 1
    """Candidates of the approximate pass that are scored again exactly. The stock tree scores exactly at once: the
    members of the best cells, until there are so many, and of the cells whose centres score nearly as well."""


@dataclasses.dataclass(frozen=True)
class Partitions:
    """A catalogue divided by nearest centre."""

    centroids: np.ndarray
    """[P, D] float32 centres."""
    of_row: np.ndarray
    """[C] int32 partition of each row."""

    def with_rows(self, kept: np.ndarray, new: np.ndarray) -> Partitions:
        """The same centres for other rows.

        Args:
            kept: Rows that stay, in the order they will have.
            new: [N, D] vectors of the rows after them; each goes to the partition with the nearest centroid.
        """
        return Partitions(self.centroids, np.concatenate([self.of_row[kept], nearest(self.centroids, new)]))


def nearest(centroids: np.ndarray, vectors: Vectors) -> np.ndarray:
    """[N] int32: the nearest of the centroids [P, D] for each vector."""
    norms = np.sum(centroids**2, axis=1)
    # Distances of so many rows at a time stay in the processor's cache.
    step = max(1, _CACHED_DISTANCES // len(centroids))
    result = np.empty(len(vectors), np.int32)
    for first, part in parts(vectors):
        for start in range(0, len(part), step):
            distances = part[start : start + step] @ centroids.T
            distances *= -2
            distances += norms
            result[first + start : first + start + len(distances)] = np.argmin(distances, axis=1)
    return result


class TopK(tf.Module, abc.ABC):
    """A searchable catalogue. Rows are positions in the [C, D] float32 vectors that it was built from.

    Everything large is a non-trainable `tf.Variable`, never a constant of the graph: a graph is limited to 2 GB.
    """

    namespaces: tuple[str, ...] = ()
    """Namespaces of custom ops, which `tf.saved_model.SaveOptions` must be told about."""
    partitions: Partitions | None = None
    """Of a partition tree: what it takes to give the tree other rows."""
    _takes_empty_batches = True
    """Whether `_find` does; to spare it one costs a request a dozen operations."""

    def __init__(self, size: int, parameters: SearchParameters | None = None) -> None:
        super().__init__()
        self.size = size
        self.parameters = parameters or SearchParameters()

    def search(
        self,
        queries: tf.Tensor,
        k: int,
        excluded: tf.Tensor,
        allowed: tf.Tensor | None = None,
        parameters: SearchParameters | None = None,
        enough: int | None = None,
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
            parameters: Instead of the index's own; scalar int32 tensors will do, so that one graph tries many.
            enough: Where fewer than k will do, how many: only a query with fewer than these is searched exactly.

        Returns:
            Scores [B, k] float32, best first, padded with −inf, and rows [B, k] int32, padded with -1.
        """
        parameters, enough = parameters or self.parameters, enough or k
        if self._takes_empty_batches:
            return self._search(queries, k, excluded, allowed, parameters, enough)
        # An empty batch gets one query that is dropped again.
        batch = tf.shape(queries)[0]
        queries, excluded, allowed = (_at_least_one(x) for x in (queries, excluded, allowed))
        scores, rows = self._search(queries, k, excluded, allowed, parameters, enough)
        return scores[:batch], rows[:batch]

    def search_both(self, queries: tf.Tensor, k: int, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The answers of `search` without the excluded rows and with them, for those who compare the two.

        Args:
            queries: [B, D] float32.
            k: Number of results.
            excluded: [B, E] int32 rows, padded with -1.

        Returns:
            Scores [B, k] and rows [B, k] without the excluded ones, and rows [B, k] with them, each as `search` has it.
        """
        # An approximate layer looks further where rows are excluded: what it finds then is not the answer without.
        _, with_excluded = self.search(queries, k, excluded[:, :0])
        return *self.search(queries, k, excluded), with_excluded

    def _search(
        self,
        queries: tf.Tensor,
        k: int,
        excluded: tf.Tensor,
        allowed: tf.Tensor | None,
        parameters: SearchParameters,
        enough: int,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if allowed is None:
            exist, few = tf.constant(self.size), tf.constant(False)
            scores, rows = self._find(queries, k, excluded, None, parameters)
        else:
            exist = tf.math.count_nonzero(allowed, axis=1, dtype=tf.int32)
            few = exist <= int(FEW * self.size)
            shape = [tf.shape(queries)[0], k]
            scores, rows = tf.cond(
                tf.reduce_all(few),
                lambda: (tf.fill(shape, -np.inf), tf.fill(shape, NO_ROW)),
                lambda: self._find(queries, k, excluded, allowed, parameters),
            )
        if self._is_exact():
            if allowed is None:
                return scores, rows
            again = few
        else:
            returned = tf.math.count_nonzero(rows != NO_ROW, axis=1, dtype=tf.int32)
            again = few | (returned < tf.minimum(enough, exist))
        chosen = tf.reshape(tf.where(again), [-1])

        def exact() -> tuple[tf.Tensor, tf.Tensor]:
            some, theirs = tf.gather(queries, chosen), tf.gather(excluded, chosen)
            if allowed is None:
                best_scores, best_rows = self._in_slices(lambda q, e: self._exhaustive(q, k, e), k, some, theirs)
            else:
                best_scores, best_rows = self._among_allowed(some, chosen, k, theirs, allowed)
            where = chosen[:, tf.newaxis]
            return (
                tf.tensor_scatter_nd_update(scores, where, best_scores),
                tf.tensor_scatter_nd_update(rows, where, best_rows),
            )

        return tf.cond(tf.size(chosen) > 0, exact, lambda: (scores, rows))

    def _among_allowed(
        self, queries: tf.Tensor, numbers: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The exactly best allowed rows of some of the batch's queries, which are at these numbers in it."""
        depth = self._depth(k, excluded)

        def search_one(inputs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            query, number = inputs
            rows = tf.cast(tf.reshape(tf.where(allowed[number]), [-1]), tf.int32)
            return padded_top_k(tf.linalg.matvec(self.vectors(rows), query), rows, depth)

        scores, rows = tf.map_fn(
            search_one,
            (queries, numbers),
            fn_output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32)),
        )
        return best(scores, rows, k, excluded)

    @abc.abstractmethod
    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Vectors [..., D] float32 of rows [...] int32."""

    @abc.abstractmethod
    def _exhaustive(self, queries: tf.Tensor, k: int, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `search`, from a look at every row."""

    @abc.abstractmethod
    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `search`, but with fewer than k rows where the layer finds no more."""

    def _in_slices(
        self, search: Callable[..., Sequence[tf.Tensor]], k: int, *batch: tf.Tensor | None, rows: int = 1
    ) -> tuple[tf.Tensor, ...]:
        """Asks a search that scores every row for a few queries of a batch at a time, where the catalogue is large.

        Args:
            search: What `batch` has of N queries → scores [N, k] float32, and rows [N, k] int32.
            k: Number of results.
            batch: Tensors [B, ...], queries first; None is passed on.
            rows: How many tensors of rows `search` answers.
        """
        at_once = max(1, _SCORES_AT_ONCE // self.size)
        if at_once >= _LARGE_SLICE:
            return tuple(search(*batch))
        # An empty batch is a slice, too.
        end = tf.maximum(tf.shape(batch[0])[0], 1)

        def ask(start: tf.Tensor, *answers: tf.TensorArray) -> tuple[Any, ...]:
            few = (None if each is None else each[start : start + at_once] for each in batch)
            return start + at_once, *(a.write(a.size(), x) for a, x in zip(answers, search(*few), strict=True))

        answers = [
            tf.TensorArray(dtype, 0, dynamic_size=True, infer_shape=False, element_shape=[None, k])
            for dtype in (tf.float32, *rows * [tf.int32])
        ]
        _, *answers = tf.while_loop(
            lambda start, *_: start < end, ask, (tf.constant(0), *answers), parallel_iterations=1
        )
        return tuple(tf.ensure_shape(answer.concat(), [None, k]) for answer in answers)

    def _depth(self, count: int | tf.Tensor, excluded: tf.Tensor) -> tf.Tensor:
        """How many candidates to look for: at most E of the best count + E are excluded, so that `count` are left."""
        return tf.minimum(count + tf.shape(excluded)[1], self.size)

    def _is_exact(self) -> bool:
        return False


class InOrder(TopK):
    """An index that holds the vectors in the order of its rows."""

    @abc.abstractmethod
    def _all_vectors(self) -> tf.Tensor:
        """[C, D] float32: what is read of a variable, never the variable itself.

        Rows gathered from a variable make TensorFlow copy it, whole, each time that it is read from then on.
        """

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._all_vectors(), rows)

    def _exhaustive(self, queries: tf.Tensor, k: int, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return first(without(self._scores(queries), excluded), k)

    def _scores(self, queries: tf.Tensor) -> tf.Tensor:
        """[B, C] inner products with every row."""
        return tf.matmul(queries, self._all_vectors(), transpose_b=True)


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


def mask(scores: tf.Tensor, allowed: tf.Tensor | None) -> tf.Tensor:
    """Scores with −inf where a row is not allowed."""
    return scores if allowed is None else tf.where(allowed, scores, -np.inf)


def without(scores: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Scores [B, N] with −inf at some columns [B, E] int32, where -1 names none."""
    # A scatter's time is that of the cells it is told, and of a batch's columns half and more are padding.
    places = tf.where(columns != NO_ROW)
    cells = tf.stack([places[:, 0], tf.cast(tf.gather_nd(columns, places), tf.int64)], axis=1)
    return tf.tensor_scatter_nd_update(scores, cells, tf.fill(tf.shape(cells)[:1], tf.constant(-np.inf, scores.dtype)))


def first(scores: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best of scores [B, N], best first, padded with −inf, and their columns, padded with -1.

    Of equal scores the one in the lower column is first. A score of −inf is none.
    """
    if (scores.shape[1] or 0) >= k:
        scores, columns = tf.math.top_k(scores, k)
    else:
        count = tf.minimum(k, tf.shape(scores)[1])
        scores, columns = tf.math.top_k(scores, count)
        padding = [[0, 0], [0, k - count]]
        scores = tf.ensure_shape(tf.pad(scores, padding, constant_values=-np.inf), [None, k])
        columns = tf.ensure_shape(tf.pad(columns, padding, constant_values=NO_ROW), [None, k])
    return scores, tf.where(tf.math.is_inf(scores), NO_ROW, columns)


def padded_top_k(scores: tf.Tensor, rows: tf.Tensor, depth: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The `depth` best of some rows [N], in any order, padded with −inf and -1."""
    count = tf.minimum(depth, tf.size(rows))
    scores, columns = tf.math.top_k(scores, count, sorted=False)
    padding = [[0, depth - count]]
    return (
        tf.pad(scores, padding, constant_values=-np.inf),
        tf.pad(tf.gather(rows, columns), padding, constant_values=NO_ROW),
    )


def variable(value: np.ndarray | tf.Tensor) -> tf.Variable:
    """A fixed value that a SavedModel stores beside its graph; a tensor's memory becomes the variable's."""
    return tf.Variable(value, trainable=False)


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
