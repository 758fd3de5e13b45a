"""OpenLineage events of a run: for it and each of its stages what began, what was read and made, and how it ended.

What a stage read and made is what the metadata store has of it. The tables come before the first stage, the push
destination behind the last one; as the baseline of a later run it is read again.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.errors import UserError
from pipeline import runs
from pipeline.config import Config, absolute

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

_PROGRESS = logging.getLogger("twotower.progress")
# A server that is not there must not hold up a run for long.
_TIMEOUT_SECONDS, _RETRIES = 5.0, 1
# Environment variables, as OpenLineage's own integrations call them.
_NAMESPACE, _API_KEY = "OPENLINEAGE_NAMESPACE", "OPENLINEAGE_API_KEY"
_PRODUCER = f"urn:twotower:{importlib.metadata.version('twotower')}"


@dataclass(frozen=True)
class _Dataset:
    """A file or folder, or one version of it."""

    path: str
    """As the configuration and the metadata store have it: a path, or an address such as `gs://…`."""
    kind: str
    """TABLE, or the type of an artifact."""
    version: str = ""

    @classmethod
    def artifact(cls, artifact: runs.Artifact) -> _Dataset:
        """`…/Trainer/model/7` is version 7 of what the Trainer makes in every run."""
        folder, _, number = artifact.uri.rstrip("/").rpartition("/")
        return cls(folder, artifact.type, number) if number.isdecimal() else cls(artifact.uri, artifact.type)


@dataclass(frozen=True)
class _Seen:
    """What is known of a run or a stage."""

    inputs: Sequence[_Dataset] = ()
    outputs: Sequence[_Dataset] = ()
    state: str = ""
    """done, cached or failed; "" while it runs."""


class LineageEvents:
    """The events of one run, to where `output.openlineage` says.

    They never make a run fail. At the first that cannot be delivered a line says so, and no more are sent.

    Args:
        config: The configuration.

    Raises:
        UserError: OpenLineage's client is not installed.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sink = config.output.openlineage or ""
        if self._sink and importlib.util.find_spec("openlineage") is None:
            raise UserError(
                "output.openlineage: OpenLineage's client is not installed; install `twotower[openlineage]`, "
                "or remove the key"
            )
        self._namespace = os.environ.get(_NAMESPACE, "twotower")
        self._client: OpenLineageClient | None = None
        self._run_id = self._parent = ""

    @contextlib.contextmanager
    def run(self, run_id: str) -> Iterator[None]:
        """Events around the whole run, whose id in the metadata store this is."""
        self._run_id, self._parent = run_id, ""
        with self._job("", self._of_run) as self._parent:
            yield

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Events around one stage of it."""
        with self._job(name, lambda: self._of_stage(name)):
            yield

    @contextlib.contextmanager
    def _job(self, stage: str, look: Callable[[], _Seen]) -> Iterator[str]:
        """START, and COMPLETE, FAIL or ABORT; yields OpenLineage's id of this run of the job.

        Args:
            stage: "" for the whole pipeline.
            look: What is known at the end.
        """
        if not self._sink:
            yield ""
            return
        from openlineage.client.uuid import generate_new_uuid

        run = str(generate_new_uuid())
        self._send("START", stage, run, _Seen)
        try:
            yield run
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            self._send("ABORT" if interrupted else "FAIL", stage, run, look, None if interrupted else error)
            raise
        self._send("COMPLETE", stage, run, look)

    def _of_run(self) -> _Seen:
        pusher = runs.read_run(self._config, self._run_id).stage("Pusher")
        return _Seen(self._tables(), self._pushed(pusher) if pusher else ())

    def _of_stage(self, name: str) -> _Seen:
        stage = runs.read_run(self._config, self._run_id).stage(name)
        if stage is None:
            return _Seen()
        inputs = [*map(_Dataset.artifact, stage.inputs), *(self._tables() if name == "InteractionExampleGen" else ())]
        baseline = stage.output("baseline")
        if baseline is not None and baseline.properties.get("version"):
            inputs.append(self._version(str(baseline.properties["version"])))
        return _Seen(inputs, [*map(_Dataset.artifact, stage.outputs), *self._pushed(stage)], stage.state)

    def _tables(self) -> list[_Dataset]:
        tables = self._config.tables
        return [_Dataset(table.path, "TABLE") for table in (tables.interactions, tables.items, tables.users) if table]

    def _pushed(self, stage: runs.Stage) -> list[_Dataset]:
        pushed = stage.output("pushed_model")
        if pushed is None or not pushed.properties.get("pushed"):
            return []
        return [self._version(str(pushed.properties["pushed_version"]))]

    def _version(self, version: str) -> _Dataset:
        return _Dataset(self._config.push_destination, "PushedModel", version)

    def _send(
        self, kind: str, stage: str, run: str, look: Callable[[], _Seen], error: BaseException | None = None
    ) -> None:
        if not self._sink:
            return
        try:
            self._client = self._client or _client(self._sink)
            self._client.emit(self._event(kind, stage, run, look(), error))
        except Exception as failure:
            line = f"output.openlineage: {self._sink}: {_reason(failure)}; the run goes on without events"
            self._sink = ""
            # An address may hold a password, and so may a message that names it.
            _PROGRESS.warning("%s", re.sub(r"//[^/@\s]*@", "//", line))

    def _event(self, kind: str, stage: str, run: str, seen: _Seen, error: BaseException | None) -> Any:
        from openlineage.client import event_v2 as events
        from openlineage.client import facet_v2 as facets

        name = self._config.name
        tags = {"tfx_run": self._run_id} | ({"state": seen.state} if seen.state else {})
        of_run: dict[str, Any] = {
            "processing_engine": facets.processing_engine_run.ProcessingEngineRunFacet(
                version=importlib.metadata.version("tfx"), name="TFX"
            ),
            "tags": facets.tags_run.TagsRunFacet(
                tags=[facets.tags_run.TagsRunFacetFields(key, value, "twotower") for key, value in tags.items()]
            ),
        }
        if stage and self._parent:
            of_run["parent"] = facets.parent_run.ParentRunFacet(
                run=facets.parent_run.Run(self._parent), job=facets.parent_run.Job(self._namespace, name)
            )
        if error is not None:
            message = str(error) or type(error).__name__
            of_run["errorMessage"] = facets.error_message_run.ErrorMessageRunFacet(message, "Python")
        job_type = facets.job_type_job.JobTypeJobFacet("BATCH", "TFX", "TASK" if stage else "DAG")
        return events.RunEvent(
            eventTime=datetime.datetime.now(datetime.UTC).isoformat(),
            eventType=events.RunState[kind],
            run=events.Run(run, of_run),
            job=events.Job(self._namespace, f"{name}.{stage}" if stage else name, {"jobType": job_type}),
            inputs=[events.InputDataset(*_name(each.path), facets=_facets(each)) for each in seen.inputs],
            outputs=[events.OutputDataset(*_name(each.path), facets=_facets(each)) for each in seen.outputs],
            producer=_PRODUCER,
        )


def _client(sink: str) -> OpenLineageClient:
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport
    from openlineage.client.transport.http import HttpConfig, HttpTransport

    if "://" in sink:
        key = os.environ.get(_API_KEY)
        options = {
            # The client would take the end of a path without a slash for a file and replace it.
            "url": sink.rstrip("/") + "/",
            "timeout": _TIMEOUT_SECONDS,
            "retry": {"total": _RETRIES},
            "auth": {"type": "api_key", "apiKey": key} if key else {},
        }
        return OpenLineageClient(transport=HttpTransport(HttpConfig.from_dict(options)))
    path = os.path.abspath(sink)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return OpenLineageClient(transport=FileTransport(FileConfig(path, append=True)))


def _name(path: str) -> tuple[str, str]:
    """Namespace and name of a file or an object, as OpenLineage wants them."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return "file", absolute(path)
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _facets(dataset: _Dataset) -> dict[str, Any]:
    from openlineage.client import facet_v2 as facets

    found: dict[str, Any] = {"datasetType": facets.dataset_type_dataset.DatasetTypeDatasetFacet(dataset.kind)}
    if dataset.version:
        found["version"] = facets.dataset_version_dataset.DatasetVersionDatasetFacet(dataset.version)
    return found


def _reason(error: BaseException) -> str:
    """The first cause: HTTP libraries wrap a refused connection three times."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split())[:300] or type(error).__name__
