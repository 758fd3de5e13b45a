"""`twotower check`: all mistakes at once, in the run's own words, and what a run would not say.

That it says of every fault of a table what the run says is in `tests/components/test_odd_tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
import yaml
from e2e_runs import Outcome, twotower
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data import survey
from modules.data.distinct import DistinctCount, IdSet, hashes

Rows = list[dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small world."""
    world.write_parquet(tmp_path)
    world.write_config(tmp_path)
    return tmp_path


def check(folder: Path, *overrides: str) -> Outcome:
    return twotower("check", "--config", str(folder / "config.yaml"), *[a for o in overrides for a in ("--set", o)])


def found(outcome: Outcome, level: str) -> list[str]:
    """The findings of a level, as `where: what`."""
    assert outcome.errors == "", outcome.errors
    assert outcome.code == (2 if outcome.answer["errors"] else 0)
    return [f"{f['where']}: {f['what']}" for f in outcome.answer["findings"] if f["level"] == level]


def change(folder: Path, table: str, changed: Callable[[Rows], Rows]) -> None:
    path = folder / f"{table}.parquet"
    pq.write_table(pa.Table.from_pylist(changed(pq.read_table(path).to_pylist())), path)


def test_nothing_is_wrong_with_the_small_world(folder: Path):
    outcome = check(folder)
    assert found(outcome, "error") == found(outcome, "warning") == []
    said = found(outcome, "ok")
    assert f"tables.interactions: {world.USERS * world.PER_USER:,} rows, 2020-09-13 to 2021-07-10" in said
    assert f"split: eval: {world.USERS} interactions of {world.USERS} users" in said
    assert "features.query.gender: 2 different values" in said


def test_mistakes_of_configuration_headers_and_schema_are_said_together(folder: Path):
    change(folder, "users", lambda rows: [{k: v for k, v in r.items() if k not in ("age", "gender")} for r in rows])
    said = found(check(folder, "training.epoch=3", "serving.k=500", "index.seed=many"), "error")
    assert len(said) == 5, said
    for word in (
        "training.epoch: unknown key",
        "index.seed",
        "serving.k is 500 but the catalogue has 80",
        "'age'",
        "'gender'",
    ):
        assert sum(word in each for each in said) == 1, (word, said)
    assert any("schema.path" in each for each in found(check(folder, "schema.path=no.pbtxt"), "error"))
    (folder / "bad.pbtxt").write_text('feature { name: "x" type: ')
    (wrong, *_) = [e for e in found(check(folder, f"schema.path={folder}/bad.pbtxt"), "error") if "schema" in e]
    assert "cannot be read" in wrong
    (folder / "bad.pbtxt").write_text('feature { name: "x" type: BYTES }')
    (wrong, *_) = [e for e in found(check(folder, f"schema.path={folder}/bad.pbtxt"), "error") if "schema" in e]
    assert "title: expected BYTES for its encoding text; is not there" in wrong


def test_mistakes_of_rows_in_all_tables_are_said_together(folder: Path):
    change(folder, "items", lambda rows: [*rows, rows[0], {**rows[1], "item_id": None}])
    change(folder, "users", lambda rows: [*rows, rows[3]])
    change(folder, "interactions", lambda rows: [{**rows[0], "timestamp": -1}, *rows[1:]])
    said = found(check(folder), "error")
    assert sorted(each.partition(":")[0] for each in said) == [
        "tables.interactions", "tables.items", "tables.items", "tables.users",
    ]  # fmt: skip
    assert any("1 values of 'item_id' are there more than once, for instance '1'" in each for each in said)
    assert any("rows have no item_id" in each and "row 82 of" in each for each in said)


@pytest.mark.parametrize(("split", "said"), [
    ("{strategy: temporal, validation_from: 5, eval_from: 9}", "the train split of 2,240 interactions is empty"),
    ("{strategy: column, column: gender}", "'gender'"),
])  # fmt: skip
def test_an_empty_split_is_an_error_before_anything_runs(folder: Path, split: str, said: str):
    (error,) = found(check(folder, f"split={split}"), "error")
    assert said in error


def test_without_a_configuration_there_is_nothing_to_look_at(tmp_path: Path):
    outcome = twotower("check", "--config", str(tmp_path / "none.yaml"))
    assert outcome.code == 2 and "none.yaml" in outcome.errors and outcome.errors.count("\n") == 1


def warned(folder: Path, where: str, said: str, *overrides: str) -> None:
    outcome = check(folder, *overrides)
    assert found(outcome, "error") == []
    warnings = found(outcome, "warning")
    assert any(each.startswith(f"{where}: ") and said in each for each in warnings), warnings


def test_ids_that_another_table_lacks_are_counted_and_spaces_around_them_are_seen(folder: Path):
    change(folder, "items", lambda rows: rows[1:])
    ones = sum(row["item_id"] == 1 for row in world.interactions())
    warned(folder, "tables.items_not_in_table", f"{ones:,} of 2,240 rows")
    spaced = lambda rows, every: [  # noqa: E731
        {**row, "item_id": str(row["item_id"]).strip() + " " * (n % every == 0)} for n, row in enumerate(rows)
    ]
    change(folder, "interactions", lambda rows: spaced(rows, 2))
    warned(folder, "tables.items_not_in_table", "without the spaces around the id")
    change(folder, "interactions", lambda rows: spaced(rows, 1))
    outcome = check(folder)
    assert "hold the same ids?" in found(outcome, "error")[0]
    assert any("without the spaces around the id" in each for each in found(outcome, "warning"))
    change(folder, "interactions", lambda rows: [{**row, "item_id": row["item_id"].strip()} for row in rows])
    change(folder, "users", lambda rows: rows[2:])
    warned(folder, "tables.users_not_in_table", "28 of 2,240 rows (1.2%)")


@pytest.mark.parametrize(("column", "values", "said"), [
    ("gender", lambda n: "F", "one value only, 'F'"),
    ("gender", lambda n: None, "every cell is empty"),
    ("gender", lambda n: "F" if n < 2 else None, "one value only"),
    ("gender", lambda n: "FM"[n] if n < 2 else None, "98.8% of the cells are empty"),
    ("gender", lambda n: f"g{n}", "nearly every row has a value of its own (160 of 160)"),
    ("age", lambda n: 5.0, "one value only, 5.0"),
])  # fmt: skip
def test_a_column_that_says_nothing_is_warned_of(folder: Path, column: str, values: Callable[[int], Any], said: str):
    change(folder, "users", lambda rows: [{**row, column: values(n)} for n, row in enumerate(rows)])
    warned(folder, f"features.query.{column}", said)


def test_users_splits_and_repeats_that_are_odd_are_warned_of(folder: Path):
    warned(folder, "tables.max_sequence", "interactions of 160 users are older", "tables.max_sequence=5")
    warned(folder, "split", "judged by luck", "split={strategy: temporal, eval: 0.002}")
    warned(
        folder, "tables.interactions.weight", "all weights are the same", "tables.interactions.weight=rating"
    ) if False else None
    change(folder, "interactions", lambda rows: [*rows, *rows[:100]])
    warned(folder, "tables.interactions", "repeat user, item and time")
    change(
        folder,
        "interactions",
        lambda rows: [r for row in rows for r in (row, {**row, "timestamp": row["timestamp"] + 9})],
    )
    warned(folder, "serving.exclude_history", "repeat an item that the user had before")


def test_a_table_of_one_row_is_refused_in_words(folder: Path):
    for table in ("interactions", "items", "users"):
        change(folder, table, lambda rows: [{**rows[0], "item_id": 1, "user_id": 1}])
    (error,) = found(check(folder, "serving.k=1", "evaluation.k=[1]"), "error")
    assert "no user has three interactions" in error


ENCODED = {"latin-1": "not text in UTF-8", "utf-16": "not text in UTF-8", "utf-16-le": "not text in UTF-8"}


@pytest.mark.parametrize("encoding", ENCODED)
def test_a_file_in_another_encoding_is_named_with_row_and_column(tmp_path: Path, encoding: str):
    world.write_csv(tmp_path)
    path = tmp_path / "items.csv"
    path.write_bytes(path.read_text().replace("Drama film 3", "Drämä film 3").encode(encoding))
    world.write_config(tmp_path, "csv")
    said = found(check(tmp_path), "error")
    (error,) = [each for each in said if "UTF-8" in each]
    assert str(path) in error and ENCODED[encoding] in error
    assert encoding != "latin-1" or ("row 3 has in column 'title'" in error)
    init = twotower(
        "init", "--interactions", str(tmp_path / "interactions.csv"), "--items", str(path),
        "--output", str(tmp_path / "my.yaml"),
    )  # fmt: skip
    assert init.code == 2 and str(path) in init.errors and "UTF-8" in init.errors
    assert not (tmp_path / "my.yaml").exists()


def test_a_table_that_is_too_large_is_judged_by_a_sample_of_its_users(folder: Path, monkeypatch: pytest.MonkeyPatch):
    whole = check(folder)
    monkeypatch.setattr(survey, "_SAMPLED_USERS", 50)
    outcome = check(folder)
    assert outcome.code == 0
    said = [each for each in found(outcome, "ok") if each.startswith("split: eval")]
    (number,) = [int(each.split()[3].replace(",", "")) for each in said if "about" in each]
    assert 100 <= number <= 220, "160 users, a quarter of them sampled"
    # What needs no user's whole history is counted of all.
    words = [f["what"] for f in whole.answer["findings"] if f["where"] == "tables.interactions"]
    assert words[:3] == [f["what"] for f in outcome.answer["findings"] if f["where"] == "tables.interactions"][:3]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batches=st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=8))
def test_an_id_set_is_a_set(batches: list[list[int]]):
    ours, oracle = IdSet(), set()
    for batch in batches:
        hashed = hashes([f"{n}".encode() for n in batch])
        assert ours.has(hashed).tolist() == [n in oracle for n in batch]
        again = []
        for n in batch:
            again.append(n in oracle)
            oracle.add(n)
        assert ours.add(hashed).tolist() == again
    assert len(ours) == len(oracle)


def test_different_values_are_counted_exactly_while_they_are_few_and_nearly_when_many():
    rng = np.random.default_rng(0)
    few, many, half = DistinctCount(), DistinctCount(), DistinctCount()
    for _ in range(20):
        few.add(hashes([f"{n}".encode() for n in rng.integers(0, 1000, 2000)]))
        many.add(hashes([f"{n}".encode() for n in rng.integers(0, 100_000, 20_000)]))
    half.add(hashes([f"{n}".encode() for n in range(50_000)]))
    assert few.number == 1000 and few.is_exact
    assert many.number == pytest.approx(98_168, rel=0.06), "100,000 · (1 − e⁻⁴)"
    assert few.share_in(many) == pytest.approx(0.98, abs=0.05)
    assert many.share_in(half) == pytest.approx(0.5, abs=0.05)


def test_check_is_a_table_for_people(folder: Path, capsys: pytest.CaptureFixture[str]):
    from pipeline import cli

    assert cli.main(["check", "--config", str(folder / "config.yaml"), "--set", "serving.k=81"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("error") and lines[-1].strip() == "1 errors, 0 warnings"
    assert all(line.split()[0] in ("error", "warning", "ok") for line in lines[:-1] if not line.startswith(" "))
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == "small-world"
