"""The manifests and the image: valid for Kubernetes and for a Dockerfile linter, and about things that exist."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "kubeflow" / "manifests" / "base"
OLDEST, NEWEST = "1.29", "1.37"


def resources(folder: Path) -> list[dict[str, Any]]:
    """What a kustomization without patches lists, in its namespace."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found = [r for name in kustomization["resources"] for r in yaml.safe_load_all((folder / name).read_text())]
    assert {p.name for p in folder.iterdir()} == {"kustomization.yaml", *kustomization["resources"]}
    return found


def by_kind(kind: str) -> dict[str, Any]:
    [found] = [r for r in resources(BASE) if r["kind"] == kind]
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_schemas_accept_every_resource(version: str):
    for resource in resources(BASE):
        kubernetes_validate.validate(resource, version, strict=True)


def test_what_refers_to_something_refers_to_what_is_there():
    claim, account = by_kind("PersistentVolumeClaim")["metadata"]["name"], by_kind("ServiceAccount")["metadata"]["name"]
    for kind in ("Job", "Deployment"):
        pod = by_kind(kind)["spec"]["template"]["spec"]
        assert [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]] == [claim]
        assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    binding = by_kind("RoleBinding")
    assert binding["roleRef"]["name"] == by_kind("Role")["metadata"]["name"]
    assert [s["name"] for s in binding["subjects"]] == [account]
    deployment, service = by_kind("Deployment"), by_kind("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    assert container["readinessProbe"]["httpGet"]["path"].endswith(f"/{container['env'][0]['value']}")
    # No secret is in a manifest: they are named, and made by whoever has the right to.
    assert not [r for r in resources(BASE) if r["kind"] == "Secret"]


def test_the_patches_are_of_resources_that_are_there():
    folder = ROOT / "kubeflow" / "manifests" / "gcs"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert [(folder / name).resolve() for name in kustomization["resources"]] == [BASE]
    there = {(r["apiVersion"], r["kind"], r["metadata"]["name"]) for r in resources(BASE)}
    for entry in kustomization["patches"]:
        patch = yaml.safe_load(entry["patch"])
        assert (patch["apiVersion"], patch["kind"], patch["metadata"]["name"]) in there


def test_the_dockerfile_passes_its_linter():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "kubeflow" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_reaches_the_builder_and_nothing_else():
    text = (ROOT / "kubeflow" / "Dockerfile").read_text()
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for source in line.split()[:-1]
    }
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
    # Every package of the project is in the image.
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    patterns = re.search(r"include = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert patterns is not None
    wanted = [p.strip().strip('"') for p in patterns[1].split(",")]
    assert {p for p in packages if any(fnmatch.fnmatch(p, w) for w in wanted)} <= copied


def test_the_image_takes_the_entry_point_and_the_environment_of_the_compiled_steps():
    text = (ROOT / "kubeflow" / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE))
    assert stages["runtime"] == "stage" and text.rstrip().endswith('ENTRYPOINT ["python", "-m", "kubeflow.entrypoint"]')
    assert "USER 10001:10001" in text
    pins = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^apache-beam==2\.73\.0 ", pins, re.MULTILINE) and "apache/beam_python3.11_sdk:2.73.0" in text
    assert re.search(r"^tensorflow==2\.20\.0 ", pins, re.MULTILINE) and '"tensorflow[and-cuda]==2.20.0"' in text
