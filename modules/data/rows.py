"""A whole table as batches of rows, read one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa

from modules.data import columns, tables
from modules.data.columns import Fault
from modules.data.tables import Column
from modules.errors import UserError


def batches(
    table: str, path: str, wanted: Collection[Column | str], key: str | None = None
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """(file, batch) for every batch of a table.

    Args:
        table: interactions, items or users.
        path: Its file or files.
        wanted: The columns to read.
        key: What names the path in messages; by default the configuration's key.

    Raises:
        UserError: There is no file, one of them cannot be read, or a column is missing or holds what it cannot mean.
    """
    for number, file in enumerate(tables.files(table, path, key)):
        for part in tables.parts(number, file, key or f"tables.{table}.path"):
            for _, batch in tables.read(part, wanted):
                yield file, batch


def ids(batch: pa.RecordBatch, column: str) -> list[str | None]:
    """The ids in a column, None where there is none."""
    return [None if value is None else value.decode() for value in columns.ids(batch.column(column))]


def refuse(key: str, file: str, column: str, faults: Iterable[Fault]) -> None:
    """Refuses a batch with cells that are not what is read from their column.

    Args:
        key: What named the table, an argument of a command.
        file: Where the cells are.
        column: Whose they are.
        faults: What is wrong with them.

    Raises:
        UserError: There is a fault.
    """
    for fault in faults:
        raise UserError(
            f"{key}: {file}: {fault.rows.sum()} values of {column!r} {fault.what}, for instance {fault.example}: "
            f"{fault.fix}"
        )
