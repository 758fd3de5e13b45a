"""What recommendations are worth; written apart from modules/evaluation.py, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

K = 10
DEPTH = 100
"""Items that a system recommends to each user."""
HEAD = 0.1
"""Share of the catalogue that counts as popular."""
NAMES = ("ndcg@10", "recall@10", "precision@10", "recall@100", "coverage@10", "novelty@10", "popular@10")


def ndcg(ranking: Sequence[str], relevant: set[str], k: int) -> float:
    """DCG@k / IDCG@k with binary gains and 1 / log2(place + 1), places from 1 (Järvelin and Kekäläinen, TOIS 2002)."""
    gain = sum(1 / np.log2(place + 2) for place, item in enumerate(ranking[:k]) if item in relevant)
    return gain / sum(1 / np.log2(place + 2) for place in range(min(k, len(relevant))))


def recall(ranking: Sequence[str], relevant: set[str], k: int) -> float:
    """|top k ∩ relevant| / |relevant|; with one relevant item this is the hit rate."""
    return len(relevant.intersection(ranking[:k])) / len(relevant)


def precision(ranking: Sequence[str], relevant: set[str], k: int) -> float:
    """|top k ∩ relevant| / k."""
    return len(relevant.intersection(ranking[:k])) / k


def measure(
    rankings: Mapping[str, Sequence[str]], relevant: Mapping[str, set[str]], popularity: Mapping[str, int], items: int
) -> dict[str, float]:
    """The metrics of `NAMES`, means over the users of `relevant`.

    - coverage@10: share of the catalogue that is in anybody's top 10.
    - novelty@10: mean of −log2 p(item) over all top 10s, with p(item) = (n(item) + 1) / (N + items): the add-one keeps
      items without interactions finite (Castells, Hurley and Vargas, "Novelty and diversity", 2015).
    - popular@10: share of all top 10s that is among the most popular 10 % of the catalogue.

    Args:
        rankings: User → items, best first.
        relevant: User → items that were held out.
        popularity: Item → its interactions in train.
        items: Size of the catalogue.
    """
    users = list(relevant)
    shown = [item for user in users for item in rankings[user][:K]]
    total = sum(popularity.values()) + items
    head = set(sorted(popularity, key=lambda item: (-popularity[item], item))[: max(1, round(items * HEAD))])
    return {
        "ndcg@10": float(np.mean([ndcg(rankings[u], relevant[u], K) for u in users])),
        "recall@10": float(np.mean([recall(rankings[u], relevant[u], K) for u in users])),
        "precision@10": float(np.mean([precision(rankings[u], relevant[u], K) for u in users])),
        "recall@100": float(np.mean([recall(rankings[u], relevant[u], DEPTH) for u in users])),
        "coverage@10": len(set(shown)) / items,
        "novelty@10": float(np.mean([-np.log2((popularity.get(item, 0) + 1) / total) for item in shown])),
        "popular@10": float(np.mean([item in head for item in shown])),
    }
