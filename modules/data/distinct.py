"""Different values of long columns: found again exactly by a hash of 64 bits, or counted nearly in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

# A count is then within 3 % in two cases of three.
_SKETCH = 4096
_HIGHEST = 2.0**64


def hashes(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """A hash of each value, uint64 [N], texts or numbers: the same in every table and process."""
    numbers = bool(len(values)) and isinstance(values[0], (int, float))
    return pd.util.hash_array(np.array(values, np.float64 if numbers else object))


class IdSet:
    """A set of ids that takes 8 bytes for each, whatever its length."""

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []
        """Without a common element, each less than half as long as the one before it."""

    def __len__(self) -> int:
        return sum(map(len, self._sorted))

    def has(self, hashed: np.ndarray) -> np.ndarray:
        """Which of some hashes [N] are in it, bool [N]."""
        found = np.zeros(len(hashed), bool)
        for part in self._sorted:
            places = np.minimum(np.searchsorted(part, hashed), len(part) - 1)
            found |= part[places] == hashed
        return found

    def add(self, hashed: np.ndarray) -> np.ndarray:
        """Adds hashes [N]; says which were there before, in it or earlier among these, bool [N]."""
        different, first = np.unique(hashed, return_index=True)
        again = np.ones(len(hashed), bool)
        again[first] = self.has(different)
        new = different[~again[first]]
        while self._sorted and len(self._sorted[-1]) < 2 * len(new):
            # Two sorted halves: a stable sort merges them.
            new = np.sort(np.concatenate([self._sorted.pop(), new]), kind="stable")
        if len(new):
            self._sorted.append(new)
        return again


class DistinctCount:
    """How many different values there are: the smallest hashes are kept (Bar-Yossef et al., RANDOM 2002).

    Exact up to 4,096.
    """

    def __init__(self) -> None:
        self.smallest = np.zeros(0, np.uint64)
        """Different ones, rising."""

    def add(self, hashed: np.ndarray) -> None:
        """Counts some hashes [N]."""
        self.smallest = np.unique(np.concatenate([self.smallest, hashed]))[:_SKETCH]

    @property
    def is_exact(self) -> bool:
        return len(self.smallest) < _SKETCH

    @property
    def number(self) -> int:
        """Of different values."""
        if self.is_exact:
            return len(self.smallest)
        return round((_SKETCH - 1) * _HIGHEST / float(self.smallest[-1]))

    def share_in(self, other: DistinctCount) -> float:
        """The share of these values that the other one has as well; 0 where there is none."""
        limit = min(np.inf if each.is_exact else float(each.smallest[-1]) for each in (self, other))
        own = self.smallest[self.smallest.astype(np.float64) <= limit]
        return float(np.isin(own, other.smallest).mean()) if len(own) else 0.0
