"""What validation chooses: the blend weights, the recent window, the item-item model's ridge, the new items' offset.

Everything here is a function of vectors and parameters. Scores are sums of parts, and a blend weight changes one of
them: what the others score is kept while it is tried.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import tensorflow as tf

from modules import item_item, metrics
from modules.item_item import Factors, Moments
from modules.settings import Model, Training
from modules.towers.query import BlendWeights, QueryTower
from modules.towers.terms import encoded_keys, history_age_of, history_of
from modules.training import sampling
from modules.training.dataset import Queries, Specification
from modules.training.transformed import Lists

CHOICES: Mapping[str, tuple[float, ...]] = {
    "recency": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "item_item_recency": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "item_item": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "lift": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    # At 1 a cold-start query gets what is popular now; more would extrapolate.
    "cold_start_lift": (0.0, 0.25, 0.5, 0.75, 1.0),
}
"""The values of each blend weight that are tried."""
WORTH = 0.005
"""What a step away from where the search starts must gain, relative: less is the luck of a few hundred queries."""
# A recent window other than the first is taken if it is better by more than this many standard errors: on a few hundred
# queries the longest, calmest one does best.
_SURE = 2.0
# Scores that are looked at at once: 64 MB, and no more than so many queries.
_SCORES_AT_ONCE, _QUERY_BATCH = 2**24, 1024
# Sums of so many at once: SciPy makes several copies of them, in 64 bits.
_SUMMED_AT_ONCE = 2**20
# Interactions that the closed form's moments are taken over, at most: the matrices of more would say the same.
_CLOSED_FORM_INTERACTIONS = 500_000
# The ridge is chosen with the item-item model of so many items, the most frequent ones: its cost grows with their cube.
_ITEMS_TO_CHOOSE_BY = 2_000
# Bytes of scores that are kept for another look; beyond, they are computed again.
_KEPT = 2**29
# Standard deviation of the normal prior around 0 of the new items' offset, in log-odds: one interaction where none was
# expected moves it by less than 1, a dozen by nearly all that they say.
_OFFSET_DEVIATION = 1.0


@dataclass(frozen=True)
class Calibration:
    """What validation chose beside the number of epochs; a refit takes it over."""

    ridge: float | None
    """λ of the item-item model in closed form; None: it is the spectral one."""
    recent_window: float
    """Share of the interactions, the latest ones, that are recent."""
    weights: BlendWeights | None = None
    """None: the query tower's own defaults."""
    new_item_offset: float = 0.0
    """Added to the bias that an item without interactions gets by its content."""

    @classmethod
    def default(cls, model: Model, training: Training) -> Calibration:
        """What stands without validation."""
        ridges = model.item_item_ridges
        return cls(ridges[len(ridges) // 2], training.recent_windows[0])


class Measured(NamedTuple):
    """NDCG@k and recall@k of each query, [Q] each."""

    ndcg: np.ndarray
    recall: np.ndarray

    def of(self, metric: str) -> np.ndarray:
        """One of them by its name, `training.metric`."""
        return getattr(self, metric)


class Ranker:
    """NDCG@k and recall@k (modules/metrics.py) of queries over the whole catalogue, seen items excluded.

    Args:
        queries: What each query asks for and has seen.
        labels: [C] of the candidates, ascending.
        k: Length of the lists.
    """

    def __init__(self, queries: Queries, labels: np.ndarray, k: int) -> None:
        self.queries, self.labels = queries, labels
        self._k = min(k, len(labels))
        self.batch_size = max(1, min(_QUERY_BATCH, len(queries), _SCORES_AT_ONCE // len(labels)))
        """Queries that are ranked at once."""
        starts = range(0, len(queries), self.batch_size)
        self.parts = [slice(start, start + self.batch_size) for start in starts]
        """The batches of queries."""
        column_of = np.full(int(labels.max()) + 1, -1)
        column_of[labels] = np.arange(len(labels))
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        for part in self.parts:
            seen = queries.seen[part]
            rows, columns = np.nonzero((seen > 0) & (seen < len(column_of)))
            columns = column_of[seen[rows, columns]]
            self._seen.append((rows[columns >= 0], columns[columns >= 0]))

    def exclude_seen(self, batch: int, scores: np.ndarray) -> np.ndarray:
        """The scores [B, C] of a batch of the queries, changed in place: −∞ at what a query has seen."""
        scores[self._seen[batch]] = -np.inf
        return scores

    def rank(self, vectors: np.ndarray, candidates: np.ndarray) -> Measured:
        """The metrics of vectors [Q, D] of the queries and of the candidates [C, D]."""
        batches = enumerate(self.parts)
        return self.measure(self.exclude_seen(number, vectors[part] @ candidates.T) for number, part in batches)

    def measure(self, scores: Iterable[np.ndarray]) -> Measured:
        """The metrics of scores [B, C] without the seen items, batch by batch."""
        ndcg, recall = [], []
        for part, batch in zip(self.parts, scores, strict=True):
            relevant = self.queries.relevant[part]
            top = self.labels[tf.math.top_k(batch, self._k).indices.numpy()]
            # One number for a pair of query and item, so that a single look-up finds the hits of all queries.
            width = 1 + max(int(self.labels.max()), int(relevant.max(initial=0)))
            of_query = np.arange(len(top), dtype=np.int64)[:, np.newaxis] * width
            hits = np.isin(top + of_query, (relevant + of_query)[relevant > 0])
            count = np.count_nonzero(relevant, axis=1)
            ndcg.append(metrics.ndcg(hits, count))
            recall.append(metrics.recall(hits, count))
        return Measured(np.concatenate(ndcg), np.concatenate(recall))


class PartScores:
    """What one part of the vectors scores, [B, C] batch by batch, under one recency after another.

    Args:
        vectors: Recency and number of a batch → [B, d] of the queries.
        candidates: [C, d].
        kept: How many batches of scores are kept.
        finish: Number of a batch and its scores → what is kept of them.
    """

    def __init__(
        self,
        vectors: Callable[[float, int], np.ndarray],
        candidates: np.ndarray,
        kept: int,
        finish: Callable[[int, np.ndarray], np.ndarray] = lambda batch, scores: scores,
    ) -> None:
        self.candidates = candidates
        self.of = functools.lru_cache(kept)(
            lambda recency, batch: finish(batch, vectors(recency, batch) @ candidates.T)
        )
        """(recency, batch) → scores."""


@dataclass(frozen=True)
class Blend:
    """Queries and candidates ready to be ranked under any blend weights."""

    ranker: Ranker
    learned: PartScores
    """Without the seen items: once excluded here, an item stays so in every sum."""
    item_item: PartScores | None
    others: np.ndarray
    """[C, 1 or 2] the candidates' lift, and their discount where there is one."""
    inactivity: np.ndarray
    """[Q, 1] float32, how far the lift counts."""
    is_cold_start: np.ndarray
    """[Q, 1] bool."""
    weights_in_use: tuple[str, ...]
    """Names of the blend weights that make a difference to these queries."""

    @classmethod
    def of(cls, ranker: Ranker, tower: QueryTower, candidates: np.ndarray, before: PartScores | None = None) -> Blend:
        """The queries' vectors under the tower as it is now, beside these candidates [C, D].

        Args:
            ranker: With the queries.
            tower: Of the queries; it must not change while this is used.
            candidates: Their whole vectors.
            before: Item-item scores of an earlier one, which hold on where the candidates' part is still the same.
        """
        layout, features = tower.layout, ranker.queries.features
        batches = [
            {key: tf.constant(features[key][part]) for key in encoded_keys(tower.features)} for part in ranker.parts
        ]
        kept = _KEPT // (4 * ranker.batch_size * len(candidates)) // 2
        learned = PartScores(
            lambda recency, batch: tower.learned(batches[batch], recency).numpy(),
            layout.learned.of(candidates),
            kept,
            ranker.exclude_seen,
        )
        # A copy: what is kept for the next one shall not keep the candidates' whole vectors.
        factors, scores = layout.item_item.of(candidates).copy(), before
        if scores is None or not np.array_equal(scores.candidates, factors):
            scores = PartScores(lambda recency, batch: tower.item_item(batches[batch], recency).numpy(), factors, kept)
        history, age = history_of(tower.features), history_age_of(tower.features)
        inactivity = np.ones([len(ranker.queries), 1], np.float32)
        if age is not None:
            inactivity = np.concatenate([tower.inactivity(batch).numpy() for batch in batches])
        is_cold_start = np.zeros([len(ranker.queries), 1], bool)
        if history is not None:
            is_cold_start = np.all(features[history.column] == 0, axis=1, keepdims=True)
        return cls(
            ranker=ranker,
            learned=learned,
            item_item=scores if layout.item_item.size else None,
            others=candidates[:, layout.lift.start :],
            inactivity=inactivity,
            is_cold_start=is_cold_start,
            # Where nobody asks without a history every weight of the cold start would do as well.
            weights_in_use=tuple(
                name for name in tower.weights_in_use if name != "cold_start_lift" or is_cold_start.any()
            ),
        )

    def with_lift(self, lift: np.ndarray) -> Blend:
        """The same with other recent popularity lifts [C, 1] of the candidates."""
        return replace(self, others=np.concatenate([lift, self.others[:, 1:]], axis=1))

    def measure(self, weights: BlendWeights) -> Measured:
        """The metrics under these weights."""
        return self.ranker.measure(self._scores(weights, batch) for batch in range(len(self.ranker.parts)))

    def _scores(self, weights: BlendWeights, batch: int) -> np.ndarray:
        part = self.ranker.parts[batch]
        lift = np.float32(weights.lift) * self.inactivity[part]
        lift = np.where(self.is_cold_start[part], np.float32(weights.cold_start_lift), lift)
        scores = np.concatenate([lift, np.ones_like(lift)], axis=1)[:, : self.others.shape[1]] @ self.others.T
        scores += self.learned.of(weights.recency, batch)
        if self.item_item is not None:
            scores += np.float32(weights.item_item) * self.item_item.of(weights.item_item_recency, batch)
        return scores


@dataclass(frozen=True)
class Ascent:
    """Where coordinate ascent ended."""

    weights: BlendWeights
    measured: Measured


def coordinate_ascent(
    measure: Callable[[BlendWeights], Measured], metric: str, start: BlendWeights, names: Sequence[str], rounds: int
) -> Ascent:
    """Moves one weight after the other to where a metric is best, while that is worth the steps from where it was.

    Args:
        measure: The metrics under some weights; asked once for each.
        metric: The one to choose by.
        start: Where it begins.
        names: The weights that are moved, in this order.
        rounds: At most so many times each; it ends when a round moves nothing.
    """
    looked_at: dict[BlendWeights, Measured] = {}

    def look(weights: BlendWeights) -> Measured:
        if weights not in looked_at:
            looked_at[weights] = measure(weights)
        return looked_at[weights]

    def mean(measured: Measured) -> float:
        return float(measured.of(metric).mean())

    weights, best = start, look(start)
    for _ in range(rounds):
        before = weights
        for name in names:
            choices = np.array(CHOICES[name])
            place = int(np.argmin(np.abs(choices - getattr(weights, name))))
            tried = []
            for other, choice in enumerate(choices.tolist()):
                moved = replace(weights, **{name: choice})
                result = look(moved)
                worth = mean(result) - mean(best) * WORTH * abs(other - place)
                tried.append((worth, result, moved))
            worth, result, moved = max(tried, key=lambda trial: trial[0])
            if worth > mean(best):
                weights, best = moved, result
        if weights == before:
            break
    return Ascent(weights, best)


def choose_window(ascents: Mapping[float, Ascent], metric: str) -> float:
    """The recent window: the first, unless another is surely better.

    Args:
        ascents: Window → where coordinate ascent ended under it.
        metric: To choose by.
    """
    chosen = next(iter(ascents))
    for window, ascent in ascents.items():
        if surely_better(ascent.measured.of(metric), ascents[chosen].measured.of(metric)):
            chosen = window
    return chosen


def new_item_log_odds(
    ranker: Ranker,
    queries: np.ndarray,
    candidates: np.ndarray,
    is_new: np.ndarray,
    out_of_vocabulary: np.ndarray,
    of_each: float = 1.0,
    temperature: float = 1.0,
) -> np.ndarray:
    """[Q]: how likely new items are in each answer, log(p / (1 − p)), by a softmax over all that has not been seen.

    Args:
        ranker: With what each query has seen.
        queries: [Q, D].
        candidates: [C, D], of the ranker's labels.
        is_new: [C] bool.
        out_of_vocabulary: [N, D] of further new items.
        of_each: How many items each of these stands for.
        temperature: Divides the scores.
    """
    log_odds = []
    for number, part in enumerate(ranker.parts):
        scores = ranker.exclude_seen(number, queries[part] @ candidates.T) / temperature
        others = queries[part] @ out_of_vocabulary.T / temperature + math.log(of_each)
        new = np.concatenate([scores[:, is_new], others], axis=1)
        log_odds.append(_log_sum(new) - _log_sum(scores[:, ~is_new]))
    return np.concatenate(log_odds)


def new_item_offset(log_odds: np.ndarray, asked: np.ndarray, new: int) -> float:
    """The offset under which as many interactions are expected to go to new items as do, shrunk towards 0.

    Under a softmax over the catalogue that is the offset of maximum likelihood; under a normal prior it is the one of
    maximum posterior probability: observed − expected(offset) = offset / deviation².

    Args:
        log_odds: [Q] of new items in each query's answer, without an offset.
        asked: [Q] how many items are relevant.
        new: How many of them all are new.

    Returns:
        What is to be added to the log-odds; 0 where no new item can be an answer.
    """

    def slope(offset: float) -> float:
        expected = float(asked @ scipy.special.expit(log_odds + offset))
        return new - expected - offset / _OFFSET_DEVIATION**2

    if np.isneginf(log_odds).all():
        return 0.0
    # It falls throughout, and is at least 0 on the left and at most 0 on the right.
    farthest = float(asked.sum()) * _OFFSET_DEVIATION**2
    return round(float(scipy.optimize.brentq(slope, -farthest, farthest)), 4)


def _log_sum(scores: np.ndarray) -> np.ndarray:
    """[B, C] → [B] log Σ exp; −∞ of nothing."""
    if not scores.shape[1]:
        return np.full(len(scores), -np.inf)
    rows = max(1, _SUMMED_AT_ONCE // scores.shape[1])
    parts = (scores[start : start + rows].astype(np.float64) for start in range(0, len(scores), rows))
    with np.errstate(divide="ignore"):
        return np.concatenate([np.zeros(0), *(scipy.special.logsumexp(part, axis=1) for part in parts)])


def surely_better(values: np.ndarray, other: np.ndarray, errors: float = _SURE) -> bool:
    """Whether the mean of [Q] values is above that of others for the same queries by so many standard errors."""
    gained = values - other
    return len(gained) > 1 and bool(gained.mean() > errors * gained.std(ddof=1) / math.sqrt(len(gained)))


@dataclass(frozen=True)
class ItemItem:
    """The item-item model as validation has it."""

    factors: Factors
    """With rows for every id."""
    ridge: float | None
    """λ; None for the spectral one."""
    recency: float | None = None
    """`BlendWeights.item_item_recency` to start from; None without validation."""


def choose_item_item(
    specification: Specification, sets: Lists, ranker: Ranker | None, chosen: float | None
) -> ItemItem:
    """The item-item model whose scores alone are best: in closed form under some ridge, or the spectral one.

    The spectral one is tried where the closed form does not cover all items.

    Args:
        specification: Of the fit.
        sets: Item ids of users, oldest first, each user's once unless `Specification.repeats`.
        ranker: The validation queries.
        chosen: The ridge without a ranker; None: the spectral model.
    """
    model, catalogue = specification.model, specification.catalogue
    assert specification.features.history is not None
    key, size = specification.features.history.column, len(catalogue.is_candidate) - 1

    def covering(factors: Factors) -> Factors:
        return factors.covering(specification.item_rows, size + 1)

    def spectral() -> ItemItem:
        factors = item_item.spectral_factors(sets.offsets, sets.values, size, model.item_item_rank)
        return ItemItem(covering(factors), None)

    def closed_form(moments: Moments, ridge: float) -> ItemItem:
        factors = item_item.factors(moments, item_item.solve(moments, ridge), model.item_item_rank)
        return ItemItem(covering(factors), ridge)

    if ranker is None and chosen is None:
        return spectral()
    few = sets.take(sampling.some_users(sets.lengths, _CLOSED_FORM_INTERACTIONS, specification.training.seed))
    items = min(size, model.item_item_items)
    moments = item_item.moments(few.offsets, few.values, items, model.item_item_decay, specification.repeats)
    if ranker is None:
        assert chosen is not None
        return closed_form(moments, chosen)

    def measured(model: ItemItem) -> Iterator[tuple[float, ItemItem]]:
        for recency in CHOICES["item_item_recency"]:
            vectors = item_item.query_factors(ranker.queries.features[key], recency, model.factors.history)
            scores = ranker.rank(vectors, model.factors.items[ranker.labels])
            yield scores.of(specification.training.metric).mean(), replace(model, recency=recency)

    def best_of(models: Iterable[ItemItem]) -> ItemItem:
        return max((trial for tried in models for trial in measured(tried)), key=lambda trial: trial[0])[1]

    most_frequent = moments.of_most_frequent(_ITEMS_TO_CHOOSE_BY)
    best = best_of(closed_form(most_frequent, ridge) for ridge in model.item_item_ridges)
    if len(most_frequent.gram) < len(moments.gram):
        assert best.ridge is not None
        best = replace(closed_form(moments, best.ridge), recency=best.recency)
    return best_of([best, spectral()]) if items < size else best
