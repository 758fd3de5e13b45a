"""The item-item model against its definition."""

import numpy as np
import pytest
import scipy.linalg

from modules import item_item

DECAY = 0.85


def histories(users=80, items=12, longest=9, seed=0):
    """Of each user, oldest first, each item once."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.arange(1, items + 1))[: rng.integers(0, longest + 1)] for _ in range(users)]


def moments(owned, items=12, repeats=False):
    offsets = np.append(0, np.cumsum([len(own) for own in owned]))
    return item_item.moments(offsets, np.concatenate(owned), items, DECAY, repeats)


def designs(owned, items):
    """X [users, V], S and T [places, V], item by item."""
    whole, before, after = [], [], []
    for row in owned:
        oldest_first = [i - 1 for i in row if i <= items]
        x = np.zeros(items)
        x[oldest_first] = 1
        whole.append(x)
        for place in range(1, len(oldest_first)):
            s, t = np.zeros((2, items))
            for distance, item in enumerate(oldest_first[:place][::-1][:50]):
                s[item] += (1 + distance) ** -DECAY
            for distance, item in enumerate(oldest_first[place : place + 10]):
                t[item] += (1 + distance) ** -DECAY
            before.append(s)
            after.append(t)
    return np.array(whole), np.array(before), np.array(after)


@pytest.mark.parametrize("items", [12, 7], ids=["all items", "the most frequent ones"])
def test_moments_are_those_of_whole_histories_and_transitions(items):
    owned = histories()
    whole, before, after = designs(owned, items)
    actual = moments(owned, items)
    np.testing.assert_array_equal(actual.histories.toarray(), whole)
    np.testing.assert_allclose(actual.gram, 2 * whole.T @ whole + before.T @ before)
    np.testing.assert_allclose(actual.cross, 2 * whole.T @ whole + before.T @ after, rtol=1e-5)


def test_weights_are_the_least_squares_under_a_zero_diagonal():
    owned, items, ridge = histories(), 12, 3.0
    whole, before, after = designs(owned, items)
    weights = item_item.solve(moments(owned, items), ridge)
    for item in range(items):
        # The same problem without the item's own column, solved column by column.
        others = [i for i in range(items) if i != item]
        design = np.concatenate([np.sqrt(2) * whole[:, others], before[:, others], np.sqrt(ridge) * np.eye(items - 1)])
        target = np.concatenate([np.sqrt(2) * whole[:, item], after[:, item], np.zeros(items - 1)])
        np.testing.assert_allclose(weights[others, item], np.linalg.lstsq(design, target, rcond=None)[0], atol=1e-6)
        assert weights[item, item] == pytest.approx(0, abs=1e-6)


def test_where_items_come_again_weights_are_the_least_squares_of_what_comes_next():
    rng, items, ridge = np.random.default_rng(1), 6, 3.0
    owned = [rng.integers(1, items + 2, rng.integers(0, 9)) for _ in range(40)]
    _, before, after = designs(owned, items)
    found = moments(owned, items, repeats=True)
    counts = np.stack([np.bincount(own, minlength=items + 2)[1 : items + 1] for own in owned])
    np.testing.assert_array_equal(found.histories.toarray(), counts)
    design, target = np.concatenate([before, np.sqrt(ridge) * np.eye(items)]), np.pad(after, [(0, items), (0, 0)])
    weights = item_item.solve(found, ridge)
    np.testing.assert_allclose(weights, np.linalg.lstsq(design, target, rcond=None)[0], atol=1e-5)
    assert np.diag(item_item.solve(found.of_most_frequent(4), ridge)).any()


def test_factors_of_full_rank_are_the_weights_up_to_the_scale():
    owned, items = histories(), 12
    found = moments(owned, items)
    weights = item_item.solve(found, 3.0)
    factors = item_item.factors(found, weights, rank=items)
    product = factors.history[1:] @ factors.items[1:].T
    scale = np.linalg.norm(product) / np.linalg.norm(weights)
    np.testing.assert_allclose(product, scale * weights, atol=1e-4)
    scores = (designs(owned, items)[0]) @ product
    assert np.sqrt(np.mean(scores**2)) == pytest.approx(1.0, rel=1e-4)
    assert not factors.history[0].any() and not factors.items[0].any()


def test_factors_of_lower_rank_lose_least_in_the_scores():
    owned, items = histories(), 12
    found = moments(owned, items)
    weights = item_item.solve(found, 3.0)
    whole, before, _ = designs(owned, items)
    design = np.concatenate([np.sqrt(2) * whole, before])
    values = np.linalg.svd(design @ weights, compute_uv=False)
    for rank in (2, 5):
        factors = item_item.factors(found, weights, rank)
        kept = weights @ factors.items[1:] @ factors.items[1:].T
        lost = np.linalg.norm(design @ (weights - kept))
        # Eckart and Young: no factors of this rank lose less.
        assert lost == pytest.approx(np.sqrt(np.sum(values[rank:] ** 2)), rel=1e-4)


def test_many_users_are_taken_in_parts(monkeypatch):
    owned = histories(users=30)
    whole = moments(owned)
    monkeypatch.setattr(item_item, "_USERS_AT_ONCE", 7)
    in_parts = moments(owned)
    np.testing.assert_allclose(in_parts.gram, whole.gram)
    np.testing.assert_allclose(in_parts.cross, whole.cross, rtol=1e-5)
    assert (in_parts.histories != whole.histories).nnz == 0


def test_factors_cover_ids_that_the_model_does_not_know_with_zeros():
    factors = item_item.Factors(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)).covering(6, 5)
    assert factors.history.shape == (6, 2) and factors.items.shape == (5, 2)
    assert not factors.history[3:].any() and not factors.items[3:].any()


def test_a_query_is_the_weighted_sum_of_the_rows_of_its_history():
    table = np.random.default_rng(0).normal(size=(6, 3))
    found = item_item.query_factors(np.array([[4, 0, 2], [0, 0, 0]]), 0.5, table)
    # A gap takes no rank.
    np.testing.assert_allclose(found, [table[4] + 2**-0.5 * table[2], np.zeros(3)])


def test_randomised_factors_score_next_to_as_well_as_the_best_ones():
    rng = np.random.default_rng(2)
    items, users, length, rank = 600, 1_000, 12, 16
    taste = rng.integers(0, 20, users)
    item = np.concatenate([1 + (30 * t + rng.permutation(30)[:length]) for t in taste])
    of = item_item.moments(np.arange(users + 1) * length, item, items, DECAY)
    weights = item_item.solve(of, 10.0)
    explained = weights.T @ of.gram @ weights
    best = scipy.linalg.eigvalsh(explained, subset_by_index=[items - rank, items - 1]).sum()
    vectors = item_item.factors(of, weights, rank).items[1:].astype(np.float64)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=1e-4)
    assert np.trace(vectors.T @ explained @ vectors) > 0.99 * best


def test_the_spectral_model_scores_as_the_truncated_decomposition_does():
    # Users of three tastes; item 30 is nobody's, and item 31 is beyond the model.
    rng, items, rank = np.random.default_rng(3), 30, 3
    owned = [np.append(rng.permutation(np.arange(10))[:7] * 3 + 1 + user % 3, 31) for user in range(200)]
    owned = [own[own != 30] for own in owned]
    offsets = np.append(0, np.cumsum([len(own) for own in owned]))
    factors = item_item.spectral_factors(offsets, np.concatenate(owned), items, rank)
    assert factors.rank == rank and factors.history.shape == factors.items.shape == (items + 1, rank)
    assert not factors.history[0].any() and not factors.items[0].any() and not factors.items[30].any()
    whole = np.array([np.isin(np.arange(1, items + 1), own) for own in owned], float)
    scale = np.maximum(whole.sum(axis=0), 1) ** -0.4
    scaled = np.maximum(whole.sum(axis=1, keepdims=True), 1) ** -0.25 * whole * scale
    vectors = np.linalg.svd(scaled)[2][:rank].T
    expected = whole * scale @ vectors @ (vectors / scale[:, np.newaxis]).T
    actual = whole @ factors.history[1:] @ factors.items[1:].T
    np.testing.assert_allclose(actual, expected / np.sqrt(np.mean(expected**2)), atol=1e-3)
    assert np.mean(actual**2) == pytest.approx(1, rel=1e-4)
