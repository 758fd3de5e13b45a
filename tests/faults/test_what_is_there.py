"""What a run re-uses and says to have pushed is there: deleted versions, damaged artifacts, two runs at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import world
from e2e_runs import GATES_AND_PUSH, Outcome, twotower
from faulty_runs import Starter

from pipeline import config, runs
from pipeline.runs import Run

pytestmark = pytest.mark.slow


class World:
    """A finished run of its own: other tests' artifacts are not to be damaged."""

    def __init__(self, folder: Path) -> None:
        world.write_parquet(folder)
        self._path = world.write_config(folder, features=world.FEW_FEATURES)
        self.served = folder / "served" / "small-world"

    def command(self, name: str, *arguments: str) -> list[str]:
        return [name, "--config", self._path, *arguments]

    def run(self, *arguments: str) -> Outcome:
        outcome = twotower(*self.command("run", *arguments))
        assert outcome.code == 0, outcome.errors
        pushed = Path(outcome.answer["pushed"])
        # What is said to be pushed is there.
        assert (pushed / "saved_model.pb").exists() and not outcome.answer["deleted"]
        return outcome

    def last(self) -> Run:
        return runs.read_runs(config.load(self._path), last=1)[0]

    def executed(self) -> set[str]:
        return {stage.name for stage in self.last().stages if stage.state != "cached"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    finished = World(tmp_path_factory.mktemp("finished"))
    finished.run()
    return finished


def test_a_version_that_was_deleted_is_pushed_again_though_an_older_one_stays(
    finished: World, capfd: pytest.CaptureFixture[str]
):
    pushed = Path(finished.run().answer["pushed"])
    shutil.copytree(pushed, finished.served / "7")
    shutil.rmtree(pushed)
    assert twotower(*finished.command("runs", "last")).answer["deleted"]
    outcome = finished.run()
    assert f"{pushed} is no longer there: made again" in capfd.readouterr().err
    assert finished.executed() <= GATES_AND_PUSH and "Pusher" in finished.executed()
    shutil.rmtree(finished.served / "7")
    assert finished.run().answer["pushed"] == outcome.answer["pushed"], "and once is enough"


def test_an_update_of_a_deleted_version_stands_for_it(finished: World):
    pushed = Path(finished.run().answer["pushed"])
    updated = twotower(*finished.command("update-index", "--remove", "80"))
    assert updated.code == 0, updated.errors
    shutil.rmtree(pushed)
    outcome = finished.run()
    assert Path(outcome.answer["pushed"]).name == str(updated.answer["version"])
    assert "Pusher" not in finished.executed(), "a run does not take back what the update did"
    shutil.rmtree(finished.served / str(updated.answer["version"]))
    finished.run()


def test_a_damaged_version_is_named_and_pushed_again(finished: World):
    pushed = Path(finished.run().answer["pushed"])
    variables = pushed / "variables" / "variables.data-00000-of-00001"
    content = variables.read_bytes()
    # In a file of its own: the artifacts' copies of it may be the same file.
    variables.unlink()
    variables.write_bytes(content[: len(content) // 2])
    for arguments in (["recommend", "--user", "1"], ["similar", "--item", "1"], ["update-index", "--remove", "1"],
                      ["batch", "--k", "5", "--output", str(finished.served / "top.parquet")]):  # fmt: skip
        outcome = twotower(*finished.command(*arguments))
        assert outcome.code == 2 and outcome.errors.count("\n") == 1, outcome.errors
        assert str(variables) in outcome.errors and "pushes the model again" in outcome.errors
    assert not (finished.served / "top.parquet").exists()
    outcome = finished.run()
    assert outcome.answer["pushed"] != str(pushed)
    assert twotower(*finished.command("recommend", "--user", "1")).code == 0
    shutil.rmtree(pushed)


@pytest.mark.parametrize(
    ("stage", "key", "pattern"),
    [
        ("Transform", "transformed_examples", "Split-train/*.gz"),
        ("Trainer", "model", "Format-Serving/variables/variables.data*"),
    ],
)
def test_a_damaged_artifact_is_named_and_made_again(
    finished: World, stage: str, key: str, pattern: str, capfd: pytest.CaptureFixture[str]
):
    finished.run()
    made = finished.last().stage(stage)
    assert made is not None
    folder = Path(made.output(key).uri)  # type: ignore[union-attr]
    damaged = next(iter(sorted(folder.glob(pattern))))
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    finished.run("--set", "evaluation.max_regression={}")
    # Progress goes to the person's terminal, whatever Python calls stderr.
    words = f"{damaged} has {len(content) // 2:,} of {len(content):,} bytes: made again"
    assert words in capfd.readouterr().err
    assert stage in finished.executed() and "InteractionExampleGen" not in finished.executed()
    finished.run("--set", "evaluation.max_regression={}")
    assert finished.executed() <= GATES_AND_PUSH


def test_damage_that_nobody_can_see_is_found_when_a_stage_fails(finished: World):
    finished.run()
    transform = finished.last().stage("Transform")
    assert transform is not None
    folder = Path(transform.output("transformed_examples").uri)  # type: ignore[union-attr]
    shard = next(iter(sorted(folder.glob("Split-train/*.gz"))))
    before, content = shard.stat(), bytearray(shard.read_bytes())
    for position in range(len(content) // 3, len(content) // 3 + 200):
        content[position] ^= 0xFF
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = ["--set", "training.learning_rate=0.021", "--set", "evaluation.max_regression={}"]
    outcome = twotower(*finished.command("run", *changed))
    assert outcome.code == 2, outcome.errors
    last = outcome.errors.splitlines()[-1]
    assert last.startswith(f"twotower: {shard} has other content than was written; run again"), outcome.errors
    assert "Traceback" not in outcome.errors
    finished.run(*changed)
    assert {"Transform", "Trainer"} <= finished.executed()


def test_two_runs_at_once_on_one_root_both_succeed(finished: World, starter: Starter):
    command = finished.command("run", "--set", "training.learning_rate=0.019", "--set", "evaluation.max_regression={}")
    starter.start(command, command)
    outcomes = starter.ended()
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    listed = {run["run"]: run for run in twotower(*finished.command("runs")).answer}
    answers = [outcome.answer for outcome in outcomes]
    assert len({answer["run"] for answer in answers}) == 2
    for answer in answers:
        assert listed[answer["run"]]["state"] == "done" and Path(answer["pushed"]).is_dir()
