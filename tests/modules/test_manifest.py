"""What a manifest remembers of a folder, against every way in which a file of it can be damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modules import manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "Split-train").mkdir(parents=True)
    (folder / "Split-train" / "data-00000.gz").write_bytes(b"0123456789")
    (folder / "schema.pbtxt").write_bytes(b"schema")
    manifest.write(str(tmp_path / "manifest.json"), manifest.of(str(folder)))
    return folder


def damage(folder: Path, *, thorough: bool = False) -> str:
    return manifest.damage(str(folder), str(folder.parent / "manifest.json"), thorough=thorough)


def test_a_folder_as_it_was_written_is_intact(folder: Path):
    assert set(manifest.of(str(folder))) == {"Split-train/data-00000.gz", "schema.pbtxt"}
    assert damage(folder) == damage(folder, thorough=True) == ""
    (folder / "more").write_text("what came later is of no interest")
    assert damage(folder, thorough=True) == ""


def test_damage_names_the_file(folder: Path):
    shard = folder / "Split-train" / "data-00000.gz"
    shard.write_bytes(b"0123")
    assert damage(folder) == f"{shard} has 4 of 10 bytes"
    shard.write_bytes(b"0123456780")
    assert damage(folder) == f"{shard} has other content than was written"
    shard.unlink()
    assert damage(folder) == f"{shard} is missing"
    shard.mkdir()
    assert str(shard) in damage(folder)


def test_a_copy_that_lost_its_times_is_intact(folder: Path):
    os.utime(folder / "schema.pbtxt", (0, 0))
    assert damage(folder) == ""


def test_a_bit_that_flipped_by_itself_is_found_by_a_thorough_look(folder: Path):
    path = folder / "schema.pbtxt"
    before = path.stat()
    path.write_bytes(b"Schema")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert damage(folder) == ""
    assert damage(folder, thorough=True) == f"{path} has other content than was written"


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b'{"a": {}}', b'{"a": 1}', b"\xff"])
def test_without_a_manifest_nothing_is_known(folder: Path, content: bytes | None):
    path = folder.parent / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    (folder / "schema.pbtxt").unlink()
    assert damage(folder, thorough=True) == ""
