"""What ran: runs, their stages and artifacts, read from the ML Metadata store."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import sqlite3
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_metadata
from ml_metadata.proto import metadata_store_pb2

from modules.errors import UserError
from modules.nearest import meant
from pipeline import postgresql
from pipeline.config import Config
from pipeline.local_runner import CONFIGURATION_PROPERTY, PEAK_MEMORY_PROPERTY

_STATES = {
    metadata_store_pb2.Execution.COMPLETE: "done",
    metadata_store_pb2.Execution.CACHED: "cached",
    metadata_store_pb2.Execution.FAILED: "failed",
    metadata_store_pb2.Execution.CANCELED: "canceled",
}

_LAST = re.compile(r"last(?:~(?P<back>[0-9]{1,9}))?")
_CONNECT_SECONDS = 10.0
# How often a database that others make at the same time is opened again.
_FIRST_RUNS = 5


@dataclass(frozen=True)
class Artifact:
    """One input or output of a stage."""

    id: int
    key: str
    type: str
    uri: str
    properties: dict[str, Any]
    is_live: bool = True
    """Whether a later run may take it from the cache: it is not damaged, and has not been cleaned away."""


@dataclass(frozen=True)
class Stage:
    """One component's execution in a run."""

    name: str
    state: str
    """done, cached, failed, canceled, or unfinished: it runs, or the run was killed in it."""
    seconds: float
    inputs: tuple[Artifact, ...]
    outputs: tuple[Artifact, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    """What the component was given beside its inputs."""
    peak_memory_bytes: int | None = None
    """Of the whole process while the stage ran; None where nobody has looked."""
    execution: int = 0
    """Its number in the metadata store, after which TFX names the folders of the outputs."""

    def output(self, key: str) -> Artifact | None:
        return next((a for a in self.outputs if a.key == key), None)


@dataclass(frozen=True)
class Run:
    """One run of the pipeline."""

    id: str
    started: datetime.datetime
    stages: tuple[Stage, ...] = field(default=())
    configuration: dict[str, Any] | None = None
    """The whole of it, as JSON has it; None where it was not kept."""

    def stage(self, name: str) -> Stage | None:
        return next((s for s in self.stages if s.name == name), None)

    @property
    def state(self) -> str:
        if any(s.state == "failed" for s in self.stages):
            return "failed"
        # A run that never came to the Pusher was killed, or runs; behind it there may be a stage that does.
        is_through = self.stage("Pusher") is not None and all(s.state in ("done", "cached") for s in self.stages)
        return "done" if is_through else "unfinished"

    @property
    def pushed_version(self) -> int | None:
        """The number of the version that this run has pushed; None for none, or for one of an earlier run."""
        stage = self.stage("Pusher")
        artifact = stage.output("pushed_model") if stage is not None and stage.state == "done" else None
        version = str(artifact.properties.get("pushed_version", "")) if artifact is not None else ""
        return int(version) if version.isdecimal() else None


def connection(config: Config) -> metadata_store_pb2.ConnectionConfig:
    """How to reach the ML Metadata store: SQLite below the output root, or a server.

    From then on this process can use a PostgreSQL server.
    """
    store = config.metadata
    password = os.environ.get(store.password_env, "") if store.password_env else ""
    if store.kind == "mysql":
        return metadata_store_pb2.ConnectionConfig(
            mysql=metadata_store_pb2.MySQLDatabaseConfig(
                host=store.host, port=store.port or 3306, database=store.database, user=store.user, password=password
            )
        )
    if store.kind == "postgresql":
        postgresql.teach()
        return metadata_store_pb2.ConnectionConfig(
            postgresql=metadata_store_pb2.PostgreSQLDatabaseConfig(
                host=store.host,
                port=str(store.port or 5432),
                dbname=store.database,
                user=_quoted(store.user or ""),
                password=_quoted(password),
            )
        )
    path = os.path.join(config.root, "metadata.sqlite")
    return metadata_store_pb2.ConnectionConfig(
        sqlite=metadata_store_pb2.SqliteMetadataSourceConfig(
            filename_uri=path, connection_mode=metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        )
    )


def _quoted(value: str) -> str:
    """A value of libpq's connection string, in which ML Metadata puts what it is given as it is."""
    if re.fullmatch(r"[^\s'\\]*", value):
        return value
    return "'" + re.sub(r"(['\\])", r"\\\1", value) + "'"


def read_runs(config: Config, last: int | None = None) -> list[Run]:
    """The runs of a configuration's pipeline, newest first.

    Raises:
        UserError: There is no metadata store yet, or it cannot be read.
    """
    with store_errors(config):
        store, contexts = _runs_of(config)
        return [_read_run(store, context, config.name) for context in contexts[:last]]


def read_run(config: Config, name: str) -> Run:
    """One run.

    Args:
        config: Of its pipeline.
        name: Its id, the beginning of it when no other run's begins so, `last`, or `last~N` for the Nth before that.

    Raises:
        UserError: The metadata store has no such run or several, or cannot be read.
    """
    with store_errors(config):
        store, contexts = _runs_of(config)
        by_id = {context.name: context for context in contexts}
        return _read_run(store, by_id[_chosen(name, list(by_id))], config.name)


def _chosen(name: str, ids: Sequence[str]) -> str:
    """The id that is meant, of ids with the newest first."""
    back = _LAST.fullmatch(name)
    if back is not None:
        if not ids:
            raise UserError("no run has started yet; start with `twotower run`")
        number = int(back["back"] or 0)
        if number >= len(ids):
            raise UserError(f"run {name!r}: there are {len(ids)} runs; `twotower runs` lists them")
        return ids[number]
    beginning = [each for each in ids if each.startswith(name)]
    if name in ids or len(beginning) == 1:
        return name if name in ids else beginning[0]
    if len(beginning) > 1 and name:
        few = ", ".join(beginning[:3]) + ("…" if len(beginning) > 3 else "")
        raise UserError(f"run {name!r}: {len(beginning)} runs begin so ({few}); write more of the id")
    raise UserError(f"run {name!r}: not in the metadata store{meant(name, ids, '`twotower runs` lists them')}")


def set_aside(config: Config, artifacts: Sequence[int]) -> None:
    """Marks artifacts as deleted, by their numbers: TFX's cache passes over the outcome that one of them belongs to."""
    with store_errors(config):
        store = _open(config)
        found = store.get_artifacts_by_id(list(artifacts))
        for artifact in found:
            artifact.state = metadata_store_pb2.Artifact.DELETED
        store.put_artifacts(found)


def check_store(config: Config) -> None:
    """Finds, before anything runs, that the metadata store cannot be used.

    Raises:
        UserError: Its file is damaged, or its server does not answer.
    """
    how = connection(config)
    with store_errors(config):
        if not how.HasField("sqlite"):
            _open(config)
        elif os.path.exists(how.sqlite.filename_uri):
            path = urllib.parse.quote(how.sqlite.filename_uri)
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
                ((verdict,),) = database.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)


@contextlib.contextmanager
def store_errors(config: Config) -> Iterator[None]:
    """What the metadata store raises becomes one line: where it is, what is wrong, and what to do.

    Raises:
        UserError: Instead of the store's own errors.
    """
    try:
        yield
    except (ml_metadata.errors.StatusError, sqlite3.Error) as error:
        raise UserError(_in_words(config, error)) from None
    except RuntimeError as error:
        # What its constructor raises, in TFX's words when TFX has called it.
        if _STORE_ERRORS.search(str(error)) is None:
            raise
        raise UserError(_in_words(config, error)) from None


_STORE_ERRORS = re.compile("executing query|sqlite3|mysql|postgres|Metadata storage", re.IGNORECASE)


def _in_words(config: Config, error: Exception) -> str:
    # "Error when executing query: <reason> query: <SQL, pages of it>"
    reason, *_ = re.sub(r".*(storage with error|executing query): ", "", " ".join(str(error).split())).split(" query:")
    store = config.metadata
    if store.kind != "sqlite":
        password = f", and the password in ${store.password_env}" if store.password_env else ""
        if "pointer is NULL" in reason:
            # All that ML Metadata has to say of PostgreSQL's refusal.
            reason = f"it lets user {store.user!r} not in"
        elif "create database" in reason.lower() or reason.endswith("source error:"):
            reason = f"it has no database {store.database!r}, and ML Metadata cannot create it; create it there"
        return (
            f"metadata store {store.kind} at {_address(config)} cannot be used ({reason[:200]}); start it, or correct "
            f"metadata.host, port, database and user{password}"
        )
    path = connection(config).sqlite.filename_uri
    if "full" in reason:
        remedy = "make room, or choose another disk with output.root"
    elif "locked" in reason:
        remedy = "another process has kept it locked for long; wait for it or end it, and try again"
    elif "unable to open" in reason or "readonly" in reason or "I/O" in reason:
        remedy = "correct its rights or its disk, or choose another folder with output.root"
    else:
        remedy = "put a copy of it back, or move it away: the next run then executes every stage again"
    return f"metadata store {path} cannot be used ({reason[:200]}); {remedy}"


def _address(config: Config) -> str:
    store = config.metadata
    return f"{store.host}:{store.port or (3306 if store.kind == 'mysql' else 5432)}"


def _open(config: Config) -> ml_metadata.MetadataStore:
    how = connection(config)
    if not how.HasField("sqlite"):
        # The store's own clients say nothing of a host that cannot be reached, and may wait for it for minutes.
        host, _, port = _address(config).rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(_in_words(config, error)) from None
        for _ in range(_FIRST_RUNS):
            try:
                return ml_metadata.MetadataStore(how)
            except (ml_metadata.errors.StatusError, RuntimeError) as error:
                # Another first run is making the database or its tables.
                if "already exists" not in str(error):
                    raise
            time.sleep(1.0)
    return ml_metadata.MetadataStore(how)


def _runs_of(config: Config) -> tuple[ml_metadata.MetadataStore, list[metadata_store_pb2.Context]]:
    """The store, and the contexts of a pipeline's runs, newest first."""
    how = connection(config)
    if how.HasField("sqlite") and not os.path.exists(how.sqlite.filename_uri):
        raise UserError(f"nothing has run yet: {how.sqlite.filename_uri} does not exist; start with `twotower run`")
    store = _open(config)
    pipeline = store.get_context_by_type_and_name("pipeline", config.name)
    if pipeline is None:
        raise UserError(f"nothing has run yet: the metadata store knows no {config.name}; start with `twotower run`")
    # By the order in which they began and not by the clock, which can be set back.
    contexts = store.get_children_contexts_by_context(pipeline.id)
    return store, sorted(contexts, key=lambda context: context.id, reverse=True)


def _read_run(store: ml_metadata.MetadataStore, context: metadata_store_pb2.Context, pipeline: str) -> Run:
    executions = sorted(store.get_executions_by_context(context.id), key=lambda e: e.id)
    types = {t.id: t.name for t in store.get_artifact_types()}
    events = store.get_events_by_execution_ids([e.id for e in executions]) if executions else []
    artifacts = {a.id: a for a in store.get_artifacts_by_id(sorted({e.artifact_id for e in events}))}
    of_execution: dict[tuple[int, bool], list[Artifact]] = defaultdict(list)
    for event in events:
        artifact = artifacts[event.artifact_id]
        is_output = event.type == metadata_store_pb2.Event.OUTPUT
        of_execution[event.execution_id, is_output].append(
            Artifact(
                id=artifact.id,
                key=event.path.steps[0].key if event.path.steps else "",
                type=types[artifact.type_id],
                uri=artifact.uri,
                properties=_values(artifact),
                is_live=artifact.state == metadata_store_pb2.Artifact.LIVE,
            )
        )
    stages = []
    for execution in executions:
        parameters = _values(execution)
        peak = parameters.pop(PEAK_MEMORY_PROPERTY, None)
        nodes = [c.name for c in store.get_contexts_by_execution(execution.id) if c.name.startswith(f"{pipeline}.")]
        stages.append(
            Stage(
                name=nodes[0].removeprefix(f"{pipeline}.") if nodes else execution.name,
                state=_STATES.get(execution.last_known_state, "unfinished"),
                seconds=max(0, execution.last_update_time_since_epoch - execution.create_time_since_epoch) / 1000,
                inputs=tuple(of_execution[execution.id, False]),
                outputs=tuple(of_execution[execution.id, True]),
                peak_memory_bytes=None if peak is None else int(peak),
                parameters=parameters,
                execution=execution.id,
            )
        )
    started = datetime.datetime.fromtimestamp(context.create_time_since_epoch / 1000).astimezone()
    kept = _values(context).get(CONFIGURATION_PROPERTY)
    return Run(context.name, started, tuple(stages), json.loads(kept) if kept else None)


def _values(
    one: metadata_store_pb2.Artifact | metadata_store_pb2.Execution | metadata_store_pb2.Context,
) -> dict[str, Any]:
    every = (one.properties, one.custom_properties)
    return {key: _value(value) for values in every for key, value in values.items()}


def _value(value: metadata_store_pb2.Value) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


def read_json(artifact: Artifact | None, name: str, kind: type = dict) -> Any:
    """A JSON file of an artifact; empty when the stage did not get so far, or the file is not what it should be."""
    if artifact is None:
        return kind()
    try:
        with open(os.path.join(artifact.uri, name), encoding="utf-8") as file:
            tree = json.load(file)
    except (OSError, ValueError):
        return kind()
    return tree if isinstance(tree, kind) else kind()


def lineage(run: Run) -> Sequence[tuple[str, str, str]]:
    """(stage, input artifact, stage that made it) for everything a run read."""
    made_by = {artifact.id: stage.name for stage in run.stages for artifact in stage.outputs}
    return [
        (stage.name, f"{artifact.key} #{artifact.id}", made_by.get(artifact.id, "an earlier run"))
        for stage in run.stages
        for artifact in stage.inputs
    ]
