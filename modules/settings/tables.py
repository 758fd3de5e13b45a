"""The section `tables`: where the tables are, and what their columns are called."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from modules.settings.base import ColumnName, Line, Settings


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
    items_not_in_table: Literal["drop", "keep", "fail"] = "drop"
    """Interactions with an item that the items table lacks. Kept ones can be in a history, never an answer."""
    users_not_in_table: Literal["drop", "keep", "fail"] = "keep"
    """Interactions of a user that the users table lacks; kept ones have no attributes."""
    max_sequence: int = Field(5_000, ge=1, le=10_000_000)
    """Of a user with more train and validation interactions, the newest so many are learned from."""
