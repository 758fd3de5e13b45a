"""The entry point of a compiled stage: what it completes, replaces, translates and cleans up."""

from __future__ import annotations

import base64
import contextlib
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import local_http
import pytest
import world
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from test_kubeflow_compile import config

from kubeflow import conformance, entrypoint, runner
from modules.errors import UserError


def executor_input(**tree: Any) -> Any:
    return json_format.ParseDict(tree, pipeline_spec_pb2.ExecutorInput())


def artifact(uri: str, **more: Any) -> dict[str, Any]:
    return {"artifacts": [{"uri": uri, **more}]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> conformance.Cluster:
    folder = tmp_path_factory.mktemp("cluster")
    runner.compile_pipeline(config(folder), str(folder / "pipeline.yaml"))
    return conformance.Cluster(conformance.load(str(folder / "pipeline.yaml")), folder / "cluster")


def published(cluster: conformance.Cluster) -> dict[str, conformance.Outcome]:
    """Every task as done, with the artifacts that the metadata store would have."""
    outcomes = {}
    for name, task in cluster.compiled.spec.root.dag.tasks.items():
        outputs = cluster.compiled.spec.components[task.component_ref.name].output_definitions.artifacts
        artifacts = {
            key: pipeline_spec_pb2.RuntimeArtifact(name="7", uri=f"minio://mlpipeline/{name}/{key}") for key in outputs
        }
        outcomes[name] = conformance.Outcome(name, "done", artifacts=artifacts)
    return outcomes


def test_what_the_open_source_backend_leaves_out_becomes_what_vertex_ai_sends(cluster: conformance.Cluster):
    outcomes = published(cluster)
    with_schemas = conformance.Cluster(cluster.compiled, cluster.folder, empty_schemas=False)
    for name, task in cluster.compiled.spec.root.dag.tasks.items():
        component = cluster.compiled.spec.components[task.component_ref.name]
        empty, full = cluster.executor_input(name, outcomes), with_schemas.executor_input(name, outcomes)
        assert not any(a.artifacts[0].type.instance_schema for a in empty.inputs.artifacts.values())
        assert "executor-logs" in empty.outputs.artifacts
        spec = json_format.Parse(
            conformance.option(tuple(cluster.compiled.container(name).args), "--json_serialized_inputs_spec_args"),
            pipeline_spec_pb2.ComponentInputsSpec(),
        )
        for found in (empty, full):
            entrypoint.complete_types(found, spec)
            entrypoint.drop_foreign_outputs(found)
        assert empty.inputs == full.inputs
        assert (
            set(empty.outputs.artifacts) == set(full.outputs.artifacts) == set(component.output_definitions.artifacts)
        )


def test_a_type_that_came_is_kept():
    found = executor_input(inputs={"artifacts": {"model": artifact("gs://b/m", type={"schemaTitle": "tfx.Model"})}})
    spec = {"artifacts": {"model": {"artifactType": {"instanceSchema": "title: another"}}, "absent": {}}}
    entrypoint.complete_types(found, json_format.ParseDict(spec, pipeline_spec_pb2.ComponentInputsSpec()))
    assert found.inputs.artifacts["model"].artifacts[0].type.schema_title == "tfx.Model"
    assert "absent" not in found.inputs.artifacts


@pytest.mark.parametrize(
    ("found", "path"),
    [
        ({"uri": "gs://bucket/a/b"}, "/gcs/bucket/a/b"),
        ({"uri": "minio://bucket/a/b"}, "/minio/bucket/a/b"),
        ({"uri": "s3://bucket/a/b"}, "/s3/bucket/a/b"),
        ({"uri": "s3://bucket/a/b", "customPath": "/elsewhere"}, "/elsewhere"),
    ],
)
def test_artifacts_are_where_the_launcher_copies_them(found: dict[str, str], path: str):
    parsed = json_format.ParseDict(found, pipeline_spec_pb2.RuntimeArtifact())
    assert entrypoint.local_copy(parsed) == path


def test_a_store_that_the_launcher_does_not_know_is_said():
    with pytest.raises(UserError, match="hdfs://host/a: the launcher copies gs://, minio:// and s3://"):
        entrypoint.local_copy(pipeline_spec_pb2.RuntimeArtifact(uri="hdfs://host/a"))


@pytest.mark.parametrize("legacy", [False, True])
def test_parameters_replace_settings_and_files_come_out_of_them(tmp_path: Path, legacy: bool):
    training = json.dumps({"training": json.dumps({"epochs": 40, "seed": 1})})
    schema = "data:text/plain;base64," + base64.b64encode("ä: 1\n".encode()).decode()
    texts = {"custom_config": training, "push_destination": "/old", "push_to": '/it\'s "new"', "schema_file": schema}
    if legacy:  # spec 2.0
        parameters = {name: {"stringValue": text} for name, text in texts.items()} | {"epochs": {"intValue": "3"}}
        found = executor_input(inputs={"parameters": parameters})
        values = found.inputs.parameters
    else:
        found = executor_input(inputs={"parameterValues": {**texts, "epochs": 3}})
        values = found.inputs.parameter_values
    targets = {"epochs": ["custom_config", "training", "epochs"], "push_to": ["push_destination"], "items": ["tables"]}
    entrypoint.set_parameters(found, targets, str(tmp_path))
    assert set(values) == {"custom_config", "push_destination", "schema_file"}
    inner = json.loads(json.loads(values["custom_config"].string_value)["training"])
    assert inner == {"epochs": 3, "seed": 1} and isinstance(inner["epochs"], int)
    assert values["push_destination"].string_value == '/it\'s "new"'
    assert Path(values["schema_file"].string_value).read_text(encoding="utf-8") == "ä: 1\n"


def test_a_setting_that_is_not_there_is_not_made_up():
    with pytest.raises(KeyError, match="epoch: the setting has epochs"):
        entrypoint.replaced('{"epochs": 3}', ["epoch"], 4)


@contextlib.contextmanager
def bucket(objects: dict[str, bytes]) -> Iterator[str]:
    """The part of Cloud Storage's JSON API that lists and deletes, over a dictionary."""

    class Handler(local_http.JsonHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlparse(self.path)
            assert url.path == "/storage/v1/b/bucket/o"
            prefix = urllib.parse.parse_qs(url.query)["prefix"][0]
            names = [name for name in sorted(objects) if name.startswith(prefix)]
            self.answer({"items": [{"name": n, "bucket": "bucket", "size": str(len(objects[n]))} for n in names]})

        def do_DELETE(self) -> None:
            del objects[
                urllib.parse.unquote(urllib.parse.urlparse(self.path).path.removeprefix("/storage/v1/b/bucket/o/"))
            ]
            self.answer({})

    with local_http.running(Handler) as address:
        yield f"http://{address}"


def test_empty_folder_objects_are_removed_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    objects = {"run/model/": b"", "run/model/Format-Serving/": b"", "run/model/Format-Serving/saved_model.pb": b"x",
               "run/model/empty_file": b"", "run/model2/": b"", "run/model/full/": b"y"}  # fmt: skip
    with bucket(objects) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
        entrypoint.remove_folder_markers(["gs://bucket/run/model", "/local/folder"])
    assert set(objects) == {
        "run/model/Format-Serving/saved_model.pb", "run/model/empty_file", "run/model2/", "run/model/full/",
    }  # fmt: skip


def arguments(executor: str, found: Any) -> list[str]:
    return ["--executor_class_path", executor, "--json_serialized_invocation_args", json_format.MessageToJson(found)]


def test_a_stage_of_spec_2_0_opens_its_artifacts_itself(tmp_path: Path):
    # The legacy fields, a type schema, and an output file outside of the bucket: as Vertex AI sends it.
    output_file = tmp_path / "elsewhere" / "executor_output.json"
    schema = {"instanceSchema": "title: tfx.Model\ntype: object\n"}
    texts = {"push_destination": str(tmp_path / "none"), "pipeline_stamp": "", "baseline_version": ""}
    baseline = artifact(f"{tmp_path}/task/baseline", name="b", type=schema)
    found = executor_input(
        inputs={"parameters": {name: {"stringValue": text} for name, text in texts.items()}},
        outputs={"artifacts": {"baseline": baseline}, "outputFile": str(output_file)},
    )
    assert entrypoint.main(arguments("components.baseline_resolver.executor.Executor", found)) == 0
    reported = json.loads(output_file.read_text())["artifacts"]["baseline"]["artifacts"][0]
    assert reported["uri"] == f"{tmp_path}/task/baseline"
    assert reported["metadata"]["present"] == 0
    # Temporary files and TFX's own report were beside the artifact, where remote workers could see them.
    assert (tmp_path / "task" / "executor_output.json").exists()


def test_a_mistake_in_the_tables_is_one_line_and_no_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    world.write_parquet(tmp_path)
    runner.compile_pipeline(config(tmp_path), str(tmp_path / "pipeline.yaml"))
    compiled = conformance.load(str(tmp_path / "pipeline.yaml"))
    found = conformance.Cluster(compiled, tmp_path, parameters={"items": "/nowhere.csv"}).executor_input(
        "InteractionExampleGen", {}
    )
    found.outputs.artifacts["examples"].artifacts[0].custom_path = str(tmp_path / "examples")
    found.outputs.output_file = str(tmp_path / "output.json")
    [executor, *options] = compiled.container("InteractionExampleGen").args[1:]
    filled = [json_format.MessageToJson(found) if option == "{{$}}" else option for option in options]
    assert entrypoint.main(["--executor_class_path", executor, *filled]) == 2
    errors = capfd.readouterr().err
    assert "twotower: tables.items.path: there is no file /nowhere.csv" in errors and "Traceback" not in errors
    assert not (tmp_path / "output.json").exists()


def test_a_crash_is_a_traceback_and_no_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    found = executor_input(outputs={"outputFile": str(tmp_path / "output.json")})
    assert entrypoint.main(arguments("components.baseline_resolver.executor.Executor", found)) == 1
    assert "KeyError: 'baseline'" in capfd.readouterr().err
    assert not (tmp_path / "output.json").exists()
