"""Imports point one way, folders depend on each other without circles, and files stay short: read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What each may import of this project. Commands of kubeflow and serving are found by the pipeline, not imported.
ALLOWED = {
    "modules": {"modules"},
    "components": {"modules", "components"},
    "pipeline": {"modules", "components", "pipeline"},
    "kubeflow": {"modules", "components", "pipeline", "kubeflow"},
    # Stands alone beside a SavedModel: a client needs nothing of the pipeline.
    "serving": {"serving"},
    "benchmarks": {"modules", "components", "pipeline", "serving", "benchmarks"},
}
LINES = 500
# Light by contract: a configuration is read without waiting for these.
HEAVY = {"tensorflow", "tensorflow_transform", "tensorflow_recommenders", "tfx", "apache_beam", "tf_keras", "scann"}


def files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path, whole: bool = True) -> Iterator[str]:
    """Dotted names that a file imports; only those at its top where `whole` is false."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree) if whole else tree.body:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """What a dotted name belongs to: a folder, or a file that lies beside folders and stands for itself."""
    place, parts = ROOT, name.split(".")
    for part in parts:
        if (place / f"{part}.py").is_file() or not (place / part).is_dir():
            break
        place /= part
    else:
        part = "__init__"
    has_folders = any((inner / "__init__.py").exists() for inner in place.iterdir())
    return (place / part if has_folders else place).relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str):
    wrong = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files(package)
        for name in imports(path)
        if name.partition(".")[0] in ALLOWED and name.partition(".")[0] not in ALLOWED[package]
    }
    assert not wrong


def test_no_folders_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for package in ALLOWED:
        for path in files(package):
            own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for name in imports(path):
                if name.partition(".")[0] in ALLOWED and room(name) != own:
                    graph.setdefault(own, set()).add(room(name))
    remaining = dict(graph)
    while True:
        free = [folder for folder, needs in remaining.items() if not needs & remaining.keys()]
        if not free:
            break
        for folder in free:
            del remaining[folder]
    circle = {folder: sorted(needs & remaining.keys()) for folder, needs in remaining.items()}
    assert not circle, f"folders that need each other: {circle}"


@pytest.mark.parametrize("folder", ["modules/settings", "modules/encodings", "modules/data", "serving"])
def test_what_is_read_before_anything_runs_imports_nothing_heavy(folder: str):
    exempt = {ROOT / "modules/encodings/values.py", *files("serving/development_server")}
    wrong = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files(folder)
        if path not in exempt
        for name in imports(path, whole=False)
        if name.partition(".")[0] in HEAVY
    }
    assert not wrong


def test_a_file_has_a_first_sentence_and_is_short_or_says_why_it_is_not():
    for package in ALLOWED:
        for path in files(package):
            text = path.read_text(encoding="utf-8")
            docstring = ast.get_docstring(ast.parse(text))
            assert docstring, f"{path} says not what it is for"
            assert len(text.splitlines()) <= LINES or "One file" in docstring, f"{path} has over {LINES} lines"
