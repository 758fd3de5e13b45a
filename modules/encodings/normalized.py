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

    def learn(self, values: tf.Tensor, items: ItemIds) -> Any:
        """(mean, deviation); in double precision: Beam adds in an order of its own, and the last digit would reach
        every weight."""
        import tensorflow as tf
        import tensorflow_transform as tft

        from modules.encodings.values import known

        doubles = tf.cast(known(values), tf.float64)
        return tft.mean(doubles), tf.sqrt(tft.var(doubles))

    def encode(self, values: tf.Tensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        mean, deviation = learned
        # A number that is the same everywhere says nothing.
        says = deviation > 0
        scaled = (tf.cast(values, tf.float64) - mean) / tf.where(says, deviation, 1.0)
        return (tf.where(says & ~tf.math.is_nan(values), tf.cast(scaled, tf.float32), 0.0),)
