"""The gates: which thresholds there are, and what they decide on queries whose interval numpy and SciPy know."""

import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats
from tensorflow_model_analysis.evaluators import metrics_validator

from modules import evaluation, gates
from modules.settings import Evaluation, Slice

K = (5,)
NAMES = evaluation.mean_names(K)


def test_config_gates_the_whole_and_not_its_slices():
    config = gates.eval_config(
        Evaluation(
            k=(5, 3),
            slices=(Slice(column="gender"),),
            floors={"recall@5": 0.25},
            max_regression={"ndcg@3": 0.1, "popular_share@3": 0.2},
        ),
        history="history",
    )
    thresholds = tfma.metrics.metric_thresholds_from_metrics_specs(config.metrics_specs, eval_config=config)
    assert all(not spec.feature_keys for gates in thresholds.values() for spec, _ in gates)
    bounds = {(key.name, key.is_diff): gates[0][1] for key, gates in thresholds.items()}
    assert bounds["recall@5", False].lower_bound.value == 0.25
    assert bounds["ndcg_lift@3", False].lower_bound.value > 0
    assert bounds["ndcg@3", True].relative.value == -0.1
    assert bounds["popular_share@3", True].relative.value == 0.2
    assert bounds["queries", False].lower_bound.value == 1
    assert [list(spec.feature_keys) for spec in config.slicing_specs] == [[], ["slice_gender"]]


def test_there_is_always_a_gate_for_without_one_the_evaluator_blesses_nothing():
    config = gates.eval_config(Evaluation(beat_popularity=False, max_regression={}), history=None)
    assert tfma.metrics.metric_thresholds_from_metrics_specs(config.metrics_specs, eval_config=config)


def measured(columns, queries):
    """Queries with values of some metrics; those of the others are 0."""
    values = np.column_stack([columns.get(name, np.zeros(queries)) for name in NAMES])
    return evaluation.Measured(values, np.full((queries, 1), b"i1", object), catalogue_size=4.0)


def refused(settings, ours, baseline=None):
    """The names of the thresholds that a model does not pass: what TFMA makes of the sums of all queries.

    Args:
        settings: Evaluation at k = 5.
        ours: Metric → the values of the queries.
        baseline: As `ours`, of the last pushed model, when there is one.
    """
    config = gates.resolved(gates.eval_config(settings, None), has_baseline=baseline is not None)
    specification = evaluation.settings_of(config)
    metric = evaluation.RetrievalMetrics(**specification)
    queries = len(next(iter(ours.values())))
    models = {"": measured(ours, queries)}
    if baseline is not None:
        before = measured(baseline, queries)
        ours = evaluation.compared(models[""], before, list(K), specification["allowed"])
        models = {tfma.CANDIDATE_KEY: ours, tfma.BASELINE_KEY: before}
    results = {}
    for computation in metric.computations(model_names=list(models)):
        [model] = {key.model_name for key in computation.keys}
        result = computation.combiner.extract_output(models[model].sums(range(queries)))
        assert list(result) == computation.keys
        results |= result
    for key in [key for key in results if key.model_name == tfma.CANDIDATE_KEY]:
        before = results.get(key.make_baseline_key(tfma.BASELINE_KEY))
        if before is not None:
            results[key.make_diff_key()] = results[key] - before
    result = metrics_validator.validate_metrics(((), results), config)
    return {failure.metric_key.name for each in result.metric_validations_per_slice for failure in each.failures}


def gated(**changes):
    """Settings without any gate but those that are given."""
    return Evaluation(**({"k": K, "beat_popularity": False, "max_regression": {}} | changes))


def draw(seed, mean, spread=0.3, queries=100):
    """Queries whose mean is exactly this."""
    values = spread * np.random.default_rng(seed).standard_normal(queries)
    return values - values.mean() + mean


def interval(values, confidence=0.95):
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


# Half of the interval of `draw` is about 0.06.
@pytest.mark.parametrize(
    ("lift", "by_figures", "by_intervals"),
    [(0.02, True, False), (0.1, True, True), (-0.02, False, False), (-0.1, False, False)],
    ids=["better by chance", "better for sure", "worse by chance", "worse for sure"],
)
def test_a_model_proves_that_it_beats_the_most_popular_items(lift, by_figures, by_intervals):
    ours = {"ndcg_lift@5": draw(1, lift)}
    assert (not refused(gated(beat_popularity=True), ours)) is by_figures
    assert (not refused(gated(beat_popularity=True, confidence=0.95), ours)) is by_intervals


@pytest.mark.parametrize(
    ("mean", "by_figures", "by_intervals"),
    [(0.52, True, True), (0.48, False, True), (0.4, False, False)],
    ids=["above", "below by chance", "below for sure"],
)
def test_a_floor_refuses_what_is_below_it_for_sure(mean, by_figures, by_intervals):
    ours = {"recall@5": draw(2, mean)}
    assert (not refused(gated(floors={"recall@5": 0.5}), ours)) is by_figures
    assert (not refused(gated(floors={"recall@5": 0.5}, confidence=0.95), ours)) is by_intervals


@pytest.mark.parametrize(
    ("mean", "by_figures", "by_intervals"),
    [(0.47, True, True), (0.44, False, True), (0.3, False, False)],
    ids=["within what may be lost", "beyond it by chance", "beyond it for sure"],
)
def test_a_regression_is_refused_where_it_is_one_for_sure(mean, by_figures, by_intervals):
    ours, before = {"ndcg@5": draw(3, mean)}, {"ndcg@5": draw(4, 0.5)}
    assert (not refused(gated(max_regression={"ndcg@5": 0.1}), ours, before)) is by_figures
    assert (not refused(gated(max_regression={"ndcg@5": 0.1}, confidence=0.95), ours, before)) is by_intervals


def test_pairing_finds_a_regression_that_the_two_figures_alone_would_hide():
    before = draw(5, 0.5)
    ours = before - 0.02 + draw(6, 0.0, spread=0.01)
    (_, high), (low, _) = interval(ours), interval(before)
    assert high > low
    settings = gated(max_regression={"ndcg@5": 0.0}, confidence=0.95)
    assert refused(settings, {"ndcg@5": ours}, {"ndcg@5": before}) == {"ndcg@5/margin/upper"}


def test_the_same_model_again_passes():
    same = {"ndcg@5": draw(7, 0.5), "popular_share@5": draw(8, 0.5)}
    for confidence in (None, 0.95):
        settings = gated(max_regression={"ndcg@5": 0.0, "popular_share@5": 0.0}, confidence=confidence)
        assert not refused(settings, same, same)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    mean=st.floats(-0.1, 0.6),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    confidence=st.sampled_from([None, 0.5, 0.9, 0.99]),
)
def test_every_decision_is_the_one_of_numpy_on_the_queries(seed, mean, share, confidence):
    lift, recall = draw(seed, mean - 0.2), draw(seed + 1, mean)
    before, popular, popular_before = draw(seed + 2, 0.4), draw(seed + 3, mean + 0.2), draw(seed + 4, 0.4)
    settings = gated(
        beat_popularity=True,
        floors={"recall@5": 0.3},
        max_regression={"recall@5": share, "popular_share@5": share},
        confidence=confidence,
    )
    found = refused(
        settings,
        {"ndcg_lift@5": lift, "recall@5": recall, "popular_share@5": popular},
        {"recall@5": before, "popular_share@5": popular_before},
    )
    margins = recall - (1 - share) * before, (1 + share) * popular_before - popular
    # On the line itself the last digit of a sum decides.
    ends = [end for values in (lift, recall - 0.3, *margins) for end in (values.mean(), *interval(values))]
    assume(min(abs(end) for end in ends) > 1e-9)
    if confidence is None:
        wanted = [
            ("ndcg_lift@5", not lift.mean() > 0),
            ("recall@5", recall.mean() < 0.3),
            *((name, margin.mean() < 0) for name, margin in zip(("recall@5", "popular_share@5"), margins, strict=True)),
        ]
    else:
        wanted = [
            ("ndcg_lift@5/lower", not interval(lift, confidence)[0] > 0),
            ("recall@5/upper", interval(recall, confidence)[1] < 0.3),
            ("recall@5/margin/upper", interval(margins[0], confidence)[1] < 0),
            ("popular_share@5/margin/upper", interval(margins[1], confidence)[1] < 0),
        ]
    assert found == {name for name, fails in wanted if fails}


def test_too_few_queries_decide_nothing_where_confidence_is_asked_for():
    better = {"ndcg_lift@5": draw(1, 0.1, spread=0.01, queries=29)}
    enough = {"ndcg_lift@5": draw(1, 0.1, spread=0.01, queries=30)}
    assert refused(gated(beat_popularity=True, confidence=0.95), better) == {"queries"}
    assert not refused(gated(beat_popularity=True, confidence=0.95), enough)
    assert not refused(gated(beat_popularity=True, confidence=0.95, min_queries=29), better)
    # As before where it is not, and where nothing is to be decided.
    assert not refused(gated(beat_popularity=True), better)
    assert not refused(gated(confidence=0.95), better)


def test_what_has_no_interval_is_judged_by_the_figure():
    # All are shown one of four items.
    ours = {"mrr": draw(1, 0.5)}
    for confidence in (None, 0.95):
        assert refused(gated(floors={"coverage@5": 0.3}, confidence=confidence), ours) == {"coverage@5"}
        assert not refused(gated(floors={"coverage@5": 0.25}, confidence=confidence), ours)
        settings = gated(max_regression={"coverage@5": 0.0}, confidence=confidence)
        assert not refused(settings, ours, ours)


def test_without_confidence_no_threshold_is_on_an_interval():
    settings = Evaluation(k=K, floors={"recall@5": 0.1, "coverage@5": 0.1}, max_regression={"ndcg@5": 0.1})
    for has_baseline in (False, True):
        config = gates.resolved(gates.eval_config(settings, None), has_baseline)
        thresholds = tfma.metrics.metric_thresholds_from_metrics_specs(config.metrics_specs, eval_config=config)
        assert not [key.name for key in thresholds if "/" in key.name]


def test_nothing_is_asked_about_a_baseline_that_there_is_not():
    settings = Evaluation(k=K, max_regression={"ndcg@5": 0.1, "coverage@5": 0.1}, confidence=0.9)
    asked = {}
    for has_baseline in (False, True):
        config = gates.resolved(gates.eval_config(settings, None), has_baseline)
        thresholds = tfma.metrics.metric_thresholds_from_metrics_specs(config.metrics_specs, eval_config=config)
        asked[has_baseline] = {key.name for key in thresholds if key.model_name != tfma.BASELINE_KEY}
    assert asked[False] == {"queries", "ndcg_lift@5/lower"}
    assert asked[True] == {"queries", "ndcg_lift@5/lower", "ndcg@5/margin/upper", "coverage@5"}
