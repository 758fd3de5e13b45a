"""Beam's portable job service and a pool of Python workers, as processes of their own that know nothing of this one."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
BARE = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
"""All that the environment of a container promises."""


@dataclass
class Services:
    """A job service and a pool that run."""

    job_endpoint: str
    worker_pool: str
    service: psutil.Process
    pool: psutil.Process
    folder: Path
    """Where they run, and where their logs are."""

    def settings(self) -> str:
        """The section `beam` for these, as `--set` takes it."""
        return f"beam={{runner: portable, job_endpoint: '{self.job_endpoint}', worker_pool: '{self.worker_pool}'}}"

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.pool.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]

    def jobs(self) -> list[str]:
        """States of all jobs that the service has had."""
        with grpc.insecure_channel(self.job_endpoint) as channel:
            answer = beam_job_api_pb2_grpc.JobServiceStub(channel).GetJobs(
                beam_job_api_pb2.GetJobsRequest(), timeout=10
            )
        return [beam_job_api_pb2.JobState.Enum.Name(job.state) for job in answer.job_info]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


@contextlib.contextmanager
def running(pool: list[str], folder: Path, environment: Mapping[str, str] = BARE) -> Iterator[Services]:
    """Starts both in a folder of their own and an environment that is bare.

    Args:
        pool: The command of the pool, without its port, which comes last.
        folder: Where to; it is made.
        environment: Of the pool and its workers.
    """
    folder.mkdir()
    ports = free_port(), free_port()
    service = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", f"--port={ports[0]}"]
    with (
        process(service, folder, "service", BARE) as served,
        process([*pool, str(ports[1])], folder, "pool", environment) as started,
    ):
        for port, name in zip(ports, ("service", "pool"), strict=True):
            wait_for(port, folder / f"{name}.log")
        processes = psutil.Process(served.pid), psutil.Process(started.pid)
        yield Services(f"localhost:{ports[0]}", f"localhost:{ports[1]}", *processes, folder)


@contextlib.contextmanager
def process(
    command: list[str], folder: Path, name: str, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to a log in its folder; it is ended with SIGTERM."""
    with open(folder / f"{name}.log", "wb") as log:
        started = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=log, stderr=log)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


def wait_for(port: int, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def worker_image(folder: Path) -> Path:
    """What kubeflow/Dockerfile installs in its images, installed by its own commands into a clean prefix.

    Returns:
        The prefix.
    """
    build = folder / "build"
    prefix = folder / "prefix"
    build.mkdir()
    (stage,) = re.findall(r"^FROM \$PYTHON AS build\n(.*?)^FROM ", (ROOT / "kubeflow/Dockerfile").read_text(),
                          re.MULTILINE | re.DOTALL)  # fmt: skip
    # Where packages come from, and who vouches for it, is this machine's; Python and its packages are not.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["VIRTUAL_ENV"] = str(prefix)
    environment["PATH"] = f"{prefix}/bin:{os.path.dirname(os.path.realpath(sys.executable))}:{BARE['PATH']}"
    for instruction in re.sub(r"\\\n\s*", "", stage).splitlines():
        word, _, rest = instruction.partition(" ")
        if word == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                to = build / target / (source if target.endswith("/") else "")
                subprocess.run(["cp", "-r", str(ROOT / source), str(to)], check=True)
        elif word == "RUN":
            made = subprocess.run(["bash", "-eo", "pipefail", "-c", rest], cwd=build, env=environment,
                                  capture_output=True, text=True)  # fmt: skip
            assert made.returncode == 0, f"{rest}\n{made.stdout}\n{made.stderr}"
    return prefix


def image_environment(prefix: Path) -> dict[str, str]:
    """The environment variables of the image beam-worker, with its prefix elsewhere."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "kubeflow/Dockerfile").read_text())
    stages = dict(re.findall(r"^FROM (?:\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL))
    found = {}
    for stage in ("runtime", "beam-worker"):
        for line in re.findall(r"^ENV (.*)$", stages[stage], re.MULTILINE):
            found |= dict(pair.split("=", 1) for pair in shlex.split(line))
    return found | {"PATH": f"{prefix}/bin:{BARE['PATH']}", "LANG": BARE["LANG"]}
