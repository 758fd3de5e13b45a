"""What validation chooses, and how the queries are ranked."""

from dataclasses import replace

import checkerboard
import numpy as np
import pytest
import tensorflow as tf
from checkerboard import ITEMS

from modules import item_item
from modules.item_item import Factors
from modules.towers.query import BlendWeights
from modules.towers.two_tower import TwoTower
from modules.training import calibration
from modules.training.calibration import (
    CHOICES,
    WORTH,
    Ascent,
    Blend,
    Measured,
    Ranker,
    choose_item_item,
    choose_window,
    coordinate_ascent,
    new_item_log_odds,
    new_item_offset,
    surely_better,
)
from modules.training.transformed import Lists

NAMES = tuple(CHOICES)


def built(spec, frequency=None, rank=0, seed=5):
    """Towers with random weights."""
    rng = np.random.default_rng(seed)
    rows = len(spec.catalogue.is_candidate)
    factors = None
    if rank:
        tables = [rng.normal(size=(n, rank)).astype(np.float32) for n in (spec.item_rows, rows)]
        factors = Factors(*tables)
    model = TwoTower(
        spec.features, spec.columns, spec.model, spec.training, spec.cardinalities, spec.item_rows,
        spec.catalogue.features, spec.catalogue.is_candidate,
        np.ones(rows, np.float32) if frequency is None else frequency, factors,
    )  # fmt: skip
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def query_vectors(model, queries):
    return model.query_vectors({key: tf.constant(values) for key, values in queries.features.items()}).numpy()


def test_ranking_metrics_against_plain_python():
    spec = checkerboard.specification(checkerboard.HISTORY_ONLY)
    queries = checkerboard.queries(spec, checkerboard.sequences(spec.features))
    model, labels = built(spec), spec.catalogue.labels
    candidates = model.candidate_vectors(tf.constant(labels, tf.int32)).numpy()
    vectors = query_vectors(model, queries)
    measured = Ranker(queries, labels, 5).rank(vectors, candidates)
    expected = []
    for vector, relevant, seen in zip(vectors, queries.relevant, queries.seen, strict=True):
        scores = {int(i): float(c @ vector) for i, c in zip(labels, candidates, strict=True) if i not in seen}
        top = sorted(scores, key=lambda i: -scores[i])[:5]
        gains = [1 / np.log2(2 + rank) for rank, item in enumerate(top) if item in relevant]
        expected.append((sum(gains), len(gains)))
    np.testing.assert_allclose(np.stack(measured, axis=1), expected, rtol=1e-5)


@pytest.mark.parametrize("kept", [2**29, 0])
@pytest.mark.parametrize(
    ("features", "rank", "changes"),
    [
        (checkerboard.FEATURES, 7, {}),
        (checkerboard.FEATURES, 7, {"diversity": 0.5}),
        (checkerboard.FEATURES, 0, {"normalize": True}),
        (checkerboard.HISTORY_ONLY, 5, {"popularity_lift": False}),
    ],
)
def test_sums_of_parts_score_as_whole_vectors_do(features, rank, changes, kept, monkeypatch):
    monkeypatch.setattr(calibration, "_KEPT", kept)
    monkeypatch.setattr(calibration, "_QUERY_BATCH", 7)
    rng = np.random.default_rng(5)
    spec = checkerboard.specification(features, checkerboard.MODEL.model_copy(update=changes))
    queries = checkerboard.queries(spec, checkerboard.sequences(features))
    # Somebody comes without a history.
    queries.features["history"][3] = 0
    # Nobody has interacted with some items yet.
    frequency = (np.arange(ITEMS + 2) % 4 > 0).astype(np.float32)
    model = built(spec, frequency, rank)
    ranker, labels = Ranker(queries, spec.catalogue.labels, 10), tf.constant(spec.catalogue.labels, tf.int32)
    tower, results = model.query_tower, set()
    blend = None
    for step in range(4):
        if step >= 2:
            for variable in model.trainable_variables:
                variable.assign(rng.normal(size=variable.shape))
        if step == 3:
            # These items get their item-item part from their content.
            model.candidate_tower.fit_content(spec.catalogue.features, spec.catalogue.is_candidate, 1)
        model.candidate_tower.lift.assign(rng.normal(size=ITEMS + 2))
        candidates = model.candidate_vectors(labels).numpy()
        if step == 1:
            blend = blend.with_lift(model.layout.lift.of(candidates))
        else:
            blend = Blend.of(ranker, tower, candidates, blend.item_item if blend else None)
        for _ in range(4):
            weights = BlendWeights(**{name: float(rng.choice([0.0, 0.5, 2.0])) for name in tower.weights_in_use})
            tower.blend = weights
            expected = ranker.rank(query_vectors(model, queries), candidates)
            np.testing.assert_allclose(blend.measure(weights), expected, atol=1e-9)
            results.add(float(expected.ndcg.mean()))
    assert len(results) > 5, "the weights and the lift make no difference here"


def test_where_nobody_asks_without_a_history_the_cold_start_weight_is_not_searched():
    spec = checkerboard.specification()
    queries = checkerboard.queries(spec, checkerboard.sequences())
    model, ranker = built(spec), Ranker(queries, spec.catalogue.labels, 10)
    candidates = model.candidate_vectors(tf.constant(spec.catalogue.labels, tf.int32)).numpy()
    assert "cold_start_lift" not in Blend.of(ranker, model.query_tower, candidates).weights_in_use
    queries.features["history"][3] = 0
    assert "cold_start_lift" in Blend.of(ranker, model.query_tower, candidates).weights_in_use


def measuring(best: BlendWeights, slope: float = 0.1, metric: str = "ndcg"):
    """A measure of which one metric falls with the distance from some weights; remembers what it was asked."""
    asked = []

    def measure(weights):
        asked.append(weights)
        away = sum(abs(getattr(weights, name) - getattr(best, name)) for name in NAMES)
        return Measured(np.zeros(50), np.zeros(50))._replace(**{metric: np.full(50, 1.0 - slope * away)})

    return measure, asked


@pytest.mark.parametrize("metric", ["ndcg", "recall"])
def test_coordinate_ascent_finds_the_top_of_a_hill_and_asks_nothing_twice(metric):
    best = BlendWeights(recency=1.0, item_item_recency=0.4, item_item=2.0, lift=0.75, cold_start_lift=1.0)
    measure, asked = measuring(best, 0.05, metric)
    ascent = coordinate_ascent(measure, metric, BlendWeights(), NAMES, rounds=5)
    assert ascent.weights == best and ascent.measured.of(metric).mean() == 1.0
    assert len(asked) == len(set(asked))


def test_a_step_that_gains_too_little_is_not_taken():
    best = BlendWeights(recency=0.25)
    start = BlendWeights()
    measure, _ = measuring(best, slope=WORTH / 0.25 * 0.9)
    assert coordinate_ascent(measure, "ndcg", start, ("recency",), 3).weights == start
    measure, _ = measuring(best, slope=WORTH / 0.25 * 1.1)
    assert coordinate_ascent(measure, "ndcg", start, ("recency",), 3).weights == best


def test_weights_that_are_not_named_stay():
    measure, _ = measuring(BlendWeights(recency=1.0, lift=1.0), slope=0.1)
    ascent = coordinate_ascent(measure, "ndcg", BlendWeights(lift=3.0), ("recency",), 3)
    assert ascent.weights == BlendWeights(recency=1.0, lift=3.0)


def test_another_window_must_be_better_beyond_chance():
    rng = np.random.default_rng(0)
    here, there = rng.uniform(0, 1, 200), rng.uniform(0, 1, 200)
    better = here + 0.02 + rng.normal(0, 0.05, 200)
    assert not surely_better(there - there.mean() + here.mean() + 0.02, here)
    assert surely_better(better, here)
    assert not surely_better(here, here)
    assert not surely_better(np.array([1.0]), np.array([0.0])), "one query says nothing"

    def ascents(**values):
        """NDCG like this; recall is the same under every window."""
        return {float(w[1:]) / 100: Ascent(BlendWeights(), Measured(ndcg, here)) for w, ndcg in values.items()}

    assert choose_window(ascents(w20=here, w10=here, w5=there - there.mean() + here.mean()), "ndcg") == 0.2
    assert choose_window(ascents(w20=here, w10=better, w5=here), "ndcg") == 0.1
    assert choose_window(ascents(w20=here, w10=better, w5=here), "recall") == 0.2


@pytest.mark.parametrize("metric", ["ndcg", "recall"])
def test_the_ridge_is_the_one_whose_scores_are_best(metric):
    spec = checkerboard.specification(checkerboard.HISTORY_ONLY)
    sequences = checkerboard.sequences(spec.features)
    train = sequences.take(~sequences.is_validation)
    moments = item_item.moments(train.offsets, train.items, ITEMS, 0.85)
    sets = Lists(train.items, train.counts)
    ranker = Ranker(checkerboard.queries(spec, sequences), spec.catalogue.labels, 10)
    ridges = (1e-3, 10.0, 1e9)
    changes = {"model.item_item_ridges": ridges, "model.item_item_rank": 16, "training.metric": metric}
    spec = spec.with_settings(changes | {"model.item_item_decay": 0.85})
    chosen = choose_item_item(spec, sets, ranker, None)
    history = ranker.queries.features["history"]
    values = {}
    for ridge in ridges:
        factors = item_item.factors(moments, item_item.solve(moments, ridge), 16).covering(ITEMS + 3, ITEMS + 2)
        for recency in CHOICES["item_item_recency"]:
            vectors = item_item.query_factors(history, recency, factors.history)
            values[ridge, recency] = ranker.rank(vectors, factors.items[ranker.labels]).of(metric).mean()
    assert (chosen.ridge, chosen.recency) == max(values, key=values.get)
    alone = choose_item_item(spec, sets, None, 10.0)
    assert alone.ridge == 10.0 and alone.recency is None


def test_where_the_closed_form_does_not_cover_all_items_the_spectral_model_is_tried_too():
    spec = checkerboard.specification(checkerboard.HISTORY_ONLY)
    sequences = checkerboard.sequences(spec.features)
    train = sequences.take(~sequences.is_validation)
    sets = Lists(train.items, train.counts)
    ranker = Ranker(checkerboard.queries(spec, sequences), spec.catalogue.labels, 10)
    spec = spec.with_settings({"model.item_item_rank": 4, "model.item_item_items": 5})
    chosen = choose_item_item(spec, sets, ranker, None)
    # Of each taste the closed form knows one item or two.
    assert chosen.ridge is None and chosen.recency is not None
    expected = item_item.spectral_factors(train.offsets, train.items, ITEMS + 1, 4).covering(ITEMS + 3, ITEMS + 2)
    np.testing.assert_array_equal(chosen.factors.history, expected.history)
    np.testing.assert_array_equal(chosen.factors.items, expected.items)
    # A refit takes the same, without asking.
    again = choose_item_item(spec, sets, None, None)
    assert again.ridge is None and again.recency is None
    np.testing.assert_array_equal(again.factors.items, expected.items)
    everything = choose_item_item(spec.with_settings({"model.item_item_items": 5_000}), sets, ranker, None)
    assert everything.ridge is not None


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_under_the_offset_new_items_have_the_share_that_was_observed(temperature):
    rng = np.random.default_rng(2)
    spec = checkerboard.specification(checkerboard.HISTORY_ONLY)
    queries = checkerboard.queries(spec, checkerboard.sequences(spec.features))
    labels = spec.catalogue.labels
    vectors, candidates, others = (rng.normal(size=(n, 6)) for n in (len(queries), len(labels), 3))
    is_new = labels % 4 == 0
    asked, of_each = np.count_nonzero(queries.relevant, axis=1), 2.5
    log_odds = new_item_log_odds(Ranker(queries, labels, 10), vectors, candidates, is_new, others, of_each, temperature)

    def share(offset):
        """Expected interactions with new items by a plain softmax, in which an item may be there 2.5 times."""
        total = 0.0
        for vector, seen, count in zip(vectors, queries.seen, asked, strict=True):
            scores = np.r_[candidates @ vector, others @ vector] / temperature
            weights = np.exp(scores + offset * np.r_[is_new, True, True, True])
            weights[len(labels) :] *= of_each
            weights[: len(labels)][np.isin(labels, seen)] = 0
            total += count * weights[np.r_[is_new, True, True, True]].sum() / weights.sum()
        return total

    for new in (0, 7, len(queries) // 2, asked.sum()):
        offset = new_item_offset(log_odds, asked, new)
        assert share(offset) == pytest.approx(new - offset, abs=0.01), "a normal prior pulls it to 0"
        # Beside many observations the prior counts nothing.
        if 0 < new < asked.sum():
            assert share(new_item_offset(log_odds, 1000 * asked, 1000 * new)) == pytest.approx(new, abs=0.02)


def test_where_little_is_observed_or_nothing_can_be_the_offset_stays_near_0():
    log_odds, asked = np.full(200, -9.0), np.ones(200)
    assert -0.05 < new_item_offset(log_odds, asked, 0) < 0, "0.02 interactions were expected, none is no surprise"
    assert 0.5 < new_item_offset(log_odds, asked, 1) < 1, "one may be chance"
    assert new_item_offset(log_odds, asked, 20) == pytest.approx(np.log(1 / 9) + 9, abs=0.5), "twenty are not"
    assert new_item_offset(np.full(200, -np.inf), asked, 0) == 0.0


def test_frozen_weights_are_moved_by_copies():
    weights = BlendWeights()
    assert replace(weights, lift=1.0) != weights == BlendWeights()
