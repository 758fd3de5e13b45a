"""The manifests and the image: valid for Kubernetes and for a Dockerfile linter, and about things that exist."""

from __future__ import annotations

import copy
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
MANIFESTS = ROOT / "kubeflow" / "manifests"
BASE = MANIFESTS / "base"
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
    guide = (ROOT / "docs" / "kubeflow.md").read_text()
    assert f"{{claim: {claim}, path: {mount['mountPath']}}}" in guide and f"push: {mount['mountPath']}\n" in guide
    models = (ROOT / "serving" / "models.config").read_text()
    assert f'base_path: "{mount["mountPath"]}/movielens-100k"' in models


@pytest.mark.parametrize("overlay", ["gcs", "object-store", "single-node", "storage-class"])
def test_the_patches_are_of_resources_that_are_there(overlay: str):
    folder = MANIFESTS / overlay
    there = resources(folder)
    patches = yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]
    assert patches
    for entry in patches:
        patch = yaml.safe_load(entry["patch"])
        if "target" in entry:
            assert patched(there, entry["target"], patch)
        else:
            names = {(r["apiVersion"], r["kind"], r["metadata"]["name"]) for r in there}
            assert (patch["apiVersion"], patch["kind"], patch["metadata"]["name"]) in names


def patched(there: list[dict[str, Any]], target: dict[str, str], patch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The resources that a JSON patch (RFC 6902) is of, with it."""
    found = [r for r in copy.deepcopy(there) if r["kind"] == target["kind"]]
    found = [r for r in found if target.get("name", r["metadata"]["name"]) == r["metadata"]["name"]]
    for resource in found:
        for operation in patch:
            *parents, last = operation["path"].removeprefix("/").split("/")
            node: Any = resource
            for parent in parents:
                node = node[int(parent)] if isinstance(node, list) else node[parent]
            if last == "-":
                node.append(operation["value"])
            else:
                assert operation["op"] == "add" or last in node
                node[last] = operation["value"]
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_volume_can_have_another_class_or_a_cluster_of_one_node(version: str):
    for overlay, key, value in (
        ("storage-class", "storageClassName", "CLASS"), ("single-node", "accessModes", ["ReadWriteOnce"]),
    ):  # fmt: skip
        [entry] = yaml.safe_load((MANIFESTS / overlay / "kustomization.yaml").read_text())["patches"]
        found = patched(resources(MANIFESTS / overlay), entry["target"], yaml.safe_load(entry["patch"]))
        assert {r["metadata"]["name"] for r in found} == {"twotower-tables", "served-models"}
        for claim in found:
            assert claim["spec"][key] == value
            kubernetes_validate.validate(claim, version, strict=True)


def test_the_launcher_may_read_every_secret_that_its_configuration_names():
    folder = MANIFESTS / "object-store"
    there = resources(folder)
    [entry] = yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]
    [role] = patched(there, entry["target"], yaml.safe_load(entry["patch"]))
    [allowed] = [rule for rule in role["rules"] if rule["resources"] == ["secrets"]]
    providers = yaml.safe_load(named("ConfigMap", there)["kfp-launcher"]["data"]["providers"])
    # The names of backend/src/v2/config/s3.go and gcs.go.
    references = {scheme: providers[scheme]["default"]["credentials"]["secretRef"] for scheme in providers}
    assert set(references["s3"]) == {"secretName", "accessKeyKey", "secretKeyKey"}
    assert set(references["gs"]) == {"secretName", "tokenKey"}
    assert {r["secretName"] for r in references.values()} < set(allowed["resourceNames"])
    assert "mlpipeline-minio-artifact" in allowed["resourceNames"]
    kubernetes_validate.validate(role, NEWEST, strict=True)
    kubernetes_validate.validate(named("ConfigMap", there)["kfp-launcher"], NEWEST, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_pod_copies_the_tables_in_as_the_stages_user(version: str):
    [pod] = yaml.safe_load_all((MANIFESTS / "copy-tables.yaml").read_text())
    kubernetes_validate.validate(pod, version, strict=True)
    claims = named("PersistentVolumeClaim", resources(BASE))
    [volume] = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] in claims
    user = pod["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in (ROOT / "kubeflow" / "Dockerfile").read_text()
    config = yaml.safe_load((ROOT / "configs" / "movielens-100k.yaml").read_text())
    assert f"{pod['metadata']['name']}:{config['kubeflow']['tables']}" in (ROOT / "docs" / "kubeflow.md").read_text()


def test_pods_run_under_the_runtimes_seccomp_profile():
    for kind in ("Job", "Deployment"):
        for workload in named(kind, resources(BASE)).values():
            profile = workload["spec"]["template"]["spec"]["securityContext"]["seccompProfile"]
            assert profile == {"type": "RuntimeDefault"}


def test_tf_serving_waits_for_the_first_push_and_is_not_started_again():
    [container] = named("Deployment", resources(BASE))["serving"]["spec"]["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 30 * 86_400
    # Until then nothing else looks whether it lives.
    assert "livenessProbe" in container and probe["periodSeconds"] <= 10


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


def test_uv_is_the_same_everywhere_and_python_is_pinned_by_digest():
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "kubeflow" / "Dockerfile").read_text()
    [version] = re.findall(r"^UV_VERSION := (\S+)$", makefile, re.MULTILINE)
    assert set(re.findall(r"\buv==(\S+)", dockerfile)) == {version}
    assert "uv==$(UV_VERSION)" in makefile and not re.search(r"(^|[\s|])uv pip ", makefile, re.MULTILINE)
    # Every image comes by name from one place, where it can be replaced.
    named = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE))
    images = set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert {image for image in images if image.startswith("$")} == {"$PYTHON", "$BEAM"}
    assert images - {"$PYTHON", "$BEAM"} <= set(re.findall(r" AS (\S+)$", dockerfile, re.MULTILINE))
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", named["PYTHON"])


def test_the_image_takes_the_entry_point_and_the_environment_of_the_compiled_steps():
    text = (ROOT / "kubeflow" / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE))
    assert stages["runtime"] == "stage" and text.rstrip().endswith('ENTRYPOINT ["python", "-m", "kubeflow.entrypoint"]')
    assert "USER 10001:10001" in text
    # What starts Beam's workers must take the packages of the image, and not those of a new environment.
    worker = text.partition(" AS beam-worker\n")[2].partition("\nFROM ")[0]
    assert "\nENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1\n" in worker and '["/opt/apache/beam/boot"]' in worker
    pins = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^apache-beam==2\.73\.0 ", pins, re.MULTILINE) and "apache/beam_python3.11_sdk:2.73.0" in text
    assert re.search(r"^tensorflow==2\.20\.0 ", pins, re.MULTILINE) and '"tensorflow[and-cuda]==2.20.0"' in text
