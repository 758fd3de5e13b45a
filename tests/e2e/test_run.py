"""A whole run: what comes out, what a second run re-uses, what a change re-executes, what a refusal leaves alone."""

from __future__ import annotations

import html
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import world
from e2e_runs import FROM_TRAINER, GATES_AND_PUSH, Small, executed, twotower, versions

from pipeline import config, fingerprint, pipeline

pytestmark = pytest.mark.slow

# In this order: as long as nothing else has been pushed, there is the same baseline, and the Evaluator need not run.


def test_the_model_has_learned_the_world(small: Small):
    metrics = small.outcome.answer["metrics"]["overall"]
    # A user has 20 films of the own taste, 14 interactions, and nine in ten stay in it: five guesses inside the
    # remaining ones find the next film far more often than five of the most popular films of everybody.
    assert metrics["recall@5"] > 2 * metrics["popular_recall@5"]
    assert metrics["recall@20"] > 0.6
    assert {"gender=F", "gender=M", "activity=5+"} <= set(small.outcome.answer["metrics"])


def test_it_is_pushed_as_tf_serving_wants_it(small: Small):
    (version,) = versions(small.folder)
    pushed = Path(small.outcome.answer["pushed"])
    assert pushed == small.folder / "served" / "small-world" / version
    assert (pushed / "saved_model.pb").exists()
    assert (pushed / "assets.extra" / "tf_serving_warmup_requests").stat().st_size > 0
    assert small.outcome.answer["gates"]["Evaluator"]["blessed"]
    assert small.outcome.answer["gates"]["ServableValidator"]["blessed"]


def test_the_same_run_again_executes_nothing(small: Small, capfd: pytest.CaptureFixture[str]):
    before = versions(small.folder)
    # Where events go is no part of what a stage makes, and a sink that refuses them is said and nothing else.
    outcome = twotower("run", "--config", small.config_path, "--set", "output.openlineage=/proc/none/events")
    assert outcome.code == 0, outcome.errors
    assert capfd.readouterr().err.count("output.openlineage: /proc/none/events: ") == 1
    assert executed(small.config_path) == set()
    assert versions(small.folder) == before
    assert outcome.answer["pushed"] == small.outcome.answer["pushed"]
    assert outcome.answer["metrics"] == small.outcome.answer["metrics"]


def test_a_model_below_a_floor_is_not_pushed_and_the_old_one_stays(small: Small):
    before = versions(small.folder)
    outcome = twotower("run", "--config", small.config_path, "--set", "evaluation.floors={ndcg@5: 0.99}")
    assert outcome.code == 1
    assert executed(small.config_path) <= GATES_AND_PUSH
    assert outcome.answer["pushed"] is None
    assert versions(small.folder) == before
    (reason,) = outcome.answer["gates"]["Evaluator"]["reasons"]
    assert "ndcg@5" in reason and "0.99" in reason
    text = html.unescape(Path(outcome.answer["report"]).read_text(encoding="utf-8"))
    assert "Nothing was pushed: Evaluator refused the model" in text and reason in text
    assert twotower("recommend", "--config", small.config_path, "--user", "1").code == 0


def test_a_slow_servable_is_not_pushed(small: Small):
    before = versions(small.folder)
    outcome = twotower("run", "--config", small.config_path, "--set", "serving.latency_p99_ms=0.0001")
    assert outcome.code == 1
    assert executed(small.config_path) <= GATES_AND_PUSH | {"ServableValidator"}
    assert versions(small.folder) == before
    assert not outcome.answer["gates"]["ServableValidator"]["blessed"]
    assert "0.0001" in " ".join(outcome.answer["gates"]["ServableValidator"]["reasons"])


def test_a_changed_file_of_a_package_executes_what_imports_it(small: Small, tmp_path: Path, monkeypatch):
    """Three imports away from the Trainer: trainer → training/loop → towers/two_tower → towers/terms."""
    for package in ("components", "modules"):
        shutil.copytree(fingerprint._ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "_ROOT", tmp_path)
    outcome = twotower("run", "--config", small.config_path)
    assert outcome.code == 0 and executed(small.config_path) == set()
    with open(tmp_path / "modules/towers/terms.py", "a") as file:
        file.write("\n# another version\n")
    outcome = twotower("run", "--config", small.config_path)
    assert outcome.code == 0, outcome.errors
    assert executed(small.config_path) == FROM_TRAINER


def test_a_changed_setting_executes_what_depends_on_it(small: Small):
    """Other settings: a Transform of other features in tests/faults, gates below."""
    # One that leaves the model able to pass, but is not refused for being too close to the baseline.
    changes = ["--set", "serving.k=21", "--set", "evaluation.max_regression={}"]
    changes += ["--set", "serving.max_per_value={genres: 6}"]
    outcome = twotower("run", "--config", small.config_path, *changes)
    assert outcome.code == 0, outcome.errors
    # The ExampleValidator compares k with the catalogue.
    assert executed(small.config_path) >= FROM_TRAINER - {"Trainer", "BaselineResolver"} | {"ExampleValidator"}
    assert not executed(small.config_path) & {"InteractionExampleGen", "StatisticsGen", "Transform", "Trainer"}
    genres = {str(item["item_id"]): item["genres"] for item in world.items()}
    answer = twotower("recommend", "--config", small.config_path, *changes, "--user", "1", "--k", "21").answer
    counts = Counter(genre for found in answer["items"] for genre in genres[found["item_id"]])
    assert counts and max(counts.values()) == 6


def test_a_much_worse_model_loses_to_the_baseline(small: Small):
    before = versions(small.folder)
    outcome = twotower(
        "run", "--config", small.config_path, "--set", "training.epochs=1", "--set", "training.learning_rate=0.000001",
        # The item-item model alone would be good enough to pass.
        "--set", "model.item_item_rank=0", "--set", "evaluation.beat_popularity=false",
    )  # fmt: skip
    assert outcome.code == 1
    assert versions(small.folder) == before
    assert any("baseline" in r or "last pushed" in r for r in outcome.answer["gates"]["Evaluator"]["reasons"])


def test_a_changed_table_is_another_input_of_the_first_stage(tmp_path: Path):
    """And so of all others: each stage's outcome is kept by its inputs."""
    world.write_csv(tmp_path)
    path = world.write_config(tmp_path, "csv")

    def parameters() -> dict[str, Any]:
        components = pipeline.create_pipeline(config.load(path)).components
        (first,) = (c for c in components if c.id == "InteractionExampleGen")
        return dict(first.exec_properties)

    before = parameters()
    assert parameters() == before
    table = tmp_path / "items.csv"
    text = table.read_text()
    assert text.count("Drama film 3,") == 1
    table.write_text(text.replace("Drama film 3,", "Another title,"))
    after = parameters()
    assert {key for key in before if before[key] != after[key]} == {"fingerprint"}
