"""Rankings that are the same for everybody, or nobody's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.systems.base import Data, Queries, Score, Settings


class Popular:
    """Interactions of all time."""

    space: tuple[Settings, ...] = ({},)
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        yield settings, everybody(data.popularity)


class Recent:
    """Interactions of a recent window."""

    space = tuple({"window": share} for share in (0.5, 0.25, 0.1, 0.05, 0.02, 0.01))
    """Share of the train rows, the newest ones."""
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        first = round(len(data.item) * (1 - settings["window"]))
        yield settings, everybody(np.bincount(data.item[first:], minlength=len(data.items)))


class Random:
    """Draws."""

    space: tuple[Settings, ...] = ({},)
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        def score(queries: Queries) -> np.ndarray:
            return np.random.default_rng(seed).random((len(queries.user), len(data.items)))

        yield settings, score


def everybody(scores: np.ndarray) -> Score:
    """The same scores for every query."""
    return lambda queries: np.broadcast_to(scores.astype(np.float32), (len(queries.user), len(scores)))
