"""The encoding `history`: the items that a user interacted with before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
        """The whole list, sparse; `newest_first` makes of it what `encoded` says."""
        return (values.with_values(items.ids(values.values)),)

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int:
        return items.rows(tft_output)


def newest_first(ids: tf.SparseTensor | tf.RaggedTensor, max_length: int) -> tf.Tensor:
    """[B, max_length] the newest ids of lists [B, ?], the newest one first, padded with 0."""
    import tensorflow as tf

    if isinstance(ids, tf.RaggedTensor):
        return ids[:, ::-1].to_tensor(shape=[None, max_length])
    # Of a request: dense takes a quarter of the operations, and is as wide as the request's own longest history.
    oldest_first = tf.sparse.to_dense(ids, validate_indices=False)
    lengths = tf.math.count_nonzero(oldest_first, axis=1)
    newest = tf.reverse_sequence(oldest_first, lengths, seq_axis=1)[:, :max_length]
    newest = tf.pad(newest, [[0, 0], [0, max_length - tf.shape(newest)[1]]])
    newest.set_shape([None, max_length])
    return newest
