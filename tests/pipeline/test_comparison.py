"""What differs between two runs, on runs whose differences are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from e2e_runs import twotower
from metadata_stores import Made, Written

from modules.data.examples import EVAL
from pipeline import comparison, runs
from pipeline.comparison import Change, changes
from pipeline.config import load
from pipeline.runs import Artifact, Run, Stage

METRICS = {"overall": {"ndcg@5": 0.30, "recall@5": 0.5, "coverage@5": 0.9, "queries": 100.0},
           "gender=F": {"ndcg@5": 0.40, "queries": 60.0}, "gender=M": {"ndcg@5": 0.15, "queries": 40.0},
           "activity=5+": {"ndcg@5": 0.9, "queries": 3.0}}  # fmt: skip
OTHERS = {"overall": {"ndcg@5": 0.32, "recall@5": 0.45, "coverage@5": 0.8, "queries": 100.0},
          "gender=F": {"ndcg@5": 0.41, "queries": 60.0}, "gender=M": {"ndcg@5": 0.05, "queries": 40.0},
          "activity=5+": {"ndcg@5": 0.1, "queries": 3.0}}  # fmt: skip


def stage(name: str, state: str = "done", outputs: tuple[Artifact, ...] = (), **parameters: object) -> Stage:
    return Stage(name, state, 12.34, (), outputs, dict(parameters), None if state == "cached" else 2_000_000_000)


def artifact(number: int, key: str, uri: Path | str = "", **properties: object) -> Artifact:
    return Artifact(number, key, "Thing", str(uri), dict(properties))


def run(folder: Path, name: str, version: str, metrics: dict, *, first: int = 0, **changed: object) -> Run:
    """A run whose artifacts have the numbers from `first` on."""
    place = folder / name
    place.mkdir()
    evaluation = {"metrics": metrics, "confidence": 0.95, "failures": [], "baseline_version": "", "baseline_note": "",
                  "half_widths": {s: {"ndcg@5": 0.03, "recall@5": 0.04} for s in metrics}}  # fmt: skip
    (place / "summary.json").write_text(json.dumps(evaluation | changed.pop("evaluation", {})))  # type: ignore[operator]
    counts = {"interactions": 2240, f"interactions_{EVAL}": 160, "is_external": 0, "file_format": "tfrecords"}
    examples = artifact(1, "examples", **counts | changed.pop("counts", {}))  # type: ignore[operator]
    stages = (
        stage("InteractionExampleGen", "cached" if first else "done", (examples,),
              fingerprint=changed.pop("tables", "t1"), code="c1"),
        stage("Trainer", "done", (artifact(first + 2, "model"),),
              custom_config=json.dumps({"code": changed.pop("code", "c2")})),
        stage("Evaluator", "done", (artifact(first + 3, "evaluation", place),)),
        stage("Pusher", "done", (artifact(first + 4, "pushed_model", pushed_version=version),)),
    )  # fmt: skip
    return Run(name, None, stages, changed.pop("configuration", None))  # type: ignore[arg-type]


def test_trees_differ_where_they_differ():
    old = {"name": "a", "model": {"dimension": 16, "layers": [1, 2]}, "tables": {"users": None}}
    new = {"name": "a", "model": {"dimension": 32, "layers": [1, 2]}, "tables": {"users": {"path": "u"}}, "more": 1}
    assert list(changes(old, new)) == [
        Change("model.dimension", 16, 32),
        Change("tables.users", None, {"path": "u"}),
        Change("more", None, 1),
    ]
    assert list(changes(old, old)) == []


def test_configuration_data_code_and_stages(tmp_path: Path):
    old = run(tmp_path, "old", "10", METRICS, configuration={
        "training": {"epochs": 6},
        "features": {"query": [{"column": "age", "dimension": 8}, {"column": "gender", "dimension": 8}]},
    })  # fmt: skip
    counts = {"interactions": 3000}
    new = run(tmp_path, "new", "11", OTHERS, first=100, tables="t2", code="c3", counts=counts, configuration={
        "training": {"epochs": 7},
        "features": {"query": [{"column": "gender", "dimension": 16}, {"column": "age", "dimension": 8}]},
    })  # fmt: skip
    found = comparison.compare(old, new, 30)
    assert found.configuration == [Change("training.epochs", 6, 7), Change("features.query.gender.dimension", 8, 16)]
    assert found.data == [Change("fingerprint of the tables", "t1", "t2"), Change("interactions", 2240, 3000)]
    assert found.code == [Change("Trainer", "c2", "c3")]
    states = {each.stage: (each.old_state, each.new_state, each.same_outputs) for each in found.stages}
    assert states["InteractionExampleGen"] == ("done", "cached", True)
    assert states["Trainer"] == ("done", "done", False)
    costs = {each.stage: (each.old_seconds, each.new_seconds, each.new_peak_memory_bytes) for each in found.stages}
    assert costs["InteractionExampleGen"] == (12.34, None, None), "what is cached costs nothing"
    assert costs["Trainer"] == (12.34, 12.34, 2_000_000_000)
    assert "of other data" in found.note


def test_unpaired_differences_have_the_interval_of_two_means(tmp_path: Path):
    found = comparison.compare(run(tmp_path, "old", "10", METRICS), run(tmp_path, "new", "11", OTHERS, first=9), 30)
    assert found.configuration is None and found.intervals == "unpaired" and "not kept" in found.note
    of = {each.metric: each for each in found.metrics}
    assert of.keys() == {"ndcg@5", "recall@5", "coverage@5"}
    assert of["ndcg@5"].difference == pytest.approx(0.02) and of["ndcg@5"].half_width == pytest.approx(
        math.hypot(0.03, 0.03)
    )
    assert of["coverage@5"].difference == pytest.approx(-0.1) and of["coverage@5"].half_width is None


@pytest.mark.parametrize("judge", ["new", "old"])
def test_differences_are_paired_where_one_run_was_the_baseline_of_the_other(tmp_path: Path, judge: str):
    of_judge = {
        "baseline_version": "10" if judge == "new" else "11",
        "baseline_differences": {"overall": {"ndcg@5": 0.021}, "gender=M": {"ndcg@5": -0.1}},
        "baseline_difference_half_widths": {"overall": {"ndcg@5": 0.002}, "gender=M": {"ndcg@5": 0.01}},
    }
    evaluations = {judge: of_judge}
    old = run(tmp_path, "old", "10", METRICS, evaluation=evaluations.get("old", {}))
    new = run(tmp_path, "new", "11", OTHERS, first=9, evaluation=evaluations.get("new", {}))
    found = comparison.compare(old, new, 30)
    sign = 1 if judge == "new" else -1
    assert found.intervals == "paired" and f"run {judge} had the other one" in found.note
    of = {each.metric: each for each in found.metrics}
    assert (of["ndcg@5"].difference, of["ndcg@5"].half_width) == (sign * 0.021, 0.002)
    assert of["recall@5"].difference == pytest.approx(-0.05) and of["recall@5"].half_width is None
    assert found.slices[0].slice == "gender=M" and found.slices[0].difference == sign * -0.1


def test_slices_that_changed_most_come_first_and_those_with_few_queries_last(tmp_path: Path):
    found = comparison.compare(run(tmp_path, "old", "10", METRICS), run(tmp_path, "new", "11", OTHERS, first=9), 30)
    assert [(each.slice, each.too_few) for each in found.slices] == [
        ("gender=M", False), ("gender=F", False), ("activity=5+", True)
    ]  # fmt: skip
    assert found.slices[0].difference == pytest.approx(-0.1) and found.slices[0].queries == 40


def test_intervals_of_another_confidence_are_not_added(tmp_path: Path):
    new = run(tmp_path, "new", "11", OTHERS, first=9, evaluation={"confidence": 0.9})
    found = comparison.compare(run(tmp_path, "old", "10", METRICS), new, 30)
    assert {each.half_width for each in found.metrics} == {None} and found.confidence is None
    assert "another confidence" in found.note


def test_a_run_that_came_to_nothing_is_compared_as_far_as_it_came(tmp_path: Path):
    failed = Run("failed", None, (stage("InteractionExampleGen", "failed", fingerprint="t1", code="c1"),))  # type: ignore[arg-type]
    found = comparison.compare(run(tmp_path, "old", "10", METRICS), failed, 30)
    assert found.slices == [] and found.note == ""
    assert {each.stage for each in found.stages if each.new_state is None} == {"Trainer", "Evaluator", "Pusher"}


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import world

    path = world.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    written = Written(tmp_path / "runs" / "small-world" / "metadata.sqlite")
    for name in ("2026-11-29-aa", "2026-11-30-bb", "2026-11-30-cc"):
        written.run(name, Made("Trainer", {"model": name}), configuration=json.dumps({"training": {"epochs": name}}))
    config = load(path)
    for text, expected in (("last", "cc"), ("last~0", "cc"), ("last~1", "bb"), ("last~2", "aa"), ("2026-11-29", "aa"),
                           ("2026-11-30-b", "bb"), ("2026-11-30-cc", "cc")):  # fmt: skip
        assert runs.read_run(config, text).id.endswith(expected)
    found = twotower("runs", "compare", "last~1", "2026-11-29", "--config", path).answer
    assert found["configuration"] == [{"key": "training.epochs", "old": "2026-11-30-bb", "new": "2026-11-29-aa"}]
    mistakes = {
        "last~3": "there are 3 runs",
        "2026-11-30": "2 runs begin so (2026-11-30-cc, 2026-11-30-bb)",
        "2026-11-30-dd": "did you mean '2026-11-30-",
        "x": "`twotower runs` lists them",
        "": "not in",
    }
    for text, words in mistakes.items():
        for arguments in ([text], ["compare", text, "last"], ["compare", "last", text]):
            outcome = twotower("runs", *arguments, "--config", path)
            assert outcome.code == 2 and words in outcome.errors and outcome.errors.count("\n") == 1, outcome.errors
    outcome = twotower("runs", "compare", "last", "--config", path)
    assert outcome.code == 2 and "'B'" in outcome.errors
