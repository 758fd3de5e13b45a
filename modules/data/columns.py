"""Arrow columns of any type as the values that examples hold: ids, categories, numbers and times."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modules.data.examples import Value
from modules.data.tables import Column
from modules.settings import Slice

UNKNOWN = b"unknown"
"""The slice of examples whose value is missing."""

# The end of the year 9999: what is above is not a time in seconds.
_LAST_SECOND = 253_402_300_799
_MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none"})


def ids(column: pa.Array) -> list[bytes | None]:
    """Ids as strings: 12, 12.0 and "12" are the same id; None for a missing or empty one."""
    found = texts(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # A column of whole numbers with gaps is written to CSV as 12.0 by pandas.
        return [text[:-2] if text and text.endswith(b".0") and text[:-2].isdigit() else text for text in found]
    return found


def texts(column: pa.Array) -> list[bytes | None]:
    """Cells as UTF-8 strings, None where there is nothing: whole numbers without a point, times in ISO 8601."""
    column = _decoded(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or _is_binary(column.type):
        return [text or None for text in column.cast(pa.large_binary()).to_pylist()]
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.string()).cast(pa.binary()).to_pylist()
    return [_text(value) for value in column.to_pylist()]


def lists(column: pa.Array, separator: str | None) -> list[list[bytes] | None]:
    """Cells as lists of strings: a list column's elements, or the parts of a string; None for an empty list."""
    column = _decoded(column)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        values = texts(column.flatten())
        lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
        ends = np.cumsum(lengths)
        return [
            [value for value in values[end - length : end] if value is not None] or None
            for end, length in zip(ends, lengths, strict=True)
        ]
    cells = texts(column)
    if separator is None:
        return [None if cell is None else [cell] for cell in cells]
    mark = separator.encode()
    return [None if cell is None else [p for p in map(bytes.strip, cell.split(mark)) if p] or None for cell in cells]


def numbers(column: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Cells as float64 [N], NaN where missing, and the texts that are no number."""
    column = _decoded(column)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        return _floats(column), []
    if pa.types.is_decimal(column.type):
        return _floats(column.cast(pa.float64())), []
    cells = pd.Series([None if text is None else text.decode() for text in texts(column)], dtype=object)
    found = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = [str(cell) for cell in cells[np.isnan(found)] if not _is_missing(cell)]
    return found, wrong


def seconds(column: pa.Array) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Cells as seconds since 1970 in UTC, int64 [N]; where they are missing, bool [N]; and the texts that are no time.

    Numbers are seconds, fractions dropped; a date or date-time without a zone is UTC.
    """
    column = _decoded(column)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        missing = column.is_null().to_numpy(zero_copy_only=False)
        # Arrow stores zoned times in UTC. Fractions go downwards, before 1970 too.
        exact = column.cast(
            pa.timestamp("us", column.type.tz if pa.types.is_timestamp(column.type) else None), safe=False
        )
        return np.floor_divide(exact.cast(pa.int64()).fill_null(0).to_numpy(), 1_000_000), missing, []
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).fill_null(0).to_numpy(), column.is_null().to_numpy(zero_copy_only=False), []
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        found, wrong = _parsed_seconds(column)
    else:
        found, wrong = numbers(column)
    missing = ~np.isfinite(found)
    return np.floor(np.where(missing, 0, found)).astype(np.int64), missing, wrong


def is_no_time(found: np.ndarray) -> np.ndarray:
    """Where seconds cannot be those of an interaction, bool [N]: before 1970, or so late that they are milliseconds."""
    return (found < 0) | (found > _LAST_SECOND)


def cells(batch: pa.RecordBatch, column: Column) -> tuple[Sequence[Value], list[str]]:
    """A column's cells [N] as a feature reads them, and the texts that are not what it reads."""
    array = batch.column(column.source)
    if column.kind == "string":
        return (lists(array, column.separator) if column.multivalued else texts(array)), []
    if column.kind == "float32":
        found, wrong = numbers(array)
        return [None if math.isnan(value) else value for value in found.tolist()], wrong
    times, missing, wrong = seconds(array)
    return [None if gone else time for time, gone in zip(times.tolist(), missing, strict=True)], wrong


def slice_values(batch: pa.RecordBatch, by: Slice) -> tuple[list[list[bytes]], list[str]]:
    """The slices [N] that rows belong to: the column's value or its range, `unknown` when missing."""
    array = batch.column(by.column)
    if by.boundaries is None:
        return [cell or [UNKNOWN] for cell in lists(array, None)], []
    name = ranges(by.boundaries)
    found, wrong = numbers(array)
    return [[UNKNOWN if math.isnan(value) else name(value)] for value in found.tolist()], wrong


def ranges(boundaries: Sequence[float]) -> Callable[[float], bytes]:
    """Names the range of a number: for the boundaries 18 and 25 these are <18, 18-24 and 25+."""
    edges = sorted(set(boundaries))
    whole = all(float(edge).is_integer() for edge in edges)
    shown = [f"{edge:g}" if not whole else str(int(edge)) for edge in edges]
    names = [f"<{shown[0]}"]
    for low, high in zip(range(len(edges)), range(1, len(edges)), strict=False):
        last = str(int(edges[high]) - 1) if whole else shown[high]
        names.append(shown[low] if last == shown[low] else f"{shown[low]}-{last}")
    names.append(f"{shown[-1]}+")
    encoded = [name.encode() for name in names]
    return lambda value: encoded[int(np.searchsorted(edges, value, side="right"))]


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _floats(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy(zero_copy_only=False)


def _text(value: Any) -> bytes | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (float, decimal.Decimal)) and math.isfinite(value) and value == int(value):
        return str(int(value)).encode()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat().encode()
    return str(value).encode()


def _is_missing(cell: Any) -> bool:
    return cell is None or str(cell).strip().lower() in _MISSING_WORDS


def _parsed_seconds(column: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Seconds in texts, float64 [N] with NaN where there are none: numbers, or dates and times in ISO 8601."""
    found, others = numbers(column)
    if not others:
        return found, []
    rest = np.flatnonzero(np.isnan(found))
    cells = pd.Series(column.take(pa.array(rest)).to_pylist(), dtype=object)
    times = pd.to_datetime(cells, utc=True, errors="coerce", format="ISO8601")
    parsed = times.notna().to_numpy()
    since = (times[parsed] - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)
    found[rest[parsed]] = since.to_numpy(np.float64)
    return found, [str(cell) for cell in cells[~parsed] if not _is_missing(cell)]
