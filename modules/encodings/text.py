"""The encoding `text`: titles and the like, as words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modules.encodings.base import Encoded
from modules.encodings.learned_vocabulary import LearnedVocabulary
from modules.settings.base import MANY

if TYPE_CHECKING:
    import tensorflow as tf


class Text(LearnedVocabulary):
    """Free text: lower-cased, split at everything that is not a letter or a digit, embeddings averaged.

    Encodes to int64 [B, max_tokens], padded with 0.
    """

    encoding: Literal["text"] = "text"
    max_tokens: int = Field(32, ge=1, le=10_000)
    min_count: int = Field(2, ge=1, le=MANY)
    """A word of fewer items, or of fewer users for a column of theirs, is out of vocabulary."""
    max_size: int | None = Field(20_000, ge=1, le=MANY)

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded((self.max_tokens,))}

    def read(self, raw: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
        """Words [N, max_tokens], padded with ""."""
        import tensorflow as tf

        from modules.encodings.values import first, scalar

        lowered = tf.strings.lower(scalar(raw, ""), encoding="utf-8")
        words = tf.strings.regex_replace(lowered, r"[^\p{L}\p{N}]+", " ")
        # Ragged tensors take ten times the operations.
        parts = tf.raw_ops.StringSplitV2(input=words, sep="")
        return first(tf.SparseTensor(parts.indices, parts.values, parts.shape), self.max_tokens, "")
