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
from collections.abc import Callable, Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class Measured:
    """What one query adds to each of its slices."""

    values: np.ndarray
    """[M] float: `mean_names` in order; NaN where the query does not count."""
    items: list[bytes]
    """The ranking."""
    catalogue_size: float


def mean_names(k: Sequence[int]) -> list[str]:
    """The metrics that are means over queries, in the order of `Measured.values`."""
    per_k = ("recall", "precision", "ndcg", "hit_rate", "popular_ndcg", "popular_recall", _LIFT,
             "recall_with_seen", "precision_with_seen", "popular_share")  # fmt: skip
    return ["mrr", *(f"{name}@{at}" for name in per_k for at in k)]


def measure(
    outputs: dict[str, np.ndarray], relevant: Iterable[bytes], history: Iterable[bytes], k: Sequence[int]
) -> Measured:
    """Measures one query.

    Args:
        outputs: The servable's answer to it, without the batch dimension (`OUTPUTS`).
        relevant: Its relevant items, seen ones included.
        history: The items seen before.
        k: The cut-offs, rising.
    """
    everything = {item for item in relevant if item}
    unseen = everything - set(history)
    ranking = _items(outputs["classes"])

    def at_cutoffs(metric: Callable[..., np.ndarray], hits: np.ndarray, *relevant: np.ndarray) -> np.ndarray:
        return np.concatenate([metric(hits[:, :at], *relevant) for at in k])

    def hits(ranking: Sequence[bytes], relevant: set[bytes]) -> tuple[np.ndarray, np.ndarray]:
        return metrics.hits(ranking, relevant, max(*k, len(ranking)))[np.newaxis], np.array([len(relevant)])

    nothing = np.full(len(k), math.nan)
    reciprocal, new, popular, with_seen = np.array([math.nan]), [nothing] * 4, [nothing] * 3, [nothing] * 2
    if unseen:
        ours, count = hits(ranking, unseen)
        theirs, _ = hits(_items(outputs["popular"]), unseen)
        reciprocal = metrics.mrr(ours)
        ndcg = at_cutoffs(metrics.ndcg, ours, count)
        new = [
            at_cutoffs(metrics.recall, ours, count),
            at_cutoffs(metrics.precision, ours),
            ndcg,
            at_cutoffs(metrics.hit_rate, ours),
        ]
        popular_ndcg = at_cutoffs(metrics.ndcg, theirs, count)
        popular = [popular_ndcg, at_cutoffs(metrics.recall, theirs, count), ndcg - popular_ndcg]
    if everything:
        all_hits, count = hits(_items(outputs["classes_with_seen"]), everything)
        with_seen = [at_cutoffs(metrics.recall, all_hits, count), at_cutoffs(metrics.precision, all_hits)]
    head = np.asarray(outputs["head"], float).reshape(1, -1)
    share = at_cutoffs(metrics.popular_share, head, np.array([len(ranking)]))
    return Measured(
        values=np.concatenate([reciprocal, *new, *popular, *with_seen, share]),
        items=ranking,
        catalogue_size=float(np.asarray(outputs["catalogue_size"]).ravel()[0]),
    )


def _items(padded: np.ndarray) -> list[bytes]:
    return [item for item in np.asarray(padded).ravel().tolist() if item]


class RetrievalMetrics(tfma.metrics.Metric):
    """All metrics of this file in one pass of TFMA: a query is measured once, however many slices it is in."""

    def __init__(self, k: list[int], history: str = "", name: str = "retrieval"):
        """Args:
        k: The cut-offs.
        history: Name of the feature that holds what the user has seen; "" when there is none.
        name: Needed by TFMA; the metrics have their own names.
        """
        super().__init__(_computations, k=k, history=history, name=name)


def _computations(
    k: list[int], history: str, name: str, model_names: list[str] | None = None
) -> metric_types.MetricComputations:
    k = sorted(k)
    names = [*mean_names(k), *(f"coverage@{at}" for at in k), _QUERIES]
    return [
        metric_types.MetricComputation(
            keys=[_key(metric, model) for metric in names],
            preprocessors=[_Measure(k, history, model)],
            combiner=_Average(k, model),
        )
        for model in model_names or [""]
    ]


def _key(metric: str, model: str) -> metric_types.MetricKey:
    # The thresholds of a MetricsSpec are looked up by keys that leave open whether examples are weighted.
    return metric_types.MetricKey(name=metric, model_name=model, example_weighted=None)


class _Measure(metric_types.Preprocessor):
    """Runs before TFMA copies an example into its slices."""

    def __init__(self, k: list[int], history: str, model: str):
        super().__init__(name=f"measure:{model}")
        self._k, self._history, self._model = k, history, model

    def process(self, extracts: tfma.types.Extracts) -> Iterator[Measured]:
        standard = util.StandardExtracts(extracts)
        yield measure(
            standard.get_predictions(model_name=self._model),
            _values(standard.get_labels(model_name=self._model)),
            _values(standard.get_features().get(self._history)),
            self._k,
        )


def _values(tensor: Any) -> list[bytes]:
    """The strings of a feature, which TFMA gives as an array of any rank, or as None where the example lacks it."""
    return [] if tensor is None else _items(tensor)


@dataclass
class _Sums:
    totals: np.ndarray
    """[M] sum of the queries' values."""
    counts: np.ndarray
    """[M] how many queries had one."""
    best_rank: dict[bytes, int] = field(default_factory=dict)
    """Every recommended item with the best place it had, from 0: coverage at any k."""
    catalogue_size: float = 0.0


class _Average(beam.CombineFn):
    def __init__(self, k: list[int], model: str):
        self._k, self._model = k, model
        self._names = mean_names(k)

    def create_accumulator(self) -> _Sums:
        return _Sums(np.zeros(len(self._names)), np.zeros(len(self._names)))

    def add_input(self, sums: _Sums, query: Measured) -> _Sums:
        counts = ~np.isnan(query.values)
        sums.totals += np.where(counts, query.values, 0.0)
        sums.counts += counts
        for rank, item in enumerate(query.items):
            if rank < sums.best_rank.get(item, len(query.items)):
                sums.best_rank[item] = rank
        sums.catalogue_size = max(sums.catalogue_size, query.catalogue_size)
        return sums

    def merge_accumulators(self, accumulators: Iterable[_Sums]) -> _Sums:
        merged = self.create_accumulator()
        for sums in accumulators:
            merged.totals += sums.totals
            merged.counts += sums.counts
            for item, rank in sums.best_rank.items():
                merged.best_rank[item] = min(rank, merged.best_rank.get(item, rank))
            merged.catalogue_size = max(merged.catalogue_size, sums.catalogue_size)
        return merged

    def extract_output(self, sums: _Sums) -> dict[metric_types.MetricKey, float]:
        # A slice without any query that counts has no mean.
        means = np.divide(sums.totals, sums.counts, out=np.full(len(self._names), math.nan), where=sums.counts > 0)
        result = {name: float(mean) or _NEVER_ZERO for name, mean in zip(self._names, means, strict=True)}
        for at in self._k:
            share = metrics.coverage(sums.best_rank.values(), at, sums.catalogue_size)
            result[f"coverage@{at}"] = share or _NEVER_ZERO
        result[_QUERIES] = float(sums.counts[0])
        return {_key(name, self._model): value for name, value in result.items()}


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
