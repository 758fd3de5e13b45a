"""What an encoding is: all that the pipeline must know of how one column becomes what a tower reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from modules.settings.base import ColumnName, Settings, Width

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from modules.encodings.items import ItemIds

MISSING_TIMESTAMP = -1
"""A request that does not say when it is asked carries this; it encodes to zeros."""

# TensorFlow is imported inside of functions, here and in the encodings: a configuration is read without it.


@dataclass(frozen=True)
class Encoded:
    """One key of the transformed examples: int64 ids, of which 0 is a missing value, or float32 numbers."""

    shape: tuple[int, ...] = ()
    """Without the batch."""
    holds_ids: bool = True

    @property
    def dtype(self) -> Literal["int64", "float32"]:
        return "int64" if self.holds_ids else "float32"

    @property
    def width(self) -> int:
        """Numbers in a row."""
        width = 1
        for size in self.shape:
            width *= size
        return width


class Encoding(Settings):
    """One column, how it is encoded, and what follows from that everywhere.

    An encoding is one class in one file of this folder: the fields of the YAML, the dtype of requests, the keys and
    shapes of what Transform writes, the number of ids, Transform's graph. The tower's term and the design of the
    content model (`modules/cold_start.py`) follow from `encoded` alone.
    """

    encoding: str
    column: ColumnName
    """Column of the interactions, users or items table; also the key in examples and requests."""

    dtype: ClassVar[Literal["string", "float32", "int64"]] = "string"
    """What it is in examples and requests: categories and texts are strings, numbers float32, times int64."""
    of_history: ClassVar[bool] = False
    """It tells of the history: it has no column in the tables, and no term of its own in the query tower."""

    @property
    def is_list(self) -> bool:
        """Whether a request gives [B, L] (padded with "") rather than [B]."""
        return False

    @property
    def separator_of_cells(self) -> str | None:
        """What splits a cell of the tables into several values."""
        return None

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        """What Transform writes, by key."""
        raise NotImplementedError

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the transformed examples that the column encodes to."""
        return tuple(self.encoded)

    @property
    def vocabulary(self) -> str | None:
        """Name of its vocabulary's file; None without one of its own."""
        return None

    @property
    def rows_mean(self) -> str:
        """A name for how values become ids: a warm start keeps a table only where it is the same before and after."""
        return self.encoding

    def read(self, raw: tf.Tensor | tf.SparseTensor) -> Any:
        """What `learn` and `encode` look at: of numbers the first in each row, [N] float32 with NaN for none.

        Args:
            raw: Sparse [N, ?] values, each row's present ones at its front; or dense [N], of which a missing one is "",
                NaN or negative.
        """
        from modules.encodings.values import numbers

        return numbers(raw) if self.dtype == "float32" else raw

    def learn(self, values: Any, items: ItemIds) -> Any:
        """What `encode` needs of the training period, as TFT analyzers; None for nothing.

        Args:
            values: What `read` returned.
            items: The item vocabulary.
        """
        return None

    def encode(self, values: Any, learned: Any, items: ItemIds) -> tuple[tf.Tensor, ...]:
        """What `encoded` says, [N, ...] each, in the order of its keys.

        Args:
            values: What `read` returned.
            learned: What `learn` returned.
            items: The item vocabulary.
        """
        raise NotImplementedError

    def cardinality(self, tft_output: tft.TFTransformOutput, items: ItemIds) -> int | None:
        """Number of ids with 0 for missing: rows of the embedding table; None where nothing holds ids."""
        return None


class Embedded(Encoding):
    """Base of the encodings whose ids have an embedding table of their own."""

    dimension: Width = 32
    """Width of the embedding."""


def term(
    encoding: Encoding,
    inputs: Mapping[str, tf.Tensor],
    embedding: Callable[[tf.Tensor], tf.Tensor] | None,
    missing_is_zero: bool = False,
) -> tf.Tensor:
    """[B, width] what a tower projects for a feature: the mean embedding of its ids beside its numbers.

    Args:
        encoding: The feature.
        inputs: Transformed features.
        embedding: Ids of any shape → their embeddings; None for a feature without ids.
        missing_is_zero: Whether the embedding of id 0 is 0, so that nothing need be taken out.
    """
    import tensorflow as tf

    parts = []
    for key, encoded in encoding.encoded.items():
        values = tf.reshape(inputs[key], [-1, encoded.width])
        if not encoded.holds_ids:
            parts.append(values)
            continue
        assert embedding is not None
        if missing_is_zero and encoded.shape == ():
            # The mean of one.
            parts.append(embedding(inputs[key]))
            continue
        parts.append(tf.math.divide_no_nan(total_of_ids(values, embedding), count_of_ids(values)))
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


def total_of_ids(
    ids: tf.Tensor, embedding: Callable[[tf.Tensor], tf.Tensor], weights: tf.Tensor | None = None
) -> tf.Tensor:
    """The sum of each row's embeddings, [B, width].

    Args:
        ids: [B, L], padded with 0.
        embedding: [N] ids → [N, width].
        weights: [B, L] factors of the embeddings.
    """
    import tensorflow as tf

    if ids.shape[1] == 1 and weights is None:
        return tf.cast(ids > 0, tf.float32) * embedding(ids[:, 0])
    rows = tf.shape(ids)[0]
    # Padding, which is most of a title's 32 places or of a window, is not looked up and has no gradient.
    places = tf.where(ids > 0)
    vectors = embedding(tf.gather_nd(ids, places))
    if weights is not None:
        vectors = tf.gather_nd(weights, places)[:, tf.newaxis] * vectors
    # Each vector once, in order: this op is there for its kernel, which takes half the time of `unsorted_segment_sum`.
    every = tf.range(tf.shape(vectors)[0])
    return tf.sparse.segment_sum(vectors, every, tf.cast(places[:, 0], tf.int32), num_segments=rows)


def count_of_ids(ids: tf.Tensor) -> tf.Tensor:
    """[B, 1] float32: how many ids each row [B, L] has."""
    import tensorflow as tf

    return tf.math.count_nonzero(ids > 0, axis=1, keepdims=True, dtype=tf.float32)
