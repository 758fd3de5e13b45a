"""The encoding `history`: the items that a user interacted with before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from modules.encodings.base import Encoded, Encoding
from modules.settings.base import ColumnName

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from modules.encodings.items import ItemIds


class History(Encoding):
    """The items of the user's interactions before the request, oldest first in examples and requests.

    It has no column in the tables: InteractionExampleGen writes it. Transform writes all of it, oldest first, as a list
    of item ids. A tower reads the newest `max_length`, **newest first**, int64 [B, max_length] padded with 0
    (`newest_first`); everything in it is kept out of the answer.
    """

    encoding: Literal["history"] = "history"
    of_history: ClassVar[bool] = True
    column: ColumnName = "history"
    max_length: int = Field(50, ge=1, le=10_000)

    @property
    def is_list(self) -> bool:
        return True

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded((self.max_length,))}

    def encode(self, values: tf.SparseTensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        """The whole list, sparse; `newest_first` or `FlatHistory.dense` makes of it what `encoded` says."""
        return (values.with_values(items.ids(values.values)),)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return items.rows(tft_output)


class FlatHistory(NamedTuple):
    """The histories of B requests, one item after another, without padding; all of a request's items are together."""

    row: tf.Tensor
    """[N] int64, the request of each item."""
    item: tf.Tensor
    """[N] int64 ids."""
    rank: tf.Tensor
    """[N] int64: 0 for the newest item of a request, then 1, 2 … The tower reads those below `max_length`."""
    is_empty: tf.Tensor
    """[B] bool."""

    @classmethod
    def of(cls, row: tf.Tensor, item: tf.Tensor, batch: tf.Tensor) -> FlatHistory:
        """Histories whose items are given oldest first.

        Args:
            row: As above.
            item: As above.
            batch: B.
        """
        import tensorflow as tf

        places = tf.range(tf.size(item, tf.int64))
        newest = tf.math.unsorted_segment_max(places, row, batch)
        return cls(row, item, tf.gather(newest, row) - places, newest < 0)

    def dense(self, max_length: int) -> tf.Tensor:
        """[B, max_length] as `newest_first` of the same lists."""
        import tensorflow as tf

        read = tf.where(self.rank < max_length)[:, 0]
        places = tf.stack([tf.gather(self.row, read), tf.gather(self.rank, read)], axis=1)
        shape = tf.stack([tf.size(self.is_empty, tf.int64), max_length])
        return tf.ensure_shape(tf.scatter_nd(places, tf.gather(self.item, read), shape), [None, max_length])


def newest_first(ids: tf.RaggedTensor, max_length: int) -> tf.Tensor:
    """[B, max_length] the newest values of lists [B, ?], the newest one first, padded with 0 or ""."""
    return ids[:, ::-1].to_tensor(shape=[None, max_length])
