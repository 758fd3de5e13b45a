"""What the encodings of categories share: single values, lists, and lists kept in one cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from modules.encodings.base import Embedded

if TYPE_CHECKING:
    import tensorflow as tf


class Categorical(Embedded):
    """Base of the encodings of one category or several."""

    multivalued: bool = False
    """The column holds a list; its embeddings are averaged."""
    separator: str | None = Field(None, min_length=1, max_length=128)
    """Splits each string into several values, for lists kept in one CSV cell (`Action|Comedy`). Implies multivalued."""
    max_values: int = Field(16, ge=1, le=10_000)
    """At most this many values of a list are read."""

    @property
    def is_multivalued(self) -> bool:
        return self.multivalued or self.separator is not None

    @property
    def is_list(self) -> bool:
        return self.is_multivalued

    @property
    def separator_of_cells(self) -> str | None:
        return self.separator

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.max_values,) if self.is_multivalued else ()

    def read(self, raw: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
        """[N] or, for a list, [N, max_values] padded with ""."""
        import tensorflow as tf

        from modules.encodings.values import first, scalar

        if self.separator is not None:
            parts = tf.strings.split(tf.RaggedTensor.from_sparse(raw), self.separator).merge_dims(1, 2)
            parts = parts.with_flat_values(tf.strings.strip(parts.flat_values))
            return parts.to_tensor(default_value="", shape=[None, self.max_values])
        return first(raw, self.max_values, "") if self.multivalued else scalar(raw, "")
