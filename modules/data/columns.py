"""Arrow columns as the values that examples hold: ids, categories, numbers and times.

Columns come from `tables.read`, which has looked at their types and texts; what a cell must be beyond that is here.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from modules.data.examples import Value
from modules.data.tables import (
    FIRST_SECOND,
    LAST_SECOND,
    Column,
    is_listed,
    is_text,
    plain,
    shown,
    whole_seconds,
)
from modules.settings import Slice

UNKNOWN = b"unknown"
"""The slice of examples whose value is missing."""

_LATEST = 4_102_444_799
"""The last second of 2099. An interaction cannot come later; and all milliseconds but those of the first weeks of 1970
are above."""
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-30, 1e30
"""Sums of weights, and of losses times weights, neither vanish nor overflow in float32."""
_MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none"})


class Fault(NamedTuple):
    """Cells that are not what is read from their column; they are read as missing."""

    rows: np.ndarray
    """Where, bool [N]."""
    what: str
    """Follows the number of values."""
    fix: str
    example: str
    """The first of them."""


def ids(column: pa.Array) -> list[bytes | None]:
    """Ids as strings: 12, 12.0 and "12" are the same id; None for a missing or empty one."""
    column = plain(column)
    strings = texts(column)
    if is_text(column.type):
        # A column of whole numbers with gaps is written to CSV as 12.0 by pandas.
        return [text[:-2] if text and text.endswith(b".0") and text[:-2].isdigit() else text for text in strings]
    return strings


def texts(column: pa.Array) -> list[bytes | None]:
    """Cells as UTF-8 strings, None where there is nothing: whole numbers without a point, times in ISO 8601."""
    column = plain(column)
    if is_text(column.type):
        return [text or None for text in column.cast(pa.large_binary()).to_pylist()]
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.string()).cast(pa.binary()).to_pylist()
    if pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return [_text(value) for value in column.to_pylist()]


def lists(column: pa.Array, separator: str | None) -> list[list[bytes] | None]:
    """Cells as lists of strings: a list column's elements, or the parts of a string; None for an empty list."""
    column = plain(column)
    if is_listed(column.type):
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


def numbers(column: pa.Array) -> tuple[np.ndarray, list[Fault]]:
    """Cells as float64 [N] that are finite in float32, NaN where missing; and those that are no such numbers."""
    floats, wrong = _floats(column)
    faults = _faults(column, wrong, "are not numbers", "correct them, or describe the column with another encoding")
    with np.errstate(over="ignore"):
        infinite = np.isinf(floats.astype(np.float32))
    faults += _faults(
        column, infinite, "are infinite or too large for 32 bits", "write finite numbers, or leave those cells empty"
    )
    return np.where(infinite, np.nan, floats), faults


def weights(column: pa.Array) -> tuple[np.ndarray, list[Fault]]:
    """Weights of interactions, float32 [N], 0 where there is none; and cells that are none, missing ones included."""
    values, faults = numbers(column)
    told = _any(faults, len(values))
    faults += _faults(column, np.isnan(values) & ~told, "are missing (NaN or empty)", "write a weight into every row")
    impossible = (values < 0) | ((values != 0) & (np.abs(values) < _LEAST_WEIGHT)) | (values > _MOST_WEIGHT)
    what = f"are no weights, which are 0 or from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:g}"
    faults += _faults(column, impossible, what, "correct them")
    return np.where(_any(faults, len(values)), 0, values).astype(np.float32), faults


def seconds(column: pa.Array) -> tuple[np.ndarray, np.ndarray, list[Fault]]:
    """Cells as seconds since 1970 in UTC, int64 [N]; where there is none, bool [N]; and those that are no time.

    Numbers are seconds, fractions dropped; a date or date-time without a zone is UTC.
    """
    column = plain(column)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return *whole_seconds(column), []
    if pa.types.is_integer(column.type):
        # Not as floats, which lose whole numbers above 2 ** 53.
        whole = column.fill_null(0).to_numpy()
        missing = column.is_null().to_numpy(zero_copy_only=False)
        wrong = np.zeros(len(column), bool)
    else:
        whole, wrong = _parsed_seconds(column) if is_text(column.type) else _floats(column)
        missing = np.isnan(whole) & ~wrong
    outside = (whole < FIRST_SECOND) | (whole > LAST_SECOND)
    usable = ~(missing | wrong | outside)
    faults = _faults(column, wrong, "are neither seconds since 1970 nor dates in ISO 8601", "correct them")
    faults += _faults(
        column, outside, "are infinite or too large to be seconds since 1970",
        "correct them, and divide milliseconds by 1000",
    )  # fmt: skip
    return np.floor(np.where(usable, whole, 0)).astype(np.int64), ~usable, faults


def moments(column: pa.Array) -> tuple[np.ndarray, list[Fault]]:
    """Times of interactions in seconds since 1970, int64 [N]; and cells that are none, missing ones included."""
    times, missing, faults = seconds(column)
    told = _any(faults, len(times))
    faults += _faults(
        column, missing & ~told, "are missing (NaN or empty)", "write the time of every interaction, or remove the row"
    )
    impossible = (times < 0) | (times > _LATEST)
    faults += _faults(
        column, impossible, "are before 1970 or after 2099, when no interaction happened",
        "correct or remove those rows, and divide milliseconds by 1000",
    )  # fmt: skip
    return np.where(missing | impossible, 0, times), faults


def cells(batch: pa.RecordBatch, column: Column) -> tuple[Sequence[Value], list[Fault]]:
    """A column's cells [N] as a feature reads them, and those that are not what it reads."""
    array = batch.column(column.source)
    if column.kind == "string":
        return (lists(array, column.separator) if column.multivalued else texts(array)), []
    if column.kind == "float32":
        values, faults = numbers(array)
        return [None if math.isnan(value) else value for value in values.tolist()], faults
    times, missing, faults = seconds(array)
    return [None if gone else time for time, gone in zip(times.tolist(), missing, strict=True)], faults


def slice_values(batch: pa.RecordBatch, by: Slice) -> tuple[list[list[bytes]], list[Fault]]:
    """The slices [N] that rows belong to: the column's value or its range, `unknown` when missing."""
    array = batch.column(by.column)
    if by.boundaries is None:
        return [cell or [UNKNOWN] for cell in lists(array, None)], []
    name = ranges(by.boundaries)
    values, faults = numbers(array)
    return [[UNKNOWN if math.isnan(value) else name(value)] for value in values.tolist()], faults


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


def _faults(column: pa.Array, rows: np.ndarray, what: str, fix: str) -> list[Fault]:
    """One fault, or none if no row has it."""
    if not rows.any():
        return []
    return [Fault(rows, what, fix, shown(plain(column)[int(np.argmax(rows))].as_py()))]


def _any(faults: Sequence[Fault], rows: int) -> np.ndarray:
    """Where at least one fault is, bool [N]."""
    return np.logical_or.reduce([np.zeros(rows, bool), *(fault.rows for fault in faults)])


def _floats(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Cells as float64 [N], NaN where there is no number; and where there is something that is none, bool [N]."""
    column = plain(column)
    if not is_text(column.type):
        floats = column.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy(zero_copy_only=False)
        return floats, np.zeros(len(floats), bool)
    cells = pd.Series(_strings(column), dtype=object)
    floats = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = np.isnan(floats)
    wrong[wrong] = [not _is_missing(cell) for cell in cells[wrong]]
    return floats, wrong


def _parsed_seconds(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """As `_floats`, of seconds: the texts are numbers, or dates and times in ISO 8601."""
    floats, wrong = _floats(column)
    if not wrong.any():
        return floats, wrong
    rest = np.flatnonzero(wrong)
    cells = pd.Series(_strings(column.take(pa.array(rest))), dtype=object)
    # Pandas takes words such as "now" for times, too.
    dated = cells.str.match(r"\s*\d").to_numpy(bool)
    times = pd.to_datetime(cells.where(dated), utc=True, errors="coerce", format="ISO8601")
    parsed = times.notna().to_numpy()
    since = (times[parsed] - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)
    floats[rest[parsed]] = since.to_numpy(np.float64)
    for row in np.flatnonzero(dated & ~parsed):
        floats[rest[row]] = _far_seconds(cells[row])
    return floats, wrong & np.isnan(floats)


def _far_seconds(text: str) -> float:
    """Seconds since 1970 of a date that pandas' nanoseconds do not reach; NaN for what is no date."""
    try:
        time = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return math.nan
    zoned = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    return (zoned - datetime.datetime.fromtimestamp(0, datetime.UTC)) // datetime.timedelta(seconds=1)


def _strings(column: pa.Array) -> list[str | None]:
    return [None if text is None else text.decode() for text in texts(column)]


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
