"""The judge's metrics against scikit-learn's, and the ranking of scores against sorting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, precision_score, recall_score

from benchmarks.quality import metrics
from benchmarks.quality.systems.base import rank

ITEMS = 150


def case(seed: int) -> tuple[list[str], set[str]]:
    """A full ranking of the catalogue and what is relevant in it."""
    rng = np.random.default_rng(seed)
    return [str(i) for i in rng.permutation(ITEMS)], {str(i) for i in rng.permutation(ITEMS)[: rng.integers(1, 40)]}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [1, 10, 100])
def test_metrics_equal_scikit_learns(seed: int, k: int) -> None:
    ranking, relevant = case(seed)
    truth = np.array([[str(i) in relevant for i in range(ITEMS)]], float)
    scores = np.array([[-ranking.index(str(i)) for i in range(ITEMS)]], float)
    top = np.array([[str(i) in ranking[:k] for i in range(ITEMS)]], float)
    assert metrics.ndcg(ranking, relevant, k) == pytest.approx(ndcg_score(truth, scores, k=k))
    assert metrics.recall(ranking, relevant, k) == pytest.approx(recall_score(truth, top, average="samples"))
    assert metrics.precision(ranking, relevant, k) == pytest.approx(precision_score(truth, top, average="samples"))


def test_beyond_accuracy_by_hand() -> None:
    popularity = {"a": 6, "b": 1, "c": 1}
    rankings = {"u": ["a", "b"], "v": ["a", "d"]}
    found = metrics.measure(rankings, {"u": {"b"}, "v": {"x"}}, popularity, items=10)
    assert found["coverage@10"] == pytest.approx(3 / 10)
    assert found["popular@10"] == pytest.approx(2 / 4)
    novelty = [-math.log2(n / 18) for n in (7, 2, 7, 1)]
    assert found["novelty@10"] == pytest.approx(sum(novelty) / 4)
    assert found["ndcg@10"] == pytest.approx(1 / math.log2(3) / 2)
    assert found["recall@10"] == found["recall@100"] == 0.5
    assert found["precision@10"] == pytest.approx(0.05)


@pytest.mark.parametrize("seed", range(10))
def test_ranks_the_best_unseen_candidates_equal_scores_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 3, (4, 30)).astype(np.float32)
    scores[0, :5] = -np.inf
    seen = [rng.permutation(30)[: rng.integers(0, 25)] for _ in range(4)]
    candidates = None if seed % 2 else np.sort(rng.permutation(30)[:12])
    found = rank(scores, seen, 10, candidates)
    for row, expected_row in enumerate(found):
        allowed = [i for i in range(30) if i not in seen[row] and (candidates is None or i in candidates)]
        expected = sorted(allowed, key=lambda i: (-scores[row, i], i))[:10]
        assert [i for i in expected_row if i >= 0] == expected
        assert len(expected_row) == 10
