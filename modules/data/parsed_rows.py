"""Batches of the three tables as ids, cells and interactions, and an entry of the report for whatever is none.

InteractionExampleGen's workers and `twotower check` read with this. Imports neither TensorFlow nor Beam.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from modules.data import columns, examples, report
from modules.data.columns import Fault
from modules.data.examples import SLICE_PREFIX, VALUE_SEPARATOR, Value
from modules.data.histories import SPLITS, Interactions
from modules.data.report import Entry
from modules.data.tables import Column, Part, Plan, shown
from modules.settings import ColumnSplit, Slice, Split, Tables


class Parsed(NamedTuple):
    """A batch of items or users: parallel sequences [N], and what is wrong in it."""

    ids: list[bytes | None]
    cells: dict[str, Sequence[Value]]
    """By key of the example."""
    entries: list[Entry]


class _Rows:
    """Base of the three: says in the report what is wrong with a batch."""

    table: str
    columns: Sequence[Column]
    """What is read of the table."""

    def _report(self, column: str, faults: Iterable[Fault], part: Part, first_row: int) -> Iterator[Entry]:
        for fault in faults:
            place = f"{fault.example} in row {first_row + int(np.argmax(fault.rows)) + 1} of {part.path}"
            number = int(fault.rows.sum())
            yield report.problem(f"tables.{self.table}", f"values of {column!r} {fault.what}", place, fault.fix, number)

    def _nameless(
        self, column: str, ids: Sequence[bytes | None] | np.ndarray, part: Part, first_row: int, fix: str
    ) -> Iterator[Entry]:
        """Reports rows without an id."""
        missing = pd.isna(np.asarray(ids, object))
        if missing.any():
            place = f"row {first_row + int(np.argmax(missing)) + 1} of {part.path}"
            yield report.problem(f"tables.{self.table}", f"rows have no {column}", place, fix, int(missing.sum()))

    def _cells(
        self, part: Part, first_row: int, batch: pa.RecordBatch, wanted: Sequence[Column], slices: Sequence[Slice] = ()
    ) -> tuple[dict[str, Sequence[Value]], list[Entry]]:
        """Columns and slices of a batch by key of the example, [N] each, and reports."""
        by_name: dict[str, Sequence[Value]] = {}
        faults: dict[str, list[Fault]] = {}
        for column in wanted:
            by_name[column.name], faults[column.source] = columns.cells(batch, column)
        for by in slices:
            by_name[SLICE_PREFIX + by.column], wrong = columns.slice_values(batch, by)
            # A column that is a feature as well is wrong once, not twice.
            faults[by.column] = faults.get(by.column) or wrong
        return by_name, [p for name, wrong in faults.items() for p in self._report(name, wrong, part, first_row)]


class ItemRows(_Rows):
    """Item ids, candidate features and the columns of an answer."""

    table = "items"

    def __init__(self, settings: Tables, plan: Plan) -> None:
        self.id = settings.items.id
        self.key = settings.interactions.item
        """Key of the id in examples."""
        self._items = [c for c in (*plan.items, *plan.returned) if c.name != self.key]
        self.columns = [_id(self.id), *self._items]

    def parse(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Parsed:
        """A batch of `columns`; `first_row` is the position of its first row in the file."""
        ids = columns.ids(batch.column(self.id))
        entries = list(self._nameless(self.id, ids, part, first_row, "give every item an id"))
        cells, faults = self._cells(part, first_row, batch, self._items)
        return Parsed(ids, cells, entries + faults)


class UserRows(_Rows):
    """User ids, the users' features and slices; the slices have `SLICE_PREFIX`."""

    table = "users"

    def __init__(self, settings: Tables, plan: Plan) -> None:
        assert settings.users is not None
        self.id = settings.users.id
        self.slices = plan.user_slices
        self._users = plan.users
        self.columns = [_id(self.id), *self._users, *map(Column.of_slice, self.slices)]

    def parse(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Parsed:
        """A batch of `columns`; `first_row` is the position of its first row in the file."""
        ids = columns.ids(batch.column(self.id))
        entries = list(self._nameless(self.id, ids, part, first_row, "give every user an id"))
        cells, faults = self._cells(part, first_row, batch, self._users, self.slices)
        return Parsed(ids, cells, entries + faults)


class InteractionRows(_Rows):
    """Whose each interaction is, and the interactions."""

    table = "interactions"

    def __init__(self, settings: Tables, split: Split, plan: Plan) -> None:
        self._names = settings.interactions
        self._split = split.column if isinstance(split, ColumnSplit) else None
        self._context, self._slices = plan.interactions, plan.interaction_slices
        self._kinds = {column.name: column.kind for column in self._context}
        names = self._names
        self.columns = [_id(names.user), _id(names.item), Column(name="", source=names.timestamp, kind="int64")]
        if names.weight is not None:
            self.columns.append(Column(name="", source=names.weight, kind="float32"))
        if self._split is not None:
            self.columns.append(Column(name="", source=self._split))
        self.columns += [*self._context, *map(Column.of_slice, self._slices)]

    def parse(self, part: Part, first_row: int, batch: pa.RecordBatch) -> tuple[np.ndarray, Interactions, list[Entry]]:
        """(User ids [N], their interactions [N], entries) of a batch, without the rows that are none."""
        names = self._names
        entries = [report.count("interactions", batch.num_rows)]
        users = np.array(columns.ids(batch.column(names.user)), object)
        items = np.array(columns.ids(batch.column(names.item)), object)
        remove = "correct or remove those rows"
        entries += self._nameless(names.user, users, part, first_row, remove)
        entries += self._nameless(names.item, items, part, first_row, remove)
        times, faults = columns.moments(batch.column(names.timestamp))
        entries += self._report(names.timestamp, faults, part, first_row)

        weights = np.ones(batch.num_rows, np.float32)
        if names.weight is not None:
            weights, light = columns.weights(batch.column(names.weight))
            entries += self._report(names.weight, light, part, first_row)
            faults += light

        codes = None
        if self._split is not None:
            named = columns.texts(batch.column(self._split))
            codes = np.array([_CODES.get(name or b"", -1) for name in named], np.int8)
            other = codes < 0
            if other.any():
                name = named[int(np.argmax(other))]
                example = shown(None if name is None else name.decode())
                none = Fault(other, "are none of train, validation and eval", "write one of the three", example)
                entries += self._report(self._split, [none], part, first_row)
                faults.append(none)
        bad = np.logical_or.reduce([pd.isna(users), pd.isna(items), *(fault.rows for fault in faults)])

        cells, wrong = self._cells(part, first_row, batch, self._context, self._slices)
        entries += wrong
        context, told = {}, set()
        for key, values in cells.items():
            column = key.removeprefix(SLICE_PREFIX)
            joined = np.array([isinstance(cell, list) and holds_separator(cell) for cell in values], bool)
            # A column that is a feature and a slice is wrong once, not twice.
            if joined.any() and column not in told:
                told.add(column)
                what = "hold the character U+001F, which separates the values of a list"
                entries += self._report(column, [Fault(joined, what, "remove it", "a list")], part, first_row)
            context[key] = examples.aligned(values, self._kinds.get(key, "string"))
        everything = Interactions(
            timestamp=times,
            # Files hold fewer rows than this.
            order=(part.file << 40) + first_row + np.arange(batch.num_rows, dtype=np.int64),
            item=items,
            weight=weights,
            split=codes,
            context=context,
        )
        return users[~bad], everything.take(~bad), entries


def _id(column: str) -> Column:
    return Column(name="", source=column)


_CODES = {name.encode(): code for code, name in enumerate(SPLITS)}


def holds_separator(values: Sequence[bytes]) -> bool:
    """Whether a value holds what joins the values of a list."""
    return any(VALUE_SEPARATOR.encode() in value for value in values)
