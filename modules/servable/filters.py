"""Filters: which rows of the catalogue have a value, as stock TensorFlow ops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import variable
from modules.servable.lookup import line_numbers


class RowsOfValues(tf.Module):
    """Each value's rows one after the other, so that only the rows of the values asked for are read.

    Args:
        numbers: [P] numbers of values, from 0 on, rising.
        rows: [P] rows that have them.
    """

    def __init__(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        super().__init__()
        counts = np.bincount(numbers)
        self.count = len(counts)
        """V, the number of values. V itself is the number of a value that no row has."""
        end = np.cumsum(counts, dtype=np.int32)
        self._first = variable(np.append(end - counts, end[-1:]).astype(np.int32))
        self._end = variable(np.append(end, end[-1:]).astype(np.int32))
        self._rows = variable(rows.astype(np.int32))

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers and the rows that it was made of."""
        counts = self._end.numpy() - self._first.numpy()
        return np.repeat(np.arange(self.count + 1, dtype=np.int32), counts), self._rows.numpy()

    def having(self, numbers: tf.Tensor, requests: tf.Tensor, batch: tf.Tensor, size: int) -> tf.Tensor:
        """Which rows have one of the values that a request of a batch names.

        Args:
            numbers: [N] of values, V for none.
            requests: [N] int32, which request names each.
            batch: B, the number of requests.
            size: C, the number of rows of the catalogue.

        Returns:
            [B, C] bool.
        """
        ranges = tf.ragged.range(tf.gather(self._first, numbers), tf.gather(self._end, numbers))
        rows = tf.gather(self._rows, ranges.flat_values)
        first = tf.cast(requests, tf.int64) * size
        cells = tf.gather(first, range_numbers(ranges)) + tf.cast(rows, tf.int64)
        # Several times as fast as tf.scatter_nd.
        hits = tf.math.unsorted_segment_sum(tf.ones_like(rows), cells, tf.cast(batch, tf.int64) * size)
        return tf.reshape(hits > 0, [batch, size])


def range_numbers(ranges: tf.RaggedTensor) -> tf.Tensor:
    """[P] int32: which of the ranges each of their P elements is in.

    `RaggedTensor.value_rowids` looks at as many cells as there are ranges, each as long as the longest.
    """
    size = tf.shape(ranges.flat_values)[0]
    # Where a range begins the number rises; by more than one behind ranges of no length.
    begins = ranges.row_splits[1:-1]
    return tf.cumsum(tf.math.unsorted_segment_sum(tf.ones_like(begins, tf.int32), begins, size + 1)[:-1])


class Filter(tf.Module):
    """Which rows have a value of a column.

    Args:
        values: The values of each row; one row at least has one.
        file: Where the lookup table's file is written.
    """

    def __init__(self, values: Sequence[Sequence[str]], file: str) -> None:
        super().__init__()
        pairs = sorted({(value, row) for row, of_row in enumerate(values) for value in of_row if value})
        vocabulary = sorted({value for value, _ in pairs})
        numbers = {value: number for number, value in enumerate(vocabulary)}
        # A value that no item has looks up one more than the last.
        self._numbers = line_numbers(file, vocabulary, default=len(vocabulary))
        self.rows = RowsOfValues(np.array([numbers[value] for value, _ in pairs]), np.array([row for _, row in pairs]))

    def rows_with(self, wanted: tf.Tensor, size: int) -> tf.Tensor:
        """[B, size] bool: the rows that have at least one of the wanted values [B, F]; all of them if all are ""."""
        batch, count = tf.unstack(tf.shape(wanted))
        numbers = tf.reshape(self._numbers.lookup(wanted), [-1])
        hits = self.rows.having(numbers, tf.repeat(tf.range(batch), count), batch, size)
        return hits | tf.reduce_all(wanted == "", axis=1, keepdims=True)
