"""The item vocabulary, which the item's id, the history, the sequences and the labels share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf
    import tensorflow_transform as tft

ITEM_VOCABULARY = "items"
"""Name of the vocabulary's file: the items of the training period, most frequent first."""
_FREQUENCY = "items_frequency"


@dataclass(frozen=True)
class ItemIds:
    """How items become ids: 0 missing, 1 … V by falling frequency, then buckets for those out of vocabulary."""

    column: str
    """Column of the item's id."""
    min_count: int = 1
    max_size: int | None = None
    oov_buckets: int = 1
    asset: Any = None
    """The vocabulary inside Transform's graph."""

    def learn(self, items: tf.Tensor) -> ItemIds:
        """With the vocabulary of items [N] of the training period's interactions."""
        import dataclasses

        import tensorflow_transform as tft

        from modules.encodings.values import threshold

        limits: dict[str, Any] = {"frequency_threshold": threshold(self.min_count), "top_k": self.max_size}
        asset = tft.vocabulary(items, vocab_filename=ITEM_VOCABULARY, **limits)
        tft.vocabulary(items, vocab_filename=_FREQUENCY, store_frequency=True, **limits)
        return dataclasses.replace(self, asset=asset)

    def ids(self, items: tf.Tensor) -> tf.Tensor:
        """Ids of items, 0 … V + buckets; of a sparse column's values, whatever its shape."""
        from modules.encodings.values import lookup

        return lookup(items, self.asset, self.oov_buckets)

    def labels(self, items: tf.Tensor) -> tf.Tensor:
        """Labels of items, 0 … V: 0 for an item that is out of vocabulary."""
        import tensorflow_transform as tft

        return tft.apply_vocabulary(items, self.asset, default_value=-1) + 1

    def rows(self, tft_output: tft.TFTransformOutput) -> int:
        """Rows of the table of item embeddings: 1 + V + buckets."""
        return 1 + tft_output.vocabulary_size_by_name(ITEM_VOCABULARY) + self.oov_buckets


def vocabulary(tft_output: tft.TFTransformOutput) -> list[str]:
    """Item ids by vocabulary index, most frequent first; an item's label is its position here plus 1."""
    return [token.decode() for token in tft_output.vocabulary_by_name(ITEM_VOCABULARY)]


def frequency(tft_output: tft.TFTransformOutput) -> np.ndarray:
    """Training interactions of each item, [V] float32, in the order of `vocabulary`."""
    import numpy as np

    counts = {}
    for line in tft_output.vocabulary_by_name(_FREQUENCY):
        count, _, token = line.partition(b" ")
        counts[token] = float(count)
    return np.array([counts[token] for token in tft_output.vocabulary_by_name(ITEM_VOCABULARY)], np.float32)
