"""`twotower kubeflow submit` against a server that speaks the routes of the KFP v2beta1 API."""

from __future__ import annotations

import email.parser
import email.policy
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import local_http
import pytest
import world
import yaml
from clusters import settings

from kubeflow import submit
from pipeline import cli

pytestmark = pytest.mark.slow


class Api:
    """An API server's memory: what was created, by collection, and how runs go."""

    def __init__(self) -> None:
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.pipeline_versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurringruns: dict[str, dict[str, Any]] = {}
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        """The state of a run at each look; the last one stays."""
        self.authorization: str | None = None
        self.refusal: tuple[int, str] | None = None
        self.address = ""

    def keep(self, collection: str, key: str, what: dict[str, Any]) -> dict[str, Any]:
        kept = getattr(self, collection)
        identifier = f"{key}-{len(kept) + 1}"
        kept[identifier] = {**what, f"{key}_id": identifier}
        return kept[identifier]


KEYS = {"experiments": "experiment", "runs": "run", "recurringruns": "recurring_run", "pipelines": "pipeline"}
LISTED = {"recurringruns": "recurringRuns"}


def handler(api: Api) -> type[local_http.JsonHandler]:
    class Handler(local_http.JsonHandler):
        def do_GET(self) -> None:
            parts, query = self._parts()
            if parts == ["healthz"]:
                self.answer({"multi_user": False})
            elif parts[0] == "pipelines" and parts[2:] == ["versions"]:
                found = [v for v in api.pipeline_versions.values() if v["pipeline_id"] == parts[1]]
                self.answer({"pipeline_versions": found[::-1][: int(query.get("page_size", 10))]})
            elif len(parts) == 1:
                found = list(getattr(api, parts[0]).values())
                if "filter" in query:
                    [predicate] = json.loads(query["filter"])["predicates"]
                    assert predicate["operation"] in ("EQUALS", 1) and predicate["key"] in ("display_name", "name")
                    found = [f for f in found if f["display_name"] == predicate["stringValue"]]
                self.answer({LISTED.get(parts[0], parts[0]): found} if found else {})
            else:
                item = getattr(api, parts[0])[parts[1]]
                if parts[0] == "runs":
                    item["state"] = api.states.pop(0) if len(api.states) > 1 else api.states[0]
                self.answer(item)

        def do_POST(self) -> None:
            parts, query = self._parts()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            api.authorization = self.headers.get("Authorization")
            if api.refusal is not None:
                self.answer({"message": api.refusal[1]}, api.refusal[0])
            elif parts == ["pipelines", "upload"]:
                created = api.keep("pipelines", "pipeline", {"display_name": query["name"]})
                self._version(created["pipeline_id"], query["name"], body)
                self.answer(created)
            elif parts == ["pipelines", "upload_version"]:
                self.answer(self._version(query["pipelineid"], query["name"], body))
            else:
                self.answer(api.keep(parts[0], KEYS[parts[0]], json.loads(body)))

        def do_DELETE(self) -> None:
            parts, _ = self._parts()
            del getattr(api, parts[0])[parts[1]]
            self.answer({})

        def _version(self, pipeline_id: str, name: str, body: bytes) -> dict[str, Any]:
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            [part] = message.iter_parts()
            documents = list(yaml.safe_load_all(part.get_payload(decode=True)))
            version = {"pipeline_id": pipeline_id, "display_name": name, "pipeline_spec": documents[0]}
            return api.keep("pipeline_versions", "pipeline_version", version)

        def _parts(self) -> tuple[list[str], dict[str, str]]:
            url = urllib.parse.urlparse(self.path)
            prefix = "/apis/v2beta1/"
            assert url.path.startswith(prefix), url.path
            return url.path.removeprefix(prefix).split("/"), dict(urllib.parse.parse_qsl(url.query))

    return Handler


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.01)
    api = Api()
    with local_http.running(handler(api)) as address:
        api.address = f"http://{address}"
        yield api


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    return world.write_config(tmp_path, kubeflow=settings(tmp_path))


def twotower_submit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["kubeflow", "submit", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_it_uploads_runs_waits_and_links(api: Api, config_path: str, capsys: pytest.CaptureFixture[str]):
    first = ("--config", config_path, "--host", api.address, "--wait", "--parameter", "epochs=3")
    code, answer = twotower_submit(capsys, *first)
    assert code == 0
    assert answer["state"] == "SUCCEEDED"
    assert answer["link"] == f"{api.address}/#/runs/details/run-1"
    [run] = api.runs.values()
    [version] = api.pipeline_versions.values()
    assert version["pipeline_spec"]["schemaVersion"] == "2.1.0"
    assert run["pipeline_version_reference"] == {
        "pipeline_id": "pipeline-1", "pipeline_version_id": version["pipeline_version_id"],
    }  # fmt: skip
    assert run["runtime_config"] == {"parameters": {"epochs": 3}, "pipeline_root": "minio://mlpipeline/v2/artifacts"}
    assert api.experiments["experiment-1"]["display_name"] == "small-world"

    # Again: another version of the same pipeline, in the same experiment; a run that fails is exit code 1.
    api.states = ["FAILED"]
    code, answer = twotower_submit(capsys, "--config", config_path, "--host", api.address, "--wait")
    assert (code, answer["state"]) == (1, "FAILED")
    assert len(api.pipelines) == len(api.experiments) == 1
    assert len(api.pipeline_versions) == len(api.runs) == 2
    assert api.runs["run-2"]["pipeline_version_reference"]["pipeline_version_id"] == "pipeline_version-2"


def test_a_schedule_takes_the_place_of_the_earlier_one(
    api: Api, config_path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(submit.TOKEN_VARIABLE, "a-token")
    api.keep("recurringruns", "recurring_run", {"display_name": "somebody-elses"})
    for hour in (3, 4):
        code, answer = twotower_submit(
            capsys, "--config", config_path, "--host", api.address, "--schedule", f"0 0 {hour} * * *",
            "--set", "kubeflow.service_account=twotower-pipeline",
        )  # fmt: skip
        assert code == 0
    assert api.authorization == "Bearer a-token"
    assert answer["link"].endswith(f"/#/recurringrun/details/{answer['run']}")
    [kept] = [run for run in api.recurringruns.values() if run["display_name"] == "small-world"]
    assert kept["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert (kept["no_catchup"], str(kept["max_concurrency"])) == (True, "1")
    assert kept["service_account"] == "twotower-pipeline"
    assert len(api.recurringruns) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parameter", "epoch=3"], "--parameter epoch: the pipeline has interactions, items, users, epochs, push_to"),
        (["--parameter", "epochs=0"], "--parameter epochs=0: expected a whole number above 0"),
        (["--parameter", "epochs=5.5"], "--parameter epochs=5.5: expected a whole number above 0"),
        (["--parameter", "epochs=many"], "--parameter epochs=many: expected a whole number above 0"),
        (["--parameter", "items=/mnt/x.csv"], "--parameter items: /mnt/x.csv is where no container sees it"),
        (["--schedule", "0 3 * * *"], "expected six fields, seconds first"),
        (["--schedule", "0 0 3 * * *", "--wait"], "a schedule does not end"),
        (["--set", "kubeflow.spec=2.0"], "Kubeflow Pipelines takes 2.1"),
    ],
)
def test_mistakes_are_said_before_anything_is_sent(
    api: Api, config_path: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
):
    code, answer = twotower_submit(capsys, "--config", config_path, "--host", api.address, *arguments)
    assert code == 2
    assert words in answer["error"]
    assert not api.pipelines


def test_an_api_that_refuses_or_is_not_there_is_one_line(
    api: Api, config_path: str, capsys: pytest.CaptureFixture[str]
):
    api.refusal = (403, "user cannot create pipelines\nin kubeflow")
    code, answer = twotower_submit(capsys, "--config", config_path, "--host", api.address)
    assert code == 2
    assert answer["error"] == f"{api.address} refuses: 403 user cannot create pipelines in kubeflow"
    code, answer = twotower_submit(capsys, "--config", config_path, "--host", "http://127.0.0.1:9")
    assert code == 2
    assert "http://127.0.0.1:9 cannot be reached" in answer["error"] and "--host" in answer["error"]


def test_a_run_that_outlasts_the_waiting_goes_on(api: Api, config_path: str, capsys: pytest.CaptureFixture[str]):
    api.states = ["RUNNING"]
    code, answer = twotower_submit(
        capsys, "--config", config_path, "--host", api.address, "--wait", "--timeout", "0.05"
    )
    assert code == 2
    assert answer["error"] == "run run-1 is running after 0.05 s; it goes on, a larger --timeout waits"
