"""Interactions counted by time, in bounded memory: where a share of them begins that is the latest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Above this many different times they are counted in steps of 2, 4, 8 … seconds.
_MOST_STEPS = 2**20


class Latest(NamedTuple):
    """Which interactions are the latest so many: those after a step, and of the step itself all but some."""

    step: int
    """In units of 2 ** `shift` seconds."""
    left_out: int
    """Of the interactions of the step, the first so many are not among the latest."""
    shift: int

    @property
    def time(self) -> int:
        """Seconds at which the step begins."""
        return self.step << self.shift


@dataclass(frozen=True)
class TimeHistogram:
    """Interactions at each time: exact up to `_MOST_STEPS` different seconds, then in steps of 2, 4, 8 … seconds."""

    shift: int
    """A step is 2 ** shift seconds long."""
    steps: np.ndarray
    """Different ones, rising, int64 [S]: seconds >> shift."""
    counts: np.ndarray
    """Interactions in each, int64 [S]."""

    @classmethod
    def of(cls, times: np.ndarray) -> TimeHistogram:
        """Of times in seconds, int64 [N]."""
        return cls(0, times, np.ones(len(times), np.int64)).compact()

    @classmethod
    def total(cls, histograms: Iterable[TimeHistogram]) -> TimeHistogram:
        """Several as one."""
        parts = list(histograms)
        shift = max((part.shift for part in parts), default=0)
        empty = np.zeros(0, np.int64)
        return cls(
            shift,
            np.concatenate([empty, *(part.steps >> (shift - part.shift) for part in parts)]),
            np.concatenate([empty, *(part.counts for part in parts)]),
        ).compact()

    def compact(self) -> TimeHistogram:
        """The same with every step once, and not more of them than is allowed."""
        shift, steps, counts = self.shift, self.steps, self.counts
        while True:
            steps, inverse = np.unique(steps, return_inverse=True)
            counts = np.bincount(inverse, weights=counts, minlength=len(steps)).astype(np.int64)
            if len(steps) <= _MOST_STEPS:
                return TimeHistogram(shift, steps, counts)
            shift, steps = shift + 1, steps >> 1

    def latest(self, share: float) -> Latest:
        """The latest `share` of the interactions, rounded, at least one; there must be some."""
        from_end = np.cumsum(self.counts[::-1])
        wanted = max(1, round(share * int(from_end[-1])))
        place = int(np.searchsorted(from_end, wanted))
        return Latest(int(self.steps[::-1][place]), int(from_end[place]) - wanted, self.shift)
