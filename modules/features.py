"""The feature specification: one description that drives Transform, both towers, signatures and schema checks."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modules.data.examples import LABEL, RELEVANT, SEQUENCE_PREFIX, SLICE_PREFIX, TIME, USER, WEIGHT

ITEM_VOCABULARY = "items"
"""Name of the vocabulary over the item id column, with frequencies; the history and the label use it too."""

MISSING_TIMESTAMP = -1
"""A request that does not say when it is asked carries this; it encodes to zeros."""


class Settings(BaseModel):
    """Base of everything that is read from the YAML file: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Column(Settings):
    column: str = Field(min_length=1)
    """Column of the interactions, users or items table; also the key in examples and requests."""


class _Categorical(_Column):
    dimension: int = Field(32, ge=1)
    """Width of the embedding."""
    multivalued: bool = False
    """The column holds a list; its embeddings are averaged."""
    separator: str | None = None
    """Splits each string into several values, for lists kept in one CSV cell (`Action|Comedy`). Implies multivalued."""
    max_values: int = Field(16, ge=1)
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
    min_count: int = Field(1, ge=1)
    max_size: int | None = Field(None, ge=1)
    oov_buckets: int = Field(1, ge=1)


class Hash(_Categorical):
    """A category hashed into buckets, without a vocabulary. Encodes to int64: 0 missing, 1 … buckets."""

    encoding: Literal["hash"] = "hash"
    buckets: int = Field(ge=2)


class Text(_Column):
    """Free text: lower-cased, split at everything that is not a letter or a digit, embeddings averaged.

    Encodes to int64 [B, T] like `Vocabulary`, padded with 0, at most `max_tokens` tokens.
    """

    encoding: Literal["text"] = "text"
    dimension: int = Field(32, ge=1)
    max_tokens: int = Field(32, ge=1)
    min_count: int = Field(2, ge=1)
    max_size: int | None = Field(20_000, ge=1)
    oov_buckets: int = Field(1, ge=1)


class Normalized(_Column):
    """A number, z-scored with the training period's mean and deviation. Encodes to float32 [B]; missing is 0."""

    encoding: Literal["normalized"] = "normalized"


class Bucketized(_Column):
    """A number in buckets, each with an embedding. Encodes to int64 [B]: 0 missing, then 1 … number of buckets."""

    encoding: Literal["bucketized"] = "bucketized"
    dimension: int = Field(32, ge=1)
    boundaries: tuple[float, ...] | None = None
    """Rising; a value equal to a boundary belongs to the bucket above it. Either these or `buckets`."""
    buckets: int | None = Field(None, ge=2)
    """Number of quantile buckets, with boundaries learned from the training period."""

    @model_validator(mode="after")
    def _one_of(self) -> Bucketized:
        if (self.boundaries is None) == (self.buckets is None):
            raise ValueError("give either boundaries or buckets")
        if self.boundaries is not None and list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError("boundaries must rise strictly")
        return self


class Log1p(_Column):
    """A count or an amount: log(1 + x), negative values count as 0. Encodes to float32 [B]; missing is 0."""

    encoding: Literal["log1p"] = "log1p"


class Timestamp(_Column):
    """The time of the request, in seconds since 1970 (UTC).

    Encodes to `<column>_cyclic` float32 [B, 4] (sine and cosine of the time of the day, then of the week) and
    `<column>_bucket` int64 [B] (0 missing, then 1 … buckets: quantiles of the training period).
    """

    encoding: Literal["timestamp"] = "timestamp"
    dimension: int = Field(32, ge=1)
    buckets: int = Field(16, ge=2)


class History(_Column):
    """The items the user took up before this interaction, oldest first in examples and requests.

    It has no column in the tables: InteractionExampleGen writes it. Encodes to int64 [B, max_length], **newest first**,
    padded with 0, in the item vocabulary's indices. A request may be longer: the tower reads the newest `max_length`,
    and everything in it is kept out of the answer.
    """

    encoding: Literal["history"] = "history"
    column: str = "history"
    max_length: int = Field(50, ge=1)


class HistoryAge(_Column):
    """Seconds from the newest item of the history to the request: who is in the middle of it, and who comes back.

    It has no column in the tables: InteractionExampleGen writes it. Encodes to float32 [B], seconds; 0, in the middle
    of it, when missing or negative. Nothing is learned from it: it says how much the newest items of the history and
    the trend count (`QueryTower`).
    """

    encoding: Literal["history_age"] = "history_age"
    column: str = "history_age"


Feature = Annotated[
    Union[Vocabulary, Hash, Text, Normalized, Bucketized, Log1p, Timestamp, History, HistoryAge],
    Field(discriminator="encoding"),
]


class Columns(Settings):
    """The three columns that make an interaction."""

    user: str
    item: str
    timestamp: str


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
        # "examples" is the input of the servable's `evaluate`, which TFMA would confuse with a column of that name.
        own = (RELEVANT, WEIGHT, LABEL, USER, TIME, "examples")
        reserved = [c for c in columns if c in own or c.startswith((SLICE_PREFIX, SEQUENCE_PREFIX))]
        if reserved:
            raise ValueError(f"column {reserved[0]!r} has a name that the pipeline uses itself; rename it")
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
