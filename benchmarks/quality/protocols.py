"""What is held out, by protocol. One function carves the test part from a table and the validation part from train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

TEST_SHARE = {"random": 0.2, "leave-last-out": 0.0, "temporal": 0.1, "cold-users": 0.2, "cold-items": 0.1}
"""Protocol → what the judge holds out: a share of interactions, of users, or of items; leave-last-out has none."""
PROTOCOLS = tuple(TEST_SHARE)
_BROUGHT = 0.8
"""Share of a cold user's interactions, by time, that are the history; the rest is asked for."""
VALIDATION_SHARE = TEST_SHARE | {"random": 0.1, "latest": 1 - _BROUGHT}
"""The same for the validation part that systems carve from train; `latest` holds each user's latest interactions."""

COLUMNS = ["user", "item", "timestamp"]


@dataclass(frozen=True)
class Carved:
    """One cut through a table of interactions (columns `user`, `item`, `timestamp`; the index is the row's place)."""

    train: pd.DataFrame
    """All that a system may be fitted on."""
    test: pd.DataFrame
    """The answers."""
    history: pd.DataFrame
    """What the users who are asked about have done so far; rows of train but for cold users."""
    candidates: np.ndarray | None = None
    """Items that a second ranking is restricted to (cold-items); None for one ranking of the whole catalogue."""

    def queries(self) -> pd.DataFrame:
        """`user` and `timestamp`: who has a test part, asked at its first row, never before the history's end."""
        first = self.test.groupby("user", sort=False)["timestamp"].min()
        last = self.history.groupby("user", sort=False)["timestamp"].max().reindex(first.index)
        return np.maximum(first, last.fillna(first).astype(first.dtype)).reset_index()

    def relevant(self) -> dict[str, set[str]]:
        """User → different items of the test part which the history lacks; users who have none are left out."""
        seen = self.history.groupby("user")["item"].agg(set).to_dict()
        asked = self.test.groupby("user", sort=False)["item"].agg(set)
        relevant = {user: items - seen.get(user, set()) for user, items in asked.items()}
        return {user: items for user, items in relevant.items() if items}


def carve(table: pd.DataFrame, protocol: str, draw: int, share: float) -> Carved:
    """Cuts a table of interactions.

    - random: a permutation's first rows are train.
    - leave-last-out: the last row of each user with at least three, by time, equal times in the table's order.
    - temporal: the latest rows; equal times stay together.
    - cold-users: users drawn and taken out of train whole; each brings the first 80 % of their rows.
    - cold-items: items drawn and taken out of train whole.

    Args:
        table: Columns `user`, `item`, `timestamp`.
        protocol: One of `PROTOCOLS`.
        draw: Seed of what is drawn.
        share: As in `TEST_SHARE`.
    """
    return _CARVERS[protocol](table, np.random.default_rng(draw), share)


def _random(table: pd.DataFrame, rng: np.random.Generator, share: float) -> Carved:
    order = rng.permutation(len(table))
    size = len(table) - round(len(table) * share)
    return _warm(table, np.isin(np.arange(len(table)), order[size:]))


def _leave_last_out(table: pd.DataFrame, rng: np.random.Generator, share: float) -> Carved:
    by_user = _in_time_order(table).groupby("user", sort=False)
    last = by_user.tail(1).index[(by_user["item"].size() >= 3).loc[by_user.tail(1)["user"]].to_numpy()]
    return _warm(table, table.index.isin(last))


def _temporal(table: pd.DataFrame, rng: np.random.Generator, share: float) -> Carved:
    times = np.sort(table["timestamp"].to_numpy())
    cutoff = times[min(len(times) - 1, round(len(times) * (1 - share)))]
    return _warm(table, (table["timestamp"] >= cutoff).to_numpy())


def _cold_users(table: pd.DataFrame, rng: np.random.Generator, share: float) -> Carved:
    held = _draw(table["user"], rng, share)
    theirs = _in_time_order(table[table["user"].isin(held)])
    place = theirs.groupby("user").cumcount()
    size = theirs.groupby("user")["item"].transform("size")
    brought = place < np.ceil(size * _BROUGHT).clip(upper=size - 1)
    return Carved(table[~table["user"].isin(held)], theirs[~brought].sort_index(), theirs[brought].sort_index())


def _latest(table: pd.DataFrame, rng: np.random.Generator, share: float) -> Carved:
    ordered = _in_time_order(table)
    place = ordered.groupby("user").cumcount(ascending=False)
    size = ordered.groupby("user")["item"].transform("size")
    latest = ordered.index[place < np.floor(size * share)]
    return _warm(table, table.index.isin(latest))


def _cold_items(table: pd.DataFrame, rng: np.random.Generator, share: float) -> Carved:
    held = _draw(table["item"], rng, share)
    cut = _warm(table, table["item"].isin(held).to_numpy())
    return Carved(cut.train, cut.test, cut.history, held)


_CARVERS: dict[str, Callable[[pd.DataFrame, np.random.Generator, float], Carved]] = {
    "random": _random,
    "leave-last-out": _leave_last_out,
    "temporal": _temporal,
    "cold-users": _cold_users,
    "cold-items": _cold_items,
    "latest": _latest,
}


def _warm(table: pd.DataFrame, held: np.ndarray) -> Carved:
    train, test = table[~held], table[held]
    return Carved(train, test, train[train["user"].isin(test["user"])])


def _in_time_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("timestamp", kind="stable")


def _draw(values: pd.Series, rng: np.random.Generator, share: float) -> np.ndarray:
    different = np.array(sorted(values.unique()), object)
    return rng.permutation(different)[: max(1, round(len(different) * share))]
