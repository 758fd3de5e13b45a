"""The encoding `vocabulary`: ids and categories that the training period knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from modules.encodings.base import Encoded
from modules.encodings.category import Categorical
from modules.encodings.learned_vocabulary import LearnedVocabulary

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from modules.encodings.items import ItemIds


class Vocabulary(Categorical, LearnedVocabulary):
    """A string or integer category, looked up in a vocabulary learned from the training period.

    Encodes to int64 [B], or [B, max_values] padded with 0 when multivalued.
    """

    encoding: Literal["vocabulary"] = "vocabulary"

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded(self.shape)}

    def learn(self, values: tf.Tensor, items: ItemIds) -> Any:
        return items.asset if self.column == items.column else super().learn(values, items)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        if self.column == items.column:
            return items.rows(tft_output)
        return super().cardinality(tft_output, items)
