"""Processes that have imported TensorFlow and nothing of this project, and cost no import: forked from one that has.

`run` stands in for `subprocess.run` where an interpreter is started to see what works with TensorFlow alone. What such
a process has not is an interpreter that was started for it; tests/components/test_servable_validator.py has those.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import TimeoutExpired as TimeoutExpired
from typing import Any

_LOOK_AGAIN_SECONDS = 0.002


def run(
    command: Sequence[str], *, timeout: float | None = None, env: Mapping[str, str] | None = None, check: bool = False,
    **_: Any,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Runs `python [-P] -c CODE …` or `python [-P] FILE …`; what it writes is captured, as text.

    Raises:
        TimeoutExpired: It took longer, and was killed.
        CalledProcessError: `check`, and it has failed.
    """
    arguments = [word for word in command[1:] if word != "-P"]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {"arguments": arguments, "environment": dict(os.environ if env is None else env), "cwd": os.getcwd(),
                   "out": str(out), "err": str(err), "timeout": timeout}  # fmt: skip
        code = _server().ask(request)
        if code is None:
            assert timeout is not None
            raise TimeoutExpired(command, timeout)
        done = subprocess.CompletedProcess(command, code, out.read_text(), err.read_text(errors="replace"))
    if check:
        done.check_returncode()
    return done


class _Server:
    """The process that has imported TensorFlow."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._lock = threading.Lock()
        atexit.register(self._stop)

    def ask(self, request: Mapping[str, Any]) -> int | None:
        """The exit code; None where the time was over."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def _stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


_server = functools.cache(_Server)


def _serve() -> None:
    import tensorflow  # noqa: F401
    from tensorflow_serving.apis import prediction_log_pb2  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        print(json.dumps(_code(child, request["timeout"])), flush=True)


def _code(child: int, timeout: float | None) -> int | None:
    """As `subprocess` has it: negative when a signal ended the process; None, and it is killed, when time is over."""
    end = time.monotonic() + (timeout or float("inf"))
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(_LOOK_AGAIN_SECONDS)


def _become(request: Mapping[str, Any]) -> None:
    """Does in this process what was asked for, and ends it."""
    for descriptor, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    first, *others = request["arguments"]
    code = 0
    try:
        if first == "-c":
            sys.argv = ["-c", *others[1:]]
            exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [first, *others]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, (int, type(None))):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
