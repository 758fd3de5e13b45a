"""The encoding `history_age`: how long ago the newest item of the history was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from modules.encodings.base import Encoded, Encoding
from modules.settings.base import ColumnName

if TYPE_CHECKING:
    import tensorflow as tf

    from modules.encodings.items import ItemIds


class HistoryAge(Encoding):
    """The inactivity gap: seconds from the newest item of the history to the request.

    It has no column in the tables: InteractionExampleGen writes it. Encodes to float32 [B], seconds; 0, in-session,
    when missing or negative. Nothing is learned from it: it says how much the newest items of the history and the
    recent popularity lift count (`modules/towers/query.py`).
    """

    encoding: Literal["history_age"] = "history_age"
    dtype: ClassVar[Literal["string", "float32", "int64"]] = "float32"
    of_history: ClassVar[bool] = True
    column: ColumnName = "history_age"

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        return {self.column: Encoded(holds_ids=False)}

    def encode(self, values: tf.Tensor, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        # An infinite age would make a vector of NaN.
        return (tf.where(tf.math.is_nan(values), 0.0, tf.clip_by_value(values, 0.0, tf.float32.max)),)
