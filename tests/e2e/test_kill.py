"""A run that is killed: metadata store and push destination stay usable, and the next run goes on from there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import world
from e2e_runs import executed, twotower, versions

from pipeline import config, runs

pytestmark = pytest.mark.slow

BEFORE_TRAINER = {"InteractionExampleGen", "StatisticsGen", "SchemaGen", "ExampleValidator", "Transform"}
LONG = ("training.epochs=60", "training.patience=60")
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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not ready():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    world.write_parquet(tmp_path)
    return tmp_path


def test_killed_in_trainer_and_killed_again_in_the_push(folder: Path):
    path = world.write_config(folder, features=world.FEW_FEATURES)
    overrides = [argument for value in LONG for argument in ("--set", value)]
    checkpoints = folder / "runs" / "small-world" / "checkpoints"
    kill_when(
        # TensorFlow writes this file when a checkpoint is whole.
        lambda: any(checkpoints.glob("**/checkpoint")),
        [sys.executable, "-m", "pipeline.cli", "run", "--config", path, *overrides],
    )
    listed = twotower("runs", "--config", path)
    assert listed.answer[0]["state"] == "unfinished"
    assert versions(folder) == []

    destination = folder / "served" / "small-world"
    kill_when(
        lambda: any(p.is_file() for p in destination.rglob("*")),
        [sys.executable, "-c", SLOW_PUSH, "run", "--config", path, *overrides],
    )
    states = {stage.name: stage.state for stage in runs.read_runs(config.load(path), last=1)[0].stages}
    assert {states[name] for name in BEFORE_TRAINER} == {"cached"} and states["Trainer"] == "done"
    assert states["Pusher"] == "unfinished"
    assert not any(checkpoints.glob("**/checkpoint")), "a finished training leaves no checkpoint behind"
    assert versions(folder) == []
    assert twotower("recommend", "--config", path, "--user", "1").code == 2

    outcome = twotower("run", "--config", path, *overrides)
    assert outcome.code == 0, outcome.errors
    assert executed(path) == {"Pusher"}
    assert outcome.answer["training"]["resumed_from_epoch"] > 0
    (version,) = versions(folder)
    assert [p.name for p in destination.iterdir()] == [version], "what the killed push left is cleaned up"
    assert twotower("recommend", "--config", path, "--user", "1").code == 0
