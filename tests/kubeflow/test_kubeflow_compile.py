"""What is compiled: accepted by the protobufs, by kfp's loader and by the API server's rules; and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import world
import yaml
from google.protobuf import json_format
from kfp import components as kfp_components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from kubeflow import conformance, entrypoint, runner
from modules.errors import UserError
from pipeline import cli
from pipeline.config import Config, load

IMAGE = "registry.example:5000/recommenders/twotower:1.0"
ROOT = "minio://mlpipeline/v2/artifacts"


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The section `kubeflow` for the small world, whose folder is the cluster's volume."""
    return {
        "image": IMAGE,
        "pipeline_root": ROOT,
        "push": str(folder / "pushed"),
        "volumes": [{"claim": "twotower", "path": str(folder)}],
        **changes,
    }


def config(folder: Path, overrides: list[str] | None = None, **changes: Any) -> Config:
    return load(world.write_config(folder, kubeflow=settings(folder, **changes)), overrides or [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def documents(folder: Path) -> list[dict[str, Any]]:
    """The compiled YAML of a pipeline that asks for everything a cluster can give."""
    (folder / "schema.pbtxt").write_text('feature { name: "user_id" }')
    wanted = config(
        folder,
        [f"schema.path={folder / 'schema.pbtxt'}"],
        resources={
            "default": {"cpu": 2, "memory": 8},
            "Trainer": {
                "image": f"{IMAGE}-gpu",
                "cpu": 4,
                "memory": 16,
                "accelerator": "nvidia.com/gpu",
                "node_selector": {"pool": "gpu"},
                "tolerations": ["nvidia.com/gpu"],
            },
        },
        secrets=[{"name": "store", "env": {"KEY": "access-key"}}],
        image_pull_secret="registry",
    )
    runner.compile_pipeline(wanted, str(folder / "pipeline.yaml"))
    return list(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))


@pytest.fixture(scope="module")
def spec(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def container(spec: dict[str, Any], stage: str) -> dict[str, Any]:
    return spec["deploymentSpec"]["executors"][spec["components"][stage]["executorLabel"]]["container"]


def argument(spec: dict[str, Any], stage: str, option: str) -> str:
    arguments = container(spec, stage)["args"]
    return arguments[arguments.index(option) + 1]


def constant(spec: dict[str, Any], stage: str, parameter: str) -> str:
    return spec["root"]["dag"]["tasks"][stage]["inputs"]["parameters"][parameter]["runtimeValue"]["constant"]


def test_the_protobufs_the_api_server_and_kfps_loader_accept_it(folder: Path, documents: list[dict[str, Any]]):
    spec, platform = documents
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    compiled = conformance.load(str(folder / "pipeline.yaml"))
    assert compiled.spec.schema_version == "2.1.0"
    assert set(compiled.spec.root.dag.tasks) == {
        "InteractionExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Transform", "Trainer",
        "ScannIndexBuilder", "BaselineResolver", "Evaluator", "ServableValidator", "Pusher",
    }  # fmt: skip
    loaded = kfp_components.load_component_from_file(str(folder / "pipeline.yaml"))
    assert loaded.pipeline_spec.pipeline_info.name == "small-world"
    assert loaded.platform_spec.platforms["kubernetes"].deployment_spec.executors


def test_every_stage_runs_the_image_through_our_entry_point(spec: dict[str, Any]):
    for stage in spec["components"]:
        found = container(spec, stage)
        assert found["image"] == (f"{IMAGE}-gpu" if stage == "Trainer" else IMAGE)
        assert found["command"] == ["python", "-m", "kubeflow.entrypoint"]
        # In-process Beam works on what the launcher copies, whatever the store.
        assert argument(spec, stage, entrypoint.ARTIFACTS_OPTION) == entrypoint.LAUNCHER


def test_resources_and_places_reach_the_stages_they_are_for(documents: list[dict[str, Any]]):
    spec, platform = documents
    gpu = container(spec, "Trainer")["resources"]
    assert gpu["accelerator"] == {"type": "nvidia.com/gpu", "count": "1"}
    assert (gpu["cpuLimit"], gpu["memoryLimit"], gpu["cpuRequest"], gpu["memoryRequest"]) == (4.0, 16.0, 4.0, 16.0)
    assert container(spec, "Transform")["resources"] == {
        "cpuLimit": 2.0, "cpuRequest": 2.0, "memoryLimit": 8.0, "memoryRequest": 8.0,
    }  # fmt: skip
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    parsed = {
        label: json_format.ParseDict(tree, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        for label, tree in executors.items()
    }
    trainer, transform = parsed["Trainer_executor"], parsed["Transform_executor"]
    assert dict(trainer.node_selector.labels) == {"pool": "gpu"} and not transform.node_selector.labels
    assert [(t.key, t.operator) for t in trainer.tolerations] == [("nvidia.com/gpu", "Exists")]
    for found in (trainer, transform):
        assert found.pvc_mount[0].constant == "twotower"
        assert found.secret_as_env[0].key_to_env[0].env_var == "KEY"
        assert found.image_pull_secret[0].secret_name == "registry"


def test_what_looks_outside_of_its_inputs_is_never_cached(spec: dict[str, Any]):
    tasks = spec["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert set(tasks) - cached == {"InteractionExampleGen", "BaselineResolver"}
    # Nothing that was true of the tables or of the push destination when it was compiled.
    assert constant(spec, "InteractionExampleGen", "fingerprint") == ""
    assert constant(spec, "BaselineResolver", "baseline_version") == ""


def test_runtime_parameters_have_the_configurations_values_and_replace_them(spec: dict[str, Any], folder: Path):
    declared = spec["root"]["inputDefinitions"]["parameters"]
    assert {name: p["defaultValue"] for name, p in declared.items()} == {
        "interactions": str(folder / "interactions.parquet"),
        "items": str(folder / "items.parquet"),
        "users": str(folder / "users.parquet"),
        "epochs": 6,
        "push_to": str(folder / "pushed" / "small-world"),
    }
    targets = {"interactions": "InteractionExampleGen", "items": "InteractionExampleGen", "epochs": "Trainer",
               "users": "InteractionExampleGen", "push_to": "Pusher"}  # fmt: skip
    for name, stage in targets.items():
        parameter, *keys = json.loads(argument(spec, stage, entrypoint.PARAMETERS_OPTION))[name]
        before = constant(spec, stage, parameter)
        assert value_at(before, keys) == declared[name]["defaultValue"]
        assert value_at(entrypoint.replaced(before, keys, "another"), keys) == "another"


def value_at(setting: Any, keys: list[str]) -> Any:
    for key in keys:
        setting = (json.loads(setting) if isinstance(setting, str) else setting)[key]
    return setting


def test_a_local_schema_travels_inside(spec: dict[str, Any], folder: Path):
    content = constant(spec, "ImportSchemaGen", "schema_file").removeprefix("data:text/plain;base64,")
    assert base64.b64decode(content) == (folder / "schema.pbtxt").read_bytes()


def test_a_schema_that_only_the_cluster_has_stays_there(tmp_path: Path):
    path = str(tmp_path / "only-there.pbtxt")
    job = runner.compile_pipeline(config(tmp_path, [f"schema.path={path}"]), str(tmp_path / "pipeline.yaml"))
    assert constant(job["pipelineSpec"], "ImportSchemaGen", "schema_file") == path


def test_vertex_ai_gets_a_job_of_spec_2_0(tmp_path: Path):
    path = tmp_path / "job.json"
    vertex = {"tables": {"interactions": {"path": "gs://b/i.parquet"}, "items": {"path": "gs://b/j.csv"}}}
    wanted = load(world.write_config(tmp_path, **vertex, kubeflow={
        "image": IMAGE, "pipeline_root": "gs://bucket/pipeline", "push": "gs://bucket/models", "spec": "2.0",
        "resources": {"Trainer": {"accelerator": "NVIDIA_TESLA_T4"}},
    }))  # fmt: skip
    runner.compile_pipeline(wanted, str(path))
    job = json.loads(path.read_text())
    json_format.ParseDict(job, pipeline_spec_pb2.PipelineJob())
    assert job["pipelineSpec"]["schemaVersion"] == "2.0.0"
    assert job["runtimeConfig"]["gcsOutputDirectory"] == "gs://bucket/pipeline"
    assert job["runtimeConfig"]["parameters"]["epochs"] == {"intValue": "6"}
    assert argument(job["pipelineSpec"], "Trainer", entrypoint.ARTIFACTS_OPTION) == entrypoint.DIRECT
    # A killed training finds its last epoch in the bucket.
    given = job["pipelineSpec"]["root"]["dag"]["tasks"]["Trainer"]["inputs"]["parameters"]["custom_config"]
    custom_config = json.loads(given["runtimeValue"]["constantValue"]["stringValue"])
    assert custom_config["checkpoint_root"] == "gs://bucket/pipeline/checkpoints"


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"image": None}, [], "kubeflow.image: is missing"),
        ({"image": "Registry/Two Tower"}, [], "'Registry/Two Tower' is no image name"),
        ({"resources": {"Trainer": {"image": "a b"}}}, [], "kubeflow.resources.Trainer.image: 'a b' is no image name"),
        ({"pipeline_root": None}, [], "kubeflow.pipeline_root: is missing"),
        ({"pipeline_root": "/srv/runs"}, [], "'/srv/runs' is nothing that the cluster can keep artifacts in"),
        ({"pipeline_root": "hdfs://host/runs"}, [], "give a bucket"),
        ({"pipeline_root": "gs://Bucket"}, [], "give a bucket"),
        ({}, ["name=ends-with-"], "must end with a letter or a digit"),
        ({"volumes": []}, [], "interactions.parquet is on this machine, where no container sees it; give a gs:// path"),
        ({}, ["tables.items.path=s3://bucket/items.parquet"], "tables.items.path: s3://bucket/items.parquet cannot be"),
        ({"push": "/srv/models"}, [], "kubeflow.push: /srv/models/small-world is on this machine"),
        ({}, ["schema.path=nowhere.pbtxt"], "schema.path: nowhere.pbtxt: No such file"),
        ({"beam": {"options": ["--runner=DataflowRunner"]}}, [], "remote Beam workers (kubeflow.beam) open artifacts"),
        ({"spec": "2.0"}, [], "Vertex AI (spec 2.0) opens artifacts where they are"),
        ({"spec": "2.0", "pipeline_root": "gs://bucket"}, [], "need spec 2.1"),
    ],
)
def test_what_a_cluster_would_refuse_or_not_see_is_refused_here(
    tmp_path: Path, changes: dict[str, Any], overrides: list[str], words: str
):
    output = tmp_path / "pipeline.yaml"
    with pytest.raises(UserError) as refusal:
        runner.compile_pipeline(config(tmp_path, overrides, **changes), str(output))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not output.exists()


def test_resources_of_an_unknown_stage_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"'Traner' is no stage; stages are .*, Pusher, and `default`"):
        runner.compile_pipeline(config(tmp_path, resources={"Traner": {"cpu": 1}}), str(tmp_path / "pipeline.yaml"))


def test_a_schema_too_large_to_travel_is_refused(tmp_path: Path):
    (tmp_path / "schema.pbtxt").write_text("#" * 50_000)
    with pytest.raises(UserError, match="50,000 bytes, more than travel inside a pipeline"):
        runner.check(runner.with_absolute_paths(config(tmp_path, [f"schema.path={tmp_path / 'schema.pbtxt'}"])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec.update(schemaVersion="2.0.0"), "takes schema version 2.1.0 only"),
        (lambda spec: spec["pipelineInfo"].update(name="Small_World"), "refuses the name 'Small_World'"),
        (lambda spec: spec.update(unknown=1), "not a compiled pipeline"),
        (lambda spec: spec["deploymentSpec"]["executors"].pop("Pusher_executor"), "Pusher is none"),
        (lambda spec: spec["root"]["dag"]["tasks"]["Pusher"]["taskInfo"].update(name="a b"), "task name 'Pusher'"),
        (
            lambda spec: container(spec, "Pusher").update(lifecycle={"preCacheCheck": {"command": ["python"]}}),
            "runs no pre-cache check",
        ),
    ],
)
def test_the_conformance_runner_refuses_what_the_backend_refuses(
    tmp_path: Path, documents: list[dict[str, Any]], change: Any, words: str
):
    changed = json.loads(json.dumps(documents))
    change(changed[0])
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump_all(changed))
    with pytest.raises(UserError, match=words):
        conformance.load(str(path))


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = world.write_config(tmp_path, kubeflow=settings(tmp_path, image=None, pipeline_root=None))
    output = str(tmp_path / "pipeline.yaml")
    arguments = ["kubeflow", "compile", "--json", "--config", path, "--output", output]
    assert cli.main([*arguments, "--image", IMAGE, "--pipeline-root", ROOT]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == output and "Trainer" in answer["stages"] and answer["parameters"]["epochs"] == 6
    assert cli.main(arguments) == 2
    assert "kubeflow.image: is missing" in json.loads(capsys.readouterr().out)["error"]
