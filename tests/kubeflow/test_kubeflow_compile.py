"""What is compiled: accepted by the protobufs, by kfp's loader and by the API server's rules; and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import world
import yaml
from clusters import IMAGE, ROOT, config, settings
from google.protobuf import json_format
from hypothesis import strategies as st
from kfp import components as kfp_components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from kubeflow import conformance, entrypoint, runner, transport
from modules.errors import UserError
from pipeline import cli
from pipeline.config import Config, load

FLINK = {"runner": "flink", "job_endpoint": "flink-job-server:8099", "worker_pool": "localhost:50000"}
DATAFLOW = {
    "runner": "dataflow",
    "project": "shop",
    "region": "europe-west1",
    "temp_location": "gs://bucket/tmp",
    "worker_image": f"{IMAGE}-beam",
}


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
                "accelerators": 4,
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
    """A stage's setting, as it arrives there."""
    given = spec["root"]["dag"]["tasks"][stage]["inputs"]["parameters"][parameter]["runtimeValue"]
    return transport.unpacked(given["constant"] if "constant" in given else given["constantValue"]["stringValue"])


def test_the_protobufs_the_api_server_and_kfps_loader_accept_it(folder: Path, documents: list[dict[str, Any]]):
    spec, platform = documents
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    compiled = conformance.load(str(folder / "pipeline.yaml"))
    assert compiled.spec.schema_version == "2.1.0"
    assert set(compiled.spec.root.dag.tasks) == {
        "InteractionExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Transform", "Trainer",
        "ScannIndexBuilder", "BaselineResolver", "Evaluator", "ServableValidator", "Pusher", "RunReport",
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
    # For training.distribution: mirrored.
    assert gpu["accelerator"] == {"type": "nvidia.com/gpu", "count": "4"}
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
        assert found.secret_as_env[0].key_to_env[0].env_var == "KEY"
        assert found.image_pull_secret[0].secret_name == "registry"


def test_a_stage_mounts_the_volumes_that_it_opens_something_on(tmp_path: Path):
    world.write_parquet(tmp_path / "tables")
    claims = {"tables": "tables", "models": "models", "schemas": "schemas", "scratch": "scratch"}
    wanted = config(
        tmp_path,
        ["schema.path=/schemas/curated.pbtxt"],
        tables="/tables/small",
        push="/models",
        checkpoints="/scratch/checkpoints",
        volumes=[{"claim": claim, "path": f"/{path}"} for path, claim in claims.items()],
    )
    spec = runner.compile_pipeline(wanted, str(tmp_path / "pipeline.yaml"))["pipelineSpec"]
    platform = list(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))[1]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = {
        stage: {m["mountPath"] for m in executors[component["executorLabel"]].get("pvcMount", ())}
        for stage, component in spec["components"].items()
    }
    # A pod that mounts a volume of one node runs there; and what nobody opens no pod waits for.
    assert {stage: found for stage, found in mounts.items() if found} == {
        "InteractionExampleGen": {"/tables"}, "ImportSchemaGen": {"/schemas"}, "Trainer": {"/scratch"},
        "BaselineResolver": {"/models"}, "Pusher": {"/models"}, "ScannIndexBuilder": {"/tables"},
    }  # fmt: skip
    custom_config = json.loads(constant(spec, "Trainer", "custom_config"))
    assert custom_config["checkpoint_root"] == "/scratch/checkpoints"
    tables = json.loads(constant(spec, "InteractionExampleGen", "tables"))
    assert tables["items"]["path"] == "/tables/small/items.parquet"
    assert json.loads(constant(spec, "ScannIndexBuilder", "tables")) == tables, "what is known of users is read there"
    without = wanted.model_copy(update={"serving": wanted.serving.model_copy(update={"known_users": 0})})
    reading = {stage for parameter in runner.parameters(without) for stage in parameter.targets}
    assert "ScannIndexBuilder" not in reading
    of_tables = [p for p in runner.parameters(wanted) if p.name in ("interactions", "items", "users")]
    assert all(p.targets.keys() == {"InteractionExampleGen", "ScannIndexBuilder"} for p in of_tables)


def test_a_stage_that_was_evicted_starts_again(spec: dict[str, Any], tmp_path: Path):
    parsed = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    for task in parsed.root.dag.tasks.values():
        policy = task.retry_policy
        assert (policy.max_retry_count, policy.backoff_duration.seconds, policy.backoff_factor) == (2, 60, 2)
        # Argo counts it from the start of the first attempt; a day of training is no reason to give up.
        assert policy.backoff_max_duration.seconds >= 86_400
    never = runner.pipeline_job(runner.with_absolute_paths(config(tmp_path, retries=0)))["pipelineSpec"]
    assert not any("retryPolicy" in task for task in never["root"]["dag"]["tasks"].values())


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
    # The first stage gets all of them: it checks what the API server does not.
    checks = json.loads(argument(spec, "InteractionExampleGen", entrypoint.CHECKS_OPTION))
    given = spec["root"]["dag"]["tasks"]["InteractionExampleGen"]["inputs"]["parameters"]
    assert set(checks) == set(declared) == {k for k, v in given.items() if "componentInputParameter" in v}
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
    content = transport.text_as_file(constant(spec, "ImportSchemaGen", "schema_file"))
    assert content == (folder / "schema.pbtxt").read_bytes()


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
    custom_config = json.loads(constant(job["pipelineSpec"], "Trainer", "custom_config"))
    assert custom_config["checkpoint_root"] == "gs://bucket/pipeline/checkpoints"


@pytest.mark.parametrize("beam", [FLINK, DATAFLOW], ids=["flink", "dataflow"])
def test_stages_are_told_of_a_remote_runner_and_open_artifacts_where_they_are(tmp_path: Path, beam: dict[str, str]):
    path = tmp_path / "pipeline.yaml"
    wanted = config(tmp_path, pipeline_root="gs://bucket/pipeline", beam=beam)
    job = runner.compile_pipeline(wanted, str(path))
    for stage in ("InteractionExampleGen", "StatisticsGen", "Transform", "ScannIndexBuilder", "Evaluator"):
        arguments = conformance.load(str(path)).container(stage).args
        assert set(wanted.kubeflow.beam.arguments()) <= set(arguments), stage
        assert argument(job["pipelineSpec"], stage, entrypoint.ARTIFACTS_OPTION) == entrypoint.DIRECT


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
        ({"volumes": []}, [], "interactions.parquet is where no container sees it; give a gs:// path"),
        ({}, ["tables.items.path=s3://bucket/items.parquet"], "tables.items.path: s3://bucket/items.parquet cannot be"),
        ({"push": "/srv/models"}, [], "kubeflow.push: /srv/models/small-world is where no container"),
        ({}, ["schema.path=nowhere.pbtxt"], "schema.path: nowhere.pbtxt: No such file"),
        ({"beam": FLINK}, [], "remote Beam workers (kubeflow.beam) open artifacts"),
        ({"beam": DATAFLOW}, [], "remote Beam workers (kubeflow.beam) open artifacts"),
        ({"checkpoints": "/scratch"}, [], "kubeflow.checkpoints: /scratch is where no container sees it"),
        ({"tables": "/x"}, [], "tables.interactions.path: /x/interactions.parquet is where no container sees it"),
        ({"volumes": [{"claim": "c", "path": "/v"}], "push": "/v/../srv", "tables": "/v"}, [], "kubeflow.push: /srv/"),
        (
            {"volumes": [{"claim": "c", "path": "/v"}], "push": "/v/a$$b", "tables": "/v"},
            [],
            "/v/a$$b/small-world holds",
        ),
        ({"tables": "gs://b/{{x}}"}, [], "which Kubernetes and Argo replace"),
        ({"spec": "2.0"}, [], "Vertex AI (spec 2.0) opens artifacts where they are"),
        ({"spec": "2.0", "pipeline_root": "gs://bucket"}, [], "need spec 2.1"),
        ({}, ["training.distribution=multi_worker"], "multi_worker needs a pod for each worker"),
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
    with pytest.raises(UserError, match=r"'Traner' is no stage; stages are .*, Pusher, RunReport, and `default`"):
        runner.compile_pipeline(config(tmp_path, resources={"Traner": {"cpu": 1}}), str(tmp_path / "pipeline.yaml"))


SCHEMA_FEATURE = """feature {{
  name: "column_{}"
  type: BYTES
  presence {{ min_fraction: 1.0 min_count: 1 }}
  shape {{ dim {{ size: 1 }} }}
}}
"""


def size(spec: dict[str, Any]) -> int:
    defaults = {name: p["defaultValue"] for name, p in spec["root"]["inputDefinitions"]["parameters"].items()}
    return transport.root_driver_bytes(spec, defaults, spec["defaultPipelineRoot"])


def compiled(config: Config) -> dict[str, Any]:
    spec: dict[str, Any] = runner.pipeline_job(runner.with_absolute_paths(config))["pipelineSpec"]
    return spec


def test_a_feature_or_a_schema_adds_little_to_what_the_root_driver_gets_at_once(tmp_path: Path):
    schema = "".join(map(SCHEMA_FEATURE.format, range(450)))
    assert len(schema) > 48 * 1024
    (tmp_path / "schema.pbtxt").write_text(schema)
    more = world.config(tmp_path)["features"]
    more["query"] += [{"column": f"{word}_{n}", "encoding": "vocabulary"}
                      for n in range(10) for word in ("device", "country", "channel", "campaign")]  # fmt: skip
    plain = size(compiled(config(tmp_path)))
    with_features = size(compiled(load(world.write_config(tmp_path, features=more, kubeflow=settings(tmp_path)))))
    with_schema = compiled(config(tmp_path, [f"schema.path={tmp_path / 'schema.pbtxt'}"]))
    assert (with_features - plain) / 40 < 150
    assert size(with_schema) - plain < len(schema) / 8
    # It is what arrives, and it is there once.
    found = transport.text_as_file(constant(with_schema, "ImportSchemaGen", "schema_file"))
    assert found == schema.encode()
    packed = with_schema["root"]["dag"]["tasks"]["ImportSchemaGen"]["inputs"]["parameters"]["schema_file"]
    assert json.dumps(with_schema).count(packed["runtimeValue"]["constant"]) == 1


def test_what_the_root_driver_cannot_start_with_is_refused_with_the_remedy(tmp_path: Path):
    # Nothing in it repeats, so that compressing does not help.
    (tmp_path / "schema.pbtxt").write_text("#" + random.Random(0).randbytes(80_000).hex())
    output = tmp_path / "pipeline.yaml"
    with pytest.raises(UserError) as refusal:
        runner.compile_pipeline(config(tmp_path, [f"schema.path={tmp_path / 'schema.pbtxt'}"]), str(output))
    assert f"schema.path: {tmp_path / 'schema.pbtxt'} takes" in str(refusal.value)
    assert "131,072 fit; put it on gs:// or on a volume of kubeflow.volumes" in str(refusal.value)
    assert not output.exists()

    columns = [random.Random(n).randbytes(20).hex() for n in range(1500)]
    features = world.config(tmp_path)["features"]
    features["query"] += [{"column": f"c{name}", "encoding": "hash", "buckets": 9} for name in columns]
    too_wide = load(world.write_config(tmp_path, features=features, kubeflow=settings(tmp_path)))
    with pytest.raises(UserError, match="at once, where 131,072 fit; leave out features, columns or slices"):
        runner.compile_pipeline(too_wide, str(output))


def test_the_conformance_runner_starts_nothing_that_the_root_driver_could_not(
    tmp_path: Path, folder: Path, documents: list[dict[str, Any]]
):
    changed = json.loads(json.dumps(documents))
    given = changed[0]["root"]["dag"]["tasks"]["ImportSchemaGen"]["inputs"]["parameters"]["schema_file"]
    given["runtimeValue"]["constant"] = "x" * 130_000
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump_all(changed))
    with pytest.raises(UserError, match="the root driver does not start: its pod needs 1"):
        conformance.Cluster(conformance.load(str(path)), tmp_path)
    # The same limit for what a run of it brings along.
    given["runtimeValue"]["constant"] = "x"
    path.write_text(yaml.safe_dump_all(changed))
    with pytest.raises(UserError, match="the root driver does not start"):
        conformance.Cluster(conformance.load(str(path)), tmp_path, parameters={"items": "gs://b/" + "x" * 130_000})


def test_the_measure_is_that_of_gos_json():
    # By hand: keys in order, no spaces, < > & escaped, the producer among the dependencies, and all of it quoted again.
    root = {"dag": {"tasks": {
        "B": {"inputs": {"artifacts": {"i": {"taskOutputArtifact": {"producerTask": "A", "outputArtifactKey": "o"}}},
                         "parameters": {"p": {"runtimeValue": {"constant": 'é<"'}}}}},
    }}}  # fmt: skip
    component = (
        '{"dag":{"tasks":{"B":{"dependentTasks":["A"],"inputs":{"artifacts":{"i":{"taskOutputArtifact":'
        '{"outputArtifactKey":"o","producerTask":"A"}}},"parameters":{"p":{"runtimeValue":{"constant":"é\\u003c\\""}}}'
        "}}}}}"
    )
    runtime = '{"gcsOutputDirectory":"gs://b","parameterValues":{"n":3}}'
    wanted = sum(len(text.encode()) + text.count('"') + text.count("\\") + 2 for text in (component, runtime))
    assert transport.root_driver_bytes({"root": root}, {"n": 3}, "gs://b") == wanted + 4 * 1024


def test_a_setting_reaches_the_stages_that_read_it_and_changes_no_other(tmp_path: Path):
    def settings_of(*overrides: str) -> dict[str, str]:
        tasks = compiled(config(tmp_path, list(overrides)))["root"]["dag"]["tasks"]
        return {name: json.dumps(task["inputs"], sort_keys=True) for name, task in tasks.items()}

    before = settings_of()
    for override, readers in {
        "serving.latency_p99_ms=5": {"ServableValidator"},
        # Where answers hold the history, a repeat is learned, and counts as a hit.
        "serving.exclude_history=false": {"Trainer", "ScannIndexBuilder", "Evaluator"},
        "training.learning_rate=0.1": {"Trainer"},
        "features.query.age.dimension=3": {"Trainer"},
        "evaluation.floors={ndcg@5: 0.1}": {"Evaluator"},
    }.items():
        after = settings_of(override)
        # The page says how everything was set.
        assert {name for name in before if before[name] != after[name]} == readers | {"RunReport"}, override


# What Kubernetes, Argo and the launcher replace, whole and in pieces, among other text.
PIECES = st.sampled_from(["$$", "$(HOME)", "$(", "$", ")", "{{$}}", "{{", "}}", "{{workflow.name}}", "zlib:", "data:,",
                          "{{$.inputs.parameters['epochs']}}", "a", "é", '"', "\\", "\n", " ", "x" * 600])  # fmt: skip


@hypothesis.settings(derandomize=True, max_examples=300, deadline=None)
@hypothesis.given(pieces=st.lists(PIECES, max_size=12))
def test_every_text_arrives_as_it_was(pieces: list[str]):
    text = "".join(pieces)
    travelling = transport.packed(text)
    assert transport.unpacked(travelling) == text
    assert "{{" not in travelling
    # In JSON on the launcher's command line, and an argument of its own in the container's.
    environment = {"HOME": "/home/somebody"}
    arrived = json.loads(conformance._as_kubernetes_does(json.dumps({"p": travelling}), environment))["p"]
    assert transport.unpacked(arrived) == text
    assert conformance._as_kubernetes_does(transport.argument(text), environment) == text
    assert transport.text_as_file(transport.file_as_text(text.encode())) == text.encode()


def test_names_and_options_that_kubernetes_would_change_arrive_as_they_are(tmp_path: Path):
    evaluation = {"k": [5, 20], "slices": [{"column": "a$$b$(HOME)"}]}
    options = ["--job_name=a$$b$(HOME)"]
    path = world.write_config(tmp_path, evaluation=evaluation, kubeflow=settings(tmp_path, beam={"options": options}))
    output = str(tmp_path / "pipeline.yaml")
    runner.compile_pipeline(load(path), output)
    cluster = conformance.Cluster(conformance.load(output), tmp_path)
    found = cluster.executor_input("InteractionExampleGen", {})
    environment = {"HOME": "/home/somebody"}
    arrived = json_format.Parse(
        conformance._as_kubernetes_does(json_format.MessageToJson(found), environment),
        pipeline_spec_pb2.ExecutorInput(),
    )
    entrypoint.set_parameters(arrived, {}, {}, str(tmp_path))
    wanted = json.loads(arrived.inputs.parameter_values["wanted"].string_value)
    assert [by["column"] for by in wanted["slices"]] == ["a$$b$(HOME)"]
    arguments = [conformance._as_kubernetes_does(a, environment) for a in cluster.compiled.container("Transform").args]
    assert "--job_name=a$$b$(HOME)" in arguments and "{{$}}" in arguments


def test_the_shipped_configuration_compiles_and_its_volumes_are_those_of_the_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "pipeline.yaml"
    assert cli.main(["kubeflow", "compile", "--json", "--output", str(output)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["parameters"]["items"] == "/tables/movielens-100k/items.parquet"
    assert answer["parameters"]["push_to"] == "/models/movielens-100k"
    compiled = conformance.load(str(output))
    manifests = Path(runner.__file__).parent / "manifests" / "base"
    there = [r["metadata"]["name"] for r in yaml.safe_load_all((manifests / "volumes.yaml").read_text())]
    there.append("served-models")
    used = {claim for mounts in compiled.mounts.values() for claim in mounts.values()}
    assert used and used <= set(there)


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
