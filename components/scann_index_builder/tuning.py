"""Builds the index layers, finds the least effort that reaches the recall target, and measures what it gets."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from absl import logging
from pydantic import BaseModel

from modules.retrieval import (
    SMALLEST_TRAINED,
    BruteForce,
    Effort,
    Scann,
    Stock,
    Strategy,
    TopK,
    TrainedScann,
    default_partitions,
    resolve_strategy,
    train_scann,
)
from modules.settings import Index

REPORT_FILE = "report.json"

_Search = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Queries [B, D] and excluded rows [B, E] → scores and rows [B, k]."""

# The search for the least effort starts with this share of the partitions, or those that hold this multiple of k if
# that is more (with fewer, searches end in the exact fallback), and with this multiple of recall_k to reorder.
_FIRST_SHARE = 1 / 32
_FIRST_MEMBERS = 2
_FIRST_REORDER = 4
# What the recall on the eval queries may lack: the target was met on others, and a sample's recall varies.
_SAMPLING_TOLERANCE = 0.01
_SINGLE_CALLS = 100
_BATCH = 64
_BATCHED_CALLS = 16
_WARMUP_CALLS = 3
# Scores this close (relative to the k-th) tie; float products differ by as much between layers.
_TIE = 1e-5


class Percentiles(BaseModel):
    """Of a latency, in milliseconds."""

    p50: float
    p99: float


class Latency(BaseModel):
    """In this process, without the query tower."""

    single: Percentiles
    batch_64: Percentiles


class Trial(BaseModel):
    """One setting and the recall it has on the validation queries."""

    layer: str
    strategy: str
    partitions: int | None
    """Leaves of the tree; None without one."""
    partitions_to_search: int | None
    reorder: int | None
    recall: float


class Measured(Trial):
    """A layer at the setting that was found for it; recall is that on the eval queries."""

    latency_ms: Latency
    build_seconds: float
    bytes: int


class Report(BaseModel):
    """The IndexReport artifact's JSON: what was tried, what was chosen, and what it costs."""

    catalogue_size: int
    dimension: int
    k: int
    """Items per search, as the servable asks."""
    recall_k: int
    """Recall is the share of the exact recall_k best that a search finds, the queries' seen items left out."""
    recall_target: float
    target_met: bool
    queries: dict[str, int]
    """Split → number of its queries that were used: validation to choose settings, eval for the recall reported."""
    chosen: Measured
    measured: list[Measured]
    """Every layer, for comparison."""
    tried: list[Trial]


@dataclass(frozen=True)
class Queries:
    """Real queries of one split."""

    vectors: np.ndarray
    """[Q, D] float32."""
    excluded: np.ndarray
    """[Q, E] int32 rows that each has seen, padded with -1."""

    def __len__(self) -> int:
        return len(self.vectors)

    def batches(self, size: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        for start in range(0, len(self), size):
            chosen = slice(start, start + size)
            # No wider than this batch needs, as a request would be.
            excluded = self.excluded[chosen]
            width = int(np.max(np.sum(excluded >= 0, axis=1), initial=0))
            yield tf.constant(self.vectors[chosen]), tf.constant(excluded[:, :width])


@dataclass(frozen=True)
class _Candidate:
    """One layer and strategy: how to make its index, and what was trained for it."""

    layer: str
    strategy: Strategy
    trained: TrainedScann | None
    train_seconds: float

    def index(self, vectors: np.ndarray, effort: Effort) -> TopK:
        if self.layer == "brute_force":
            return BruteForce(vectors)
        if self.layer == "scann":
            assert self.trained is not None
            return Scann(self.trained, effort)
        return Stock(vectors, self.strategy, effort, self.trained)

    @property
    def partitions(self) -> int | None:
        return None if self.trained is None or self.trained.centroids is None else len(self.trained.centroids)


@dataclass(frozen=True)
class _Built:
    """An index at one effort, its search at the served k, and how it did on the validation queries."""

    index: TopK
    effort: Effort
    search: _Search
    seconds: float
    trial: Trial


def build_index(
    vectors: np.ndarray, validation: Queries, evaluation: Queries, settings: Index, k: int
) -> tuple[TopK, Effort, Report]:
    """Builds the configured index, and the other layers beside it for comparison.

    Args:
        vectors: [C, D] float32.
        validation: Queries that choose the settings.
        evaluation: Queries that the reported recall and latency are measured on.
        settings: Layer, strategy, recall target; an effort that is set there is used as it is.
        k: Items per search.

    Returns:
        The index, its effort, and the report. When no effort reaches the recall target it is the best one found, and
        the report says so.
    """
    recall_k = min(settings.recall_k, len(vectors))
    k = max(k, recall_k)
    brute_force = BruteForce(vectors)
    exact = _searcher(brute_force, recall_k, vectors.shape[1])
    exact_validation, exact_evaluation = _scores(exact, validation), _scores(exact, evaluation)
    strategy = "exact" if settings.layer == "brute_force" else resolve_strategy(settings.strategy, len(vectors))

    tried: list[Trial] = []
    measured: list[Measured] = []
    for candidate in _candidates(vectors, settings, strategy):
        best: _Built | None = None
        for effort in _efforts(candidate, settings, recall_k, k, len(vectors)):
            built = _build(candidate, effort, vectors, k, validation, exact_validation)
            tried.append(built.trial)
            if best is None or built.trial.recall > best.trial.recall:
                best = built
            if built.trial.recall >= settings.recall_target:
                break
        assert best is not None
        recall = _recall(_scores(best.search, evaluation), exact_evaluation)
        logging.info("%s/%s: recall@%d %.4f", candidate.layer, candidate.strategy, recall_k, recall)
        found = Measured(
            **best.trial.model_dump(exclude={"recall"}),
            recall=recall,
            latency_ms=_latency(best.search, evaluation),
            build_seconds=round(candidate.train_seconds + best.seconds, 4),
            bytes=_bytes(best.index),
        )
        measured.append(found)
        if (candidate.layer, candidate.strategy) == (settings.layer, strategy):
            chosen, chosen_at = found, best
    report = Report(
        catalogue_size=len(vectors),
        dimension=vectors.shape[1],
        k=k,
        recall_k=recall_k,
        recall_target=settings.recall_target,
        target_met=chosen_at.trial.recall >= settings.recall_target
        and chosen.recall >= settings.recall_target - _SAMPLING_TOLERANCE,
        queries={"validation": len(validation), "eval": len(evaluation)},
        chosen=chosen,
        measured=measured,
        tried=tried,
    )
    return chosen_at.index, chosen_at.effort, report


def _candidates(vectors: np.ndarray, settings: Index, strategy: Strategy) -> Iterator[_Candidate]:
    """Exact search, ScaNN's tree with both searches of it, and the configured layer when it is none of these."""
    wanted: list[tuple[str, Strategy]] = [("brute_force", "exact")]
    if len(vectors) >= SMALLEST_TRAINED:
        wanted += [("scann", "tree"), ("stock", "tree")]
    if (settings.layer, strategy) not in wanted:
        wanted.append((settings.layer, strategy))
    trained: dict[str, tuple[TrainedScann, float]] = {}
    for layer, its_strategy in wanted:
        state: TrainedScann | None
        needs_scann = layer == "scann" or (layer == "stock" and its_strategy == "tree")
        if needs_scann and its_strategy not in trained:
            started = time.perf_counter()
            state = train_scann(
                vectors,
                its_strategy,
                partitions=settings.partitions or default_partitions(len(vectors)),
                dimensions_per_block=settings.dimensions_per_block,
                seed=settings.seed,
            )
            trained[its_strategy] = state, time.perf_counter() - started
        state, seconds = trained[its_strategy] if needs_scann else (None, 0.0)
        yield _Candidate(layer, its_strategy, state, seconds)


def _build(
    candidate: _Candidate, effort: Effort, vectors: np.ndarray, k: int, validation: Queries, exact: np.ndarray
) -> _Built:
    started = time.perf_counter()
    index = candidate.index(vectors, effort)
    seconds = time.perf_counter() - started
    search = _searcher(index, k, vectors.shape[1])
    trial = Trial(
        layer=candidate.layer,
        strategy=candidate.strategy,
        partitions=candidate.partitions,
        partitions_to_search=effort.partitions_to_search if candidate.strategy == "tree" else None,
        reorder=effort.reorder if _reorders(candidate) else None,
        recall=_recall(_scores(search, validation), exact),
    )
    return _Built(index, effort, search, seconds, trial)


def _efforts(candidate: _Candidate, settings: Index, recall_k: int, k: int, size: int) -> Iterator[Effort]:
    """Doubles what the settings leave open until nothing is left to double."""
    leaves = candidate.partitions or 1
    first = max(math.ceil(leaves * _FIRST_SHARE), math.ceil(leaves * _FIRST_MEMBERS * k / size))
    partitions = min(settings.partitions_to_search or first, leaves)
    reorder = min(settings.reorder or _FIRST_REORDER * recall_k, size)
    while True:
        yield Effort(partitions, reorder)
        more_partitions = partitions if settings.partitions_to_search else min(2 * partitions, leaves)
        more_reorder = reorder if settings.reorder or not _reorders(candidate) else min(2 * reorder, size)
        if (more_partitions, more_reorder) == (partitions, reorder):
            return
        partitions, reorder = more_partitions, more_reorder


def _reorders(candidate: _Candidate) -> bool:
    """Whether candidates are scored twice: a stock tree scores its members exactly at once."""
    return candidate.strategy == "quantized" or (candidate.layer == "scann" and candidate.strategy == "tree")


def _searcher(index: TopK, k: int, dimension: int) -> _Search:
    """A traced search. It does not keep the index alive."""
    signature = [tf.TensorSpec([None, dimension], tf.float32), tf.TensorSpec([None, None], tf.int32)]
    # Without AutoGraph, which has nothing to do here and takes most of a trace's time.
    search = tf.function(lambda q, e: index.search(q, k, e), input_signature=signature, autograph=False)
    return search.get_concrete_function()


def _scores(search: _Search, queries: Queries) -> np.ndarray:
    """[Q, k] scores that a search finds, best first, padded with −inf."""
    return np.concatenate([search(*batch)[0].numpy() for batch in queries.batches(_BATCH)])


def _recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean over queries of the share of the exact best rows that were found.

    Args:
        found: [Q, k] scores.
        exact: [Q, recall_k] scores of an exact search. A found row counts by its score: equal scores are equal rows.
    """
    exist = np.isfinite(exact).sum(axis=1)
    found, exact, exist = found[exist > 0], exact[exist > 0], exist[exist > 0]
    if not len(exist):
        return 1.0
    least = exact[np.arange(len(exact)), exist - 1][:, np.newaxis]
    hits = (found >= least - _TIE * np.maximum(1.0, np.abs(least))).sum(axis=1)
    return float(np.mean(np.minimum(hits, exist) / exist))


def _latency(search: _Search, queries: Queries) -> Latency:
    def measure(size: int, calls: int) -> Percentiles:
        batches = list(itertools.islice(queries.batches(size), calls))
        milliseconds = []
        for call in range(-_WARMUP_CALLS, calls):
            started = time.perf_counter()
            search(*batches[call % len(batches)])[1].numpy()
            if call >= 0:
                milliseconds.append(1000 * (time.perf_counter() - started))
        p50, p99 = np.percentile(milliseconds, (50, 99))
        return Percentiles(p50=round(p50, 4), p99=round(p99, 4))

    return Latency(single=measure(1, _SINGLE_CALLS), batch_64=measure(_BATCH, _BATCHED_CALLS))


def _bytes(index: TopK) -> int:
    """Memory of the index's variables."""
    return sum(
        # A scalar or an array of strings.
        sum(map(len, np.ravel(v.numpy()))) if v.dtype == tf.string else v.dtype.size * int(np.prod(v.shape))
        for v in index.variables
    )
