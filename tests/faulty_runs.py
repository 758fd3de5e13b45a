"""Runs in processes of their own that cost no import of TFX: forked from one process that has imported everything.

Started as a program, it reads a request a line and writes an answer a line; `Starter` is the other end of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_runs import Outcome
from forked import EXECUTORS

_LOOK_AGAIN_SECONDS = 0.001


class Starter:
    """The process that has imported everything."""

    def __init__(self) -> None:
        self.mounts = _can_mount()
        """Whether it may mount file systems, which nobody else sees."""
        namespaces = ["unshare", "--map-root-user", "--mount"] if self.mounts else []
        # Beside this file are folders with the packages' names.
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        self._process = subprocess.Popen(
            [*namespaces, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, *arguments: str, dies_in: str = "", full: Path | None = None) -> Outcome:
        """Runs one command with --json to its end; the code is negative when a signal ended it.

        Args:
            arguments: As for `twotower`.
            dies_in: A stage in which the process gets SIGKILL: as soon as the stage has a file, or else when it is
                through and before that is published.
            full: A folder that is a file system of its own meanwhile, and full.
        """
        self.start(arguments, dies_in=dies_in, full=full)
        return self.ended()[0]

    def start(
        self,
        *commands: Sequence[str],
        dies_in: str = "",
        full: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts commands side by side, as `run` does; `environment` is added to that of this process."""
        request = {
            "commands": commands,
            "dies_in": dies_in,
            "full": str(full or ""),
            "environment": dict(environment or {}),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def ended(self) -> list[Outcome]:
        """Waits for what was started."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the starter has ended"
        return [
            Outcome(answer["code"], json.loads(answer["out"]) if answer["out"].strip() else None, answer["err"])
            for answer in json.loads(line)
        ]

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _can_mount() -> bool:
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


def _serve() -> None:
    import importlib

    from pipeline import local_runner

    local_runner.quiet_libraries()
    answers = os.fdopen(os.dup(1), "w")
    # Whatever libraries say while they are imported.
    os.dup2(2, 1)
    for module in EXECUTORS:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        with _full(request["full"]):
            runs = [_Run.fork(request, arguments) for arguments in request["commands"]]
            answers.write(json.dumps([run.wait() for run in runs]) + "\n")
            answers.flush()


@contextlib.contextmanager
def _full(folder: str) -> Any:
    if not folder:
        yield
        return
    os.makedirs(folder, exist_ok=True)
    # One page, which is taken; folders can still be made, as on a disk with free inodes.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], check=True)
    try:
        with open(os.path.join(folder, "filler"), "wb") as file:
            file.write(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@dataclass(frozen=True)
class _Run:
    process: int
    out: int
    err: int

    @classmethod
    def fork(cls, request: dict[str, Any], arguments: Sequence[str]) -> _Run:
        out, err = (os.memfd_create(name) for name in ("out", "err"))
        process = os.fork()
        if process:
            return cls(process, out, err)
        code = 1
        try:
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.environ.update(request["environment"])
            if request["dies_in"]:
                _die_in(request["dies_in"])
            from pipeline import cli

            code = cli.main([*arguments, "--json"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> dict[str, Any]:
        _, status = os.waitpid(self.process, 0)
        texts = {}
        for name, descriptor in (("out", self.out), ("err", self.err)):
            with open(descriptor, encoding="utf-8", errors="replace") as file:
                file.seek(0)
                texts[name] = file.read()
        return {"code": os.waitstatus_to_exitcode(status), **texts}


def _die_in(stage: str) -> None:
    """Has this process killed while a stage is executing."""
    from tfx.orchestration.portable import python_executor_operator as operator

    run_with_executor = operator.run_with_executor

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(folders: list[Path]) -> None:
        while not any(path.is_file() for folder in folders for path in folder.rglob("*")):
            time.sleep(_LOOK_AGAIN_SECONDS)
        die()

    def dying(info: Any, executor: Any) -> Any:
        if info.pipeline_node.node_info.id != stage:
            return run_with_executor(info, executor)
        folders = [Path(artifact.uri) for artifacts in info.output_dict.values() for artifact in artifacts]
        threading.Thread(target=watch, args=(folders,), daemon=True).start()
        run_with_executor(info, executor)
        die()

    operator.run_with_executor = dying


if __name__ == "__main__":
    _serve()
