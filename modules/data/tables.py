"""The tables' files and columns: finding, checking and reading them. Imports neither TensorFlow nor (locally) Beam."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from modules.data.examples import WEIGHT
from modules.errors import UserError
from modules.features import (
    Feature,
    Features,
    History,
    Settings,
    Text,
    Timestamp,
    dtype,
    is_list,
    is_of_history,
)
from modules.settings import Evaluation, Serving, Slice
from modules.tables import ColumnSplit, Split, Tables

ACTIVITY = "activity"
"""The one slice that is not a column: the number of the user's interactions in the training period."""

_CSV = (".csv", ".csv.gz")
_PARQUET = (".parquet", ".pq")
_BATCH_ROWS = 65_536
_HASHED_BYTES = 2**30


class Column(Settings):
    """One column of a table, and what becomes of it in an example."""

    name: str
    """Key in the example."""
    source: str
    """Column of the table; differs from the key only where the tables name the item id differently."""
    kind: Literal["string", "float32", "int64"] = "string"
    multivalued: bool = False
    separator: str | None = None


class Wanted(Settings):
    """What the examples must hold: the part of the configuration that InteractionExampleGen depends on, and no more.

    It is the component's execution parameter, so that another embedding size or another floor does not run it again.
    """

    query: tuple[Column, ...]
    candidate: tuple[Column, ...]
    returned: tuple[str, ...]
    """Further columns of the items table, as strings in the catalogue split: shown beside answers, or filtered by."""
    history: str | None
    """Key of the history; None when no feature reads it."""
    history_age: str | None
    """Key of its age; None when no feature reads it."""
    evaluation_history: Literal["train", "rolling"]
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Plan:
    """Which columns to take from which table, after a look at the tables' headers."""

    interactions: tuple[Column, ...]
    """Query features of an interaction itself (its context), the timestamp excluded."""
    users: tuple[Column, ...]
    items: tuple[Column, ...]
    """Candidate features, the item id first."""
    returned: tuple[Column, ...]
    interaction_slices: tuple[Slice, ...]
    user_slices: tuple[Slice, ...]
    activity_slices: tuple[Slice, ...]


def wanted(tables: Tables, features: Features, evaluation: Evaluation, serving: Serving) -> Wanted:
    """Reduces a configuration to what decides the examples."""
    history = features.history
    returned = [*serving.return_columns, *serving.filter_columns, *([tables.items.title] if tables.items.title else [])]
    return Wanted(
        query=tuple(_column(f) for f in features.query if not is_of_history(f)),
        candidate=tuple(_column(f) for f in features.candidate),
        returned=tuple(dict.fromkeys(returned)),
        history=history.column if history else None,
        history_age=features.history_age.column if features.history_age else None,
        evaluation_history=evaluation.history,
        slices=evaluation.slices,
    )


def check_tables(tables: Tables, split: Split, features: Features, evaluation: Evaluation, serving: Serving) -> Plan:
    """Finds, from headers alone, what would stop InteractionExampleGen: cheap enough to call before a pipeline starts.

    Raises:
        UserError: A file or column is missing, a format is unknown, or a column could be meant twice.
    """
    planned = plan(tables, split, wanted(tables, features, evaluation, serving))
    size = _rows("items", tables.items.path)
    if size is not None and serving.k > size:
        raise UserError(f"serving.k is {serving.k} but the catalogue has {size} items; set it to {size} or less")
    return planned


def plan(tables: Tables, split: Split, wanted: Wanted) -> Plan:
    """Decides which table gives which column.

    Raises:
        UserError: As `check_tables`.
    """
    interactions, items = tables.interactions, tables.items
    schemas = {"interactions": _schema("interactions", interactions.path), "items": _schema("items", items.path)}
    if tables.users is not None:
        schemas["users"] = _schema("users", tables.users.path)
        _need(schemas["users"], "tables.users.id", tables.users.id)
    _need(schemas["interactions"], "tables.interactions.user", interactions.user)
    _need(schemas["interactions"], "tables.interactions.item", interactions.item)
    _need(schemas["interactions"], "tables.interactions.timestamp", interactions.timestamp)
    _need(schemas["items"], "tables.items.id", items.id)
    if interactions.weight is not None:
        _need(schemas["interactions"], "tables.interactions.weight", interactions.weight)
    if isinstance(split, ColumnSplit):
        _need(schemas["interactions"], "split.column", split.column)
    _check_type(schemas["interactions"], Column(name="", source=interactions.timestamp, kind="int64"))

    keys = {interactions.user: "users", interactions.item: "items", interactions.timestamp: "interactions"}
    query: dict[str, list[Column]] = {"interactions": [], "users": []}
    for column in wanted.query:
        if column.name == interactions.item:
            raise UserError(
                f"features.query: {column.name!r} is the item to be predicted; only the candidate tower may read it"
            )
        table = "interactions" if column.name in keys else _table_of("features.query", column.name, schemas)
        _check_type(schemas[table], column)
        # The user's id and the time are written in any case, by themselves.
        if column.name not in keys:
            query[table].append(column)

    own = {interactions.user, interactions.timestamp, wanted.history, wanted.history_age, WEIGHT}
    taken = own.union(c.name for c in wanted.query)
    item_columns = [Column(name=interactions.item, source=items.id)]
    for column in wanted.candidate:
        if column.name != interactions.item:
            _need(schemas["items"], "features.candidate", column.name)
            _check_type(schemas["items"], column)
            _refuse_twice("features.candidate", column.name, taken)
            item_columns.append(column)
    returned = []
    for name in wanted.returned:
        if name not in {c.name for c in item_columns}:
            _need(schemas["items"], "serving.return_columns, filter_columns or tables.items.title", name)
            _refuse_twice("serving.return_columns, filter_columns or tables.items.title", name, taken)
            returned.append(Column(name=name, source=name, multivalued=True))

    slices: dict[str, list[Slice]] = {"interactions": [], "users": [], ACTIVITY: []}
    for s in wanted.slices:
        if s.column == ACTIVITY:
            slices[ACTIVITY].append(s)
            continue
        table = "interactions" if s.column in keys else _table_of("evaluation.slices", s.column, schemas)
        kind: Literal["string", "float32"] = "string" if s.boundaries is None else "float32"
        _check_type(schemas[table], Column(name=s.column, source=s.column, kind=kind, multivalued=True))
        slices[table].append(s)
    return Plan(
        interactions=tuple(query["interactions"]),
        users=tuple(query["users"]),
        items=tuple(item_columns),
        returned=tuple(returned),
        interaction_slices=tuple(slices["interactions"]),
        user_slices=tuple(slices["users"]),
        activity_slices=tuple(slices[ACTIVITY]),
    )


def _rows(table: str, path: str) -> int | None:
    """Number of a table's rows where the files' footers say it: None for CSV."""
    found = files(table, path)
    if not all(file.lower().endswith(_PARQUET) for file in found):
        return None
    total = 0
    for file in found:
        with open_file(file) as stream:
            total += pq.read_metadata(stream).num_rows
    return total


def fingerprint(tables: Tables) -> str:
    """Hash of the tables' content: changes when a file's bytes do.

    Local files above 1 GiB count by name, size and time of change, remote ones by what their file system says of them.

    Raises:
        UserError: A path matches nothing.
    """
    digest = hashlib.sha256()
    paths = {"interactions": tables.interactions.path, "items": tables.items.path}
    if tables.users is not None:
        paths["users"] = tables.users.path
    for table, path in paths.items():
        for file in files(table, path):
            digest.update(f"{table}\0{os.path.basename(file)}\0{_content(file)}\0".encode())
    return digest.hexdigest()


def files(table: str, path: str) -> list[str]:
    """The files of a table, in the order of their names.

    Raises:
        UserError: There are none, or one is of an unknown format.
    """
    key = f"tables.{table}.path"
    if _is_remote(path):
        found = [metadata.path for metadata in _match(path)]
    elif os.path.isdir(path):
        raise UserError(f"{key}: {path} is a folder; name its files, for instance {os.path.join(path, '*.parquet')}")
    else:
        found = [path] if os.path.exists(path) else [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
    if not found:
        raise UserError(f"{key}: there is no file {path}; correct the path or put the table there")
    for file in found:
        if not file.lower().endswith((*_CSV, *_PARQUET)):
            raise UserError(
                f"{key}: {file} is neither Parquet nor CSV; name files that end in .parquet, .csv or .csv.gz"
            )
    return sorted(found)


class MissingColumnError(Exception):
    """A file of a table lacks a column, which is its message."""


@dataclass(frozen=True)
class Part:
    """A piece of a table that one worker reads: a row group of a Parquet file, or a CSV file."""

    file: int
    """Position of the file among the table's files."""
    path: str
    row_group: int | None
    first_row: int


def parts(file: int, path: str) -> Iterator[Part]:
    """Splits a file into what can be read side by side."""
    if path.lower().endswith(_CSV):
        yield Part(file, path, None, 0)
        return
    with open_file(path) as stream, pq.ParquetFile(stream) as parquet:
        first = 0
        for group in range(parquet.metadata.num_row_groups):
            yield Part(file, path, group, first)
            first += parquet.metadata.row_group(group).num_rows


def read(part: Part, columns: Collection[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields batches of rows with the position of their first row in the file.

    CSV cells come as strings, so that an id like `007` stays what it is; an empty cell is null.

    Raises:
        pa.ArrowException, OSError: The file is torn or is not what its name says.
        MissingColumnError: The file lacks a column.
    """
    names = list(dict.fromkeys(columns))
    with open_file(part.path) as stream:
        if part.row_group is not None:
            with pq.ParquetFile(stream) as parquet:
                _present(names, parquet.schema_arrow.names)
                batches: Iterable[pa.RecordBatch] = parquet.iter_batches(
                    _BATCH_ROWS, row_groups=[part.row_group], columns=names
                )
                yield from _numbered(part.first_row, batches)
        else:
            _present(names, _csv_header(part.path))
            options = pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=names,
                null_values=[""],
                strings_can_be_null=True,
            )
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            yield from _numbered(0, pa.csv.open_csv(stream, parse_options=parsing, convert_options=options))


def open_file(path: str) -> IO[bytes]:
    """Opens a local or remote file, decompressed if it is a .gz."""
    stream: IO[bytes]
    if _is_remote(path):
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        stream = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    else:
        stream = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    return pa.CompressedInputStream(stream, "gzip") if path.lower().endswith(".gz") else stream


def _column(feature: Feature) -> Column:
    separator = None if isinstance(feature, (Text, Timestamp, History)) else getattr(feature, "separator", None)
    return Column(
        name=feature.column,
        source=feature.column,
        kind=dtype(feature),
        multivalued=is_list(feature),
        separator=separator,
    )


@dataclass(frozen=True)
class _Schema:
    table: str
    path: str
    """The file that was looked at."""
    columns: pa.Schema


def _schema(table: str, path: str) -> _Schema:
    """Columns of a table's first file; CSV columns are strings."""
    file = files(table, path)[0]
    try:
        if file.lower().endswith(_CSV):
            columns = pa.schema([(name, pa.string()) for name in _csv_header(file)])
        else:
            with open_file(file) as stream:
                columns = pq.read_schema(stream)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"tables.{table}.path: {file} cannot be read ({' '.join(str(error).split())}); is it torn?"
        ) from None
    return _Schema(table, file, columns)


def _csv_header(path: str) -> list[str]:
    with open_file(path) as stream:
        # A whole first record, which a quoted line break may spread over several lines; -sig drops a byte order mark.
        return next(csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline="")), [])


def _need(schema: _Schema, key: str, column: str) -> None:
    count = schema.columns.names.count(column)
    if count == 0:
        raise UserError(
            f"{key}: {schema.table} ({schema.path}) has no column {column!r}; it has {_names(schema.columns.names)}"
        )
    if count > 1:
        raise UserError(f"{key}: {schema.table} ({schema.path}) has {count} columns {column!r}; rename all but one")


def _table_of(key: str, column: str, schemas: dict[str, _Schema]) -> str:
    """interactions or users, whichever has the column."""
    looked = [schemas[table] for table in ("interactions", "users") if table in schemas]
    found = [schema for schema in looked if column in schema.columns.names]
    if not found:
        places = "; ".join(f"{schema.table} has {_names(schema.columns.names)}" for schema in looked)
        raise UserError(f"{key}: no table has a column {column!r} ({places}); correct the name or add the column")
    if len(found) > 1:
        raise UserError(f"{key}: both interactions and users have a column {column!r}; rename one of them")
    _need(found[0], key, column)
    return found[0].table


def _refuse_twice(key: str, column: str, taken: Collection[str | None]) -> None:
    if column in taken:
        raise UserError(
            f"{key}: an example has {column!r} already, of the query side; rename that column of the items table"
        )


def _check_type(schema: _Schema, column: Column) -> None:
    """Refuses column types that cannot become what the feature reads."""
    kind = schema.columns.field(column.source).type
    where = f"{schema.table} ({schema.path}): column {column.source!r} is of type {kind}"
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if listed and column.kind == "string":
        if not column.multivalued:
            raise UserError(f"{where}; describe it as a vocabulary or hash feature with multivalued: true")
        return
    if listed or pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_union(kind):
        raise UserError(f"{where}, which does not become {_KIND_WORDS[column.kind]}; write it as such into the table")
    if column.kind == "float32" and pa.types.is_temporal(kind):
        raise UserError(f"{where}, which is not a number; describe it with the timestamp encoding")


_KIND_WORDS = {"string": "a category or text", "float32": "a number", "int64": "a time"}


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no columns at all"


def _present(names: Collection[str], there: Collection[str]) -> None:
    for name in names:
        if name not in there:
            raise MissingColumnError(name)


def _numbered(first: int, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in batches:
        yield first, batch
        first += batch.num_rows


def _is_remote(path: str) -> bool:
    return "://" in path


def _match(path: str) -> list[Any]:
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    try:
        return list(FileSystems.match([path])[0].metadata_list)
    except (BeamIOError, ValueError) as error:
        raise UserError(
            f"{path} cannot be looked up ({' '.join(str(error).split())}); correct it, or sign in"
        ) from None


def _content(path: str) -> str:
    if _is_remote(path):
        metadata = _match(path)[0]
        return f"{metadata.size_in_bytes} {metadata.last_updated_in_seconds}"
    status = os.stat(path)
    if status.st_size > _HASHED_BYTES:
        return f"{status.st_size} {status.st_mtime_ns}"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
