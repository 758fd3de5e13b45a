"""Tells a pushed servable what users did since: a new version in seconds, nothing trained again.

Interactions that are later than what the version knows of their user are added to its histories. Imports no TFX, which
takes longer to load than an update to make.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from modules.data import columns, rows
from modules.data.tables import column_of
from modules.data.user_tables import UserRows, UserTables
from modules.encodings.features import Features
from modules.errors import UserError
from modules.servable import user_snapshot
from modules.servable.new_version import Updated, opened
from modules.settings import Serving, Tables

_KEYS = {"interactions": "--interactions", "users": "--users"}


class UsersUpdate(Updated):
    """An update of users that was pushed."""

    known_users: int
    interactions: int
    """That were new and are in the histories now, as far as `serving.known_users` and `max_length` keep them."""
    unknown_items: int
    """Interactions that were left out, as the version lacks their items."""


def update(
    push_destination: str, tables: Tables, read: Iterable[str], features: Features, serving: Serving
) -> UsersUpdate:
    """Pushes a version that is the newest one with other users and longer histories.

    Items that updates have added or removed stay added or removed.

    Args:
        push_destination: The folder with the versions, a local one.
        tables: The tables with what is new; the items table is not read.
        read: Which of interactions and users to read.
        features: As the newest version was made with.
        serving: As the newest version was made with; `known_users` may be another number.

    Raises:
        UserError: Nothing has been pushed, the version cannot be updated or knows no users, or a table cannot be read.
            The message says `--interactions` or `--users` for a table.
    """
    if not serving.known_users:
        raise UserError("serving.known_users is 0: no user is known to the model; set it and run the pipeline")
    with opened(push_destination, features, serving) as newest:
        if newest.users is None:
            raise UserError(
                f"version {newest.version} was made with serving.known_users 0 and knows no users; run the pipeline"
            )
        known = newest.users.feature_columns
        described = UserTables(tables, [column_of(f) for f in features.query if f.column in known])
        news = UserRows(*(_checked(described, name, tables) if name in read else () for name in _KEYS))
        item_ids = newest.catalogue.item_ids
        taken = user_snapshot.updated(
            newest.users, described, news, item_ids, features, serving.known_users, _KEYS["interactions"]
        )
        index = newest.index(newest.partitions, newest.catalogue)
        return newest.push(
            newest.catalogue, index, taken.users, UsersUpdate,
            known_users=len(taken.users), interactions=taken.interactions, unknown_items=taken.unknown,
        )  # fmt: skip


def _checked(described: UserTables, name: str, tables: Tables) -> Iterator[pa.RecordBatch]:
    """The rows of a table, in which every cell is what it should be.

    Raises:
        UserError: One is not; or a user is in the users table twice.
    """
    key, wanted, time = _KEYS[name], described.columns[name], tables.interactions.timestamp
    seen: set[str | None] = set()
    for file, batch in rows.batches(name, described.paths[name], wanted, key):
        for column in wanted:
            if isinstance(column, str):
                ids = rows.ids(batch, column)
                if None in ids:
                    raise UserError(f"{key}: {file}: a row has no {column}; give every row one")
                for user in ids if name == "users" else ():
                    if user in seen:
                        raise UserError(f"{key}: {file}: user {user!r} is there twice; keep one of the rows")
                    seen.add(user)
            elif name == "interactions":
                rows.refuse(key, file, time, columns.moments(batch.column(time))[1])
            else:
                rows.refuse(key, file, column.source, columns.cells(batch, column)[1])
        yield batch
