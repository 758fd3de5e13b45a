"""What the Evaluator measures on the servable, and what keeps a model from being pushed.

A query is one eval example. Its ranking is what the servable's `evaluate` signature answers: R items, best first, none
of which is in the example's history. Its relevant items are `relevant_items` without those of the history, since an
answer can never hold those; a query that has none left is skipped. Every metric is the mean over the queries of a slice
(macro average), except coverage, which is about all of them together. modules/metrics.py has the formulas, and
`metric_names` in modules/settings.py lists the names; here are two more: `queries`, the number of queries that counted,
and `ndcg_lift@k`, which the popularity gate looks at.
"""

from __future__ import annotations

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
from modules.settings import Evaluation

SIGNATURE = "evaluate"
"""Signature of the servable: serialized tf.Examples [B] → `OUTPUTS`."""
OUTPUTS = ("classes", "classes_with_seen", "popular", "head", "catalogue_size")
"""What the metrics read of it: classes, classes_with_seen and popular are [B, R] bytes, padded with "" at the end; head
is [B, R] float, 1 where the item of `classes` is among the most popular 10 % of the catalogue; catalogue_size [B]."""
OVERALL = "overall"
"""Name of the slice that holds every query."""

_QUERIES = "queries"
_LIFT = "ndcg_lift"
# TFMA fails a relative change threshold, always, when the baseline's value is exactly 0: one bad model that was pushed
# without gates would block every better one. Means are therefore never exactly 0.
_NEVER_ZERO = 1e-12
# Keys of TFMA's extracts, beside its own: what is read of a batch, and the sums of each model's answers.
_COLUMNS, _MEASURED = "columns", "measured"


@dataclass
class Sums:
    """What some queries of one slice add up to."""

    totals: np.ndarray
    """[M] sum of the queries' values, `mean_names` in order."""
    counts: np.ndarray
    """[M] how many queries had one."""
    best_rank: dict[bytes, int] = field(default_factory=dict)
    """Every recommended item with the best place it had, from 0: coverage at any k."""
    catalogue_size: float = 0.0

    def add(self, others: Sums) -> None:
        """Adds other queries."""
        self.totals += others.totals
        self.counts += others.counts
        for item, rank in others.best_rank.items():
            if rank < self.best_rank.get(item, rank + 1):
                self.best_rank[item] = rank
        self.catalogue_size = max(self.catalogue_size, others.catalogue_size)


@dataclass(frozen=True)
class Measured:
    """What each query of a batch adds to its slices."""

    values: np.ndarray
    """[B, M] float: `mean_names` in order; NaN where a query does not count."""
    items: np.ndarray
    """[B, R] the rankings, padded with ""."""
    catalogue_size: float

    def sums(self, queries: Sequence[int]) -> Sums:
        """Of the queries at these numbers in the batch."""
        values = self.values[queries]
        counts = ~np.isnan(values)
        best_rank: dict[bytes, int] = {}
        # From the last place to the first, so that the best one stays.
        for rank, items in reversed(list(enumerate(self.items[queries].T.tolist()))):
            best_rank.update(dict.fromkeys(items, rank))
        best_rank.pop(b"", None)
        return Sums(np.where(counts, values, 0.0).sum(axis=0), counts.sum(axis=0), best_rank, self.catalogue_size)


def mean_names(k: Sequence[int]) -> list[str]:
    """The metrics that are means over queries, in the order of `Measured.values`."""
    per_k = ("recall", "precision", "ndcg", "hit_rate", "popular_ndcg", "popular_recall", _LIFT,
             "recall_with_seen", "precision_with_seen", "popular_share")  # fmt: skip
    return ["mrr", *(f"{name}@{at}" for name in per_k for at in k)]


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
    of_unseen = where_any(
        count,
        metrics.mrr(ours)[:, np.newaxis],
        at_cutoffs(metrics.recall, ours, relevant_or_one),
        at_cutoffs(metrics.precision, ours),
        ndcg,
        at_cutoffs(metrics.hit_rate, ours),
        popular_ndcg,
        at_cutoffs(metrics.recall, theirs, relevant_or_one),
        ndcg - popular_ndcg,
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


class RetrievalMetrics(tfma.metrics.Metric):
    """All metrics of this file in one pass of TFMA, over what `extractors` has measured."""

    def __init__(self, k: list[int], history: str = "", name: str = "retrieval"):
        """Args:
        k: The cut-offs.
        history: Name of the feature that holds what the user has seen, which `extractors` reads; "" for none.
        name: Needed by TFMA; the metrics have their own names.
        """
        super().__init__(_computations, k=k, name=name)


def _computations(k: list[int], name: str, model_names: list[str] | None = None) -> metric_types.MetricComputations:
    k = sorted(k)
    names = [*mean_names(k), *(f"coverage@{at}" for at in k), _QUERIES]
    return [
        metric_types.MetricComputation(
            keys=[_key(metric, model) for metric in names],
            preprocessors=[_Take(model)],
            combiner=_Average(k, model),
        )
        for model in model_names or [""]
    ]


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
    def __init__(self, k: list[int], model: str):
        self._k, self._model = k, model
        self._names = mean_names(k)

    def create_accumulator(self) -> Sums:
        return Sums(np.zeros(len(self._names)), np.zeros(len(self._names)))

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
        means = np.divide(sums.totals, sums.counts, out=np.full(len(self._names), math.nan), where=sums.counts > 0)
        result = {name: float(mean) or _NEVER_ZERO for name, mean in zip(self._names, means, strict=True)}
        for at in self._k:
            share = metrics.coverage(sums.best_rank.values(), at, sums.catalogue_size)
            result[f"coverage@{at}"] = share or _NEVER_ZERO
        result[_QUERIES] = float(sums.counts[0])
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
    [metric] = [each for specification in config.metrics_specs for each in specification.metrics]
    settings = json.loads(metric.config)
    names = [each.name for each in config.model_specs] if len(config.model_specs) > 1 else [""]
    columns = sorted({column for spec in config.slicing_specs for column in spec.feature_keys})
    read = beam.Map(_read, [RELEVANT, settings["history"], *columns])
    measure_batch = beam.FlatMap(_measure_batch, settings["history"], columns, sorted(settings["k"]), names)
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
    extracts: tfma.types.Extracts, history: str, slices: Sequence[str], k: Sequence[int], models: Sequence[str]
) -> Iterator[tfma.types.Extracts]:
    """Measures a batch; yields the sums of those of its queries that have the same values in the slices' columns."""
    columns = {column: values.ravel().tolist() for column, values in extracts[_COLUMNS].items()}
    predictions = util.StandardExtracts(extracts)
    measured = {
        model: measure(predictions.get_predictions(model_name=model), columns[RELEVANT], columns[history], k)
        for model in models
    }
    alike: dict[tuple[tuple[bytes, ...], ...], list[int]] = {}
    for query in range(len(columns[RELEVANT])):
        alike.setdefault(tuple(tuple(columns[column][query] or ()) for column in slices), []).append(query)
    for values, queries in alike.items():
        yield {
            tfma.FEATURES_KEY: {c: np.array(each, object) for c, each in zip(slices, values, strict=True) if each},
            _MEASURED: {model: of_model.sums(queries) for model, of_model in measured.items()},
        }


def eval_config(evaluation: Evaluation, history: str | None) -> config_pb2.EvalConfig:
    """What the Evaluator is asked to do.

    There is one nameless model: TFX adds the baseline to it when the run has one, and drops the comparison when not.

    Args:
        evaluation: The settings.
        history: Name of the history feature, if there is one.
    """
    specification = config_pb2.MetricsSpec(
        metrics=[
            config_pb2.MetricConfig(
                class_name=RetrievalMetrics.__name__,
                module=__name__,
                config=json.dumps({"k": sorted(evaluation.k), "history": history or ""}),
            )
        ]
    )

    def gate(metric: str) -> config_pb2.MetricThreshold:
        # A threshold of TFMA that names no slice holds in every slice; these are for the whole.
        thresholds = specification.per_slice_thresholds[metric].thresholds
        return thresholds.add(slicing_specs=[config_pb2.SlicingSpec()]).threshold

    # Without any threshold the Evaluator writes no blessing at all. This one always holds: something was measured.
    gate(_QUERIES).value_threshold.lower_bound.value = 1.0
    for metric, floor in evaluation.floors.items():
        gate(metric).value_threshold.lower_bound.value = floor
    if evaluation.beat_popularity:
        # Bounds are inclusive, and as good as the most popular items is not good enough.
        gate(f"{_LIFT}@{min(evaluation.k)}").value_threshold.lower_bound.value = 2 * _NEVER_ZERO
    for metric, share in evaluation.max_regression.items():
        change = gate(metric).change_threshold
        if metric.startswith("popular_share"):
            change.relative.value = share
            change.direction = config_pb2.MetricDirection.LOWER_IS_BETTER
        else:
            change.relative.value = -share
            change.direction = config_pb2.MetricDirection.HIGHER_IS_BETTER

    slices = [config_pb2.SlicingSpec(feature_keys=[SLICE_PREFIX + each.column]) for each in evaluation.slices]
    return config_pb2.EvalConfig(
        model_specs=[config_pb2.ModelSpec(signature_name=SIGNATURE, label_key=RELEVANT, model_type=tfma.TF_GENERIC)],
        slicing_specs=[config_pb2.SlicingSpec(), *slices],
        metrics_specs=[specification],
    )


def read_metrics(evaluation_uri: str, baseline: bool = False) -> dict[str, dict[str, float]]:
    """The metrics of an Evaluator's output by slice: `overall`, `gender=F`, …

    Args:
        evaluation_uri: Where the ModelEvaluation artifact is.
        baseline: The baseline's instead of the candidate's; empty when there was none.
    """
    wanted = {tfma.BASELINE_KEY} if baseline else {"", tfma.CANDIDATE_KEY}
    result: dict[str, dict[str, float]] = {}
    for of_slice in tfma.load_metrics(evaluation_uri):
        values = {
            pair.key.name: _number(pair.value.double_value.value)
            for pair in of_slice.metric_keys_and_values
            if pair.key.model_name in wanted and not pair.key.is_diff
        }
        if values:
            result[_slice_name(of_slice.slice_key)] = values
    return dict(sorted(result.items(), key=lambda item: (item[0] != OVERALL, item[0])))


def _number(value: float) -> float:
    return 0.0 if value == _NEVER_ZERO else value


def _slice_name(key: Any) -> str:
    parts = []
    for single in key.single_slice_keys:
        kind = single.WhichOneof("kind")
        value = getattr(single, kind)
        parts.append(f"{single.column.removeprefix(SLICE_PREFIX)}={value.decode() if kind == 'bytes_value' else value}")
    return ", ".join(parts) or OVERALL


def validation_failures(evaluation_uri: str) -> list[str]:
    """Why a model was not blessed, one sentence for each gate; empty when it was."""
    result = tfma.load_validation_result(evaluation_uri)
    if result.validation_ok:
        return []
    ours = read_metrics(evaluation_uri).get(OVERALL)
    baseline = read_metrics(evaluation_uri, baseline=True).get(OVERALL, {})
    if not ours or not ours[_QUERIES]:
        return ["no eval query has a relevant item that its user has not seen before: nothing could be measured"]
    return [
        _in_words(failure.metric_key.name, failure.metric_threshold, ours, baseline)
        for of_slice in result.metric_validations_per_slice
        for failure in of_slice.failures
    ]


def _in_words(metric: str, threshold: Any, ours: dict[str, float], baseline: dict[str, float]) -> str:
    if metric.startswith(_LIFT):
        at = metric.removeprefix(_LIFT)
        mine, popular = ours[f"ndcg{at}"], ours[f"popular_ndcg{at}"]
        return f"ndcg{at} is {mine:.4g}, the most popular items reach {popular:.4g} (short by {popular - mine:.2g})"
    if threshold.HasField("value_threshold"):
        floor = threshold.value_threshold.lower_bound.value
        return f"{metric} is {ours[metric]:.4g}, floor {floor:.4g} (short by {floor - ours[metric]:.2g})"
    allowed = abs(threshold.change_threshold.relative.value)
    before = baseline[metric]
    change = f"{(ours[metric] - before) / before:+.1%}" if before else "from 0"
    return f"{metric} is {ours[metric]:.4g}, the last pushed model has {before:.4g} ({change}, allowed {allowed:.1%})"
