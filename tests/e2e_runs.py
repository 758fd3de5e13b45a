"""Running commands in this process, so that TFX is imported once, and looking at what they left."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import plain_tensorflow

from pipeline import cli, config, runs

# What a gate's own setting executes; the page says what came of it.
GATES_AND_PUSH = {"BaselineResolver", "Evaluator", "Pusher", "RunReport"}
FROM_TRAINER = GATES_AND_PUSH | {"Trainer", "ScannIndexBuilder", "ServableValidator"}
FROM_TRANSFORM = FROM_TRAINER | {"Transform"}


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    code: int
    answer: Any
    errors: str


def twotower(*arguments: str) -> Outcome:
    """Runs one command with --json, as a shell would; a run's ServableValidator forks the process that it starts."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as changed:
        if arguments[0] == "run":
            from components.servable_validator import executor

            changed.enter_context(mock.patch.object(executor, "subprocess", plain_tensorflow))
        changed.enter_context(contextlib.redirect_stdout(out))
        changed.enter_context(contextlib.redirect_stderr(err))
        code = cli.main([*arguments, "--json"])
    text = out.getvalue().strip()
    return Outcome(code, json.loads(text) if text else None, err.getvalue())


def executed(config_path: str, *overrides: str) -> set[str]:
    """Stages of the last run that the metadata store does not have as cached."""
    run = runs.read_runs(config.load(config_path, overrides), last=1)[0]
    assert {s.state for s in run.stages} <= {"done", "cached"}
    return {s.name for s in run.stages if s.state != "cached"}


def versions(folder: Path) -> list[str]:
    destination = folder / "served" / "small-world"
    return sorted(p.name for p in destination.iterdir() if p.name.isdigit()) if destination.exists() else []


@dataclass(frozen=True)
class Small:
    """A finished run over the small world."""

    folder: Path
    config_path: str
    outcome: Outcome

    def serve_in(self, destination: Path) -> Path:
        """Copies what this run has pushed, and nothing that later runs have, into another push destination."""
        pushed = Path(self.outcome.answer["pushed"])
        return Path(shutil.copytree(pushed, destination / pushed.parent.name / pushed.name))
