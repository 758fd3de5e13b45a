"""That a query never sees its target."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_towers import windows

from modules.towers.masking import closeness, many_hot, mask_items, mask_next, some_places

SEED = tf.constant([1, 2])


@pytest.mark.parametrize("mask", [mask_items, mask_next])
def test_nothing_sees_its_target(mask):
    # Under next_item the newest item was interacted with before, too; a set has each item once.
    second = 3 if mask is mask_next else 4
    window = tf.constant([[3, 5, second, 7, 8, 0, 0]] * 400)
    hidden, visible = (t.numpy() for t in mask(window, 0.4, SEED))
    for own, hid, vis in zip(window.numpy(), hidden, visible, strict=True):
        assert hid.any() and not hid[own == 0].any()
        assert set(vis) - {0} <= set(own[~hid])
        assert not (set(own[hid]) & set(vis)), "a target is visible"
    if mask is mask_next:
        np.testing.assert_array_equal(hidden, np.tile([True] + [False] * 6, (400, 1)))
    else:
        np.testing.assert_allclose(hidden[:, 1:5].mean(axis=0), 0.4, atol=0.08)
    np.testing.assert_allclose((visible[:, 3] > 0).mean(), 0.6, atol=0.08)


def test_places_that_are_asked_for_are_all_that_can_be_or_a_random_part_of_them():
    rng = np.random.default_rng(0)
    window = rng.integers(1, 9, (200, 7)) * (np.arange(7) < rng.integers(0, 8, 200)[:, np.newaxis])
    can_be = (rng.random(window.shape) < 0.8) & (window > 0)
    possible = np.array(
        [[ok[n] and n + 1 < len(own) and own[n + 1] > 0 and own[n] not in own[n + 1 :] for n in range(7)]
         for own, ok in zip(window, can_be, strict=True)]
    )  # fmt: skip
    assert possible.sum() > 200
    asked = some_places(tf.constant(window, tf.int32), tf.constant(can_be), 7, SEED).numpy()
    np.testing.assert_array_equal(asked, possible)
    some = some_places(tf.constant(window, tf.int32), tf.constant(can_be), 2, SEED).numpy()
    assert not (some & ~possible).any()
    np.testing.assert_array_equal(some.sum(axis=1), np.minimum(possible.sum(axis=1), 2))
    other = some_places(tf.constant(window, tf.int32), tf.constant(can_be), 2, SEED + 1).numpy()
    assert (some != other).any()


def test_where_repeats_are_answers_a_query_sees_the_earlier_times_of_its_target():
    window = tf.constant([[3, 5, 3, 7, 3, 0]])
    hidden, visible = mask_next(window, 0.0, SEED, repeats=True)
    np.testing.assert_array_equal(hidden, [[True] + [False] * 5])
    np.testing.assert_array_equal(visible, [[0, 5, 3, 7, 3, 0]])
    asked = some_places(window, window > 0, 6, SEED, repeats=True)
    # All but the oldest, which has nothing before it.
    np.testing.assert_array_equal(asked, [[True] * 4 + [False] * 2])


def test_where_nothing_would_be_hidden_the_newest_is():
    hidden, visible = mask_items(tf.constant([[3, 5, 0]]), 0.0, SEED)
    np.testing.assert_array_equal(hidden, [[True, False, False]])
    np.testing.assert_array_equal(visible, [[0, 5, 0]])


@pytest.mark.parametrize("mask", [mask_items, mask_next])
def test_rows_do_not_touch_each_other(mask):
    window = tf.constant(windows())
    together = mask(window, 0.0, SEED)
    for row in range(6):
        for whole, one in zip(together, mask(window[row : row + 1], 0.0, SEED), strict=True):
            np.testing.assert_array_equal(whole[row : row + 1], one)


def test_closeness_falls_with_the_distance_from_a_place_of_the_window():
    window = tf.constant([[3, 5, 7, 8, 0, 0]] * 600)
    weights = closeness(window, 0.5, SEED).numpy()
    centres = weights.argmax(axis=1)
    np.testing.assert_allclose(np.bincount(centres, minlength=6) / 600, [0.25] * 4 + [0, 0], atol=0.06)
    distance = np.abs(np.arange(6) - centres[:, np.newaxis])
    np.testing.assert_allclose(weights, (1.0 + distance) ** -0.5, rtol=1e-5)
    np.testing.assert_array_equal(closeness(window, 0.0, SEED), 1.0)


def test_many_hot_sums_the_weights_of_an_id_and_drops_others():
    ids, weights = tf.constant([[1, 3, 1], [0, 9, 2]]), tf.constant([[0.5, 1.0, 2.0], [7.0, 7.0, 3.0]])
    np.testing.assert_array_equal(many_hot(ids, weights, 3), [[2.5, 0.0, 1.0], [0.0, 3.0, 0.0]])
