"""A runner that cannot be reached: one line, nothing half-written, exit code 2."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import beam_processes
import local_http
import pytest
import world
from e2e_runs import twotower

from modules.errors import UserError
from modules.settings import Beam
from pipeline import beam_service


@pytest.fixture
def job_service(tmp_path: Path) -> Iterator[str]:
    port = beam_processes.free_port()
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", f"--port={port}"]
    with beam_processes.process(command, tmp_path, "service", beam_processes.BARE):
        beam_processes.wait_for(port, tmp_path / "service.log")
        yield f"localhost:{port}"


def portable(endpoint: str, pool: str) -> Beam:
    return Beam(runner="portable", job_endpoint=endpoint, worker_pool=pool)


def test_nobody_listens(tmp_path: Path):
    world.write_parquet(tmp_path)
    path = world.write_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    address = f"localhost:{beam_processes.free_port()}"
    started = time.monotonic()
    for runner in ("portable", "flink", "spark"):
        beam = f"beam={{runner: {runner}, job_endpoint: '{address}', worker_pool: 'localhost:50000'}}"
        outcome = twotower("run", "--config", path, "--set", beam)
        assert outcome.code == 2
        assert outcome.errors == (
            f"twotower: beam.job_endpoint: {address} cannot be reached (connection refused); start the job service "
            "there, or correct the address\n"
        )
    assert time.monotonic() - started < 20
    assert sorted(tmp_path.rglob("*")) == before


def test_a_host_that_nobody_knows():
    with pytest.raises(UserError, match=r"^beam\.job_endpoint: nowhere\.invalid:8099 cannot be reached \("):
        beam_service.check(portable("nowhere.invalid:8099", "localhost:1"), "/runs")


def test_what_listens_is_something_else():
    with (
        local_http.running(local_http.JsonHandler) as address,
        pytest.raises(UserError, match=r"does not answer as a job service of Beam \(.+\); correct"),
    ):
        beam_service.check(portable(address, "localhost:1"), "/runs")


def test_what_listens_says_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(beam_service, "_SECONDS", 1)
    with socket.create_server(("localhost", 0)) as server:
        threading.Thread(target=server.accept, daemon=True).start()
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"does not answer as a job service of Beam \(deadline exceeded\)"):
            beam_service.check_endpoint("kubeflow.beam.job_endpoint", address)


def test_workers_are_asked_for_where_this_machine_is_told_where_they_are(job_service: str):
    nobody = f"localhost:{beam_processes.free_port()}"
    with pytest.raises(UserError, match=rf"^beam\.worker_pool: {nobody} cannot be reached \(conn"):
        beam_service.check(portable(job_service, nobody), "/runs")
    # Flink's nodes each ask the pool beside them.
    beam_service.check(Beam(runner="flink", job_endpoint=job_service, worker_pool=nobody), "/runs")


def test_dataflow_needs_artifacts_that_its_workers_see_and_somebody_who_is_signed_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    beam = Beam(runner="dataflow", project="p", region="r", temp_location="gs://b/t", worker_image="i")
    with pytest.raises(UserError, match=r"^beam\.runner: Dataflow's workers cannot see /runs; compile"):
        beam_service.check(beam, "/runs")
    # A key file of nobody, instead of whatever this machine has.
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(UserError, match=r"^beam\.runner: Dataflow cannot be reached, nobody is signed in \("):
        beam_service.check(beam, "gs://bucket/runs")


def test_the_direct_runner_asks_nobody():
    beam_service.check(Beam(), "/runs")
