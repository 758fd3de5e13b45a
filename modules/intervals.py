"""How far a mean over queries may be off by chance: Student's interval, from sums that any parts of the queries add to.

The queries count as independent draws of what will be asked. Two rankings are compared by the difference of each query
(paired): what makes a query hard for both drops out. Student's t, the bootstrap and randomization agree on such means
(Smucker, Allan and Carterette, "A comparison of statistical significance tests for information retrieval evaluation",
CIKM 2007), and only the first needs no more than sums. Chance of another kind, such as another seed of the training, is
not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.special

DEFAULT_CONFIDENCE = 0.95
"""Of the intervals that are shown where no gate asks for one."""


@dataclass
class Moments:
    """What queries add up to, for C columns of values; the memory does not grow with the queries."""

    totals: np.ndarray
    """[C] Σ x."""
    squares: np.ndarray
    """[C] Σ x²."""
    counts: np.ndarray
    """[C] how many queries had a value."""

    @classmethod
    def zeros(cls, columns: int) -> Moments:
        """Of no query."""
        return cls(np.zeros(columns), np.zeros(columns), np.zeros(columns))

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Of queries' values [B, C], NaN where a query has none."""
        counts = ~np.isnan(values)
        known = np.where(counts, values, 0.0)
        return cls(known.sum(axis=0), np.square(known).sum(axis=0), counts.sum(axis=0))

    def add(self, others: Moments) -> None:
        """Adds other queries."""
        self.totals += others.totals
        self.squares += others.squares
        self.counts += others.counts

    def means(self) -> np.ndarray:
        """[C], NaN where no query has a value."""
        return np.divide(self.totals, self.counts, out=np.full(len(self.totals), np.nan), where=self.counts > 0)

    def half_widths(self, confidence: float) -> np.ndarray:
        """[C] half of the interval around each mean: t(n − 1) · s / √n with s² = (Σ x² − (Σ x)² / n) / (n − 1).

        Args:
            confidence: Share of such intervals that hold the true mean, for instance 0.95: both tails together have the
                rest.

        Returns:
            NaN where fewer than two queries have a value.
        """
        count = np.maximum(self.counts, 2.0)
        # Of equal values rounding may leave a difference below 0.
        variance = np.maximum(self.squares - np.square(self.totals) / count, 0.0) / (count - 1)
        t = scipy.special.stdtrit(count - 1, (1 + confidence) / 2)
        return np.where(self.counts > 1, t * np.sqrt(variance / count), np.nan)


def of_difference(half: float, other_half: float) -> float:
    """Half of the interval around the difference of two means, of queries that are not paired: √(h² + h'²).

    Both halves are of one confidence. For two rankings of the same queries it is too wide as a rule: what makes a query
    hard for both is in it twice.
    """
    return math.hypot(half, other_half)
