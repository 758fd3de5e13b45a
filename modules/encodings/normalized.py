"""The encoding `normalized`: numbers with mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from modules.encodings.base import Encoded, Encoding

if TYPE_CHECKING:
    import tensorflow as tf

    from modules.encodings.items import ItemIds


class Normalized(Encoding):
    """A number, z-scored with the training period's mean and deviation. Encodes to float32 [B]; missing is 0."""

    encoding: Literal["normalized"] = "normalized"
    dtype: ClassVar[Literal["string", "float32", "int64"]] = "float32"

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded(holds_ids=False)}

    def learn(self, raw: tf.SparseTensor, items: ItemIds) -> Any:
        """(mean, deviation); in double precision: Beam adds in an order of its own, and the last digit would reach
        every weight."""
        import tensorflow as tf
        import tensorflow_transform as tft

        from modules.encodings.values import numbers

        values = tf.cast(numbers(raw).values, tf.float64)
        return tft.mean(values), tf.sqrt(tft.var(values))

    def encode(self, raw: tf.SparseTensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        from modules.encodings.values import numbers, scalar

        sparse = numbers(raw)
        mean, deviation = learned
        centred = tf.cast(sparse.values, tf.float64) - mean
        # A number that is the same everywhere says nothing.
        scaled = tf.where(deviation > 0, centred / tf.where(deviation > 0, deviation, 1.0), tf.zeros_like(centred))
        return (tf.cast(scalar(sparse.with_values(scaled), 0.0), tf.float32),)
