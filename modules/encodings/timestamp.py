"""The encoding `timestamp`: the time of a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from modules.encodings.base import Embedded, Encoded

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

    def learn(self, raw: tf.SparseTensor, items: ItemIds) -> Any:
        import tensorflow as tf

        from modules.encodings.values import quantiles

        seconds = _there(raw)
        return quantiles(seconds.with_values(tf.cast(seconds.values, tf.float32)), self.buckets)

    def encode(self, raw: tf.SparseTensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        from modules.encodings.values import bucket

        seconds = _there(raw)
        return bucket(seconds.with_values(tf.cast(seconds.values, tf.float32)), learned), _cyclic(seconds)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return 1 + self.buckets


def _there(raw: tf.SparseTensor) -> tf.SparseTensor:
    import tensorflow as tf

    return tf.sparse.retain(raw, raw.values >= 0)


def _cyclic(seconds: tf.SparseTensor) -> tf.Tensor:
    """[N, 4]: sine and cosine of the time of day, then of the time of week; zeros when missing.

    In double precision, because the last digit depends on a value's place in the batch: other instructions compute the
    ends of a batch than the rest.
    """
    import tensorflow as tf

    from modules.encodings.values import scalar

    parts = []
    for offset, period in ((0, _DAY), (_EPOCH_WEEKDAY, _WEEK)):
        angle = tf.cast((seconds.values + offset) % period, tf.float64) * (2 * math.pi / period)
        parts += [scalar(seconds.with_values(wave(angle)), 0.0) for wave in (tf.sin, tf.cos)]
    return tf.cast(tf.stack(parts, axis=1), tf.float32)
