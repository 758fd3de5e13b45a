"""The encoding `log1p`: counts and amounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from modules.encodings.base import Encoded, Encoding

if TYPE_CHECKING:
    import tensorflow as tf

    from modules.encodings.items import ItemIds


class Log1p(Encoding):
    """A count or an amount: log(1 + x), negative values count as 0. Encodes to float32 [B]; missing is 0."""

    encoding: Literal["log1p"] = "log1p"
    dtype: ClassVar[Literal["string", "float32", "int64"]] = "float32"

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded(holds_ids=False)}

    def encode(self, values: tf.Tensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        doubles = tf.cast(tf.maximum(values, 0.0), tf.float64)
        return (tf.where(tf.math.is_nan(values), 0.0, tf.cast(tf.math.log1p(doubles), tf.float32)),)
