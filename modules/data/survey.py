"""One look at all three tables: what InteractionExampleGen would count and refuse, in memory that does not grow with
the number of interactions.

Rows are read, and what is wrong with them is said, by the code that the component runs. An id takes 8 bytes. What needs
all interactions of a user (splits, sequences, repeats) is asked of a sample of users: of all of them, while they and
their interactions are few enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from modules.data import histories, report, tables
from modules.data.distinct import DistinctCount, IdSet, hashes
from modules.data.histories import SPLITS, Cutoffs, Interactions
from modules.data.parsed_rows import InteractionRows, ItemRows, UserRows
from modules.data.report import Entry, Report
from modules.data.tables import Column, Part, Plan, TableError
from modules.data.time_histogram import TimeHistogram
from modules.settings import Split, Tables, TemporalSplit

_SAMPLED_ROWS, _SAMPLED_USERS = 2**20, 2**16
# So many batches' times are collected before they are counted together.
_HISTOGRAMS = 32


@dataclass
class Cells:
    """The cells of a column as its feature reads them."""

    rows: int = 0
    missing: int = 0
    values: DistinctCount = field(default_factory=DistinctCount)
    example: str = ""
    """A value of it."""

    def add(self, cells: Iterable[Any]) -> None:
        """Counts a batch: bytes, lists of bytes or numbers; nothing, "" and NaN are missing."""
        there: list[Any] = []
        for cell in cells:
            self.rows += 1
            if cell is None or cell == b"" or cell != cell:
                self.missing += 1
            elif isinstance(cell, list):
                there += cell
            else:
                there.append(cell)
        if not there:
            return
        self.example = self.example or _text(there[0])
        self.values.add(hashes(there))


@dataclass(frozen=True)
class Sampled:
    """What the interactions of the sampled users say; all numbers are of the sample."""

    share: float
    """Of all users that are sampled; 1 for all."""
    lengths: np.ndarray
    """Interactions of each user, int64 [U]."""
    judged: Mapping[str, int]
    """By split, the users who have interactions in it."""
    repeated: float
    """Share of the interactions whose item the user had before, at another time."""
    twice: float
    """Share of the interactions of which user, item and time were there before."""


@dataclass(frozen=True)
class Survey:
    """What was found."""

    report: Report
    """As the component's; where not all users are sampled, its counts by split are estimates."""
    sampled: Sampled
    cells: Mapping[tuple[str, str], Cells]
    """By table and key of the example."""
    times: TimeHistogram
    """Of the interactions that count."""
    users_in_table: int
    spaced: int
    """Interactions whose item the items table lacks, but has without the spaces around it."""
    constant_weight: bool
    """Whether there are weights and all of them are the same."""


def survey(settings: Tables, split: Split, plan: Plan) -> Survey:
    """Reads all tables once.

    Args:
        settings: Where they are.
        split: How interactions become train, validation and eval.
        plan: Which columns are read.

    Raises:
        UserError: A table has no file.
    """
    return _Look(settings, split, plan).survey()


class _Look:
    """The state of one look."""

    def __init__(self, settings: Tables, split: Split, plan: Plan) -> None:
        self._settings, self._split, self._plan = settings, split, plan
        self._found: dict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
        self._cells: dict[tuple[str, str], Cells] = defaultdict(Cells)

    def survey(self) -> Survey:
        settings, split, plan = self._settings, self._split, self._plan
        items = self._ids("items", settings.items.path, ItemRows(settings, plan))
        self._tell([report.count("items", len(items))])
        users = None
        if settings.users is not None:
            users = self._ids("users", settings.users.path, UserRows(settings, plan))

        rows = InteractionRows(settings, split, plan)
        known_users, sample = IdSet(), _UserSample()
        times = [TimeHistogram.total([])]
        spaced, least, most = 0, np.inf, -np.inf
        for part, first_row, batch in self._batches("interactions", settings.interactions.path, rows.columns):
            whose, interactions, entries = rows.parse(part, first_row, batch)
            self._tell(entries)
            if not len(interactions):
                continue
            least = min(least, float(interactions.weight.min()))
            most = max(most, float(interactions.weight.max()))
            user_hashes = hashes(whose)
            known = items.has(hashes(interactions.item))
            lacking = interactions.item[~known]
            self._tell(report.without_item(settings, lacking))
            spaced += int(items.has(hashes([item.strip() for item in lacking])).sum()) if len(lacking) else 0
            counts = np.ones(len(known), bool) if settings.items_not_in_table == "keep" else known
            if users is not None:
                strange = ~users.has(user_hashes)
                self._tell(report.without_user(settings, whose[strange], int((counts & strange).sum())))
                if settings.users_not_in_table != "keep":
                    counts = counts & ~strange
            if not counts.all():
                whose, interactions, user_hashes = whose[counts], interactions.take(counts), user_hashes[counts]
            for key, values in interactions.context.items():
                self._cells["interactions", key].add(values.tolist())
            known_users.add(user_hashes)
            times.append(TimeHistogram.of(interactions.timestamp))
            if len(times) > _HISTOGRAMS:
                times = [TimeHistogram.total(times)]
            sample.add(whose, user_hashes, interactions)
        self._tell([report.count("users", len(known_users))])
        whole = TimeHistogram.total(times)
        sampled = self._of_users(sample, self._cutoffs(whole))
        return Survey(
            report=Report((key, report.add_up(findings)) for key, findings in self._found.items()),
            sampled=sampled,
            cells=dict(self._cells),
            times=whole,
            users_in_table=0 if users is None else len(users),
            spaced=spaced,
            constant_weight=settings.interactions.weight is not None and least == most,
        )

    def _tell(self, entries: Iterable[Entry]) -> None:
        for key, finding in entries:
            self._found[key] = [report.add_up([*self._found[key], finding])]

    def _batches(self, table: str, path: str, columns: Iterable[Column]) -> Iterator[tuple[Part, int, pa.RecordBatch]]:
        """(Part, position of the first row in the file, batch); a file that cannot be read is an entry."""
        wanted = list(columns)
        for number, file in enumerate(tables.files(table, path)):
            try:
                pieces = list(tables.parts(number, file, f"tables.{table}.path"))
            except TableError as error:
                self._tell([report.unreadable(error)])
                continue
            for part in pieces:
                try:
                    for first_row, batch in tables.read(part, wanted):
                        yield part, first_row, batch
                except TableError as error:
                    self._tell([report.unreadable(error)])

    def _ids(self, table: str, path: str, rows: ItemRows | UserRows) -> IdSet:
        """The ids of a table, which are there once each."""
        ids, twice = IdSet(), IdSet()
        for part, first_row, batch in self._batches(table, path, rows.columns):
            parsed = rows.parse(part, first_row, batch)
            self._tell(parsed.entries)
            for key, values in parsed.cells.items():
                self._cells[table, key].add(values)
            there = np.array([each for each in parsed.ids if each is not None], object)
            hashed = hashes(there)
            again = ids.add(hashed)
            if again.any():
                first_time = ~twice.add(hashed[again])
                self._tell(report.duplicate(table, rows.id, each) for each in there[again][first_time])
        return ids

    def _cutoffs(self, times: TimeHistogram) -> Cutoffs | None:
        split = self._split
        if not isinstance(split, TemporalSplit) or not len(times.steps):
            return None
        if split.validation_from is not None and split.eval_from is not None:
            return split.validation_from, split.eval_from
        return histories.fraction_cutoffs(times.steps << times.shift, times.counts, split)

    def _of_users(self, sample: _UserSample, cutoffs: Cutoffs | None) -> Sampled:
        """Splits the interactions of the sampled users as the component does, and counts."""
        lengths, repeated, twice = [], 0, 0
        judged = dict.fromkeys(SPLITS, 0)
        for user, pieces in sample.by_user():
            interactions = histories.in_time_order([pieces])
            codes = histories.assign(user, interactions, self._split, cutoffs)
            # Numbers of all users, as far as a sample can say.
            self._tell(
                (key, (number << sample.shift, example))
                for key, (number, example) in report.of_user(interactions, codes, self._settings.max_sequence)
            )
            for code in np.unique(codes).tolist():
                judged[SPLITS[code]] += 1
            lengths.append(len(interactions))
            moments = set(zip(interactions.item.tolist(), interactions.timestamp.tolist(), strict=True))
            twice += len(interactions) - len(moments)
            repeated += len(moments) - len({item for item, _ in moments})
        total = max(1, sum(lengths))
        return Sampled(
            share=0.5**sample.shift,
            lengths=np.array(lengths, np.int64),
            judged=judged,
            repeated=repeated / total,
            twice=twice / total,
        )


class _UserSample:
    """All interactions of users who are chosen by hash, each time half as many when there are too many."""

    def __init__(self) -> None:
        self.shift = 0
        """Of 2 ** `shift` users one is in the sample."""
        self._whose: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []
        self._interactions: list[Interactions] = []
        self._rows = 0
        self._users = IdSet()

    def add(self, whose: np.ndarray, hashed: np.ndarray, interactions: Interactions) -> None:
        """Takes what belongs to the sample.

        Args:
            whose: User ids [N].
            hashed: Their hashes [N].
            interactions: [N].
        """
        # Of them only the users' order in time counts.
        bare = Interactions(
            interactions.timestamp, interactions.order, interactions.item, interactions.weight, interactions.split
        )
        self._take(whose, hashed, bare)
        while self._rows > _SAMPLED_ROWS or len(self._users) > _SAMPLED_USERS:
            self.shift += 1
            parts = list(zip(self._whose, self._hashes, self._interactions, strict=True))
            self._whose, self._hashes, self._interactions, self._rows = [], [], [], 0
            self._users = IdSet()
            for part in parts:
                self._take(*part)

    def _take(self, whose: np.ndarray, hashed: np.ndarray, interactions: Interactions) -> None:
        chosen = hashed & np.uint64((1 << self.shift) - 1) == 0
        self._whose.append(whose[chosen])
        self._hashes.append(hashed[chosen])
        self._interactions.append(interactions.take(chosen))
        self._rows += int(chosen.sum())
        self._users.add(hashed[chosen])

    def by_user(self) -> Iterator[tuple[bytes, Interactions]]:
        """(User id, interactions) of each user of the sample."""
        if not self._rows:
            return
        parts = self._interactions
        splits = [part.split for part in parts if part.split is not None]
        whole = Interactions(
            timestamp=np.concatenate([part.timestamp for part in parts]),
            order=np.concatenate([part.order for part in parts]),
            item=np.concatenate([part.item for part in parts]),
            weight=np.concatenate([part.weight for part in parts]),
            split=np.concatenate(splits) if splits else None,
        )
        yield from histories.by_user(np.concatenate(self._whose), whole)


def _text(value: Any) -> str:
    return tables.shown(value.decode() if isinstance(value, bytes) else value)
