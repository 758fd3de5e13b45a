"""Columns that become no input of the servable may be named as anybody likes, to the end of a run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
import yaml
from e2e_runs import twotower

pytestmark = pytest.mark.slow

USER, TIME, WEIGHT, SPLIT, SHOP = "user id/größe:1", "2nd time", "wei%ght {0}", "sp:lit", "inter/slice €"
ITEM, TITLE, JOB = "item #", "Titel: «日本» a/b?", "job/la bel \\ "


def test_odd_names_of_ids_times_weights_splits_slices_and_titles(tmp_path: Path):
    splits = ["train"] * 8 + ["validation", "eval"]
    tables = {
        "interactions": [
            {USER: r["user_id"], "item_id": r["item_id"], TIME: r["timestamp"], WEIGHT: r["rating"],
             SPLIT: splits[n % 10], SHOP: "xy"[n // 10 % 2]}
            for n, r in enumerate(world.interactions())
        ],
        "items": [{ITEM: r["item_id"], TITLE: r["title"], "genres": r["genres"]} for r in world.items()],
        "users": [{USER: r["user_id"], "age": r["age"], JOB: r["occupation"]} for r in world.users()],
    }  # fmt: skip
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    path = lambda name: {"path": str(tmp_path / f"{name}.parquet")}  # noqa: E731
    tree = world.config(
        tmp_path,
        tables={
            "interactions": path("interactions") | {"user": USER, "timestamp": TIME, "weight": WEIGHT},
            "items": path("items") | {"id": ITEM, "title": TITLE},
            "users": path("users") | {"id": USER},
        },
        split={"strategy": "column", "column": SPLIT},
        features={
            "query": [{"encoding": "history", "max_length": 12}],
            "candidate": [
                {"column": "item_id", "encoding": "vocabulary", "dimension": 8},
                {"column": "genres", "encoding": "vocabulary", "dimension": 8, "multivalued": True},
            ],
        },
        serving={"k": 20, "return_columns": [TITLE], "filter_columns": ["genres"]},
        evaluation={"k": [5], "slices": [{"column": JOB}, {"column": SHOP}], "beat_popularity": False},
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    outcome = twotower("run", "--config", str(config))
    assert outcome.code == 0, outcome.errors
    assert {f"{JOB}=cook", f"{JOB}=poet", f"{SHOP}=x", f"{SHOP}=y"} <= set(outcome.answer["metrics"])
    answer = twotower("recommend", "--config", str(config), "--user", "3", "--k", "5").answer
    titles = {str(item["item_id"]): item["title"] for item in world.items()}
    assert [item["title"] for item in answer["items"]] == [titles[item["item_id"]] for item in answer["items"]]
    assert len(answer["items"]) == 5
