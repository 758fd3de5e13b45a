"""Interactions counted by time: the latest of them are those that sorting would give."""

import numpy as np
import pytest

from modules.data import time_histogram
from modules.data.time_histogram import TimeHistogram


@pytest.mark.parametrize("most", [2**20, 32])
@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 1.0])
def test_the_latest_are_those_after_a_step_and_the_last_of_the_step(share, most, monkeypatch):
    monkeypatch.setattr(time_histogram, "_MOST_STEPS", most)
    times = np.random.default_rng(0).integers(-300, 300, 1_000)
    histogram = TimeHistogram.total(TimeHistogram.of(part) for part in np.split(times, 4))
    assert len(histogram.steps) <= most and histogram.counts.sum() == 1_000
    latest = histogram.latest(share)
    steps = times >> latest.shift
    wanted = max(1, round(share * 1_000))
    expected = np.sort(np.argsort(steps, kind="stable")[-wanted:])
    at_step = np.flatnonzero(steps == latest.step)[latest.left_out :]
    np.testing.assert_array_equal(np.union1d(np.flatnonzero(steps > latest.step), at_step), expected)
    assert latest.shift == 0 or most == 32
    assert latest.time <= np.sort(times)[-wanted] < latest.time + 2**latest.shift


def test_nothing_is_counted_of_nothing():
    assert not len(TimeHistogram.total([]).steps)
    assert not len(TimeHistogram.total([TimeHistogram.of(np.zeros(0, np.int64))]).steps)
