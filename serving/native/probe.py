"""Builds `probe.cc` against the installed TensorFlow, and runs it on a version folder.

The binary stays in `build/native`, under a name that changes with the source, TensorFlow and the compiler.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("probe.cc")
BUILD = Path(__file__).parents[2] / "build" / "native"

_ERROR = "probe: "


class ProbeError(Exception):
    """The version cannot be probed; the message is one line."""


class NoCompilerError(ProbeError):
    """There is nothing to build the probe with."""


@dataclass(frozen=True)
class Timing:
    """Time in `Session::Run` for requests of one kind; each thread asks again as soon as it has its answer."""

    signature: str
    batch: int
    """Rows in a request."""
    threads: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_second: float
    """Requests, of all threads."""


@dataclass(frozen=True)
class Report:
    """What the probe saw of a version."""

    tensorflow: str
    requests: int
    """Warm-up requests, of which each was answered."""
    load_seconds: float
    replay_seconds: float
    """The first answers to all requests, which optimise the graphs."""
    timings: tuple[Timing, ...]


def build(folder: Path | None = None) -> Path:
    """Returns the binary, compiled if it is not there yet.

    Args:
        folder: Where binaries are kept, `BUILD` by default.

    Raises:
        NoCompilerError: Neither g++ nor what CXX names is on this machine.
        ProbeError: The compiler refused.
    """
    folder = folder or BUILD
    compiler = os.environ.get("CXX", "g++")
    found = importlib.util.find_spec("tensorflow")
    if found is None or not found.submodule_search_locations:
        raise ProbeError("TensorFlow is not installed")
    libraries = found.submodule_search_locations[0]
    parts = (SOURCE.read_text(), importlib.metadata.version("tensorflow"), libraries, compiler)
    binary = folder / f"probe-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    if not binary.exists():
        if shutil.which(compiler) is None:
            raise NoCompilerError(f"there is no C++ compiler here: {compiler} is not found (CXX names another one)")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            output = Path(unfinished) / binary.name
            command = [compiler, *_flags(), str(SOURCE), "-o", str(output), *_link_flags(libraries)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise ProbeError(f"{compiler} does not compile {SOURCE.name}: {(errors or ['no reason given'])[0]}")
            output.replace(binary)
    return binary


def run(
    version: Path,
    threads: Sequence[int],
    seconds: float,
    signature: str = "",
    batch: int = 0,
    answers: Path | None = None,
) -> Report:
    """Replays a version's warm-up requests, each once, then under load for each signature and batch size.

    Args:
        version: A version folder on this machine.
        threads: Numbers of threads that ask at a time.
        seconds: For each signature, batch size and number of threads.
        signature: The only one whose time is taken, "" for all.
        batch: The only batch size, 0 for all.
        answers: File for requests and answers, a TFRecord of PredictionLog.

    Raises:
        NoCompilerError: The probe is not built, and cannot be.
        ProbeError: The version does not load, or a request is not answered.
    """
    command = [str(build()), str(version), f"--threads={','.join(map(str, threads))}", f"--seconds={seconds}"]
    command += [f"--signature={signature}", f"--batch={batch}", f"--answers={answers or ''}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # TensorFlow logs to the same stream.
        lines = [line.removeprefix(_ERROR) for line in done.stderr.splitlines() if line.startswith(_ERROR)]
        raise ProbeError(lines[-1] if lines else f"the native probe ended with code {done.returncode}")
    found = json.loads(done.stdout)
    timings = tuple(timing(**load) for load in found.pop("loads"))
    return Report(tensorflow=importlib.metadata.version("tensorflow"), timings=timings, **found)


def timing(signature: str, batch: int, threads: int, seconds: float, milliseconds: Sequence[float]) -> Timing:
    """Percentiles of what the probe saw under one load."""
    p50, p95, p99 = (round(float(p), 3) for p in np.percentile(milliseconds, (50, 95, 99)))
    calls = len(milliseconds)
    return Timing(signature, batch, threads, calls, p50, p95, p99, round(calls / seconds, 1))


def _flags() -> list[str]:
    import tensorflow as tf

    # As system headers TensorFlow's do not warn about each other.
    own = [flag.replace("-I", "-isystem", 1) for flag in tf.sysconfig.get_compile_flags()]
    return [*own, "-O1", "-Wall", "-Wextra"]


def _link_flags(libraries: str) -> list[str]:
    import tensorflow as tf

    # gold goes through a library of a gigabyte in a quarter of the usual linker's time.
    gold = ["-fuse-ld=gold"] if shutil.which("ld.gold") else []
    # Nothing of libtensorflow_cc is called by name, but what it registers when it is loaded makes sessions.
    cc = [f"-l:libtensorflow_cc.so.{tf.version.VERSION.partition('.')[0]}", *tf.sysconfig.get_link_flags()]
    return [*gold, f"-L{libraries}", "-Wl,--no-as-needed", *cc, f"-Wl,-rpath,{libraries}", "-pthread"]
