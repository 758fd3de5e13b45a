"""A run that is killed: metadata store and push destination stay usable, and the next run goes on from there."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_runs import Small, executed, twotower, versions
from forked import Forked

from pipeline import config, runs

pytestmark = pytest.mark.slow

BEFORE_TRAINER = {"InteractionExampleGen", "StatisticsGen", "SchemaGen", "ExampleValidator", "Transform"}
LONG = ("training.epochs=20", "training.patience=20")
# Every file that goes into the push destination takes a second, as on a slow disk.
SLOW_PUSH = """
import sys, time
from tfx.dsl.io import fileio
copy = fileio.copy
def slow(source, destination, *arguments, **named):
    if "served" in str(destination):
        time.sleep(1)
    return copy(source, destination, *arguments, **named)
fileio.copy = slow
from pipeline import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def kill_when(ready: Callable[[], bool], command: list[str]) -> None:
    """Starts a process and kills it with SIGKILL as soon as something has happened."""
    process = Forked(command)
    try:
        deadline = time.monotonic() + 240
        while not ready():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_killed_in_trainer_and_killed_again_in_the_push(small: Small, tmp_path: Path):
    root = tmp_path / "runs"
    # Up to Transform all is cached here, too.
    shutil.copytree(small.folder / "runs" / "small-world", root / "small-world")
    path, outputs = small.config_path, [f"output.root={root}", f"output.push={tmp_path / 'served'}"]
    overrides = [argument for value in [*LONG, *outputs] for argument in ("--set", value)]
    checkpoints = root / "small-world" / "checkpoints"
    kill_when(
        # TensorFlow writes this file when a checkpoint is whole.
        lambda: any(checkpoints.glob("**/checkpoint")),
        [sys.executable, "-m", "pipeline.cli", "run", "--config", path, *overrides],
    )
    listed = twotower("runs", "--config", path, *overrides)
    assert listed.answer[0]["state"] == "unfinished"
    assert versions(tmp_path) == []

    destination = tmp_path / "served" / "small-world"
    slow_push = tmp_path / "slow_push.py"
    slow_push.write_text(SLOW_PUSH)
    kill_when(
        lambda: any(p.is_file() for p in destination.rglob("*")),
        [sys.executable, str(slow_push), "run", "--config", path, *overrides],
    )
    states = {stage.name: stage.state for stage in runs.read_runs(config.load(path, outputs), last=1)[0].stages}
    assert {states[name] for name in BEFORE_TRAINER} == {"cached"} and states["Trainer"] == "done"
    assert states["Pusher"] == "unfinished"
    assert not any(checkpoints.glob("**/checkpoint")), "a finished training leaves no checkpoint behind"
    assert versions(tmp_path) == []
    assert twotower("recommend", "--config", path, *overrides, "--user", "1").code == 2

    outcome = twotower("run", "--config", path, *overrides)
    assert outcome.code == 0, outcome.errors
    assert executed(path, *outputs) == {"Pusher", "RunReport"}
    assert outcome.answer["training"]["resumed_from_epoch"] > 0
    (version,) = versions(tmp_path)
    assert [p.name for p in destination.iterdir()] == [version], "what the killed push left is cleaned up"
    assert twotower("recommend", "--config", path, *overrides, "--user", "1").code == 0
