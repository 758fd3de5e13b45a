"""What a system is given and what it must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp

Settings = Mapping[str, Any]


ALL, COLD = "all", "cold"
"""Rankings of the whole catalogue, and of the candidates alone."""


@dataclass(frozen=True)
class Queries:
    """Who asks, Q of them."""

    user: np.ndarray
    """[Q] int64, positions in `Data.users`; −1 for somebody without a row in train."""
    history: Sequence[np.ndarray]
    """Q arrays of positions in `Data.items`, oldest first."""
    timestamp: np.ndarray
    """[Q] int64, seconds since 1970."""

    def weights(self, items: int, exponent: float = 0.0) -> sp.csr_matrix:
        """Histories as rows [Q, items]: the newest item weighs 1, the n-th newest n ** −exponent."""
        lengths = [len(h) for h in self.history]
        values = [np.arange(n, 0, -1, dtype=np.float32) ** -exponent for n in lengths]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        taken = (np.concatenate([*values, []]), (rows, np.concatenate([*self.history, np.zeros(0, np.int64)])))
        matrix = sp.csr_matrix(taken, shape=(len(lengths), items), dtype=np.float32)
        # An item with two interactions weighs as its newest time, at most 1.
        matrix.data = np.minimum(matrix.data, 1)
        return matrix

    def take(self, rows: slice) -> Queries:
        return Queries(self.user[rows], self.history[rows], self.timestamp[rows])


@dataclass(frozen=True)
class Data:
    """What a fit may see: the rows of train in time order, and the catalogue."""

    users: np.ndarray
    items: np.ndarray
    """The whole catalogue, the most popular in these rows first, equals shuffled: equal scores are ranked like this."""
    content: Sequence[Sequence[str]]
    """What the items table says of each item, as tokens."""
    user: np.ndarray
    """[N] positions in `users`."""
    item: np.ndarray
    """[N] positions in `items`."""
    timestamp: np.ndarray

    @classmethod
    def of(cls, train: pd.DataFrame, catalogue: pd.DataFrame) -> Data:
        """Args:
        train: `user`, `item`, `timestamp`.
        catalogue: `item`, `content`.
        """
        rows = train.sort_values("timestamp", kind="stable")
        # A table's order may know more than its columns: MovieLens's first ids are its best-known films.
        catalogue = catalogue.sample(frac=1, random_state=0)
        counts = rows["item"].value_counts().reindex(catalogue["item"], fill_value=0).to_numpy()
        catalogue = catalogue.iloc[np.argsort(-counts, kind="stable")]
        items = catalogue["item"].to_numpy(object)
        user, users = pd.factorize(rows["user"].to_numpy(object), sort=True)
        item = pd.Index(items).get_indexer(rows["item"])
        return cls(users, items, list(catalogue["content"]), user, item, rows["timestamp"].to_numpy())

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """[users, items] float32, 1 where there was an interaction."""
        matrix = sp.csr_matrix(
            (np.ones(len(self.user), np.float32), (self.user, self.item)), shape=(len(self.users), len(self.items))
        )
        matrix.data[:] = 1
        return matrix

    @cached_property
    def popularity(self) -> np.ndarray:
        """[items] interactions of each."""
        return np.bincount(self.item, minlength=len(self.items)).astype(np.float32)

    def queries(self, asked: pd.DataFrame, history: pd.DataFrame) -> Queries:
        """Args:
        asked: `user`, `timestamp`.
        history: `user`, `item`, `timestamp`, in the table's order.
        """
        rows = history.sort_values("timestamp", kind="stable")
        item = pd.Index(self.items).get_indexer(rows["item"])
        place = pd.Index(asked["user"]).get_indexer(rows["user"])
        order = np.argsort(place[place >= 0], kind="stable")
        ends = np.cumsum(np.bincount(place[place >= 0], minlength=len(asked)))
        return Queries(
            pd.Index(self.users).get_indexer(asked["user"]),
            np.split(item[place >= 0][order], ends[:-1]),
            asked["timestamp"].to_numpy(),
        )


Score = Callable[[Queries], np.ndarray]
"""Queries → scores [Q, items], the higher the better; −inf is as bad as can be, but still ranked."""


class System(Protocol):
    """One way to recommend."""

    space: Sequence[Settings]
    """What is tried on the validation part, in this order, until the budget is spent."""
    patience: int
    """Points of one fit without a better validation figure after which it ends."""

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        """Fits once.

        Yields:
            Points of the fit that may be judged: complete settings, which give this very point when fitted with again,
            and how to score. A system without epochs yields once.
        """
        ...


def rank(scores: np.ndarray, seen: Sequence[np.ndarray], k: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """The best k positions of each row, [Q, k]; equal scores in the order of their positions; −1 where none is left.

    Args:
        scores: [Q, items].
        seen: Positions that must not be ranked, for each row.
        candidates: Positions that may be ranked; None for all.
    """
    scores = np.maximum(scores.astype(np.float64), np.finfo(np.float64).min)
    allowed = np.ones(scores.shape, bool)
    if candidates is not None:
        allowed[:] = np.isin(np.arange(scores.shape[1]), candidates)
    for row, items in enumerate(seen):
        allowed[row, items] = False
    scores[~allowed] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(allowed, order, 1), order, -1)
