"""After runs: two of them compared, room made without harm to the next one, an earlier version again."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_runs import Small, executed, twotower, versions

from pipeline import config, runs

pytestmark = pytest.mark.slow

FLOOR = "evaluation.floors={ndcg@5: 0.98}"


def test_a_run_after_cleaning_takes_what_stayed_and_makes_again_what_went(small: Small):
    def run(*changes: str) -> tuple[int, set[str]]:
        outcome = twotower("run", "--config", small.config_path, *[word for c in changes for word in ("--set", c)])
        return outcome.code, executed(small.config_path, *changes)

    code, first = run(FLOOR)
    assert code == 1 and {"Evaluator", "Pusher"} <= first
    # What is compared with depends on what other tests have pushed, the first time.
    assert run()[0] == 0 and run() == (0, set())

    found = twotower("runs", "compare", "last~2", "last", "--config", small.config_path).answer
    assert found["configuration"] == [{"key": "evaluation.floors.ndcg@5", "old": 0.98, "new": None}]
    stages = {each["stage"]: each for each in found["stages"]}
    assert stages["Trainer"]["same_outputs"] and not stages["Evaluator"]["same_outputs"]
    assert stages["Evaluator"]["old_peak_memory_bytes"] > 10**8 and stages["Evaluator"]["new_seconds"] is None
    assert found["metrics"] and all(each["difference"] == 0 for each in found["metrics"])

    before = versions(small.folder)
    done = twotower("clean", "--config", small.config_path, "--keep", "1", "--yes")
    assert done.code == 0 and done.answer["bytes"] > 0, done.errors
    refused = runs.read_run(config.load(small.config_path), "last~2")
    evaluation = refused.stage("Evaluator").output("evaluation")  # type: ignore[union-attr]
    assert not evaluation.is_live and [path.name for path in Path(evaluation.uri).iterdir()] == ["summary.json"]
    assert twotower("runs", refused.id, "--config", small.config_path).answer["metrics"] == found_metrics(refused)
    assert twotower("report", refused.id, "--config", small.config_path).code == 0, "its page stays too"
    assert run() == (0, set()), "everything that the newest run refers to is there"
    # Its folder is there, with the summary: by the mark alone the cache knows that it is no outcome any more.
    code, again = run(FLOOR)
    assert code == 1 and again == {"Evaluator", "Pusher", "RunReport"}
    assert versions(small.folder) == before


def found_metrics(run: runs.Run) -> dict:
    stage = run.stage("Evaluator")
    return runs.read_json(stage.output("evaluation") if stage else None, "summary.json")["metrics"]


def test_an_earlier_version_is_asked_updated_and_listed_again(small: Small, tmp_path: Path):
    first = int(small.serve_in(tmp_path / "served").name)
    options = ["--config", small.config_path, "--set", f"output.push={tmp_path / 'served'}"]
    ask = ["recommend", *options, "--user", "4", "--k", "5"]
    before = [item["item_id"] for item in twotower(*ask).answer["items"]]
    removed = before[0]
    second = twotower("update-index", *options, "--remove", removed).answer["version"]
    done = twotower("rollback", *options)
    assert done.code == 0, done.errors
    third = done.answer["version"]
    answer = twotower(*ask).answer
    assert [item["item_id"] for item in answer["items"]] == before and answer["model_version"] == third
    listed = twotower("rollback", "--list", *options).answer["versions"]
    assert [(each["version"], each["made_by"], each["made_from"], each["state"]) for each in listed] == [
        (third, "rollback", first, "served"),
        (second, "update-index", first, "taken back"),
        (first, "run", None, "in force"),
    ]
    assert listed[-1]["run"] == small.outcome.answer["run"]
    # The copy is whole: an update goes on from it.
    updated = twotower("update-index", *options, "--remove", removed).answer
    assert updated["updated_version"] == third
