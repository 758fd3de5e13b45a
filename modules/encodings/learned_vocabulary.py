"""What the encodings `vocabulary` and `text` share: ids from a vocabulary that is learned from the training period."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from modules.encodings.base import Embedded
from modules.settings.base import MANY

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from modules.encodings.items import ItemIds


class LearnedVocabulary(Embedded):
    """Base of the encodings whose values are looked up in a vocabulary of their own.

    Ids are int64: 0 for a missing value, 1 … V for known ones (most frequent first), V + 1 … V + oov_buckets for those
    out of vocabulary (by hash).
    """

    min_count: int = Field(1, ge=1, le=MANY)
    max_size: int | None = Field(None, ge=1, le=MANY)
    oov_buckets: int = Field(1, ge=1, le=100_000)

    @property
    def vocabulary(self) -> str:
        return f"vocabulary_{self.column}"

    def learn(self, values: tf.Tensor, items: ItemIds) -> Any:
        import tensorflow_transform as tft

        from modules.encodings.values import threshold

        return tft.vocabulary(
            values,
            vocab_filename=self.vocabulary,
            frequency_threshold=threshold(self.min_count),
            top_k=self.max_size,
        )

    def encode(self, values: tf.Tensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        from modules.encodings.values import lookup

        return (lookup(values, learned, self.oov_buckets),)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return 1 + tft_output.vocabulary_size_by_name(self.vocabulary) + self.oov_buckets
