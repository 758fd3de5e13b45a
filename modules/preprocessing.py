"""Transform's preprocessing function and the same graph for raw requests: one encoding per feature, in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from modules.features import (
    ITEM_VOCABULARY,
    LABEL,
    MISSING_TIMESTAMP,
    TIME,
    USER,
    WEIGHT,
    Bucketized,
    Columns,
    Feature,
    Features,
    Hash,
    History,
    HistoryAge,
    Log1p,
    Normalized,
    Text,
    Timestamp,
    Vocabulary,
    dtype,
    is_list,
)

_ITEM_FREQUENCY = "items_frequency"
# Wide enough for no two users to share a number.
_USERS = 2**62
_DAY = 86_400
_WEEK = 7 * _DAY
# 1970-01-01 was a Thursday; weeks start on Monday.
_EPOCH_WEEKDAY = 3 * _DAY
_QUANTILE_EPSILON = 0.001


# Called by Transform, once for the analysis and once to trace the graph that also runs in the servable.
def preprocessing_fn(inputs: dict[str, Any], custom_config: dict[str, str]) -> dict[str, tf.Tensor]:
    """Encodes every configured feature; shapes and value ranges are in the docstrings of modules/features.py.

    Args:
        inputs: Raw columns as `SparseTensor` [B, ?] (or dense), by name.
        custom_config: `features` and `columns`, the JSON of `Features` and `Columns`.

    Returns:
        Dense tensors by feature key, with `label`, `user_hash`, `interaction_time` and `interaction_weight`.
    """
    features = Features.model_validate_json(custom_config["features"])
    columns = Columns.model_validate_json(custom_config["columns"])
    outputs: dict[str, tf.Tensor] = {}

    item = _item_feature(features, columns)
    items = _strings(inputs[columns.item])
    item_vocabulary = tft.vocabulary(
        items, vocab_filename=ITEM_VOCABULARY, frequency_threshold=_threshold(item), top_k=item.max_size
    )
    tft.vocabulary(
        items,
        vocab_filename=_ITEM_FREQUENCY,
        frequency_threshold=_threshold(item),
        top_k=item.max_size,
        store_frequency=True,
    )
    outputs[LABEL] = tft.apply_vocabulary(items, item_vocabulary, default_value=-1) + 1
    users = _strings(inputs[columns.user])
    outputs[USER] = tf.where(users == "", tf.zeros([], tf.int64), tf.strings.to_hash_bucket_fast(users, _USERS) + 1)
    outputs[TIME] = _scalar(_sparse(inputs[columns.timestamp]), 0)
    weights = _sparse(inputs[WEIGHT]) if WEIGHT in inputs else None
    outputs[WEIGHT] = tf.ones_like(outputs[LABEL], tf.float32) if weights is None else _scalar(weights, 1.0)

    for feature in (*features.query, *features.candidate):
        raw = inputs[feature.column]
        encoded: tuple[tf.Tensor, ...]
        if isinstance(feature, History):
            values = _newest_first(_sparse(raw), feature.max_length)
            encoded = (_lookup(values, item_vocabulary, item.oov_buckets),)
        elif isinstance(feature, Vocabulary):
            values = _categories(raw, feature)
            if feature.column == columns.item:
                vocabulary = item_vocabulary
            else:
                vocabulary = tft.vocabulary(
                    values,
                    vocab_filename=vocabulary_name(feature),
                    frequency_threshold=_threshold(feature),
                    top_k=feature.max_size,
                )
            encoded = (_lookup(values, vocabulary, feature.oov_buckets),)
        elif isinstance(feature, Hash):
            values = _categories(raw, feature)
            buckets = tf.strings.to_hash_bucket_fast(values, feature.buckets) + 1
            encoded = (tf.where(values == "", tf.zeros_like(buckets), buckets),)
        elif isinstance(feature, Text):
            tokens = _tokens(_strings(raw), feature.max_tokens)
            vocabulary = tft.vocabulary(
                tokens,
                vocab_filename=vocabulary_name(feature),
                frequency_threshold=_threshold(feature),
                top_k=feature.max_size,
            )
            encoded = (_lookup(tokens, vocabulary, feature.oov_buckets),)
        elif isinstance(feature, Normalized):
            numbers = _numbers(raw)
            # In double precision: Beam adds in an order of its own, and the last digit would reach every weight.
            scaled = tft.scale_to_z_score(numbers.with_values(tf.cast(numbers.values, tf.float64)))
            encoded = (tf.cast(_scalar(scaled, 0.0), tf.float32),)
        elif isinstance(feature, Log1p):
            numbers = _numbers(raw)
            doubles = tf.cast(tf.maximum(numbers.values, 0.0), tf.float64)
            scaled = _scalar(numbers.with_values(tf.math.log1p(doubles)), 0.0)
            encoded = (tf.cast(scaled, tf.float32),)
        elif isinstance(feature, HistoryAge):
            # An infinite age would make a vector of NaN.
            age = _scalar(_numbers(raw), 0.0)
            encoded = (tf.clip_by_value(age, 0.0, tf.float32.max),)
        elif isinstance(feature, Bucketized):
            numbers = _numbers(raw)
            boundaries = feature.boundaries if feature.buckets is None else _quantiles(numbers, feature.buckets)
            encoded = (_bucket(numbers, boundaries),)
        else:
            assert isinstance(feature, Timestamp)
            seconds = _present_timestamps(raw)
            numbers = seconds.with_values(tf.cast(seconds.values, tf.float32))
            encoded = (_bucket(numbers, _quantiles(numbers, feature.buckets)), _cyclic(seconds))
        taken = outputs.keys() & feature.keys
        if taken:
            raise ValueError(f"two features encode to {min(taken)!r}, which names.check refuses in a configuration")
        outputs |= zip(feature.keys, encoded, strict=True)
    return outputs


def vocabulary_name(feature: Vocabulary | Text) -> str:
    """Name of a feature's vocabulary file, but for the item id, which shares `items` with history and label.

    No two columns have the same: Transform replaces only characters that `names.check` allows in no feature's column.
    """
    return f"vocabulary_{feature.column}"


def cardinality(feature: Feature, columns: Columns, features: Features, tft_output: tft.TFTransformOutput) -> int:
    """Number of ids that an encoded feature can have, with 0 for missing: the rows of its embedding table.

    Raises:
        ValueError: The feature is a number and has no ids.
    """
    if isinstance(feature, History) or feature.column == columns.item:
        item = _item_feature(features, columns)
        if isinstance(feature, (History, Vocabulary)):
            return 1 + tft_output.vocabulary_size_by_name(ITEM_VOCABULARY) + item.oov_buckets
    if isinstance(feature, (Vocabulary, Text)):
        return 1 + tft_output.vocabulary_size_by_name(vocabulary_name(feature)) + feature.oov_buckets
    if isinstance(feature, (Hash, Timestamp)):
        return 1 + feature.buckets
    if isinstance(feature, Bucketized):
        return 1 + (feature.buckets if feature.buckets is not None else len(feature.boundaries or ()) + 1)
    raise ValueError(f"{feature.column} is a number and has no ids")


def item_vocabulary(tft_output: tft.TFTransformOutput) -> list[str]:
    """Item ids by vocabulary index, most frequent first; an item's encoded id is its position here plus 1."""
    return [token.decode() for token in tft_output.vocabulary_by_name(ITEM_VOCABULARY)]


def item_frequency(tft_output: tft.TFTransformOutput) -> np.ndarray:
    """Training interactions of each item, [V] float32, in the order of `item_vocabulary`."""
    counts = {}
    for line in tft_output.vocabulary_by_name(_ITEM_FREQUENCY):
        count, _, token = line.partition(b" ")
        counts[token] = float(count)
    return np.array([counts[token.encode()] for token in item_vocabulary(tft_output)], np.float32)


def request_signature(features: Sequence[Feature]) -> dict[str, tf.TensorSpec]:
    """What a client sends for these features: [B], or [B, L] padded with "" for lists.

    A missing value is "", NaN, or -1 for a timestamp.
    """
    return {
        f.column: tf.TensorSpec([None, None] if is_list(f) else [None], tf.as_dtype(dtype(f)), name=f.column)
        for f in features
    }


def requests_from_examples(serialized: tf.Tensor, features: Sequence[Feature]) -> dict[str, tf.Tensor]:
    """Reads serialized tf.Examples [B] as a client would send them (`request_signature`), in graph."""
    parsed = tf.io.parse_example(serialized, {f.column: tf.io.VarLenFeature(tf.as_dtype(dtype(f))) for f in features})
    requests = {}
    for f in features:
        if is_list(f):
            requests[f.column] = tf.sparse.to_dense(parsed[f.column], default_value="")
        else:
            missing = {"string": "", "float32": math.nan, "int64": MISSING_TIMESTAMP}[dtype(f)]
            requests[f.column] = _scalar(parsed[f.column], missing)
    return requests


def column_from_examples(serialized: tf.Tensor, column: str) -> tf.Tensor:
    """One string column of serialized tf.Examples [B] as [B, L], padded with ""."""
    parsed = tf.io.parse_example(serialized, {column: tf.io.VarLenFeature(tf.string)})
    return tf.sparse.to_dense(parsed[column], default_value="")


class Preprocessor(tf.Module):
    """Transform's graph for raw requests, restricted to some features (one tower's).

    Args:
        tft_output: Output of Transform.
        features: The features whose encodings are wanted.
        columns: Further string columns that a request carries, for instance the item id, so that `label` comes out.
    """

    def __init__(
        self, tft_output: tft.TFTransformOutput, features: Sequence[Feature], columns: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._features = tuple(features)
        self._columns = tuple(c for c in columns if c not in {f.column for f in self._features})
        self._layer = tft_output.transform_features_layer()

    def signature(self) -> dict[str, tf.TensorSpec]:
        """The request tensors that a call takes."""
        extra = {column: tf.TensorSpec([None], tf.string, name=column) for column in self._columns}
        return {**request_signature(self._features), **extra}

    def __call__(self, requests: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encodes requests [B]; keys and shapes as `preprocessing_fn` gives them."""
        raw = {f.column: _present(requests[f.column]) for f in self._features}
        raw |= {column: _present(requests[column]) for column in self._columns}
        return dict(self._layer(raw))


def _item_feature(features: Features, columns: Columns) -> Vocabulary:
    """The item id's feature; its limits hold for the vocabulary that the history and the label use too."""
    for feature in features.candidate:
        if feature.column == columns.item and isinstance(feature, Vocabulary):
            return feature
    return Vocabulary(column=columns.item)


def _threshold(feature: Vocabulary | Text) -> int | None:
    """Transform warns of a threshold that every value reaches."""
    return feature.min_count if feature.min_count > 1 else None


def _sparse(values: tf.Tensor | tf.SparseTensor) -> tf.SparseTensor:
    """What Transform hands in: sparse as it is, a column with a fixed shape in the schema without its empty values."""
    return values if isinstance(values, tf.SparseTensor) else _present(values)


def _present(values: tf.Tensor) -> tf.SparseTensor:
    """Dense [B] or [B, L] without its missing values, those that remain moved to the front of their row."""
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


def _scalar(values: tf.SparseTensor, missing: Any) -> tf.Tensor:
    """The first value of each row, [B]."""
    size = tf.stack([values.dense_shape[0], tf.constant(1, tf.int64)])
    first = tf.sparse.slice(values, [0, 0], size)
    # A slice of an empty column is narrower than asked for; the shape is stated again.
    first = tf.SparseTensor(first.indices, first.values, size)
    return tf.sparse.to_dense(first, default_value=tf.cast(missing, values.dtype))[:, 0]


def _strings(values: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
    return _scalar(_sparse(values), "")


def _numbers(values: tf.Tensor | tf.SparseTensor) -> tf.SparseTensor:
    sparse = _sparse(values)
    first = tf.sparse.slice(sparse, [0, 0], tf.stack([sparse.dense_shape[0], tf.constant(1, tf.int64)]))
    numbers = tf.cast(first.values, tf.float32)
    shape = tf.stack([sparse.dense_shape[0], tf.constant(1, tf.int64)])
    return tf.sparse.retain(tf.SparseTensor(first.indices, numbers, shape), ~tf.math.is_nan(numbers))


def _present_timestamps(values: tf.Tensor | tf.SparseTensor) -> tf.SparseTensor:
    sparse = _sparse(values)
    return tf.sparse.retain(sparse, sparse.values >= 0)


def _lists(values: tf.SparseTensor, length: int) -> tf.Tensor:
    return tf.RaggedTensor.from_sparse(values).to_tensor(default_value="", shape=[None, length])


def _newest_first(values: tf.SparseTensor, length: int) -> tf.Tensor:
    newest_first = tf.RaggedTensor.from_sparse(values)[:, ::-1]
    return newest_first.to_tensor(default_value="", shape=[None, length])


def _categories(values: tf.Tensor | tf.SparseTensor, feature: Vocabulary | Hash) -> tf.Tensor:
    """[B] or, for a list, [B, max_values] padded with ""."""
    sparse = _sparse(values)
    if feature.separator is not None:
        ragged = tf.RaggedTensor.from_sparse(sparse)
        parts = tf.strings.split(ragged, feature.separator).merge_dims(1, 2)
        parts = parts.with_flat_values(tf.strings.strip(parts.flat_values))
        return parts.to_tensor(default_value="", shape=[None, feature.max_values])
    return _lists(sparse, feature.max_values) if feature.multivalued else _scalar(sparse, "")


def _tokens(text: tf.Tensor, length: int) -> tf.Tensor:
    """[B] → [B, length] tokens, padded with ""."""
    words = tf.strings.regex_replace(tf.strings.lower(text, encoding="utf-8"), r"[^\p{L}\p{N}]+", " ")
    return tf.strings.split(words).to_tensor(default_value="", shape=[None, length])


def _lookup(values: tf.Tensor, vocabulary: Any, oov_buckets: int) -> tf.Tensor:
    ids = tft.apply_vocabulary(values, vocabulary, num_oov_buckets=oov_buckets) + 1
    return tf.where(values == "", tf.zeros_like(ids), ids)


def _quantiles(numbers: tf.SparseTensor, buckets: int) -> tf.Tensor:
    """[buckets − 1] boundaries learned from the training period."""
    return tf.reshape(tft.quantiles(numbers.values, buckets, epsilon=_QUANTILE_EPSILON), [-1])


def _bucket(numbers: tf.SparseTensor, boundaries: Any) -> tf.Tensor:
    above = tf.searchsorted(tf.cast(boundaries, tf.float32), numbers.values, side="right", out_type=tf.int64)
    return _scalar(numbers.with_values(above + 1), 0)


def _cyclic(seconds: tf.SparseTensor) -> tf.Tensor:
    """[B, 4]: sine and cosine of the time of day, then of the time of week; zeros when missing.

    In double precision, because the last digit depends on a value's place in the batch: other instructions compute the
    ends of a batch than the rest.
    """
    parts = []
    for offset, period in ((0, _DAY), (_EPOCH_WEEKDAY, _WEEK)):
        angle = tf.cast((seconds.values + offset) % period, tf.float64) * (2 * math.pi / period)
        parts += [_scalar(seconds.with_values(wave(angle)), 0.0) for wave in (tf.sin, tf.cos)]
    return tf.cast(tf.stack(parts, axis=1), tf.float32)
