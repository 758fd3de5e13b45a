"""Popularity in the long run and lately."""

import numpy as np

from modules.popularity import log_popularity, recent_lift


def test_lift_is_the_share_now_over_the_share_in_the_long_run():
    labels = np.array([1, 1, 1, 2, 2, 3, 3, 3, 3, 3])
    # Not in the order of time: the two latest are an item 2 and an item 1.
    times = np.array([1, 2, 10, 3, 11, 4, 5, 6, 7, 8])
    actual = recent_lift(labels, times, 0.2, 0.2, np.array([False, True, True, True, True, False]))
    share = np.array([0.5, 3.5, 2.5, 5.5, 0.5, 0.5]) / 13
    recent = (np.array([0, 1, 1, 0, 0, 0]) + 0.4 * share) / 2.4
    expected = np.log(recent / share)
    expected[[0, 5]] = 0
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert actual[2] > actual[1] > 0 > actual[3]


def test_what_nobody_interacted_with_is_as_rare_as_the_rarest():
    popularity = log_popularity(np.array([0.0, 9.0, 0.0, 4.0], np.float32))
    np.testing.assert_allclose(popularity[1:], np.log(np.array([10, 1, 5]) / (16 / 3)), rtol=1e-6)
    assert popularity[0] == popularity[2]
