"""The tables on Beam: their pieces spread over the workers, and the base of what reads them there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from modules.data import tables
from modules.data.tables import Column, Part
from modules.errors import UserError


class Parts(beam.PTransform):
    """The pieces of a table, spread over the workers.

    Args:
        table: interactions, items or users.
        path: Its file or files.

    Raises:
        UserError: There is no file, or one is of an unknown format.
    """

    def __init__(self, table: str, path: str) -> None:
        super().__init__()
        key = f"tables.{table}.path"
        self._files = [(number, file, key) for number, file in enumerate(tables.files(table, path))]

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        return pipeline | beam.Create(self._files) | beam.FlatMapTuple(parts) | beam.Reshuffle()


def parts(file: int, path: str, key: str) -> Iterator[Part]:
    """The pieces of one file; of one that cannot be read a single piece, which says so to whoever reads it.

    Args:
        file: Its number in the table.
        path: Where it is.
        key: What named the path, for messages.
    """
    try:
        yield from tables.parts(file, path, key)
    except UserError:
        yield Part(file, path, 0, 0, key)


class Read(beam.DoFn):
    """Base of what reads the pieces of a table: a file that cannot be read becomes an output, not a stack trace."""

    columns: Sequence[Column | str]

    def process(self, part: Part) -> Iterator[Any]:
        try:
            for first_row, batch in tables.read(part, self.columns):
                yield from self.rows(part, first_row, batch)
        except tables.TableError as error:
            # Raised, it would come out of Beam with the traces of every step on its way.
            yield self.unreadable(error)

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        """What a batch becomes; `first_row` is the position of its first row in the file."""
        raise NotImplementedError

    def unreadable(self, error: tables.TableError) -> Any:
        """What the error becomes."""
        raise NotImplementedError
