"""A partition tree with stock ops: exact scores of the members of the partitions whose centres are nearest."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import (
    NO_ROW,
    Partitions,
    SearchParameters,
    TopK,
    best,
    first,
    mask,
    padded_top_k,
    variable,
    without,
)
from modules.retrieval.vectors import Vectors, as_tensor, parts, zeros

# Members of one partition lie in blocks of this many, so that a partition is read as a few long runs of memory. Larger
# blocks pad more (half a block per partition on average), smaller ones make the gather slower.
_BLOCK = 16


class Tree(TopK):
    """Search with stock ops of the partitions that ScaNN trained: exact scores of the members of the best of them.

    The vectors lie partition by partition, in blocks of equal size, and nowhere else. ScaNN's codes are of no use here:
    gathering their look-up tables with stock ops takes longer than scoring vectors, and few partitions hold what is
    looked for.

    Args:
        vectors: [C, D] float32.
        partitions: As ScaNN trained them.
        parameters: How much a search looks at.
    """

    def __init__(self, vectors: Vectors, partitions: Partitions, parameters: SearchParameters | None = None) -> None:
        super().__init__(len(vectors), parameters)
        self.partitions = partitions
        blocks, counts = _blocks(partitions.of_row, len(partitions.centroids))
        self._centroids = variable(partitions.centroids)
        self._first_block = variable(np.cumsum(counts, dtype=np.int32) - counts)
        self._end_block = variable(np.cumsum(counts, dtype=np.int32))
        self._rows = variable(blocks)
        rows = blocks.ravel()
        places = np.flatnonzero(rows != NO_ROW)
        place_of = np.empty(len(vectors), np.int32)
        place_of[rows[places]] = places
        self._place_of = variable(place_of)
        members = zeros(len(rows), vectors.shape[1])
        for start, part in parts(vectors):
            members[place_of[start : start + len(part)]] = part
        self._members = variable(tf.reshape(as_tensor(members), [len(blocks), -1]))

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._all_members(), tf.gather(self._place_of, rows))

    def _all_members(self) -> tf.Tensor:
        """[places, D]: vectors in the order of the blocks, 0 at padding."""
        return tf.reshape(self._members.read_value(), [-1, int(self._centroids.shape[1])])

    def _exhaustive(self, queries: tf.Tensor, k: int, excluded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.reshape(self._rows, [-1])
        scores = mask(tf.matmul(queries, self._all_members(), transpose_b=True), rows != NO_ROW)
        places = tf.where(excluded == NO_ROW, NO_ROW, tf.gather(self._place_of, tf.maximum(excluded, 0)))
        scores, places = first(without(scores, places), k)
        return scores, tf.where(places == NO_ROW, NO_ROW, tf.gather(rows, tf.maximum(places, 0)))

    def _find(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None, parameters: SearchParameters
    ) -> tuple[tf.Tensor, tf.Tensor]:
        leaves = tf.minimum(parameters.partitions_to_search, int(self._centroids.shape[0]))
        by_centroid = tf.matmul(queries, self._centroids, transpose_b=True)
        _, partitions = tf.math.top_k(by_centroid, leaves, sorted=False)
        depth = self._depth(k, excluded)
        # One query after another: what one looks at stays in the processor's cache from its gathering to its scoring.
        scores, rows = tf.map_fn(
            lambda number: self._search_partitions(
                queries[number], partitions[number], depth, None if allowed is None else allowed[number]
            ),
            tf.range(tf.shape(queries)[0]),
            fn_output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32)),
        )
        return best(scores, rows, k, excluded, allowed)

    def _search_partitions(
        self, query: tf.Tensor, partitions: tf.Tensor, depth: tf.Tensor, allowed: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The `depth` best members of some partitions [P] for one query [D], by exact score; padded if fewer."""
        ranges = tf.ragged.range(tf.gather(self._first_block, partitions), tf.gather(self._end_block, partitions))
        # From what is read of the variable: see `InOrder._all_vectors`.
        members = tf.gather(self._members.read_value(), ranges.values)
        members = tf.reshape(members, [-1, int(self._centroids.shape[1])])
        rows = tf.reshape(tf.gather(self._rows, ranges.values), [-1])
        scores = mask(tf.linalg.matvec(members, query), rows != NO_ROW)
        if allowed is not None:
            scores = mask(scores, tf.gather(allowed, tf.maximum(rows, 0)))
        return padded_top_k(scores, rows, depth)


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
