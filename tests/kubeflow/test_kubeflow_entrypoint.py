"""The entry point of a compiled stage: what it completes, replaces, translates and cleans up."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import beam_processes
import local_http
import pytest
import world
from clusters import config
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kubeflow import conformance, entrypoint, runner, transport
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


def test_what_the_open_source_backends_change_becomes_what_vertex_ai_sends(cluster: conformance.Cluster):
    backends: list[conformance.Backend] = ["vertex", "mlmd", "native"]
    clusters = {name: conformance.Cluster(cluster.compiled, cluster.folder, backend=name) for name in backends}
    outcomes = published(cluster)
    for name, task in cluster.compiled.spec.root.dag.tasks.items():
        component = cluster.compiled.spec.components[task.component_ref.name]
        found = {backend: one.executor_input(name, outcomes) for backend, one in clusters.items()}
        inputs = [a.artifacts[0].type for a in found["mlmd"].inputs.artifacts.values()]
        assert not any(kind.instance_schema or kind.schema_title for kind in inputs)
        inputs = [a.artifacts[0].type for a in found["native"].inputs.artifacts.values()]
        assert all(kind.schema_title.startswith("title: ") for kind in inputs)
        assert (
            "executor-logs" in found["mlmd"].outputs.artifacts and "executor-logs" in found["native"].outputs.artifacts
        )
        spec = json_format.Parse(
            conformance.option(tuple(cluster.compiled.container(name).args), "--json_serialized_inputs_spec_args"),
            pipeline_spec_pb2.ComponentInputsSpec(),
        )
        for one in found.values():
            entrypoint.complete_types(one, spec)
            entrypoint.drop_foreign_outputs(one)
            assert one.inputs == found["vertex"].inputs
            assert set(one.outputs.artifacts) == set(component.output_definitions.artifacts)


def test_a_whole_schema_in_the_place_of_its_title_is_a_schema():
    schema = "title: tfx.Model\ntype: object\n"
    found = executor_input(
        inputs={"artifacts": {"model": artifact("gs://b/m", type={"schemaTitle": schema}),
                              "old": artifact("gs://b/o", type={"schemaTitle": "tfx.Model"})}},
        outputs={"artifacts": {"pushed": artifact("gs://b/p", type={"schemaTitle": schema}),
                               "executor-logs": artifact("gs://b/l", type={"schemaTitle": "system.Artifact"})}},
    )  # fmt: skip
    # Spec 2.0 has no definitions beside it.
    entrypoint.complete_types(found, pipeline_spec_pb2.ComponentInputsSpec())
    entrypoint.drop_foreign_outputs(found)
    assert found.inputs.artifacts["model"].artifacts[0].type.instance_schema == schema
    assert found.inputs.artifacts["old"].artifacts[0].type.schema_title == "tfx.Model"
    assert set(found.outputs.artifacts) == {"pushed"}


def test_the_type_is_the_one_that_was_compiled_whatever_came():
    found = executor_input(inputs={"artifacts": {"model": artifact("gs://b/m", type={"schemaTitle": "Artifact"})}})
    spec = {"artifacts": {"model": {"artifactType": {"instanceSchema": "title: tfx.Model"}}, "absent": {}}}
    entrypoint.complete_types(found, json_format.ParseDict(spec, pipeline_spec_pb2.ComponentInputsSpec()))
    assert found.inputs.artifacts["model"].artifacts[0].type.instance_schema == "title: tfx.Model"
    assert "absent" not in found.inputs.artifacts


def test_what_an_artifact_says_of_others_are_their_uris_and_not_a_pods_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(entrypoint.MOUNTS_VARIABLE, str(tmp_path))
    found = executor_input(
        inputs={"artifacts": {"model": artifact("minio://b/run/model"), "model2": artifact("minio://b/run/model2")}},
        outputs={"artifacts": {"blessing": artifact("minio://b/run/blessing")}},
    )
    copies = entrypoint.use_local_copies(found)
    model = found.inputs.artifacts["model"].artifacts[0].uri
    assert model == f"{tmp_path}/minio/b/run/model"
    metadata = found.outputs.artifacts["blessing"].artifacts[0].metadata
    metadata.update({"current_model": model, "baseline_model": f"{model}2/Format-Serving", "blessed": 1, "note": "/x"})
    entrypoint.with_uris(metadata, copies)
    assert dict(metadata) == {
        "current_model": "minio://b/run/model", "baseline_model": "minio://b/run/model2/Format-Serving",
        "blessed": 1, "note": "/x",
    }  # fmt: skip


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
    schema = transport.packed(transport.file_as_text("ä: 1\n".encode() * 200))
    training = transport.packed(training + " " * 600)
    assert schema.startswith("zlib:") and training.startswith("zlib:")
    texts = {"custom_config": training, "push_destination": "/old", "push_to": '/it\'s "new"', "schema_file": schema}
    if legacy:  # spec 2.0
        parameters = {name: {"stringValue": text} for name, text in texts.items()} | {"epochs": {"intValue": "3"}}
        found = executor_input(inputs={"parameters": parameters})
        values = found.inputs.parameters
    else:
        found = executor_input(inputs={"parameterValues": {**texts, "epochs": 3}})
        values = found.inputs.parameter_values
    targets = {"epochs": ["custom_config", "training", "epochs"], "push_to": ["push_destination"], "items": ["tables"]}
    rules = {"epochs": {"setting": "training.epochs"}, "push_to": {"volumes": ['/it\'s "new"/..']}}
    entrypoint.set_parameters(found, targets, rules, str(tmp_path))
    assert set(values) == {"custom_config", "push_destination", "schema_file"}
    inner = json.loads(json.loads(values["custom_config"].string_value)["training"])
    assert inner == {"epochs": 3, "seed": 1} and isinstance(inner["epochs"], int)
    assert values["push_destination"].string_value == '/it\'s "new"'
    assert Path(values["schema_file"].string_value).read_text(encoding="utf-8") == "ä: 1\n" * 200


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epochs", 5.5, "parameter epochs=5.5: expected a whole number above 0"),
        ("epochs", 0, "parameter epochs=0: expected a whole number above 0"),
        ("epochs", -3, "parameter epochs=-3: expected a whole number above 0"),
        ("push_to", "/tmp/models", "parameter push_to: /tmp/models is where no container sees it"),
        ("items", "s3://bucket/items.csv", "parameter items: s3://bucket/items.csv cannot be opened by TensorFlow"),
    ],
)
def test_the_first_stage_refuses_what_the_api_server_lets_through(
    cluster: conformance.Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, value: Any, words: str
):
    run = conformance.Cluster(cluster.compiled, tmp_path, parameters={name: value})
    output = tmp_path / "output.json"
    assert run_first_stage(run, output) == 2
    errors = capfd.readouterr().err
    assert f"twotower: {words}" in errors and "Traceback" not in errors
    assert not output.exists()


def run_first_stage(cluster: conformance.Cluster, output: Path) -> int:
    found = cluster.executor_input("InteractionExampleGen", {})
    found.outputs.artifacts["examples"].artifacts[0].custom_path = str(output.parent / "examples")
    found.outputs.output_file = str(output)
    [executor, *options] = cluster.compiled.container("InteractionExampleGen").args[1:]
    filled = [json_format.MessageToJson(found) if option == "{{$}}" else option for option in options]
    return entrypoint.main(["--executor_class_path", executor, *filled])


def test_an_attempt_starts_with_empty_outputs(tmp_path: Path):
    (tmp_path / "examples" / "Split-train").mkdir(parents=True)
    (tmp_path / "examples" / "Split-train" / "of-a-killed-attempt.gz").touch()
    entrypoint.remove_leftovers([str(tmp_path / "examples"), str(tmp_path / "absent")])
    assert not list(tmp_path.iterdir())


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


def resolver_input(tmp_path: Path, output_file: str) -> Any:
    """The legacy fields, a type schema, and an output file outside of the bucket: as Vertex AI sends it."""
    schema = {"instanceSchema": "title: tfx.Model\ntype: object\n"}
    texts = {"push_destination": str(tmp_path / "none"), "pipeline_stamp": "", "baseline_version": ""}
    baseline = artifact(f"{tmp_path}/task/baseline", name="b", type=schema)
    return executor_input(
        inputs={"parameters": {name: {"stringValue": text} for name, text in texts.items()}},
        outputs={"artifacts": {"baseline": baseline}, "outputFile": output_file},
    )


def test_a_stage_of_spec_2_0_opens_its_artifacts_itself(tmp_path: Path):
    output_file = tmp_path / "elsewhere" / "executor_output.json"
    found = resolver_input(tmp_path, str(output_file))
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
    missing = f"{tmp_path}/nowhere.csv"
    cluster = conformance.Cluster(compiled, tmp_path, parameters={"items": missing})
    assert run_first_stage(cluster, tmp_path / "output.json") == 2
    errors = capfd.readouterr().err
    assert f"twotower: tables.items.path: there is no file {missing}" in errors and "Traceback" not in errors
    assert not (tmp_path / "output.json").exists()


def test_a_full_disk_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    found = resolver_input(tmp_path, "/dev/full")
    assert entrypoint.main(arguments("components.baseline_resolver.executor.Executor", found)) == 2
    errors = capfd.readouterr().err
    assert "twotower: cannot write to /dev/full: No space left on device; make room, or give the stage" in errors
    assert "Traceback" not in errors


def test_a_crash_is_a_traceback_and_no_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    found = executor_input(outputs={"outputFile": str(tmp_path / "output.json")})
    assert entrypoint.main(arguments("components.baseline_resolver.executor.Executor", found)) == 1
    assert "KeyError: 'baseline'" in capfd.readouterr().err
    assert not (tmp_path / "output.json").exists()


def test_a_stage_of_beam_asks_for_its_job_service_and_the_others_do_not():
    address = f"localhost:{beam_processes.free_port()}"
    options = ["--runner=FlinkRunner", f"--job_endpoint={address}"]
    with pytest.raises(UserError, match=rf"^kubeflow\.beam\.job_endpoint: {address} cannot be reached"):
        entrypoint.check_runner("components.interaction_example_gen.executor.Executor", options)
    entrypoint.check_runner("components.servable_validator.executor.Executor", options)
    entrypoint.check_runner("components.interaction_example_gen.executor.Executor", ["--runner=DirectRunner"])
