"""What a fit counts of everything it is trained on, gathered from chunks of users one after the other.

It takes the memory of the items, of a sample of users, and eight bytes for each user; nothing grows with the
interactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from modules.data.time_histogram import Latest, TimeHistogram
from modules.errors import UserError
from modules.training import sampling
from modules.training.chunk import Chunk
from modules.training.dataset import Sequences
from modules.training.stream import within
from modules.training.transformed import Lists

# Interactions that the item-item model is made of, at most, of random users.
_ITEM_ITEM_INTERACTIONS = 5_000_000
# Users whose features stand for everybody's in a cold-start query.
_COLD_START_USERS = 64


@dataclass(frozen=True)
class Totals:
    """What a fit counts of all users that have something trainable, U of them."""

    counts: np.ndarray
    """[U] int32 trainable interactions of each, in the order of the chunks."""
    frequency: np.ndarray
    """[V + 1] int64 trainable interactions by label."""
    recent: Mapping[float, np.ndarray]
    """Recent window → [V + 1] int64 trainable interactions by label in it: the latest ones by its share."""
    first_share: np.ndarray
    """[V + 1] float64 interactions by label, where every user counts alike, however many they have."""
    beginners: Sequences
    """The first trainable interaction of some users."""
    item_item: Lists
    """Item ids of some users, as `Chunk.sets` has them, oldest first."""

    @classmethod
    def of(cls, chunks: Callable[[], Iterable[Chunk]], size: int, windows: Iterable[float], seed: int) -> Totals:
        """Two passes over all chunks.

        Args:
            chunks: Gives them, in the same order each time.
            size: V + 1.
            windows: Shares of the interactions, the latest ones, that can be recent.
            seed: Of what is drawn.

        Raises:
            UserError: There is nothing trainable.
        """
        counts, of_sets, times = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], [TimeHistogram.total([])]
        frequency, first_share = np.zeros(size, np.int64), np.zeros(size)
        for chunk in chunks():
            counts.append(chunk.counts.astype(np.int32))
            of_sets.append(chunk.sets.counts.astype(np.int32))
            times = [TimeHistogram.total([*times, TimeHistogram.of(chunk.sequences.times[chunk.is_trainable])])]
            frequency += np.bincount(chunk.labels, minlength=size)
            owner = chunk.sequences.owner[chunk.is_trainable]
            first_share += np.bincount(chunk.labels, 1.0 / chunk.counts[owner], minlength=size)
        whole, whole_sets = np.concatenate(counts), np.concatenate(of_sets)
        if not len(whole):
            raise UserError(
                "training: nothing in the train split has an item of the items table; check the split and the ids"
            )
        beginning = np.sort(np.random.default_rng(seed).permutation(len(whole))[:_COLD_START_USERS])
        paired = sampling.some_users(whole_sets, _ITEM_ITEM_INTERACTIONS, seed)
        recent = {window: _Recent(times[0].latest(window), size) for window in windows}
        beginners: list[Sequences] = []
        sets: list[Lists] = []
        start = 0
        for chunk in chunks():
            for of_window in recent.values():
                of_window.add(chunk.labels, chunk.sequences.times[chunk.is_trainable])
            beginners.append(chunk.beginnings(within(beginning, start, len(chunk.counts))))
            some = chunk.sets.users(within(paired, start, len(chunk.counts)))
            sets.append(Lists(some.items, some.counts))
            start += len(chunk.counts)
        return cls(
            counts=whole,
            frequency=frequency,
            recent={window: of_window.frequency for window, of_window in recent.items()},
            first_share=first_share,
            beginners=Sequences.joined(beginners),
            item_item=Lists(*(np.concatenate(arrays) for arrays in zip(*sets, strict=True))),
        )


class _Recent:
    """Counts the recent interactions by label."""

    def __init__(self, latest: Latest, size: int) -> None:
        self._latest, self._at_step = latest, 0
        self.frequency = np.zeros(size, np.int64)

    def add(self, labels: np.ndarray, times: np.ndarray) -> None:
        steps = times >> self._latest.shift
        is_recent = steps > self._latest.step
        at_step = np.flatnonzero(steps == self._latest.step)
        is_recent[at_step[max(0, self._latest.left_out - self._at_step) :]] = True
        self._at_step += len(at_step)
        self.frequency += np.bincount(labels[is_recent], minlength=len(self.frequency))
