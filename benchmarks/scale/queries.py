"""The pipeline's own queries as arrays, the best answer that the law knows, and the score that all are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules import metrics

RECALL_K, NDCG_K = 100, 10
_BATCH = 500


@dataclass(frozen=True)
class Asked:
    """Queries; item and user numbers are places in the tables. Lists are flat, with [Q + 1] where each begins."""

    users: np.ndarray
    """[Q] int64."""
    times: np.ndarray
    """[Q] int64 seconds at which they ask."""
    history: np.ndarray
    history_offsets: np.ndarray
    relevant: np.ndarray
    relevant_offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def history_of(self, query: int | np.integer) -> np.ndarray:
        """Items that are left out of the answer."""
        return self.history[self.history_offsets[query] : self.history_offsets[query + 1]]

    def relevant_of(self, query: int | np.integer) -> np.ndarray:
        return self.relevant[self.relevant_offsets[query] : self.relevant_offsets[query + 1]]

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Asked:
        with np.load(path) as arrays:
            return cls(**arrays)


class Measured(NamedTuple):
    """Means over the queries, the whole catalogue ranked, items of the history left out (modules/metrics.py)."""

    recall: float
    """At 100."""
    ndcg: float
    """At 10."""


def measure(asked: Asked, score: Callable[[Asked, np.ndarray], np.ndarray]) -> Measured:
    """How good the best hundred items of each query are.

    Args:
        asked: Queries.
        score: Queries and the numbers of some of them [B] → scores [B, items].
    """
    recalls, ndcgs = [], []
    for start in range(0, len(asked), _BATCH):
        some = np.arange(start, min(start + _BATCH, len(asked)))
        scores = score(asked, some)
        hits, relevant = [], []
        for row, query in zip(scores, some, strict=True):
            row[asked.history_of(query)] = -np.inf
            best = np.argpartition(-row, min(RECALL_K, len(row) - 1))[:RECALL_K]
            best = best[np.argsort(-row[best], kind="stable")]
            hits.append(np.isin(best, asked.relevant_of(query)))
            relevant.append(len(asked.relevant_of(query)))
        recalls.append(metrics.recall(np.array(hits), np.array(relevant)))
        ndcgs.append(metrics.ndcg(np.array(hits)[:, :NDCG_K], np.array(relevant)))
    return Measured(float(np.concatenate(recalls).mean()), float(np.concatenate(ndcgs).mean()))


def best_possible(asked: Asked, folder: Path) -> Measured:
    """The same of the law that drew the tables: nobody who does not see the future ranks better on average."""
    from pipeline.datasets.synthetic import Law, period_of

    law, periods = Law.load(str(folder)), period_of(asked.times)

    def score(asked: Asked, some: np.ndarray) -> np.ndarray:
        scores = np.zeros((len(some), len(law.appeal)), np.float32)
        for period in np.unique(periods[some]):
            here = periods[some] == period
            scores[here] = law.probabilities(asked.users[some[here]], int(period))
        return scores

    return measure(asked, score)


def read(files: Sequence[str], most: int) -> Asked:
    """Some of the queries of a split that InteractionExampleGen wrote.

    Args:
        files: Of the split.
        most: How many; more are drawn from, at random.
    """
    import tensorflow as tf

    lists = {"history": tf.io.RaggedFeature(tf.string), "relevant_items": tf.io.RaggedFeature(tf.string)}
    one = {"user_id": tf.io.FixedLenFeature([], tf.string), "timestamp": tf.io.FixedLenFeature([], tf.int64)}
    users, times = [], []
    of_lists: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {key: [] for key in lists}
    for batch in tf.data.TFRecordDataset(files, compression_type="GZIP").batch(4096):
        parsed = tf.io.parse_example(batch, {**lists, **one})
        users.append(_numbers(parsed["user_id"].numpy()))
        times.append(parsed["timestamp"].numpy())
        for key, parts in of_lists.items():
            parts.append((_numbers(parsed[key].values.numpy()), parsed[key].row_lengths().numpy()))
    count = sum(len(part) for part in users)
    drawn = np.sort(np.random.default_rng(1).permutation(count)[:most])
    flat = {key: _some(parts, drawn) for key, parts in of_lists.items()}
    return Asked(
        np.concatenate(users)[drawn], np.concatenate(times)[drawn], *flat["history"], *flat["relevant_items"]
    )  # fmt: skip


def read_train(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[T] users, [T] items and [T] whether validation holds the interaction out, of the train split."""
    import tensorflow as tf

    spec = {
        "user_id": tf.io.FixedLenFeature([], tf.string),
        "sequence_item_id": tf.io.RaggedFeature(tf.string),
        "sequence_is_validation": tf.io.RaggedFeature(tf.int64),
    }
    users, items, held_out = [], [], []
    for batch in tf.data.TFRecordDataset(files, compression_type="GZIP").batch(4096):
        parsed = tf.io.parse_example(batch, spec)
        lengths = parsed["sequence_item_id"].row_lengths().numpy()
        users.append(np.repeat(_numbers(parsed["user_id"].numpy()), lengths))
        items.append(_numbers(parsed["sequence_item_id"].values.numpy()))
        held_out.append(parsed["sequence_is_validation"].values.numpy() > 0)
    return np.concatenate(users), np.concatenate(items), np.concatenate(held_out)


def _numbers(names: np.ndarray) -> np.ndarray:
    """u17 and i17 are number 17."""
    return np.array([int(name[1:]) for name in names], np.int64)


def _some(parts: Sequence[tuple[np.ndarray, np.ndarray]], drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, lengths = (np.concatenate(each) for each in zip(*parts, strict=True))
    starts = np.cumsum(lengths) - lengths
    offsets = np.append(0, np.cumsum(lengths[drawn]))
    places = np.arange(offsets[-1]) + np.repeat(starts[drawn] - offsets[:-1], lengths[drawn])
    return values[places], offsets
