"""Raw values in Transform's graph: sparse columns whose rows begin with the values that are there, and what is read of
them: dense, a missing value being "", NaN or negative.

Transform traces its graph ten times and the servable runs it for each request, so each operation here is counted.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

# Quantiles are this exact, as a share of the values.
_QUANTILE_ERROR = 0.001
# As many rows as there are.
_ANY = tf.int64.max // 2


def present(values: tf.Tensor | tf.SparseTensor) -> tf.SparseTensor:
    """Dense [B] or [B, L] without its missing values ("", NaN, negative), the others at the front of their row.

    Sparse columns are taken as they are.
    """
    if isinstance(values, tf.SparseTensor):
        return values
    single = values.shape.rank == 1
    if single:
        values = values[:, tf.newaxis]
    if values.dtype == tf.string:
        keep = values != ""
    elif values.dtype.is_floating:
        keep = ~tf.math.is_nan(values)
    else:
        keep = values >= 0
    indices = tf.where(keep)
    there = tf.gather_nd(values, indices)
    if not single:
        position = tf.cumsum(tf.cast(keep, tf.int64), axis=1, exclusive=True)
        indices = tf.stack([indices[:, 0], tf.gather_nd(position, indices)], axis=1)
    return tf.SparseTensor(indices, there, tf.shape(values, out_type=tf.int64))


def first(values: tf.SparseTensor, length: int, missing: Any) -> tf.Tensor:
    """The first values of each row, [B, length]; what is not there is `missing`."""
    some = tf.raw_ops.SparseSlice(
        indices=values.indices, values=values.values, shape=values.dense_shape, start=[0, 0], size=[_ANY, length]
    )
    dense = tf.raw_ops.SparseToDense(
        sparse_indices=some.output_indices,
        # A column can be narrower than asked for.
        output_shape=tf.maximum(some.output_shape, tf.constant([0, length], tf.int64)),
        sparse_values=some.output_values,
        default_value=tf.constant(missing, values.dtype),
        validate_indices=False,
    )
    dense.set_shape([None, length])
    return dense


def scalar(values: tf.Tensor | tf.SparseTensor, missing: Any) -> tf.Tensor:
    """The first value of each row, [B]. Dense [B] is taken as it is."""
    return tf.reshape(first(values, 1, missing), [-1]) if isinstance(values, tf.SparseTensor) else values


def numbers(values: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
    """The first value of each row as float32 [B]; NaN where there is none."""
    if isinstance(values, tf.SparseTensor):
        return scalar(values.with_values(tf.cast(values.values, tf.float32)), math.nan)
    return tf.cast(values, tf.float32)


def known(numbers: tf.Tensor) -> tf.Tensor:
    """Those of [B] that are not NaN."""
    return tf.dynamic_partition(numbers, tf.cast(~tf.math.is_nan(numbers), tf.int32), 2)[1]


def lookup(values: tf.Tensor, vocabulary: Any, oov_buckets: int) -> tf.Tensor:
    """Ids of strings: 0 for "", 1 … V for those of the vocabulary, the buckets after them for others."""
    ids = tft.apply_vocabulary(values, vocabulary, num_oov_buckets=oov_buckets) + 1
    return tf.where(values == "", tf.zeros_like(ids), ids)


def threshold(min_count: int) -> int | None:
    """Transform warns of a threshold that every value reaches."""
    return min_count if min_count > 1 else None


def quantiles(numbers: tf.Tensor, buckets: int) -> tf.Tensor:
    """[buckets − 1] boundaries learned from the training period's numbers [B]."""
    return tf.reshape(tft.quantiles(known(numbers), buckets, epsilon=_QUANTILE_ERROR), [-1])


def bucket(numbers: tf.Tensor, boundaries: Any) -> tf.Tensor:
    """Ids of numbers [B]: 0 for NaN, else 1 + the number of boundaries that are not above the value."""
    above = tf.searchsorted(tf.cast(boundaries, tf.float32), numbers, side="right", out_type=tf.int64)
    return tf.where(tf.math.is_nan(numbers), tf.zeros_like(above), above + 1)
