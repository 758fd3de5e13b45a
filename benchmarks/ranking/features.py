"""What a ranking model reads of a query and a candidate: nothing that was not known when the query was asked.

The rows of `twotower batch --for-ranker` bring the retrieval's score, the query's and the item's own columns. Here
comes what the towers do not read: the stars that people gave, what was popular just before the query, which items
others took together and one after the other, all of it counted up to the query and not up to the last training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

DAY = 86_400
_WINDOWS = {"month": 30 * DAY, "week": 7 * DAY, "day": DAY}
_SESSION = 1_800
# Items after which another one counts as its follower, and newest items of a history whose followers are looked up.
_FOLLOWS, _NEWEST = 5, (1, 3, 10, 30)
_PRIOR = 20.0
_LIKED = 4.0
# Trees see a row alone: how it stands among its query's candidates has to be told.
_PLACED = ("popularity", "lift_month", "lift_week", "stars", "followers_1", "followers_10", "alike", "alike_newest")


def features(candidates: pd.DataFrame, queries: pd.DataFrame, interactions: pd.DataFrame) -> pd.DataFrame:
    """[N, F] float32, NaN where there is nothing to say; in the order of the candidates.

    Memory grows with the square of the items: for a catalogue of thousands.

    Args:
        candidates: The hand-off's table, a query's rows together. Of a temporal split: what its users did before a
            query is in the query's history, so that no candidate of theirs is counted already.
        queries: The hand-off's table.
        interactions: `user`, `item`, `timestamp`, `rating` of everybody.
    """
    interactions = interactions.sort_values("timestamp", kind="stable")
    names = pd.Index(pd.unique(pd.concat([candidates["item"], interactions["item"]])))
    past, films = _Past(interactions, names), _Films(candidates, names)
    rated = interactions.drop_duplicates(["user", "item"]).set_index(["user", "item"])["rating"].to_dict()
    places = candidates.groupby("query", sort=False).indices
    columns: dict[str, np.ndarray] = {}
    for query in queries.sort_values("time", kind="stable").itertuples():
        rows = places.get(query.query)
        if rows is None:
            continue
        past.advance(query.time)
        of_query = candidates.iloc[rows]
        items = names.get_indexer(of_query["item"])
        history = names.get_indexer(list(query.history))
        stars = np.array([rated[query.user, item] for item in query.history], float)
        values = _retrieved(of_query) | past.popularity(items, query.time) | past.together(items, history, stars)
        values |= films.content(items, history, stars)
        values |= {f"{name}_place": _places(values[name]) for name in _PLACED}
        for name, of_name in values.items():
            if name not in columns:
                columns[name] = np.full(len(candidates), np.nan, np.float32)
            columns[name][rows] = of_name
    return pd.DataFrame(columns, index=candidates.index)


def _retrieved(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the rows themselves say."""
    score = rows["score"].to_numpy(float)
    return {
        "score": score,
        "rank": rows["rank"].to_numpy(float),
        "below_best": score - score.max(),
        "standardized": (score - score.mean()) / (score.std() + 1e-9),
        "history_age": np.log1p(rows["query_history_age"].to_numpy(float)),
        "age": rows["query_age"].to_numpy(float),
    }


def _places(values: np.ndarray) -> np.ndarray:
    """[K] the share of the candidates that are better."""
    return np.argsort(np.argsort(-np.nan_to_num(values), kind="stable"), kind="stable") / len(values)


@dataclass
class _Own:
    """What somebody has done so far, oldest first."""

    items: list[int] = field(default_factory=list)
    liked: list[int] = field(default_factory=list)


class _Past:
    """Everybody's interactions before a moment, counted; the moment moves forward only.

    Args:
        interactions: Oldest first.
        names: [C] ids of the items.
    """

    def __init__(self, interactions: pd.DataFrame, names: pd.Index) -> None:
        self._size = size = len(names)
        self._time = interactions["timestamp"].to_numpy()
        self._item = names.get_indexer(interactions["item"])
        self._rating = interactions["rating"].to_numpy(float)
        self._user, users = pd.factorize(interactions["user"])
        self._people = [_Own() for _ in users]
        # How many interactions are before the moment.
        self._now = 0
        self._count, self._stars = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._likes, self._first = np.zeros(size, np.float32), np.full(size, np.nan)
        # [C, C] people who took both; who liked both; and how often the second came soon after the first.
        self._both, self._liked, self._followed = (np.zeros((size, size), np.float32) for _ in range(3))

    def advance(self, moment: int) -> None:
        """Counts what happened before a moment, and nothing of that very second."""
        end = int(np.searchsorted(self._time, moment))
        for place in range(self._now, end):
            item, own = self._item[place], self._people[self._user[place]]
            if not self._count[item]:
                self._first[item] = self._time[place]
            self._both[item, own.items] += 1
            self._both[own.items, item] += 1
            self._followed[own.items[-_FOLLOWS:], item] += 1
            if self._rating[place] >= _LIKED:
                self._liked[item, own.liked] += 1
                self._liked[own.liked, item] += 1
                self._likes[item] += 1
                own.liked.append(item)
            own.items.append(item)
            self._count[item] += 1
            self._stars[item] += self._rating[place]
        self._now = max(self._now, end)

    def popularity(self, items: np.ndarray, moment: int) -> dict[str, np.ndarray]:
        """How popular and how well rated some items [K] are, and since when they are there."""
        shares = (self._count + 0.5) / (self._now + 0.5 * self._size)
        values = {"popularity": np.log1p(self._count[items]), "stars": self._mean_stars()[items]}
        for name, seconds in _WINDOWS.items():
            lately = self._item[np.searchsorted(self._time, moment - seconds) : self._now]
            recent = np.bincount(lately, minlength=self._size)
            # Smoothed as the retrieval's own lift is (modules/popularity.py).
            values[f"lift_{name}"] = np.log((recent + _PRIOR * shares) / (len(lately) + _PRIOR) / shares)[items]
        return values | {"days_since_first": (moment - self._first[items]) / DAY}

    def together(self, items: np.ndarray, history: np.ndarray, stars: np.ndarray) -> dict[str, np.ndarray]:
        """How some items [K] go with a history [L] and the stars that it was given."""
        values = {}
        for newest in _NEWEST:
            followers = self._followed[np.ix_(history[-newest:], items)].sum(0)
            values[f"followers_{newest}"] = followers / np.sqrt(self._count[items] + _PRIOR)
        cosine = _cosine(self._both, self._count, history, items)
        values |= {"alike": _mean(cosine), "alike_newest": _mean(cosine[-20:])}
        liked = stars >= _LIKED
        values["alike_liked"] = _mean(_cosine(self._liked, self._likes, history[liked], items))
        values["alike_disliked"] = _mean(cosine[stars <= 2])
        # What the item-item neighbourhood predicts of the stars, beside what these items have on average.
        above = stars - self._mean_stars()[history]
        values["stars_above"] = above @ cosine / (cosine.sum(0) + 1e-3)
        return values

    def _mean_stars(self) -> np.ndarray:
        overall = self._stars.sum() / max(1, self._now)
        return (self._stars + 10 * overall) / (self._count + 10)


def _cosine(pairs: np.ndarray, counts: np.ndarray, history: np.ndarray, items: np.ndarray) -> np.ndarray:
    """[L, K] of the items of a history with others; of few people little."""
    return pairs[np.ix_(history, items)] / np.sqrt(np.outer(counts[history] + 5, counts[items] + 5))


def _mean(values: np.ndarray) -> np.ndarray:
    """[K] the mean over a history, NaN over none."""
    return values.mean(0) if len(values) else np.full(values.shape[1], np.nan)


class _Films:
    """What the items table says.

    Args:
        candidates: `item`, `item_genres`, `item_release_year`.
        names: [C] ids of the items.
    """

    def __init__(self, candidates: pd.DataFrame, names: pd.Index) -> None:
        first = candidates.drop_duplicates("item").set_index("item").reindex(names)
        of_items = [genres if isinstance(genres, (Sequence, np.ndarray)) else () for genres in first["item_genres"]]
        every = pd.Index(sorted({genre for genres in of_items for genre in genres}))
        self._genres = np.zeros((len(names), len(every)), np.float32)
        for place, genres in enumerate(of_items):
            self._genres[place, every.get_indexer(list(genres))] = 1 / max(1, len(genres))
        self._year = first["item_release_year"].to_numpy(float)

    def content(self, items: np.ndarray, history: np.ndarray, stars: np.ndarray) -> Mapping[str, np.ndarray]:
        """How the genres and years of some items [K] are those of a history [L]."""
        genres, seen, years = self._genres[items], self._genres[history], self._year[history[-20:]]
        typical = np.nanmean(years) if np.isfinite(years).any() else np.nan
        above = stars - (stars.mean() if len(stars) else 0)
        return {
            "genres": _mean(seen @ genres.T),
            "genres_newest": _mean(seen[-10:] @ genres.T),
            "genres_liked": genres @ (above @ seen / (seen.sum(0) + 3)),
            "release_year": self._year[items],
            "years_from_history": self._year[items] - typical,
            "history_length": np.full(len(items), np.log1p(len(history))),
            "own_stars": np.full(len(items), stars[-20:].mean() if len(stars) else np.nan),
        }
