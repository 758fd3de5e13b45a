"""`twotower kubeflow`: the same pipeline on Kubeflow Pipelines or Vertex AI."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import click

from pipeline import local_runner
from pipeline.commands.options import Common, LocalFile, configured, single
from pipeline.config import Config


@click.group(
    epilog="twotower kubeflow compile --image registry.example/twotower:1 --pipeline-root gs://bucket/artifacts"
)
def kubeflow() -> None:
    """The same pipeline on Kubeflow Pipelines or Vertex AI."""


def _site(command: Callable[..., int]) -> Callable[..., int]:
    """Options that stand for keys of the section `kubeflow`."""
    command = click.option("--image", help="image of kubeflow/Dockerfile (default: kubeflow.image)")(command)
    words = "bucket for artifacts: minio://, s3:// or gs:// (default: kubeflow.pipeline_root)"
    return click.option("--pipeline-root", help=words)(command)


def _config(common: Common, **given: str | None) -> Config:
    config = common.load()
    changed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return config.model_copy(update={"kubeflow": config.kubeflow.model_copy(update=changed)})


@kubeflow.command(
    name="compile",
    epilog="twotower kubeflow compile --image registry.example/twotower:1 --output pipeline.yaml",
)
@click.option("--output", type=LocalFile(), default="pipeline.yaml", show_default=True,
              help="spec 2.0 is written as .json")  # fmt: skip
@_site
@configured
def compile_(common: Common, output: str, image: str | None, pipeline_root: str | None) -> int:
    """Write the pipeline for upload."""
    from kubeflow import runner

    config = _config(common, image=image, pipeline_root=pipeline_root)
    with local_runner.captured_output(os.devnull):
        job = runner.compile_pipeline(config, output)
    stages = list(job["pipelineSpec"]["root"]["dag"]["tasks"])
    parameters = {p.name: p.default for p in runner.parameters(runner.with_absolute_paths(config))}
    common.answer(
        {"output": output, "stages": stages, "parameters": parameters},
        f"{config.name}, {len(stages)} stages → {output} (spec {config.kubeflow.spec})",
        "parameters of a run: " + ", ".join(f"{name}={value}" for name, value in parameters.items()),
    )
    return 0


@kubeflow.command(
    epilog="""
    twotower kubeflow submit --host http://localhost:8888 --parameter epochs=5 --wait
    twotower kubeflow submit --host http://localhost:8888 --schedule "0 0 3 * * *"
    """
)
@click.option("--host", help="the Kubeflow Pipelines API (default: kubeflow.host)")
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE",
              help="a runtime parameter, for instance epochs=5 or push_to=gs://bucket/folder")  # fmt: skip
@click.option("--schedule", metavar="CRON", help='six fields, seconds first: "0 0 3 * * *" is 3:00 every day')
@click.option("--wait", is_flag=True, help="until the run has ended; exit code 1 when it failed")
@click.option("--timeout", type=float, default=86400, metavar="SECONDS", help="for --wait, default a day")
@_site
@configured
def submit(
    common: Common,
    host: str | None,
    parameters: tuple[str, ...],
    schedule: str | None,
    wait: bool,
    timeout: float,
    image: str | None,
    pipeline_root: str | None,
) -> int:
    """Compile, upload and run, once or on a schedule."""
    from kubeflow import submit

    outcome = submit.submit(
        _config(common, image=image, pipeline_root=pipeline_root, host=host),
        single(parameters, "--parameter"),
        schedule=schedule,
        timeout_seconds=timeout if wait else None,
    )
    answer = dataclasses.asdict(outcome)
    common.answer(answer, *(f"{name:<12} {value}" for name, value in answer.items() if value))
    return 0 if outcome.state in ("", "SUCCEEDED") else 1
