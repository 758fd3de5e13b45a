"""The InferenceService: what KServe's own models say of it, and that it serves what the other manifests serve."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "serving" / "kserve" / "inference_service.yaml"
SIMPLE = {"str": str, "int": int, "bool": bool, "object": object, "ResourceQuantity": str, "IntOrString": (int, str)}


@pytest.fixture(scope="module")
def models() -> types.ModuleType:
    """`kserve.models`, without what the SDK imports beside it: a web server, and the packages it needs."""
    specification = importlib.util.find_spec("kserve")
    assert specification is not None
    package = types.ModuleType("kserve")
    package.__path__ = list(specification.submodule_search_locations or ())
    sys.modules["kserve"] = package
    return importlib.import_module("kserve.models")


@pytest.fixture
def service() -> dict[str, Any]:
    return yaml.safe_load(MANIFEST.read_text())


def check(value: Any, kind: str, models: types.ModuleType, where: str) -> None:
    """That a value is of a type of KServe's or Kubernetes' OpenAPI models: known fields, their types, none missing."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), where
        for number, element in enumerate(value):
            check(element, inner[1], models, f"{where}[{number}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        assert isinstance(value, dict), where
        for key, element in value.items():
            check(element, inner[1], models, f"{where}.{key}")
    elif kind in SIMPLE:
        assert isinstance(value, SIMPLE[kind]), f"{where} is no {kind}"
    else:
        described = getattr(models, kind, None) or getattr(kubernetes.client, kind)
        fields = {name: attribute for attribute, name in described.attribute_map.items()}
        assert isinstance(value, dict) and not value.keys() - fields.keys(), f"{where}: {value.keys() - fields.keys()}"
        for name, element in value.items():
            check(element, described.openapi_types[fields[name]], models, f"{where}.{name}")
        # Raises where a required field is missing.
        described(**{fields[name]: element for name, element in value.items()})


def test_kserves_models_accept_it(models: types.ModuleType, service: dict[str, Any]):
    check(service, "V1beta1InferenceService", models, "InferenceService")
    for change in (
        lambda predictor: predictor.update(scaleTarge=1),
        lambda predictor: predictor.update(scaleMetric=1),
        lambda predictor: predictor["model"].pop("modelFormat") and predictor["model"].update(modelFormat={"nam": "x"}),
        lambda predictor: predictor["model"]["readinessProbe"].update(period=1),
        lambda predictor: predictor["model"]["livenessProbe"]["tcpSocket"].pop("port"),
    ):
        broken = copy.deepcopy(service)
        change(broken["spec"]["predictor"])
        with pytest.raises((AssertionError, ValueError)):
            check(broken, "V1beta1InferenceService", models, "InferenceService")


def test_kubernetes_accepts_the_pod_that_it_stands_for(models: types.ModuleType, service: dict[str, Any]):
    """A predictor is a pod's description and a model is a container's, each with fields of KServe's beside."""
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    of_pods = kubernetes.client.V1PodSpec.attribute_map.values()
    of_containers = kubernetes.client.V1Container.attribute_map.values()
    container = {key: value for key, value in model.items() if key in of_containers}
    pod = {key: value for key, value in predictor.items() if key in of_pods}
    image = f"tensorflow/serving:{model['runtimeVersion']}"
    pod["containers"] = [{**container, "name": "kserve-container", "image": image}]
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": pod}
    for version in ("1.31", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_it_serves_what_the_other_manifests_serve(service: dict[str, Any]):
    """One model, one volume, one image, the same probes: whoever changes one of them changes both."""
    name, model = service["metadata"]["name"], service["spec"]["predictor"]["model"]
    served = yaml.safe_load((ROOT / "configs" / "movielens-100k.yaml").read_text())["name"]
    assert name == served
    claim = yaml.safe_load((ROOT / "serving" / "kubernetes" / "volume.yaml").read_text())["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}/{name}"
    deployment = yaml.safe_load((ROOT / "serving" / "kubernetes" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"tensorflow/serving:{model['runtimeVersion']}"
    # Of KServe's runtime: no names of ports, and these numbers.
    ports = {"rest": 8080, "grpc": 9000}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        expected = copy.deepcopy(container[probe])
        action = expected.get("httpGet") or expected["tcpSocket"]
        action["port"] = ports[action["port"]]
        assert model[probe] == expected
    assert set(model["args"]) <= set(container["args"])
    assert model["resources"]["limits"]["memory"] == container["resources"]["limits"]["memory"]
    autoscaler = yaml.safe_load((ROOT / "serving" / "kubernetes" / "autoscaler.yaml").read_text())["spec"]
    predictor = service["spec"]["predictor"]
    for key in ("minReplicas", "maxReplicas"):
        assert predictor[key] == autoscaler[key]
