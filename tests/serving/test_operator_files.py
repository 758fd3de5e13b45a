"""The files of an operator, each parsed into the real protobuf or checked against its real schema; and releases."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import tiny_models
import yaml
from compose_spec import PyCompose
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving import release
from serving.client import GrpcClient, ServingError
from serving.development_server.rest import METRICS_PATH
from serving.development_server.server import Options, Server

SERVING = Path(__file__).parents[2] / "serving"
# The oldest Kubernetes that is still maintained, and the newest that the schemas know.
KUBERNETES = ("1.31", kubernetes_validate.latest_version())
MODEL = "movielens-100k"


def message(name: str, fields: dict[str, tuple[int, str]]) -> Any:
    """A message class of TF Serving that tensorflow-serving-api leaves out: field → (number, type).

    Types are those of protobuf; `Int64Value` and the like are its wrappers, another message goes by its full name.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="tensorflow.serving", syntax="proto3", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    declared = file.message_type.add(name=name)
    for field, (number, kind) in fields.items():
        added = declared.field.add(name=field, number=number, label="LABEL_OPTIONAL")
        if kind.startswith("repeated "):
            added.label, kind = added.LABEL_REPEATED, kind.removeprefix("repeated ")
        if kind.islower():
            added.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
        else:
            added.type = added.TYPE_MESSAGE
            added.type_name = f".google.protobuf.{kind}" if kind.endswith("Value") else f".tensorflow.serving.{kind}"
            if not kind.endswith("Value"):
                file.dependency.append(f"{kind}.proto")
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


@pytest.fixture(scope="session")
def batching_parameters() -> Any:
    """servables/tensorflow/session_bundle_config.proto of TensorFlow Serving."""
    fields = {
        "max_batch_size": (1, "Int64Value"),
        "batch_timeout_micros": (2, "Int64Value"),
        "max_enqueued_batches": (3, "Int64Value"),
        "num_batch_threads": (4, "Int64Value"),
        "thread_pool_name": (5, "StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, "BoolValue"),
        "max_execution_batch_size": (9, "Int64Value"),
    }
    return message("BatchingParameters", fields)


@pytest.fixture(scope="session")
def monitoring_config() -> Any:
    """config/monitoring_config.proto of TensorFlow Serving."""
    message("PrometheusConfig", {"enable": (1, "bool"), "path": (2, "string")})
    return message("MonitoringConfig", {"prometheus_config": (1, "PrometheusConfig")})


def manifests() -> dict[str, dict[str, Any]]:
    """Kind/name → manifest."""
    found = {}
    for file in sorted((SERVING / "kubernetes").glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            found[f"{manifest['kind']}/{manifest['metadata']['name']}"] = manifest
    return found


def flags(arguments: list[str]) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def test_the_model_config_is_one(tmp_path: Path):
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (MODEL, f"/models/{MODEL}", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 2
    assert config == release.config(MODEL, f"/models/{MODEL}", {})


def test_batching_parameters_do_not_change_what_lists_mean(batching_parameters: Any):
    batching = text_format.Parse((SERVING / "batching.config").read_text(), batching_parameters())
    # TF Serving pads with a list's own first value, which would be an item that somebody took up again and again.
    assert batching.pad_variable_length_inputs is False
    assert batching.max_batch_size.value >= 1 and batching.num_batch_threads.value >= 1
    assert 0 < batching.batch_timeout_micros.value <= 10_000
    assert batching.max_enqueued_batches.value >= 1
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch: 1", batching_parameters())


def test_metrics_are_where_the_development_server_has_them(monitoring_config: Any):
    monitoring = text_format.Parse((SERVING / "monitoring.config").read_text(), monitoring_config())
    assert monitoring.prometheus_config.enable and monitoring.prometheus_config.path == METRICS_PATH


def test_the_compose_file_fits_the_compose_specification():
    # As Compose itself does before it looks at the structure.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (SERVING / "compose.yaml").read_text())
    PyCompose.from_yaml(text).to_spec()
    service = yaml.safe_load(text)["services"]["serving"]
    assert "tensorflow/serving:" in service["image"]
    mounts = dict(reversed(volume.removesuffix(":ro").rsplit(":", 1)) for volume in service["volumes"])
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    for name, path in flags(service["command"]).items():
        if name.endswith("_file"):
            folder, _, file = path.rpartition("/")
            assert mounts[folder] == "." and (SERVING / file).is_file(), name
    assert "/models" in mounts and service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    assert f"/v1/models/{MODEL} " in service["healthcheck"]["test"][-1]


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_fit_the_schemas_of_kubernetes(version: str):
    assert {kind.split("/")[0] for kind in manifests()} >= {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "PersistentVolumeClaim",
    }  # fmt: skip
    for manifest in manifests().values():
        kubernetes_validate.validate(manifest, version, strict=True)
    wrong = {**manifests()["Service/serving"], "spec": {"ports": [{"port": "eight"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_every_pod_has_a_seccomp_profile_and_small_images_are_pinned_by_digest():
    kubeflow = SERVING.parent / "kubeflow"
    files = [*(SERVING / "kubernetes").glob("*.yaml"), *(kubeflow / "manifests" / "base").glob("*.yaml")]
    every = [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]
    pods = {m["kind"]: m["spec"]["template"]["spec"] for m in every if m["kind"] in ("Deployment", "Job")}
    assert set(pods) == {"Deployment", "Job"}
    for pod in pods.values():
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (job,) = pods["Job"]["containers"]
    (python,) = re.findall(r"^ARG PYTHON=(python:\S+)", (kubeflow / "Dockerfile").read_text(), re.MULTILINE)
    for image in (job["image"], python):
        assert re.fullmatch(r"[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", image)
    # Ours to choose where it is run; the files say how.
    for file in (SERVING / "compose.yaml", SERVING / "kustomization.yaml"):
        assert "digest" in file.read_text()


def test_the_manifests_belong_together():
    found = manifests()
    deployment = found["Deployment/serving"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    for service in ("Service/serving", "Service/serving-headless"):
        assert found[service]["spec"]["selector"].items() <= labels.items()
        for port in found[service]["spec"]["ports"]:
            (opened,) = (p for p in container["ports"] if p["name"] == port["targetPort"])
            assert opened["containerPort"] == port["port"]
    assert found["PodDisruptionBudget/serving"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert found["HorizontalPodAutoscaler/serving"]["spec"]["scaleTargetRef"]["name"] == "serving"
    assert "cpu" in container["resources"]["requests"], "what the autoscaler's utilization is a share of"

    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    arguments = flags(container["args"])
    assert (arguments["port"], arguments["rest_api_port"]) == (str(ports["grpc"]), str(ports["rest"]))
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": f"/v1/models/{MODEL}", "port": "rest"}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    (models,) = (v for v in pod["volumes"] if v["name"] == "models")
    claim = models["persistentVolumeClaim"]
    assert claim["readOnly"] and f"PersistentVolumeClaim/{claim['claimName']}" in found


def test_the_kustomization_names_every_file():
    kustomization = yaml.safe_load((SERVING / "kustomization.yaml").read_text())
    files = {f"kubernetes/{file.name}" for file in (SERVING / "kubernetes").glob("*.yaml")}
    assert set(kustomization["resources"]) == files
    (generated,) = kustomization["configMapGenerator"]
    pod = manifests()["Deployment/serving"]["spec"]["template"]["spec"]
    assert generated["name"] in [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    mounted = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}["config"]
    for name, path in flags(pod["containers"][0]["args"]).items():
        if name.endswith("_file"):
            assert path.removeprefix(f"{mounted}/") in generated["files"], name
    assert all((SERVING / file).is_file() for file in generated["files"])


@pytest.mark.slow
def test_a_release_by_label_written_and_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base_path, file = tmp_path / "tiny", tmp_path / "models.config"
    base_path.mkdir()
    tiny_models.push(base_path, 1)
    shutil.copytree(base_path / "1", base_path / "2")

    def run(*arguments: str) -> int:
        return release.main(["--model", "tiny", "--base-path", str(base_path), *arguments])

    def loaded(label: str) -> int | None:
        with GrpcClient(server.grpc_address, "tiny", label=label) as client:
            return client.predict({"x": [1.0], "s": ["a"]}).version

    assert run("--label", "stable=1", "--write", str(file)) == 0
    with Server(Options(model_config_file=str(file), grpc_port=0, rest_port=0, poll_seconds=60)) as server:
        send = ("--send", server.grpc_address)
        assert loaded("stable") == 1
        with pytest.raises(ServingError, match="Unrecognized servable version label"):
            loaded("canary")
        assert run("--label", "stable=1", "--label", "canary=2", *send) == 0
        assert (loaded("stable"), loaded("canary")) == (1, 2)
        assert run("--label", "stable=2", "--keep", "1", *send) == 0
        assert loaded("stable") == 2
        assert run("--label", "stable=1", "--keep", "2", *send) == 0
        assert loaded("stable") == 1
        assert run("--label", "stable=7", *send) == 1
        assert "not currently available for inference" in capsys.readouterr().err
        assert loaded("stable") == 1
    with pytest.raises(SystemExit):
        run("--label", "stable")
