"""The windows that are cut from sequences."""

import checkerboard
import numpy as np
import pytest
import tensorflow as tf
from checkerboard import random_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.settings import Model, Training
from modules.training.windows import SequenceTensors, Windows

SPEC = checkerboard.specification()


def cut(sequences, features, model, training, weights, places, seed, is_target=None, repeats=False):
    """The batches of an epoch, in numpy."""
    windows = Windows(features, model, training, repeats)
    tensors = SequenceTensors.of(sequences, features, weights, is_target)
    return [tf.nest.map_structure(np.array, windows.cut(tensors, *step)) for step in windows.steps(places, seed)]


@settings(deadline=None, derandomize=True, max_examples=12)
@given(st.integers(0, 10_000))
def test_a_window_holds_what_came_before_its_place_and_nothing_else(seed):
    sequences = random_sequences(seed)
    model, training = Model(mask_rate=0.0), Training(objective="next_item", batch_size=4)
    places = np.random.default_rng(seed).permutation(len(sequences.items))
    batches = cut(sequences, SPEC.features, model, training, sequences.weights, places, seed=3)
    window = np.concatenate([b.window for b in batches])
    visible = np.concatenate([b.query["history"] for b in batches])
    ages = np.concatenate([b.query["history_age"] for b in batches])
    for row, place in enumerate(places):
        user = sequences.owner[place]
        before = sequences.items[sequences.offsets[user] : place + 1][::-1][:7]
        np.testing.assert_array_equal(window[row], np.pad(before, (0, 7 - len(before))))
        # The target is nowhere in what the query sees, whenever it was interacted with.
        np.testing.assert_array_equal(visible[row], np.where(window[row] == before[0], 0, window[row]))
        first = place == sequences.offsets[user]
        assert ages[row] == (0 if first else sequences.times[place] - sequences.times[place - 1])
    np.testing.assert_array_equal(np.concatenate([b.weight for b in batches]), sequences.weights[places])
    np.testing.assert_array_equal(
        np.concatenate([b.query["user"] for b in batches]), sequences.features["user"][sequences.owner[places]]
    )
    np.testing.assert_array_equal(
        np.concatenate([b.query["time_cyclic"] for b in batches]), sequences.context["time_cyclic"][places]
    )
    assert all(b.targets[:, 0].all() and not b.targets[:, 1:].any() for b in batches)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(st.integers(0, 10_000))
def test_each_place_of_a_sequence_is_asked_for_with_what_came_before_it(seed):
    sequences = random_sequences(seed)
    rng = np.random.default_rng(seed)
    is_target = rng.random(len(sequences.items)) < 0.8
    model, training = Model(history_encoder="transformer"), Training(batch_size=3)
    weights = rng.uniform(1, 2, len(sequences.items)).astype(np.float32)
    ends = sequences.offsets[1:] - 1
    batches = cut(sequences, SPEC.features, model, training, weights, ends, 3, is_target)
    row = 0
    for start, batch in zip(range(0, len(ends), 3), batches, strict=True):
        row = 0
        for number, end in enumerate(ends[start : start + 3]):
            user = sequences.owner[end]
            own = sequences.items[max(sequences.offsets[user], end - 6) : end + 1][::-1]
            asked = [n for n in range(len(own) - 1) if is_target[end - n] and own[n] not in own[n + 1 :]]
            for n in asked:
                place = end - n
                # Batches are as wide as their longest row.
                known = np.zeros(batch.window.shape[1], np.int32)
                known[n + 1 : len(own)] = own[n + 1 :]
                np.testing.assert_array_equal(batch.query["history"][row], known)
                np.testing.assert_array_equal(np.flatnonzero(batch.targets[row]), [n])
                assert batch.window[row, n] == own[n] and not batch.window[row, :n].any()
                assert batch.places.row[row] == number and batch.places.place[row] == n
                # The encoder's sequence begins at the item before the newest.
                np.testing.assert_array_equal(batch.places.history[number][n : len(own) - 1], own[n + 1 :])
                assert batch.query["user"][row] == sequences.features["user"][user]
                np.testing.assert_array_equal(batch.query["time_cyclic"][row], sequences.context["time_cyclic"][place])
                assert batch.query["history_age"][row] == sequences.times[place] - sequences.times[place - 1]
                np.testing.assert_allclose(batch.weight[row], weights[place] / len(asked), rtol=1e-6)
                row += 1
        assert row == len(batch.targets)


@pytest.mark.parametrize("objective", ["next_item", "masked_items", "all places"])
def test_where_repeats_are_answers_what_a_query_sees_is_a_negative_of_its_loss(objective):
    sequences = random_sequences(2)
    model = Model(mask_rate=0.3, history_encoder="transformer" if objective == "all places" else "mean")
    training = Training(batch_size=50, locality=0.0, objective=objective if objective != "all places" else "next_item")
    places = sequences.offsets[1:] - 1
    (batch,) = cut(sequences, SPEC.features, model, training, sequences.weights, places, 3, repeats=True)
    # A loss leaves out what is in the window and no target.
    np.testing.assert_array_equal(batch.window > 0, batch.targets > 0)
    both = [set(seen) & set(asked) - {0} for seen, asked in zip(batch.query["history"], batch.window, strict=True)]
    assert any(both), "nothing is asked for that is seen"


def test_where_nothing_can_be_asked_for_a_row_counts_nothing():
    sequences = random_sequences(1)
    nothing = np.zeros(len(sequences.items), bool)
    model, training = Model(history_encoder="transformer"), Training(batch_size=5)
    ends = sequences.offsets[1:] - 1
    (batch,) = cut(sequences, SPEC.features, model, training, sequences.weights, ends, 3, nothing)
    assert batch.weight.shape == (1,) and batch.weight[0] == 0.0
    assert not batch.query["history"].any() or batch.targets[0, 0] == 1.0


def test_masked_windows_weigh_what_is_hidden_by_its_closeness():
    sequences = checkerboard.sequences()
    training = Training(batch_size=500, locality=0.5)
    ends = np.tile(sequences.offsets[1:] - 1, 8)
    (batch,) = cut(sequences, SPEC.features, Model(mask_rate=0.4), training, sequences.weights, ends, seed=1)
    hidden = batch.targets > 0
    np.testing.assert_array_equal(batch.targets[hidden], batch.closeness[hidden])
    np.testing.assert_array_equal(batch.query["history"], np.where(hidden, 0, batch.window))
    assert hidden.any(axis=1).all() and abs(hidden.mean() - 0.4) < 0.05


def test_an_epoch_is_cut_the_same_way_again():
    sequences = checkerboard.sequences()
    ends, training = np.arange(8, 400, 9), Training(batch_size=16)
    one, again, other = (
        cut(sequences, SPEC.features, Model(), training, sequences.weights, ends, seed) for seed in (1, 1, 2)
    )
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a.targets, b.targets)
    assert any((a.targets != b.targets).any() for a, b in zip(one, other, strict=True))
