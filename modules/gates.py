"""What keeps a model from being pushed: thresholds of TFMA on what modules/evaluation.py computes, and their words.

Without `evaluation.confidence` a gate looks at the figures themselves. With it, a gate looks at their intervals:

- Popularity: the lower end of the difference to the most popular items must be above 0. A model has to prove itself.
- A floor: the upper end of the figure's interval must not be below it.
- A regression: the upper end of the margin's interval must not be below 0. The margin is what is left of what may be
  lost against the baseline. These two refuse only what is bad by more than chance.

With fewer than `evaluation.min_queries` queries none of them decides, and the model is refused with that as the reason.
Coverage is no mean over queries and has no interval: it is judged by the figure in both cases.
"""

from __future__ import annotations

from typing import Any

import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.writers import eval_config_writer

from modules import evaluation as measured
from modules.data.examples import RELEVANT, SLICE_PREFIX
from modules.evaluation import LOWER, MARGIN, NDCG_LIFT, NEVER_ZERO, OVERALL, QUERIES, UPPER
from modules.settings import Evaluation


def eval_config(evaluation: Evaluation, history: str | None) -> config_pb2.EvalConfig:
    """What the Evaluator is asked to do.

    There is one nameless model: TFX adds the baseline to it when the run has one, and drops the comparison when not.

    Args:
        evaluation: The settings.
        history: Name of the history feature, whose items are no hits; None where there is none, or where they are.
    """
    by_interval = set(measured.mean_names(evaluation.k)) if evaluation.confidence else set()
    allowed = {metric: share for metric, share in evaluation.max_regression.items() if metric in by_interval}
    specification = config_pb2.MetricsSpec(
        metrics=[measured.metrics_config(evaluation.k, history, evaluation.confidence, allowed)]
    )

    def gate(metric: str) -> config_pb2.MetricThreshold:
        # A threshold of TFMA that names no slice holds in every slice; these are for the whole.
        thresholds = specification.per_slice_thresholds[metric].thresholds
        return thresholds.add(slicing_specs=[config_pb2.SlicingSpec()]).threshold

    # Without any threshold the Evaluator writes no blessing at all. This one always holds: something was measured.
    gate(QUERIES).value_threshold.lower_bound.value = 1.0
    if evaluation.confidence and (evaluation.floors or evaluation.beat_popularity or evaluation.max_regression):
        gate(QUERIES).value_threshold.lower_bound.value = evaluation.min_queries
    for metric, floor in evaluation.floors.items():
        gate(metric + UPPER if metric in by_interval else metric).value_threshold.lower_bound.value = floor
    if evaluation.beat_popularity:
        # Bounds are inclusive, and as good as the most popular items is not good enough.
        lift = f"{NDCG_LIFT}@{min(evaluation.k)}"
        gate(lift + LOWER if lift in by_interval else lift).value_threshold.lower_bound.value = 2 * NEVER_ZERO
    for metric, share in evaluation.max_regression.items():
        if metric in allowed:
            gate(metric + MARGIN + UPPER).value_threshold.lower_bound.value = -NEVER_ZERO
            continue
        change = gate(metric).change_threshold
        if measured.less_is_better(metric):
            change.relative.value = share
            change.direction = config_pb2.MetricDirection.LOWER_IS_BETTER
        else:
            change.relative.value = -share
            change.direction = config_pb2.MetricDirection.HIGHER_IS_BETTER

    slices = [config_pb2.SlicingSpec(feature_keys=[SLICE_PREFIX + each.column]) for each in evaluation.slices]
    return config_pb2.EvalConfig(
        model_specs=[
            config_pb2.ModelSpec(signature_name=measured.SIGNATURE, label_key=RELEVANT, model_type=tfma.TF_GENERIC)
        ],
        slicing_specs=[config_pb2.SlicingSpec(), *slices],
        metrics_specs=[specification],
    )


def resolved(config: config_pb2.EvalConfig, has_baseline: bool) -> config_pb2.EvalConfig:
    """The configuration of an evaluation with a baseline or of one without, which asks nothing about a comparison."""
    # TFMA drops its change thresholds, and knows nothing of margins.
    config = tfma.utils.update_eval_config_with_defaults(config, has_baseline=has_baseline, rubber_stamp=True)
    for specification in config.metrics_specs:
        for metric in list(specification.per_slice_thresholds):
            if MARGIN in metric and not has_baseline:
                del specification.per_slice_thresholds[metric]
    return config


def validation_failures(evaluation_uri: str) -> list[str]:
    """Why a model was not blessed, one sentence for each gate; empty when it was."""
    result = tfma.load_validation_result(evaluation_uri)
    if result.validation_ok:
        return []
    results = measured.read(evaluation_uri)
    ours, baseline = results.everything.get(OVERALL), results.baseline_metrics.get(OVERALL, {})
    if not ours or not ours[QUERIES]:
        return ["no eval query has a relevant item that its user has not seen before: nothing could be measured"]
    config, *_ = eval_config_writer.load_eval_run(evaluation_uri)
    settings = measured.settings_of(config)
    failures = {
        failure.metric_key.name: failure.metric_threshold
        for of_slice in result.metric_validations_per_slice
        for failure in of_slice.failures
    }
    if QUERIES in failures:
        least = failures[QUERIES].value_threshold.lower_bound.value
        return [f"too few queries to judge by ({ours[QUERIES]:.0f}; evaluation.min_queries is {least:.0f})"]
    return [_in_words(name, threshold, ours, baseline, settings) for name, threshold in failures.items()]


def _in_words(
    name: str, threshold: Any, ours: dict[str, float], baseline: dict[str, float], settings: dict[str, Any]
) -> str:
    """One gate that was not passed.

    Args:
        name: Of what has the threshold: a metric, or an end of an interval.
        threshold: The threshold, a MetricThreshold.
        ours: All that was computed of the model.
        baseline: The baseline's metrics; empty when there was none.
        settings: Those of the metrics.
    """
    metric, _, end = name.partition("/")

    def interval(of: str, sign: int = 1) -> str:
        if not end:
            return ""
        low, high = sorted(sign * ours[of + each] for each in (LOWER, UPPER))
        queries = ours[measured.counted_as(metric)]
        return f", {100 * settings['confidence']:g}% interval {low:.4g} to {high:.4g} over {queries:.0f} queries"

    if metric.startswith(NDCG_LIFT):
        at = metric.removeprefix(NDCG_LIFT)
        mine, popular = ours[f"ndcg{at}"], ours[f"popular_ndcg{at}"]
        short = f"difference {mine - popular:+.4g}{interval(metric)}" if end else f"short by {popular - mine:.2g}"
        return f"ndcg{at} is {mine:.4g}, the most popular items reach {popular:.4g} ({short})"
    if threshold.HasField("value_threshold") and MARGIN not in name:
        floor = threshold.value_threshold.lower_bound.value
        short = f"short by {floor - ours[metric]:.2g}{interval(metric)}"
        return f"{metric} is {ours[metric]:.4g}, floor {floor:.4g} ({short})"
    allowed = settings["allowed"][metric] if end else abs(threshold.change_threshold.relative.value)
    before = baseline[metric]
    change = f"{(ours[metric] - before) / before:+.1%}" if before else "from 0"
    beyond = f"; beyond that by {-ours[metric + MARGIN]:.4g}{interval(metric + MARGIN, sign=-1)}" if end else ""
    said = f"{change}, allowed {allowed:.1%}{beyond}"
    return f"{metric} is {ours[metric]:.4g}, the last pushed model has {before:.4g} ({said})"
