"""How well a model ranks the catalogue for the validation queries."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from modules.two_tower import QueryTower, query_inputs

_QUERY_BATCH = 1024
# Bytes of scores that are kept for another look; beyond, they are computed again.
_KEPT = 2**29


@dataclass(frozen=True)
class Queries:
    """What validation ranks: features [Q, ...], and for each query its relevant and its seen labels, 0-padded."""

    features: Mapping[str, np.ndarray]
    relevant: np.ndarray
    seen: np.ndarray

    @property
    def batches(self) -> list[slice]:
        """Queries that are ranked at once."""
        return [slice(start, start + _QUERY_BATCH) for start in range(0, len(self.relevant), _QUERY_BATCH)]


class Judge:
    """NDCG@k and recall@k of each query over the whole catalogue, seen items excluded.

    NDCG@k = Σ_{hits at rank r ≤ k} 1 / log2(r + 1), divided by the same sum for min(k, relevant) hits on top
    (Järvelin & Kekäläinen 2002, binary relevance). recall@k = hits / relevant.
    """

    def __init__(self, queries: Queries, labels: np.ndarray, k: int) -> None:
        """Takes what is the same for all models.

        Args:
            queries: What each query asks for and has seen.
            labels: [C] of the candidates, ascending.
            k: Length of the lists.
        """
        self.queries, self.labels = queries, labels
        self._k = min(k, len(labels))
        self._discounts = 1.0 / np.log2(np.arange(2, self._k + 2))
        column_of = np.full(int(labels.max()) + 1, -1)
        column_of[labels] = np.arange(len(labels))
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        for part in queries.batches:
            seen = queries.seen[part]
            rows, columns = np.nonzero((seen > 0) & (seen < len(column_of)))
            columns = column_of[seen[rows, columns]]
            self._seen.append((rows[columns >= 0], columns[columns >= 0]))

    def exclude_seen(self, batch: int, scores: np.ndarray) -> np.ndarray:
        """The scores [B, C] of a batch of the queries, changed in place: −∞ at what a query has seen."""
        scores[self._seen[batch]] = -np.inf
        return scores

    def rank(self, vectors: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """NDCG and recall, [Q] each, of vectors [Q, D] of the queries and of the candidates [C, D]."""
        batches = enumerate(self.queries.batches)
        return self.metrics(self.exclude_seen(number, vectors[part] @ candidates.T) for number, part in batches)

    def metrics(self, scores: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """NDCG and recall, [Q] each, of scores [B, C] without the seen items, batch by batch."""
        ndcg, recall = [], []
        for part, batch in zip(self.queries.batches, scores, strict=True):
            relevant = self.queries.relevant[part]
            top = self.labels[tf.math.top_k(batch, self._k).indices.numpy()]
            # One number for a pair of query and item, so that a single look-up finds the hits of all queries.
            width = 1 + max(int(self.labels.max()), int(relevant.max(initial=0)))
            of_query = np.arange(len(top))[:, np.newaxis] * width
            hits = np.isin(top + of_query, (relevant + of_query)[relevant > 0])
            count = np.count_nonzero(relevant, axis=1)
            ideal = np.cumsum(self._discounts)[np.minimum(count, self._k) - 1]
            ndcg.append(hits @ self._discounts / ideal)
            recall.append(hits.sum(axis=1) / count)
        return np.concatenate(ndcg), np.concatenate(recall)


class Blend:
    """Judges a query tower under one set of its numbers after another.

    Scores are sums of parts, and a number changes one of them: what the others score is kept while it is tried.
    """

    def __init__(self, judge: Judge, tower: QueryTower, candidates: np.ndarray) -> None:
        """Begins with the candidates [C, D] and the tower as they are now."""
        self.queries = judge.queries
        self._judge, self._tower, self._candidates = judge, tower, candidates
        self._first = slice(tower.dimension)
        self._second = slice(tower.dimension, tower.dimension + tower.linear_rank)
        keys, features = query_inputs(tower.features), judge.queries.features
        self._batches = [{key: tf.constant(features[key][part]) for key in keys} for part in judge.queries.batches]
        kept = _KEPT // (4 * min(_QUERY_BATCH, len(self.queries.relevant)) * len(candidates))
        # Vectors are small.
        self._learned = functools.cache(lambda recency, batch: tower.learned(self._batches[batch], recency))
        self._linear = functools.cache(lambda recency, batch: tower.linear(self._batches[batch], recency))
        self._learned_scores = functools.lru_cache(kept // 2)(self._score_learned)
        self._linear_scores = functools.lru_cache(kept // 2)(self._score_linear)

    def take(self, candidates: np.ndarray) -> None:
        """Goes on with the candidates [C, D] and the tower as they are now, after a step of the fit."""
        self._learned.cache_clear()
        self._learned_scores.cache_clear()
        # The fit leaves the closed-form part alone, but what unknown items are told has its columns too.
        if not np.array_equal(candidates[:, self._second], self._candidates[:, self._second]):
            self._linear_scores.cache_clear()
        self._candidates = candidates

    def take_trend(self, candidates: np.ndarray) -> None:
        """Goes on with candidates [C, D] that differ from those before by their trends alone."""
        self._candidates = candidates

    def vectors(self) -> np.ndarray:
        """[Q, D] vectors of the queries under the tower's numbers."""
        parts = [self._tower.blend(inputs, *self._parts(batch)) for batch, inputs in enumerate(self._batches)]
        return np.concatenate([part.numpy() for part in parts])

    def measure(self) -> tuple[np.ndarray, np.ndarray]:
        """NDCG and recall of the queries under the tower's numbers, [Q] each."""
        return self._judge.metrics(map(self._scores, range(len(self._batches))))

    def _scores(self, batch: int) -> np.ndarray:
        tower = self._tower
        others = tower.others(self._batches[batch]).numpy()
        scores = others @ self._candidates[:, -others.shape[1] :].T
        scores += self._learned_scores(float(tower.recency.numpy()), batch)
        if tower.linear_rank:
            scores += tower.linear_gain.numpy() * self._linear_scores(float(tower.linear_recency.numpy()), batch)
        return scores

    def _parts(self, batch: int) -> tuple[tf.Tensor, tf.Tensor | None]:
        tower = self._tower
        learned = self._learned(float(tower.recency.numpy()), batch)
        if not tower.linear_rank:
            return learned, None
        return learned, self._linear(float(tower.linear_recency.numpy()), batch)

    def _score_learned(self, recency: float, batch: int) -> np.ndarray:
        vectors = self._learned(recency, batch).numpy()
        # Once excluded here, a seen item stays so in every sum.
        return self._judge.exclude_seen(batch, vectors @ self._candidates[:, self._first].T)

    def _score_linear(self, recency: float, batch: int) -> np.ndarray:
        return self._linear(recency, batch).numpy() @ self._candidates[:, self._second].T
