"""Raw values in Transform's graph: sparse columns whose rows begin with the values that are there."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

# Quantiles are this exact, as a share of the values.
_QUANTILE_ERROR = 0.001


def present(values: tf.Tensor | tf.SparseTensor) -> tf.SparseTensor:
    """Dense [B] or [B, L] without its missing values ("", NaN, negative), the others at the front of their row.

    Sparse columns are taken as they are.
    """
    if isinstance(values, tf.SparseTensor):
        return values
    if values.shape.rank == 1:
        values = values[:, tf.newaxis]
    if values.dtype == tf.string:
        keep = values != ""
    elif values.dtype.is_floating:
        keep = ~tf.math.is_nan(values)
    else:
        keep = values >= 0
    position = tf.cumsum(tf.cast(keep, tf.int64), axis=1, exclusive=True)
    rows = tf.where(keep)[:, 0]
    return tf.SparseTensor(tf.stack([rows, position[keep]], axis=1), values[keep], tf.shape(values, out_type=tf.int64))


def scalar(values: tf.SparseTensor, missing: Any) -> tf.Tensor:
    """The first value of each row, [B]."""
    size = tf.stack([values.dense_shape[0], tf.constant(1, tf.int64)])
    first = tf.sparse.slice(values, [0, 0], size)
    # A slice of an empty column is narrower than asked for; the shape is stated again.
    first = tf.SparseTensor(first.indices, first.values, size)
    return tf.sparse.to_dense(first, default_value=tf.cast(missing, values.dtype))[:, 0]


def numbers(values: tf.SparseTensor) -> tf.SparseTensor:
    """The first value of each row as float32, without NaN."""
    shape = tf.stack([values.dense_shape[0], tf.constant(1, tf.int64)])
    first = tf.sparse.slice(values, [0, 0], shape)
    floats = tf.cast(first.values, tf.float32)
    return tf.sparse.retain(tf.SparseTensor(first.indices, floats, shape), ~tf.math.is_nan(floats))


def lists(values: tf.SparseTensor, length: int) -> tf.Tensor:
    """[B, length], the first values of each row, padded with ""."""
    return tf.RaggedTensor.from_sparse(values).to_tensor(default_value="", shape=[None, length])


def lookup(values: tf.Tensor, vocabulary: Any, oov_buckets: int) -> tf.Tensor:
    """Ids of strings: 0 for "", 1 … V for those of the vocabulary, the buckets after them for others."""
    ids = tft.apply_vocabulary(values, vocabulary, num_oov_buckets=oov_buckets) + 1
    return tf.where(values == "", tf.zeros_like(ids), ids)


def threshold(min_count: int) -> int | None:
    """Transform warns of a threshold that every value reaches."""
    return min_count if min_count > 1 else None


def quantiles(sparse: tf.SparseTensor, buckets: int) -> tf.Tensor:
    """[buckets − 1] boundaries learned from the training period."""
    return tf.reshape(tft.quantiles(sparse.values, buckets, epsilon=_QUANTILE_ERROR), [-1])


def bucket(sparse: tf.SparseTensor, boundaries: Any) -> tf.Tensor:
    """[B] ids: 0 missing, then 1 + the number of boundaries that are not above the value."""
    above = tf.searchsorted(tf.cast(boundaries, tf.float32), sparse.values, side="right", out_type=tf.int64)
    return scalar(sparse.with_values(above + 1), 0)
