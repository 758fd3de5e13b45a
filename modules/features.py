"""The feature specification: one description that drives Transform, both towers, signatures and schema checks."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable
from typing import Annotated, Literal, TypeVar, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from modules.data.examples import LABEL, RELEVANT, SEQUENCE_PREFIX, SLICE_PREFIX, TIME, USER, WEIGHT


EXAMPLES = "examples"
"""Input of the servable's `evaluate`, serialized examples; TFMA would take a column of that name for it."""
READING, SEED = "reading", "seed"
ITEM_VOCABULARY = "items"
"""Name of the vocabulary over the item id column, with frequencies; the history and the label use it too."""

ITEM_ID, SCORE = "item_id", "score"
"""Outputs of the servable's answers, beside the returned columns; the former is also the input of `similar_items`."""
EXCLUDE, FILTER_PREFIX = "exclude", "filter_"
"""Inputs of the servable beside the query's columns: items to leave out, and `filter_genres` for a filter column."""

MISSING_TIMESTAMP = -1
"""A request that does not say when it is asked carries this; it encodes to zeros."""

LAST_SECOND = 253_402_300_799
"""The end of the year 9999: what is above is not a time in seconds."""
FLOAT32_MAX = 3.4e38
"""TensorFlow computes in float32, where what is above is infinite."""


class Settings(BaseModel):
    """Base of everything that is read from the YAML file.

    Immutable; unknown keys, NaN and infinite numbers are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Item = TypeVar("_Item", bound=Hashable)
# Rows and counts at most, and numbers in one embedding table: 4 GB, and twice that for the optimizer's moments.
_MANY = 100_000_000
_TABLE = 2**30


def _printable(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError(f"{text[:40]!r} has a character that cannot be printed, such as a line break; remove it")
    return text


def _distinct(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is there twice; remove one")
    return values


def _rising(boundaries: tuple[float, ...]) -> tuple[float, ...]:
    if list(boundaries) != sorted(set(boundaries)):
        raise ValueError("boundaries must rise strictly")
    return boundaries


Line = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
"""What has to be said if it is said at all: a path, a host, the name of something elsewhere."""
ColumnName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
"""A table's column; where it becomes the input of a signature too, `names.check` asks more of it."""
Distinct = Annotated[tuple[_Item, ...], AfterValidator(_distinct)]
"""A list in which nothing is twice."""
Boundaries = Annotated[
    tuple[Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)], ...], Field(min_length=1), AfterValidator(_rising)
]
"""Where one range of a number ends and the next begins, rising."""
Seed = Annotated[int, Field(ge=0, le=2_000_000_000)]
"""TensorFlow's seeds are int32, and the Trainer adds a thousand for each epoch."""
Width = Annotated[int, Field(ge=1, le=16_384)]
"""Of an embedding or a layer."""


class _Column(Settings):
    column: ColumnName
    """Column of the interactions, users or items table; also the key in examples and requests."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the transformed examples that the column encodes to."""
        return (self.column,)


class _Categorical(_Column):
    dimension: Width = 32
    """Width of the embedding."""
    multivalued: bool = False
    """The column holds a list; its embeddings are averaged."""
    separator: str | None = Field(None, min_length=1, max_length=128)
    """Splits each string into several values, for lists kept in one CSV cell (`Action|Comedy`). Implies multivalued."""
    max_values: int = Field(16, ge=1, le=10_000)
    """At most this many values of a list are read."""

    @property
    def is_multivalued(self) -> bool:
        return self.multivalued or self.separator is not None


class Vocabulary(_Categorical):
    """A string or integer category, looked up in a vocabulary learned from the training period.

    Encodes to int64 [B], or [B, max_values] padded with 0 when multivalued: 0 for a missing value, 1 … V for known ones
    (most frequent first), V + 1 … V + oov_buckets for unknown ones (by hash).
    """

    encoding: Literal["vocabulary"] = "vocabulary"
    min_count: int = Field(1, ge=1, le=_MANY)
    max_size: int | None = Field(None, ge=1, le=_MANY)
    oov_buckets: int = Field(1, ge=1, le=100_000)


class Hash(_Categorical):
    """A category hashed into buckets, without a vocabulary. Encodes to int64: 0 missing, 1 … buckets."""

    encoding: Literal["hash"] = "hash"
    buckets: int = Field(ge=2, le=_MANY)

    @model_validator(mode="after")
    def _fits(self) -> Hash:
        if self.buckets * self.dimension > _TABLE:
            raise ValueError(f"{self.buckets} buckets of dimension {self.dimension} are more than {_TABLE:,} numbers; "
                             "lower one of the two")  # fmt: skip
        return self


class Text(_Column):
    """Free text: lower-cased, split at everything that is not a letter or a digit, embeddings averaged.

    Encodes to int64 [B, T] like `Vocabulary`, padded with 0, at most `max_tokens` tokens.
    """

    encoding: Literal["text"] = "text"
    dimension: Width = 32
    max_tokens: int = Field(32, ge=1, le=10_000)
    min_count: int = Field(2, ge=1, le=_MANY)
    max_size: int | None = Field(20_000, ge=1, le=_MANY)
    oov_buckets: int = Field(1, ge=1, le=100_000)


class Normalized(_Column):
    """A number, z-scored with the training period's mean and deviation. Encodes to float32 [B]; missing is 0."""

    encoding: Literal["normalized"] = "normalized"


class Bucketized(_Column):
    """A number in buckets, each with an embedding. Encodes to int64 [B]: 0 missing, then 1 … number of buckets."""

    encoding: Literal["bucketized"] = "bucketized"
    dimension: Width = 32
    boundaries: Boundaries | None = None
    """Rising; a value equal to a boundary belongs to the bucket above it. Either these or `buckets`."""
    buckets: int | None = Field(None, ge=2, le=10_000)
    """Number of quantile buckets, with boundaries learned from the training period."""

    @model_validator(mode="after")
    def _one_of(self) -> Bucketized:
        if (self.boundaries is None) == (self.buckets is None):
            raise ValueError("give either boundaries or buckets")
        return self


class Log1p(_Column):
    """A count or an amount: log(1 + x), negative values count as 0. Encodes to float32 [B]; missing is 0."""

    encoding: Literal["log1p"] = "log1p"


class Timestamp(_Column):
    """The time of the request, in seconds since 1970 (UTC).

    Encodes to two keys: `cyclic_key` float32 [B, 4] (sine and cosine of the time of the day, then of the week) and
    `bucket_key` int64 [B] (0 missing, then 1 … buckets: quantiles of the training period).
    """

    encoding: Literal["timestamp"] = "timestamp"
    dimension: Width = 32
    buckets: int = Field(16, ge=2, le=10_000)

    @property
    def bucket_key(self) -> str:
        return f"{self.column}_bucket"

    @property
    def cyclic_key(self) -> str:
        return f"{self.column}_cyclic"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.bucket_key, self.cyclic_key)


class History(_Column):
    """The items the user took up before this interaction, oldest first in examples and requests.

    It has no column in the tables: InteractionExampleGen writes it. Encodes to int64 [B, max_length], **newest first**,
    padded with 0, in the item vocabulary's indices. A request may be longer: the tower reads the newest `max_length`,
    and everything in it is kept out of the answer.
    """

    encoding: Literal["history"] = "history"
    column: ColumnName = "history"
    max_length: int = Field(50, ge=1, le=10_000)


class HistoryAge(_Column):
    """Seconds from the newest item of the history to the request: who is in the middle of it, and who comes back.

    It has no column in the tables: InteractionExampleGen writes it. Encodes to float32 [B], seconds; 0, in the middle
    of it, when missing or negative. Nothing is learned from it: it says how much the newest items of the history and
    the trend count (`QueryTower`).
    """

    encoding: Literal["history_age"] = "history_age"
    column: ColumnName = "history_age"


Feature = Annotated[
    Union[Vocabulary, Hash, Text, Normalized, Bucketized, Log1p, Timestamp, History, HistoryAge],
    Field(discriminator="encoding"),
]


class Columns(Settings):
    """The three columns that make an interaction."""

    user: ColumnName
    item: ColumnName
    timestamp: ColumnName


class Features(Settings):
    """What each tower reads."""

    query: tuple[Feature, ...] = Field(min_length=1)
    candidate: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unambiguous(self) -> Features:
        columns = [f.column for f in (*self.query, *self.candidate)]
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is described twice; a column is one feature of one tower")
        for kind in (History, HistoryAge):
            name = kind.model_fields["encoding"].default
            if any(isinstance(f, kind) for f in self.candidate):
                raise ValueError(f"{name} belongs to the query tower")
            if sum(isinstance(f, kind) for f in self.query) > 1:
                raise ValueError(f"there can be one {name} feature")
        if self.history_age is not None and self.history is None:
            raise ValueError("history_age needs a history feature, whose age it is")
        return self

    @property
    def encodings(self) -> Features:
        """The same without the sizes of embeddings, which only the towers depend on."""

        def strip(feature: Feature) -> Feature:
            sized = "dimension" in type(feature).model_fields
            return feature.model_copy(update={"dimension": 1}) if sized else feature

        return Features(query=tuple(map(strip, self.query)), candidate=tuple(map(strip, self.candidate)))

    @property
    def history(self) -> History | None:
        return next((f for f in self.query if isinstance(f, History)), None)

    @property
    def history_age(self) -> HistoryAge | None:
        return next((f for f in self.query if isinstance(f, HistoryAge)), None)


def is_of_history(feature: Feature) -> bool:
    """Whether it tells of the history: no column of the tables, and no term of its own in the query tower."""
    return isinstance(feature, (History, HistoryAge))


def dtype(feature: Feature) -> Literal["string", "float32", "int64"]:
    """What a feature is in examples and requests: categories and text are strings, numbers float32, times int64."""
    if isinstance(feature, (Normalized, Bucketized, Log1p, HistoryAge)):
        return "float32"
    return "int64" if isinstance(feature, Timestamp) else "string"


def is_list(feature: Feature) -> bool:
    """Whether a request gives [B, L] (padded with "") rather than [B]."""
    return isinstance(feature, History) or (isinstance(feature, (Vocabulary, Hash)) and feature.is_multivalued)
