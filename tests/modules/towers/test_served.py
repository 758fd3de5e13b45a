"""The tower that is served beside the one that is fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from tiny_towers import FEATURES, PLAIN, factors, query_inputs, towers

from modules.encodings.features import Features
from modules.encodings.history import FlatHistory
from modules.encodings.history_age import HistoryAge
from modules.encodings.vocabulary import Vocabulary
from modules.settings import Model
from modules.towers.query import BlendWeights
from modules.towers.served import ServedQueryTower

WEIGHTS = BlendWeights(recency=0.7, item_item_recency=0.4, item_item=1.5, lift=0.3, cold_start_lift=0.9)
WITH_AGE = FEATURES.model_copy(update={"query": (*FEATURES.query, HistoryAge())})
WITHOUT_HISTORY = FEATURES.model_copy(update={"query": FEATURES.query[:3]})


def flat(newest_first: np.ndarray) -> FlatHistory:
    """Lists [B, H], padded with 0, as requests bring them: oldest first and without padding."""
    lists = [row[row > 0][::-1] for row in newest_first]
    rows = np.repeat(np.arange(len(lists)), [len(each) for each in lists])
    return FlatHistory.of(tf.constant(rows, tf.int64), tf.constant(np.concatenate(lists), tf.int64), len(lists))


@pytest.mark.parametrize(
    ("model", "features", "weights"),
    [
        (PLAIN, FEATURES, WEIGHTS),
        (PLAIN, WITH_AGE, WEIGHTS),
        (PLAIN, WITH_AGE, replace(WEIGHTS, recency=0.0, item_item_recency=0.0)),
        (Model(dimension=8, normalize=True), WITH_AGE, WEIGHTS),
        (Model(dimension=8, query_layers=(6,), diversity=0.3), WITH_AGE, WEIGHTS),
        (PLAIN, WITHOUT_HISTORY, replace(WEIGHTS, recency=0.0)),
    ],
)
def test_it_is_the_fitted_tower(model: Model, features: Features, weights: BlendWeights):
    tables = factors() if features.history is not None else None
    tower = towers(model, features=features, factors=tables).query_tower
    tower.blend = weights
    inputs = query_inputs() | {"history_age": tf.constant([0.0, 3600.0, 86_400.0, 1e6, 0.0, 1e5])}
    if features.history is not None:
        tower.cold_start.assign(np.random.default_rng(2).normal(size=tower.cold_start.shape))
    expected = tower(inputs).numpy()

    tower.is_exported = True
    served = ServedQueryTower(tower)
    history = None if features.history is None else flat(inputs["history"].numpy())
    found = tf.function(served.__call__)(inputs, history)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_missing_category_adds_nothing():
    features = Features(query=(Vocabulary(column="likes", dimension=4),), candidate=FEATURES.candidate)
    tower = towers(features=features).query_tower
    expected = tower({"likes": tf.constant([0, 5])})
    tower.is_exported = True
    found = ServedQueryTower(tower)({"likes": tf.constant([0, 5])}, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[0, :7], tower.constant)


@pytest.mark.parametrize("batch", [0, 2])
def test_requests_without_any_history_and_no_requests_at_all(batch: int):
    tower = towers(features=WITH_AGE, factors=factors()).query_tower
    tower.blend, tower.is_exported = WEIGHTS, True
    inputs = {key: values[:batch] for key, values in query_inputs().items()} | {"history_age": tf.zeros([batch])}
    nothing = FlatHistory.of(tf.zeros([0], tf.int64), tf.zeros([0], tf.int64), batch)
    found = tf.function(ServedQueryTower(tower).__call__)(inputs, nothing)
    expected = tower(inputs | {"history": tf.zeros([batch, 5], tf.int32)})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_older_than_the_tower_reads_counts_nothing():
    tower = towers(factors=factors()).query_tower
    tower.blend, tower.is_exported = WEIGHTS, True
    inputs = {key: values[:1] for key, values in query_inputs().items()}
    lists = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    found = ServedQueryTower(tower)(inputs, flat(lists))
    expected = tower(inputs | {"history": tf.constant(lists[:, :5], tf.int32)})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(flat(lists).dense(5), lists[:, :5])
    np.testing.assert_array_equal(flat(np.array([[3, 1, 0], [0, 0, 0]])).dense(5), [[3, 1, 0, 0, 0], [0] * 5])
