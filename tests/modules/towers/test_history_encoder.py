"""The transformer over a history: what it may see, and what it computes."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.settings import Model
from modules.towers.history_encoder import HistoryEncoder, Places

WIDTH, ITEMS, PLACES = 5, 9, 6
MODEL = Model(encoder_blocks=2, encoder_width=8, encoder_heads=2, encoder_dropout=0.4)


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).normal(size=(ITEMS + 1, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder():
    built = HistoryEncoder(WIDTH, MODEL, PLACES, seed=3)
    rng = np.random.default_rng(1)
    for variable in built.trainable_variables:
        variable.assign_add(rng.normal(0, 0.3, variable.shape).astype(np.float32))
    return built


def expected(encoder, history, table):
    """One history without padding, [S] newest first, place by place in numpy."""
    weights = {variable.name.removesuffix(":0"): variable.numpy().astype(np.float64) for variable in encoder.variables}

    def normalized(x, scale, shift):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + shift

    x = table[history] @ weights["history_encoder_into"] * math.sqrt(8)
    for n in range(2):
        of = {key.removeprefix(f"block_{n}_"): value for key, value in weights.items()}
        read = normalized(x, of["constant_scale"], of["constant_shift"]) @ of["projection"]
        query, key, value = (read[:, i * 8 : (i + 1) * 8].reshape(-1, 2, 4) for i in range(3))
        added = np.zeros_like(x)
        for at in range(len(history)):
            for head in range(2):
                logits = [
                    query[at, head] @ key[old, head] / 2.0 + of["constant_distance"][head, old - at]
                    for old in range(at, len(history))
                ]
                attention = np.exp(logits) / np.exp(logits).sum()
                added[at, head * 4 : head * 4 + 4] = attention @ value[at:, head]
        x = x + added @ of["together"]
        hidden = (
            normalized(x, of["constant_wide_scale"], of["constant_wide_shift"]) @ of["widen"] + of["constant_widen"]
        )
        gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + gelu @ of["narrow"] + of["constant_narrow"]
    last = normalized(x, weights["history_encoder_constant_scale"], weights["history_encoder_constant_shift"])
    return last[0] @ weights["history_encoder_out"]


@pytest.mark.parametrize("length", [1, 2, 4, PLACES])
def test_a_vector_is_that_of_attention_over_the_history(encoder, table, length):
    history = np.random.default_rng(length).integers(1, ITEMS + 1, length)
    padded = np.pad(history, (0, PLACES - length))[np.newaxis]
    vectors = encoder(tf.constant(padded, tf.int32), tf.constant(table)).numpy()
    np.testing.assert_allclose(vectors[0], expected(encoder, history, table), rtol=2e-4, atol=2e-4)


histories = st.lists(st.lists(st.integers(1, ITEMS), min_size=1, max_size=PLACES), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(rows=histories)
def test_all_places_at_once_are_each_history_on_its_own(encoder, table, rows):
    padded = np.array([row + [0] * (PLACES - len(row)) for row in rows], np.int32)
    row, place = np.nonzero(padded)
    at_once = encoder.at_places(
        Places(tf.constant(padded), tf.constant(row, tf.int32), tf.constant(place, tf.int32)), tf.constant(table)
    )
    alone = np.zeros((len(row), PLACES), np.int32)
    for n, (r, p) in enumerate(zip(row, place, strict=True)):
        alone[n, : PLACES - p] = padded[r, p:]
    np.testing.assert_allclose(at_once, encoder(tf.constant(alone), tf.constant(table)), rtol=1e-4, atol=1e-4)


def test_an_empty_history_is_zero_and_the_order_counts(encoder, table):
    history = tf.constant([[0] * PLACES, [1, 2, 3, 0, 0, 0], [1, 3, 2, 0, 0, 0]], tf.int32)
    empty, one, other = encoder(history, tf.constant(table)).numpy()
    np.testing.assert_array_equal(empty, np.zeros(WIDTH))
    assert np.abs(one - other).max() > 1e-2


def test_dropout_is_drawn_by_the_seed(encoder, table):
    places = Places(tf.constant([[1, 2, 3, 4, 0, 0]]), tf.constant([0, 0]), tf.constant([0, 2]))
    draws = [
        encoder.at_places(places, tf.constant(table), tf.constant(seed)).numpy() for seed in ([1, 2], [1, 2], [1, 3])
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 1e-2


def test_a_gradient_reaches_every_weight_and_the_items_of_the_history(encoder, table):
    items = tf.Variable(table)
    places = Places(tf.constant([[1, 2, 3, 0, 0, 0]]), tf.constant([0, 0]), tf.constant([0, 1]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder.at_places(places, items) ** 3)
    gradients = tape.gradient(loss, [*encoder.trainable_variables, items])
    assert all(gradient is not None for gradient in gradients)
    touched = tf.convert_to_tensor(gradients[-1]).numpy().any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(touched), [1, 2, 3])
