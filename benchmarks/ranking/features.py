"""What a ranking model reads of a query and a candidate: nothing that was not known when the query was asked.

The rows of `twotower batch --for-ranker` bring the retrieval's score, the query's and the item's own columns. Here
comes what other users' interactions before the time of asking say of the two: popularity then, what followed the newest
items of the history, who else took the item; and what the history has of the item's genres. Of the user's own, only the
history counts: on a random split what is asked for can be older than the asking.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

DAY = 86_400
_WINDOWS = {"month": 30 * DAY, "week": 7 * DAY, "day": DAY}
# Items after which another one counts as its follower, and newest items of a history whose followers are looked up.
_FOLLOWS, _NEWEST = 5, (1, 5, 20)
_PRIOR = 20.0
_BANDS = [18, 25, 35, 45, 50, 56]


def features(
    candidates: pd.DataFrame, queries: pd.DataFrame, interactions: pd.DataFrame, users: pd.DataFrame
) -> pd.DataFrame:
    """[N] rows of numbers, NaN where there is none, and categories as codes; in the order of the candidates.

    Args:
        candidates: The hand-off's table, a query's rows together.
        queries: The hand-off's table.
        interactions: `user`, `item`, `timestamp` of everybody.
        users: `user`, `gender` and `age`.
    """
    world = _World(candidates, interactions.sort_values("timestamp", kind="stable"), users)
    of_query = queries.set_index("query")
    parts = [
        world.of_query(rows, of_query.at[key, "user"], int(of_query.at[key, "time"]), list(of_query.at[key, "history"]))
        for key, rows in candidates.groupby("query", sort=False)
    ]
    return pd.concat(parts).loc[candidates.index]


class _World:
    """The interactions as arrays, oldest first, so that those before a time are the first ones."""

    def __init__(self, candidates: pd.DataFrame, interactions: pd.DataFrame, users: pd.DataFrame) -> None:
        names = pd.Index(pd.unique(pd.concat([candidates["item"], interactions["item"]])))
        self._names, self._size = names, len(names)
        self._time = interactions["timestamp"].to_numpy()
        self._item = names.get_indexer(interactions["item"])
        first = candidates.drop_duplicates("item").set_index("item")
        self._genres = {item: list(genres) for item, genres in first["item_genres"].items() if genres is not None}
        self._year = first["item_release_year"].to_dict()
        who = users.drop_duplicates("user").set_index("user").reindex(interactions["user"])
        self._groups = {
            "gender": (who["gender"].to_numpy(object), "query_gender"),
            "band": (_band(who["age"].to_numpy(float)), "query_age"),
        }
        self._user, self._users = pd.factorize(interactions["user"])
        # Of each item whose interaction was the first, and when; and when somebody else's first one was.
        self._first_user, self._first = self._firsts(np.ones(len(self._item), bool))
        _, self._first_by_another = self._firsts(self._user != self._first_user[self._item])
        self._followers = _followers(self._user, self._item, self._time, self._size)

    def _firsts(self, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Users and times of the items' first interactions among some, by item; -1 and the latest time for none."""
        users, times = np.full(self._size, -1), np.full(self._size, np.iinfo(np.int64).max)
        places = np.flatnonzero(among)
        items, where = np.unique(self._item[places], return_index=True)
        users[items], times[items] = self._user[places[where]], self._time[places[where]]
        return users, times

    def of_query(self, rows: pd.DataFrame, user: str, asked: int, history: Sequence[str]) -> pd.DataFrame:
        """The features of one query's candidates."""
        own = self._users.get_indexer([user])[0]
        # Places of what others did before the asking, oldest first.
        before = np.flatnonzero(self._user[: np.searchsorted(self._time, asked)] != own)
        items = self._names.get_indexer(rows["item"])
        score = rows["score"].to_numpy(float)
        values: dict[str, np.ndarray] = {
            "score": score,
            "rank": rows["rank"].to_numpy(float),
            "below_best": score - score.max(),
            "standardized": (score - score.mean()) / (score.std() + 1e-9),
            "history_length": np.full(len(rows), np.log1p(len(history))),
            "history_age": np.log1p(rows["query_history_age"].to_numpy(float)),
            "age": rows["query_age"].to_numpy(float),
            "gender": (rows["query_gender"] == "F").to_numpy(float),
            "release_year": rows["item_release_year"].to_numpy(float),
        }
        popularity = np.bincount(self._item[before], minlength=self._size)
        values |= self._popularity(items, own, asked, before, popularity)
        values |= self._group_shares(rows, items, before, popularity)
        values |= self._followed(items, own, asked, history, popularity)
        values |= self._content(rows["item"].tolist(), history)
        of_rows = pd.DataFrame(values, index=rows.index)
        # Trees see a row alone: how it stands among its query's candidates has to be told.
        for name in ("popularity", "lift_month", "followers_1", "followers_5", "genres"):
            of_rows[f"{name}_place"] = of_rows[name].rank(pct=True)
        return of_rows

    def _popularity(
        self, items: np.ndarray, user: int, asked: int, before: np.ndarray, popularity: np.ndarray
    ) -> dict[str, np.ndarray]:
        shares = (popularity + 0.5) / (len(before) + 0.5 * self._size)
        values = {"popularity": np.log1p(popularity[items])}
        for name, seconds in _WINDOWS.items():
            lately = before[np.searchsorted(before, np.searchsorted(self._time, asked - seconds)) :]
            recent = np.bincount(self._item[lately], minlength=self._size)
            # Smoothed as the retrieval's own lift is (modules/popularity.py).
            lift = np.log((recent + _PRIOR * shares) / (len(lately) + _PRIOR) / shares)
            values |= {f"lift_{name}": lift[items], f"recent_{name}": np.log1p(recent[items])}
        first = np.where(self._first_user == user, self._first_by_another, self._first)[items]
        values["days_since_first"] = np.where(first < asked, (asked - first) / DAY, np.nan)
        return values

    def _group_shares(
        self, rows: pd.DataFrame, items: np.ndarray, before: np.ndarray, popularity: np.ndarray
    ) -> dict[str, np.ndarray]:
        """By how much the item is more, in log, with people like who asks than with all."""
        values = {}
        for name, (group, column) in self._groups.items():
            own = rows[column].iloc[0]
            alike = group[before] == (own if name == "gender" else _band(np.array([float(own)]))[0])
            counts = np.bincount(self._item[before][alike], minlength=self._size)
            overall = alike.mean() if len(before) else 0.0
            share = (counts + _PRIOR * overall) / (popularity + _PRIOR)
            values[f"share_{name}"] = np.log((share + 1e-9) / (overall + 1e-9))[items]
        return values

    def _followed(
        self, items: np.ndarray, user: int, asked: int, history: Sequence[str], popularity: np.ndarray
    ) -> dict[str, np.ndarray]:
        """How often, in log, others took the item soon after one of the newest items of the history."""
        starts, follower, times, whose = self._followers
        counts, values = np.zeros(self._size), {}
        newest = self._names.get_indexer(list(reversed(history)))
        for place in range(max(_NEWEST)):
            if place < len(newest) and newest[place] >= 0:
                start, end = starts[newest[place]], starts[newest[place] + 1]
                some = slice(start, start + int(np.searchsorted(times[start:end], asked)))
                counts += np.bincount(follower[some][whose[some] != user], minlength=self._size)
            if place + 1 in _NEWEST:
                found = counts[items]
                values[f"followers_{place + 1}"] = np.log1p(found)
                values[f"followers_{place + 1}_share"] = found / (popularity[items] + _PRIOR)
        return values

    def _content(self, items: Sequence[str], history: Sequence[str]) -> dict[str, np.ndarray]:
        """What the history has of the item's genres and of its time."""
        values = {}
        for name, some in (("genres", history), ("genres_newest", history[-10:])):
            profile: dict[str, float] = {}
            for item in some:
                for genre in self._genres.get(item, ()):
                    profile[genre] = profile.get(genre, 0.0) + 1.0 / len(some)
            of_items = [[profile.get(genre, 0.0) for genre in self._genres.get(item, ())] for item in items]
            values[name] = np.array([np.mean(each) if each else np.nan for each in of_items])
        years = [self._year[item] for item in history[-20:] if item in self._year]
        typical = np.nanmean(years) if np.isfinite(years).any() else np.nan
        own = np.array([self._year.get(item, np.nan) for item in items], float)
        return values | {"years_from_history": own - typical}


def _band(ages: np.ndarray) -> np.ndarray:
    return np.searchsorted(_BANDS, ages, side="right")


def _followers(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What users took soon after each item.

    Returns:
        Where an item's part begins [C + 1]; and [M] followers, their times, rising in each part, and whose they are.
    """
    # Stable: a user's rows stay oldest first.
    order = np.argsort(user, kind="stable")
    columns = np.stack([item, item, time, user])[:, order]
    pairs = []
    for distance in range(1, _FOLLOWS + 1):
        pair = np.concatenate([columns[:1, :-distance], columns[1:, distance:]])
        pairs.append(pair[:, columns[3, distance:] == columns[3, :-distance]])
    first, follower, moment, whose = np.concatenate(pairs, axis=1)
    order = np.lexsort((moment, first))
    starts = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=size))])
    return starts, follower[order], moment[order], whose[order]
