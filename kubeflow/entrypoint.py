"""What a compiled stage runs in its container: completes what the backend leaves out, then lets TFX execute the stage.

TFX's own entry point was written for Vertex AI. The open-source backend (read at kubeflow/pipelines 7b70c7b) differs,
and each difference is made up for here:

- Input artifacts come with an empty type schema (backend/src/v2/metadata/client.go, GetOutputArtifactsByExecutionId);
  the stage's own input definitions know it (tensorflow/tfx#7768).
- Types of this project are not in TFX's table of classes.
- Artifacts may be in stores that TensorFlow cannot open (`minio://`, `s3://`). The launcher copies inputs to a local
  folder before the stage and outputs from one after it; with `--artifacts launcher` the stage works in those folders.
- It adds an output of its own, `executor-logs`, of a type that TFX does not know.
- TensorFlow marks `gs://` folders with empty objects, over which the launcher's download of the next stage stumbles
  (kubeflow/pipelines#13476); with `--artifacts direct` they are removed after the stage.
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
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from modules.errors import UserError
from pipeline import local_runner

LAUNCHER, DIRECT = "launcher", "direct"
ARTIFACTS_OPTION = "--artifacts"
PARAMETERS_OPTION = "--runtime_parameters"

MOUNTS_VARIABLE = "TWOTOWER_MOUNTS"
"""Environment variable: the folder in which the launcher's `gcs`, `minio` and `s3` are, by default `/`."""

_CUSTOM_TYPES = {"twotower.IndexReport": "components.scann_index_builder.component.IndexReport"}


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
    except Exception:
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
    if options.artifacts == LAUNCHER:
        use_local_copies(executor_input)
    elif uris and "://" not in output_file:
        # TFX puts temporary files beside its output file, and remote Beam workers must see those.
        task_folder = os.path.dirname(next(iter(uris.values())))
        executor_input.outputs.output_file = os.path.join(task_folder, "executor_output.json")
    with tempfile.TemporaryDirectory() as folder:
        set_parameters(executor_input, options.runtime_parameters, folder)
        _execute(options, executor_input, beam_options)

    from tfx.dsl.io import fileio

    with fileio.open(executor_input.outputs.output_file, "r") as file:
        executor_output = json_format.Parse(file.read(), pipeline_spec_pb2.ExecutorOutput())
    for key, artifacts in executor_output.artifacts.items():
        artifacts.artifacts[0].uri = uris[key]
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

    compiler_utils.TITLE_TO_CLASS_PATH.update(_CUSTOM_TYPES)
    arguments = argparse.Namespace(
        executor_class_path=options.executor_class_path,
        json_serialized_invocation_args=json_format.MessageToJson(executor_input),
        json_serialized_inputs_spec_args=options.json_serialized_inputs_spec_args,
    )
    kubeflow_v2_run_executor.main((arguments, beam_options))


def complete_types(executor_input: Any, inputs_spec: Any) -> None:
    """Gives input artifacts without a type schema the one of the stage's input definitions, in place."""
    for name, artifact_spec in inputs_spec.artifacts.items():
        # Looking a key up in a protobuf map would add it.
        if name in executor_input.inputs.artifacts:
            for artifact in executor_input.inputs.artifacts[name].artifacts:
                if not (artifact.type.instance_schema or artifact.type.schema_title):
                    artifact.type.CopyFrom(artifact_spec.artifact_type)


def drop_foreign_outputs(executor_input: Any) -> None:
    """Removes the outputs that the backend added for itself: TFX's have an instance schema."""
    outputs = executor_input.outputs.artifacts
    for name in [name for name, found in outputs.items() if not found.artifacts[0].type.instance_schema]:
        del outputs[name]


def use_local_copies(executor_input: Any) -> None:
    """Replaces the artifacts' URIs by the launcher's local folders, and makes the outputs' ones."""
    for artifacts in executor_input.inputs.artifacts.values():
        for artifact in artifacts.artifacts:
            artifact.uri = local_copy(artifact)
    for artifacts in executor_input.outputs.artifacts.values():
        for artifact in artifacts.artifacts:
            artifact.uri = local_copy(artifact)
            os.makedirs(artifact.uri, exist_ok=True)


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


def set_parameters(executor_input: Any, targets: Mapping[str, Sequence[str]], folder: str) -> None:
    """Moves runtime parameters into the settings they replace, and files that travel inside a parameter to disk.

    Args:
        executor_input: The ExecutorInput, changed in place. Its parameters are in `parameter_values` (spec 2.1) or in
            `parameters` (2.0).
        targets: Runtime parameter → parameter of the stage and keys inside its JSON.
        folder: For files whose content came as a `data:` URI (RFC 2397) instead of a path.
    """
    for values in (executor_input.inputs.parameter_values, executor_input.inputs.parameters):
        for name, (parameter, *keys) in targets.items():
            # Looking a key up in a protobuf map would add it.
            if name not in values:
                continue
            kind = values[name].WhichOneof(values[name].DESCRIPTOR.oneofs[0].name)
            new = getattr(values[name], kind)
            if isinstance(new, float) and new.is_integer():
                new = int(new)
            values[parameter].string_value = replaced(values[parameter].string_value, keys, new)
            del values[name]
        for name, value in values.items():
            if value.string_value.startswith("data:"):
                path = os.path.join(folder, name)
                with urllib.request.urlopen(value.string_value) as source, open(path, "wb") as target:
                    target.write(source.read())
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
    return {name: found.artifacts[0].uri for name, found in executor_input.outputs.artifacts.items()}


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The work is done and its output written. Destructors of TensorFlow and ML Metadata that crash while the
    # interpreter ends ("pure virtual method called", sky-uk/kfp-operator's TFX patch 8) shall not fail it.
    os._exit(code)
