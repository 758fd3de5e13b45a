"""The candidate tower, and what a cold-start item gets."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_towers import ITEMS, PLAIN, catalogue, factors, frequency, query_inputs, towers

ALL = tf.range(1, ITEMS + 1)


def test_bias_item_item_factors_and_lift_are_inside_the_candidate_vector():
    tables = factors()
    model = towers(factors=tables)
    model.candidate_tower.lift.assign(np.arange(ITEMS + 1) / 10.0)
    vectors, layout = model.candidate_vectors(ALL).numpy(), model.layout
    np.testing.assert_allclose(layout.learned.of(vectors)[:, -1], model.candidate_tower.bias.numpy()[1:])
    np.testing.assert_allclose(layout.item_item.of(vectors), tables.items[1:])
    np.testing.assert_allclose(layout.lift.of(vectors)[:, 0], np.arange(1, ITEMS + 1) / 10.0, rtol=1e-6)


def test_diversity_takes_the_popularity_off_the_scores():
    scores = [
        tf.matmul(model.query_vectors(query_inputs()), model.candidate_vectors(ALL), transpose_b=True)
        for model in (towers(PLAIN), towers(PLAIN.model_copy(update={"diversity": 0.5})))
    ]
    counts = frequency()[1:]
    discount = 0.5 * np.log((counts + 1) / np.mean(counts + 1))
    np.testing.assert_allclose(scores[0] - scores[1], np.tile(discount, (6, 1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_offset_moves_the_scores_of_new_items_and_of_no_others(normalize):
    model = towers(PLAIN.model_copy(update={"diversity": 0.5, "normalize": normalize}), factors=factors())
    tower = model.candidate_tower
    tower.fit_content(catalogue(), np.arange(ITEMS + 1) != 4, seed=0)
    new = {"item": tf.constant([ITEMS + 1]), "title": tf.constant([[1, 2, 0]])}
    before = [model.candidate_vectors(ALL).numpy(), model.new_item_vectors(new).numpy()]
    queries = model.query_vectors(query_inputs()).numpy()
    tower.new_item_offset.assign(1.5)
    after = [model.candidate_vectors(ALL).numpy(), model.new_item_vectors(new).numpy()]
    np.testing.assert_array_equal(after[0], before[0])
    if normalize:
        np.testing.assert_array_equal(after[1], before[1])
    else:
        np.testing.assert_allclose(queries @ (after[1] - before[1]).T, np.full([6, 1], 1.5), atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_cold_start_item_has_the_vector_that_its_content_says(normalize):
    model = towers(PLAIN.model_copy(update={"diversity": 0.5, "normalize": normalize}), factors=factors())
    tower, layout = model.candidate_tower, model.layout
    tower.lift.assign(np.arange(ITEMS + 1) / 10.0)
    known = model.candidate_vectors(ALL).numpy()
    # Items with the same title are alike; item 4 is no candidate.
    titles = np.array([[1, 2, 0], [3, 0, 0]])[np.arange(ITEMS + 1) % 2]
    tower.fit_content({**catalogue(), "title": titles}, np.arange(ITEMS + 1) != 4, seed=0)
    new = {
        "item": tf.fill([2], ITEMS + 1),
        "title": tf.constant([[1, 2, 0], [3, 0, 0]]),
        "label": tf.zeros([2], tf.int32),
    }
    vectors = tower(new).numpy()
    np.testing.assert_array_equal(model.candidate_vectors(ALL), known)
    # Between the mean of its kind and the mean of all, without a lift.
    kinds = [np.setdiff1d(np.arange(2, ITEMS + 1, 2), 4) - 1, np.arange(1, ITEMS + 1, 2) - 1]
    everything = np.setdiff1d(np.arange(ITEMS), 3)
    for vector, kind in zip(vectors, kinds, strict=True):
        ours, all_ = known[kind].mean(axis=0), known[everything].mean(axis=0)
        counted = np.r_[slice(*layout.item_item), slice(*layout.discount)]
        share = (vector - all_)[counted] / (ours - all_)[counted]
        assert np.all((share > 0.2) & (share < 1.0)) and np.ptp(share) < 2e-3
        assert vector[layout.lift.start] == pytest.approx(0.0, abs=1e-5)
        if normalize:
            assert np.linalg.norm(vector[: layout.learned.stop]) == pytest.approx(1.0, rel=1e-5)
