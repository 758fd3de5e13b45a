"""Filters: which rows of the catalogue have a value, as stock TensorFlow ops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from modules.retrieval.top_k import variable
from modules.servable.lookup import line_numbers


class Filter(tf.Module):
    """Which rows have a value: each value's rows one after the other, so that a filter reads only those it asks for.

    Args:
        values: The values of each row.
        file: Where the lookup table's file is written.
    """

    def __init__(self, values: Sequence[Sequence[str]], file: str) -> None:
        super().__init__()
        pairs = sorted({(value, row) for row, of_row in enumerate(values) for value in of_row if value})
        vocabulary = sorted({value for value, _ in pairs})
        ids = {value: number for number, value in enumerate(vocabulary)}
        counts = np.bincount([ids[value] for value, _ in pairs], minlength=len(vocabulary))
        end = np.cumsum(counts, dtype=np.int32)
        # A value that no item has looks up one more than the last: a value without rows.
        self._ids = line_numbers(file, vocabulary, default=len(vocabulary))
        self._first = variable(np.append(end - counts, end[-1:]).astype(np.int32))
        self._end = variable(np.append(end, end[-1:]).astype(np.int32))
        self._rows = variable(np.array([row for _, row in pairs], np.int32))

    def rows_with(self, wanted: tf.Tensor, size: int) -> tf.Tensor:
        """[B, size] bool: the rows that have at least one of the wanted values [B, F]; all of them if all are ""."""
        ids = tf.reshape(self._ids.lookup(wanted), [-1])
        ranges = tf.ragged.range(tf.gather(self._first, ids), tf.gather(self._end, ids))
        rows = tf.gather(self._rows, ranges.flat_values)
        batch, count = tf.unstack(tf.shape(wanted))
        request = tf.gather(tf.repeat(tf.range(batch), count), ranges.value_rowids())
        hits = tf.scatter_nd(tf.stack([request, rows], axis=1), tf.ones_like(rows), [batch, size])
        return (hits > 0) | tf.reduce_all(wanted == "", axis=1, keepdims=True)
