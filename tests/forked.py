"""Processes of their own that cost no import of TFX: forked from a server that has imported everything.

What a `python -m MODULE …` has of its own it has here as well: arguments, environment, folder, output, exit code, and
that it can be killed. What it lacks is an interpreter that has imported nothing; where that is tested, start one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# Everything that a run, or a stage of it, imports late; not the modules that are started themselves.
EXECUTORS = (
    "components.baseline_resolver.executor", "components.evaluator.executor", "components.example_validator.executor",
    "components.interaction_example_gen.executor", "components.pusher.executor",
    "components.scann_index_builder.executor", "components.schema_gen.executor",
    "components.servable_validator.executor", "modules.trainer", "modules.preprocessing", "pipeline.pipeline",
    "pipeline.summary", "tfx.components.statistics_gen.executor", "tfx.components.transform.executor",
    "tfx.components.trainer.executor", "tfx.orchestration.local.local_dag_runner",
)  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*EXECUTORS, "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"])


class Forked:
    """One such process; in place of `subprocess.Popen` for those who start, kill and wait.

    Args:
        command: `python -m MODULE` and arguments, or `python FILE` and arguments.
        cwd: Its folder.
        env: Its environment, by default this process's own.
        stdout: An open file, by default none.
        stderr: Where what it says goes as well: to `stdout`, whatever it is.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[str] | int | None = None,
        stderr: int | None = None,
    ) -> None:
        log = os.devnull if stdout is None or isinstance(stdout, int) else stdout.name
        arguments = (list(command), str(cwd or os.getcwd()), dict(os.environ if env is None else env), log)
        self._process = _context.Process(target=_run, args=arguments)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode


def _run(command: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    with open(log, "a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if command[1] == "-m":
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command[1:]
        runpy.run_path(command[1], run_name="__main__")
