"""Plays of a music service, drawn from a known law in which coming back to a track is right.

A listener either plays a track again, a recent one rather than others, or finds one: of an artist of
their taste, by its appeal. The hour and the weekend favour some genres, whichever of the two it is. What somebody finds
is skipped more often than what they come back to. Everything is drawn from the seed alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modules import metrics
from modules.data import histories
from modules.errors import UserError
from modules.settings import TemporalSplit
from pipeline.datasets.drawing import activity, load_law, names, save_law, staged

K = 10
"""NDCG is told at so many tracks."""
GENRES = ("ambient", "classical", "electronic", "folk", "hip hop", "jazz", "pop", "rock")
PLAYS = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64()), ("weight", pa.float32())]
)
_START, _LENGTH = 1_700_006_400, 120 * 86_400  # From a midnight in UTC on.
_TRACKS_OF_ARTIST, _ARTISTS_OF_USER = 10, 6
# A listener has at most this many times the mean.
_LEAST, _MOST = 10, 4
# A track whose last time is n plays ago counts this ** n of what was played last; a skipped time counts less.
_MEMORY, SKIPPED = 0.97, 0.1
_SKIPS_FOUND, _SKIPS_AGAIN = 0.4, 0.05
# How far the hour and the weekend move a genre's log-odds; tracks of artists beyond the taste are played so often.
_HOUR, _WEEKEND, _EXPLORED = 1.5, 0.7, 0.1
_SESSION, _PAUSE = 8.0, 40
_CELLS_AT_ONCE = 20_000_000


@dataclass(frozen=True)
class Music:
    """Where the tables are, what is in them, and how well the latest tenth of the plays can be foretold."""

    directory: str
    interactions: int
    users: int
    items: int
    repeats: float
    """Share of the latest tenth that the listener has played before."""
    best_ndcg: float
    """NDCG@10 of the tracks by their probability: no ranking is better, on average."""
    own_ndcg: float
    """NDCG@10 of what the listener has played most often."""


@dataclass(frozen=True)
class Law:
    """From what plays are drawn; U listeners, I tracks, A artists, G genres."""

    artist: np.ndarray
    """[I] int64."""
    genre: np.ndarray
    """[A] int64."""
    appeal: np.ndarray
    """[I] above 0, long-tailed."""
    artists: np.ndarray
    """[U, 6] int64 of each listener's taste."""
    shares: np.ndarray
    """[U, 6] how much each of them counts; they add up to 1."""
    habit: np.ndarray
    """[U] how often a listener plays something again."""
    hour: np.ndarray
    """[G] at which each genre is played most."""
    weekend: np.ndarray
    """[G] 1 for a genre of the weekend, −1 for one of the other days, else 0."""

    @classmethod
    def draw(cls, users: int, items: int, seed: int) -> Law:
        """The law of a seed."""
        rng = np.random.default_rng([seed, 0])
        count = max(_ARTISTS_OF_USER, items // _TRACKS_OF_ARTIST)
        genre = rng.permutation(np.arange(count) % len(GENRES))
        # A listener's artists are mostly of one or two genres.
        fame, liking = rng.normal(0, 0.7, count), rng.dirichlet(np.full(len(GENRES), 0.3), users)
        likely = np.log(liking + 1e-3)[:, genre] + fame + rng.gumbel(size=(users, count))
        return cls(
            artist=rng.permutation(np.arange(items) % count),
            genre=genre,
            appeal=rng.lognormal(0.0, 1.0, items),
            artists=np.argsort(-likely, axis=1)[:, :_ARTISTS_OF_USER],
            shares=rng.dirichlet(np.full(_ARTISTS_OF_USER, 1.0), users),
            habit=rng.beta(5, 4, users),
            hour=rng.permutation(len(GENRES)) * 24 / len(GENRES),
            weekend=rng.permutation(np.arange(len(GENRES)) % 3 - 1),
        )

    @classmethod
    def load(cls, folder: str) -> Law:
        """The law that a folder's tables were drawn from; listeners and tracks in the order of their tables."""
        return load_law(cls, folder)

    def of_time(self, seconds: np.ndarray) -> np.ndarray:
        """[N, I] by what factor times [N], in seconds since 1970, favour each track."""
        days = seconds / 86_400
        # 1970-01-01 was a Thursday.
        is_weekend = (np.floor(days) % 7 == 2) | (np.floor(days) % 7 == 3)
        angle = 2 * np.pi * (days % 1 - self.hour[:, np.newaxis] / 24)
        of_genre = np.exp(_HOUR * np.cos(angle) + _WEEKEND * self.weekend[:, np.newaxis] * is_weekend)
        return of_genre.T[:, self.genre[self.artist]]

    def found(self, users: np.ndarray) -> np.ndarray:
        """[N, I] how likely these listeners [N] are to find each track, whatever the time is."""
        count = len(self.genre)
        taste = np.full((len(users), count), _EXPLORED / count)
        taste[np.arange(len(users))[:, np.newaxis], self.artists[users]] += (1 - _EXPLORED) * self.shares[users]
        of_artist = np.bincount(self.artist, self.appeal, count)
        return taste[:, self.artist] * (self.appeal / of_artist[self.artist])

    def probabilities(self, users: np.ndarray, seconds: np.ndarray, played: np.ndarray) -> np.ndarray:
        """[N, I] how likely each track is the next one.

        Args:
            users: [N].
            seconds: [N] when it is played.
            played: [N, I] what each track counts that was played before: `_MEMORY` ** n where its last time is n plays
                ago, or less.
        """
        times = self.of_time(seconds)
        again, found = played * times, self.found(users) * times
        total = again.sum(axis=1, keepdims=True)
        habit = np.where(total > 0, self.habit[users][:, np.newaxis], 0.0)
        again = np.divide(again, total, out=np.zeros_like(again), where=total > 0)
        return habit * again + (1 - habit) * found / found.sum(axis=1, keepdims=True)


def write(users: int, items: int, interactions: int, seed: int, folder: str) -> Music:
    """Draws the tables: `interactions.parquet`, `items.parquet`, `users.parquet`, and the law as `truth.npz`.

    The same numbers and seed give the same bytes. A completed play weighs 1, a skipped one less.

    Args:
        users: Listeners, each of whom has at least 10 plays.
        items: Tracks; some may be played by nobody.
        interactions: Plays in all.
        seed: Of every draw.
        folder: Where to; files of an earlier draw there are replaced when all of the new ones are there.

    Raises:
        UserError: So many plays do not fit these listeners, or the folder cannot be written.
    """
    if users < 1 or interactions < _LEAST * users:
        raise UserError(f"--interactions: {interactions} are fewer than {_LEAST} for each of {users} users")
    law = Law.draw(users, items, seed)
    most = max(_LEAST, _MOST * interactions // users)
    counts = activity(users, interactions, _LEAST, most, np.random.default_rng([seed, 1]))
    at_once = max(1, _CELLS_AT_ONCE // items)
    parts = [
        _plays(law, np.arange(start, min(users, start + at_once)), counts, np.random.default_rng([seed, 2, start]))
        for start in range(0, users, at_once)
    ]
    plays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    table = pa.table(
        [names("u", plays["user"]), names("t", plays["track"]), plays["seconds"], plays["weight"]], schema=PLAYS
    )
    with staged(folder) as staging:
        save_law(law, staging)
        pq.write_table(_tracks(law, np.random.default_rng([seed, 3])), os.path.join(staging, "items.parquet"))
        pq.write_table(_listeners(law, np.random.default_rng([seed, 4])), os.path.join(staging, "users.parquet"))
        pq.write_table(table, os.path.join(staging, "interactions.parquet"))
    times, of_time = np.unique(plays["seconds"], return_counts=True)
    latest = plays["seconds"] >= histories.fraction_cutoffs(times, of_time, TemporalSplit())[1]
    best, own = (float(_ndcg(plays[rank][latest]).mean()) for rank in ("best", "own"))
    share = float(plays["again"][latest].mean())
    return Music(folder, interactions, users, items, *(round(figure, 4) for figure in (share, best, own)))


def _plays(law: Law, users: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All plays of some listeners, by listener and time, and the place of what is played in two rankings."""
    counts = counts[users]
    seconds = _times(counts, rng)
    starts = np.cumsum(counts) - counts
    played, often = (np.zeros((len(users), len(law.artist))) for _ in range(2))
    rows: dict[str, np.ndarray] = {"user": np.repeat(users, counts), "seconds": seconds}
    rows |= {key: np.zeros(len(seconds), np.int64) for key in ("track", "best", "own", "again")}
    rows["weight"] = np.ones(len(seconds), np.float32)
    for number in range(int(counts.max(initial=0))):
        some = np.flatnonzero(counts > number)
        at, each = starts[some] + number, np.arange(len(some))
        likely = law.probabilities(users[some], seconds[at], played[some])
        track = (np.cumsum(likely, axis=1) < rng.random((len(some), 1)) * likely.sum(axis=1, keepdims=True)).sum(axis=1)
        track = np.minimum(track, len(law.artist) - 1)
        again = often[some, track] > 0
        rows["track"][at], rows["again"][at] = track, again
        for key, scores in (("best", likely), ("own", often[some])):
            rows[key][at] = (scores > scores[each, track][:, np.newaxis]).sum(axis=1)
        # What was never played has no place in a ranking of what was.
        rows["own"][at] = np.where(again, rows["own"][at], len(law.artist))
        skipped = rng.random(len(some)) < np.where(again, _SKIPS_AGAIN, _SKIPS_FOUND)
        rows["weight"][at] = np.where(skipped, SKIPPED, 1.0)
        played[some] *= _MEMORY
        played[some, track] = np.maximum(played[some, track], rows["weight"][at])
        often[some, track] += 1
    return rows


def _times(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[Σ counts] seconds since 1970 of some listeners' plays, rising for each: sessions with minutes between plays."""
    user = np.repeat(np.arange(len(counts)), counts)
    begins = rng.random(len(user)) < 1 / _SESSION
    begins[np.cumsum(counts) - counts] = True
    session = np.cumsum(begins) - 1
    of_session = user[begins]
    days = rng.integers(0, _LENGTH // 86_400, len(of_session)) * 86_400
    # Fewer people listen in the small hours.
    minutes = np.floor((5.5 + 18 * rng.beta(2.2, 2.0, len(of_session))) % 24 * 60).astype(np.int64)
    start = days + minutes * 60
    start = start[np.lexsort((start, of_session))]
    gaps = 120 + rng.integers(0, 180, len(user))
    passed = np.cumsum(gaps)
    seconds = _START + start[session] + passed - passed[np.flatnonzero(begins)][session]
    # A session that would begin before the last one has ended begins a pause after it.
    for place in range(1, len(seconds)):
        if user[place] == user[place - 1] and seconds[place] <= seconds[place - 1]:
            seconds[place] = seconds[place - 1] + _PAUSE
    return seconds


def _ndcg(places: np.ndarray) -> np.ndarray:
    """[N] NDCG@10 where the one relevant item is at these places, from 0."""
    hits = places[:, np.newaxis] == np.arange(K)
    return metrics.ndcg(hits, np.ones(len(places), np.int64))


def _tracks(law: Law, rng: np.random.Generator) -> pa.Table:
    number = np.arange(len(law.artist))
    genre = np.array(GENRES)[law.genre[law.artist]]
    # Ambient pieces are long, pop songs are not.
    seconds = (180 * np.exp(rng.normal(0, 0.25, len(number))) * (1 + (law.genre[law.artist] < 2))).astype(np.int64)
    artist = names("artist ", law.artist)
    titles = [f"{kind} piece {n} by {who}" for kind, n, who in zip(genre, number, artist.to_pylist(), strict=True)]
    columns = {"item_id": names("t", number), "title": titles, "artist": artist, "genre": genre, "duration": seconds}
    return pa.table(columns)


def _listeners(law: Law, rng: np.random.Generator) -> pa.Table:
    """Three in four listeners have said which genre they like, most of them that of their first artist."""
    users = np.arange(len(law.habit))
    first = law.genre[law.artists[users, np.argmax(law.shares, axis=1)]]
    said = np.array(GENRES)[np.where(rng.random(len(users)) < 0.8, first, rng.integers(0, len(GENRES), len(users)))]
    return pa.table(
        {"user_id": names("u", users), "favourite_genre": pa.array(said, mask=rng.random(len(users)) < 0.25)}
    )
