"""OpenLineage events: what a run wrote beside what the metadata store has of it, servers, and sinks that fail."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
import jsonschema
import local_http
import pytest
from e2e_runs import Small
from openlineage.client import facet_v2

from modules.errors import UserError
from pipeline import lineage_events, runs
from pipeline.config import load
from pipeline.lineage_events import LineageEvents

pytestmark = pytest.mark.slow

_URI = {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:."}
_FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"_producer": _URI, "_schemaURL": _URI},
        "required": ["_producer", "_schemaURL"],
    },
}
_NAMED = {
    "type": "object",
    "properties": {"namespace": {"type": "string"}, "name": {"type": "string", "minLength": 1}, "facets": _FACETS},
    "required": ["namespace", "name"],
}
# What version 2-0-2 of OpenLineage's specification asks of a RunEvent.
RUN_EVENT = {
    "type": "object",
    "properties": {
        "eventTime": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"},
        "producer": _URI,
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "run": {
            "type": "object",
            "properties": {
                "runId": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
                "facets": _FACETS,
            },
            "required": ["runId"],
        },
        "job": _NAMED,
        "inputs": {"type": "array", "items": _NAMED},
        "outputs": {"type": "array", "items": _NAMED},
    },
    "required": ["eventTime", "producer", "schemaURL", "eventType", "run", "job"],
    "additionalProperties": False,
}


# The classes that OpenLineage's client has of the facets' own schemas.
FACETS = {
    name: value
    for module in vars(facet_v2).values() if inspect.ismodule(module)
    for name, value in vars(module).items() if inspect.isclass(value)
}  # fmt: skip


def check(event: dict[str, Any]) -> None:
    """That an event is one of OpenLineage's, and each facet what its own schema asks for."""
    jsonschema.validate(event, RUN_EVENT)
    facets = [event["run"]["facets"], event["job"]["facets"]]
    facets += [dataset["facets"] for dataset in (*event["inputs"], *event["outputs"])]
    for facet in (facet for each in facets for facet in each.values()):
        described = FACETS[facet["_schemaURL"].rpartition("/")[2]]
        assert described._get_schema() == facet["_schemaURL"]
        fields = {field.name: field.default for field in attr.fields(described)}
        required = {name for name, default in fields.items() if default is attr.NOTHING}
        assert required <= facet.keys() <= fields.keys()


def named(datasets: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """(path, version), the version "" for what has none."""
    assert {dataset["namespace"] for dataset in datasets} <= {"file"}
    found = [(d["name"], d["facets"].get("version", {}).get("datasetVersion", "")) for d in datasets]
    assert len(found) == len(set(found))
    return set(found)


def test_a_run_writes_what_the_metadata_store_has(small: Small):
    config = load(small.config_path)
    run = runs.read_run(config, small.outcome.answer["run"])
    events = [json.loads(line) for line in (small.folder / "lineage.jsonl").read_text().splitlines()]
    for event in events:
        check(event)
        tags = {tag["key"]: tag["value"] for tag in event["run"]["facets"]["tags"]["tags"]}
        assert tags["tfx_run"] == run.id and event["job"]["namespace"] == "twotower"
    jobs = ["small-world", *(f"small-world.{stage.name}" for stage in run.stages)]
    assert [(e["eventType"], e["job"]["name"]) for e in events] == [
        ("START", jobs[0]),
        *((kind, job) for job in jobs[1:] for kind in ("START", "COMPLETE")),
        ("COMPLETE", jobs[0]),
    ]
    assert [e["eventTime"] for e in events] == sorted(e["eventTime"] for e in events)
    of_job = {e["job"]["name"]: e for e in events if e["eventType"] == "COMPLETE"}
    ids = {e["job"]["name"]: {o["run"]["runId"] for o in events if o["job"] == e["job"]} for e in events}
    assert all(len(found) == 1 for found in ids.values()) and len(set.union(*ids.values())) == len(jobs)

    tables = {(str(small.folder / f"{name}.parquet"), "") for name in ("interactions", "items", "users")}
    pushed = Path(small.outcome.answer["pushed"])
    version = (str(pushed.parent), pushed.name)
    whole = of_job["small-world"]
    assert (named(whole["inputs"]), named(whole["outputs"])) == (tables, {version})
    assert "parent" not in whole["run"]["facets"]
    for stage in run.stages:
        event = of_job[f"small-world.{stage.name}"]
        parent = event["run"]["facets"]["parent"]
        assert parent["run"]["runId"] == whole["run"]["runId"]
        assert (parent["job"]["namespace"], parent["job"]["name"]) == ("twotower", "small-world")
        read, made = (
            {(str(Path(a.uri).parent), Path(a.uri).name) for a in each} for each in (stage.inputs, stage.outputs)
        )
        assert named(event["inputs"]) == read | (tables if stage.name == "InteractionExampleGen" else set())
        assert named(event["outputs"]) == made | ({version} if stage.name == "Pusher" else set())


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """Its URL, what it has been told, and the status that it answers with from then on."""
    told: list[dict[str, Any]] = []
    status = [200]

    class Handler(local_http.JsonHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.append({"path": self.path, "key": self.headers["Authorization"], "event": body})
            self.answer({}, status[0])

    with local_http.running(Handler) as address:
        yield f"http://{address}", told, status


def events_to(small: Small, sink: str) -> LineageEvents:
    return LineageEvents(load(small.config_path, [f"output.openlineage={sink}"]))


def test_a_server_is_told_with_its_key_and_of_failures(small: Small, server: Any, monkeypatch: pytest.MonkeyPatch):
    url, told, _ = server
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "secret")
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "shop")
    events, run_id = events_to(small, url), small.outcome.answer["run"]
    with pytest.raises(KeyboardInterrupt), events.run(run_id):
        with events.stage("Transform"):
            pass
        with pytest.raises(ValueError), events.stage("Trainer"):
            raise ValueError("diverged")
        raise KeyboardInterrupt
    assert {each["path"] for each in told} == {"/api/v1/lineage"} and {each["key"] for each in told} == {
        "Bearer secret"
    }
    for each in told:
        check(each["event"])
    assert [(each["event"]["eventType"], each["event"]["job"]["name"]) for each in told] == [
        ("START", "small-world"), ("START", "small-world.Transform"), ("COMPLETE", "small-world.Transform"),
        ("START", "small-world.Trainer"), ("FAIL", "small-world.Trainer"), ("ABORT", "small-world"),
    ]  # fmt: skip
    assert {each["event"]["job"]["namespace"] for each in told} == {"shop"}
    failed = told[4]["event"]
    assert failed["run"]["facets"]["errorMessage"]["message"] == "diverged" and failed["inputs"]
    assert "errorMessage" not in told[5]["event"]["run"]["facets"]


@pytest.mark.parametrize(
    ("sink", "words"),
    [("http://127.0.0.1:1", "refused"), ("refusing", "401"), ("/proc/none/lineage.jsonl", "No such file")],
)
def test_a_sink_that_fails_is_one_line_and_not_asked_again(
    small: Small, server: Any, caplog: pytest.LogCaptureFixture, sink: str, words: str
):
    url, told, status = server
    status[0] = 401
    events = events_to(small, url.replace("http://", "http://user:word@") if sink == "refusing" else sink)
    caplog.set_level(logging.INFO, "twotower.progress")
    with events.run(small.outcome.answer["run"]), events.stage("Transform"):
        pass
    # The client's HTTP library has something to say of its own, which a run writes to its log.
    (record,) = (record for record in caplog.records if record.name == "twotower.progress")
    line = record.getMessage()
    assert record.levelno == logging.WARNING and line.startswith("output.openlineage: ") and words in line
    assert "\n" not in line and "word@" not in line
    assert len(told) == (sink == "refusing")


def test_what_cannot_be_a_sink_is_refused_before_anything_runs(small: Small, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"output\.openlineage: 'gs://bucket/x' is neither a file"):
        events_to(small, "gs://bucket/x")
    monkeypatch.setattr(lineage_events.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install `twotower\[openlineage\]`"):
        events_to(small, "lineage.jsonl")
