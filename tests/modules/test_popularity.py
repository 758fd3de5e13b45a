"""Popularity in the long run and lately."""

import numpy as np

from modules.popularity import log_popularity, recent_lift


def test_lift_is_the_share_now_over_the_share_in_the_long_run():
    frequency, recent = np.array([0, 3, 2, 5, 0, 0]), np.array([0, 1, 1, 0, 0, 0])
    actual = recent_lift(frequency, recent, 0.2, np.array([False, True, True, True, True, False]))
    share = np.array([0.5, 3.5, 2.5, 5.5, 0.5, 0.5]) / 13
    expected = np.log((recent + 0.4 * share) / 2.4 / share)
    expected[[0, 5]] = 0
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert actual[2] > actual[1] > 0 > actual[3]


def test_what_nobody_interacted_with_is_as_rare_as_the_rarest():
    popularity = log_popularity(np.array([0.0, 9.0, 0.0, 4.0], np.float32))
    np.testing.assert_allclose(popularity[1:], np.log(np.array([10, 1, 5]) / (16 / 3)), rtol=1e-6)
    assert popularity[0] == popularity[2]
