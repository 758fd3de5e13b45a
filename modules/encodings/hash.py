"""The encoding `hash`: categories without a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from modules.encodings.base import Encoded
from modules.encodings.category import Categorical
from modules.settings.base import MANY, TABLE_NUMBERS

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from modules.encodings.items import ItemIds


class Hash(Categorical):
    """A category hashed into buckets, without a vocabulary. Encodes to int64: 0 missing, 1 … buckets."""

    encoding: Literal["hash"] = "hash"
    buckets: int = Field(ge=2, le=MANY)

    @model_validator(mode="after")
    def _fits(self) -> Hash:
        if self.buckets * self.dimension > TABLE_NUMBERS:
            raise ValueError(f"{self.buckets} buckets of dimension {self.dimension} are more than {TABLE_NUMBERS:,} "
                             "numbers; lower one of the two")  # fmt: skip
        return self

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded(self.shape)}

    def encode(self, raw: tf.SparseTensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        values = self.categories(raw)
        buckets = tf.strings.to_hash_bucket_fast(values, self.buckets) + 1
        return (tf.where(values == "", tf.zeros_like(buckets), buckets),)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return 1 + self.buckets
