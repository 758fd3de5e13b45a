"""Compiles the pipeline for Kubeflow Pipelines (spec 2.1) and Vertex AI (2.1 or 2.0)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from kubeflow import entrypoint, transport
from kubeflow.parameters import (
    FIRST_STAGE,
    Parameter,
    check_path,
    mounted,
    opened,
    parameters,
    push_destination,
    travels,
    with_absolute_paths,
)
from modules.errors import UserError
from modules.settings import Resources
from pipeline.config import Config

__all__ = ["check", "compile_pipeline", "parameters", "pipeline_job", "platform_spec", "with_absolute_paths"]

# backend/src/v2/objectstore/config.go, bucketPattern, without its query string, which no artifact's URI keeps.
_ROOT = re.compile(r"(gs|s3|minio)://[a-z0-9][a-z0-9._-]*(/[^?#\s]*)?")
# https://github.com/distribution/reference: [host[:port]/]path[:tag][@digest]
_IMAGE = re.compile(
    r"([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
# What these find outside of their inputs changes without any parameter changing; what is below them follows.
_NEVER_CACHED = ("InteractionExampleGen", "BaselineResolver")


# A stage whose pod was evicted, or failed, starts again after one minute, the next time after two. Argo counts the
# longest duration from the start of the first attempt, training included, and a missing one is zero: no retry at all
# (argo-workflows 4.0.8, workflow/controller/operator.go, processNodeRetries).
_RETRY_POLICY = {"backoffDuration": "60s", "backoffFactor": 2, "backoffMaxDuration": f"{7 * 86400}s"}


def compile_pipeline(config: Config, output: str) -> dict[str, Any]:
    """Writes the compiled pipeline.

    Args:
        config: The configuration; its section `kubeflow` says where the pipeline will run.
        output: The file: .yaml, a PipelineSpec and, if need be, a PlatformSpec; for spec 2.0 .json, a PipelineJob.

    Returns:
        The PipelineJob.

    Raises:
        UserError: The cluster would refuse the pipeline, or could not see a path.
    """
    config = with_absolute_paths(config)
    check(config)
    ending = (".yaml", ".yml") if config.kubeflow.spec == "2.1" else (".json",)
    if not output.endswith(ending):
        raise UserError(f"--output {output}: spec {config.kubeflow.spec} is written to a file that ends in {ending[0]}")
    job = pipeline_job(config)
    try:
        with open(output, "w", encoding="utf-8") as file:
            if config.kubeflow.spec == "2.0":
                json.dump(job, file, indent=1, sort_keys=True)
            else:
                documents = [job["pipelineSpec"]]
                platform = platform_spec(config, job["pipelineSpec"])
                yaml.safe_dump_all(documents + ([platform] if platform else []), file, sort_keys=True, width=120)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}") from None
    return job


def check(config: Config) -> None:
    """Refuses what the backend would refuse, or what a container could not see.

    Raises:
        UserError: One line, with the fix.
    """
    kubeflow = config.kubeflow
    if config.name.endswith("-"):
        raise UserError(f"name: {config.name!r} must end with a letter or a digit for Kubeflow; rename it")
    if not kubeflow.image:
        raise UserError("kubeflow.image: is missing; build kubeflow/Dockerfile, push it, and give its name (--image)")
    images = {f"kubeflow.resources.{stage}.image": r.image for stage, r in kubeflow.resources.items() if r.image}
    for key, image in {"kubeflow.image": kubeflow.image, **images}.items():
        if not _IMAGE.fullmatch(image):
            raise UserError(f"{key}: {image!r} is no image name; expected registry/name:tag in lower case")
    root = kubeflow.pipeline_root
    if not root:
        raise UserError(
            "kubeflow.pipeline_root: is missing; give a bucket, as in minio://mlpipeline/v2/artifacts (--pipeline-root)"
        )
    if not _ROOT.fullmatch(root):
        raise UserError(
            f"kubeflow.pipeline_root: {root!r} is nothing that the cluster can keep artifacts in; give a bucket, as in "
            "gs://bucket/path, s3://bucket/path or minio://bucket/path (--pipeline-root)"
        )
    if not root.startswith("gs://") and not _launcher_copies(config):
        why = "Vertex AI (spec 2.0) opens" if kubeflow.spec == "2.0" else "remote Beam workers (kubeflow.beam) open"
        raise UserError(
            f"kubeflow.pipeline_root: {why} artifacts where they are, and {root} cannot be; give a gs:// root"
        )
    if kubeflow.spec == "2.0" and platform_settings(config):
        raise UserError("kubeflow: volumes, secrets, node_selector, tolerations and image_pull_secret need spec 2.1")
    if config.training.distribution == "multi_worker":
        raise UserError(
            "training.distribution: multi_worker needs a pod for each worker, and a stage has one; give the Trainer "
            "several GPUs (kubeflow.resources) and choose mirrored"
        )
    mounts = [volume.path for volume in kubeflow.volumes]
    for one in opened(config):
        check_path(one.key, one.path, mounts)
    schema = config.data_schema.path
    if schema is not None and travels(schema, config):
        try:
            with open(schema, "rb"):
                pass
        except OSError as error:
            raise UserError(f"schema.path: {schema}: {error.strerror}; write it with `twotower schema`") from None


def _launcher_copies(config: Config) -> bool:
    """Whether stages work on the launcher's local copies of artifacts: they must be the only ones to read them."""
    return config.kubeflow.spec == "2.1" and not config.kubeflow.beam.remote


def pipeline_job(config: Config) -> dict[str, Any]:
    """The PipelineJob, as its JSON: TFX's compiler, and what it leaves open."""
    # TFX takes seconds to import: only once everything that can be checked without it is right.
    from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner, pipeline_builder

    from pipeline.pipeline import Site, create_pipeline

    kubeflow = config.kubeflow
    assert kubeflow.image and kubeflow.pipeline_root
    root = kubeflow.pipeline_root.rstrip("/")
    site = Site(
        root=root,
        push_destination=push_destination(config),
        beam_options=kubeflow.beam.arguments(),
        schema_file=_schema_file(config),
        # Below the root only where stages open it themselves; the launcher may have rights there that a stage has not.
        checkpoints=kubeflow.checkpoints or ("" if _launcher_copies(config) else f"{root}/checkpoints"),
    )
    pipeline = create_pipeline(config, site)
    _set_resources(pipeline.components, kubeflow.resources)
    wanted = parameters(config)
    default = kubeflow.resources.get("default", Resources()).image or kubeflow.image
    images = {stage: resources.image or default for stage, resources in kubeflow.resources.items()}
    runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(
            default_image={**images, pipeline_builder.DEFAULT_IMAGE_PATH_KEY: default},
            default_commands=["python", "-m", "kubeflow.entrypoint"],
            use_pipeline_spec_2_1=kubeflow.spec == "2.1",
        )
    )
    job = runner.run(pipeline, {p.name: p.default for p in wanted}, write_out=False)
    spec = job["pipelineSpec"]
    spec["defaultPipelineRoot"] = root
    copies = _launcher_copies(config)
    tasks = spec["root"]["dag"]["tasks"]
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["args"] += [
            entrypoint.ARTIFACTS_OPTION, entrypoint.LAUNCHER if copies else entrypoint.DIRECT
        ]  # fmt: skip
    for stage in _NEVER_CACHED:
        tasks[stage].pop("cachingOptions", None)
    for parameter in wanted:
        _add_parameter(spec, parameter)
    _arguments(spec, FIRST_STAGE).extend(
        [entrypoint.CHECKS_OPTION, json.dumps({parameter.name: parameter.rule for parameter in wanted})]
    )
    for task in tasks.values():
        if kubeflow.retries:
            task["retryPolicy"] = {"maxRetryCount": kubeflow.retries, **_RETRY_POLICY}
        for holder, key in _constants(task):
            holder[key] = transport.packed(holder[key])
    if kubeflow.spec == "2.1":
        for executor in spec["deploymentSpec"]["executors"].values():
            executor["container"]["args"] = [transport.argument(text) for text in executor["container"]["args"]]
        _check_size(spec, wanted, config)
    return job


def _constants(task: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The texts among a task's constant parameters, each as what holds it and its key there."""
    for given in task["inputs"].get("parameters", {}).values():
        value = given.get("runtimeValue", {})
        # Spec 2.1 has the value, 2.0 its type beside it.
        for holder, key in ((value, "constant"), (value.get("constantValue", {}), "stringValue")):
            if isinstance(holder.get(key), str):
                yield holder, key


def _check_size(spec: dict[str, Any], wanted: Iterable[Parameter], config: Config) -> None:
    size = transport.root_driver_bytes(spec, {p.name: p.default for p in wanted}, spec["defaultPipelineRoot"])
    if size <= transport.LONGEST_ARGUMENT:
        return
    sizes = {
        (stage, name): len(json.dumps(given))
        for stage, task in spec["root"]["dag"]["tasks"].items()
        for name, given in task["inputs"].get("parameters", {}).items()
    }
    stage, name = max(sizes, key=lambda place: sizes[place])
    if stage == "ImportSchemaGen":
        what = f"schema.path: {config.data_schema.path}"
        remedy = "put it on gs:// or on a volume of kubeflow.volumes"
    else:
        what, remedy = f"{stage}'s {name}", "leave out features, columns or slices"
    raise UserError(
        f"{what} takes {sizes[stage, name]:,} bytes, compressed, of {size:,} that the root driver gets at once, where "
        f"{transport.LONGEST_ARGUMENT:,} fit; {remedy}"
    )


def _schema_file(config: Config) -> str | None:
    """A local schema travels inside the pipeline, as text that the entry point writes to disk."""
    path = config.data_schema.path
    if path is None or not travels(path, config):
        return path
    with open(path, "rb") as file:
        return transport.file_as_text(file.read())


def _set_resources(components: Iterable[Any], resources: dict[str, Resources]) -> None:
    from kfp.pipeline_spec import pipeline_spec_pb2

    components = list(components)
    names = [component.id for component in components]
    unknown = sorted(set(resources) - {*names, "default"})
    if unknown:
        raise UserError(f"kubeflow.resources: {unknown[0]!r} is no stage; stages are {', '.join(names)}, and `default`")
    for component in components:
        wanted = resources.get(component.id, resources.get("default"))
        if wanted is None or not (wanted.cpu or wanted.memory or wanted.accelerator):
            continue
        spec = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec()
        # Requests that equal limits: a stage that shares its node with others is evicted last.
        if wanted.cpu:
            spec.cpu_limit = spec.cpu_request = wanted.cpu
        if wanted.memory:
            spec.memory_limit = spec.memory_request = wanted.memory
        if wanted.accelerator:
            spec.accelerator.type, spec.accelerator.count = wanted.accelerator, wanted.accelerators
        component.platform_config = spec


def _add_parameter(spec: dict[str, Any], parameter: Parameter) -> None:
    """Declares a runtime parameter, binds it to its stages and to the one that checks it, and tells their entry point
    what it replaces."""
    is_number = isinstance(parameter.default, int)
    if spec["schemaVersion"] == "2.1.0":
        kind: dict[str, Any] = {"parameterType": "NUMBER_INTEGER" if is_number else "STRING"}
        declared = {**kind, "defaultValue": parameter.default, "description": f"replaces {parameter.key}"}
    else:
        # Spec 2.0 has no default values; they are in the job's runtimeConfig.
        kind = {"type": "INT" if is_number else "STRING"}
        declared = dict(kind)
    spec["root"].setdefault("inputDefinitions", {}).setdefault("parameters", {})[parameter.name] = declared
    for stage, path in {FIRST_STAGE: None, **parameter.targets}.items():
        spec["components"][stage]["inputDefinitions"]["parameters"][parameter.name] = dict(kind)
        spec["root"]["dag"]["tasks"][stage]["inputs"]["parameters"][parameter.name] = {
            "componentInputParameter": parameter.name
        }
        if path is None:
            continue
        arguments = _arguments(spec, stage)
        if entrypoint.PARAMETERS_OPTION not in arguments:
            arguments += [entrypoint.PARAMETERS_OPTION, "{}"]
        place = arguments.index(entrypoint.PARAMETERS_OPTION) + 1
        arguments[place] = json.dumps(json.loads(arguments[place]) | {parameter.name: path})


def _arguments(spec: dict[str, Any], stage: str) -> list[str]:
    arguments: list[str] = spec["deploymentSpec"]["executors"][spec["components"][stage]["executorLabel"]]["container"][
        "args"
    ]
    return arguments


def platform_spec(config: Config, spec: dict[str, Any]) -> dict[str, Any] | None:
    """The PlatformSpec: what only Kubernetes knows, by executor; None when nothing is asked for."""
    if not platform_settings(config):
        return None
    executors = {
        component["executorLabel"]: _executor_platform(config, stage) for stage, component in spec["components"].items()
    }
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def platform_settings(config: Config) -> bool:
    """Whether anything is asked for that only Kubernetes knows."""
    kubeflow = config.kubeflow
    per_stage = any(r.node_selector or r.tolerations for r in kubeflow.resources.values())
    return bool(kubeflow.volumes or kubeflow.secrets or kubeflow.image_pull_secret or per_stage)


def _executor_platform(config: Config, stage: str) -> dict[str, Any]:
    """A KubernetesExecutorConfig. Names stand in both places, for backends before and since their parameters."""
    kubeflow = config.kubeflow
    wanted = kubeflow.resources.get(stage, kubeflow.resources.get("default", Resources()))
    result: dict[str, Any] = {}
    volumes = [kubeflow.volumes[number] for number in mounted(config, stage)]
    if volumes:
        result["pvcMount"] = [
            {"constant": v.claim, "pvcNameParameter": _constant(v.claim), "mountPath": v.path} for v in volumes
        ]
    if kubeflow.secrets:
        result["secretAsEnv"] = [
            {
                "secretName": s.name,
                "secretNameParameter": _constant(s.name),
                "keyToEnv": [{"envVar": variable, "secretKey": key} for variable, key in s.env.items()],
            }
            for s in kubeflow.secrets
        ]
    if kubeflow.image_pull_secret:
        name = kubeflow.image_pull_secret
        result["imagePullSecret"] = [{"secretName": name, "secretNameParameter": _constant(name)}]
    if wanted.node_selector:
        result["nodeSelector"] = {"labels": wanted.node_selector}
    if wanted.tolerations:
        result["tolerations"] = [{"key": key, "operator": "Exists"} for key in wanted.tolerations]
    return result


def _constant(value: str) -> dict[str, Any]:
    return {"runtimeValue": {"constant": value}}
