"""Ctrl-C and SIGTERM in the middle of a stage: one line, the stage is marked as failed, the next run goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_runs import FROM_TRANSFORM, Small, twotower

from pipeline import config, runs

pytestmark = pytest.mark.slow

BEFORE_TRAINER = {"InteractionExampleGen", "StatisticsGen", "SchemaGen", "ExampleValidator", "Transform"}


@pytest.fixture
def copy(small: Small, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of a finished run's store, and the options that name it: what the run made is cached here, too."""
    root = tmp_path / "runs"
    shutil.copytree(small.folder / "runs" / "small-world", root / "small-world")
    return root / "small-world", [
        "--config", small.config_path, "--set", f"output.root={root}", "--set", f"output.push={tmp_path / 'served'}"
    ]  # fmt: skip


def interrupt(number: signal.Signals, ready: Callable[[], bool], arguments: list[str]) -> tuple[int, str, float]:
    """Starts a run, sends a signal when something has happened; returns code, errors, and seconds until the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 300
        while not ready():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        sent = time.monotonic()
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors, time.monotonic() - sent
    finally:
        process.kill()
        process.wait()


def states(arguments: list[str]) -> dict[str, str]:
    path, *overrides = (a for a in arguments if a != "--config" and a != "--set")
    return {stage.name: stage.state for stage in runs.read_runs(config.load(path, overrides), last=1)[0].stages}


def check(code: int, errors: str, expected: int, stage: str) -> None:
    assert code == expected, errors
    assert "Traceback" not in errors
    *progress, last = errors.splitlines()
    assert last == f"twotower: interrupted in {stage}; what was finished stays, and `twotower run` goes on from there"
    assert all(line[:1] in "✓↺✗ " for line in progress), progress


def test_in_a_stage_of_beam(copy: tuple[Path, list[str]]):
    root, arguments = copy
    arguments = [*arguments, "--set", "features.query.age.boundaries=[21, 41]"]
    folder = root / "Transform" / "transform_graph"
    before = set(folder.iterdir())
    code, errors, seconds = interrupt(signal.SIGINT, lambda: set(folder.iterdir()) != before, arguments)
    check(code, errors, 130, "Transform")
    assert seconds < 60
    assert states(arguments)["Transform"] == "failed"
    assert twotower("runs", *arguments, "last").answer["state"] == "failed"
    assert {path for path in folder.iterdir() if path.is_dir()} == {path for path in before if path.is_dir()}
    outcome = twotower("run", *arguments)
    assert outcome.code == 0, outcome.errors
    # What the schema is checked against has changed too, and was seen to in the run that was interrupted.
    done = {name for name, state in states(arguments).items() if state == "done"}
    assert done - {"BaselineResolver"} == FROM_TRANSFORM - {"BaselineResolver"}


def test_in_the_trainer_by_sigterm(copy: tuple[Path, list[str]]):
    root, arguments = copy
    arguments = [*arguments, "--set", "training.epochs=60", "--set", "training.patience=60"]
    # TensorFlow writes this file when a checkpoint is whole.
    whole = "**/checkpoint"
    code, errors, _ = interrupt(signal.SIGTERM, lambda: any((root / "checkpoints").glob(whole)), arguments)
    check(code, errors, 143, "Trainer")
    assert states(arguments)["Trainer"] == "failed"
    outcome = twotower("run", *arguments)
    assert outcome.code == 0, outcome.errors
    after = states(arguments)
    assert {after[name] for name in BEFORE_TRAINER} == {"cached"} and after["Trainer"] == "done"
    assert outcome.answer["training"]["resumed_from_epoch"] > 0
