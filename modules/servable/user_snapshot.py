"""What a servable knows of users: features and newest interactions, taken from the tables, and their file beside the
SavedModel."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modules.data.tables import Column
from modules.data.user_tables import UserRows, UserTables
from modules.encodings.features import Columns, Features
from modules.errors import UserError
from modules.servable import catalogue as catalogues

USERS_PATH = os.path.join("assets.extra", "users.parquet")
"""One row per known user, those with the newest interactions first: `user_id`, `history` (rows of the catalogue as
int32, oldest first), `newest` (seconds since 1970, null without interactions), and `features` (a struct with a field
for each query feature of the users table; left out where there is none)."""

_COLUMNS = b"twotower.columns"
_TYPES = {"string": pa.string(), "float32": pa.float32(), "int64": pa.int64()}
# Records that are Python objects at once.
_CHUNK = 65_536


@dataclass(frozen=True)
class UserSnapshot:
    """Users as they were known at one time, each once."""

    table: pa.Table
    """As `USERS_PATH` has it."""
    columns: Columns
    """What the tables call a user's id and the time of an interaction."""

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def user_ids(self) -> list[str]:
        return self.table["user_id"].to_pylist()

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The query features that are known of users."""
        return tuple(field.name for field in self.table.schema.field("features").type) if self._has_features else ()

    @property
    def newest(self) -> int | None:
        """When the newest of all interactions was, in seconds since 1970."""
        return pc.max(self.table["newest"]).as_py()

    def feature(self, column: str) -> pa.Array:
        """One feature of every user, null where it is missing."""
        return pc.struct_field(self.table["features"].combine_chunks(), column)

    def with_catalogue(self, old: Sequence[str], new: Sequence[str]) -> UserSnapshot:
        """The same users under another catalogue; items that are gone are gone from histories, too.

        Args:
            old: Item id of each row so far.
            new: Item id of each row from now on.
        """
        place = {item: row for row, item in enumerate(new)}
        moved = np.array([place.get(item, -1) for item in old], np.int32)
        ends, rows = ragged(self.table["history"])
        rows = moved[rows]
        before = np.append(0, np.cumsum(rows >= 0))
        histories = pa.LargeListArray.from_arrays(before[np.append(0, ends)], pa.array(rows[rows >= 0], pa.int32()))
        at = self.table.schema.get_field_index("history")
        return dataclasses.replace(self, table=self.table.set_column(at, self.table.schema.field(at), histories))

    @property
    def _has_features(self) -> bool:
        return "features" in self.table.column_names


@dataclass(frozen=True)
class Taken:
    """A snapshot that was taken from tables, and what was read for it."""

    users: UserSnapshot
    interactions: int
    """That count: new ones, with an item of the catalogue."""
    unknown: int
    """Left out, as the catalogue lacks their items."""


def take(
    known: UserTables, attributes: Sequence[Column], item_ids: Sequence[str], features: Features, columns: Columns,
    count: int,
) -> Taken:  # fmt: skip
    """Takes what the tables know of users.

    Args:
        known: The tables.
        attributes: What the users table gives.
        item_ids: Of the catalogue, by row.
        features: What a query has.
        columns: What the tables call a user's id and the time of an interaction.
        count: Users that are kept at most, those with the newest interactions; after them those without any.

    Raises:
        UserError: A table cannot be read, nobody is known, or a user's id has a line break.
    """
    nobody = _empty(attributes, columns)
    return updated(nobody, known, known.everything(), item_ids, features, count, "tables.interactions")


def updated(
    old: UserSnapshot, known: UserTables, rows: UserRows, item_ids: Sequence[str], features: Features, count: int,
    key: str,
) -> Taken:  # fmt: skip
    """A snapshot with what further tables know.

    An interaction counts if it is later than everything that the snapshot knows of its user, or as late and with an
    item that is not in the user's history: a table may hold what is known already, and twice is the same as once.

    Args:
        old: The snapshot.
        known: The tables' columns; features are those of the snapshot.
        rows: Of the tables.
        item_ids: Of the catalogue, by row.
        features: What a query has.
        count: Users that are kept at most, those with the newest interactions.
        key: What named the interactions, for messages.

    Raises:
        UserError: A table cannot be read, or a user's id has a line break.
    """
    row_of = {item: row for row, item in enumerate(item_ids)}
    length = features.history.max_length if features.history else 0
    place = {user: number for number, user in enumerate(old.user_ids)}
    counted = dict.fromkeys((True, False), 0)
    histories = known.histories(rows, keep=_news(old, place, row_of, counted))
    chosen = histories.newest(count)
    # Of a large users table only those are read who are kept; others fill what is left.
    wanted = set(chosen) if not place and len(chosen) == count else None
    attributes = known.attributes(rows, wanted)
    changed = dict.fromkeys(itertools.chain(chosen, attributes))
    before = old.table.take(pa.array([place[user] for user in changed if user in place], pa.int64()))

    def records() -> Iterator[dict[str, Any]]:
        of_old = {row["user_id"]: row for batch in before.to_batches(_CHUNK) for row in batch.to_pylist()}
        nothing: dict[str, Any] = {"history": [], "newest": None, "features": {}}
        for user in changed:
            record = of_old.get(user, nothing)
            items, newest = histories.get(user, ([], record["newest"]))
            history = [*record["history"], *(row_of[item] for item in items)]
            yield {
                "user_id": user,
                "history": history[max(0, len(history) - length) :],
                "newest": newest,
                "features": {**record.get("features", {}), **attributes.get(user, {})},
            }

    unchanged = np.ones(len(old), bool)
    unchanged[[place[user] for user in changed if user in place]] = False
    table = pa.concat_tables([old.table.filter(pa.array(unchanged)), *_tables(records(), old.table.schema)])
    order = pc.sort_indices(table, sort_keys=[("newest", "descending")], null_placement="at_end")
    users = dataclasses.replace(old, table=table.take(order[:count]).combine_chunks())
    if not len(users):
        raise UserError(f"{key}: no user is known: no interaction has an item of the catalogue; do the ids agree?")
    for user in users.user_ids:
        if "\n" in user or "\r" in user:
            raise UserError(f"{key}: user id {user!r} has a line break; correct it, or set serving.known_users to 0")
    return Taken(users, counted[True], counted[False])


def read(folder: str) -> UserSnapshot:
    """The known users of a servable that has some.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    table = catalogues.read_table(folder, USERS_PATH)
    return UserSnapshot(table, Columns.model_validate_json(table.schema.metadata[_COLUMNS]))


def write(folder: str, users: UserSnapshot) -> None:
    """Writes the file of a servable."""
    catalogues.write_table(folder, USERS_PATH, users.table.schema, [users.table])


def ragged(lists: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where each list ends, int64 [N], and the values of all of them, one list after the other."""
    column = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return np.cumsum(lengths), column.flatten().to_numpy(zero_copy_only=False)


def _news(
    old: UserSnapshot, place: Mapping[str, int], row_of: Mapping[str, int], counted: dict[bool, int]
) -> Callable[[str, str, int], bool]:
    """Which interactions are news; counts those with an item of the catalogue and, under False, those without."""
    newest = old.table["newest"].to_pylist()
    histories = old.table["history"].combine_chunks()

    def is_news(user: str, item: str, time: int) -> bool:
        row = row_of.get(item)
        if row is None:
            counted[False] += 1
            return False
        number = place.get(user)
        last = None if number is None else newest[number]
        if last is not None and (time < last or (time == last and row in histories[number].values.to_pylist())):
            return False
        counted[True] += 1
        return True

    return is_news


def _empty(attributes: Sequence[Column], columns: Columns) -> UserSnapshot:
    fields = [("user_id", pa.string()), ("history", pa.large_list(pa.int32())), ("newest", pa.int64())]
    if attributes:
        kinds = [(c.name, pa.list_(pa.string()) if c.multivalued else _TYPES[c.kind]) for c in attributes]
        fields.append(("features", pa.struct(kinds)))
    schema = pa.schema(fields, metadata={_COLUMNS: columns.model_dump_json().encode()})
    return UserSnapshot(schema.empty_table(), columns)


def _tables(records: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    while chunk := list(itertools.islice(records, _CHUNK)):
        yield pa.Table.from_pylist(chunk, schema)
