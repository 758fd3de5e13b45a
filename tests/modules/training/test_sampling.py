"""What an epoch draws."""

import numpy as np
import pytest

from modules.training import sampling
from modules.training.sampling import Draw

COUNTS = np.array([4, 25, 100])


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_under_either_objective_a_user_counts_by_the_exponent(exponent):
    places = np.arange(COUNTS.sum())
    owner = np.repeat(np.arange(3), COUNTS)
    draws = range(200)
    drawn = [
        np.bincount(sampling.draw_users(3, np.mean(COUNTS**exponent), Draw(42, epoch)), minlength=3) for epoch in draws
    ]
    by_users = np.mean(drawn, axis=0) * sampling.user_weights(COUNTS, exponent)
    by_places = np.mean(
        [
            np.bincount(owner[sampling.draw_places(places, COUNTS[owner], exponent, Draw(42, epoch))], minlength=3)
            for epoch in draws
        ],
        axis=0,
    )
    np.testing.assert_allclose(by_users, COUNTS**exponent, rtol=0.15, atol=0.15)
    np.testing.assert_allclose(by_places, COUNTS**exponent, rtol=0.15, atol=0.15)


def test_users_come_up_equally_often():
    drawn = np.bincount(
        np.concatenate([sampling.draw_users(3, np.mean(COUNTS**0.5), Draw(1, epoch)) for epoch in range(50)])
    )
    assert drawn.max() - drawn.min() <= 50


def test_a_draw_depends_on_the_seed_the_epoch_and_the_chunk_alone():
    first, again = (sampling.draw_users(3, 43.0, Draw(7, 3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for draw in (Draw(8, 3), Draw(7, 4), Draw(7, 3, 1)):
        other = sampling.draw_users(3, 43.0, draw)
        assert len(other) != len(first) or (other != first).any()


def test_some_users_are_all_where_they_have_little_and_else_a_fixed_draw_within_the_limit():
    counts = np.array([3, 1, 7, 2, 40, 5])
    np.testing.assert_array_equal(sampling.some_users(counts, 58, 0), np.arange(6))
    for seed in range(10):
        drawn = sampling.some_users(counts, 20, seed)
        assert (np.diff(drawn) > 0).all()
        assert counts[drawn].sum() <= 20 or len(drawn) == 1
        np.testing.assert_array_equal(drawn, sampling.some_users(counts, 20, seed))
    assert len({tuple(sampling.some_users(counts, 20, seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_an_epoch_has_as_many_steps_as_is_expected(exponent):
    counts = np.random.default_rng(1).integers(1, 60, 500).astype(float)
    expected = sampling.expected_steps(counts, exponent, 32)
    users = [len(sampling.draw_users(500, np.mean(counts**exponent), Draw(3, epoch))) / 32 for epoch in range(20)]
    of_place = np.repeat(counts, counts.astype(int))
    places = [
        len(sampling.draw_places(np.arange(len(of_place)), of_place, exponent, Draw(3, epoch))) / 32
        for epoch in range(20)
    ]
    assert np.mean(users) == pytest.approx(expected, rel=0.02)
    assert np.mean(places) == pytest.approx(expected, rel=0.02)


def test_a_longer_sequence_is_read_from_a_random_place_and_a_shorter_one_whole():
    offsets = np.array([0, 3, 13, 17])
    users = np.tile([0, 1, 2], 400)
    ends = sampling.draw_ends(offsets, users, 4, Draw(1, 2))
    assert set(ends[users == 0]) == {2} and set(ends[users == 2]) == {16}
    # Each window of four is as likely as any other.
    places, counts = np.unique(ends[users == 1], return_counts=True)
    np.testing.assert_array_equal(places, np.arange(6, 13))
    assert counts.min() > 30
    np.testing.assert_array_equal(ends, sampling.draw_ends(offsets, users, 4, Draw(1, 2)))


@pytest.mark.parametrize("rows", [0, 1, 7, 64, 1000])
def test_a_batch_has_rows_of_about_one_length(rows):
    lengths = np.random.default_rng(0).geometric(0.1, rows)
    order = sampling.by_length(lengths, 8, Draw(1, 0))
    np.testing.assert_array_equal(np.sort(order), np.arange(rows))
    padded = sum(8 * lengths[order][start : start + 8].max() for start in range(0, rows, 8))
    unsorted = sum(8 * lengths[start : start + 8].max() for start in range(0, rows, 8))
    assert padded <= unsorted
    if rows == 1000:
        assert padded < 0.5 * unsorted
        # Short and long batches come in no order.
        means = lengths[order][:800].reshape(-1, 8).mean(axis=1)
        assert abs(np.corrcoef(means, np.arange(100))[0, 1]) < 0.3
