"""PostgreSQL as metadata store, on a real server: who is let in, and one line for who is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_metadata
import postgresql
import pytest
import world
from ml_metadata.proto import metadata_store_pb2

from modules.errors import UserError
from pipeline import cli, local_runner, runs
from pipeline.config import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        postgresql.binaries() is None, reason="no PostgreSQL server is installed here (initdb and pg_ctl)"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[postgresql.Server]:
    with postgresql.running() as server:
        yield server


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRESQL_PASSWORD", postgresql.PASSWORD)
    monkeypatch.setenv("GLOG_minloglevel", "3")


def configured(folder: Path, settings: dict[str, object]) -> str:
    world.write_parquet(folder)
    return world.write_config(folder, metadata=settings)


def runs_of(path: str) -> subprocess.CompletedProcess[str]:
    return twotower_of("runs", path)


def twotower_of(command: str, path: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose every word is seen, those of C++ included."""
    environment = {name: value for name, value in os.environ.items() if name != "GLOG_minloglevel"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", command, "--config", path],
        capture_output=True, text=True, check=False, cwd=Path(cli.__file__).parent.parent, env=environment,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("twotower: "), done.stderr
    for word in words:
        assert word in done.stderr


def test_what_runs_register_is_read_from_a_database_that_is_made_on_the_way(server: postgresql.Server, tmp_path: Path):
    path = configured(tmp_path, server.settings("fresh"))
    refused(runs_of(path), "nothing has run yet: the metadata store knows no small-world")
    store = ml_metadata.MetadataStore(runs.connection(load(path)))
    types = {
        name: store.put_context_type(metadata_store_pb2.ContextType(name=name)) for name in ("pipeline", "pipeline_run")
    }
    (pipeline,) = store.put_contexts([metadata_store_pb2.Context(type_id=types["pipeline"], name="small-world")])
    (run,) = store.put_contexts([metadata_store_pb2.Context(type_id=types["pipeline_run"], name="first")])
    store.put_parent_contexts([metadata_store_pb2.ParentContext(child_id=run, parent_id=pipeline)])
    kind = store.put_execution_type(metadata_store_pb2.ExecutionType(name="E"))
    execution = metadata_store_pb2.Execution(type_id=kind, name="Trainer")
    local_runner.keep_peak_memory(execution, 5_000_000_001)
    (number,) = store.put_executions([execution])
    association = metadata_store_pb2.Association(context_id=run, execution_id=number)
    store.put_attributions_and_associations([], [association])
    assert runs.read_runs(load(path))[0].stages[0].peak_memory_bytes == 5_000_000_001
    done = runs_of(path)
    assert done.returncode == 0 and "first" in done.stdout and done.stderr == ""


def test_a_password_with_quotes_spaces_and_backslashes(
    server: postgresql.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    password = r"it's a \ password=x"
    server.sql(f"""CREATE ROLE "data team" LOGIN CREATEDB PASSWORD '{password.replace("'", "''")}'""")
    monkeypatch.setenv("POSTGRESQL_PASSWORD", password)
    refused(
        runs_of(configured(tmp_path, {**server.settings("of_the_team"), "user": "data team"})), "knows no small-world"
    )


def test_who_is_not_let_in_is_told_in_one_line(
    server: postgresql.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("POSTGRESQL_PASSWORD", "another")
    done = runs_of(configured(tmp_path, server.settings("fresh")))
    refused(done, f"127.0.0.1:{server.port}", "'twotower'", "the password in $POSTGRESQL_PASSWORD")
    assert "another" not in done.stderr


def test_a_database_that_cannot_be_made_is_named(server: postgresql.Server, tmp_path: Path):
    server.sql("CREATE ROLE poor LOGIN PASSWORD 'let me in'")
    refused(runs_of(configured(tmp_path, {**server.settings("absent"), "user": "poor"})), "'absent'", "create it")
    # ML Metadata's own statement is not quoted.
    refused(runs_of(configured(tmp_path, server.settings("two-tower"))), "'two-tower'", "create it")
    server.sql('CREATE DATABASE "two-tower"')
    refused(runs_of(configured(tmp_path, server.settings("two-tower"))), "nothing has run yet")


def test_a_server_that_ends_while_it_is_asked_is_one_line(server: postgresql.Server, tmp_path: Path):
    config = load(configured(tmp_path, server.settings("fresh")))
    store = ml_metadata.MetadataStore(runs.connection(config))
    server.crash()
    try:
        words = r"postgresql at 127.0.0.1:\d+ cannot be used .*; start it"
        with pytest.raises(UserError, match=words) as error, runs.store_errors(config):
            store.get_contexts()
        assert "\n" not in str(error.value)
        refused(runs_of(str(tmp_path / "config.yaml")), "Connection refused")
    finally:
        server.start()
    ml_metadata.MetadataStore(runs.connection(config)).get_contexts()


def test_texts_with_backslashes_come_back_as_they_were(server: postgresql.Server, tmp_path: Path):
    """JSON inside JSON, in properties, names and addresses, and found again by them."""
    config = load(configured(tmp_path, server.settings("backslash")))
    store = ml_metadata.MetadataStore(runs.connection(config))
    kind = store.put_artifact_type(metadata_store_pb2.ArtifactType(name="A", properties={"own": 3}))
    text = json.dumps({"inner": json.dumps({"path": "C:\\x", "it's": 'a "quote"'})}) + "\\"
    artifact = metadata_store_pb2.Artifact(type_id=kind, uri=r"\\server\share", name=r"a\b")
    artifact.custom_properties["text"].string_value = text
    artifact.properties["own"].string_value = text
    before = artifact.SerializeToString(deterministic=True)
    (number,) = store.put_artifacts([artifact])
    assert artifact.SerializeToString(deterministic=True) == before, "whose it is does not see it changed"
    (found,) = store.get_artifacts_by_uri(r"\\server\share")
    assert found.id == number and store.get_artifact_by_type_and_name("A", r"a\b").id == number
    assert found.custom_properties["text"].string_value == found.properties["own"].string_value == text


def test_artifacts_come_in_the_order_of_their_ids(server: postgresql.Server, tmp_path: Path):
    """PostgreSQL puts a row that is changed behind the others."""
    store = ml_metadata.MetadataStore(runs.connection(load(configured(tmp_path, server.settings("ordered")))))
    kind = store.put_artifact_type(metadata_store_pb2.ArtifactType(name="A"))
    numbers = store.put_artifacts([metadata_store_pb2.Artifact(type_id=kind, uri=str(n)) for n in range(3)])
    (first,) = store.get_artifacts_by_id(numbers[:1])
    first.state = metadata_store_pb2.Artifact.LIVE
    store.put_artifacts([first])
    assert [artifact.id for artifact in store.get_artifacts_by_id(numbers)] == numbers
    assert [artifact.id for artifact in store.get_artifacts()] == numbers


def test_ml_metadata_alone_cannot_write_a_backslash(server: postgresql.Server, tmp_path: Path):
    """When this fails, ML Metadata has been mended, and pipeline/postgresql.py can go."""
    code = f"""
import ml_metadata
from ml_metadata.proto import metadata_store_pb2 as pb
database = pb.PostgreSQLDatabaseConfig(host="127.0.0.1", port="{server.port}", dbname="alone")
database.user, database.password = "{postgresql.USER}", "'{postgresql.PASSWORD}'"
how = pb.ConnectionConfig(postgresql=database)
store = ml_metadata.MetadataStore(how)
kind = store.put_artifact_type(pb.ArtifactType(name="A"))
for text in ("it's", chr(92)):
    store.put_artifacts([pb.Artifact(type_id=kind, uri=text)])
    print("written")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "written\n" and "syntax error" in done.stderr, done.stderr
