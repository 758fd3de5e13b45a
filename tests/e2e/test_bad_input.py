"""Each mistake in a whole run: one line, exit code 2, nothing half-written, and the next correct run works."""

from __future__ import annotations

import gzip
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
from e2e_runs import Outcome, twotower, versions

pytestmark = pytest.mark.slow

Rows = list[dict]


def changed(folder: Path, table: str, change: Callable[[Rows], Rows]) -> None:
    path = folder / f"{table}.parquet"
    pq.write_table(pa.Table.from_pylist(change(pq.read_table(path).to_pylist())), path)


def without_column(name: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{k: v for k, v in row.items() if k != name} for row in rows]


def with_value(column: str, value: object) -> Callable[[Rows], Rows]:
    return lambda rows: [{**rows[0], column: value}, *rows[1:]]


def as_floats(column: str, first: float) -> Callable[[Rows], Rows]:
    return lambda rows: [{**r, column: first if i == 0 else float(r[column])} for i, r in enumerate(rows)]


MISTAKES: dict[str, tuple[str | None, Callable[[Rows], Rows] | None, list[str], list[str]]] = {
    "missing file": (None, None, ["tables.items.path=nowhere.parquet"], ["tables.items", "nowhere.parquet"]),
    "missing column": ("interactions", without_column("item_id"), [], ["interactions", "'item_id'"]),
    "missing feature": ("users", without_column("age"), [], ["age"]),
    "unknown key": (None, None, ["training.epoch=3"], ["training.epoch", "unknown key"]),
    "mistyped key": (None, None, ["training.epochs=many"], ["training.epochs", "'many'"]),
    "empty split": (None, None, ["split={strategy: temporal, validation_from: 5, eval_from: 9}"], ["train", "split"]),
    "duplicate items": ("items", lambda rows: [*rows, rows[0]], [], ["items", "1"]),
    "NaN timestamp": ("interactions", as_floats("timestamp", math.nan), [], ["timestamp"]),
    "negative timestamp": ("interactions", with_value("timestamp", -5), [], ["timestamp", "-5"]),
    "unknown items": ("items", lambda rows: rows[1:], ["tables.items_not_in_table=fail"], ["items_not_in_table", "1"]),
    "k too large": (None, None, ["serving.k=81"], ["serving.k", "80"]),
    "schema missing": (None, None, ["schema.path=none.pbtxt"], ["schema.path", "none.pbtxt"]),
}


def check(outcome: Outcome, words: list[str]) -> None:
    assert outcome.code == 2, outcome
    assert outcome.errors.count("\n") == 1 and "Traceback" not in outcome.errors, outcome.errors
    for word in words:
        assert word in outcome.errors


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output for all mistakes, so that the last correct run works after every one of them."""
    return tmp_path_factory.mktemp("mistakes")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(name: str, shared: Path):
    table, change, overrides, words = MISTAKES[name]
    world.write_parquet(shared)
    path = world.write_config(shared)
    if table is not None and change is not None:
        changed(shared, table, change)
    outcome = twotower("run", "--config", path, *[a for o in overrides for a in ("--set", o)])
    check(outcome, words)
    assert versions(shared) == []


def other_columns(folder: Path) -> Path:
    path = folder / "interactions_2.parquet"
    rows = [{"user_id": 1, "film": 1, "rating": 1.0, "timestamp": world.START}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def torn(folder: Path) -> Path:
    """As an upload that broke off leaves it."""
    path = folder / "interactions_3.csv.gz"
    world.write_csv(folder)
    whole = gzip.compress((folder / "interactions.csv").read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize(
    ("shard", "words"), [(other_columns, ["no column 'item_id'"]), (torn, ["Truncated", "write it again"])]
)
def test_a_shard_that_is_not_like_the_first(shared: Path, shard: Callable[[Path], Path], words: list[str]):
    """Before anything runs only the first one has been looked at."""
    world.write_parquet(shared)
    bad = shard(shared)
    folder = shared / "all"
    folder.mkdir(exist_ok=True)
    for path in (shared / "interactions.parquet", bad):
        shutil.copy(path, folder)
    path = world.write_config(shared)
    try:
        outcome = twotower("run", "--config", path, "--set", f"tables.interactions.path={folder}/interactions*")
    finally:
        shutil.rmtree(folder)
    last = outcome.errors.splitlines()[-1]
    assert outcome.code == 2 and "Traceback" not in outcome.errors, outcome.errors
    for word in ["tables.interactions.path", bad.name, *words]:
        assert word in last
    examples = shared / "runs" / "small-world" / "InteractionExampleGen" / "examples"
    assert not any(path.is_file() for path in examples.rglob("*")), "nothing half-written stays"
    assert versions(shared) == []


# Columns that become no input of the servable may be named as anybody likes, to the end of a run.
USER, TIME, WEIGHT, SHOP = "user id/größe:1", "2nd time", "wei%ght {0}", "inter/slice €"
ITEM, TITLE, JOB = "item #", "Titel: «日本» a/b?", "job/la bel \\ "


def write_odd_names(folder: Path) -> str:
    """The world as CSV under odd names of columns, without the first of its items, and a configuration for it."""
    tables = {
        "interactions": [
            {USER: r["user_id"], "item_id": r["item_id"], TIME: r["timestamp"], WEIGHT: r["rating"],
             SHOP: "xy"[n // 10 % 2]}
            for n, r in enumerate(world.interactions())
        ],
        "items": [{ITEM: r["item_id"], TITLE: r["title"], "genres": "|".join(r["genres"])} for r in world.items()[1:]],
        "users": [{USER: r["user_id"], "age": r["age"], JOB: r["occupation"]} for r in world.users()],
    }  # fmt: skip
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    path = lambda name: {"path": str(folder / f"{name}.csv")}  # noqa: E731
    item, _ = world.FEW_FEATURES["candidate"]
    return world.write_config(
        folder,
        tables={
            "interactions": path("interactions") | {"user": USER, "timestamp": TIME, "weight": WEIGHT},
            "items": path("items") | {"id": ITEM, "title": TITLE},
            "users": path("users") | {"id": USER},
        },
        split={"strategy": "temporal", "validation": 0.15, "eval": 0.15},
        features={
            "query": world.FEW_FEATURES["query"],
            "candidate": [item, {"column": "genres", "encoding": "vocabulary", "dimension": 8, "separator": "|"}],
        },
        serving={"k": 20, "return_columns": [TITLE], "filter_columns": ["genres"]},
        evaluation={"k": [5], "slices": [{"column": JOB}, {"column": SHOP}], "history": "rolling"},
    )


def test_after_all_mistakes_a_users_own_csv_tables_work_whatever_their_columns_are_called(shared: Path):
    """Under a temporal split. It also drops and counts the interactions of an item that the items table lacks."""
    config = write_odd_names(shared)
    removed = sum(row["item_id"] == 1 for row in world.interactions())
    outcome = twotower("run", "--config", config)
    assert outcome.code == 0, outcome.errors
    assert removed > 0 and outcome.answer["data"]["dropped_items_not_in_table"] == removed
    assert len(versions(shared)) == 1
    metrics = outcome.answer["metrics"]
    assert {f"{JOB}=cook", f"{JOB}=poet", f"{SHOP}=x", f"{SHOP}=y"} <= set(metrics)
    assert metrics["overall"]["recall@5"] > 1.5 * metrics["overall"]["popular_recall@5"]
    asked = ["--config", config, "--user", "3", "--k", "5"]
    answer = twotower("recommend", *asked).answer
    titles = {str(item["item_id"]): item["title"] for item in world.items()}
    assert [item["title"] for item in answer["items"]] == [titles[item["item_id"]] for item in answer["items"]]
    assert len(answer["items"]) == 5
    answer = twotower("recommend", *asked, "--filter", "genres=Drama").answer
    assert answer["items"] and all(item["title"].startswith("Drama") for item in answer["items"])


@pytest.mark.parametrize("output", ["root", "push"])
def test_a_disk_that_refuses_writes(shared: Path, output: str):
    # /proc refuses everybody, root too. What the run before has finished is not executed again.
    before = versions(shared)
    check(
        twotower("run", "--config", str(shared / "config.yaml"), "--set", f"output.{output}=/proc/none"), ["/proc/none"]
    )
    assert versions(shared) == before
