"""What is found in the tables while they are read: counts, and what only a person can put right.

InteractionExampleGen's workers and `twotower check` find it with the same code and say it in the same words. Imports
neither TensorFlow nor Beam.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from modules.data import histories
from modules.data.examples import CATALOGUE, TRAIN
from modules.data.histories import SPLITS, Interactions
from modules.data.tables import TableError, shown
from modules.errors import UserError
from modules.settings import ColumnSplit, LeaveLastOutSplit, Split, Tables, TemporalSplit

Entry = tuple[tuple[str, ...], tuple[int, str]]
"""(Name of a count,), (split, day) or the fields of a `Problem`; how often, and an example."""


class Problem(NamedTuple):
    """Something in the tables that only a person can put right."""

    where: str
    what: str
    """Follows the number of cases."""
    fix: str


def count(name: str, number: int = 1) -> Entry:
    """So many more of what `Report.counts` has under this name."""
    return (name,), (int(number), "")


def day(split: str, number_of_day: int, number: int) -> Entry:
    """So many more interactions of a split on a day, in days since 1970."""
    return (split, str(number_of_day)), (number, "")


def problem(where: str, what: str, example: str, fix: str, number: int = 1) -> Entry:
    """A problem with the number of its cases."""
    return tuple(Problem(where, what, fix)), (int(number), example)


def unreadable(error: TableError) -> Entry:
    """A file that cannot be read."""
    return problem(error.key, "files cannot be read", f"{error.file} ({error.reason})", error.fix)


def duplicate(table: str, column: str, key: bytes) -> Entry:
    """An id that several rows of a table have."""
    return problem(
        f"tables.{table}", f"values of {column!r} are there more than once", shown(key.decode()), "keep one row of each"
    )


def without_item(settings: Tables, items: np.ndarray) -> Iterator[Entry]:
    """Interactions [N] whose items the items table lacks."""
    if len(items):
        yield count("items_not_in_table", len(items))
        if settings.items_not_in_table == "fail":
            yield problem(
                "tables.interactions", f"rows have an item that {settings.items.path} lacks",
                min(shown(item.decode()) for item in set(items.tolist())),
                "add those items, or set tables.items_not_in_table to drop or keep", len(items),
            )  # fmt: skip
        if settings.items_not_in_table != "keep":
            yield count("dropped_items_not_in_table", len(items))


def without_user(settings: Tables, users: np.ndarray, left: int) -> Iterator[Entry]:
    """Interactions [N] of users whom the users table lacks; of those with an item that counts, `left`."""
    if len(users):
        assert settings.users is not None
        yield count("users_not_in_table", len(users))
        if settings.users_not_in_table == "fail":
            yield problem(
                "tables.interactions", f"rows have a user that {settings.users.path} lacks",
                min(shown(user.decode()) for user in set(users.tolist())),
                "add those users, or set tables.users_not_in_table to drop or keep", len(users),
            )  # fmt: skip
        if settings.users_not_in_table != "keep":
            yield count("dropped_users_not_in_table", left)


def of_user(interactions: Interactions, codes: np.ndarray, max_sequence: int) -> Iterator[Entry]:
    """One user's interactions [N] by split [N], and what is cut off the sequence."""
    kept = np.bincount(codes, minlength=len(SPLITS))
    yield count("weighted_train", np.count_nonzero(interactions.weight[codes == SPLITS.index(TRAIN)]))
    for name, number in zip(SPLITS, kept.tolist(), strict=True):
        yield count(f"interactions_{name}", number)
    places, newest = histories.sequence(codes), histories.sequence(codes, max_sequence)
    if len(newest) < len(places):
        cut = codes[places[: len(places) - len(newest)]]
        yield count("cut_sequences")
        yield count("cut_interactions", len(cut))
        yield count("cut_train_interactions", np.count_nonzero(SPLITS.index(TRAIN) == cut))


def add_up(findings: Iterable[tuple[int, str]]) -> tuple[int, str]:
    """Sums counts and keeps the first example by alphabet, so that the same tables give the same words."""
    total, first = 0, ""
    for number, example in findings:
        total += number
        first = min(first, example) if first else example
    return total, first


class Report:
    """What was counted and found, added up.

    Args:
        entries: One for each count and problem.
    """

    def __init__(self, entries: Iterable[Any]) -> None:
        found = [(tuple(key), finding) for key, finding in entries]
        names = (*_COUNTS, *(f"examples_{split}" for split in (*SPLITS, CATALOGUE)))
        self.counts = dict.fromkeys(names, 0) | {key[0]: number for key, (number, _) in found if len(key) == 1}
        self.days: dict[str, dict[int, int]] = {split: {} for split in SPLITS}
        """Split → day, in days since 1970 → interactions."""
        by_day = [(split, int(day), number) for (split, day), (number, _) in (e for e in found if len(e[0]) == 2)]
        for split, number_of_day, number in sorted(by_day):
            self.days[split][number_of_day] = number
        self._problems = {Problem(*key): finding for key, finding in found if len(key) > 2}

    def problems(self) -> list[str]:
        """Everything that was found, one line each."""
        return [
            f"{problem.where}: {number:,} {problem.what}, for instance {example}: {problem.fix}"
            for problem, (number, example) in sorted(self._problems.items())
        ]

    def shortage(self, settings: Tables, split: Split) -> str | None:
        """What there is too little of: the first table or split that is empty, in words; None when all have rows."""
        counts = self.counts
        if not counts["items"]:
            return f"tables.items: {settings.items.path} has no rows; it must list the catalogue"
        if not counts["interactions"]:
            return f"tables.interactions: {settings.interactions.path} has no rows"
        kept = sum(counts[f"interactions_{split}"] for split in SPLITS)
        if not kept:
            return (
                f"tables.interactions: none of the {counts['interactions']:,} interactions has an item and a user that "
                f"the other tables know; do {settings.interactions.item} and {settings.items.id} hold the same ids?"
            )
        for name in SPLITS:
            if not counts[f"interactions_{name}"]:
                return f"split: the {name} split of {kept:,} interactions is empty; {_fix_of(name, split)}"
        if counts["cut_train_interactions"] == counts["interactions_train"]:
            return (
                f"tables.max_sequence is {settings.max_sequence}, which leaves validation interactions alone; raise it"
            )
        if not counts["weighted_train"]:
            return (
                f"tables.interactions.weight: all interactions of the train split have the weight 0 in column "
                f"{settings.interactions.weight!r} of {settings.interactions.path}, which leaves nothing to learn; "
                "correct the column, or leave tables.interactions.weight out"
            )
        return None

    def raise_problems(self, settings: Tables, split: Split) -> None:
        """Raises a UserError for everything that was found, or else for what there is too little of."""
        problems = self.problems()
        shortage = None if problems else self.shortage(settings, split)
        if problems or shortage:
            raise UserError(shortage or "; ".join(problems))


_COUNTS = ("interactions", "users", "items", "items_not_in_table", "dropped_items_not_in_table", "users_not_in_table",
           "dropped_users_not_in_table", "weighted_train", *(f"interactions_{split}" for split in SPLITS),
           "cut_sequences", "cut_interactions", "cut_train_interactions")  # fmt: skip


def _fix_of(empty: str, split: Split) -> str:
    if isinstance(split, TemporalSplit) and split.validation_from is not None:
        return "move split.validation_from and split.eval_from into the time that the interactions cover"
    if isinstance(split, ColumnSplit):
        return f"write {empty!r} into column {split.column!r} of some interactions"
    if isinstance(split, LeaveLastOutSplit):
        return "no user has three interactions; choose another split.strategy"
    if isinstance(split, TemporalSplit):
        return "a temporal split needs three different times; choose another split.strategy or bring more interactions"
    key = "or lower both fractions" if empty == "train" else f"or raise split.{empty}"
    return f"bring more interactions, {key}"
