"""The closed-form systems against their definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import world

from benchmarks.quality import worker
from benchmarks.quality.protocols import carve
from benchmarks.quality.systems import linear, popular
from benchmarks.quality.systems.base import Data, Queries


@pytest.fixture(scope="module")
def data() -> Data:
    rows = pd.DataFrame(world.interactions()).rename(columns={"user_id": "user", "item_id": "item"})
    items = pd.DataFrame(world.items()).rename(columns={"item_id": "item"}).assign(content=lambda t: t["genres"])
    return Data.of(rows.astype({"user": str, "item": str}), items.astype({"item": str}))


def test_ease_is_the_best_matrix_with_an_empty_diagonal() -> None:
    rng = np.random.default_rng(4)
    x = (rng.random((12, 5)) < 0.4).astype(float)
    found = linear.ease(sp.csr_matrix(x, dtype=np.float32), 2.0)
    for item in range(5):
        # Each column is a ridge regression of an item on all others.
        rest = [other for other in range(5) if other != item]
        ridge = np.linalg.solve(x[:, rest].T @ x[:, rest] + 2 * np.eye(4), x[:, rest].T @ x[:, item])
        np.testing.assert_allclose(found[rest, item], ridge, atol=1e-6)
        assert found[item, item] == 0


def test_a_history_weighs_by_place_from_its_end(data: Data) -> None:
    queries = Queries(np.array([0, -1]), [np.array([3, 1, 2]), np.zeros(0, np.int64)], np.array([9, 9]))
    np.testing.assert_allclose(
        queries.weights(5, 0.5).toarray(), [[0, 2**-0.5, 1, 3**-0.5, 0], [0, 0, 0, 0, 0]], rtol=1e-6
    )
    weights = np.random.default_rng(0).random((5, 5)).astype(np.float32)
    expected = np.array([[0, 2**-0.5, 1, 3**-0.5, 0]]) @ weights
    np.testing.assert_allclose(linear.by_history(weights, 0.5)(queries)[:1], expected, rtol=1e-5)


def test_items_are_in_the_order_of_popularity_and_rows_in_that_of_time(data: Data) -> None:
    rows = world.interactions()
    counts = pd.Series([str(row["item_id"]) for row in rows]).value_counts()
    assert [counts.get(item, 0) for item in data.items] == data.popularity.tolist()
    assert (np.diff(data.popularity) <= 0).all()
    assert (np.diff(data.timestamp) >= 0).all()
    assert data.matrix.sum() == len({(row["user_id"], row["item_id"]) for row in rows})


def test_the_recent_window_counts_the_newest_rows_only(data: Data) -> None:
    (_, score), *_ = popular.Recent().fit(data, {"window": 0.1}, 0)
    newest = world.interactions()[-round(0.1 * len(data.item)) :]
    counts = pd.Series([str(row["item_id"]) for row in newest]).value_counts()
    asked = Queries(np.array([-1]), [np.zeros(0, np.int64)], np.array([0]))
    assert score(asked)[0].tolist() == [counts.get(item, 0) for item in data.items]


def test_tuning_keeps_the_best_point_and_stops_a_fit_that_gets_no_better(data: Data) -> None:
    class Epochs:
        """The right answer at epoch 3, noise at every other."""

        space = ({"name": "a"},)
        patience = 2
        asked: list[int] = []

        def fit(self, data: Data, settings: dict[str, object], seed: int):  # type: ignore[no-untyped-def]
            best = linear.by_history(linear.ease(data.matrix, 50))
            for epoch in range(1, 20):
                self.asked.append(epoch)
                noise = popular.everybody(np.random.default_rng(epoch).random(len(data.items)))
                yield {**settings, "epochs": epoch}, best if epoch == 3 else noise

    rows = pd.DataFrame(world.interactions()).rename(columns={"user_id": "user", "item_id": "item"})
    cut = carve(rows.astype({"user": str, "item": str}), "leave-last-out", 0, 0)
    catalogue = pd.DataFrame({"item": data.items, "content": list(data.content)})
    settings, tried = worker.tune(Epochs(), cut, catalogue, 1, budget=60)
    assert settings == {"name": "a", "epochs": 3}
    assert Epochs.asked == [1, 2, 3, 4, 5] == [point["epochs"] for point in tried]
