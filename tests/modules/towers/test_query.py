"""The query tower against numpy."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from tiny_towers import FEATURES, PLAIN, factors, query_inputs, towers

from modules.encodings.history_age import HistoryAge
from modules.settings import Model
from modules.towers.query import BlendWeights

WEIGHTS = BlendWeights(recency=0.7, item_item_recency=0.4, item_item=1.5, lift=0.3, cold_start_lift=0.9)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("recency", [0.0, 0.7])
def test_a_query_vector_is_the_sum_of_its_terms(dense, recency):
    tables = factors()
    model = towers(factors=tables)
    tower = model.query_tower
    tower.dense_history = dense
    tower.blend = replace(WEIGHTS, recency=recency)
    tower.cold_start.assign(np.random.default_rng(2).normal(size=tower.cold_start.shape))
    inputs = query_inputs()
    by_name = {v.name.rsplit("query_tower/", 1)[-1]: v.numpy() for v in tower.variables}
    (ids,) = (value for name, value in by_name.items() if name in ("item_ids/embeddings:0", "embeddings:0"))
    for row, vector in enumerate(model.query_vectors(inputs).numpy()):
        expected = tower.constant.numpy().copy()
        expected += inputs["age"][row].numpy() * by_name["terms/projection_0/kernel:0"][0]
        likes = [i for i in inputs["likes"].numpy()[row] if i]
        if likes:
            expected += (
                by_name["terms/embedding_1/embeddings:0"][likes].mean(axis=0) @ by_name["terms/projection_1/kernel:0"]
            )
        bucket = inputs["time_bucket"].numpy()[row]
        time = by_name["terms/embedding_2/embeddings:0"][bucket] * (bucket > 0)
        expected += np.append(time, inputs["time_cyclic"].numpy()[row]) @ by_name["terms/projection_2/kernel:0"]
        history = [i for i in inputs["history"].numpy()[row] if i]
        weights = (1.0 + np.arange(len(history))) ** -recency
        if history:
            expected += tower.history_scale.numpy() * (weights / weights.sum()) @ ids[history]
        else:
            expected += tower.cold_start.numpy()
        weights = (1.0 + np.arange(len(history))) ** -0.4
        item_item = 1.5 * weights @ tables.history[history] if history else np.zeros(3)
        expected = np.concatenate([expected, [1.0], item_item, [0.3 if history else 0.9]])
        np.testing.assert_allclose(vector, expected, rtol=2e-4, atol=1e-4)


def test_who_comes_back_gets_the_lift_and_who_is_in_session_the_newest_items():
    day = 86_400.0
    model = towers(features=FEATURES.model_copy(update={"query": (*FEATURES.query, HistoryAge())}), factors=factors())
    tower = model.query_tower
    assert tower.blend.lift == 2.0
    weights = replace(WEIGHTS, recency=1.0, lift=3.0)
    inputs = query_inputs()
    empty = ~np.any(inputs["history"].numpy() > 0, axis=1)
    assert empty.sum() == 1

    def vectors(age, recency=1.0):
        tower.blend = replace(weights, recency=recency)
        return model.query_vectors(inputs | {"history_age": tf.fill([6], np.float32(age))}).numpy()

    for age, recency, lift in ((0.0, 1.0, 0.0), (day / 3, 0.75, 0.75), (day, 0.5, 1.5), (1e12, 0.0, 3.0)):
        found, expected = vectors(age), vectors(0.0, recency)
        np.testing.assert_allclose(found[:, :-1], expected[:, :-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[:, -1], np.where(empty, 0.9, lift), rtol=1e-4, atol=1e-5)
    # The age is never learned from.
    assert not any("projection_3" in v.name for v in tower.variables)


@pytest.mark.parametrize("gap", [3600.0, 86_400.0])
def test_after_the_inactivity_gap_somebody_counts_half(gap):
    features = FEATURES.model_copy(update={"query": (*FEATURES.query, HistoryAge())})
    tower = towers(PLAIN.model_copy(update={"inactivity_gap": gap}), features=features).query_tower
    ages = tf.constant([0.0, gap, 3 * gap])
    np.testing.assert_allclose(tower.inactivity({"history_age": ages})[:, 0], [0.0, 0.5, 0.75], rtol=1e-6)


def test_the_blend_is_what_was_set():
    tower = towers(factors=factors()).query_tower
    tower.blend = WEIGHTS
    assert tower.blend == WEIGHTS


@pytest.mark.parametrize(
    ("has_lift", "rank", "expected"),
    [
        (True, 3, {"lift", "cold_start_lift", "recency", "item_item_recency", "item_item"}),
        (False, 3, {"recency", "item_item_recency", "item_item"}),
        (True, 0, {"lift", "cold_start_lift", "recency"}),
    ],
)
def test_weights_without_an_effect_are_not_in_use(has_lift, rank, expected):
    model = Model(dimension=8, popularity_lift=has_lift)
    tower = towers(model, factors=factors(rank) if rank else None).query_tower
    assert set(tower.weights_in_use) == expected


@pytest.mark.parametrize(("has_lift", "weight"), [(True, 0.75), (False, 0.0)])
def test_where_no_validation_says_otherwise_a_cold_start_query_gets_what_is_popular_now(has_lift, weight):
    model = towers(Model(dimension=8, popularity_lift=has_lift))
    inputs = {**query_inputs(rows=2), "history": tf.constant([[0] * 5, [1] * 5], tf.int32)}
    np.testing.assert_array_equal(model.query_vectors(inputs)[:, -1], np.array([weight, 0.0], np.float32))


def test_missing_values_add_nothing():
    model = towers()
    inputs = {key: tf.zeros_like(value) for key, value in query_inputs(rows=1).items()}
    np.testing.assert_allclose(model.query_vectors(inputs)[0, :-2], model.query_tower.constant, atol=1e-6)


def test_query_feature_dropout_hides_a_feature_of_a_row_whole():
    tower = towers().query_tower
    age_only = {k: tf.zeros_like(v) if k != "age" else tf.ones_like(v) for k, v in query_inputs(rows=300).items()}
    base = tower.constant.numpy()
    vectors = tower.learned(age_only, 0.0, 0.5, tf.constant([5, 6])).numpy()[:, :-1] - base
    whole = tower.learned(age_only, 0.0).numpy()[0, :-1] - base
    kept = np.isclose(vectors, whole, atol=1e-5).all(axis=1)
    assert (kept | np.isclose(vectors, 0, atol=1e-5).all(axis=1)).all()
    assert 0.4 < kept.mean() < 0.6
