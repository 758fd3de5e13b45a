"""The formulas of ranking quality, once: validation while training and the Evaluator's metrics both call them.

A batch has B queries. `hits` [B, K] is true where the query's ranking, best first, holds a relevant item; places that a
ranking leaves empty are misses. `relevant` [B] counts the relevant items of a query, found or not, and is above 0: a
query without any has no value, and whoever asks leaves it out. Every metric at a cut-off k is that of `hits[:, :k]`.
Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def hits(ranking: Sequence[Item], relevant: Iterable[Item], width: int) -> np.ndarray:
    """[width] bool, where a ranking, cut or filled up to that width, holds a relevant item; twice the same counts once.

    Args:
        ranking: Items of one query, best first.
        relevant: The relevant ones.
        width: Largest cut-off.
    """
    left = set(relevant)
    places = np.zeros(width, bool)
    for place, item in enumerate(ranking[:width]):
        if item in left:
            left.remove(item)
            places[place] = True
    return places


def recall(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """recall@K = |top K ∩ relevant| / |relevant|, [B]."""
    return np.count_nonzero(hits, axis=1) / relevant


def precision(hits: np.ndarray) -> np.ndarray:
    """precision@K = |top K ∩ relevant| / K, [B]."""
    return np.count_nonzero(hits, axis=1) / hits.shape[1]


def hit_rate(hits: np.ndarray) -> np.ndarray:
    """hit_rate@K = 1 where a relevant item is in the top K, else 0, [B]."""
    return hits.any(axis=1).astype(float)


def ndcg(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """ndcg@K = DCG@K / IDCG@K with DCG@K = Σ over hits at places i = 1 … K of 1 / log2(i + 1), [B].

    IDCG@K is the DCG of the best possible ranking: min(K, |relevant|) hits in the first places. Järvelin and
    Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002, with binary gains.
    """
    gains = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    return hits @ gains / np.cumsum(gains)[np.minimum(relevant, hits.shape[1]) - 1]


def mrr(hits: np.ndarray) -> np.ndarray:
    """mrr@K = 1 / place of the first relevant item, 0 when none is among the K, [B]."""
    return np.where(hits.any(axis=1), 1.0 / (np.argmax(hits, axis=1) + 1), 0.0)


def popular_share(popular: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """popular_share@K = share of the top K that is among the catalogue's most popular items, [B].

    Args:
        popular: [B, K], 1 where the item of the place is one of them; places beyond `filled` do not count.
        filled: [B] places that hold an item. An empty ranking has no share: NaN.
    """
    count = np.minimum(filled, popular.shape[1])
    total = (popular * (np.arange(popular.shape[1]) < count[:, np.newaxis])).sum(axis=1)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def coverage(best_places: Iterable[int], k: int, catalogue_size: float) -> float:
    """coverage@k = |union of the top k of all queries| / |catalogue|.

    Args:
        best_places: For every item that any ranking holds, the best place that it has, from 0.
        k: Cut-off.
        catalogue_size: How many items can be recommended.
    """
    return sum(place < k for place in best_places) / max(catalogue_size, 1.0)
