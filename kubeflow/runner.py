"""Compiles the pipeline for Kubeflow Pipelines (spec 2.1) and Vertex AI (2.1 or 2.0)."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from kubeflow import entrypoint
from modules.errors import UserError
from pipeline.config import Config, Resources, absolute

# backend/src/v2/objectstore/config.go, bucketPattern, without its query string, which no artifact's URI keeps.
_ROOT = re.compile(r"(gs|s3|minio)://[a-z0-9][a-z0-9._-]*(/[^?#\s]*)?")
# https://github.com/distribution/reference: [host[:port]/]path[:tag][@digest]
_IMAGE = re.compile(
    r"([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
# Kubernetes passes a stage's settings on its command line, where one argument may have 128 KiB
# (Linux, MAX_ARG_STRLEN), and a whole run must fit into one object of 1.5 MiB.
_LARGEST_FILE = 48 * 1024
_IN_PROCESS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner")
# What these find outside of their inputs changes without any parameter changing; what is below them follows.
_NEVER_CACHED = ("InteractionExampleGen", "BaselineResolver")


@dataclass(frozen=True)
class Parameter:
    """One runtime parameter of the compiled pipeline."""

    name: str
    default: str | int
    key: str
    """The key of the configuration that it replaces."""
    targets: dict[str, tuple[str, ...]]
    """Stage → its parameter, and keys inside of that parameter's JSON."""


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


def with_absolute_paths(config: Config) -> Config:
    """Relative paths are of this folder, in a container as well: whether a volume is there, `check` decides."""
    tables, kubeflow = config.tables, config.kubeflow
    changed = {
        name: table.model_copy(update={"path": absolute(table.path)})
        for name, table in (("interactions", tables.interactions), ("items", tables.items), ("users", tables.users))
        if table is not None
    }
    return config.model_copy(
        update={
            "tables": tables.model_copy(update=changed),
            "kubeflow": kubeflow.model_copy(update={"push": absolute(kubeflow.push or config.output.push)}),
        }
    )


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
    for key, path in _paths(config):
        check_path(key, path, config)
    schema = config.data_schema.path
    if schema is not None and _travels(schema, config):
        try:
            size = os.path.getsize(schema)
        except OSError as error:
            raise UserError(f"schema.path: {schema}: {error.strerror}; write it with `twotower schema`") from None
        if size > _LARGEST_FILE:
            raise UserError(f"schema.path: {schema} has {size:,} bytes, more than travel inside a pipeline; "
                            "put it on gs:// or on a volume of kubeflow.volumes")  # fmt: skip


def check_path(key: str, path: str, config: Config) -> None:
    volumes = config.kubeflow.volumes
    if path.startswith("gs://") or _on_volume(path, config):
        return
    places = "give a gs:// path, or one below a volume of kubeflow.volumes"
    if volumes:
        places += f" ({', '.join(volume.path for volume in volumes)})"
    what = "cannot be opened by TensorFlow" if "://" in path else "is on this machine, where no container sees it"
    raise UserError(f"{key}: {path} {what}; {places}")


def _on_volume(path: str, config: Config) -> bool:
    return any(path.startswith(volume.path.rstrip("/") + "/") for volume in config.kubeflow.volumes)


def _travels(schema: str, config: Config) -> bool:
    """Whether a schema is a file of this machine, and not one that only the cluster has."""
    return "://" not in schema and (os.path.exists(schema) or not _on_volume(schema, config))


def _paths(config: Config) -> Iterator[tuple[str, str]]:
    tables = config.tables
    yield "tables.interactions.path", tables.interactions.path
    yield "tables.items.path", tables.items.path
    if tables.users is not None:
        yield "tables.users.path", tables.users.path
    yield "kubeflow.push", _push_destination(config)
    if config.data_schema.path is not None and "://" in config.data_schema.path:
        yield "schema.path", config.data_schema.path


def _push_destination(config: Config) -> str:
    return f"{config.kubeflow.push}/{config.name}"


def _launcher_copies(config: Config) -> bool:
    """Whether stages work on the launcher's local copies of artifacts: they must be the only ones to read them."""
    runners = [option.partition("=")[2] for option in config.kubeflow.beam.options if option.startswith("--runner=")]
    return config.kubeflow.spec == "2.1" and all(runner in _IN_PROCESS for runner in runners)


def parameters(config: Config) -> list[Parameter]:
    """What can be set anew for every run of the compiled pipeline."""
    found = [
        Parameter("interactions", config.tables.interactions.path, "tables.interactions.path",
                  {"InteractionExampleGen": ("tables", "interactions", "path")}),
        Parameter("items", config.tables.items.path, "tables.items.path",
                  {"InteractionExampleGen": ("tables", "items", "path")}),
    ]  # fmt: skip
    if config.tables.users is not None:
        found.append(Parameter("users", config.tables.users.path, "tables.users.path",
                               {"InteractionExampleGen": ("tables", "users", "path")}))  # fmt: skip
    return [
        *found,
        Parameter("epochs", config.training.epochs, "training.epochs",
                  {"Trainer": ("custom_config", "training", "epochs")}),
        Parameter("push_to", _push_destination(config), "<kubeflow.push>/<name>",
                  {"BaselineResolver": ("push_destination",),
                   "Pusher": ("push_destination", "filesystem", "base_directory")}),
    ]  # fmt: skip


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
        push_destination=_push_destination(config),
        beam_options=kubeflow.beam.options,
        schema_file=_schema_file(config),
        # Where stages open the bucket themselves; the launcher may have rights there that a stage has not.
        checkpoints="" if _launcher_copies(config) else f"{root}/checkpoints",
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
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["args"] += [
            entrypoint.ARTIFACTS_OPTION, entrypoint.LAUNCHER if copies else entrypoint.DIRECT
        ]  # fmt: skip
    for stage in _NEVER_CACHED:
        spec["root"]["dag"]["tasks"][stage].pop("cachingOptions", None)
    for parameter in wanted:
        _add_parameter(spec, parameter)
    return job


def _schema_file(config: Config) -> str | None:
    """A local schema travels inside the pipeline, as a `data:` URI (RFC 2397) that the entry point writes to disk."""
    path = config.data_schema.path
    if path is None or not _travels(path, config):
        return path
    with open(path, "rb") as file:
        return "data:text/plain;base64," + base64.b64encode(file.read()).decode()


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
    """Declares a runtime parameter, binds it to its stages, and tells their entry point what it replaces."""
    is_number = isinstance(parameter.default, int)
    if spec["schemaVersion"] == "2.1.0":
        kind: dict[str, Any] = {"parameterType": "NUMBER_INTEGER" if is_number else "STRING"}
        declared = {**kind, "defaultValue": parameter.default, "description": f"replaces {parameter.key}"}
    else:
        # Spec 2.0 has no default values; they are in the job's runtimeConfig.
        kind = {"type": "INT" if is_number else "STRING"}
        declared = dict(kind)
    spec["root"].setdefault("inputDefinitions", {}).setdefault("parameters", {})[parameter.name] = declared
    for stage, path in parameter.targets.items():
        spec["components"][stage]["inputDefinitions"]["parameters"][parameter.name] = dict(kind)
        spec["root"]["dag"]["tasks"][stage]["inputs"]["parameters"][parameter.name] = {
            "componentInputParameter": parameter.name
        }
        arguments = spec["deploymentSpec"]["executors"][spec["components"][stage]["executorLabel"]]["container"]["args"]
        if entrypoint.PARAMETERS_OPTION not in arguments:
            arguments += [entrypoint.PARAMETERS_OPTION, "{}"]
        place = arguments.index(entrypoint.PARAMETERS_OPTION) + 1
        arguments[place] = json.dumps(json.loads(arguments[place]) | {parameter.name: path})


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
    if kubeflow.volumes:
        result["pvcMount"] = [
            {"constant": v.claim, "pvcNameParameter": _constant(v.claim), "mountPath": v.path} for v in kubeflow.volumes
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
