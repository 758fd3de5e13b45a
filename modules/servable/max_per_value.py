"""At most m of a kind: answers in which no value of a column has more than m items, as stock TensorFlow ops.

The answer is the greedy one: a walk along the items from the best score on, which takes each unless one of its values
is full, that is has its m items already, until there are k. Where one column has a limit and items have one value each,
no other answer of as many items within the limit has a higher sum of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import NO_ROW, SearchParameters, TopK, first, variable
from modules.servable.filters import RowsOfValues, range_numbers

# Candidates of one search, in multiples of k.
_OVERFETCH = 4
# How much more of an approximate index each further search looks at.
_DEEPER = 4


class _Pairs(NamedTuple):
    """The values of candidates [B, N], ordered by request, value and place."""

    value: tf.Tensor
    """[P] numbers of values."""
    candidate: tf.Tensor
    """[P] int32: which of the B·N candidates has it."""
    first: tf.Tensor
    """[P] int32: where the pairs of the same request and value begin."""


class MaxPerValue(tf.Module):
    """Searches an index for the k best candidates of which at most m have the same value.

    Args:
        index: What is searched.
        columns: For each limited column the rows of its values, and m.
    """

    def __init__(self, index: TopK, columns: Sequence[tuple[RowsOfValues, int]]) -> None:
        super().__init__()
        self._index = index
        self._columns = [rows for rows, _ in columns]
        counts = [rows.count for rows in self._columns]
        # The values of all columns are numbered one column after another.
        self._offsets = np.cumsum([0, *counts[:-1]]).tolist()
        self._most = variable(np.repeat([most for _, most in columns], counts).astype(np.int32))
        pairs = [rows.pairs() for rows in self._columns]
        values = np.concatenate([number + at for (number, _), at in zip(pairs, self._offsets, strict=True)])
        rows = np.concatenate([row for _, row in pairs])
        # The row after the last has no values: padding reads it.
        end = np.cumsum(np.bincount(rows, minlength=index.size + 1), dtype=np.int32)
        self._values = variable(values[np.argsort(rows, kind="stable")].astype(np.int32))
        self._first = variable(np.concatenate([[0], end[:-1]]).astype(np.int32))
        self._end = variable(end)

    def search(
        self, queries: tf.Tensor, k: int, excluded: tf.Tensor, allowed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `TopK.search`, with at most m of a kind, and with fewer than k rows only if no other row may be taken.

        A query that is short after its first candidates is searched again among the rows none of whose values is full.
        These are the ones that the walk has still to look at: it goes on where it stood, and exactly so over an index
        that is exact. Each time fills a value at least or is the last.
        """
        depth = max(k, min(_OVERFETCH * k, self._index.size))
        scores, rows = self._index.search(queries, depth, excluded, allowed, enough=k)
        own = self._index.parameters
        # What it is multiplied with still fits into int32.
        deepest = (2**31 - 1) // max(own.partitions_to_search, own.reorder)

        def more(
            scores: tf.Tensor, rows: tf.Tensor, short: tf.Tensor, effort: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            chosen = tf.reshape(tf.where(short), [-1])
            taken_scores, taken = tf.gather(scores, chosen), tf.gather(rows, chosen)
            left = ~self._full(taken)
            if allowed is not None:
                left &= tf.gather(allowed, chosen)
            found_scores, found = self._index.search(
                tf.gather(queries, chosen),
                depth,
                tf.concat([tf.gather(excluded, chosen), taken], axis=1),
                left,
                SearchParameters(own.partitions_to_search * effort, own.reorder * effort),
                enough=k,
            )
            # What is taken stays taken, so it comes first.
            taken_scores, taken, still = self._taken(
                tf.concat([taken_scores, found_scores], axis=1), tf.concat([taken, found], axis=1), found, k
            )
            where = chosen[:, tf.newaxis]
            return (
                tf.tensor_scatter_nd_update(scores, where, taken_scores),
                tf.tensor_scatter_nd_update(rows, where, taken),
                tf.tensor_scatter_nd_update(short, where, still),
                tf.minimum(_DEEPER * effort, min(2**10, deepest)),
            )

        # Each time takes one item at least.
        scores, rows, _, _ = tf.while_loop(
            lambda scores, rows, short, effort: tf.reduce_any(short),
            more,
            (*self._taken(scores, rows, rows, k), tf.constant(_DEEPER)),
            maximum_iterations=k,
        )
        return scores, rows

    def _taken(
        self, scores: tf.Tensor, rows: tf.Tensor, found: tf.Tensor, k: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the walk along some candidates takes.

        Args:
            scores: [B, N] float32.
            rows: [B, N] int32 in the order of the walk, -1 for none.
            found: Those of the rows that the last search found.
            k: At which number of items it stops.

        Returns:
            Scores [B, k], best first, padded with −inf; rows [B, k], padded with -1; and [B] whether there are fewer
            than k while a search may find more.
        """
        taken = self._walk(rows, k)
        scores, columns = first(tf.where(taken, scores, -np.inf), k)
        rows = tf.where(columns == NO_ROW, NO_ROW, tf.gather(rows, tf.maximum(columns, 0), batch_dims=1))
        # A search that finds fewer than k has found all there are.
        return scores, rows, (_count(rows) < k) & (_count(found) >= k)

    def _walk(self, rows: tf.Tensor, k: int) -> tf.Tensor:
        """[B, N] bool: the first k of the rows [B, N] that the walk along them takes.

        Whether a row is taken follows from the rows before it. So what is taken solves x = f(x), where f takes a row
        unless one of its values has m rows of x before it; whatever x is at the start, f mends one further row at
        least each time, and in practice nearly all of them in a few times.
        """
        there = rows != NO_ROW
        pairs = self._pairs(rows)
        most = tf.gather(self._most, pairs.value)

        def without_full(taken: tf.Tensor) -> tf.Tensor:
            full = tf.cast(_before(taken, pairs) >= most, tf.int32)
            full = tf.math.unsorted_segment_sum(full, pairs.candidate, tf.size(rows))
            return there & (tf.reshape(full, tf.shape(rows)) == 0)

        def unsettled(earlier: tf.Tensor, taken: tf.Tensor) -> tf.Tensor:
            # Up to their first difference both are the solution.
            settled = tf.cumsum(tf.cast(earlier != taken, tf.int32), axis=1) == 0
            enough = tf.math.count_nonzero(settled & taken, axis=1) >= k
            return ~tf.reduce_all(enough | tf.reduce_all(settled, axis=1))

        _, taken = tf.while_loop(unsettled, lambda _, taken: (taken, without_full(taken)), (there, without_full(there)))
        return taken & (tf.cumsum(tf.cast(taken, tf.int32), axis=1) <= k)

    def _full(self, taken: tf.Tensor) -> tf.Tensor:
        """[B, C] bool: the rows with a value that has its m items among those taken [B, N]."""
        pairs = self._pairs(taken)
        # One pair for each such value: the one that filled it.
        filled = _before(taken != NO_ROW, pairs) == tf.gather(self._most, pairs.value) - 1
        batch, width = tf.unstack(tf.shape(taken))
        values = tf.boolean_mask(pairs.value, filled)
        requests = tf.boolean_mask(pairs.candidate, filled) // width
        rows = tf.zeros([batch, self._index.size], tf.bool)
        for column, offset in zip(self._columns, self._offsets, strict=True):
            own = (values >= offset) & (values < offset + column.count)
            numbers = tf.where(own, values - offset, column.count)
            rows |= column.having(numbers, requests, batch, self._index.size)
        return rows

    def _pairs(self, rows: tf.Tensor) -> _Pairs:
        flat = tf.reshape(tf.where(rows == NO_ROW, self._index.size, rows), [-1])
        ranges = tf.ragged.range(tf.gather(self._first, flat), tf.gather(self._end, flat))
        value = tf.gather(self._values, ranges.flat_values)
        candidate = range_numbers(ranges)
        request = tf.cast(candidate // tf.shape(rows)[1], tf.int64)
        key = request * int(self._most.shape[0]) + tf.cast(value, tf.int64)
        order = tf.argsort(key, stable=True)
        key = tf.gather(key, order)
        begins = tf.concat([tf.ones_like(key[:1], tf.bool), key[1:] != key[:-1]], axis=0)
        begin = tf.cast(tf.reshape(tf.where(begins), [-1]), tf.int32)
        run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        return _Pairs(tf.gather(value, order), tf.gather(candidate, order), tf.gather(begin, run))


def _before(taken: tf.Tensor, pairs: _Pairs) -> tf.Tensor:
    """[P] int32: how many of the rows taken [B, N] bool are before each pair's and have its value."""
    counted = tf.gather(tf.reshape(tf.cast(taken, tf.int32), [-1]), pairs.candidate)
    before = tf.cumsum(counted, exclusive=True)
    return before - tf.gather(before, pairs.first)


def _count(rows: tf.Tensor) -> tf.Tensor:
    return tf.math.count_nonzero(rows != NO_ROW, axis=1, dtype=tf.int32)
