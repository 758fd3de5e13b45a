"""Runs a compiled pipeline without a cluster: reads the YAML and nothing else, and does what the cluster does with it.

Each stage's container becomes a process with the container's own command line and a clean environment. What lies
between the YAML and that process is rebuilt from the open-source backend's sources (kubeflow/pipelines 7b70c7b,
backend/src/v2): the API server's refusals, the driver's resolution of inputs, provision of outputs and cache,
Kubernetes' replacements in arguments, Argo's retries, and the launcher's copies between object store and container,
its placeholders, its log, and its way of publishing artifacts. One file, to be read beside those sources.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import glob
import graphlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from google.protobuf import json_format, struct_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from kubeflow import transport
from kubeflow.entrypoint import ARTIFACTS_OPTION, LAUNCHER, MOUNTS_VARIABLE
from modules.errors import UserError

# backend/src/apiserver/template/v2_template.go, meant to match whole names.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# What Argo accepts as the name of a task of a DAG.
_TASK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9-]*")
_MOUNTS = {"gs": "gcs", "minio": "minio", "s3": "s3"}
_LOGS = "executor-logs"
# backend/src/v2/config/env.go: where the launcher found a bucket's credentials, kept with every artifact.
_SESSIONS = {
    "minio": {"Provider": "minio", "Params": {
        "accessKeyKey": "accesskey", "disableSSL": "true", "endpoint": "seaweedfs.kubeflow:9000", "fromEnv": "false",
        "maxRetries": "5", "region": "minio", "secretKeyKey": "secretkey", "secretName": "mlpipeline-minio-artifact"}},
    "s3": {"Provider": "s3", "Params": {"fromEnv": "true"}},
    "gs": {"Provider": "gs", "Params": {"fromEnv": "true"}},
}  # fmt: skip

Backend = Literal["mlmd", "native", "vertex"]
"""Whose metadata: `mlmd` is ML Metadata (releases to 2.18), where artifacts lose their type; `native` the API server's
own (kubeflow/pipelines#13986), where the whole schema becomes the type's title; `vertex` Vertex AI's, which keep it."""


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline as the API server reads it."""

    spec: Any
    """PipelineSpec."""
    deployment: Any
    """PipelineDeploymentConfig."""
    tree: dict[str, Any]
    """The PipelineSpec as it is in the file."""
    mounts: dict[str, dict[str, str]]
    """Executor → path at which the platform spec mounts a volume → the volume's claim."""

    def container(self, task: str) -> Any:
        component = self.spec.components[self.spec.root.dag.tasks[task].component_ref.name]
        return self.deployment.executors[component.executor_label].container

    def mounted(self, task: str) -> dict[str, str]:
        """Path → claim of the volumes that a task's pod has."""
        return self.mounts.get(
            self.spec.components[self.spec.root.dag.tasks[task].component_ref.name].executor_label, {}
        )


@dataclass(frozen=True)
class Outcome:
    """How one task ended."""

    task: str
    state: Literal["done", "cached", "failed", "skipped"]
    seconds: float = 0.0
    attempts: int = 0
    """Pods that were started."""
    command: tuple[str, ...] = ()
    """The process's command line, placeholders filled in."""
    artifacts: dict[str, Any] = field(default_factory=dict)
    """Output key → RuntimeArtifact as the metadata store has it."""
    error: str = ""

    @property
    def ended_well(self) -> bool:
        return self.state in ("done", "cached")


def load(path: str) -> Compiled:
    """Reads a compiled pipeline, as strictly as the API server and its Argo compiler.

    Raises:
        UserError: They would refuse it.
    """
    with open(path, encoding="utf-8") as file:
        documents = list(yaml.safe_load_all(file))
    try:
        [spec_tree] = [document for document in documents if "pipelineInfo" in document]
        spec = json_format.ParseDict(spec_tree, pipeline_spec_pb2.PipelineSpec())
        deployment = json_format.ParseDict(
            json_format.MessageToDict(spec.deployment_spec), pipeline_spec_pb2.PipelineDeploymentConfig()
        )
        rest = [document for document in documents if document is not spec_tree]
        platforms = [json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec()) for document in rest]
    except (ValueError, json_format.ParseError) as error:
        raise UserError(f"{path}: not a compiled pipeline: {' '.join(str(error).split())}") from None
    if spec.schema_version != "2.1.0":
        raise UserError(f"{path}: the API server takes schema version 2.1.0 only, not {spec.schema_version}")
    if not _NAME.fullmatch(spec.pipeline_info.name):
        raise UserError(f"{path}: the API server refuses the name {spec.pipeline_info.name!r}")
    for name, task in spec.root.dag.tasks.items():
        if not _TASK.fullmatch(name) or task.task_info.name != name:
            raise UserError(f"{path}: Argo refuses the task name {name!r}")
        if task.component_ref.name not in spec.components:
            raise UserError(f"{path}: task {name} has no component")
        executor = deployment.executors.get(spec.components[task.component_ref.name].executor_label)
        if executor is None or executor.WhichOneof("spec") != "container":
            raise UserError(f"{path}: the Argo compiler implements containers only, and {name} is none")
        if executor.container.lifecycle.ByteSize():
            raise UserError(f"{path}: the backend runs no pre-cache check, which {name} asks for")
        for key, given in task.inputs.parameters.items():
            if "{{" in given.runtime_value.constant.string_value:
                raise UserError(f"{path}: Argo replaces the braces in {name}'s {key}")
    mounts = {
        label: {m["mountPath"]: m["constant"] for m in json_format.MessageToDict(executor).get("pvcMount", ())}
        for platform in platforms
        for label, executor in platform.platforms["kubernetes"].deployment_spec.executors.items()
    }
    return Compiled(spec, deployment, spec_tree, mounts)


class Cluster:
    """A folder that stands for the object store and the pods of one run.

    Args:
        compiled: The pipeline.
        folder: Where to keep everything; may hold earlier runs.
        backend: Whose metadata lie between the stages.
        parameters: Runtime parameters instead of their defaults.
        evictions: Task → pattern of files; its first pod is killed as soon as there is one.
        start: What starts a container's process, with the arguments of `subprocess.Popen`.

    Raises:
        UserError: A parameter is unknown, lacks or has the wrong type, the root driver could not start, or the pipeline
            needs more than this can do.
    """

    def __init__(
        self,
        compiled: Compiled,
        folder: Path,
        *,
        backend: Backend = "mlmd",
        parameters: Mapping[str, Any] | None = None,
        evictions: Mapping[str, str] | None = None,
        start: Callable[..., Any] = subprocess.Popen,
    ) -> None:
        self.compiled = compiled
        self.folder = folder.resolve()
        self.backend = backend
        self.evictions = dict(evictions or {})
        self.start = start
        self.parameters = _parameters(compiled.spec, parameters or {})
        size = transport.root_driver_bytes(
            compiled.tree,
            {name: json_format.MessageToDict(value) for name, value in self.parameters.items()},
            compiled.spec.default_pipeline_root,
        )
        if size > transport.LONGEST_ARGUMENT:
            raise UserError(
                f"the root driver does not start: its pod needs {size:,} bytes for one argument, and the kernel takes "
                f"{transport.LONGEST_ARGUMENT:,}"
            )
        run = time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]
        self.run_root = f"{compiled.spec.default_pipeline_root}/{compiled.spec.pipeline_info.name}/{run}"
        for volume in sorted({path for paths in compiled.mounts.values() for path in paths}):
            if not os.path.isdir(volume):
                raise UserError(f"volume {volume}: make the folder here, and fill it as the cluster's volume is")
        for task in compiled.spec.root.dag.tasks:
            arguments = list(compiled.container(task).args)
            if LAUNCHER not in arguments[arguments.index(ARTIFACTS_OPTION) :]:
                raise UserError(
                    "the pipeline opens its bucket itself, and there is none here; compile it with an in-process runner"
                )

    def run(self, finished: Mapping[str, Outcome] | None = None, workers: int = 2) -> dict[str, Outcome]:
        """Runs the tasks in the order of their dependencies, independent ones side by side.

        A task whose upstream did not finish is skipped, as the backend skips it.

        Args:
            finished: Outcomes that are taken as they are, as in a run that is retried.
            workers: How many tasks at once.

        Returns:
            Task → outcome, in the order in which they ended.
        """
        outcomes = dict(finished or {})
        tasks = self.compiled.spec.root.dag.tasks
        order = graphlib.TopologicalSorter({name: _upstream(task) for name, task in tasks.items()})
        order.prepare()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            running: dict[concurrent.futures.Future[Outcome], str] = {}
            while order.is_active():
                for name in order.get_ready():
                    if name in outcomes:
                        order.done(name)
                    elif not all(outcomes[other].ended_well for other in _upstream(tasks[name])):
                        outcomes[name] = Outcome(name, "skipped")
                        order.done(name)
                    else:
                        running[pool.submit(self._execute, name, outcomes)] = name
                if not running:
                    continue
                ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    name = running.pop(future)
                    outcomes[name] = future.result()
                    order.done(name)
        return outcomes

    def executor_input(self, name: str, outcomes: Mapping[str, Outcome]) -> Any:
        """The ExecutorInput of a task: what the driver resolves and provides (driver/resolve.go, driver/driver.go)."""
        task = self.compiled.spec.root.dag.tasks[name]
        component = self.compiled.spec.components[task.component_ref.name]
        result = pipeline_spec_pb2.ExecutorInput()
        for key, source in task.inputs.artifacts.items():
            producer = source.task_output_artifact
            artifact = result.inputs.artifacts[key].artifacts.add()
            artifact.CopyFrom(outcomes[producer.producer_task].artifacts[producer.output_artifact_key])
            schema = component.input_definitions.artifacts[key].artifact_type.instance_schema
            if self.backend == "native":
                artifact.type.schema_title = schema
            else:
                artifact.type.instance_schema = schema if self.backend == "vertex" else ""
        for key, parameter in task.inputs.parameters.items():
            if parameter.component_input_parameter:
                value = self.parameters[parameter.component_input_parameter]
            else:
                value = parameter.runtime_value.constant
            result.inputs.parameter_values[key].CopyFrom(value)
        task_root = f"{self.run_root}/{name}/{uuid.uuid4()}"
        for key, output in component.output_definitions.artifacts.items():
            artifact = result.outputs.artifacts[key].artifacts.add()
            artifact.name, artifact.uri = key, f"{task_root}/{key}"
            artifact.type.CopyFrom(output.artifact_type)
            artifact.metadata.CopyFrom(output.metadata)
        if self.backend != "vertex":
            logs = result.outputs.artifacts[_LOGS].artifacts.add()
            logs.name, logs.uri = _LOGS, f"{task_root}/{_LOGS}"
            logs.type.schema_title = "system.Artifact"
        result.outputs.output_file = str(self._mounted(name, task_root) / "output_metadata.json")
        return result

    def _execute(self, name: str, outcomes: Mapping[str, Outcome]) -> Outcome:
        """The driver's look into its cache, and Argo's pods until one ends well."""
        started = time.monotonic()
        executor_input = self.executor_input(name, outcomes)
        entry = self._cache_entry(name, executor_input)
        if entry is not None and entry.exists():
            kept = {
                key: json_format.ParseDict(artifact, pipeline_spec_pb2.RuntimeArtifact())
                for key, artifact in json.loads(entry.read_text(encoding="utf-8")).items()
            }
            return Outcome(name, "cached", time.monotonic() - started, artifacts=kept)
        policy = self.compiled.spec.root.dag.tasks[name].retry_policy
        # Argo takes no longest duration for one of zero, which has always passed.
        retries = policy.max_retry_count if policy.backoff_max_duration.seconds else 0
        for attempt in range(1 + retries):
            outcome = self._run_pod(name, executor_input, attempt, started)
            if outcome.ended_well:
                break
        if entry is not None and outcome.ended_well:
            entry.parent.mkdir(exist_ok=True)
            dicts = {key: json_format.MessageToDict(artifact) for key, artifact in outcome.artifacts.items()}
            entry.write_text(json.dumps(dicts), encoding="utf-8")
        return outcome

    def _cache_entry(self, name: str, executor_input: Any) -> Path | None:
        """Where the cache has a task with these inputs (driver/cache.go, cacheutils/cache.go); None without a cache."""
        task = self.compiled.spec.root.dag.tasks[name]
        if not task.caching_options.enable_cache:
            return None
        container = self.compiled.container(name)
        inputs, outputs = executor_input.inputs, executor_input.outputs.artifacts
        key = {
            # An artifact is known by its id, which the native backend keeps beside a name that others have, too.
            "artifacts": {k: [a.uri if self.backend == "native" else a.name for a in listed.artifacts]
                          for k, listed in inputs.artifacts.items()},
            "parameters": {k: json_format.MessageToDict(value) for k, value in inputs.parameter_values.items()},
            "outputs": {k: json_format.MessageToDict(made.artifacts[0]) | {"uri": ""} for k, made in outputs.items()},
            "container": [container.image, *container.command, *container.args],
            "claims": sorted(set(self.compiled.mounted(name).values())),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / "cache" / f"{digest}.json"

    def _run_pod(self, name: str, provided: Any, attempt: int, started: float) -> Outcome:
        """The launcher (component/launcher_v2.go): download, run, upload, publish."""
        pod = self._pod(name)
        shutil.rmtree(pod, ignore_errors=True)
        pod.mkdir(parents=True)
        container = self.compiled.container(name)
        environment = {
            "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(pod),
            "KFP_POD_NAME": name.lower(),
            MOUNTS_VARIABLE: str(pod),
            **{variable.name: variable.value for variable in container.env},
        }
        # The launcher has it on its own command line.
        text = _as_kubernetes_does(json_format.MessageToJson(provided), environment)
        executor_input = json_format.Parse(text, pipeline_spec_pb2.ExecutorInput())
        for artifact in executor_input.outputs.artifacts[_LOGS].artifacts if self.backend != "vertex" else ():
            artifact.uri += f"-{attempt}"
        for artifacts in executor_input.inputs.artifacts.values():
            for artifact in artifacts.artifacts:
                _copy_files(self._stored(artifact.uri), self._mounted(name, artifact.uri))
        for artifacts in executor_input.outputs.artifacts.values():
            self._mounted(name, artifacts.artifacts[0].uri).parent.mkdir(parents=True, exist_ok=True)

        arguments = [_as_kubernetes_does(argument, environment) for argument in (*container.command, *container.args)]
        command = _fill(arguments, executor_input)
        done = self._start(name, command, environment, self.evictions.get(name, "") if attempt == 0 else "")
        for artifact in executor_input.outputs.artifacts[_LOGS].artifacts if self.backend != "vertex" else ():
            _copy_files(self._log(name), self._stored(artifact.uri))
        seconds = time.monotonic() - started
        if done:
            words = self._last_words(name, done)
            return Outcome(name, "failed", seconds, attempt + 1, command, error=words)
        try:
            published = self._publish(name, executor_input)
        except (OSError, ValueError, json_format.ParseError) as error:
            words = f"the launcher refuses the output: {error}"
            return Outcome(name, "failed", seconds, attempt + 1, command, error=words)
        # What a pod had on its own disk is gone with it.
        shutil.rmtree(pod)
        return Outcome(name, "done", seconds, attempt + 1, command, published)

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str], eviction: str) -> int:
        longest = max(len(argument.encode()) for argument in command)
        if longest > transport.LONGEST_ARGUMENT:
            raise UserError(
                f"{name}: an argument of {longest:,} bytes; the kernel takes {transport.LONGEST_ARGUMENT:,}"
            )
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as file:
            process = self.start(command, cwd=self._pod(name), env=environment, stdout=file, stderr=subprocess.STDOUT)
            while eviction and process.poll() is None:
                if glob.glob(eviction, recursive=True):
                    process.kill()
                time.sleep(0.02)
            return process.wait()

    def _publish(self, name: str, executor_input: Any) -> dict[str, Any]:
        """Uploads output folders, and what the metadata store then answers for the output artifacts."""
        with open(executor_input.outputs.output_file, encoding="utf-8") as file:
            reported = json_format.Parse(file.read(), pipeline_spec_pb2.ExecutorOutput())
        published = {}
        for key, artifacts in executor_input.outputs.artifacts.items():
            artifact = artifacts.artifacts[0]
            if key in reported.artifacts and key != _LOGS:
                own = reported.artifacts[key].artifacts[0]
                artifact.uri = own.uri or artifact.uri
                artifact.metadata.MergeFrom(own.metadata)
            if key != _LOGS:
                if self.backend == "native" and not self._mounted(name, artifact.uri).exists():
                    raise FileNotFoundError(f"declared output artifact {key} is missing")
                _copy_files(self._mounted(name, artifact.uri), self._stored(artifact.uri))
            stored = pipeline_spec_pb2.RuntimeArtifact(name=key, uri=artifact.uri, metadata=artifact.metadata)
            if self.backend == "mlmd":
                stored.name = str(uuid.uuid4().int % 10**9)
                for property_name, value in artifact.metadata.fields.items():
                    stored.metadata.fields[property_name].CopyFrom(_through_mlmd(property_name, value))
                session = _SESSIONS[artifact.uri.partition("://")[0]]
                stored.metadata.fields["display_name"].string_value = key
                stored.metadata.fields["store_session_info"].string_value = json.dumps(session, separators=(",", ":"))
            published[key] = stored
        return published

    def _last_words(self, name: str, code: int) -> str:
        lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.strip()]
        return f"exit code {code}: {said[-1] if said else 'no message'} (log: {self._log(name)})"

    def _pod(self, name: str) -> Path:
        return self.folder / "pods" / name

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _mounted(self, name: str, uri: str) -> Path:
        scheme, _, rest = uri.partition("://")
        return self._pod(name) / _MOUNTS[scheme] / rest

    def _stored(self, uri: str) -> Path:
        return self.folder / "store" / uri.replace("://", "/")


def _parameters(spec: Any, given: Mapping[str, Any]) -> dict[str, struct_pb2.Value]:
    """Defaults and given values, checked as the API server checks them (validatePipelineJobInputs)."""
    declared = spec.root.input_definitions.parameters
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise UserError(f"parameter {unknown[0]!r}: the pipeline has {', '.join(sorted(declared))}")
    types = pipeline_spec_pb2.ParameterType.ParameterTypeEnum
    result = {}
    for name, parameter in declared.items():
        if name not in given and not parameter.HasField("default_value"):
            raise UserError(f"parameter {name!r} has no default; give it")
        value = parameter.default_value
        if name in given:
            value = json_format.ParseDict(given[name], struct_pb2.Value())
        wanted = "string_value" if parameter.parameter_type == types.STRING else "number_value"
        if value.WhichOneof("kind") != wanted:
            raise UserError(f"parameter {name!r}: expected a {wanted.partition('_')[0]}, got {given[name]!r}")
        result[name] = value
    return result


def _upstream(task: Any) -> set[str]:
    producers = {source.task_output_artifact.producer_task for source in task.inputs.artifacts.values()}
    return producers | set(task.dependent_tasks)


def _fill(command: Sequence[str], executor_input: Any) -> tuple[str, ...]:
    """The launcher's placeholders (compileCmdAndArgs): the whole ExecutorInput, and single parameters."""
    whole = json_format.MessageToJson(executor_input)
    single = {
        f"{{{{$.inputs.parameters['{name}']}}}}": str(getattr(value, value.WhichOneof("kind")))
        for name, value in executor_input.inputs.parameter_values.items()
    }
    filled = []
    for argument in command:
        argument = argument.replace("{{$}}", whole)
        for placeholder, value in single.items():
            argument = argument.replace(placeholder, value)
        filled.append(argument)
    return tuple(filled)


def _as_kubernetes_does(text: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' replacements in a container's command line: `$$` is `$`, `$(NAME)` a variable where there is one."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replacement, text)


def _through_mlmd(name: str, value: struct_pb2.Value) -> struct_pb2.Value:
    """A metadata value as it comes back from the store (metadata/converter.go)."""
    kind = value.WhichOneof("kind")
    if kind in ("string_value", "number_value"):
        return value
    if kind == "bool_value":
        return struct_pb2.Value(number_value=int(value.bool_value))
    if kind == "list_value":
        return struct_pb2.Value(struct_value=struct_pb2.Struct(fields={"list": value}))
    if kind == "struct_value":
        return struct_pb2.Value(struct_value=struct_pb2.Struct(fields={"struct": value}))
    raise ValueError(f"metadata {name!r} is null, which it cannot store")


def _copy_files(source: Path, target: Path) -> None:
    """Copies what an object store would keep: files. Empty folders do not exist there."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    for file in sorted(source.rglob("*")) if source.is_dir() else ():
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a compiled pipeline and prints what each task did. Exit code 0: every task is done."""
    parser = argparse.ArgumentParser(prog="kubeflow.conformance", description=__doc__)
    parser.add_argument("pipeline", help="the compiled pipeline, YAML")
    parser.add_argument("--folder", type=Path, default=Path("runs/kubeflow"), help="for the store, pods and logs")
    parser.add_argument("--backend", choices=get_args(Backend), default="mlmd", help="whose metadata (default mlmd)")
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE", help="a runtime parameter")
    parser.add_argument("--workers", type=int, default=2, help="tasks at once")
    options = parser.parse_args(arguments)
    try:
        given = {name: yaml.safe_load(text) for name, _, text in (p.partition("=") for p in options.parameter)}
        cluster = Cluster(load(options.pipeline), options.folder, backend=options.backend, parameters=given)
    except UserError as error:
        print(f"kubeflow.conformance: {error}", file=sys.stderr)
        return 2
    outcomes = cluster.run(workers=options.workers)
    for outcome in outcomes.values():
        what = option(outcome.command, "--executor_class_path")
        print(f"{outcome.state:<8} {outcome.task:<22} {outcome.seconds:6.1f} s  {what}  {outcome.error}".rstrip())
    pushed = outcomes["Pusher"].artifacts.get("pushed_model")
    if pushed is not None:
        print(f"pushed   {pushed.metadata.fields['pushed_destination'].string_value or 'nothing: a gate refused'}")
    return 0 if all(outcome.ended_well for outcome in outcomes.values()) else 1


def option(command: Sequence[str], name: str) -> str:
    """What follows an option on a command line, "" when it is not there."""
    return command[command.index(name) + 1] if name in command else ""


if __name__ == "__main__":
    sys.exit(main())
