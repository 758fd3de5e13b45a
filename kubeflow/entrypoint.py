"""What a compiled stage runs in its container: completes what the backend leaves out, then lets TFX execute the stage.

TFX's own entry point was written for Vertex AI. The open-source backend (read at kubeflow/pipelines 7b70c7b) differs,
and each difference is made up for here:

- Input artifacts come with an empty type schema (backend/src/v2/metadata/client.go, GetOutputArtifactsByExecutionId),
  or, once the backend keeps its own metadata (kubeflow/pipelines#13986, read at 6585b51), with the whole schema in the
  place of its title (driver/container.go, convertArtifactToRuntimeArtifact). The stage's own input definitions know the
  type (tensorflow/tfx#7768).
- Types of this project are not in TFX's table of classes.
- Artifacts may be in stores that TensorFlow cannot open (`minio://`, `s3://`). The launcher copies inputs to a local
  folder before the stage and outputs from one after it; with `--artifacts launcher` the stage works in those folders.
- It adds an output of its own, `executor-logs`, of a type that TFX does not know.
- TensorFlow marks `gs://` folders with empty objects, over which the launcher's download of the next stage stumbles
  (kubeflow/pipelines#13476); with `--artifacts direct` they are removed after the stage.
- A stage that is started again finds what its killed pod left on `gs://`; it starts with empty outputs.
- Numbers of a run are checked for being numbers only; the first stage checks them as the settings they replace.
- The pipeline's runtime parameters are put into the settings that they replace.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kubeflow import transport
from kubeflow.parameters import checked
from modules import beam_signatures, full_disk
from modules.errors import UserError
from pipeline import beam_service, local_runner

LAUNCHER, DIRECT = "launcher", "direct"
ARTIFACTS_OPTION = "--artifacts"
PARAMETERS_OPTION = "--runtime_parameters"
CHECKS_OPTION = "--checked_parameters"

MOUNTS_VARIABLE = "TWOTOWER_MOUNTS"
"""Environment variable: the folder in which the launcher's `gcs`, `minio` and `s3` are, by default `/`."""

_CUSTOM_TYPES = {
    "twotower.IndexReport": "components.scann_index_builder.component.IndexReport",
    "twotower.ReportPage": "components.run_report.component.ReportPage",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one stage. Exit code 0: done; 2: a mistake in the data or the configuration, in one line; 1: a crash."""
    options, beam_options = _parser().parse_known_args(arguments)
    local_runner.quiet_libraries()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    local_runner.PROGRESS.setLevel(logging.INFO)
    try:
        run(options, beam_options)
    except UserError as error:
        print(f"twotower: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        refused = full_disk.refusal(error)
        if refused is not None:
            words = full_disk.in_words(
                refused, "the pod's disk", "give the stage a larger volume or more ephemeral storage"
            )
            print(f"twotower: {words}", file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubeflow.entrypoint", description=__doc__, allow_abbrev=False)
    parser.add_argument("--executor_class_path", required=True)
    parser.add_argument("--json_serialized_invocation_args", required=True, help="the ExecutorInput")
    parser.add_argument("--json_serialized_inputs_spec_args", help="the stage's ComponentInputsSpec, of a 2.1 spec")
    parser.add_argument(ARTIFACTS_OPTION, choices=(LAUNCHER, DIRECT), default=DIRECT)
    parser.add_argument(PARAMETERS_OPTION, type=json.loads, default={}, metavar="JSON",
                        help="runtime parameter → path of the setting that it replaces")  # fmt: skip
    parser.add_argument(CHECKS_OPTION, type=json.loads, default={}, metavar="JSON",
                        help="runtime parameter → what its value is held against (parameters.py)")  # fmt: skip
    return parser


def run(options: argparse.Namespace, beam_options: list[str]) -> None:
    """Executes the stage and writes its ExecutorOutput where the backend looks for it.

    Raises:
        Exception: Whatever the stage raised; there is no ExecutorOutput then.
    """
    executor_input = pipeline_spec_pb2.ExecutorInput()
    json_format.Parse(options.json_serialized_invocation_args, executor_input, ignore_unknown_fields=True)
    inputs_spec = pipeline_spec_pb2.ComponentInputsSpec()
    if options.json_serialized_inputs_spec_args:
        json_format.Parse(options.json_serialized_inputs_spec_args, inputs_spec)

    complete_types(executor_input, inputs_spec)
    drop_foreign_outputs(executor_input)
    output_file = executor_input.outputs.output_file
    uris = _output_uris(executor_input)
    copies: dict[str, str] = {}
    if options.artifacts == LAUNCHER:
        copies = use_local_copies(executor_input)
    elif uris and "://" not in output_file:
        # TFX puts temporary files beside its output file, and remote Beam workers must see those.
        task_folder = os.path.dirname(next(iter(uris.values())))
        executor_input.outputs.output_file = os.path.join(task_folder, "executor_output.json")
    with tempfile.TemporaryDirectory() as folder:
        set_parameters(executor_input, options.runtime_parameters, options.checked_parameters, folder)
        if options.artifacts == DIRECT:
            remove_leftovers(uris.values())
        _execute(options, executor_input, beam_options)

    from tfx.dsl.io import fileio

    with fileio.open(executor_input.outputs.output_file, "r") as file:
        executor_output = json_format.Parse(file.read(), pipeline_spec_pb2.ExecutorOutput())
    for key, artifacts in executor_output.artifacts.items():
        artifacts.artifacts[0].uri = uris[key]
        with_uris(artifacts.artifacts[0].metadata, copies)
    if options.artifacts == DIRECT:
        remove_folder_markers(uris.values())
    # Last, so that a stage is done or is not.
    fileio.makedirs(os.path.dirname(output_file))
    with fileio.open(output_file, "w") as file:
        file.write(json_format.MessageToJson(executor_output))


def _execute(options: argparse.Namespace, executor_input: Any, beam_options: list[str]) -> None:
    # Takes seconds, and a wrong option should not.
    from tfx.orchestration.kubeflow.v2 import compiler_utils
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor

    check_runner(options.executor_class_path, beam_options)
    compiler_utils.TITLE_TO_CLASS_PATH.update(_CUSTOM_TYPES)
    arguments = argparse.Namespace(
        executor_class_path=options.executor_class_path,
        json_serialized_invocation_args=json_format.MessageToJson(executor_input),
        json_serialized_inputs_spec_args=options.json_serialized_inputs_spec_args,
    )
    with beam_signatures.kept():
        kubeflow_v2_run_executor.main((arguments, beam_options))


def check_runner(executor_class_path: str, beam_options: Sequence[str]) -> None:
    """Asks for the Beam runner of a stage that has one: Beam would wait for it as long as for a job to end.

    Raises:
        UserError: It cannot be reached.
    """
    from tfx.dsl.components.base import base_beam_executor
    from tfx.utils import import_utils

    if issubclass(import_utils.import_class_by_path(executor_class_path), base_beam_executor.BaseBeamExecutor):
        for option in beam_options:
            name, _, address = option.partition("=")
            if name == "--job_endpoint":
                beam_service.check_endpoint("kubeflow.beam.job_endpoint", address)


def complete_types(executor_input: Any, inputs_spec: Any) -> None:
    """Gives artifacts the type schema that they were compiled with, whatever has become of it on the way, in place."""
    for artifacts in (executor_input.inputs.artifacts, executor_input.outputs.artifacts):
        for listed in artifacts.values():
            for artifact in listed.artifacts:
                if _is_schema(artifact.type.schema_title):
                    artifact.type.instance_schema = artifact.type.schema_title
    for name, artifact_spec in inputs_spec.artifacts.items():
        # Looking a key up in a protobuf map would add it.
        if name in executor_input.inputs.artifacts:
            for artifact in executor_input.inputs.artifacts[name].artifacts:
                artifact.type.CopyFrom(artifact_spec.artifact_type)


def _is_schema(title: str) -> bool:
    """Whether what should be a title, such as `tfx.Model`, is a whole schema: YAML with a title of its own."""
    try:
        tree = yaml.safe_load(title)
    except yaml.YAMLError:
        return False
    return isinstance(tree, dict) and "title" in tree


def drop_foreign_outputs(executor_input: Any) -> None:
    """Removes the outputs that the backend added for itself: TFX's have an instance schema."""
    outputs = executor_input.outputs.artifacts
    for name in [name for name, listed in outputs.items() if not listed.artifacts[0].type.instance_schema]:
        del outputs[name]


def use_local_copies(executor_input: Any) -> dict[str, str]:
    """Replaces the artifacts' URIs by the launcher's local folders, and makes the outputs' ones.

    Returns:
        Local folder → the URI that it stands for.
    """
    copies = {}
    for artifacts in (*executor_input.inputs.artifacts.values(), *executor_input.outputs.artifacts.values()):
        for artifact in artifacts.artifacts:
            copy = local_copy(artifact)
            copies[copy], artifact.uri = artifact.uri, copy
    for artifacts in executor_input.outputs.artifacts.values():
        os.makedirs(artifacts.artifacts[0].uri, exist_ok=True)
    return copies


def with_uris(metadata: Any, copies: Mapping[str, str]) -> None:
    """Replaces, in place, local folders in an artifact's metadata: nobody finds them once the pod is gone."""
    for value in metadata.fields.values():
        for copy, uri in copies.items():
            if value.string_value == copy or value.string_value.startswith(f"{copy}/"):
                value.string_value = uri + value.string_value.removeprefix(copy)


def local_copy(artifact: Any) -> str:
    """Where the launcher keeps an artifact (backend/src/v2/component/launcher_v2.go, LocalPathForURI).

    Raises:
        UserError: The launcher copies nothing of this scheme.
    """
    if artifact.custom_path:
        return artifact.custom_path
    scheme, _, rest = artifact.uri.partition("://")
    folder = {"gs": "gcs", "minio": "minio", "s3": "s3"}.get(scheme)
    if folder is None:
        raise UserError(f"{artifact.uri}: the launcher copies gs://, minio:// and s3://; correct the pipeline root")
    return os.path.join(os.environ.get(MOUNTS_VARIABLE, "/"), folder, rest)


def set_parameters(
    executor_input: Any, targets: Mapping[str, Sequence[str]], rules: Mapping[str, Mapping[str, Any]], folder: str
) -> None:
    """Makes of a stage's parameters, as they travelled, its settings.

    Texts are unpacked, runtime parameters checked and moved into the settings that they replace, and files that travel
    inside a text written to disk.

    Args:
        executor_input: The ExecutorInput, changed in place. Its parameters are in `parameter_values` (spec 2.1) or in
            `parameters` (2.0).
        targets: Runtime parameter → parameter of the stage and keys inside its JSON.
        rules: Runtime parameter → what its value is held against.
        folder: For files whose content came as text instead of a path.

    Raises:
        UserError: A runtime parameter has a value that its setting cannot have.
    """
    for values in (executor_input.inputs.parameter_values, executor_input.inputs.parameters):
        for value in values.values():
            # Assigning a text would make one of a number.
            if value.string_value:
                value.string_value = transport.unpacked(value.string_value)
        # Looking a key up in a protobuf map would add it.
        for name in {*targets, *rules} & set(values):
            kind = values[name].WhichOneof(values[name].DESCRIPTOR.oneofs[0].name)
            new = getattr(values[name], kind)
            if name in rules:
                new = checked(f"parameter {name}", rules[name], new)
            if isinstance(new, float) and new.is_integer():
                new = int(new)
            if name in targets:
                parameter, *keys = targets[name]
                values[parameter].string_value = replaced(values[parameter].string_value, keys, new)
            del values[name]
        for name, value in values.items():
            content = transport.text_as_file(value.string_value)
            if content is not None:
                path = os.path.join(folder, name)
                with open(path, "wb") as target:
                    target.write(content)
                value.string_value = path


def replaced(setting: Any, keys: Sequence[str], new: Any) -> Any:
    """A setting with the value at a path of keys replaced; what was JSON inside of JSON stays so."""
    if not keys:
        return new
    if isinstance(setting, str):
        return json.dumps(replaced(json.loads(setting), keys, new))
    if keys[0] not in setting:
        raise KeyError(f"{keys[0]}: the setting has {', '.join(setting)}")
    return {**setting, keys[0]: replaced(setting[keys[0]], keys[1:], new)}


def remove_leftovers(uris: Any) -> None:
    """Deletes what an attempt that was killed has left where this one will write."""
    from tfx.dsl.io import fileio

    for uri in uris:
        if fileio.exists(uri):
            fileio.rmtree(uri)


def remove_folder_markers(uris: Any) -> None:
    """Deletes the empty objects, named like folders, that TensorFlow leaves under `gs://` URIs."""
    remote = [uri for uri in uris if uri.startswith("gs://")]
    if not remote:
        return
    from google.cloud import storage

    client = storage.Client()
    for uri in remote:
        bucket, _, key = uri.removeprefix("gs://").partition("/")
        for blob in client.list_blobs(bucket, prefix=key.rstrip("/") + "/"):
            if blob.name.endswith("/") and not blob.size:
                blob.delete()


def _output_uris(executor_input: Any) -> dict[str, str]:
    return {name: listed.artifacts[0].uri for name, listed in executor_input.outputs.artifacts.items()}


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The work is done and its output written. Destructors of TensorFlow and ML Metadata that crash while the
    # interpreter ends ("pure virtual method called", sky-uk/kfp-operator's TFX patch 8) shall not fail it.
    os._exit(code)
