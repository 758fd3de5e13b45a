"""A whole table as batches of rows, read one after the other; what is wrong with a file is said in one line."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence

import pyarrow as pa

from modules.data import columns, tables
from modules.errors import UserError


def batches(table: str, path: str, names: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """(file, batch) for every batch of a table.

    Args:
        table: interactions, items or users.
        path: Its file or files.
        names: The columns to read.

    Raises:
        UserError: There is no file, one of them cannot be read, or lacks a column.
    """
    for number, file in enumerate(tables.files(table, path)):
        with _in_words(table, file):
            for part in tables.parts(number, file):
                for _, batch in tables.read(part, names):
                    yield file, batch


def ids(batch: pa.RecordBatch, column: str, file: str) -> list[str | None]:
    """The ids in a column, None where there is none.

    Raises:
        UserError: One is not UTF-8.
    """
    found = columns.ids(batch.column(column))
    try:
        return [None if value is None else value.decode() for value in found]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: {error.object!r} in column {column!r} is not UTF-8; write ids as text") from None


@contextlib.contextmanager
def _in_words(table: str, file: str) -> Iterator[None]:
    try:
        yield
    except tables.MissingColumnError as error:
        raise UserError(f"{file}: has no column {str(error)!r}, which is read from {table}") from None
    except (OSError, pa.ArrowException, UnicodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]}); is it torn?") from None
