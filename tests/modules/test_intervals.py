"""Intervals of means over queries, against numpy and SciPy on the queries themselves."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.intervals import Moments, of_difference


def some_values(seed, queries, columns=4):
    """Values as metrics have them: many that are 0 or 1, some between, some that a query lacks."""
    rng = np.random.default_rng(seed)
    values = rng.choice([0.0, 1.0, 1 / 3], (queries, columns)) * rng.choice([1.0, 0.7], (queries, columns))
    return np.where(rng.random((queries, columns)) < 0.2, np.nan, values)


def in_parts(values, parts):
    """What the parts of the queries add up to."""
    sums = Moments.zeros(values.shape[1])
    for part in parts:
        sums.add(Moments.of(part))
    return sums


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_is_students(confidence):
    values = some_values(3, 50)
    half_widths = Moments.of(values).half_widths(confidence)
    for column, half in zip(values.T, half_widths, strict=True):
        known = column[~np.isnan(column)]
        low, high = scipy.stats.ttest_1samp(known, 0.0).confidence_interval(confidence)
        assert half == pytest.approx((high - low) / 2)
        assert half == pytest.approx(
            scipy.stats.t.ppf((1 + confidence) / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
        )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.lists(st.integers(0, 60), max_size=6))
def test_it_does_not_matter_how_queries_are_put_into_batches_and_shards(seed, queries, cuts):
    values = some_values(seed, queries)
    order = np.random.default_rng(seed + 1).permutation(queries)
    parts = np.split(values[order], sorted(min(cut, queries) for cut in cuts))
    whole, added = Moments.of(values), in_parts(values, parts)
    np.testing.assert_allclose(added.means(), whole.means(), rtol=1e-12)
    np.testing.assert_allclose(added.half_widths(0.95), whole.half_widths(0.95), rtol=1e-9, atol=1e-9)


def test_sums_of_many_batches_are_as_exact_as_numpy_on_all_queries():
    """The sums of squares lose nothing that anybody would see."""
    rng = np.random.default_rng(5)
    values = 0.9 + 0.001 * rng.standard_normal((100_000, 1))
    half = in_parts(values, np.split(values, 400)).half_widths(0.95)
    assert half == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(len(values)), rel=1e-4)


def test_equal_values_leave_nothing_open_and_one_query_leaves_everything():
    third = np.full((1_000, 1), 1 / 3)
    assert 0 <= Moments.of(third).half_widths(0.95)[0] < 1e-8
    assert np.isnan(Moments.of(third[:1]).half_widths(0.95)[0])
    assert Moments.of(third[:1]).means()[0] == 1 / 3
    nothing = Moments.zeros(1)
    assert np.isnan(nothing.means()[0]) and np.isnan(nothing.half_widths(0.95)[0])


@pytest.mark.parametrize("queries", [30, 200])
def test_95_of_100_intervals_hold_the_true_mean(queries):
    """1,000 draws of queries whose NDCG is known on average: most find nothing, some find it in one of ten places."""
    rng = np.random.default_rng(11)
    gains = np.concatenate([[0.0] * 15, 1 / np.log2(np.arange(2, 12))])
    found = 0
    for _ in range(1_000):
        sums = Moments.of(rng.choice(gains, (queries, 1)))
        found += abs(sums.means()[0] - gains.mean()) <= sums.half_widths(0.95)[0]
    assert 0.90 <= found / 1_000 <= 0.98


def test_pairing_takes_out_what_makes_a_query_hard_for_both():
    """Two models whose values differ little on queries that differ much."""
    rng = np.random.default_rng(2)
    hard = rng.random(300)
    one, other = hard + 0.01 + 0.01 * rng.standard_normal(300), hard + 0.01 * rng.standard_normal(300)
    single = Moments.of(np.column_stack([one, other])).half_widths(0.95)
    paired = Moments.of((one - other)[:, None])
    assert paired.half_widths(0.95)[0] < 0.1 * single.min()
    low, high = scipy.stats.ttest_rel(one, other).confidence_interval(0.95)
    assert paired.half_widths(0.95)[0] == pytest.approx((high - low) / 2)


def test_without_pairs_the_interval_is_that_of_welch():
    rng = np.random.default_rng(3)
    one, other = rng.random(400), 0.1 + 0.5 * rng.random(900)
    halves = [Moments.of(values[:, None]).half_widths(0.95)[0] for values in (one, other)]
    low, high = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert of_difference(*halves) == pytest.approx((high - low) / 2, rel=5e-3)
