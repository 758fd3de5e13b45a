"""The index benchmark on little data: its yardstick against numpy, and a run from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.index import __main__ as command
from benchmarks.index import data
from benchmarks.index.__main__ import Worker, main
from benchmarks.index.systems import SYSTEMS
from modules.retrieval import scann


def test_exact_is_the_sorted_product():
    vectors, queries = data.make("gaussian", 500)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :20]
    np.testing.assert_array_equal(data.exact(vectors, queries, 20), expected)


@pytest.mark.parametrize("kind", ["gaussian", "clustered"])
def test_the_same_seed_makes_the_same_data(kind):
    first, second, other = (data.make(kind, 1000, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[0].shape == (1000, data.DIMENSION) and first[1].shape == (2 * data.QUERIES, data.DIMENSION)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"partitions": 40, "spherical": False}),
        ({"partitions": 7, "spherical": True}, {"partitions": 7, "spherical": True}),
        ({"partitions": 1000}, {"partitions": 400, "spherical": False}),
    ],
)
def test_a_tree_has_the_partitions_that_are_asked_for(given, expected, monkeypatch):
    asked = []

    def train(vectors, **settings):
        asked.append(settings)
        raise InterruptedError

    monkeypatch.setattr(scann, "train_partitions", train)
    with pytest.raises(InterruptedError):
        SYSTEMS["stock"](np.zeros((400, data.DIMENSION), np.float32), 20, 1, **given)
    assert asked == [expected]


@pytest.mark.slow
def test_partitions_reach_the_process_of_a_system(tmp_path: Path, monkeypatch):
    options = ["--sizes", "2k", "--kinds", "clustered", "--k", "20", "--systems", "stock", "--partitions", "2"]
    monkeypatch.setattr("sys.argv", ["bench-index", *options, "--spherical", "--output", str(tmp_path)])
    main()
    (stock,) = json.loads((tmp_path / "results.json").read_text())
    # Of two there is one effort: to search both.
    assert [effort for effort, _, _ in stock["tried"]] == [[2, 1280]]


@pytest.mark.slow
def test_a_run_compares_systems_at_the_target(tmp_path: Path, monkeypatch, capsys):
    options = ["--sizes", "3k", "--kinds", "two_tower", "--k", "20", "--systems", "tensorflow,stock"]
    monkeypatch.setattr("sys.argv", ["bench-index", *options, "--target", "0.9", "--output", str(tmp_path)])
    main()
    rows = {row["system"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert rows["tensorflow"]["recall_k"] == 1.0 and rows["stock"]["recall_k"] >= 0.88
    for row in rows.values():
        assert row["reached"] and row["single_ms"] > 0 and row["batch_qps"] > 0
    assert rows["tensorflow"]["vs_tensorflow"] == {"single": 1.0, "batch": 1.0}
    assert rows["tensorflow"]["memory"] == 1.0 and 1 < rows["stock"]["memory"] < 1.6
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "results.md").read_text().strip()
    assert printed.count("\n| two_tower | 3,000 |") == 2


@pytest.mark.slow
def test_a_system_whose_process_is_killed_is_told_in_the_table(tmp_path: Path, monkeypatch, capsys):
    killed = []

    class Mortal(Worker):
        def milliseconds(self, batch: int, calls: int) -> list[float]:
            if not killed:
                self._process.kill()
                self._process.wait()
                killed.append(self)
            return super().milliseconds(batch, calls)

    monkeypatch.setattr(command, "Worker", Mortal)
    options = ["--sizes", "2k", "--kinds", "clustered", "--k", "20", "--systems", "stock,tensorflow"]
    monkeypatch.setattr("sys.argv", ["bench-index", *options, "--target", "0.5", "--output", str(tmp_path)])
    main()
    stock, exact = json.loads((tmp_path / "results.json").read_text())
    assert stock["error"].startswith("exit code -9") and "single_ms" not in stock
    assert exact["single_ms"] > 0
    assert "exit code -9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--kinds", "text", "unknown 'text'"),
        ("--sizes", "many", "--sizes many"),
        ("--partitions", "0", "--partitions 0"),
        ("--bench-python", "x", "bench-setup"),
    ],
)
def test_a_wrong_option_is_named(option, value, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks.index", option, value])
    with pytest.raises(SystemExit):
        main()
    assert words in capsys.readouterr().err
