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


# What keys the hash of every function but the first, beside the function's number: it must never change, since the rows
# of a pushed model stand where it says.
_KEY = 0x74776F746F776572


class Hash(Categorical):
    """A category hashed into buckets, without a vocabulary. Encodes to int64: 0 missing, 1 … buckets.

    With several `functions`, f of them, each value has f ids, side by side: [B, f], or [B, max_values · f] for a list.
    Function j (from 0) has the ids j · buckets + 1 … (j + 1) · buckets of one table, so that functions share no row.
    What a tower sees is the mean of the ids' embeddings, which is their sum up to a constant.

    These are compositional embeddings (Shi et al., "Compositional Embeddings Using Complementary Partitions for
    Memory-Efficient Recommendation Systems", KDD 2020) under their operation of addition. Their partitions are
    complementary since they number all categories; hashes number nothing, so two values share their whole embedding
    with a probability of 1 / buckets ** f.
    """

    encoding: Literal["hash"] = "hash"
    buckets: int = Field(ge=2, le=MANY)
    """Of each function."""
    functions: int = Field(1, ge=1, le=8)
    """Independent hash functions, each with buckets of its own."""

    @model_validator(mode="after")
    def _fits(self) -> Hash:
        if self.functions * self.buckets * self.dimension > TABLE_NUMBERS:
            of_each, them = (f" for each of {self.functions} functions", "three") if self.functions > 1 else ("", "two")
            raise ValueError(f"{self.buckets} buckets{of_each} of dimension {self.dimension} are more than "
                             f"{TABLE_NUMBERS:,} numbers; lower one of the {them}")  # fmt: skip
        return self

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        if self.functions == 1:
            return {self.column: Encoded(self.shape)}
        values = self.max_values if self.is_multivalued else 1
        return {self.column: Encoded((values * self.functions,))}

    @property
    def rows_mean(self) -> str:
        return self.encoding if self.functions == 1 else f"{self.encoding}_of_{self.functions}"

    def encode(self, values: tf.Tensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        # The first function is the only one that there was before there were several.
        buckets = [tf.strings.to_hash_bucket_fast(values, self.buckets)]
        buckets += [
            tf.strings.to_hash_bucket_strong(values, self.buckets, key=[_KEY, function])
            for function in range(1, self.functions)
        ]
        ids = [
            tf.where(values == "", tf.zeros_like(bucket), bucket + 1 + function * self.buckets)
            for function, bucket in enumerate(buckets)
        ]
        if self.functions == 1:
            return (ids[0],)
        [width] = self.encoded[self.column].shape
        return (tf.reshape(tf.stack(ids, axis=-1), [-1, width]),)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return 1 + self.functions * self.buckets
