"""Uploads the compiled pipeline to Kubeflow Pipelines and runs it, once or on a schedule."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kubeflow import runner
from kubeflow.parameters import checked, parameters, with_absolute_paths
from modules.errors import UserError
from pipeline import local_runner
from pipeline.config import Config

TOKEN_VARIABLE = "KFP_TOKEN"
"""Environment variable with a bearer token for the API, for installations that ask for one."""

_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Submission:
    """What the backend made of it."""

    pipeline: str
    version: str
    experiment: str
    run: str
    """Id of the run, or of the recurring run."""
    link: str
    state: str = ""
    """How the run ended; "" when nobody waited for it."""


def submit(
    config: Config,
    given: Mapping[str, str],
    schedule: str | None = None,
    timeout_seconds: float | None = None,
) -> Submission:
    """Compiles, uploads and runs the pipeline.

    Args:
        config: The configuration; its section `kubeflow` has the API's address.
        given: Runtime parameters as text, instead of their defaults.
        schedule: A cron expression with six fields: a recurring run, in the place of an earlier one of this pipeline.
        timeout_seconds: How long to wait for the run to end; None does not wait.

    Raises:
        UserError: The configuration or a parameter is wrong, or the API refuses or cannot be reached.
    """
    if config.kubeflow.spec != "2.1":
        raise UserError("kubeflow.spec: Kubeflow Pipelines takes 2.1; spec 2.0 is for Vertex AI (docs/kubeflow.md)")
    if schedule is not None and timeout_seconds is not None:
        raise UserError("--wait: a schedule does not end; leave one of them out")
    if schedule is not None and len(schedule.split()) != 6:
        raise UserError(f'--schedule {schedule!r}: expected six fields, seconds first, for instance "0 0 3 * * *"')
    values = parameter_values(config, given)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pipeline.yaml")
        with local_runner.captured_output(os.devnull):
            runner.compile_pipeline(config, path)
        # The client prints links of its own; whoever asked for JSON reads stdout.
        with _in_words(config), contextlib.redirect_stdout(sys.stderr):
            return _submit(config, path, values, schedule, timeout_seconds)


def parameter_values(config: Config, given: Mapping[str, str]) -> dict[str, str | int]:
    """Runtime parameters from text, checked as the keys of the configuration that they replace.

    Raises:
        UserError: There is no such parameter, or its value would be refused.
    """
    known = {parameter.name: parameter for parameter in parameters(with_absolute_paths(config))}
    values: dict[str, str | int] = {}
    for name, text in given.items():
        if name not in known:
            raise UserError(f"--parameter {name}: the pipeline has {', '.join(known)}")
        value: Any = text
        if isinstance(known[name].default, int):
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.safe_load(text)
        values[name] = checked(f"--parameter {name}", known[name].rule, value)
    return values


def _submit(
    config: Config,
    path: str,
    values: dict[str, str | int],
    schedule: str | None,
    timeout_seconds: float | None,
) -> Submission:
    import kfp

    kubeflow = config.kubeflow
    assert kubeflow.pipeline_root
    client = kfp.Client(
        host=kubeflow.host, namespace=kubeflow.namespace, existing_token=os.environ.get(TOKEN_VARIABLE) or None
    )
    version_name = f"{config.name}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S-%f}"
    pipeline_id = client.get_pipeline_id(config.name)
    if pipeline_id is None:
        # The upload of a pipeline is its first version, too.
        pipeline_id = client.upload_pipeline(path, pipeline_name=config.name).pipeline_id
        [version] = client.list_pipeline_versions(pipeline_id, page_size=1).pipeline_versions
    else:
        version = client.upload_pipeline_version(path, version_name, pipeline_id=pipeline_id)
    experiment = client.create_experiment(kubeflow.experiment or config.name)
    arguments = {
        "experiment_id": experiment.experiment_id,
        "job_name": config.name if schedule else version_name,
        "pipeline_id": pipeline_id,
        "version_id": version.pipeline_version_id,
        "params": values,
        "pipeline_root": kubeflow.pipeline_root.rstrip("/"),
        "service_account": kubeflow.service_account,
    }
    address = client._get_url_prefix()
    if schedule:
        earlier = _recurring_runs(client, experiment.experiment_id, config.name)
        # One at a time, and what was missed is missed: the next run trains on all data anyway.
        created = client.create_recurring_run(**arguments, cron_expression=schedule, max_concurrency=1, no_catchup=True)
        for recurring_run in earlier:
            client.delete_recurring_run(recurring_run.recurring_run_id)
        run_id = created.recurring_run_id
        link = f"{address}/#/recurringrun/details/{run_id}"
        return Submission(config.name, version.display_name, experiment.display_name, run_id, link)
    run_id = client.run_pipeline(**arguments).run_id
    link = f"{address}/#/runs/details/{run_id}"
    state = "" if timeout_seconds is None else _wait(client, run_id, timeout_seconds)
    return Submission(config.name, version.display_name, experiment.display_name, run_id, link, state)


def _recurring_runs(client: Any, experiment_id: str, name: str) -> list[Any]:
    equal = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    page = client.list_recurring_runs(
        experiment_id=experiment_id, page_size=100, filter=json.dumps({"predicates": [equal]})
    )
    return [run for run in page.recurring_runs or [] if run.display_name == name]


def _wait(client: Any, run_id: str, timeout_seconds: float) -> str:
    """The state in which a run ended. The client's own waiting never ends for a run that somebody cancelled."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        state = client.get_run(run_id).state or ""
        if state in _ENDED:
            return state
        if time.monotonic() > deadline:
            raise UserError(
                f"run {run_id} is {state.lower()} after {timeout_seconds:g} s; it goes on, a larger --timeout waits"
            )
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _in_words(config: Config) -> Iterator[None]:
    import kfp_server_api
    import urllib3

    address = config.kubeflow.host or "the cluster of the present kubeconfig"
    try:
        yield
    except kfp_server_api.ApiException as error:
        try:
            reason = json.loads(error.body)["message"]
        except (TypeError, ValueError, KeyError):
            reason = error.reason
        raise UserError(f"{address} refuses: {error.status} {' '.join(str(reason).split())}") from None
    except urllib3.exceptions.HTTPError as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"{address} cannot be reached ({reason}); correct kubeflow.host (--host)") from None
