"""LazyAdamW beside AdamW and TensorFlow's moving average, and beside a dense oracle where rows are missed."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from modules.training import lazy_adamw
from modules.training.lazy_adamw import LazyAdamW

RATE, DECAY, AVERAGING = 0.05, 0.8, 0.9


def _gradients(steps: int, rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=(rows, 4)).astype(np.float32) for _ in range(steps)]


def _table(rows: int = 6, name: str = "table") -> tf.Variable:
    return tf.Variable(np.random.default_rng(1).normal(size=(rows, 4)), dtype=tf.float32, name=name)


def _lazy(table: tf.Variable, averaging: float = AVERAGING, no_decay: tuple[str, ...] = ()) -> LazyAdamW:
    optimizer = LazyAdamW(RATE, DECAY, averaging, no_decay)
    optimizer.build_lazy([table], [table])
    return optimizer


def _slices(values: np.ndarray, rows: np.ndarray) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(values[rows]), tf.constant(rows, tf.int32))


@pytest.mark.parametrize("no_decay", [(), ("table",)])
def test_with_every_row_touched_it_is_adamw_with_a_moving_average(no_decay):
    ours, theirs = _table(), _table()
    lazy = _lazy(ours, no_decay=no_decay)
    dense = tf_keras.optimizers.AdamW(RATE, weight_decay=DECAY)
    dense.exclude_from_weight_decay(var_names=list(no_decay))
    average = tf.train.ExponentialMovingAverage(AVERAGING, dense.iterations)
    average.apply([theirs])
    for gradient in _gradients(20, 6):
        lazy.apply_gradients([(_slices(gradient, np.arange(6)), ours)])
        dense.apply_gradients([(tf.constant(gradient), theirs)])
        average.apply([theirs])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(lazy.average(ours).numpy(), average.average(theirs).numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("settled_rows", [4, 65_536])
@pytest.mark.parametrize("averaging", [AVERAGING, 1.0 - RATE * DECAY, 0.0])
def test_missed_steps_decay_weights_moments_and_average_as_steps_without_a_gradient_would(
    averaging, settled_rows, monkeypatch
):
    """The oracle steps through every row in float64; a row without a gradient does not move by momentum."""
    monkeypatch.setattr(lazy_adamw, "SETTLED_ROWS", settled_rows)
    table = _table()
    weights = table.numpy().astype(np.float64)
    m, v, average = np.zeros_like(weights), np.zeros_like(weights), weights.copy()
    optimizer = _lazy(table, averaging)
    rng = np.random.default_rng(5)
    # The decay of the average grows in the first steps, and missed ones are counted under that of the step after them:
    # here every row is touched until it stands.
    for number, gradient in enumerate(_gradients(280, 6), start=1):
        touched = np.arange(6) if number <= 230 else np.flatnonzero(rng.random(6) < 0.4)
        optimizer.apply_gradients([(_slices(gradient, touched), table)])
        sent = np.zeros_like(weights)
        sent[touched] = gradient[touched]
        m, v = 0.9 * m + 0.1 * sent, 0.999 * v + 0.001 * sent**2
        weights *= 1 - RATE * DECAY
        step = RATE * np.sqrt(1 - 0.999**number) / (1 - 0.9**number) * m / (np.sqrt(v) + 1e-7)
        weights[touched] -= step[touched]
        d = min(averaging, (1 + number) / (10 + number))
        average = d * average + (1 - d) * weights
    optimizer.settle([table])
    np.testing.assert_allclose(table.numpy(), weights, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(optimizer.average(table).numpy(), average, rtol=1e-3, atol=1e-5)
    before = table.numpy()
    optimizer.settle([table])
    np.testing.assert_array_equal(table.numpy(), before)


def test_rows_that_are_not_touched_stay_as_they_are_until_they_settle():
    table = _table()
    before = table.numpy()
    optimizer = _lazy(table)
    optimizer.apply_gradients([(_slices(np.ones((6, 4), np.float32), np.array([2])), table)])
    np.testing.assert_array_equal(np.delete(table.numpy(), 2, 0), np.delete(before, 2, 0))
    assert np.all(table.numpy()[2] != before[2])


def test_other_variables_are_updated_as_ever():
    table, other, alone = _table(), _table(name="other"), _table(name="other")
    optimizer = LazyAdamW(RATE, DECAY, AVERAGING)
    optimizer.build_lazy([table, other], [table])
    dense = tf_keras.optimizers.AdamW(RATE, weight_decay=DECAY)
    for gradient in _gradients(3, 6):
        rows = np.array([0, 3])
        optimizer.apply_gradients([(_slices(gradient, rows), table), (tf.constant(gradient), other)])
        dense.apply_gradients([(tf.constant(gradient), alone)])
    np.testing.assert_array_equal(other.numpy(), alone.numpy())


def test_a_restored_checkpoint_goes_on_as_the_fit_that_was_killed(tmp_path):
    def run(steps: range, restored: str | None = None) -> tuple[tf.Variable, LazyAdamW]:
        table = _table()
        optimizer = _lazy(table)
        kept = tf.train.Checkpoint(table=table, optimizer=optimizer)
        if restored:
            kept.read(restored).assert_consumed()
        for number in steps:
            rows = np.flatnonzero(np.random.default_rng(number).random(6) < 0.5)
            optimizer.apply_gradients([(_slices(_gradients(20, 6)[number], rows), table)])
        if not restored:
            kept.write(str(tmp_path / "state"))
        optimizer.settle([table])
        return table, optimizer

    whole, of_whole = run(range(20))
    run(range(10))
    resumed, of_resumed = run(range(10, 20), str(tmp_path / "state"))
    np.testing.assert_array_equal(resumed.numpy(), whole.numpy())
    np.testing.assert_array_equal(of_resumed.average(resumed).numpy(), of_whole.average(whole).numpy())
