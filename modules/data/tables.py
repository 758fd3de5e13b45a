"""The tables' files and columns: finding, checking and reading them. Imports neither TensorFlow nor (locally) Beam.

Whatever is wrong with a file is one `UserError`, raised where the file is met: by `check_tables` before anything runs,
or by `read` in a worker. What `read` yields can be converted (`columns`) without a further look: every column is there
once, of a type that becomes what is read from it, its texts are UTF-8 and its dates exist.

One file, and a long one, because what is checked before a run and what is read in it must stay the same.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from modules.data.examples import WEIGHT
from modules.encodings.base import Encoding
from modules.encodings.features import Features
from modules.encodings.history import History
from modules.encodings.text import Text
from modules.encodings.timestamp import Timestamp
from modules.errors import Mistakes, UserError
from modules.nearest import meant
from modules.settings import ColumnSplit, Evaluation, Items, Serving, Slice, Split, Tables
from modules.settings.base import Settings

ACTIVITY = "activity"
"""The one slice that is not a column: the number of the user's interactions in the training period."""

_CSV = (".csv", ".csv.gz")
_PARQUET = (".parquet", ".pq")
_BATCH_ROWS = 65_536
_HASHED_BYTES = 2**30
_HEADER_BYTES = 2**20
CELL_BYTES = 2**20
"""A text above this is a mistake, most often a quote in a CSV file that is never closed."""
# A row of CSV must fit into two blocks.
_BLOCK_BYTES = 4 * CELL_BYTES
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999, in seconds since 1970: what is outside is no time in seconds."""
_SHOWN = 80


class Column(Settings):
    """One column of a table, and what becomes of it in an example."""

    name: str
    """Key in the example."""
    source: str
    """Column of the table; differs from the key only where the tables name the item id differently."""
    kind: Literal["string", "float32", "int64"] = "string"
    multivalued: bool = False
    separator: str | None = None

    @classmethod
    def any(cls, source: str) -> Column:
        """A column of strings or of lists of strings, for readers who do not say what they want of it."""
        return cls(name=source, source=source, multivalued=True)

    @classmethod
    def of_slice(cls, by: Slice) -> Column:
        """What a slice is read as: a number when it has boundaries, else one or several categories."""
        return cls(name=by.column, source=by.column, kind="string" if by.boundaries is None else "float32",
                   multivalued=True)  # fmt: skip


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
        query=tuple(column_of(f) for f in features.query if not f.of_history),
        candidate=tuple(column_of(f) for f in features.candidate),
        returned=tuple(dict.fromkeys(returned)),
        history=history.column if history else None,
        history_age=features.history_age.column if features.history_age else None,
        evaluation_history=evaluation.history,
        slices=evaluation.slices,
    )


def check_tables(tables: Tables, split: Split, features: Features, evaluation: Evaluation, serving: Serving) -> Plan:
    """Finds what would stop the pipeline, from headers and from the number of items alone: before it starts.

    Raises:
        UserErrors: A file or column is missing or unreadable, a format is unknown, a column could be meant twice, or an
            answer would be longer than the catalogue.
    """
    mistakes = Mistakes()
    planned = None
    with mistakes.collected():
        planned = plan(tables, split, wanted(tables, features, evaluation, serving))
    with mistakes.collected():
        _check_lengths(tables, evaluation, serving)
    mistakes.raise_found()
    assert planned is not None
    return planned


def _check_lengths(tables: Tables, evaluation: Evaluation, serving: Serving) -> None:
    """Refuses answers that would be longer than the catalogue."""
    size = _rows("items", tables.items)
    if not size:
        raise UserError(f"tables.items: {tables.items.path} has no rows; it must list the catalogue")
    asked = {"serving.k": serving.k, "evaluation.k": max(evaluation.k)}
    too_large = [f"{key} is {k}" for key, k in asked.items() if k > size]
    if too_large:
        raise UserError(
            f"{' and '.join(too_large)} but the catalogue has {size} items ({tables.items.path}); "
            f"set {'both' if len(too_large) > 1 else 'it'} to {size} or less"
        )


def plan(tables: Tables, split: Split, wanted: Wanted, items_key: str = "tables.items.path") -> Plan:
    """Decides which table gives which column.

    Args:
        tables: Where the tables are.
        split: Of which a column may be read.
        wanted: What the examples must hold.
        items_key: What named the items table's path, for messages: a key of the configuration or an argument.

    Raises:
        UserErrors: A file or column is missing or unreadable, a format is unknown, or a column could be meant twice.
    """
    interactions, items = tables.interactions, tables.items
    mistakes = Mistakes()
    schemas: dict[str, _Schema] = {}
    paths = {"interactions": (interactions.path, None), "items": (items.path, items_key)}
    if tables.users is not None:
        paths["users"] = (tables.users.path, None)
    for table, (path, named) in paths.items():
        with mistakes.collected():
            schemas[table] = _schema(table, path, named)
    # Without one of them nobody knows which columns are missing.
    mistakes.raise_found()

    def need(table: str, key: str, column: Column) -> None:
        with mistakes.collected():
            _need(schemas[table], key, column)

    if tables.users is not None:
        need("users", "tables.users.id", Column(name="", source=tables.users.id))
    need("interactions", "tables.interactions.user", Column(name="", source=interactions.user))
    need("interactions", "tables.interactions.item", Column(name="", source=interactions.item))
    time = Column(name="", source=interactions.timestamp, kind="int64")
    need("interactions", "tables.interactions.timestamp", time)
    need("items", "tables.items.id", Column(name="", source=items.id))
    if interactions.weight is not None:
        need("interactions", "tables.interactions.weight", Column(name="", source=interactions.weight, kind="float32"))
    if isinstance(split, ColumnSplit):
        need("interactions", "split.column", Column(name="", source=split.column))

    keys = {interactions.user: "users", interactions.item: "items", interactions.timestamp: "interactions"}
    query: dict[str, list[Column]] = {"interactions": [], "users": []}
    for column in wanted.query:
        with mistakes.collected():
            if column.name == interactions.item:
                raise UserError(
                    f"features.query: {column.name!r} is the item to be predicted; only the candidate tower may read it"
                )
            table = "interactions" if column.name in keys else _table_of("features.query", column.name, schemas)
            _need(schemas[table], "features.query", column)
            # The user's id and the time are written in any case, by themselves.
            if column.name not in keys:
                query[table].append(column)

    own = {interactions.user, interactions.timestamp, wanted.history, wanted.history_age, WEIGHT}
    taken = own.union(c.name for c in wanted.query)
    item_columns = [Column(name=interactions.item, source=items.id)]
    for column in wanted.candidate:
        if column.name != interactions.item:
            with mistakes.collected():
                _need(schemas["items"], "features.candidate", column)
                _refuse_twice("features.candidate", column.name, taken)
                item_columns.append(column)
    returned = []
    for name in wanted.returned:
        if name not in {c.name for c in item_columns}:
            with mistakes.collected():
                key = "serving.return_columns, filter_columns or tables.items.title"
                _need(schemas["items"], key, Column.any(name))
                _refuse_twice(key, name, taken)
                returned.append(Column.any(name))

    slices: dict[str, list[Slice]] = {"interactions": [], "users": [], ACTIVITY: []}
    for s in wanted.slices:
        if s.column == ACTIVITY:
            slices[ACTIVITY].append(s)
            continue
        with mistakes.collected():
            table = "interactions" if s.column in keys else _table_of("evaluation.slices", s.column, schemas)
            _need(schemas[table], "evaluation.slices", Column.of_slice(s))
            slices[table].append(s)
    mistakes.raise_found()
    return Plan(
        interactions=tuple(query["interactions"]),
        users=tuple(query["users"]),
        items=tuple(item_columns),
        returned=tuple(returned),
        interaction_slices=tuple(slices["interactions"]),
        user_slices=tuple(slices["users"]),
        activity_slices=tuple(slices[ACTIVITY]),
    )


def _rows(table: str, items: Items) -> int:
    """Number of a table's rows: Parquet files say it in their footers, the ids of CSV files are counted."""
    total = 0
    for number, file in enumerate(files(table, items.path)):
        if file.lower().endswith(_PARQUET):
            with _reading(file, f"tables.{table}.path"), open_file(file) as stream:
                total += pq.read_metadata(stream).num_rows
        else:
            for part in parts(number, file, f"tables.{table}.path"):
                total += sum(batch.num_rows for _, batch in read(part, [items.id]))
    return total


def fingerprint(tables: Tables) -> str:
    """Hash of the tables' content: changes when a file's bytes do.

    Local files above 1 GiB count by name, size and time of change, remote ones by what their file system says of them.

    Raises:
        UserError: A path matches nothing, or a file cannot be read.
    """
    digest = hashlib.sha256()
    paths = {"interactions": tables.interactions.path, "items": tables.items.path}
    if tables.users is not None:
        paths["users"] = tables.users.path
    for table, path in paths.items():
        for file in files(table, path):
            with _reading(file, f"tables.{table}.path"):
                content = _content(file)
            digest.update(f"{table}\0{os.path.basename(file)}\0{content}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def files(table: str, path: str, key: str | None = None) -> list[str]:
    """The files of a table, in the order of their names.

    Args:
        table: interactions, items or users.
        path: A file or a glob.
        key: What named the path, for messages; by default the configuration's key.

    Raises:
        UserError: There are none, or one is of an unknown format.
    """
    key = key or f"tables.{table}.path"
    if _is_remote(path):
        paths = [metadata.path for metadata in _match(path)]
    elif os.path.isdir(path):
        raise UserError(f"{key}: {path} is a folder; name its files, for instance {os.path.join(path, '*.parquet')}")
    else:
        paths = [path] if os.path.exists(path) else [f for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
    if not paths:
        raise UserError(f"{key}: there is no file {path}; correct the path or put the table there")
    for file in paths:
        if not file.lower().endswith((*_CSV, *_PARQUET)):
            raise UserError(
                f"{key}: {file} is neither Parquet nor CSV; name files that end in .parquet, .csv or .csv.gz"
            )
    return sorted(paths)


def total_bytes(table: str, path: str) -> int:
    """Bytes of a table's files, as they are stored.

    Raises:
        UserError: As `files`.
    """
    return sum(_bytes(file) for file in files(table, path))


class TableError(UserError):
    """A file of a table that cannot be read as what it should be.

    Args:
        file: The file.
        reason: What is wrong with it; follows "cannot be read".
        fix: What to do.
        key: What named the file, a key of the configuration or an argument; "" when nobody says.
    """

    def __init__(self, file: str, reason: str, fix: str, key: str = "") -> None:
        super().__init__(f"{key}: " * bool(key) + f"{file} cannot be read: {reason}; {fix}")
        self.file, self.reason, self.fix, self.key = file, reason, fix, key


@dataclass(frozen=True)
class Part:
    """A piece of a table that one worker reads: a row group of a Parquet file, or a CSV file."""

    file: int
    """Position of the file among the table's files."""
    path: str
    row_group: int | None
    first_row: int
    key: str = ""
    """What named the file, for messages."""


def parts(file: int, path: str, key: str = "") -> Iterator[Part]:
    """Splits a file into what can be read side by side.

    Raises:
        TableError: The file is torn or is not what its name says.
    """
    if path.lower().endswith(_CSV):
        yield Part(file, path, None, 0, key)
        return
    with _reading(path, key), open_file(path) as stream, pq.ParquetFile(stream) as parquet:
        rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
    for group, first in enumerate(np.cumsum([0, *rows[:-1]]).tolist() if rows else []):
        yield Part(file, path, group, first, key)


def read(part: Part, columns: Collection[Column | str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields batches of rows with the position of their first row in the file.

    CSV cells come as strings, so that an id like `007` stays what it is; an empty cell is null.

    Args:
        part: What to read.
        columns: What to read of it. A mere name stands for `Column.any`.

    Raises:
        TableError: The file is torn or is not what its name says, a column is not there once, has a type that does not
            become what is wanted of it, or holds a cell that nothing can be made of.
    """
    wanted = [Column.any(column) if isinstance(column, str) else column for column in columns]
    names = list(dict.fromkeys(column.source for column in wanted))
    with _reading(part.path, part.key), open_file(part.path) as stream:
        if part.row_group is not None:
            # Where a page has a checksum, a flipped bit that still makes numbers is found.
            with pq.ParquetFile(stream, page_checksum_verification=True) as parquet:
                _check_columns(part, parquet.schema_arrow, wanted)
                batches: Iterable[pa.RecordBatch] = parquet.iter_batches(
                    _BATCH_ROWS, row_groups=[part.row_group], columns=names
                )
                yield from _checked(part, names, batches)
        else:
            header = _csv_header(part.path)
            _check_columns(part, pa.schema([(name, pa.string()) for name in header]), wanted)
            yield from _checked(part, names, _csv_batches(part, stream, header, names))


def _csv_batches(
    part: Part, stream: IO[bytes], header: Sequence[str], names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    read = list(dict.fromkeys([*names, header[-1]]))
    options = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in read},
        include_columns=read,
        null_values=[""],
        strings_can_be_null=True,
        # `_checked` says in which row and column a text is not UTF-8.
        check_utf8=False,
    )
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    source = _Lines(stream)
    cell = b""
    for batch in pa.csv.open_csv(source, pa.csv.ReadOptions(block_size=_BLOCK_BYTES), parsing, options):
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)
        if batch.num_rows:
            cell = batch.columns[read.index(header[-1])].cast(pa.binary())[-1].as_py() or b""
    # Arrow lets a quoted cell end with the file, and all rows in it are lost. A closed one is the file's last bytes.
    closed = cell[-16:].replace(b'"', b'""') + b'"'
    if b"\n" in cell and not source.tail.rstrip(b"\r\n").endswith(closed):
        reason = f"its last cell is {shown(cell)}, with a quote that is not closed"
        raise TableError(part.path, reason, "close the quote", part.key)


class _Lines:
    """A stream of bytes that ends its last line if nobody did, and remembers the last bytes."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tail = b""

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = self._stream.read(size - len(data))
            self.tail = (self.tail + more[-64:])[-64:]
            if not more:
                if not self.tail.endswith((b"\n", b"\r")):
                    data += b"\n"
                    self.tail += b"\n"
                break
            data += more
        return bytes(data)


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


def column_of(feature: Encoding) -> Column:
    """The column of a table that a feature reads."""
    separator = None if isinstance(feature, (Text, Timestamp, History)) else getattr(feature, "separator", None)
    return Column(
        name=feature.column,
        source=feature.column,
        kind=feature.dtype,
        multivalued=feature.is_list,
        separator=separator,
    )


@dataclass(frozen=True)
class _Schema:
    table: str
    path: str
    """The file that was looked at."""
    columns: pa.Schema


def readable(table: str, path: str, key: str) -> tuple[pa.Schema, dict[str, str]]:
    """The columns of a table's first file that can be read as texts or lists of texts; and why the others cannot.

    Args:
        table: interactions, items or users.
        path: A file or a glob.
        key: What named the path, for messages.

    Raises:
        UserError: There is no file, or it cannot be read.
    """
    known = _schema(table, path, key).columns
    fields, refused = [], {}
    for field in known:
        wrong = _type_problem(field.type, Column.any(field.name)) if field.name else ("it has no name", "give it one")
        if known.names.count(field.name) > 1:
            wrong = (f"there are {known.names.count(field.name)} columns {field.name!r}", "rename all but one")
        if wrong is None:
            fields.append(field)
        else:
            refused[field.name] = "; ".join(wrong)
    return pa.schema(fields), refused


def _schema(table: str, path: str, key: str | None = None) -> _Schema:
    """Columns of a table's first file; CSV columns are strings."""
    key = key or f"tables.{table}.path"
    file = files(table, path, key)[0]
    with _reading(file, key):
        if file.lower().endswith(_CSV):
            return _Schema(table, file, pa.schema([(name, pa.string()) for name in _csv_header(file)]))
        with open_file(file) as stream:
            columns = pq.read_schema(stream)
            # Names are decoded only when they are asked for.
            return _Schema(table, file, pa.schema(list(columns)))


def _csv_header(path: str) -> list[str]:
    """The first record that is not an empty line; a quoted line break may spread it over several lines."""
    with open_file(path) as stream:
        beginning = stream.read(_HEADER_BYTES)
    # -sig drops a byte order mark. The rows that follow are not looked at: `read` says which of their cells is no text.
    text = beginning.decode("utf-8-sig", "surrogateescape")
    # Not strict, a quote that is not closed would make the rest of the file a name.
    names = next(filter(None, csv.reader(io.StringIO(text, newline=""), strict=True)), [])
    for name in names:
        name.encode()
        if "\0" in name:
            raise UnicodeError
    return names


def _need(schema: _Schema, key: str, column: Column) -> None:
    """Refuses a column that is not there once, or of a type that does not become what is read from it."""
    where = f"{schema.table} ({schema.path})"
    count = schema.columns.names.count(column.source)
    if count == 0:
        names = schema.columns.names
        hint = meant(column.source, names)
        raise UserError(f"{key}: {where} has no column {column.source!r}; it has {_names(names)}{hint}")
    if count > 1:
        raise UserError(f"{key}: {where} has {count} columns {column.source!r}; rename all but one")
    refused = _type_problem(schema.columns.field(column.source).type, column)
    if refused is not None:
        raise UserError(f"{key}: {where}: {'; '.join(refused)}")


def _check_columns(part: Part, schema: pa.Schema, columns: Iterable[Column]) -> None:
    """As `_need`, for a file that is being read."""
    for column in columns:
        count = schema.names.count(column.source)
        if count != 1:
            raise TableError(
                part.path,
                f"it has {count or 'no'} column{'s' * (count > 1)} {column.source!r}",
                "write all files of a table with the same columns, each once",
                part.key,
            )
        refused = _type_problem(schema.field(column.source).type, column)
        if refused is not None:
            raise TableError(part.path, *refused, part.key)


def _type_problem(kind: pa.DataType, column: Column) -> tuple[str, str] | None:
    """What keeps cells of a type from becoming what is read from them, and the fix; None when nothing does."""
    what = f"column {column.source!r} is of type {kind}"
    kind = stored(kind)
    if is_listed(kind):
        if column.kind == "string" and not column.multivalued:
            return what, "describe it as a vocabulary or hash feature with multivalued: true"
        # A list is read as strings only.
        kind = stored(kind.value_type) if column.kind == "string" else kind
    time = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    text = is_text(kind) or pa.types.is_null(kind)
    words = text or number or pa.types.is_boolean(kind)
    known = {
        "string": words or time or pa.types.is_time(kind),
        "float32": words,
        # A boolean or the time of a day is no moment.
        "int64": text or number or time,
    }[column.kind]
    if column.kind == "float32" and time:
        return f"{what}, which is not a number", "describe it with the timestamp encoding"
    if not known:
        into = {"string": "a category or text", "float32": "a number", "int64": "a time"}[column.kind]
        return f"{what}, which does not become {into}", "write it as such into the table"
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            pa.lib.string_to_tzinfo(kind.tz)
        except (ValueError, KeyError):
            return what, "write it with a time zone that exists"
    return None


def stored(kind: pa.DataType) -> pa.DataType:
    """The type of the values behind dictionaries and extension types."""
    while pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def plain(column: pa.Array) -> pa.Array:
    """The values behind dictionaries and extension types."""
    while stored(column.type) != column.type:
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column.storage
    return column


def is_listed(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether cells are bytes, which must be UTF-8."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _checked(
    part: Part, names: Sequence[str], batches: Iterable[pa.RecordBatch]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Numbers the rows of batches, and refuses the first cell of which nothing can be made."""
    first = part.first_row
    for batch in batches:
        for name in names:
            refused = _bad_cell(batch.column(name))
            if refused is not None:
                row, reason, fix = refused
                where = f"row {first + row + 1} has in column {name!r}"
                raise TableError(part.path, f"{where} {reason}", fix, part.key)
        yield first, batch
        first += batch.num_rows


def _bad_cell(column: pa.Array) -> tuple[int, str, str] | None:
    """The first cell that no reader can take: its row, what it is, and the fix."""
    column = plain(column)
    if is_listed(column.type):
        refused = _bad_cell(column.flatten())
        if refused is None:
            return None
        at, reason, fix = refused
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        return int(np.searchsorted(np.cumsum(lengths), at, side="right")), reason, fix
    if is_text(column.type):
        cells = column.cast(pa.large_binary())
        try:
            texts = cells.cast(pa.large_string())
        except pa.ArrowInvalid:
            at = next(row for row, cell in enumerate(cells.to_pylist()) if not _is_utf8(cell))
            return at, f"{shown(cells[at].as_py())}, which is not text in UTF-8", "save it as UTF-8"
        large = pc.greater(pc.binary_length(cells), CELL_BYTES)
        if pc.any(large).as_py():
            at = pc.index(large, True).as_py()
            reason = f"a text of {len(cells[at].as_py()) / 2**20:.1f} MB, above {CELL_BYTES // 2**20} MB"
            return at, f"{reason} ({shown(texts[at].as_py())})", "shorten it, or close the quote that makes it so long"
        marked = pc.starts_with(texts, "\ufeff")
        if pc.any(marked).as_py():
            at = pc.index(marked, True).as_py()
            reason = f"{shown(texts[at].as_py())}, which begins with an invisible byte order mark"
            return at, reason, "remove the mark; it comes from files that were put together"
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        seconds, missing = whole_seconds(column)
        outside = ~missing & ((seconds < FIRST_SECOND) | (seconds > LAST_SECOND))
        if outside.any():
            at = int(np.argmax(outside))
            return at, f"a time outside of the years 1 to 9999 ({seconds[at]} seconds since 1970)", "correct it"
    return None


def whole_seconds(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """A timestamp or date column as seconds since 1970 in UTC, int64 [N], and where it is null, bool [N].

    Arrow stores zoned times in UTC. Fractions go downwards, before 1970 too.
    """
    kind = column.type
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_date32(kind):
        return column.cast(pa.int32()).fill_null(0).to_numpy().astype(np.int64) * 86_400, missing
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    return np.floor_divide(column.cast(pa.int64()).fill_null(0).to_numpy(), per_second), missing


def _is_utf8(cell: bytes | None) -> bool:
    try:
        return cell is None or cell.decode() is not None
    except UnicodeDecodeError:
        return False


def shown(value: object) -> str:
    """A value in a message: quoted, without control characters, and not longer than a line."""
    text = repr(value[: 2 * _SHOWN] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@contextlib.contextmanager
def _reading(file: str, key: str) -> Iterator[None]:
    """Turns whatever a file makes a library raise into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, csv.Error) as error:
        raise TableError(file, *_why(error), key) from None


def _why(error: Exception) -> tuple[str, str]:
    """An error of a library in words, and the fix."""
    words = " ".join(str(error).split())
    if isinstance(error, UnicodeError):
        return "it is not text in UTF-8", "save it as UTF-8, or give it the ending of its format"
    if isinstance(error, csv.Error):
        return f"its first line has a name that is too long or a quote that is not closed ({words})", "correct it"
    if "straddl" in words:
        return f"a row is longer than {_BLOCK_BYTES // 2**20} MB", "shorten it, or look for a quote that is not closed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror, "correct its rights or its disk"
    return shown(words)[1:-1] or type(error).__name__, "is it torn? write it again"


def _table_of(key: str, column: str, schemas: dict[str, _Schema]) -> str:
    """interactions or users, whichever has the column."""
    looked = [schemas[table] for table in ("interactions", "users") if table in schemas]
    matching = [schema for schema in looked if column in schema.columns.names]
    if not matching:
        places = "; ".join(f"{schema.table} ({schema.path}) has {_names(schema.columns.names)}" for schema in looked)
        names = [name for schema in looked for name in schema.columns.names]
        hint = meant(column, names, "correct the name or add the column")
        raise UserError(f"{key}: no table has a column {column!r} ({places}){hint}")
    if len(matching) > 1:
        raise UserError(f"{key}: both interactions and users have a column {column!r}; rename one of them")
    return matching[0].table


def _refuse_twice(key: str, column: str, taken: Collection[str | None]) -> None:
    if column in taken:
        raise UserError(
            f"{key}: an example has {column!r} already, of the query side; rename that column of the items table"
        )


def _names(names: Sequence[str]) -> str:
    """Names for a message; one with characters that cannot be seen is quoted."""
    listed = ", ".join(n if n.isprintable() and n == n.strip() else repr(n) for n in names)
    return (listed if len(listed) <= 10 * _SHOWN else f"{listed[: 10 * _SHOWN]}…") or "no columns at all"


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


def _bytes(path: str) -> int:
    return int(_match(path)[0].size_in_bytes) if _is_remote(path) else os.stat(path).st_size


def _content(path: str) -> str:
    if _is_remote(path):
        metadata = _match(path)[0]
        return f"{metadata.size_in_bytes} {metadata.last_updated_in_seconds}"
    status = os.stat(path)
    if status.st_size > _HASHED_BYTES:
        return f"{status.st_size} {status.st_mtime_ns}"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
