"""One user's interactions in time: which split each belongs to, and what had happened before it. Pure numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from modules.features import EVAL, TRAIN, VALIDATION
from modules.tables import ColumnSplit, LeaveLastOutSplit, RandomSplit, Split, TemporalSplit

SPLITS = (TRAIN, VALIDATION, EVAL)
"""Names by code: arrays of splits hold positions in here."""
_TRAIN, _VALIDATION, _EVAL = range(3)

Cutoffs = tuple[int, int]
"""Seconds since 1970 at which validation and eval begin."""


@dataclass(frozen=True, slots=True)
class Interactions:
    """Some interactions of one user: parallel arrays [N]."""

    timestamp: np.ndarray
    """Seconds since 1970, int64."""
    order: np.ndarray
    """Position in the original table, int64; settles equal times."""
    item: np.ndarray
    """Item ids, objects of type bytes."""
    weight: np.ndarray
    """float32."""
    split: np.ndarray | None
    """int8 positions in `SPLITS` if the table says which; else None."""
    context: np.ndarray | None
    """The row's own columns, already serialized, objects of type bytes; None when there are none."""

    def __len__(self) -> int:
        return len(self.timestamp)

    def take(self, positions: np.ndarray) -> Interactions:
        """The interactions at these positions, or where a mask is true."""
        return replace(
            self,
            timestamp=self.timestamp[positions],
            order=self.order[positions],
            item=self.item[positions],
            weight=self.weight[positions],
            split=None if self.split is None else self.split[positions],
            context=None if self.context is None else self.context[positions],
        )


def in_time_order(pieces: Sequence[Interactions]) -> Interactions:
    """One user's pieces as one, by time, equal times in the order of the original table."""
    first = pieces[0]
    whole = (
        first
        if len(pieces) == 1
        else Interactions(
            timestamp=np.concatenate([p.timestamp for p in pieces]),
            order=np.concatenate([p.order for p in pieces]),
            item=np.concatenate([p.item for p in pieces]),
            weight=np.concatenate([p.weight for p in pieces]),
            split=None if first.split is None else np.concatenate([p.split for p in pieces if p.split is not None]),
            context=None
            if first.context is None
            else np.concatenate([p.context for p in pieces if p.context is not None]),
        )
    )
    return whole.take(np.lexsort((whole.order, whole.timestamp)))


def assign(user: bytes, interactions: Interactions, split: Split, cutoffs: Cutoffs | None) -> np.ndarray:
    """The split of each of a user's interactions.

    Args:
        user: The user's id, part of what the random split hashes.
        interactions: In time order.
        split: The strategy.
        cutoffs: Of the temporal strategy; None for the others.

    Returns:
        int8 [N], positions in `SPLITS`.
    """
    if isinstance(split, ColumnSplit):
        assert interactions.split is not None
        return interactions.split
    codes = np.full(len(interactions), _TRAIN, np.int8)
    if isinstance(split, TemporalSplit):
        assert cutoffs is not None
        codes[interactions.timestamp >= cutoffs[0]] = _VALIDATION
        codes[interactions.timestamp >= cutoffs[1]] = _EVAL
    elif isinstance(split, LeaveLastOutSplit):
        # With fewer than three, nothing would be left to train on.
        if len(interactions) >= 3:
            codes[-2:] = _VALIDATION, _EVAL
    else:
        drawn = _uniform(user, interactions, split)
        codes[drawn < split.eval + split.validation] = _VALIDATION
        codes[drawn < split.eval] = _EVAL
    return codes


def fraction_cutoffs(times: np.ndarray, counts: np.ndarray, split: TemporalSplit) -> Cutoffs:
    """Where validation and eval begin, so that their shares of all interactions are as near as can be to those asked.

    Equal times never come apart, and while there are three different times, no split is empty.

    Args:
        times: Different times, rising, int64 [T], T ≥ 1.
        counts: Interactions at each, [T].
        split: The fractions.
    """
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    last = len(times) - 1
    start_eval = max(min(2, last), int(np.argmin(np.abs(before - total * (1 - split.eval)))))
    share = np.abs(before[:start_eval] - total * (1 - split.eval - split.validation))
    start_validation = max(min(1, last), int(np.argmin(share)) if start_eval else 0)
    return int(times[start_validation]), int(times[start_eval])


class Row(NamedTuple):
    """An example to be written."""

    split: int
    """Position in `SPLITS`."""
    position: int
    """The interaction whose item, weight and context it carries."""
    timestamp: int
    history: Sequence[bytes]
    """Oldest first."""
    history_age: int | None
    """Seconds from the newest item of the history to the row; None without a history."""
    relevant: Sequence[bytes]


def rows(
    interactions: Interactions, codes: np.ndarray, max_length: int | None, evaluation: Literal["train", "rolling"]
) -> Iterator[Row]:
    """One user's examples; nothing that a row carries is later than the row.

    - train: one per interaction; history = the train items before it, the newest `max_length`.
    - validation: one per interaction; history = the train and validation items before it, the newest `max_length`.
      (A train row does not see validation items, or a random split would show the model what it is stopped by.)
    - eval, `train`: one for the user; history = all train and validation items, relevant = the different eval items,
      both in time order, the rest from the first eval interaction.
    - eval, `rolling`: one per interaction; history = all items before it, whatever their split.

    Args:
        interactions: In time order, [N].
        codes: Their splits, [N].
        max_length: None for no histories in train and validation rows.
        evaluation: What an eval row's history is.
    """
    items = interactions.item.tolist()
    times = interactions.timestamp.tolist()
    splits = codes.tolist()
    seen: list[list[bytes]] = [[], [], []]
    """Items so far that a row of each split may see."""
    newest: list[int | None] = [None, None, None]
    """When the last of them was taken up."""

    def age(code: int, time: int) -> int | None:
        since = newest[code]
        return None if since is None else time - since

    evals: list[int] = []
    for position, (item, time, code) in enumerate(zip(items, times, splits, strict=True)):
        if code == _EVAL:
            evals.append(position)
            if evaluation == "rolling":
                yield Row(code, position, time, tuple(seen[_EVAL]), age(_EVAL, time), (item,))
        else:
            yield Row(code, position, time, seen[code][-max_length:] if max_length else (), age(code, time), (item,))
        # A split sees itself and those before it.
        for later in range(code, len(SPLITS)):
            seen[later].append(item)
            newest[later] = time
    if evals and evaluation == "train":
        relevant = tuple(dict.fromkeys(items[position] for position in evals))
        asked = max(times[evals[0]], newest[_VALIDATION] or 0)
        yield Row(_EVAL, evals[0], asked, seen[_VALIDATION], age(_VALIDATION, asked), relevant)


def _uniform(user: bytes, interactions: Interactions, split: RandomSplit) -> np.ndarray:
    """Draws from [0, 1) by hash, float64 [N]: the same however the table is ordered or cut into files."""
    drawn = np.empty(len(interactions))
    repeats: dict[tuple[bytes, int], int] = {}
    for n, (item, time) in enumerate(zip(interactions.item.tolist(), interactions.timestamp.tolist(), strict=True)):
        # The same row twice is two interactions, which need not share a split.
        repeat = repeats[item, time] = repeats.get((item, time), -1) + 1
        key = b"\0".join((str(split.seed).encode(), user, item, str(time).encode(), str(repeat).encode()))
        drawn[n] = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
    return drawn
