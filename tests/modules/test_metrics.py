"""The formulas of ranking quality against plain Python, one query and one list at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules import metrics

_ITEMS = st.integers(0, 14)
_QUERY = st.tuples(st.lists(_ITEMS, max_size=8), st.sets(_ITEMS, min_size=1, max_size=9))


def _expected(ranking: list[int], relevant: set[int], k: int) -> dict[str, float]:
    top = list(dict.fromkeys(ranking[:k]))
    found = [item for item in top if item in relevant]
    places = [ranking.index(item) + 1 for item in found]
    best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
    return {
        "recall": len(found) / len(relevant),
        "precision": len(found) / k,
        "hit_rate": float(bool(found)),
        "ndcg": sum(1 / math.log2(place + 1) for place in places) / best,
        "mrr": 1 / min(places) if places else 0.0,
    }


@given(queries=st.lists(_QUERY, min_size=1, max_size=5), k=st.integers(1, 10))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_metrics_equal_their_definitions(queries, k):
    hits = np.stack([metrics.hits(ranking, relevant, 10) for ranking, relevant in queries])[:, :k]
    counts = np.array([len(relevant) for _, relevant in queries])
    found = {
        "recall": metrics.recall(hits, counts),
        "precision": metrics.precision(hits),
        "hit_rate": metrics.hit_rate(hits),
        "ndcg": metrics.ndcg(hits, counts),
        "mrr": metrics.mrr(hits),
    }
    for number, (ranking, relevant) in enumerate(queries):
        for name, value in _expected(ranking, relevant, k).items():
            assert found[name][number] == pytest.approx(value, abs=1e-12), name


def test_an_item_that_comes_twice_is_one_hit():
    assert metrics.hits([7, 7, 8], [7, 8], 4).tolist() == [True, False, True, False]


def test_the_popular_share_is_of_the_places_that_are_filled():
    popular = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    found = metrics.popular_share(popular, np.array([3, 1, 0]))
    np.testing.assert_array_equal(found, [2 / 3, 1.0, np.nan])
    np.testing.assert_array_equal(metrics.popular_share(popular[:, :2], np.array([3, 1, 0])), [1 / 2, 1.0, np.nan])


def test_coverage_counts_each_item_once():
    assert metrics.coverage([0, 2, 5], 3, 10.0) == 0.2
    assert metrics.coverage([], 3, 10.0) == 0.0
