"""The settings of the tables and of their split, which the pipeline and InteractionExampleGen share."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, model_validator

from modules.features import LAST_SECOND, ColumnName, Line, Seed, Settings


class Interactions(Settings):
    """The table with one row per interaction."""

    path: Line
    """A file or a glob of Parquet or CSV files, local or gs://."""
    user: ColumnName = "user_id"
    item: ColumnName = "item_id"
    timestamp: ColumnName = "timestamp"
    """Seconds since 1970, or a date-time column."""
    weight: ColumnName | None = None

    @model_validator(mode="after")
    def _each_role_a_column(self) -> Interactions:
        roles: dict[str, str] = {}
        for role in ("user", "item", "timestamp", "weight"):
            column = getattr(self, role)
            if column is not None and roles.setdefault(column, role) != role:
                raise ValueError(f"{roles[column]} and {role} are both column {column!r}; each needs one of its own")
        return self


class Items(Settings):
    """The catalogue: one row per item."""

    path: Line
    id: ColumnName = "item_id"
    title: ColumnName | None = None
    """Shown by `twotower recommend`."""


class Users(Settings):
    """One row per user."""

    path: Line
    id: ColumnName = "user_id"


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
    validation_from: int | None = Field(None, ge=0, le=LAST_SECOND)
    """Cut-off time in seconds since 1970, instead of the fraction."""
    eval_from: int | None = Field(None, ge=0, le=LAST_SECOND)

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
    seed: Seed = 42


class LeaveLastOutSplit(Settings):
    """Each user's last interaction is eval, the one before it validation."""

    strategy: Literal["leave_last_out"] = "leave_last_out"


class ColumnSplit(Settings):
    """The user's own split: a column of the interactions with the values train, validation and eval."""

    strategy: Literal["column"] = "column"
    column: ColumnName


Split = Annotated[
    Union[TemporalSplit, RandomSplit, LeaveLastOutSplit, ColumnSplit],
    Field(discriminator="strategy"),
]
