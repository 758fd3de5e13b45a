"""Two levels of a partition tree with stock ops: exact scores of the members of the cells whose centres score best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import (
    FEW,
    NO_ROW,
    Partitions,
    SearchParameters,
    TopK,
    best,
    first,
    mask,
    nearest,
    padded_top_k,
    variable,
    without,
)
from modules.retrieval.vectors import Vectors, as_tensor, parts, zeros

# Members of one cell lie in blocks of this many, so that a cell is read as a few long runs of memory. Larger blocks
# pad more (half a block per cell on average), smaller ones make the gather slower.
_BLOCK = 8
# Members of a cell on average, and the fewest that a partition is divided for. Smaller cells have more centres to
# compare with, and pad more.
_CELL = 64
_SMALL_CELL = 16
_ROUNDS = 6
# Numbers that say where a cell lies, see `_Cells.extents`.
_EXTENT = 3


class Tree(TopK):
    """Search with stock ops of the partitions that ScaNN trained: exact scores of members of the best of them.

    Each partition is divided once more, into cells. The vectors lie cell by cell, in blocks of equal size, and nowhere
    else. A search compares the query with the centres of the partitions, then with those of the best partitions' cells,
    and scores the members of the best cells: of those that hold `reorder` members, and of those whose centre's score is
    less by at most a standard deviation of a member's score around its cell's centre. So a query whose best items are
    spread over many cells looks at many more members than one whose best items are together.

    ScaNN's codes are of no use here: gathering their look-up tables with stock ops takes longer than scoring vectors,
    and few cells hold what is looked for.

    Args:
        vectors: [C, D] float32.
        partitions: As ScaNN trained them.
        parameters: How much a search looks at.
    """

    # tf.map_fn does not.
    _takes_empty_batches = False

    def __init__(self, vectors: Vectors, partitions: Partitions, parameters: SearchParameters | None = None) -> None:
        super().__init__(len(vectors), parameters)
        self.partitions = partitions
        cells = _Cells(vectors, partitions)
        count = len(partitions.centroids)
        self._partition_centroids = variable(partitions.centroids)
        self._cell_centroids = variable(cells.centroids.reshape(count, -1))
        self._cells = variable(cells.extents.reshape(count, -1))
        self._spread = variable(cells.spread)
        self._partition_of = variable(partitions.of_row)
        self._rows = variable(cells.rows.reshape(-1, _BLOCK))
        places = np.flatnonzero(cells.rows != NO_ROW)
        place_of = np.empty(len(vectors), np.int32)
        place_of[cells.rows[places]] = places
        self._place_of = variable(place_of)
        self._members = variable(tf.reshape(as_tensor(cells.members), [len(cells.rows) // _BLOCK, -1]))

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._all_members(), tf.gather(self._place_of, rows))

    def _all_members(self) -> tf.Tensor:
        """[places, D]: vectors in the order of the blocks, 0 at padding."""
        return self._vectors_of(self._members.read_value())

    def _vectors_of(self, several: tf.Tensor) -> tf.Tensor:
        """[N, D]: the vectors of some blocks or partitions, which lie one after another."""
        return tf.reshape(several, [-1, int(self._partition_centroids.shape[1])])

    def _exhaustive(self, queries: tf.Tensor, k: int, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.reshape(self._rows, [-1])
        scores = mask(tf.matmul(queries, self._all_members(), transpose_b=True), rows != NO_ROW)
        places = tf.where(excluded == NO_ROW, NO_ROW, tf.gather(self._place_of, tf.maximum(excluded, 0)))
        scores, places = first(without(scores, places), k)
        return scores, tf.where(places == NO_ROW, NO_ROW, tf.gather(rows, tf.maximum(places, 0)))

    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        searched = tf.minimum(parameters.partitions_to_search, int(self._partition_centroids.shape[0]))
        by_partition = tf.matmul(queries, self._partition_centroids, transpose_b=True)
        _, partitions = tf.math.top_k(by_partition, searched, sorted=False)
        # So many more than are asked for are enough: most of a long history is in other partitions.
        surplus = self._excluded_among(partitions, excluded)
        depth = tf.minimum(k + tf.reduce_max(surplus), self.size)
        members = tf.maximum(k, parameters.reorder) + surplus
        if allowed is not None:
            # As many that may come back as without a filter.
            share = tf.cast(tf.math.count_nonzero(allowed, axis=1) / self.size, tf.float32)
            members = tf.cast(tf.cast(members, tf.float32) / tf.maximum(share, FEW), tf.int32)
        margins = self._spread * tf.norm(queries, axis=1)
        # Read once, and not in the loop; for what is read, and not the variable, see `InOrder._all_vectors`.
        tables = [v.read_value() for v in (self._cell_centroids, self._cells, self._rows, self._members)]
        # One query after another: what one looks at stays in the processor's cache from its gathering to its scoring.
        scores, rows = tf.map_fn(
            lambda one: self._search_one(one, depth, tables, allowed),
            (queries, partitions, members, margins, tf.range(tf.shape(queries)[0])),
            fn_output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32)),
        )
        return best(scores, rows, k, excluded, allowed)

    def _excluded_among(self, partitions: tf.Tensor, excluded: tf.Tensor) -> tf.Tensor:
        """[B] int32: how many of a query's excluded rows [B, E] are in the partitions [B, P] that it looks at."""
        count = int(self._partition_centroids.shape[0])
        start = count * tf.range(tf.shape(partitions)[0])[:, tf.newaxis]
        looked_at = tf.reshape(start + partitions, [-1, 1])
        is_looked_at = tf.tensor_scatter_nd_update(
            tf.zeros([count * tf.shape(partitions)[0]], tf.bool), looked_at, tf.ones_like(looked_at[:, 0], tf.bool)
        )
        theirs = tf.gather(self._partition_of, tf.maximum(excluded, 0))
        is_there = tf.gather(is_looked_at, start + theirs) & (excluded != NO_ROW)
        return tf.math.count_nonzero(is_there, axis=1, dtype=tf.int32)

    def _search_one(
        self,
        asked: tuple[tf.Tensor, ...],
        depth: tf.Tensor,
        tables: Sequence[tf.Tensor],
        allowed: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The `depth` best members of the best cells of some partitions for one query; padded if fewer.

        Args:
            asked: The query [D]; the partitions [P]; how many members the best cells shall have; by how much less than
                theirs the centres of other cells may score; the query's number in its batch, for `allowed`.
            depth: How many members are wanted.
            tables: What is read of the variables: by partition its cells' centres and extents, by block rows and
                vectors.
            allowed: [B, C] bool or None.
        """
        query, partitions, count, margin, number = asked
        centroids, cells, rows, members = tables
        by_cell = tf.linalg.matvec(self._vectors_of(tf.gather(centroids, partitions)), query)
        by_cell, order = tf.math.top_k(by_cell, tf.size(by_cell))
        cells = tf.gather(tf.reshape(tf.gather(cells, partitions), [-1, _EXTENT]), order)
        starts, ends, sizes = tf.unstack(cells, axis=1)
        fewer = _count(tf.cumsum(sizes) < count)
        chosen = _count(by_cell >= by_cell[tf.minimum(fewer, tf.size(order) - 1)] - margin)
        looked_at = tf.ragged.range(starts[:chosen], ends[:chosen]).values
        rows = tf.reshape(tf.gather(rows, looked_at), [-1])
        scores = tf.linalg.matvec(self._vectors_of(tf.gather(members, looked_at)), query)
        scores = mask(scores, rows != NO_ROW)
        if allowed is not None:
            scores = mask(scores, tf.gather(allowed[number], tf.maximum(rows, 0)))
        return padded_top_k(scores, rows, depth)


class _Cells:
    """Partitions divided into cells, equally many each, and the members in that order.

    Attributes:
        centroids: [P, S, D] float32; of an empty cell that of its partition.
        extents: [P, S, 3] int32, a cell's first block, the one after its last, and how many members it has.
        rows: [places] int32, -1 where a block is padded.
        members: [places, D] float32, as `zeros` makes them.
        spread: The root of the mean square of how far a member is from its cell's centre along one dimension.
    """

    def __init__(self, vectors: Vectors, partitions: Partitions) -> None:
        # The same cells for the same partitions.
        generator = np.random.default_rng(0)
        size, dimension = vectors.shape
        counts = np.bincount(partitions.of_row, minlength=len(partitions.centroids))
        cells = max(1, round(size / len(counts) / _CELL))
        wanted = np.minimum(-(-counts // _SMALL_CELL), cells)
        order = np.argsort(partitions.of_row, kind="stable")
        # All of them partition by partition, at the end of memory that has room for padding: each partition is taken
        # from there and laid down again in front of those that are still to come.
        room = (-(-size // _BLOCK) + int(wanted.sum())) * _BLOCK
        members = zeros(room, dimension)
        place_of = np.empty(size, np.int64)
        place_of[order] = np.arange(room - size, room)
        for start, part in parts(vectors):
            members[place_of[start : start + len(part)]] = part
        rows = np.full(room, NO_ROW, np.int32)
        self.centroids = np.repeat(partitions.centroids[:, np.newaxis], cells, axis=1)
        self.extents = np.zeros((len(counts), cells, _EXTENT), np.int32)
        begin = end = 0
        squares = 0.0
        for partition in np.flatnonzero(counts):
            theirs = order[begin : begin + counts[partition]]
            taken = members[room - size + begin :][: len(theirs)].copy()
            begin += len(theirs)
            cell, centres = _divide(taken, int(wanted[partition]), generator)
            squares += float(np.sum((taken - centres[cell]) ** 2))
            sizes = np.bincount(cell, minlength=len(centres))
            ends = end + _BLOCK * np.cumsum(-(-sizes // _BLOCK))
            starts = np.concatenate([[end], ends[:-1]])
            by_cell = np.argsort(cell, kind="stable")
            within = np.arange(len(theirs)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            places = starts[cell[by_cell]] + within
            members[end : ends[-1]] = 0
            members[places] = taken[by_cell]
            rows[places] = theirs[by_cell]
            end = int(ends[-1])
            self.centroids[partition, : len(centres)] = centres
            self.extents[partition, : len(centres)] = np.stack([starts // _BLOCK, ends // _BLOCK, sizes], axis=1)
        self.rows, self.members = rows[:end], members[:end]
        self.spread = np.float32((squares / (size * dimension)) ** 0.5)


def _count(conditions: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(conditions, tf.int32))


def _divide(vectors: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means: [N] int32 cell of each vector, and [count or fewer, D] centres, none without a vector."""
    if count <= 1:
        return np.zeros(len(vectors), np.int32), vectors.mean(axis=0, keepdims=True)
    centres = vectors[generator.choice(len(vectors), count, replace=False)]
    for _ in range(_ROUNDS):
        of_row = nearest(centres, vectors)
        sizes = np.bincount(of_row, minlength=len(centres))
        used = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[used]
        sums = np.add.reduceat(vectors[np.argsort(of_row, kind="stable")], starts)
        centres = sums / sizes[used, np.newaxis].astype(np.float32)
        of_row = np.searchsorted(used, of_row).astype(np.int32)
    return of_row, centres
