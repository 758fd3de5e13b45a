"""A stage's code fingerprint changes with every file it imports, and with no other."""

import shutil
from pathlib import Path

import pytest

from pipeline import fingerprint


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the code, to be edited."""
    for package in ("components", "modules"):
        shutil.copytree(fingerprint._ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "_ROOT", tmp_path)
    return tmp_path


def touch(path: Path) -> None:
    path.write_text(path.read_text() + "\n# changed\n")


def test_a_direct_and_an_indirect_import_count(project):
    before = fingerprint.code("modules.trainer")
    touch(project / "modules/training/loop.py")
    direct = fingerprint.code("modules.trainer")
    touch(project / "modules/features.py")
    assert len({before, direct, fingerprint.code("modules.trainer")}) == 3


def test_what_is_not_imported_does_not_count(project):
    before = fingerprint.code("modules.preprocessing")
    touch(project / "modules/towers/two_tower.py")
    touch(project / "modules/evaluation.py")
    assert fingerprint.code("modules.preprocessing") == before


def test_the_fingerprint_does_not_depend_on_where_the_code_is(project):
    assert fingerprint.code("modules.trainer") == fingerprint.code("modules.trainer")
    there = fingerprint.code("modules.preprocessing")
    fingerprint._ROOT = Path(__file__).resolve().parents[2]
    assert fingerprint.code("modules.preprocessing") == there
