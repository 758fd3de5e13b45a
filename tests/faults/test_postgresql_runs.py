"""Whole runs with PostgreSQL as metadata store, on a real server: two at once, and the server gone in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import postgresql
import pytest
import world
from e2e_runs import GATES_AND_PUSH, executed, twotower, versions
from faulty_runs import Starter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgresql.binaries() is None, reason="no PostgreSQL server is installed here"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[postgresql.Server]:
    with postgresql.running() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTGRESQL_PASSWORD", postgresql.PASSWORD)
        yield server


@pytest.fixture(scope="module")
def folder(server: postgresql.Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on_postgresql")
    world.write_parquet(folder)
    world.write_config(folder, features=world.FEW_FEATURES, metadata=server.settings("small_world"))
    return folder


@pytest.fixture(scope="module")
def password() -> dict[str, str]:
    return {"POSTGRESQL_PASSWORD": postgresql.PASSWORD}


def test_two_runs_at_once_that_begin_with_an_empty_database(folder: Path, starter: Starter, password: dict[str, str]):
    command = ["run", "--config", str(folder / "config.yaml")]
    starter.start(command, command, environment=password)
    outcomes = starter.ended()
    assert [outcome.code for outcome in outcomes] == [0, 0], [outcome.errors for outcome in outcomes]
    assert {Path(outcome.answer["pushed"]).name for outcome in outcomes} <= set(versions(folder))
    assert [run["state"] for run in twotower("runs", *command[1:]).answer] == ["done", "done"]


def test_what_has_run_is_not_run_again(folder: Path):
    path = str(folder / "config.yaml")
    assert twotower("run", "--config", path).code == 0
    assert executed(path) <= GATES_AND_PUSH
    assert twotower("recommend", "--config", path, "--user", "1").code == 0


def test_a_server_that_restarts_while_the_trainer_runs(
    folder: Path, server: postgresql.Server, starter: Starter, password: dict[str, str]
):
    path, before = str(folder / "config.yaml"), versions(folder)
    command = ["run", "--config", path, "--set", "training.epochs=60", "--set", "training.patience=60"]
    checkpoints = folder / "runs" / "small-world" / "checkpoints"
    starter.start(command, environment=password)
    deadline = time.monotonic() + 300
    while not any(checkpoints.glob("**/checkpoint")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.crash()
    (outcome,) = starter.ended()
    assert outcome.code == 2, outcome
    last = outcome.errors.splitlines()[-1]
    assert last.startswith("twotower: metadata store postgresql at 127.0.0.1:") and "start it" in last
    assert versions(folder) == before
    server.start()
    again = twotower(*command)
    assert again.code in (0, 1), again.errors  # a gate may refuse it
    assert twotower("runs", "--config", path, "last").answer["state"] == "done"
    assert not {"InteractionExampleGen", "Transform"} & executed(path, *command[4::2])
