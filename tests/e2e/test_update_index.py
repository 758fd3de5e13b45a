"""`twotower update-index` after a run: what is added and removed is what the other commands then answer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
from e2e_runs import Small, twotower

pytestmark = pytest.mark.slow


@pytest.fixture
def pushed(small: Small, tmp_path: Path) -> list[str]:
    """Options that name a copy of what the run has pushed."""
    small.serve_in(tmp_path / "served")
    return ["--config", small.config_path, "--set", f"output.push={tmp_path / 'served'}"]


def _table(path: Path, *rows: dict) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def _new(item_id: int, **changes: object) -> dict:
    # The price is the middle one: what is left to tell the item by is its genre.
    return {"item_id": item_id, "title": f"War film {item_id}", "genres": ["War"], "price": 60.0, **changes}


def test_new_items_are_recommended_and_removed_ones_are_not(pushed: list[str], tmp_path: Path):
    before = [r["item_id"] for r in twotower("recommend", *pushed, "--user", "4", "--k", "5").answer["items"]]
    table = _table(tmp_path / "new.parquet", _new(501), _new(502, genres=["War", "Rare"]))
    outcome = twotower("update-index", *pushed, "--add", table, "--remove", f"{before[0]},{before[1]}")
    assert outcome.code == 0, outcome.errors
    assert (outcome.answer["added"], outcome.answer["removed"]) == (2, 2)
    assert outcome.answer["catalogue_size"] == world.ITEMS and outcome.answer["recall"] >= 0.95

    answer = twotower("recommend", *pushed, "--user", "4", "--k", "20").answer
    assert answer["model_version"] == outcome.answer["version"]
    assert not set(before[:2]) & {r["item_id"] for r in answer["items"]}
    rare = twotower("recommend", *pushed, "--user", "4", "--filter", "genres=Rare").answer["items"]
    assert [(r["item_id"], r["title"]) for r in rare] == [("502", "War film 502")]
    similar = twotower("similar", *pushed, "--item", "501", "--k", "10").answer["items"]
    assert sum(r["title"].startswith("War") for r in similar) >= 8, "an unknown id is placed by its content"
    neighbours = twotower("similar", *pushed, "--item", "1", "--k", "5").answer["items"]
    assert sum(r["title"].startswith("Action") for r in neighbours) >= 4, "what makes items alike is kept"


def test_a_mistake_is_one_line_and_nothing_is_pushed(pushed: list[str], tmp_path: Path):
    served = tmp_path / "served" / "small-world"
    before = sorted(p.name for p in served.iterdir())
    path = tmp_path / "new.parquet"
    pq.write_table(pa.table({"item_id": [501], "title": ["x"]}), tmp_path / "short.parquet")
    for arguments, words in (
        ([], "nothing to update"),
        (["--remove", "nothing"], "no item 'nothing'"),
        (["--add", _table(path, _new(1))], "has item '1' already"),
        (["--add", _table(tmp_path / "twice.parquet", _new(501), _new(501))], "item '501' is there twice"),
        (["--add", str(tmp_path / "short.parquet")], "has no column 'genres'"),
        (["--add", str(tmp_path / "none.parquet")], "none.parquet"),
        (
            ["--add", _table(tmp_path / "price.parquet", _new(501, price="dear"))],
            "values of 'price' are not numbers, for instance 'dear'",
        ),
    ):
        outcome = twotower("update-index", *pushed, *arguments)
        assert outcome.code == 2 and words in outcome.errors, outcome.errors
        assert outcome.errors.count("\n") == 1 and json.loads(json.dumps(outcome.answer))["error"] in outcome.errors
    assert sorted(p.name for p in served.iterdir()) == before


def test_a_table_that_cannot_be_read_is_called_by_its_option(pushed: list[str], tmp_path: Path):
    for name, content, words in (
        ("new.txt", b"1", "--add: "),
        ("torn.parquet", b"PAR1 torn", "--add: "),
        ("latin.csv", "item_id,title,genres,price\n501,caf\xe9,War,1\n".encode("latin-1"), "latin.csv"),
    ):
        (tmp_path / name).write_bytes(content)
        outcome = twotower("update-index", *pushed, "--add", str(tmp_path / name))
        assert outcome.code == 2 and words in outcome.errors and "tables.items" not in outcome.errors, outcome.errors
        assert outcome.errors.count("\n") == 1
