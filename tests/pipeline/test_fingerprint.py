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


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A package whose parts import each other in every way there is: entry → deep → deep.middle → deep.inner.leaf."""
    sources = {
        "entry": "from modules.deep import value\n",
        "deep/__init__": "from modules.deep import middle\nvalue = middle.value\n",
        "deep/middle": "def value():\n    from .inner import leaf\n    return leaf.value\n",
        "deep/beside": "value = 0\n",
        "deep/inner/__init__": "",
        "deep/inner/leaf": "import modules.other.thing as thing\nfrom ...plain import number\nvalue = 1\n",
        "other/__init__": "import numpy\n",
        "other/thing": "",
        "other/unread": "",
        "plain": "number = 1\n",
        "__init__": "",
    }
    for name, source in sources.items():
        path = tmp_path / "modules" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.setattr(fingerprint, "_ROOT", tmp_path)
    return tmp_path


def touch(path: Path) -> None:
    path.write_text(path.read_text() + "\n# changed\n")


def test_a_direct_and_an_indirect_import_count(project):
    before = fingerprint.code("modules.trainer")
    touch(project / "modules/towers/two_tower.py")
    direct = fingerprint.code("modules.trainer")
    touch(project / "modules/encodings/base.py")
    assert len({before, direct, fingerprint.code("modules.trainer")}) == 3


@pytest.mark.parametrize(
    "file",
    ["entry", "deep/__init__", "deep/middle", "deep/inner/__init__", "deep/inner/leaf", "other/__init__", "other/thing",
     "plain", "__init__"],
)  # fmt: skip
def test_every_file_that_importing_a_package_runs_counts(packages, file):
    before = fingerprint.code("modules.entry")
    touch(packages / f"modules/{file}.py")
    assert fingerprint.code("modules.entry") != before


@pytest.mark.parametrize("file", ["deep/beside", "other/unread"])
def test_a_package_does_not_count_whole(packages, file):
    before = fingerprint.code("modules.entry")
    touch(packages / f"modules/{file}.py")
    assert fingerprint.code("modules.entry") == before


def test_a_package_can_be_asked_for_itself(packages):
    before = fingerprint.code("modules.deep")
    touch(packages / "modules/deep/inner/leaf.py")
    assert fingerprint.code("modules.deep") != before


@pytest.mark.parametrize("name", ["modules.gone", "modules.deep.gone", "modules.plain.number", "numpy"])
def test_a_name_without_a_file_is_refused_instead_of_hashed_as_nothing(packages, name):
    with pytest.raises(ValueError, match="is no module"):
        fingerprint.code(name)


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
