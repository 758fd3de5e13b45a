"""What the Evaluator measures on the servable; modules/gates.py has what keeps a model from being pushed.

A query is one eval example. Its ranking is what the servable's `evaluate` signature answers: R items, best first, none
of which is in the example's history. Its relevant items are `relevant_items` without those of the history, since an
answer can never hold those; a query that has none left is skipped. With `serving.exclude_history` off answers may
hold them: then the ranking may, the most popular items may, and all `relevant_items` are relevant. Every metric is the
mean over the queries of a slice (macro average), except coverage, which is about all of them together.
modules/metrics.py has the formulas, and `metric_names` in modules/settings.py lists the names; here are three more:
`queries`, the number of queries that counted, and `ndcg_lift@k` and `recall_lift@k`, the mean difference to the most
popular items on the same query.

Every mean has the ends of its interval (modules/intervals.py) beside it in TFMA's files, as `recall@10/lower` and
`recall@10/upper`. Where there is a baseline, both models answer the same queries in the same pass, and the model has
`recall@10/difference`, the mean over queries of its value less the baseline's, with an interval of its own. TFMA's
bootstrap and jackknife are not asked for: they resample what TFMA takes for an example, here a part of a batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import util

from modules import metrics
from modules.data.examples import RELEVANT, SLICE_PREFIX
from modules.intervals import DEFAULT_CONFIDENCE, Moments

SIGNATURE = "evaluate"
"""Signature of the servable: serialized tf.Examples [B] → `OUTPUTS`."""
OUTPUTS = ("classes", "classes_with_seen", "popular", "head", "catalogue_size")
"""What the metrics read of it: classes, classes_with_seen and popular are [B, R] bytes, padded with "" at the end; head
is [B, R] float, 1 where the item of `classes` is among the most popular 10 % of the catalogue; catalogue_size [B]."""
OVERALL = "overall"
"""Name of the slice that holds every query."""

QUERIES = "queries"
"""Name of the number of queries that counted."""
NDCG_LIFT, RECALL_LIFT = "ndcg_lift", "recall_lift"
"""Names, before the @, of the differences to the most popular items."""
LOWER, UPPER = "/lower", "/upper"
"""After the name of a mean: the ends of its interval."""
DIFFERENCE, MARGIN = "/difference", "/margin"
"""After the name of a mean: the difference to the baseline, and what is left of what may be lost against it. A query's
margin is its value − (1 − share) · the baseline's; where less is better, (1 + share) · the baseline's − its value."""
# TFMA fails a relative change threshold, always, when the baseline's value is exactly 0: one bad model that was pushed
# without gates would block every better one. Means are therefore never exactly 0.
NEVER_ZERO = 1e-12
"""What stands in TFMA's files for a metric that is 0."""
# Keys of TFMA's extracts, beside its own: what is read of a batch, and the sums of each model's answers.
_COLUMNS, _MEASURED = "columns", "measured"


@dataclass
class Sums:
    """What some queries of one slice add up to."""

    moments: Moments
    """Of the columns of `Measured.values`."""
    best_rank: dict[bytes, int] = field(default_factory=dict)
    """Every recommended item with the best place it had, from 0: coverage at any k."""
    catalogue_size: float = 0.0

    def add(self, others: Sums) -> None:
        """Adds other queries."""
        self.moments.add(others.moments)
        for item, rank in others.best_rank.items():
            if rank < self.best_rank.get(item, rank + 1):
                self.best_rank[item] = rank
        self.catalogue_size = max(self.catalogue_size, others.catalogue_size)


@dataclass(frozen=True)
class Measured:
    """What each query of a batch adds to its slices."""

    values: np.ndarray
    """[B, C] float: `mean_names` in order, then `paired_names` where `compared` has added them; NaN where a query does
    not count."""
    items: np.ndarray
    """[B, R] the rankings, padded with ""."""
    catalogue_size: float

    def sums(self, queries: Sequence[int]) -> Sums:
        """Of the queries at these numbers in the batch."""
        best_rank: dict[bytes, int] = {}
        # From the last place to the first, so that the best one stays.
        for rank, items in reversed(list(enumerate(self.items[queries].T.tolist()))):
            best_rank.update(dict.fromkeys(items, rank))
        best_rank.pop(b"", None)
        return Sums(Moments.of(self.values[queries]), best_rank, self.catalogue_size)


def mean_names(k: Sequence[int]) -> list[str]:
    """The metrics that are means over queries, in the order of `Measured.values`."""
    per_k = ("recall", "precision", "ndcg", "hit_rate", "popular_ndcg", "popular_recall", NDCG_LIFT, RECALL_LIFT,
             "recall_with_seen", "precision_with_seen", "popular_share")  # fmt: skip
    return ["mrr", *(f"{name}@{at}" for name in per_k for at in k)]


def paired_names(k: Sequence[int], allowed: Iterable[str]) -> list[str]:
    """What a model with a baseline has beside `mean_names`: every difference, and the margins of `allowed`."""
    return [*(name + DIFFERENCE for name in mean_names(k)), *(name + MARGIN for name in allowed)]


def counted_as(metric: str) -> str:
    """Name of the number of queries that a mean is over: those with what the metric asks for."""
    if "_with_seen" in metric:
        return f"{QUERIES}/with_seen"
    return f"{QUERIES}/answered" if metric.startswith("popular_share") else QUERIES


def less_is_better(metric: str) -> bool:
    """Whether a regression of the metric is a rise."""
    return metric.startswith("popular_share")


def measure(
    outputs: Mapping[str, np.ndarray],
    relevant: Sequence[Sequence[bytes] | None],
    history: Sequence[Sequence[bytes] | None],
    k: Sequence[int],
) -> Measured:
    """Measures a batch of B queries.

    Args:
        outputs: The servable's answer (`OUTPUTS`).
        relevant: The relevant items of each query, seen ones included.
        history: The items that each has seen before.
        k: The cut-offs, rising.
    """
    everything = [{item for item in items or () if item} for items in relevant]
    unseen = [items - set(seen or ()) for items, seen in zip(everything, history, strict=True)]
    width = max(*k, outputs["classes"].shape[1])

    def hits(rankings: np.ndarray, relevant: list[set[bytes]]) -> np.ndarray:
        return np.stack([metrics.hits(*each, width) for each in zip(rankings.tolist(), relevant, strict=True)])

    def at_cutoffs(metric: Callable[..., np.ndarray], hits: np.ndarray, *counts: np.ndarray) -> np.ndarray:
        return np.stack([metric(hits[:, :at], *counts) for at in k], axis=1)

    def where_any(counts: np.ndarray, *values: np.ndarray) -> np.ndarray:
        return np.where(counts[:, np.newaxis] > 0, np.concatenate(values, axis=1), math.nan)

    count = np.array([len(items) for items in unseen])
    # The formulas want a query to have a relevant item; the values of those without are dropped.
    relevant_or_one = np.maximum(count, 1)
    ours, theirs = hits(outputs["classes"], unseen), hits(outputs["popular"], unseen)
    ndcg = at_cutoffs(metrics.ndcg, ours, relevant_or_one)
    popular_ndcg = at_cutoffs(metrics.ndcg, theirs, relevant_or_one)
    recall = at_cutoffs(metrics.recall, ours, relevant_or_one)
    popular_recall = at_cutoffs(metrics.recall, theirs, relevant_or_one)
    of_unseen = where_any(
        count,
        metrics.mrr(ours)[:, np.newaxis],
        recall,
        at_cutoffs(metrics.precision, ours),
        ndcg,
        at_cutoffs(metrics.hit_rate, ours),
        popular_ndcg,
        popular_recall,
        ndcg - popular_ndcg,
        recall - popular_recall,
    )
    all_count = np.array([len(items) for items in everything])
    all_hits = hits(outputs["classes_with_seen"], everything)
    with_seen = where_any(
        all_count,
        at_cutoffs(metrics.recall, all_hits, np.maximum(all_count, 1)),
        at_cutoffs(metrics.precision, all_hits),
    )
    filled = np.count_nonzero(outputs["classes"] != b"", axis=1)
    share = at_cutoffs(metrics.popular_share, outputs["head"].astype(float), filled)
    return Measured(
        values=np.concatenate([of_unseen, with_seen, share], axis=1),
        items=outputs["classes"],
        catalogue_size=float(np.max(outputs["catalogue_size"])),
    )


def compared(ours: Measured, baseline: Measured, k: Sequence[int], allowed: Mapping[str, float]) -> Measured:
    """The model's measures with those of `paired_names` behind them.

    Args:
        ours: Of the model.
        baseline: Of the baseline, on the same queries in the same order.
        k: The cut-offs, rising.
        allowed: Metric of `mean_names` → share of the baseline's value that may be lost.
    """
    mean, place = mean_names(k), {name: column for column, name in enumerate(mean_names(k))}
    values, before = ours.values[:, : len(mean)], baseline.values[:, : len(mean)]
    difference = values - before
    margins = [
        (-1 if less_is_better(name) else 1) * difference[:, place[name]] + share * before[:, place[name]]
        for name, share in allowed.items()
    ]
    return dataclasses.replace(ours, values=np.column_stack([values, difference, *margins]))


class RetrievalMetrics(tfma.metrics.Metric):
    """All metrics of this file in one pass of TFMA, over what `extractors` has measured."""

    def __init__(
        self,
        k: list[int],
        history: str = "",
        confidence: float = DEFAULT_CONFIDENCE,
        allowed: dict[str, float] | None = None,
        name: str = "retrieval",
    ):
        """Args:
        k: The cut-offs.
        history: Name of the feature that holds what the user has seen, which `extractors` reads; "" for none.
        confidence: Of the intervals.
        allowed: Metric of `mean_names` → share of the baseline's value that may be lost, where the margin is asked for.
        name: Needed by TFMA; the metrics have their own names.
        """
        super().__init__(_computations, k=k, confidence=confidence, allowed=list(allowed or {}), name=name)


def _computations(
    k: list[int], confidence: float, allowed: list[str], name: str, model_names: list[str] | None = None
) -> metric_types.MetricComputations:
    k = sorted(k)
    computations = []
    for model in model_names or [""]:
        combiner = _Average(k, model, confidence, allowed)
        keys = list(combiner.extract_output(combiner.create_accumulator()))
        computations.append(metric_types.MetricComputation(keys=keys, preprocessors=[_Take(model)], combiner=combiner))
    return computations


def _key(metric: str, model: str) -> metric_types.MetricKey:
    # The thresholds of a MetricsSpec are looked up by keys that leave open whether examples are weighted.
    return metric_types.MetricKey(name=metric, model_name=model, example_weighted=None)


class _Take(metric_types.Preprocessor):
    """What was measured of one model."""

    def __init__(self, model: str):
        super().__init__(name=f"take:{model}")
        self._model = model

    def process(self, extracts: tfma.types.Extracts) -> Iterator[Sums]:
        yield extracts[_MEASURED][self._model]


class _Average(beam.CombineFn):
    def __init__(self, k: list[int], model: str, confidence: float, allowed: Sequence[str]):
        self._k, self._model, self._confidence = k, model, confidence
        # With these names TFMA tells the model from the baseline; without a baseline the model has none.
        self._names = [*mean_names(k), *(paired_names(k, allowed) if model == tfma.CANDIDATE_KEY else ())]

    def create_accumulator(self) -> Sums:
        return Sums(Moments.zeros(len(self._names)))

    def add_input(self, sums: Sums, queries: Sums) -> Sums:
        sums.add(queries)
        return sums

    def merge_accumulators(self, accumulators: Iterable[Sums]) -> Sums:
        merged = self.create_accumulator()
        for sums in accumulators:
            merged.add(sums)
        return merged

    def extract_output(self, sums: Sums) -> dict[metric_types.MetricKey, float]:
        # A slice without any query that counts has no mean.
        means, half_widths = sums.moments.means(), sums.moments.half_widths(self._confidence)
        result = {name: float(mean) or NEVER_ZERO for name, mean in zip(self._names, means, strict=True)}
        # The baseline has none, of which TFMA would compute differences that nobody reads.
        ends = ((LOWER, means - half_widths), (UPPER, means + half_widths))
        for end, values in ends if self._model != tfma.BASELINE_KEY else ():
            result |= {name + end: float(value) for name, value in zip(self._names, values, strict=True)}
        for at in self._k:
            share = metrics.coverage(sums.best_rank.values(), at, sums.catalogue_size)
            result[f"coverage@{at}"] = share or NEVER_ZERO
        # The means alone: of a difference only queries count that both models have a value for.
        counts = zip(mean_names(self._k), sums.moments.counts, strict=False)
        result |= {counted_as(name): float(count) for name, count in counts}
        return {_key(name, self._model): value for name, value in result.items()}


def extractors(
    config: config_pb2.EvalConfig, models: tfma.types.MaybeMultipleEvalSharedModels
) -> list[tfma.extractors.Extractor]:
    """What TFMA does with batches of queries: asks the servables, measures, and names the slices.

    TFMA's default extractors take every query out of its batch, and its metrics look at one after another. Here a batch
    is measured at once, and what TFMA takes for an example is all queries of the batch that are in the same slices.

    Args:
        config: Made by `eval_config`, with the models' names.
        models: One model, or the candidate and the baseline.
    """
    settings = settings_of(config)
    names = [each.name for each in config.model_specs] if len(config.model_specs) > 1 else [""]
    columns = sorted({column for spec in config.slicing_specs for column in spec.feature_keys})
    read = beam.Map(_read, [RELEVANT, settings["history"], *columns])
    measure_batch = beam.FlatMap(
        _measure_batch, settings["history"], columns, sorted(settings["k"]), names, settings["allowed"]
    )
    return [
        tfma.extractors.Extractor("ReadColumns", read),
        tfma.extractors.PredictionsExtractor(config, models),
        tfma.extractors.Extractor("Measure", measure_batch),
        tfma.extractors.SliceKeyExtractor(eval_config=config, materialize=False),
    ]


def _read(extracts: tfma.types.Extracts, columns: Sequence[str]) -> tfma.types.Extracts:
    """A batch of examples as the servable reads it, and some columns as [B] lists, or None where one lacks it."""
    batch = extracts[tfma.ARROW_RECORD_BATCH_KEY]
    lists = {
        column: batch.column(column).to_pylist() if column in batch.schema.names else [None] * batch.num_rows
        for column in columns
    }
    return {
        tfma.INPUT_KEY: np.asarray(batch.column(tfma.ARROW_INPUT_COLUMN).flatten()),
        # As arrays, which TFMA knows how to divide when a servable fails on a batch and is asked query by query.
        _COLUMNS: {column: np.fromiter(values, object, len(values)) for column, values in lists.items()},
    }


def _measure_batch(
    extracts: tfma.types.Extracts,
    history: str,
    slices: Sequence[str],
    k: Sequence[int],
    models: Sequence[str],
    allowed: Mapping[str, float],
) -> Iterator[tfma.types.Extracts]:
    """Measures a batch; yields the sums of those of its queries that have the same values in the slices' columns."""
    columns = {column: values.ravel().tolist() for column, values in extracts[_COLUMNS].items()}
    predictions = util.StandardExtracts(extracts)
    measured = {
        model: measure(predictions.get_predictions(model_name=model), columns[RELEVANT], columns[history], k)
        for model in models
    }
    if tfma.BASELINE_KEY in measured:
        ours, baseline = measured[tfma.CANDIDATE_KEY], measured[tfma.BASELINE_KEY]
        measured[tfma.CANDIDATE_KEY] = compared(ours, baseline, k, allowed)
    alike: dict[tuple[tuple[bytes, ...], ...], list[int]] = {}
    for query in range(len(columns[RELEVANT])):
        alike.setdefault(tuple(tuple(columns[column][query] or ()) for column in slices), []).append(query)
    for values, queries in alike.items():
        yield {
            tfma.FEATURES_KEY: {c: np.array(each, object) for c, each in zip(slices, values, strict=True) if each},
            _MEASURED: {model: of_model.sums(queries) for model, of_model in measured.items()},
        }


def metrics_config(
    k: Sequence[int], history: str | None, confidence: float | None, allowed: Mapping[str, float]
) -> config_pb2.MetricConfig:
    """`RetrievalMetrics` as an EvalConfig names it.

    Args:
        k: The cut-offs.
        history: Name of the history feature, whose items are no hits; None where there is none, or where they are.
        confidence: Of the intervals, if a certain one is asked for.
        allowed: Metrics whose margin is asked for, with the share of the baseline's value that may be lost.
    """
    settings = {
        "k": sorted(k),
        "history": history or "",
        "confidence": confidence or DEFAULT_CONFIDENCE,
        "allowed": dict(allowed),
    }
    return config_pb2.MetricConfig(
        class_name=RetrievalMetrics.__name__, module=__name__, config=json.dumps(settings, sort_keys=True)
    )


def settings_of(config: config_pb2.EvalConfig) -> dict[str, Any]:
    """What `metrics_config` was given."""
    [metric] = [each for specification in config.metrics_specs for each in specification.metrics]
    settings: dict[str, Any] = json.loads(metric.config)
    return settings


Figures = dict[str, dict[str, float]]
"""By slice (`overall`, `gender=F`, …) and metric."""


@dataclass(frozen=True)
class Results:
    """What an Evaluator's output says, read once."""

    metrics: Figures
    baseline_metrics: Figures
    """Empty when there was no baseline."""
    half_widths: Figures
    """Half of the interval of each of `metrics` that has one; NaN where fewer than two queries count."""
    differences: Figures
    """The mean over queries of the model's value less the baseline's; empty when there was no baseline."""
    difference_half_widths: Figures
    everything: Figures
    """All that was computed of the model: `metrics`, ends of intervals, differences, margins."""


def read(evaluation_uri: str) -> Results:
    """Reads an Evaluator's output.

    Args:
        evaluation_uri: Where the ModelEvaluation artifact is.
    """
    models: dict[bool, Figures] = {False: {}, True: {}}
    for of_slice in tfma.load_metrics(evaluation_uri):
        for pair in of_slice.metric_keys_and_values:
            if not pair.key.is_diff:
                figures = models[pair.key.model_name == tfma.BASELINE_KEY]
                of = figures.setdefault(_slice_name(of_slice.slice_key), {})
                of[pair.key.name] = _number(pair.value.double_value.value)
    ours, baseline = (dict(sorted(each.items(), key=lambda item: (item[0] != OVERALL, item[0])))
                      for each in (models[False], models[True]))  # fmt: skip
    halves = {
        of: {name.removesuffix(UPPER): (x - values[name.removesuffix(UPPER) + LOWER]) / 2
             for name, x in values.items() if name.endswith(UPPER)}
        for of, values in ours.items()
    }  # fmt: skip
    return Results(
        metrics=_ending(ours),
        baseline_metrics=_ending(baseline),
        half_widths=_ending(halves),
        differences=_ending(ours, DIFFERENCE),
        difference_half_widths=_ending(halves, DIFFERENCE),
        everything=ours,
    )


def _ending(figures: Figures, end: str = "") -> Figures:
    """The figures whose names have this end, without it; slices that have none are left out."""

    def chosen(values: dict[str, float]) -> dict[str, float]:
        return {name.removesuffix(end): x for name, x in values.items() if name[len(name.partition("/")[0]) :] == end}

    return {of: some for of, values in figures.items() if (some := chosen(values))}


def _number(value: float) -> float:
    return 0.0 if value == NEVER_ZERO else value


def _slice_name(key: Any) -> str:
    parts = []
    for single in key.single_slice_keys:
        kind = single.WhichOneof("kind")
        value = getattr(single, kind)
        parts.append(f"{single.column.removeprefix(SLICE_PREFIX)}={value.decode() if kind == 'bytes_value' else value}")
    return ", ".join(parts) or OVERALL
