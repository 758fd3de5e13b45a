"""What the tables know of users: their attributes and their histories, of everybody, of some, or of a shard of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from modules.data import columns, rows
from modules.data.tables import Column
from modules.errors import UserError
from modules.settings import Tables


@dataclass(frozen=True)
class UserRows:
    """Rows of the two tables, in the order of the tables."""

    interactions: Iterable[pa.RecordBatch]
    users: Iterable[pa.RecordBatch]


class UserTables:
    """The interactions and the users table, as requests are made from them.

    Args:
        tables: Where they are, and what their columns are called.
        attributes: What the users table gives to a request.
    """

    def __init__(self, tables: Tables, attributes: Sequence[Column]) -> None:
        self.paths = {"interactions": tables.interactions.path}
        """By table; without the users table where there is none."""
        self.ids = {"interactions": tables.interactions.user}
        """The column of the user's id, by table."""
        named = tables.interactions
        time = Column(name="", source=named.timestamp, kind="int64")
        self.columns: dict[str, list[Column | str]] = {"interactions": [named.user, named.item, time]}
        """What is read, by table."""
        if tables.users is not None:
            self.paths["users"], self.ids["users"] = tables.users.path, tables.users.id
            self.columns["users"] = [tables.users.id, *attributes]
        self._interactions = named
        self._attributes = attributes

    def everything(self) -> UserRows:
        """All rows, read when they are asked for."""
        return UserRows(self._all("interactions"), self._all("users"))

    def _all(self, table: str) -> Iterator[pa.RecordBatch]:
        if table in self.paths:
            for _, batch in rows.batches(table, self.paths[table], self.columns[table]):
                yield batch

    def histories(
        self, known: UserRows, wanted: Set[str] | None = None, keep: Callable[[str, str, int], bool] | None = None
    ) -> Histories:
        """Whose interactions are wanted, or everybody's, in the order of the table.

        Args:
            known: What is known of users.
            wanted: Whose; None for everybody's.
            keep: Of a user, an item and a time: whether the interaction counts. By default each one does.

        Raises:
            UserError: A file is missing or cannot be read.
        """
        table = self._interactions
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64))]
        for batch in known.interactions:
            times, timeless, _ = columns.seconds(batch.column(table.timestamp))
            taken = [
                (users.setdefault(user, len(users)), items.setdefault(item, len(items)), row)
                for row, (user, item) in enumerate(
                    zip(rows.ids(batch, table.user), rows.ids(batch, table.item), strict=True)
                )
                if user is not None and item is not None and not timeless[row] and (wanted is None or user in wanted)
                if keep is None or keep(user, item, int(times[row]))
            ]
            user, item, row = np.array(taken, np.int64).reshape(-1, 3).T
            parts.append((user.astype(np.int32), item.astype(np.int32), times[row]))
        return Histories(users, list(items), *(np.concatenate(each) for each in zip(*parts, strict=True)))

    def attributes(self, known: UserRows, wanted: Set[str] | None = None) -> dict[str, dict[str, Any]]:
        """What the users table says, by user and column; everybody's for None."""
        attributes: dict[str, dict[str, Any]] = {}
        for batch in known.users:
            values = [(c.name, columns.cells(batch, c)[0]) for c in self._attributes]
            for row, user in enumerate(rows.ids(batch, self.ids["users"])):
                if user is not None and (wanted is None or user in wanted):
                    attributes[user] = {name: cells[row] for name, cells in values if cells[row] is not None}
        return attributes


class Histories(Mapping[str, tuple[list[str], int]]):
    """What was interacted with, by user: the items, oldest first, and the time of the newest.

    Everybody's would not fit as lists. Here each id is held once, and an interaction takes 4 bytes.

    Args:
        users: User id → number, in the order of the numbers.
        items: Item ids by number.
        user: [N] whose each interaction is, int32.
        item: [N] int32.
        time: [N] int64 seconds since 1970. Equal times are in the order of the arrays.
    """

    def __init__(
        self, users: dict[str, int], items: Sequence[str], user: np.ndarray, item: np.ndarray, time: np.ndarray
    ) -> None:
        self._users = users
        self._names = items
        order = np.lexsort((time, user))
        self._item = item[order]
        self._end = np.cumsum(np.bincount(user, minlength=len(users)))
        self._newest = time[order[self._end - 1]]

    def __getitem__(self, user: str) -> tuple[list[str], int]:
        number = self._users[user]
        start = self._end[number - 1] if number else 0
        items = self._item[start : self._end[number]].tolist()
        return [self._names[item] for item in items], int(self._newest[number])

    def newest(self, count: int) -> list[str]:
        """The users with the newest interactions, at most so many, the newest first; equal times as they came."""
        names = list(self._users)
        return [names[number] for number in np.argsort(-self._newest, kind="stable")[:count]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._users)

    def __len__(self) -> int:
        return len(self._users)


def listed(path: str) -> Iterator[str]:
    """The user ids of `--users`: the lines of a text file that are not empty, without a byte order mark.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from (user for line in file if (user := line.strip()))
    except OSError as error:
        raise UserError(f"--users {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--users {path}: is not UTF-8; save it as text in UTF-8, one user id per line") from None
