"""What a table's columns hold, without a word of what they are for: a look at each cell, in bounded memory."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modules.data import columns, rows, tables
from modules.data.columns import Fault
from modules.data.distinct import DistinctCount, hashes
from modules.data.examples import VALUE_SEPARATOR
from modules.data.tables import is_listed, is_text, plain

# Cells that are kept as they are, to look at their words: so many of each batch, and of all of them.
_OF_BATCH, _SAMPLE = 2_000, 20_000
# 007 and 02139 are codes, whatever they look like.
_CODE = r"^-?0\d"
_DATE = r"^\s*\d{4}-\d"


@dataclass
class Profile:
    """One column."""

    table: str
    name: str
    rows: int = 0
    missing: int = 0
    """Null, empty or not a number in a column of numbers."""
    is_list: bool = False
    longest: int = 0
    """Values of the longest list."""
    values: DistinctCount = field(default_factory=DistinctCount)
    """Different values, as ids are compared; of lists their elements."""
    cells: DistinctCount = field(default_factory=DistinctCount)
    """Different cells, of lists too."""
    is_number: bool = True
    """Whether every value is a finite number, and none a code such as 007."""
    is_whole: bool = True
    is_date: bool = True
    """Whether every value is a date or a date-time, and not a number."""
    least: float = math.inf
    """Of the numbers; of dates in seconds since 1970."""
    most: float = -math.inf
    holds_separator: bool = False
    """Whether a value holds U+001F, which no list of an interaction may hold."""
    sample: list[str] = field(default_factory=list)
    """Some cells that are there; of lists their elements."""

    @property
    def there(self) -> int:
        """Cells that are not missing."""
        return self.rows - self.missing

    @property
    def different(self) -> int:
        """Different values, nearly."""
        return min(self.values.number, self.there) if not self.is_list else self.values.number

    @property
    def in_words(self) -> str:
        """The number of different values, for a sentence."""
        return f"{'' if self.values.is_exact else 'about '}{self.different:,}"

    @property
    def is_unique(self) -> bool:
        """Whether nearly every row has a value of its own, as an id has."""
        return not self.is_list and self.there > 0 and self.different >= 0.9 * self.rows

    @property
    def empty_share(self) -> float:
        return self.missing / self.rows if self.rows else 0.0

    def add(self, column: pa.Array) -> None:
        """Looks at a batch."""
        column = plain(column)
        self.rows += len(column)
        if is_listed(column.type):
            self.is_list, self.is_number, self.is_date = True, False, False
            lists = columns.lists(column, None)
            there = [each for each in lists if each]
            self.missing += len(lists) - len(there)
            self.longest = max([self.longest, *map(len, there)])
            values = [value for each in there for value in each]
            self.values.add(hashes(values))
            self.cells.add(hashes([VALUE_SEPARATOR.encode().join(each) for each in there]))
            self._keep(values)
            return
        if is_text(column.type):
            column = column.cast(pa.large_binary()).cast(pa.large_string())
        elif pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            column = column.cast(pa.float64(), safe=False)
        texts = columns.ids(column.unique())
        different = [text for text in texts if text]
        # Of a column of floats NaN is missing, of one of texts the empty one.
        gone = column.is_null(nan_is_null=True)
        self.missing += pc.sum(gone).as_py() or 0
        if is_text(column.type):
            self.missing += pc.sum(pc.equal(pc.binary_length(column), 0)).as_py() or 0
        if not different:
            return
        hashed = hashes(different)
        self.values.add(hashed)
        self.cells.add(hashed)
        self._measure(column, different)
        there = column.filter(pc.invert(gone))
        some = there.take(pa.array(np.unique(np.linspace(0, len(there) - 1, _OF_BATCH).astype(np.int64))))
        self._keep([text for text in columns.texts(some) if text])

    def _measure(self, column: pa.Array, different: Sequence[bytes]) -> None:
        kind = column.type
        if pa.types.is_boolean(kind) or pa.types.is_time(kind):
            self.is_number = self.is_date = False
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            self.is_number = False
            self._range(*columns.seconds(column)[:2])
        elif not is_text(kind):
            self.is_date = False
            self._number(*columns.numbers(column))
        else:
            texts = pa.array(different, pa.binary()).cast(pa.large_string())
            if self.is_number:
                if pc.any(pc.match_substring_regex(texts, _CODE)).as_py():
                    self.is_number = False
                else:
                    self._number(*columns.numbers(texts))
            if self.is_date:
                dated = pc.all(pc.match_substring_regex(texts, _DATE)).as_py()
                found, missing, faults = columns.seconds(texts) if dated else (np.zeros(0), np.zeros(0, bool), [])
                self.is_date = bool(dated and not faults and not missing.any())
                if self.is_date:
                    self._range(found, missing)

    def _number(self, numbers: np.ndarray, faults: list[Fault]) -> None:
        there = ~np.isnan(numbers)
        self.is_number = self.is_number and not faults and bool(there.any())
        self.is_whole = self.is_whole and bool((numbers[there] == np.floor(numbers[there])).all())
        self._range(numbers, ~there)

    def _range(self, numbers: np.ndarray, missing: np.ndarray) -> None:
        if not missing.all():
            self.least = min(self.least, float(numbers[~missing].min()))
            self.most = max(self.most, float(numbers[~missing].max()))

    def _keep(self, values: Sequence[bytes]) -> None:
        self.holds_separator = self.holds_separator or any(VALUE_SEPARATOR.encode() in value for value in values)
        step = max(1, len(values) // _OF_BATCH)
        self.sample += [value.decode() for value in values[::step]]
        if len(self.sample) > _SAMPLE:
            self.sample = self.sample[::2]

    def numbers(self) -> np.ndarray:
        """The numbers of the sample."""
        return columns.numbers(pa.array(self.sample, pa.string()))[0]


def profiles(table: str, path: str, key: str) -> tuple[dict[str, Profile], dict[str, str]]:
    """The profile of each column of a table that can be read, by name; and why the others cannot.

    Args:
        table: interactions, items or users.
        path: A file or a glob.
        key: What named the path, for messages.

    Raises:
        UserError: There is no file, one cannot be read, or a cell is no text.
    """
    schema, refused = tables.readable(table, path, key)
    found = {name: Profile(table, name) for name in schema.names}
    if not found:
        return found, refused
    for _, batch in rows.batches(table, path, list(found), key):
        for name, profile in found.items():
            profile.add(batch.column(name))
    return found, refused


def words(name: str) -> list[str]:
    """The words of a column's name, in small letters: userId, USER_ID and `user id` are user and id."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.split(r"[\W_]+", split) if word]
