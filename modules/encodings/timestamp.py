"""The encoding `timestamp`: the time of a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from modules.encodings.base import MISSING_TIMESTAMP, Embedded, Encoded

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from modules.encodings.items import ItemIds

_DAY = 86_400
_WEEK = 7 * _DAY
# 1970-01-01 was a Thursday; weeks start on Monday.
_EPOCH_WEEKDAY = 3 * _DAY


class Timestamp(Embedded):
    """The time of the request, in seconds since 1970 (UTC).

    Encodes to two keys: `<column>_bucket` int64 [B] (0 missing, then 1 … buckets: quantiles of the training period) and
    `<column>_cyclic` float32 [B, 4] (sine and cosine of the time of the day, then of the week; 0 missing).
    """

    encoding: Literal["timestamp"] = "timestamp"
    dtype: ClassVar[Literal["string", "float32", "int64"]] = "int64"
    buckets: int = Field(16, ge=2, le=10_000)

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {f"{self.column}_bucket": Encoded(), f"{self.column}_cyclic": Encoded((4,), holds_ids=False)}

    def read(self, raw: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
        from modules.encodings.values import scalar

        return scalar(raw, MISSING_TIMESTAMP)

    def learn(self, values: tf.Tensor, items: ItemIds) -> Any:
        from modules.encodings.values import quantiles

        return quantiles(_as_numbers(values), self.buckets)

    def encode(self, values: tf.Tensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        from modules.encodings.values import bucket

        return bucket(_as_numbers(values), learned), _cyclic(values)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return 1 + self.buckets


def _as_numbers(seconds: tf.Tensor) -> tf.Tensor:
    """[N] float32, NaN for a missing time."""
    import tensorflow as tf

    return tf.where(seconds >= 0, tf.cast(seconds, tf.float32), math.nan)


def _cyclic(seconds: tf.Tensor) -> tf.Tensor:
    """[N, 4]: sine and cosine of the time of day, then of the time of week; zeros when missing.

    In double precision, because the last digit depends on a value's place in the batch: other instructions compute the
    ends of a batch than the rest.
    """
    import tensorflow as tf

    offsets = tf.constant([0, _EPOCH_WEEKDAY], tf.int64)
    periods = tf.constant([_DAY, _WEEK], tf.int64)
    each = seconds[:, tf.newaxis]
    angles = tf.cast((each + offsets) % periods, tf.float64) * [2 * math.pi / period for period in (_DAY, _WEEK)]
    waves = tf.reshape(tf.stack([tf.sin(angles), tf.cos(angles)], axis=2), [-1, 4])
    return tf.where(each >= 0, tf.cast(waves, tf.float32), 0.0)
