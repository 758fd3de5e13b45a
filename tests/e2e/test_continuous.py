"""A new time span arrives: the towers start from the last pushed model, and the gate compares both on the new span."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
from e2e_runs import Small, executed, twotower, versions

from modules.servable.contract import read_servable
from modules.servable.embedding import read_variables

pytestmark = pytest.mark.slow

NEW_USERS, NEW_ITEMS = 20, 8


def later_span() -> list[dict[str, object]]:
    """New users of the old tastes take up old and new items after everything else."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(world.USERS, world.USERS + NEW_USERS):
        own = [i for i in range(world.ITEMS + NEW_ITEMS) if i % 4 == user % 4]
        for position, item in enumerate(rng.permutation(own)[:10]):
            time = world.START + 86400 * (301 + position) + user
            rows.append({"user_id": user + 1, "item_id": int(item) + 1, "rating": 1.0, "timestamp": time})
    return sorted(rows, key=lambda row: row["timestamp"])


def test_warm_start_on_a_new_span(small: Small, tmp_path):
    old = small.serve_in(tmp_path / "served").name
    world.write_parquet(tmp_path)
    pq.write_table(pa.Table.from_pylist(later_span()), tmp_path / "interactions-2.parquet")
    new_items = [
        {
            "item_id": i + 1,
            "title": f"{world.TASTES[i % 4]} film {i + 1}",
            "genres": [world.TASTES[i % 4]],
            "price": 1.0,
        }
        for i in range(world.ITEMS, world.ITEMS + NEW_ITEMS)
    ]
    pq.write_table(pa.Table.from_pylist(world.items() + new_items), tmp_path / "items.parquet")
    path = world.write_config(tmp_path)
    # No step is taken, so that what comes out is what was taken over.
    changes = [f"tables.interactions.path={tmp_path}/interactions*.parquet", "training.warm_start=true",
               "training.learning_rate=1e-12", "training.weight_decay=0", "training.epochs=1"]  # fmt: skip
    arguments = [word for change in changes for word in ("--set", change)]
    outcome = twotower("run", "--config", path, *arguments)
    assert outcome.code == 0, outcome.errors
    new = versions(tmp_path)[-1]
    assert new != old

    # Old ids keep their rows although the vocabulary has grown and is in another order.
    tables, places = {}, {}
    for version in (old, new):
        folder = tmp_path / "served/small-world" / version
        fitted = read_variables(str(folder), read_servable(str(folder)).embedding)
        tables[version] = fitted["query_tower/embeddings"]
        tokens = (folder / "assets/items").read_text().split()
        places[version] = {token: row for row, token in enumerate(tokens, start=1)}
    common = sorted(places[old])
    assert [places[old][i] for i in common] != [places[new][i] for i in common]
    rows = [tables[v][[places[v][i] for i in common]] for v in (old, new)]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    assert len(places[new]) > len(places[old])
    # What is new has a fresh row: short, as every table begins.
    fresh = [tables[new][row] for token, row in places[new].items() if token not in places[old]]
    assert 0 < np.abs(fresh).max() < 0.06

    # The gate judged both on the new span.
    assert outcome.answer["gates"]["Evaluator"]["blessed"]
    assert outcome.answer["baseline"]["version"] == old
    assert outcome.answer["baseline"]["metrics"]["ndcg@5"] > 0


def test_the_tuner_searches_before_the_trainer_and_the_trainer_takes_what_it_found(small: Small, tmp_path):
    changes = ["tuner.enabled=true", "tuner.trials=3", "training.epochs=2", f"output.push={tmp_path}/served",
               "tuner.search={training.learning_rate: [1.0e-7, 0.02], model.mask_rate: [0.2]}",
               "training.learning_rate=1.0e-7", "model.item_item_rank=0"]  # fmt: skip
    outcome = twotower("run", "--config", small.config_path, *[w for c in changes for w in ("--set", c)])
    assert outcome.code in (0, 1), outcome.errors
    assert "Tuner" in executed(small.config_path, *changes)
    trials = outcome.answer["tuner"]
    # 1e-7 learns nothing: the configured value is tried, and loses.
    assert {trial["training.learning_rate"] for trial in trials} == {1e-7, 0.02}
    best = max(trials, key=lambda trial: trial["score"])
    worst = min(trials, key=lambda trial: trial["score"])
    assert best["training.learning_rate"] == 0.02
    assert worst["training.learning_rate"] == 1e-7
    assert best["score"] > worst["score"]
    assert outcome.answer["training"]["tuned"]["training.learning_rate"] == 0.02
