"""Point in time, in one place: which split an interaction belongs to, what was known when a query is asked, how old
that is.

ExampleGen, the Trainer, the Tuner and the commands that ask the model call it. Imports neither TensorFlow nor Beam.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from modules.data.examples import EVAL, TRAIN, VALIDATION
from modules.settings import ColumnSplit, LeaveLastOutSplit, RandomSplit, Split, TemporalSplit

SPLITS = (TRAIN, VALIDATION, EVAL)
"""Names by code: arrays of splits hold positions in here. A split may see those before it."""
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
    split: np.ndarray | None = None
    """int8 positions in `SPLITS` if the table says which; else None."""
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The interactions' own columns by key, [N] each, as `examples.aligned` has them."""

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
            context={key: values[positions] for key, values in self.context.items()},
        )


def by_user(users: np.ndarray, interactions: Interactions) -> Iterator[tuple[Any, Interactions]]:
    """(user id, their interactions) of many users' interactions, in the order of each user's first.

    Args:
        users: Whose each interaction is, [N] objects of one type.
        interactions: [N].
    """
    if not len(users):
        return
    codes, names = pd.factorize(users)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))
    for name, positions in zip(names, np.split(order, ends[:-1]), strict=True):
        yield name, interactions.take(positions)


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
            context={key: np.concatenate([p.context[key] for p in pieces]) for key in first.context},
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


def sequence(split: np.ndarray, max_length: int | None = None) -> np.ndarray:
    """What a user's train example holds.

    Args:
        split: Positions in `SPLITS` of the user's interactions in time order, [N].
        max_length: The newest so many are kept; None keeps all.

    Returns:
        Positions of the train and validation interactions, oldest first, [M] int64.
    """
    places = np.flatnonzero(split <= _VALIDATION)
    return places if max_length is None else places[max(0, len(places) - max_length) :]


class Query(NamedTuple):
    """A question of one user at one time; nothing it knows is later than the asking."""

    split: int
    """Position in `SPLITS`."""
    position: int
    """The first of the interactions that are asked for, whose context the query carries."""
    asked: int
    """Seconds since 1970."""
    history: np.ndarray
    """Positions of all that is known when asked, oldest first, [H] int64."""
    age: int | None
    """Seconds from the newest of the history to the asking; None without a history."""
    relevant: np.ndarray
    """Positions of the different items that count as hits, in time order, [R] int64."""


def queries(
    timestamp: np.ndarray, item: np.ndarray, split: np.ndarray, of: int, mode: Literal["train", "rolling"]
) -> Iterator[Query]:
    """One user's queries of one split.

    - `train`: one, if the user has interactions in the split. The history is what belongs to the splits before it,
      relevant are the different items of the split, and it is asked at the first of them, or with the newest of the
      history where that is later.
    - `rolling`: one per interaction of the split. The history is what comes before it of the split and those before it,
      relevant is the interaction's item.

    Args:
        timestamp: Seconds since 1970, in time order, int64 [N].
        item: Item ids of any type, [N].
        split: Positions in `SPLITS`, [N].
        of: Position in `SPLITS` of the split that asks.
        mode: `evaluation.history`.
    """
    visible = np.flatnonzero(split <= of)
    places = np.flatnonzero(split[visible] == of)
    if mode == "rolling":
        for place in places.tolist():
            yield _query(timestamp, of, int(visible[place]), visible[:place], visible[place : place + 1])
    elif len(places):
        targets = visible[places]
        _, first = np.unique(item[targets], return_index=True)
        yield _query(timestamp, of, int(targets[0]), visible[split[visible] < of], targets[np.sort(first)])


def _query(timestamp: np.ndarray, of: int, position: int, history: np.ndarray, relevant: np.ndarray) -> Query:
    newest = int(timestamp[history[-1]]) if len(history) else None
    asked = int(timestamp[position]) if newest is None else max(int(timestamp[position]), newest)
    return Query(of, position, asked, history, age(newest, asked), relevant)


def age(newest: int | None, asked: int) -> int | None:
    """Seconds from the newest item of a history to the asking, never negative; None without a history."""
    return None if newest is None else max(0, asked - newest)


def ages(times: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The age of what came before each place of some sequences, as `age` of a query that asks for that place.

    Args:
        times: Seconds since 1970 of sequences one after another, each in time order, int64 [T].
        starts: Where each sequence begins, [U]; one that is empty begins where the next does.

    Returns:
        float32 [T]; NaN at the first place of a sequence, which has no history.
    """
    seconds = np.maximum(np.diff(times, prepend=times[:1]), 0).astype(np.float32)
    seconds[starts[starts < len(times)]] = np.nan
    return seconds


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
