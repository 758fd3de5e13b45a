"""Interactions drawn from a known law, of any number: what a benchmark can know the best possible answer to.

Users have tastes over topics that drift, items belong to topics, have a long-tailed appeal and are released over time.
An interaction draws a topic from the user's taste, then an item of it. Everything is drawn from the seed alone, and
written shard by shard, so that memory grows with users and items but not with interactions.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modules.errors import UserError
from pipeline.datasets.drawing import activity, load_law, names, save_law, staged

INTERACTIONS = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
ITEMS = pa.schema(
    [("item_id", pa.string()), ("title", pa.string()), ("topics", pa.list_(pa.string())), ("released", pa.int64())]
)
USERS = pa.schema([("user_id", pa.string()), ("segment", pa.string())])

PERIODS = 20
"""The law is constant within each of so many parts of the whole time."""
_START, _LENGTH = 1_600_000_000, 730 * 86_400
_TOPICS = 64
_OF_ITEM, _OF_USER = 3, 4
# A user has at most this many times the mean, and never more than this share of the items.
_MOST, _SHARE = 10, 0.1
# This share of the interactions is with any item at all.
_EXPLORED = 0.05
# A released item's appeal falls to this share of it, within about this share of the whole time.
_LASTING, _NOVELTY = 0.3, 0.1


@dataclass(frozen=True)
class Synthetic:
    """Where the tables are, and what is in them."""

    directory: str
    interactions: int
    users: int
    items: int
    shards: int


@dataclass(frozen=True)
class Law:
    """From what interactions are drawn; U users, I items, K topics."""

    item_topics: np.ndarray
    """[I, 3] int64."""
    item_shares: np.ndarray
    """[I, 3] how much an item belongs to each; they add up to 1."""
    appeal: np.ndarray
    """[I] above 0, long-tailed."""
    released: np.ndarray
    """[I] number of a period."""
    user_topics: np.ndarray
    """[U, 4] int64, each topic once."""
    early: np.ndarray
    """[U, 4] shares of the topics at the beginning; they move to `late` until the end."""
    late: np.ndarray
    joined: np.ndarray
    """[U] number of a period."""

    @classmethod
    def draw(cls, users: int, items: int, seed: int) -> Law:
        """The law of a seed."""
        rng = np.random.default_rng([seed, 0])
        topics = max(_OF_USER, min(_TOPICS, items // 20))
        shares = rng.dirichlet(np.full(_OF_ITEM, 0.5), items)
        # Topics have sizes of their own; three draws of an item may fall on one topic.
        sizes = rng.dirichlet(np.full(topics, 2.0))
        likely = np.log(sizes) + rng.gumbel(size=(users, topics))
        return cls(
            item_topics=rng.choice(topics, (items, _OF_ITEM), p=sizes),
            item_shares=shares,
            appeal=rng.lognormal(0.0, 1.5, items),
            released=np.where(rng.random(items) < 0.6, 0, rng.integers(0, PERIODS, items)),
            user_topics=np.argsort(-likely, axis=1)[:, :_OF_USER],
            early=rng.dirichlet(np.full(_OF_USER, 0.5), users),
            late=rng.dirichlet(np.full(_OF_USER, 0.5), users),
            joined=np.where(rng.random(users) < 0.6, 0, rng.integers(0, PERIODS, users)),
        )

    @classmethod
    def load(cls, folder: str) -> Law:
        """The law that a folder's tables were drawn from; items and users in the order of their tables."""
        return load_law(cls, folder)

    def save(self, folder: str) -> None:
        """Writes what `load` reads."""
        save_law(self, folder)

    @property
    def topics(self) -> int:
        """K."""
        return 1 + int(max(self.item_topics.max(), self.user_topics.max()))

    @functools.cached_property
    def _by_topic(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of `item_topics` flat, topic by topic, and [K + 1] where each topic begins."""
        flat = self.item_topics.ravel()
        order = np.argsort(flat, kind="stable")
        return order, np.searchsorted(flat[order], np.arange(self.topics + 1))

    def tastes(self, users: np.ndarray, periods: np.ndarray) -> np.ndarray:
        """[Q, 4] shares of these users' topics in these periods, [Q] each."""
        later = ((periods + 0.5) / PERIODS)[:, np.newaxis]
        return (1 - later) * self.early[users] + later * self.late[users]

    def weights(self, period: int) -> np.ndarray:
        """[I, 3] how likely an item is in each of its topics, up to a factor for each topic; 0 before its release."""
        age = (period - self.released) / PERIODS
        novelty = np.where(age < 0, 0.0, _LASTING + (1 - _LASTING) * np.exp(-age / _NOVELTY))
        return (self.appeal * novelty)[:, np.newaxis] * self.item_shares

    def probabilities(self, users: np.ndarray, period: int) -> np.ndarray:
        """[Q, I] float32: how likely each item is as the next one of these users, [Q], items seen before apart."""
        in_topic = np.zeros((self.topics, len(self.appeal)), np.float32)
        items = np.arange(len(self.appeal))[:, np.newaxis]
        np.add.at(in_topic, (self.item_topics, items), self.weights(period))
        total = in_topic.sum(axis=1, keepdims=True)
        in_topic = np.divide(in_topic, total, out=np.zeros_like(in_topic), where=total > 0)
        taste = np.zeros((len(users), self.topics), np.float32)
        np.put_along_axis(taste, self.user_topics[users], self.tastes(users, np.full(len(users), period)), axis=1)
        there = self.released <= period
        return (1 - _EXPLORED) * (taste @ in_topic) + np.float32(_EXPLORED) * there / there.sum()

    def sample(self, user: np.ndarray, period: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[N] an item for each user and period, [N] each."""
        taste = np.cumsum(self.tastes(user, period), axis=1)
        place = (rng.random(len(user))[:, np.newaxis] * taste[:, -1:] > taste).sum(axis=1)
        topic = self.user_topics[user, np.minimum(place, _OF_USER - 1)]
        explores = rng.random(len(user)) < _EXPLORED
        value = rng.random(len(user))
        item = np.zeros(len(user), np.int64)
        of_topic, begins = self._by_topic
        for number in np.unique(period):
            here = period == number
            total = np.append(0.0, np.cumsum(self.weights(number).ravel()[of_topic]))
            low, high = total[begins[topic]], total[begins[topic + 1]]
            # A topic without a released item is explored instead.
            there = np.flatnonzero(self.released <= number)
            any_item = here & (explores | (low >= high))
            chosen = here & ~any_item
            at = np.searchsorted(total, low[chosen] + value[chosen] * (high - low)[chosen], side="right") - 1
            at = np.clip(at, begins[topic[chosen]], begins[topic[chosen] + 1] - 1)
            item[chosen] = of_topic[at] // _OF_ITEM
            item[any_item] = there[(value[any_item] * len(there)).astype(np.int64)]
        return item


def period_of(timestamps: np.ndarray) -> np.ndarray:
    """Numbers of the periods of seconds since 1970."""
    return np.clip((timestamps - _START) * PERIODS // _LENGTH, 0, PERIODS - 1)


def write(users: int, items: int, interactions: int, seed: int, folder: str, rows_in_shard: int = 500_000) -> Synthetic:
    """Draws the tables: `interactions-*.parquet`, `items.parquet`, `users.parquet`, and the law as `truth.npz`.

    The same numbers and seed give the same bytes. A user interacts with an item once.

    Args:
        users: How many, each of whom has at least 3 interactions.
        items: How many; some may be drawn by nobody.
        interactions: How many in all.
        seed: Of every draw.
        rows_in_shard: Interactions in one file, about.
        folder: Where to; files of an earlier draw there are replaced when all of the new ones are there.

    Raises:
        UserError: So many interactions do not fit these users and items, or the folder cannot be written.
    """
    most = min(_MOST * interactions // max(users, 1), int(_SHARE * items))
    if users < 1 or interactions < 3 * users:
        raise UserError(f"--interactions: {interactions} are fewer than 3 for each of {users} users")
    if users * min(most, interactions // users + 1) < interactions:
        raise UserError(f"--items: {items} are too few for {interactions // users} interactions a user; 10 for each")
    law = Law.draw(users, items, seed)
    counts = activity(users, interactions, 3, most, np.random.default_rng([seed, 1]))
    with staged(folder) as staging:
        law.save(staging)
        pq.write_table(_items(law), os.path.join(staging, "items.parquet"))
        pq.write_table(_users(law, np.random.default_rng([seed, 2])), os.path.join(staging, "users.parquet"))
        shards = -(-interactions // rows_in_shard)
        starts = np.searchsorted(np.cumsum(counts), np.arange(shards) * (interactions / shards), side="right")
        for shard, (start, stop) in enumerate(zip(starts, [*starts[1:], users], strict=True)):
            some = np.arange(start, stop)
            table = _interactions(law, some, counts[some], np.random.default_rng([seed, 3, shard]))
            pq.write_table(table, os.path.join(staging, f"interactions-{shard:05d}-of-{shards:05d}.parquet"))
    return Synthetic(folder, interactions, users, items, shards)


def _interactions(law: Law, users: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """All interactions of some users, by user and time."""
    user = np.repeat(users, counts)
    joined = law.joined[user] / PERIODS
    seconds = _START + ((joined + (1 - joined) * rng.random(len(user))) * _LENGTH).astype(np.int64)
    seconds = seconds[np.lexsort((seconds, user))]
    period = period_of(seconds)
    item = np.zeros(len(user), np.int64)
    redrawn = np.arange(len(user))
    while len(redrawn):
        item[redrawn] = law.sample(user[redrawn], period[redrawn], rng)
        # What the user had before is drawn anew; rows are in time order.
        by_pair = np.lexsort((np.arange(len(user)), item, user))
        again = (np.diff(user[by_pair]) == 0) & (np.diff(item[by_pair]) == 0)
        redrawn = np.sort(by_pair[1:][again])
    return pa.table({"user_id": names("u", user), "item_id": names("i", item), "timestamp": seconds}, INTERACTIONS)


def _items(law: Law) -> pa.Table:
    topics = [[f"t{topic}" for topic in dict.fromkeys(row)] for row in law.item_topics.tolist()]
    titles = [f"{name[0]} number {number}" for number, name in enumerate(topics)]
    released = _START + law.released * _LENGTH // PERIODS
    ids = names("i", np.arange(len(titles)))
    return pa.table({"item_id": ids, "title": titles, "topics": topics, "released": released}, ITEMS)


def _users(law: Law, rng: np.random.Generator) -> pa.Table:
    """Two thirds of the users are in the segment of what they liked most in the beginning, the others in any."""
    users = np.arange(len(law.joined))
    liked = law.user_topics[users, np.argmax(law.early, axis=1)] % 8
    segment = np.where(rng.random(len(users)) < 2 / 3, liked, rng.integers(0, 8, len(users)))
    return pa.table({"user_id": names("u", users), "segment": names("s", segment)}, USERS)
