"""Builds the index layers, finds the cheapest setting that reaches the recall target, and measures what it gets."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from absl import logging
from pydantic import BaseModel

from modules.retrieval.brute_force import BruteForce
from modules.retrieval.scann import Scann, TrainedScann, train_partitions, train_scann
from modules.retrieval.scann_settings import default_partitions
from modules.retrieval.stock import stock
from modules.retrieval.top_k import (
    SMALLEST_TRAINED,
    Layer,
    Partitions,
    SearchParameters,
    Strategy,
    TopK,
    resolve_strategy,
)
from modules.retrieval.vectors import Vectors
from modules.settings import Index

REPORT_FILE = "report.json"

_Search = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Queries [B, D] and excluded rows [B, E] → scores and rows [B, k]."""

# Trees are trained with these multiples of the default number of partitions when the settings name none, each of near
# vectors and of vectors of one direction: which needs fewer members for a recall depends on the vectors' lengths.
_PARTITION_FACTORS = (1, 4)
# The search for the cheapest parameters starts with this share of the partitions, or those that hold this multiple of k
# if that is more (with fewer, searches end in the exact fallback). Where members are rescored, it goes on for that many
# steps after the first success: more of one parameter may need less of the other.
_FIRST_SHARE = 1 / 512
_FIRST_MEMBERS = 2
_STEPS_AFTER_SUCCESS = 1
# Catalogues of as many items or more are not built in layers that nobody asked for.
_COMPARED_BELOW = 100_000
# Candidates to rescore, as multiples of k. Of the stock tree, whose members are scored once: finer steps.
_REORDER_FACTORS = (1, 2, 4, 8, 16)
_SCORED_FACTORS = (1, 1.4, 2, 2.8, 4, 5.6, 8, 11, 16, 32)
SAMPLING_TOLERANCE = 0.01
"""What a recall may lack on queries that the index was not tuned with: a sample's recall varies."""
_BATCH = 64
# Calls that a latency is the median of: of a setting that is tried, and of the one that is reported.
_TRIED_CALLS = {1: 20, _BATCH: 3}
_REPORTED_CALLS = {1: 100, _BATCH: 16}
_WARMUP_CALLS = 2
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
    """One setting: the recall it has on the validation queries, and what it costs."""

    layer: Layer
    strategy: Strategy
    partitions: int | None
    """Leaves of the tree; None without one."""
    spherical: bool | None = None
    """Whether the leaves are of directions; None without a tree, and in reports of before there were such."""
    partitions_to_search: int | None
    reorder: int | None
    recall: float
    recall_error: float = 0.0
    """Standard error of the recall, for what other queries would have; 0 in reports of before there was one."""
    latency_ms: Latency
    build_seconds: float
    """Training and building; of a few settings that share an index, each has its whole time."""
    bytes: int
    """Memory of the index's variables."""


class MeasuredLayer(Trial):
    """A layer at the setting that was found for it; recall is that on the eval queries."""


class IndexTuningReport(BaseModel):
    """The JSON of the IndexReport artifact: what was tried, what was chosen, and what it costs."""

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
    chosen: MeasuredLayer
    measured: list[MeasuredLayer]
    """The chosen one and exact search; in catalogues of less than 100,000 items also the other layers."""
    tried: list[Trial]


@dataclass(frozen=True)
class QuerySample:
    """Query vectors of some real examples of one split."""

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
class _Kind:
    """What an index is made of that takes time to find, and little memory where ScaNN's own layer is not asked for."""

    layer: Layer
    strategy: Strategy
    spherical: bool | None = None
    """None without a tree."""
    partitions: Partitions | None = None
    scann: TrainedScann | None = None
    seconds: float = 0.0
    """Of its training."""

    @property
    def leaves(self) -> int | None:
        return None if self.partitions is None else len(self.partitions.centroids)

    def index(self, vectors: Vectors) -> TopK:
        if self.layer == "brute_force":
            return BruteForce(vectors)
        if self.layer == "scann":
            assert self.scann is not None
            return Scann(self.scann, SearchParameters())
        return stock(vectors, self.strategy, SearchParameters(), self.partitions)


class _Candidate:
    """An index, built, with a search whose parameters are inputs."""

    def __init__(self, kind: _Kind, vectors: Vectors, k: int) -> None:
        started = time.perf_counter()
        self.kind = kind
        self.index = kind.index(vectors)
        self.seconds = round(kind.seconds + time.perf_counter() - started, 4)
        self._traced = _traced(self.index, k, vectors.shape[1])

    def search(self, parameters: SearchParameters) -> _Search:
        numbers = tf.constant(parameters.partitions_to_search), tf.constant(parameters.reorder)
        return lambda queries, excluded: self._traced(queries, excluded, *numbers)


@dataclass(frozen=True)
class _Found:
    """The best setting of a layer and strategy so far."""

    kind: _Kind
    parameters: SearchParameters
    trial: Trial
    measured: MeasuredLayer


def build_index(
    vectors: Vectors, validation: QuerySample, evaluation: QuerySample, settings: Index, k: int
) -> tuple[TopK, SearchParameters, IndexTuningReport]:
    """Builds the configured index, and in small catalogues the other layers beside it for comparison.

    One index is in memory at a time: what each was made of is kept, and the chosen one is made again. So this takes an
    index's memory, and several times that for ScaNN's own layer.

    Args:
        vectors: [C, D] float32.
        validation: QuerySample that choose the settings.
        evaluation: QuerySample that the reported recall and latency are measured on.
        settings: Layer, strategy, recall target; search parameters that are set there are used as they are.
        k: Items per search.

    Returns:
        The index, its search parameters, and the report. The setting is the fastest for single queries of those that
        reach the recall target by a standard error. When none does, it is the one with the best recall, and the report
        says so where that is below the target.
    """
    recall_k = min(settings.recall_k, len(vectors))
    k = max(k, recall_k)
    exact_validation, exact_evaluation = _exact(vectors, recall_k, validation, evaluation)
    # A traced function is a circle of references, and holds the memory of the variables that it reads.
    gc.collect()
    strategy = "exact" if settings.layer == "brute_force" else resolve_strategy(settings.strategy, len(vectors))

    tried: list[Trial] = []
    found: dict[tuple[Layer, Strategy], _Found] = {}

    def tune(kind: _Kind) -> None:
        """Tries settings of an index that is in memory no longer than this."""
        candidate = _Candidate(kind, vectors, k)
        best = found.get((kind.layer, kind.strategy))
        beaten = None if best is None else best.trial
        parameters: SearchParameters | None = None
        for each, trial in _trials(candidate, settings, recall_k, k, validation, exact_validation):
            tried.append(trial)
            if beaten is None or _better(trial, beaten, settings.recall_target):
                parameters, beaten = each, trial
        if parameters is None or beaten is None:
            return
        search = candidate.search(parameters)
        reached, error = _mean(recalls(_scores(search, evaluation), exact_evaluation))
        logging.info("%s/%s: recall@%d %.4f", kind.layer, kind.strategy, recall_k, reached)
        latency = _latency(search, evaluation, _REPORTED_CALLS)
        of_eval = {"recall": reached, "recall_error": error, "latency_ms": latency}
        measured = MeasuredLayer(**{**beaten.model_dump(), **of_eval})
        found[kind.layer, kind.strategy] = _Found(kind, parameters, beaten, measured)

    for kind in _kinds(vectors, settings, strategy):
        tune(kind)
        gc.collect()

    chosen = found[settings.layer, strategy]
    index = chosen.kind.index(vectors)
    index.parameters = chosen.parameters
    report = IndexTuningReport(
        catalogue_size=len(vectors),
        dimension=vectors.shape[1],
        k=k,
        recall_k=recall_k,
        recall_target=settings.recall_target,
        target_met=chosen.trial.recall >= settings.recall_target
        and chosen.measured.recall >= settings.recall_target - SAMPLING_TOLERANCE,
        queries={"validation": len(validation), "eval": len(evaluation)},
        chosen=chosen.measured,
        measured=[each.measured for each in found.values()],
        tried=tried,
    )
    return index, chosen.parameters, report


def _exact(vectors: Vectors, k: int, *samples: QuerySample) -> list[np.ndarray]:
    """[Q, k] scores of an exact search, for each sample."""
    index = BruteForce(vectors)
    exact = _traced(index, k, vectors.shape[1])
    one = tf.constant(1)
    return [_scores(lambda q, e: exact(q, e, one, one), queries) for queries in samples]


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats in both recall and single-query latency, by rising recall."""
    unbeaten: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (-t.recall, t.latency_ms.single.p50)):
        if not unbeaten or trial.latency_ms.single.p50 < unbeaten[-1].latency_ms.single.p50:
            unbeaten.append(trial)
    return unbeaten[::-1]


def _better(trial: Trial, than: Trial, target: float) -> bool:
    reaches, other_reaches = _reaches(trial, target), _reaches(than, target)
    if reaches != other_reaches:
        return reaches
    return trial.latency_ms.single.p50 < than.latency_ms.single.p50 if reaches else trial.recall > than.recall


def _reaches(trial: Trial, target: float) -> bool:
    """Whether other queries are likely to have the recall as well: of many settings, the cheapest is a lucky one."""
    return trial.recall - trial.recall_error >= target


def _kinds(vectors: Vectors, settings: Index, strategy: Strategy) -> Iterator[_Kind]:
    """Exact search, ScaNN's tree with both searches of it, and the configured layer when it is none of these.

    ScaNN's own layer holds several copies of the vectors, so that a large catalogue has it only where it is configured.
    """
    wanted: list[tuple[Layer, Strategy]] = [("brute_force", "exact")]
    if SMALLEST_TRAINED <= len(vectors) < _COMPARED_BELOW:
        wanted += [("scann", "tree"), ("stock", "tree")]
    if (settings.layer, strategy) not in wanted:
        wanted.append((settings.layer, strategy))
    default = default_partitions(len(vectors))
    # Where no tree is asked for, one is enough to compare with.
    factors = _PARTITION_FACTORS if strategy == "tree" else (1,)
    counts = (settings.partitions,) if settings.partitions else [factor * default for factor in factors]
    shapes = (False, True) if strategy == "tree" else (False,)
    if settings.spherical is not None:
        shapes = (settings.spherical,)
    seed, block = settings.seed, settings.dimensions_per_block
    for layer, its_strategy in wanted:
        if its_strategy != "tree":
            started = time.perf_counter()
            state = None
            if layer == "scann":
                state = train_scann(vectors, its_strategy, dimensions_per_block=block, seed=seed)
            yield _Kind(layer, its_strategy, scann=state, seconds=time.perf_counter() - started)
    layers = [layer for layer, its_strategy in wanted if its_strategy == "tree"]
    if not layers:
        return
    for leaves, spherical in dict.fromkeys(itertools.product((min(c, len(vectors)) for c in counts), shapes)):
        started = time.perf_counter()
        trained: TrainedScann | None = None
        if "scann" in layers:
            trained = train_scann(
                vectors, "tree", partitions=leaves, spherical=spherical, dimensions_per_block=block, seed=seed
            )
            partitions = trained.partitions
        else:
            partitions = train_partitions(vectors, partitions=leaves, spherical=spherical, seed=seed)
        seconds = time.perf_counter() - started
        for layer in layers:
            yield _Kind(layer, "tree", spherical, partitions, trained if layer == "scann" else None, seconds)


def _trials(
    candidate: _Candidate, settings: Index, recall_k: int, k: int, validation: QuerySample, exact: np.ndarray
) -> Iterator[tuple[SearchParameters, Trial]]:
    """Tries search parameters: more and more partitions, and for each number of them what is the least to reorder."""
    memory = _bytes(candidate.index)
    succeeded = 0
    reorders = _reorders(candidate, settings, k)
    # A single parameter can take finer steps, and the first success is the cheapest.
    factor, further = (2.0, _STEPS_AFTER_SUCCESS) if len(reorders) > 1 else (2**0.5, 0)

    def attempt(partitions: int, reorder: int) -> tuple[SearchParameters, Trial]:
        parameters = SearchParameters(partitions, reorder)
        search = candidate.search(parameters)
        found, error = _mean(recalls(_scores(search, validation), exact))
        return parameters, Trial(
            layer=candidate.kind.layer,
            strategy=candidate.kind.strategy,
            partitions=candidate.kind.leaves,
            spherical=candidate.kind.spherical,
            partitions_to_search=partitions if candidate.kind.strategy == "tree" else None,
            reorder=None if candidate.kind.strategy == "exact" else reorder,
            recall=found,
            recall_error=error,
            latency_ms=_latency(search, validation, _TRIED_CALLS),
            build_seconds=candidate.seconds,
            bytes=memory,
        )

    for partitions in _partitions(candidate, settings, k, factor):
        # The most first: where it is not enough, these partitions do not hold what is looked for.
        least, enough = 0, len(reorders) - 1
        parameters, trial = attempt(partitions, reorders[enough])
        yield parameters, trial
        if not _reaches(trial, settings.recall_target):
            continue
        while least < enough:
            middle = (least + enough) // 2
            parameters, trial = attempt(partitions, reorders[middle])
            yield parameters, trial
            if _reaches(trial, settings.recall_target):
                enough = middle
            else:
                least = middle + 1
        succeeded += 1
        if succeeded > further:
            return


def _partitions(candidate: _Candidate, settings: Index, k: int, factor: float) -> Iterator[int]:
    """Numbers of partitions to search, each by a factor more than the one before, up to all of them."""
    leaves = candidate.kind.leaves or 1
    if settings.partitions_to_search or candidate.kind.strategy != "tree":
        yield min(settings.partitions_to_search or 1, leaves)
        return
    partitions = max(math.ceil(leaves * _FIRST_SHARE), math.ceil(leaves * _FIRST_MEMBERS * k / candidate.index.size))
    while partitions < leaves:
        yield partitions
        partitions = math.ceil(factor * partitions)
    yield leaves


def _reorders(candidate: _Candidate, settings: Index, k: int) -> list[int]:
    """Numbers of candidates to score exactly, rising."""
    kind, size = candidate.kind, candidate.index.size
    if kind.strategy == "exact":
        return [1]
    if settings.reorder:
        return [min(settings.reorder, size)]
    is_tree = kind.strategy == "tree"
    factors = _SCORED_FACTORS if is_tree and kind.layer == "stock" else _REORDER_FACTORS
    tried = [min(round(factor * k), size) for factor in factors]
    # In the end the whole catalogue, but not by ScaNN's op, which would score as many of few partitions again.
    return list(dict.fromkeys(tried if is_tree and kind.layer == "scann" else [*tried, size]))


def _traced(index: TopK, k: int, dimension: int) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Queries, excluded rows, partitions to search, reorder → scores and rows. It does not keep the index alive."""
    number = tf.TensorSpec([], tf.int32)
    signature = [tf.TensorSpec([None, dimension]), tf.TensorSpec([None, None], tf.int32), number, number]
    # Without AutoGraph, which has nothing to do here and takes most of a trace's time.
    search = tf.function(
        lambda q, e, partitions, reorder: index.search(q, k, e, parameters=SearchParameters(partitions, reorder)),
        input_signature=signature,
        autograph=False,
    )
    return search.get_concrete_function()


def _scores(search: _Search, queries: QuerySample) -> np.ndarray:
    """[Q, k] scores that a search finds, best first, padded with −inf."""
    return np.concatenate([search(*batch)[0].numpy() for batch in queries.batches(_BATCH)])


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean over queries of `recalls`."""
    return _mean(recalls(found, exact))[0]


def recalls(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """[Q] or fewer: of each query that has any, the share of the exact best rows that were found.

    Args:
        found: [Q, k] scores.
        exact: [Q, recall_k] scores of an exact search, best first. A found row counts by its score: equal scores are
            equal rows.
    """
    exist = np.isfinite(exact).sum(axis=1)
    found, exact, exist = found[exist > 0], exact[exist > 0], exist[exist > 0]
    least = exact[np.arange(len(exact)), exist - 1][:, np.newaxis]
    hits = (found >= least - _TIE * np.maximum(1.0, np.abs(least))).sum(axis=1)
    return np.minimum(hits, exist) / exist


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean of some recalls and its standard error; nothing was missed where there are none."""
    if not len(values):
        return 1.0, 0.0
    return float(np.mean(values)), float(np.std(values) / len(values) ** 0.5)


def _latency(search: _Search, queries: QuerySample, calls: Mapping[int, int]) -> Latency:
    def measure(size: int) -> Percentiles:
        batches = list(itertools.islice(queries.batches(size), calls[size]))
        milliseconds = []
        for call in range(-_WARMUP_CALLS, calls[size]):
            started = time.perf_counter()
            search(*batches[call % len(batches)])[1].numpy()
            if call >= 0:
                milliseconds.append(1000 * (time.perf_counter() - started))
        p50, p99 = np.percentile(milliseconds, (50, 99))
        return Percentiles(p50=round(p50, 4), p99=round(p99, 4))

    return Latency(single=measure(1), batch_64=measure(_BATCH))


def _bytes(index: TopK) -> int:
    """Memory of the index's variables."""
    return sum(
        # A scalar or an array of strings.
        sum(map(len, np.ravel(v.numpy()))) if v.dtype == tf.string else v.dtype.size * int(np.prod(v.shape))
        for v in index.variables
    )
