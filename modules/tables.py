"""The settings of the tables and of their split, which the pipeline and InteractionExampleGen share."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, model_validator

from modules.features import Settings


class Interactions(Settings):
    """The table with one row per interaction."""

    path: str
    """A file or a glob of Parquet or CSV files, local or gs://."""
    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    """Seconds since 1970, or a date-time column."""
    weight: str | None = None


class Items(Settings):
    """The catalogue: one row per item."""

    path: str
    id: str = "item_id"
    title: str | None = None
    """Shown by `twotower recommend`."""


class Users(Settings):
    """One row per user."""

    path: str
    id: str = "user_id"


class Tables(Settings):
    interactions: Interactions
    items: Items
    users: Users | None = None
    unknown_items: Literal["drop", "keep", "fail"] = "drop"
    """Interactions with an item that the items table lacks. Kept ones can be in a history, never an answer."""
    unknown_users: Literal["drop", "keep", "fail"] = "keep"
    """Interactions of a user that the users table lacks; kept ones have no attributes."""
    max_sequence: int = Field(5_000, ge=1)
    """Of a user with more train and validation interactions, the newest so many are learned from."""


class _FractionSplit(Settings):
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of the training period that early stopping watches."""
    eval: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_train(self) -> _FractionSplit:
        if self.validation + self.eval >= 1:
            raise ValueError("validation and eval leave nothing to train on")
        return self


class TemporalSplit(_FractionSplit):
    """The latest interactions are eval, those before them validation."""

    strategy: Literal["temporal"] = "temporal"
    validation_from: int | None = None
    """Cut-off time in seconds since 1970, instead of the fraction."""
    eval_from: int | None = None

    @model_validator(mode="after")
    def _both(self) -> TemporalSplit:
        if (self.validation_from is None) != (self.eval_from is None):
            raise ValueError("give both validation_from and eval_from, or neither")
        if self.validation_from is not None and self.eval_from is not None and self.validation_from >= self.eval_from:
            raise ValueError("validation_from must be before eval_from")
        return self


class RandomSplit(_FractionSplit):
    """By a hash of user, item and time: flattering, but the protocol of many papers."""

    strategy: Literal["random"] = "random"
    seed: int = 42


class LeaveLastOutSplit(Settings):
    """Each user's last interaction is eval, the one before it validation."""

    strategy: Literal["leave_last_out"] = "leave_last_out"


class ColumnSplit(Settings):
    """The user's own split: a column of the interactions with the values train, validation and eval."""

    strategy: Literal["column"] = "column"
    column: str


Split = Annotated[
    Union[TemporalSplit, RandomSplit, LeaveLastOutSplit, ColumnSplit],
    Field(discriminator="strategy"),
]
