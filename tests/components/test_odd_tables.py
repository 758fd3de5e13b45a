"""Tables as nobody should write them: each gives the examples that it says, or one line that names file and column.

One file, and a long one: a list of cases, which a person looks through to see whether one is missing.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from example_gen_runs import run
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from components.interaction_example_gen import executor
from modules import beam_tables
from modules.data import columns, report, survey, tables
from modules.data.examples import CATALOGUE, EVAL, TRAIN, VALIDATION
from modules.encodings.features import Features
from modules.errors import UserError
from modules.servable.update_index import NewItems
from modules.settings import Evaluation, Serving, Tables, TemporalSplit

SPLIT = TemporalSplit(validation_from=1000, eval_from=2000)
FEATURES: dict[str, Any] = {
    "query": [
        {"column": "user_id", "encoding": "vocabulary"},
        {"column": "age", "encoding": "normalized"},
        {"column": "city", "encoding": "hash", "buckets": 10},
        {"column": "device", "encoding": "vocabulary"},
        {"column": "timestamp", "encoding": "timestamp"},
        {"column": "history", "encoding": "history", "max_length": 3},
        {"column": "history_age", "encoding": "history_age"},
    ],
    "candidate": [
        {"column": "item_id", "encoding": "vocabulary"},
        {"column": "tags", "encoding": "vocabulary", "separator": "|"},
        {"column": "price", "encoding": "log1p"},
        {"column": "released", "encoding": "timestamp"},
    ],
}
EVALUATION: dict[str, Any] = {
    "history": "rolling",
    "k": [1],
    "slices": [{"column": "city"}, {"column": "age", "boundaries": [18, 25]}],
}
SERVING: dict[str, Any] = {"k": 2, "return_columns": ["maker"]}
KINDS = {
    "interactions": {"user_id": "id", "item_id": "id", "timestamp": "time", "weight": "number", "device": "text"},
    "items": {"item_id": "id", "tags": "list", "price": "number", "released": "time", "maker": "text"},
    "users": {"user_id": "id", "age": "number", "city": "text"},
}

Rows = list[dict[str, Any]]


# The grammar: what is meant, how it is written, and what is wrong with it.


def _strings(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


def _whole(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([None if value is None else int(value) for value in values], kind)


def _real(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    numbers = [None if value is None else float(value) for value in values]
    if pa.types.is_decimal(kind):
        return pa.array([None if n is None else decimal.Decimal(str(n)) for n in numbers], kind)
    if pa.types.is_float16(kind):
        return pa.array([None if n is None else np.float16(n) for n in numbers], kind)
    return pa.array(numbers, kind)


def _times(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return _whole(values, pa.int64()).cast(pa.timestamp("s")).cast(kind)


def _iso(values: Sequence[Any], words: str) -> pa.Array:
    times = [None if v is None else datetime.datetime.fromtimestamp(v, datetime.UTC) for v in values]
    return pa.array([None if time is None else time.strftime(words) for time in times])


def _text(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(_strings(values)).cast(kind)


def _bytes(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([None if value is None else str(value).encode() for value in values], kind)


_TEXTS: dict[str, Callable[[Sequence[Any]], pa.Array]] = {
    "string": lambda v: _text(v, pa.string()),
    "large_string": lambda v: _text(v, pa.large_string()),
    "binary": lambda v: _bytes(v, pa.binary()),
    "large_binary": lambda v: _bytes(v, pa.large_binary()),
    "dictionary": lambda v: pa.array(_strings(v), pa.string()).dictionary_encode(),
    "dictionary of binary": lambda v: _bytes(v, pa.binary()).dictionary_encode(),
}
_NUMBERS: dict[str, Callable[[Sequence[Any]], pa.Array]] = {
    "float64": lambda v: _real(v, pa.float64()),
    "float32": lambda v: _real(v, pa.float32()),
    "float16": lambda v: _real(v, pa.float16()),
    "decimal128": lambda v: _real(v, pa.decimal128(12, 2)),
    "decimal256": lambda v: _real(v, pa.decimal256(40, 2)),
    "dictionary of float": lambda v: _real(v, pa.float64()).dictionary_encode(),
    "NaN for missing": lambda v: pa.array([math.nan if value is None else float(value) for value in v]),
}
_WHOLE: dict[str, Callable[[Sequence[Any]], pa.Array]] = {
    "int8": lambda v: _whole(v, pa.int8()),
    "int64": lambda v: _whole(v, pa.int64()),
    "uint16": lambda v: _whole(v, pa.uint16()),
    "uint64": lambda v: _whole(v, pa.uint64()),
    "12.0": lambda v: pa.array([None if value is None else f"{value}.0" for value in v], pa.string()),
}
WRITINGS: dict[str, dict[str, Callable[[Sequence[Any]], pa.Array]]] = {
    "id": _TEXTS,
    "whole id": _TEXTS | _WHOLE | _NUMBERS,
    "text": _TEXTS,
    "number": _NUMBERS | _TEXTS,
    "time": {
        "int64": _WHOLE["int64"],
        "float64": _NUMBERS["float64"],
        "decimal": lambda v: _real(v, pa.decimal128(20, 3)),
        "s": lambda v: _times(v, pa.timestamp("s")),
        "ms": lambda v: _times(v, pa.timestamp("ms", "+05:30")),
        "us": lambda v: _times(v, pa.timestamp("us", "America/New_York")),
        "ns": lambda v: _times(v, pa.timestamp("ns")),
        "dictionary": lambda v: _times(v, pa.timestamp("ms")).dictionary_encode(),
        "ISO": lambda v: _iso(v, "%Y-%m-%dT%H:%M:%SZ"),
        "ISO with a space": lambda v: _iso(v, " %Y-%m-%d %H:%M:%S"),
        **_TEXTS,
    },
    "list": {
        "list": lambda v: pa.array(v, pa.list_(pa.string())),
        "large_list": lambda v: pa.array(v, pa.large_list(pa.large_string())),
        "list of binary": lambda v: pa.array(v, pa.list_(pa.string())).cast(pa.list_(pa.binary())),
        "list with gaps": lambda v: pa.array([None if x is None else [None, *x, ""] for x in v], pa.list_(pa.string())),
        "list of dictionary": lambda v: pa.ListArray.from_arrays(
            pa.array(np.cumsum([0, *(len(x or []) for x in v)]), pa.int32()),
            pa.array([y for x in v for y in x or []], pa.string()).dictionary_encode(),
        ),
        "string": lambda v: pa.array([None if x is None else "| ".join(x) for x in v], pa.string()),
    },
}


@dataclass(frozen=True)
class File:
    """A piece of a table: Arrow columns, and the format they are written in."""

    columns: dict[str, pa.Array]
    suffix: str

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def csv_text(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(zip(*(map(_cell, array.to_pylist()) for array in self.columns.values()), strict=True))
        return out.getvalue()

    def write(self, path: Path, content: bytes | None = None) -> None:
        if content is None and self.suffix == "parquet":
            pq.write_table(
                pa.Table.from_arrays(list(self.columns.values()), list(self.columns)), path, row_group_size=3
            )
            return
        content = self.csv_text().encode() if content is None else content
        path.write_bytes(gzip.compress(content) if self.suffix == "csv.gz" else content)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, decimal.Decimal):
        return str(float(value))
    if isinstance(value, list):
        return "|".join(_cell(v) for v in value)
    return str(value)


@dataclass(frozen=True)
class World:
    """What the tables mean, and the files that say it."""

    rows: dict[str, Rows]
    """By table, in the order of its files."""
    files: dict[str, list[File]]

    def write(self, folder: Path) -> Tables:
        for table, files in self.files.items():
            for number, file in enumerate(files):
                file.write(place(folder, table, number, file))
        return Tables.model_validate(
            {name: {"path": f"{folder}/{name}-*"} for name in self.files}
            | {"interactions": {"path": f"{folder}/interactions-*", "weight": "weight"}}
        )


def place(folder: Path, table: str, number: int, file: File) -> Path:
    return folder / f"{table}-{number}.{file.suffix}"


ODD_IDS = ["é", "a b", "0x1F", "007", 'a "q"', "x,y", "line\nbreak", "[1, 2]", "\t", "名前", "-1", "1e3", "a" * 300]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    odd = draw(st.booleans())
    names: list[Any] = draw(st.permutations(ODD_IDS))[:7] if odd else list(range(1, 8))
    numbers = st.sampled_from([None, 0.0, 1.5, 3.25, 24.0, 100.0])
    words = st.sampled_from([None, "app", "Straße", 'two\n"lines", a|b'])
    times = st.sampled_from([0, 1, 7, 999, 1000, 1001, 1999, 2000, 2500, 86_400, 1_700_000_000, 4_102_444_799])
    lists = st.one_of(st.none(), st.lists(st.sampled_from(["x", "y z", "ß"]), min_size=1, max_size=3))
    interactions: Rows = [
        # One of each split, so that none is empty.
        {"user_id": names[0], "item_id": names[0], "timestamp": time, "weight": 1.0, "device": None}
        for time in (5, 1005, 2005)
    ] + draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "user_id": st.sampled_from(names[:5]),
                    "item_id": st.sampled_from(names[:6]),
                    "timestamp": times,
                    "weight": st.sampled_from([0.0, 0.25, 1.0, 300.0]),
                    "device": words,
                }
            ),
            max_size=8,
        )
    )
    items: Rows = [
        {
            "item_id": name,
            "tags": draw(lists),
            "price": draw(numbers),
            "released": draw(st.one_of(st.none(), times, st.just(-86_400))),
            "maker": draw(words),
        }
        for name in names[:5]
    ]
    users: Rows = [{"user_id": name, "age": draw(numbers), "city": draw(words)} for name in names[:3]]
    rows = {"interactions": draw(st.permutations(interactions)), "items": draw(st.permutations(items)), "users": users}
    return World(rows, {table: draw(_files(table, rows[table], odd)) for table in rows})


@st.composite
def _files(draw: st.DrawFn, table: str, rows: Rows, odd: bool) -> list[File]:
    """The rows cut into files, each with formats, types and an order of columns of its own; some files are empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=2)))
    files = []
    for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        arrays: dict[str, pa.Array] = {}
        for column in draw(st.permutations(list(KINDS[table]))):
            kind = KINDS[table][column]
            kind = "whole id" if kind == "id" and not odd else kind
            writing = draw(st.sampled_from(sorted(WRITINGS[kind])))
            arrays[column] = WRITINGS[kind][writing]([row[column] for row in rows[start:end]])
        arrays["not read"] = pa.array([{"a": 1}] * (end - start), pa.struct([("a", pa.int8())]))
        files.append(File(arrays, draw(st.sampled_from(["parquet", "csv", "csv.gz"]))))
    return files


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file, and what is to be said of it."""

    table: str
    column: str | None
    """The column that must be named; None when it is the file as a whole."""
    said: str
    suffix: str
    """The format in which the file is written."""
    spoil: Callable[[File], File | bytes]
    """The file with other columns, or the bytes of it."""


def _cells(table: str, column: str, kind: pa.DataType | None, bad: Any, good: Any, said: str, suffix: str) -> Fault:
    def spoil(file: File) -> File:
        array = pa.array([bad] + [good] * (file.rows - 1), kind)
        return replace(file, columns={**file.columns, column: array})

    return Fault(table, column, said, suffix, spoil)


def _typed(table: str, column: str, array: pa.Array, said: str = "is of type") -> Fault:
    """A column of another type, its one value repeated."""

    def spoil(file: File) -> File:
        return replace(file, columns={**file.columns, column: pa.concat_arrays([array] * file.rows)})

    return Fault(table, column, said, "parquet", spoil)


def _text_fault(table: str, column: str | None, said: str, spoil: Callable[[str], bytes | str]) -> Fault:
    """Other bytes of a CSV file."""

    def bytes_of(file: File) -> bytes:
        found = spoil(file.csv_text())
        return found.encode() if isinstance(found, str) else found

    return Fault(table, column, said, "csv", bytes_of)


def _parquet_bytes(file: File) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(file.columns), out)
    return out.getvalue()


def _twice(table: str, column: str) -> Fault:
    def spoil(file: File) -> bytes:
        out = io.BytesIO()
        arrays = [*file.columns.values(), file.columns[column]]
        pq.write_table(pa.Table.from_arrays(arrays, [*file.columns, column]), out)
        return out.getvalue()

    return Fault(table, column, "2 columns", "parquet", spoil)


def _without(table: str, column: str, suffix: str) -> Fault:
    def spoil(file: File) -> File:
        return replace(file, columns={name: a for name, a in file.columns.items() if name != column})

    return Fault(table, column, "no column|no table has a column", suffix, spoil)


_I, _C, _U = "interactions", "items", "users"
_MS = 1_700_000_000_000
FAULTS = [
    # Times that are none.
    *(
        _cells(_I, "timestamp", kind, bad, good, said, suffix)
        for kind, bad, good, said, suffix in [
            (pa.float64(), math.inf, 7.0, "infinite", "parquet"),
            (pa.float32(), -math.inf, 7.0, "infinite", "parquet"),
            (pa.float64(), 1e300, 7.0, "too large", "parquet"),
            (pa.float64(), math.nan, 7.0, "missing", "parquet"),
            (pa.int32(), None, 7, "missing", "parquet"),
            (pa.int16(), -1, 7, "before 1970 or after 2099", "parquet"),
            (pa.int64(), _MS, 7, "milliseconds", "parquet"),
            (pa.uint64(), 2**64 - 1, 7, "too large", "parquet"),
            (pa.int64(), -(2**63), 7, "too large", "parquet"),
            (pa.string(), "3000-01-01", "7", "after 2099", "csv"),
            (pa.string(), "9999-12-31T23:59:59+00:00", "7", "after 2099", "csv"),
            (pa.string(), "32503680000", "7", "after 2099", "csv"),
            (pa.string(), "inf", "7", "infinite", "csv.gz"),
            (pa.string(), "1e400", "7", "neither seconds", "csv"),
            (pa.string(), "9" * 5000, "7", "neither seconds", "csv"),
            (pa.string(), "now", "7", "neither seconds", "csv"),
            (pa.string(), "12:00", "7", "neither seconds", "parquet"),
            (pa.string(), "", "7", "missing", "csv"),
            (pa.timestamp("ms"), datetime.datetime(3000, 1, 1), datetime.datetime(2000, 1, 1), "after 2099", "parquet"),
            (pa.date32(), datetime.date(9999, 12, 31), datetime.date(2000, 1, 1), "after 2099", "parquet"),
            (pa.decimal256(60, 2), decimal.Decimal("9" * 50), decimal.Decimal(7), "too large", "parquet"),
        ]
    ),
    _typed(_I, "timestamp", pa.array([2**61], pa.int64()).cast(pa.timestamp("us")), "years 1 to 9999"),
    _typed(_C, "maker", pa.array([2**61], pa.int64()).cast(pa.timestamp("us")), "years 1 to 9999"),
    _typed(_I, "timestamp", pa.array([True])),
    _typed(_I, "timestamp", pa.array([datetime.time(12)])),
    _typed(_I, "timestamp", pa.array([datetime.timedelta(1)])),
    _typed(_I, "timestamp", pa.array([[7]])),
    _cells(_C, "released", pa.float64(), 1e18, 7.0, "too large", "parquet"),
    # Weights that are none.
    *(
        _cells(_I, "weight", kind, bad, good, said, suffix)
        for kind, bad, good, said, suffix in [
            (pa.float64(), math.inf, 1.0, "infinite", "parquet"),
            (pa.float64(), math.nan, 1.0, "missing", "parquet"),
            (pa.float64(), -0.5, 1.0, "no weights", "parquet"),
            (pa.float64(), 1e39, 1.0, "too large", "parquet"),
            (pa.float64(), 3e38, 1.0, "no weights", "parquet"),
            (pa.float64(), 1e-40, 1.0, "no weights", "parquet"),
            (pa.string(), "-inf", "1", "infinite", "csv"),
            (pa.string(), "heavy", "1", "not numbers", "csv"),
            (pa.string(), None, "1", "missing", "csv"),
        ]
    ),
    _typed(_I, "weight", pa.array([{"a": 1}])),
    _typed(_I, "weight", pa.array([datetime.date(2000, 1, 1)])),
    # Numbers that are none in float32.
    _cells(_C, "price", pa.float32(), math.inf, 1.0, "infinite", "parquet"),
    _cells(_C, "price", pa.float64(), -1e39, 1.0, "too large for 32 bits", "parquet"),
    _cells(_C, "price", pa.string(), "Infinity", "1", "infinite", "csv"),
    _cells(_C, "price", pa.string(), "cheap", "1", "not numbers", "csv"),
    _cells(_U, "age", pa.float16(), np.float16(math.inf), np.float16(1), "infinite", "parquet"),
    _typed(_U, "age", pa.array([[1.0]])),
    _typed(_U, "age", pa.array([datetime.timedelta(1)])),
    # Nested and other types that are no text.
    *(
        _typed(table, column, array)
        for table, column in [(_I, "user_id"), (_I, "device"), (_C, "tags"), (_C, "maker"), (_U, "city")]
        for array in [
            pa.array([{"a": 1}]),
            pa.array([[["a"]]]),
            pa.array([[{"a": 1}]]),
            pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            pa.array([datetime.timedelta(1)]),
        ]
    ),
    _typed(_I, "item_id", pa.array([["a"]]), "multivalued"),
    # Bytes that are no text.
    _typed(_I, "user_id", pa.array([b"\xff\xfe"]), "not text in UTF-8"),
    _typed(_C, "item_id", pa.array([b"\xe9\x00"], pa.binary(2)), "not text in UTF-8"),
    _typed(_C, "tags", pa.array([[b"a", b"\xff"]]), "not text in UTF-8"),
    _typed(_U, "city", pa.array([b"\xff"]).dictionary_encode(), "not text in UTF-8"),
    _typed(_U, "city", pa.array([b"\xff"]).view(pa.string()), "not text in UTF-8"),
    _typed(_I, "user_id", pa.array(["\ufeff1"]), "byte order mark"),
    _typed(_C, "tags", pa.array([["a", "\ufeffb"]]), "byte order mark"),
    _cells(_U, "city", pa.string(), "\ufeffBonn", "Bonn", "byte order mark", "csv"),
    _cells(_U, "city", pa.string(), "B" * 2_000_000, "Bonn", "1.9 MB", "csv"),
    _typed(_C, "maker", pa.array(["B" * 2_000_000]), "1.9 MB"),
    # Rows without an id.
    _cells(_I, "user_id", pa.string(), "", "1", "no user_id", "csv"),
    _cells(_C, "item_id", pa.float64(), math.nan, 1.0, "no item_id", "parquet"),
    _cells(_U, "user_id", pa.string(), None, "1", "no user_id", "parquet"),
    # Files.
    *(
        fault
        for table in (_I, _C, _U)
        for fault in [
            _text_fault(table, None, "not text in UTF-8", lambda text: text.encode("utf-16")),
            _text_fault(table, None, "not text in UTF-8", lambda text: text.encode("utf-16-le")),
            _text_fault(table, None, "not closed|no column", lambda text: f'"{text}'),
            _text_fault(table, None, "too long", lambda text: "x" * 200_000 + "," + text.replace("\n", "\n,")),
            _text_fault(table, None, "no column", lambda text: ""),
            _text_fault(table, None, "no column", lambda text: text.replace(",", ";")),
            _text_fault(table, None, "cannot be read", lambda text: text + "1\n"),
            _text_fault(
                table, None, "not closed", lambda text: text + "," * text.partition("\n")[0].count(",") + '"\n'
            ),
            _text_fault(table, None, "longer than", lambda text: text + '"' + "1\n" * 5_000_000),
            Fault(table, None, "cannot be read", "parquet", lambda file: _parquet_bytes(file)[:-100]),
            Fault(table, None, "cannot be read", "parquet", lambda file: file.csv_text().encode()),
            Fault(table, None, "cannot be read|no column", "csv", _parquet_bytes),
            _twice(table, next(iter(KINDS[table]))),
            _without(table, list(KINDS[table])[1], "parquet"),
            _without(table, list(KINDS[table])[-1], "csv"),
        ]
    ),
]


# The oracle, and the component without Beam around it.


def oracle(world: World) -> dict[str, Counter[str]]:
    """Every example of every split, from what the tables mean."""
    items, users = ({row[key]: row for row in world.rows[t]} for t, key in (("items", "item_id"), ("users", "user_id")))
    found: dict[str, Counter[str]] = {split: Counter() for split in (TRAIN, VALIDATION, EVAL, CATALOGUE)}

    for item in items.values():
        found[CATALOGUE][_canonical(item)] += 1
    kept = [(r["timestamp"], n, r) for n, r in enumerate(world.rows["interactions"]) if r["item_id"] in items]
    by_user: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for _, _, row in sorted(kept, key=lambda found: found[:2]):
        by_user[row["user_id"]].append(row | {"split": (row["timestamp"] >= 1000) + (row["timestamp"] >= 2000)})
    for user, sequence in by_user.items():
        about = {"user_id": user, **{c: users.get(user, {}).get(c) for c in ("age", "city")}}
        learned = [row for row in sequence if row["split"] < 2]
        if learned:
            lists = {
                "sequence_item_id": [str(row["item_id"]) for row in learned],
                "sequence_timestamp": [row["timestamp"] for row in learned],
                "sequence_interaction_weight": [row["weight"] for row in learned],
                "sequence_is_validation": [row["split"] for row in learned],
                "sequence_device": [row["device"] or "" for row in learned],
            }
            found[TRAIN][_canonical(about | lists)] += 1
        for place, row in enumerate(sequence):
            if not row["split"]:
                continue
            seen = [earlier for earlier in sequence[:place] if earlier["split"] <= row["split"]]
            time, age = row["timestamp"], about["age"]
            query = {
                "device": row["device"],
                "timestamp": time,
                "relevant_items": [row["item_id"]],
                "history": [earlier["item_id"] for earlier in seen],
                "history_age": float(np.float32(time - seen[-1]["timestamp"])) if seen else None,
                "slice_city": about["city"] or "unknown",
                "slice_age": "unknown" if age is None else "<18" if age < 18 else "18-24" if age < 25 else "25+",
            }
            found[(TRAIN, VALIDATION, EVAL)[row["split"]]][_canonical(about | query)] += 1
    return found


_NUMERIC = ("age", "price", "timestamp", "released", "history_age")


def _canonical(example: dict[str, Any]) -> str:
    """Strings as lists of strings, numbers as they are, nothing for what is missing."""
    whole = {
        name: value
        if name in _NUMERIC or name.startswith("sequence_")
        else [str(v) for v in (value if isinstance(value, list) else [value])]
        for name, value in example.items()
        if value is not None and value != []
    }  # fmt: skip
    return json.dumps(whole, sort_keys=True)


def decoded(record: bytes) -> str:
    example: dict[str, Any] = {}
    for name, feature in tf.train.Example.FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value
        texts = [value.decode() for value in values] if kind == "bytes_list" else list(values)
        is_list = kind == "bytes_list" or name.startswith("sequence_")
        example[name] = texts if is_list else texts[0]
        assert len(values) and (is_list or len(values) == 1)
        assert kind == "bytes_list" or all(map(math.isfinite, values))
    return json.dumps(example, sort_keys=True)


def generate(tables_settings: Tables) -> dict[str, Counter[str]]:
    """Every example of every split, as the executor writes them."""
    written, found = generated(tables_settings)
    found.raise_problems(tables_settings, SPLIT)
    return written


def generated(tables_settings: Tables) -> tuple[dict[str, Counter[str]], report.Report]:
    """What the executor does, step by step, without the seconds that a Beam pipeline takes to start."""
    wanted = tables.wanted(
        tables_settings, Features.model_validate(FEATURES), Evaluation(**EVALUATION), Serving(**SERVING)
    )
    plan = tables.plan(tables_settings, SPLIT, wanted)
    tagged: dict[str, list[Any]] = defaultdict(list)

    def rows(step: beam.DoFn, element: Any, *more: Any) -> Iterator[Any]:
        for output in step.process(element, *more):
            if isinstance(output, beam.pvalue.TaggedOutput):
                tagged[output.tag].append(output.value)
            else:
                yield output

    def read(table: str, path: str, step: beam.DoFn) -> dict[bytes, list[Any]]:
        by_id: dict[bytes, list[Any]] = defaultdict(list)
        for number, file in enumerate(tables.files(table, path)):
            for part in beam_tables.parts(number, file, f"tables.{table}.path"):
                for key, value in rows(step, part):
                    by_id[key].append(value)
        return by_id

    assert tables_settings.users is not None
    users = read("users", tables_settings.users.path, executor._ReadUsers(tables_settings, plan))
    items = read("items", tables_settings.items.path, executor._ReadItems(tables_settings, plan))
    taken = read(
        "interactions", tables_settings.interactions.path, executor._ReadInteractions(tables_settings, SPLIT, plan)
    )
    unique = executor._UniqueItems(tables_settings)
    catalogue = {item: example for row in items.items() for item, example in rows(unique, row)}
    join, examples = executor._Join(tables_settings), executor._Examples(tables_settings, SPLIT, wanted, plan)
    for user in {**users, **taken}:
        found = {"users": users.get(user, []), "interactions": taken.get(user, [])}
        for joined in rows(join, (user, found), catalogue):
            assert not list(rows(examples, joined, (1000, 2000)))
    findings: dict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
    for key, finding in json.loads(json.dumps(tagged.pop("report"))):
        findings[tuple(key)].append(finding)
    found = report.Report((key, report.add_up(each)) for key, each in findings.items())
    return {split: Counter(map(decoded, tagged[split])) for split in (TRAIN, VALIDATION, EVAL, CATALOGUE)}, found


def surveyed(tables_settings: Tables) -> survey.Survey:
    """What `twotower check` finds in the same tables."""
    wanted = tables.wanted(
        tables_settings, Features.model_validate(FEATURES), Evaluation(**EVALUATION), Serving(**SERVING)
    )
    return survey.survey(tables_settings, SPLIT, tables.plan(tables_settings, SPLIT, wanted))


def spoiled(world: World, fault: Fault, at: int) -> tuple[World, int, bytes | None]:
    """The world with a fault in one of the files that have rows, the file's number, and its bytes when they are odd."""
    files = list(world.files[fault.table])
    candidates = [number for number, file in enumerate(files) if file.rows]
    number = candidates[at % len(candidates)]
    file = replace(files[number], suffix=fault.suffix)
    result = fault.spoil(file)
    files[number] = file if isinstance(result, bytes) else result
    return (
        replace(world, files={**world.files, fault.table: files}),
        number,
        result if isinstance(result, bytes) else None,
    )


def assert_refused(world: World, fault: Fault, at: int, generated: Callable[[Tables], Any]) -> str:
    """Of what is done with a spoiled world: it is refused, in one line that says what is wrong where."""
    world, number, content = spoiled(world, fault, at)
    with tempfile.TemporaryDirectory() as folder:
        tables_settings = world.write(Path(folder))
        file = world.files[fault.table][number]
        path = place(Path(folder), fault.table, number, file)
        if content is not None:
            file.write(path, content)
        with pytest.raises(UserError) as caught:
            generated(tables_settings)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 2_000
    assert str(path) in message and fault.table in message
    assert re.search(fault.said, message), message
    assert fault.column is None or repr(fault.column) in message or f"no {fault.column}" in message, message
    return message.replace(folder, "")


# Properties.


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=True)
@given(world=worlds())
def test_any_writing_of_a_table_gives_the_examples_that_it_means(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert generate(world.write(Path(folder))) == oracle(world)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(world=worlds(), fault=st.sampled_from(FAULTS), at=st.integers(0, 2))
def test_any_fault_in_any_table_is_one_line_that_names_file_and_column(world: World, fault: Fault, at: int) -> None:
    assert_refused(world, fault, at, generate)


@pytest.fixture(scope="module")
def plain() -> World:
    """Two files for each table, strings and numbers: nothing odd, for faults that come one at a time."""
    interactions = [
        {"user_id": 1, "item_id": 1 + time % 2, "timestamp": time, "weight": 1.0, "device": "app"}
        for time in (5, 6, 1005, 1006, 2005, 2006)
    ]
    items = [
        {"item_id": n, "tags": ["x"], "price": 1.5, "released": 7, "maker": "m"} for n in (1, 2)
    ]  # fmt: skip
    users = [{"user_id": n, "age": 20.0, "city": "Bonn"} for n in (1, 2)]
    rows = {"interactions": interactions, "items": items, "users": users}
    usual = {"id": "string", "time": "int64", "number": "float64", "text": "string", "list": "list"}

    def file(table: str, part: Rows, suffix: str) -> File:
        arrays = {c: WRITINGS[kind][usual[kind]]([row[c] for row in part]) for c, kind in KINDS[table].items()}
        return File(arrays, suffix)

    return World(
        rows,
        {t: [file(t, r[: len(r) // 2], "parquet"), file(t, r[len(r) // 2 :], "csv")] for t, r in rows.items()},
    )


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.table}-{f.column}-{f.said}".replace(" ", "_"))
def test_every_fault_is_found_in_the_first_file_and_in_the_second(plain: World, fault: Fault, at: int) -> None:
    said = assert_refused(plain, fault, at, generate)
    if at:
        check = lambda settings_: surveyed(settings_).report.raise_problems(settings_, SPLIT)  # noqa: E731
        assert assert_refused(plain, fault, at, check) == said, "the check says what the run does"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(world=worlds())
def test_the_check_counts_what_the_run_does(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables_settings = world.write(Path(folder))
        _, found = generated(tables_settings)
        counts = surveyed(tables_settings).report.counts
        assert {name: counts[name] for name in counts if not name.startswith("examples_")} == {
            name: found.counts[name] for name in counts if not name.startswith("examples_")
        }


def run_executor(tables_settings: Tables) -> dict[str, Counter[str]]:
    with tempfile.TemporaryDirectory() as folder:
        output = run(tables_settings, SPLIT, FEATURES, EVALUATION, SERVING, folder)
    return {
        name: Counter(json.dumps(row, sort_keys=True) for row in split_rows)
        for name, split_rows in output.splits.items()
    }


@pytest.mark.slow
@settings(
    max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate]
)  # A run takes a second: no shrinking.
@given(world=worlds())
def test_the_whole_executor_writes_what_its_steps_make(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert run_executor(world.write(Path(folder))) == oracle(world)


@pytest.mark.slow
def test_errors_in_beams_workers_reach_the_person_as_one_line(plain: World) -> None:
    for said in ("infinite", "not text in UTF-8"):
        fault = next(f for f in FAULTS if f.said == said)
        assert_refused(plain, fault, 1, run_executor)


# What is not a matter of one file.


def _with(world: World, table: str, column: str, values: Sequence[Any]) -> World:
    kind = KINDS[table][column]
    writing = WRITINGS[kind]["float64" if kind == "number" else "string"]
    arrays = {c: WRITINGS[k]["list" if k == "list" else "string"]([r[c] for r in world.rows[table]])
              for c, k in KINDS[table].items()}  # fmt: skip
    return replace(world, files={**world.files, table: [File({**arrays, column: writing(values)}, "csv")]})


def test_weights_that_leave_nothing_to_learn_are_refused(plain: World, tmp_path: Path) -> None:
    """Of validation and eval they do not matter: a weight there that is not 0 changes no training."""
    world = _with(plain, "interactions", "weight", [0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    with pytest.raises(UserError, match=r"weight: all interactions of the train split have the weight 0 in column 'we"):
        generate(world.write(tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    world = _with(plain, "interactions", "weight", [0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert sum(generate(world.write(tmp_path))[TRAIN].values()) == 1


def check(tables_settings: Tables, k: int, evaluation_k: int = 1) -> tables.Plan:
    evaluation, serving = Evaluation(**{**EVALUATION, "k": (evaluation_k,)}), Serving(**{**SERVING, "k": k})
    return tables.check_tables(tables_settings, SPLIT, Features.model_validate(FEATURES), evaluation, serving)


def test_answers_longer_than_a_csv_catalogue_are_refused_before_anything_runs(plain: World, tmp_path: Path) -> None:
    settings_ = plain.write(tmp_path)
    check(settings_, 2)
    with pytest.raises(UserError, match=r"^serving\.k is 3 but the catalogue has 2 items .*; set it to 2 or less$"):
        check(settings_, 3)
    with pytest.raises(
        UserError, match=r"^serving\.k is 3 and evaluation\.k is 3 but .* 2 items .* both to 2 or less$"
    ):
        check(settings_, 3, 3)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "csv.gz"])
def test_an_empty_catalogue_is_said_to_be_empty(plain: World, tmp_path: Path, suffix: str) -> None:
    empty = File({name: array[:0] for name, array in plain.files["items"][0].columns.items()}, suffix)
    settings_ = replace(plain, files={**plain.files, "items": [empty]}).write(tmp_path)
    for refused in (lambda: check(settings_, 1), lambda: generate(settings_)):
        with pytest.raises(UserError, match=r"tables\.items: .* has no rows; it must list the catalogue"):
            refused()


def test_errors_of_items_to_add_name_the_argument(plain: World, tmp_path: Path) -> None:
    """And not the configuration's key, which has another path."""
    settings_ = plain.write(tmp_path)
    wanted = tables.wanted(settings_, Features.model_validate(FEATURES), Evaluation(**EVALUATION), Serving(**SERVING))

    def add(name: str) -> None:
        path = str(tmp_path / name)
        items = settings_.items.model_copy(update={"path": path})
        plan = tables.plan(settings_.model_copy(update={"items": items}), SPLIT, wanted, items_key="--add")
        NewItems.read(path, "item_id", plan)

    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    header = "item_id,tags,price,released,maker\n"
    (tmp_path / "cheap.csv").write_text(f"{header}i9,a|b,cheap,7,m\n")
    (tmp_path / "bytes.csv").write_bytes(header.encode() + b"\xff,a|b,1,7,m\n")
    (tmp_path / "short.csv").write_text(f"{header}i9,a\n")
    for name, said in {
        "nowhere.csv": "there is no file",
        "torn.parquet": "cannot be read",
        "cheap.csv": "values of 'price' are not numbers, for instance 'cheap'",
        "bytes.csv": "row 1 has in column 'item_id' b'\\xff', which is not text in UTF-8",
        "short.csv": "Expected 5 columns, got 2",
    }.items():
        with pytest.raises(UserError) as caught:
            add(name)
        message = str(caught.value)
        assert message.startswith("--add: ") and str(tmp_path / name) in message and said in message
        assert "tables.items" not in message and message.isprintable()


def test_whoever_reads_a_torn_table_gets_one_line(plain: World, tmp_path: Path) -> None:
    """The commands that ask the model read tables without the component."""
    plain.write(tmp_path)
    path = tmp_path / "users-0.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))} cannot be read: "):
        list(tables.parts(0, str(path)))
    (tmp_path / "users-1.csv").write_text("user_id\n1\n2,3\n")
    (part,) = tables.parts(0, str(tmp_path / "users-1.csv"))
    with pytest.raises(UserError, match=r"users-1\.csv cannot be read: CSV parse error"):
        list(tables.read(part, ["user_id"]))


def whole_shard(folder: Path, suffix: str) -> Path:
    """A shard of ten thousand rows that no compressor makes small."""
    numbers = np.random.default_rng(0).integers(0, 10**9, 10_000)
    path = folder / f"interactions-7.{suffix}"
    if suffix == "csv.gz":
        path.write_bytes(gzip.compress(b"user_id\n" + b"".join(b"%d\n" % number for number in numbers)))
    else:
        table = pa.table({"user_id": numbers})
        pq.write_table(table, path, use_dictionary=False, compression="NONE", write_page_checksum=True)
    return path


def read_all(path: Path) -> int:
    return sum(
        batch.num_rows for part in tables.parts(0, str(path)) for _, batch in tables.read(part, ["user_id"])
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv.gz", "parquet"])
@pytest.mark.parametrize("damage", ["ends in the middle", "lacks its last bytes", "a flipped bit", "a page of zeros"])
def test_a_shard_that_was_not_written_whole_or_has_changed_since_is_named(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    """No damage gives other numbers: a gzip has a checksum, a page of Parquet has one where the writer gave it one."""
    path = whole_shard(tmp_path, suffix)
    assert read_all(path) == 10_000
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "ends in the middle":
        del content[middle:]
    elif damage == "lacks its last bytes":
        del content[-3:]
    elif damage == "a flipped bit":
        content[middle] ^= 1
    else:
        content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))} cannot be read: .*; is it torn\? write it again$"):
        read_all(path)


def test_a_byte_order_mark_at_the_beginning_of_a_file_is_no_part_of_a_name(plain: World, tmp_path: Path) -> None:
    settings_ = plain.write(tmp_path)
    for table in plain.files:
        path = tmp_path / f"{table}-1.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert generate(settings_) == oracle(plain)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(UserError, match=r"users-1\.csv .* no column 'user_id'"):
        generate(settings_)


def test_times_are_read_to_the_second_whatever_their_type() -> None:
    """Fractions go down, before 1970 too; far dates are those of Python's calendar."""
    half = pa.array([-1, 1], pa.int64()).cast(pa.timestamp("ms"))
    assert columns.seconds(half)[0].tolist() == [-1, 0]
    far = ["3000-01-01", "1500-06-01T12:00:00.5", "3000-01-01T00:00:00+01:00"]
    found, missing, faults = columns.seconds(pa.array(far))
    since = datetime.datetime(1970, 1, 1)
    expected = [datetime.datetime(3000, 1, 1), datetime.datetime(1500, 6, 1, 12), datetime.datetime(2999, 12, 31, 23)]
    assert found.tolist() == [(time - since) // datetime.timedelta(seconds=1) for time in expected]
    assert not missing.any() and not faults
