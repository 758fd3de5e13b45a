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
    """What a kustomization lists, and the kustomizations that it builds on."""
    found = []
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = (folder / name).resolve()
        if path.suffix == ".yaml":
            found += list(yaml.safe_load_all(path.read_text()))
        else:
            found += resources(path)
    return found


def own(folder: Path) -> list[dict[str, Any]]:
    """What lies in the folder itself."""
    return [r for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"
            for r in yaml.safe_load_all(path.read_text())]  # fmt: skip


def named(kind: str, found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {r["metadata"]["name"]: r for r in found if r["kind"] == kind}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_schemas_accept_every_resource(version: str):
    assert len(own(BASE)) == 5
    for resource in own(BASE):
        kubernetes_validate.validate(resource, version, strict=True)


def test_what_refers_to_something_refers_to_what_is_there():
    there = resources(BASE)
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert {p.name for p in BASE.iterdir()} - {"kustomization.yaml"} <= set(kustomization["resources"])
    claims, [account] = named("PersistentVolumeClaim", there), named("ServiceAccount", there)
    for kind in ("Job", "Deployment"):
        for workload in named(kind, there).values():
            pod = workload["spec"]["template"]["spec"]
            used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
            assert used and used <= set(claims)
            assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} == {
                v["name"] for v in pod["volumes"]
            }
    [binding] = named("RoleBinding", there).values()
    assert binding["roleRef"]["name"] in named("Role", there)
    assert [s["name"] for s in binding["subjects"]] == [account]
    # No secret is in a manifest: they are named, and made by whoever has the right to.
    assert not named("Secret", there)


def test_the_pipeline_pushes_to_the_volume_that_tf_serving_watches():
    pod = named("Deployment", resources(BASE))["serving"]["spec"]["template"]["spec"]
    [volume] = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    [mount] = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"]]
    claim = volume["persistentVolumeClaim"]["claimName"]
    guide = (ROOT / "kubeflow" / "README.md").read_text()
    assert f"{{claim: {claim}, path: {mount['mountPath']}}}" in guide and f"push: {mount['mountPath']}\n" in guide
    models = (ROOT / "serving" / "models.config").read_text()
    assert f'base_path: "{mount["mountPath"]}/movielens-100k"' in models


def test_the_patches_are_of_resources_that_are_there():
    folder = ROOT / "kubeflow" / "manifests" / "gcs"
    there = {(r["apiVersion"], r["kind"], r["metadata"]["name"]) for r in resources(folder)}
    for entry in yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]:
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
