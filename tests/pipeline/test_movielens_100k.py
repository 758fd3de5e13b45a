"""The real MovieLens-100K: both layouts give the same tables, and nothing torn is ever taken for data."""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from modules.errors import UserError
from pipeline.datasets import movielens_100k

_NAMES = ("interactions", "items", "users")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that carries RecBole's copy, as pip brings it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "recbole==1.2.1"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no package index in reach")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def recbole_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as members:
        folder = "recbole/dataset_example/ml-100k/"
        return {name: members.read(folder + name) for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user")}


@pytest.fixture(scope="session")
def recbole(recbole_files: dict[str, bytes]) -> movielens_100k.Tables:
    return movielens_100k.parse_recbole(recbole_files)


@pytest.fixture(scope="session")
def grouplens_files(recbole_files: dict[str, bytes]) -> dict[str, bytes]:
    """The original archive's files as its README describes them, written from RecBole's with independent code."""
    genres = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
              "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
              "Western"]  # fmt: skip
    lines = [line.split("\t") for line in recbole_files["ml-100k.item"].decode().splitlines()[1:]]
    items = []
    for item, title, year, classes in lines:
        flags = "|".join(str(int(genre in classes.split())) for genre in genres)
        if item == "267":
            items.append(f"267|unknown||||{flags}")
            continue
        # Some titles of the original carry stray blanks.
        blank = " " if item == "1201" else ""
        items.append(f"{item}|{title} ({year}){blank}|01-Jan-{year}||http://us.imdb.com/M/title-exact?{item}|{flags}")
    body = recbole_files["ml-100k.user"].decode().split("\n", 1)[1]
    return {
        "u.data": recbole_files["ml-100k.inter"].split(b"\n", 1)[1],
        "u.item": ("\n".join(items) + "\n\n").encode("latin-1"),
        "u.user": body.replace("\t", "|").encode("latin-1"),
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which a real HTTP server offers it."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as offered:
        threading.Thread(target=offered.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{offered.server_port}"
        offered.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_grouplens_and_recbole_layouts_give_the_same_tables(
    grouplens_files: dict[str, bytes], recbole: movielens_100k.Tables
) -> None:
    grouplens = movielens_100k.parse_grouplens(grouplens_files)
    for name in _NAMES:
        assert grouplens.by_name()[name].equals(recbole.by_name()[name]), name


def test_known_facts(recbole: movielens_100k.Tables) -> None:
    items = {row["item_id"]: row for row in recbole.items.to_pylist()}
    users = {row["user_id"]: row for row in recbole.users.to_pylist()}
    assert (len(recbole.interactions), len(items), len(users)) == (100_000, 1_682, 943)
    assert recbole.interactions.slice(0, 1).to_pylist() == [
        {"user_id": "196", "item_id": "242", "rating": 3.0, "timestamp": 881250949}
    ]
    toy_story = {
        "item_id": "1",
        "title": "Toy Story (1995)",
        "genres": ["Animation", "Children's", "Comedy"],
        "release_year": 1995,
    }
    assert items["1"] == toy_story
    assert items["267"] == {"item_id": "267", "title": "unknown", "genres": ["unknown"], "release_year": None}
    assert items["1412"]["title"] == "Land Before Time III: The Time of the Great Giving (1995) (V)"
    assert items["1412"]["release_year"] == 1995
    assert items["543"]["title"] == "Misérables, Les (1995)"
    assert items["127"]["title"] == "Godfather, The (1972)"
    assert users["1"] == {"user_id": "1", "age": 24, "gender": "M", "occupation": "technician", "zip_code": "85711"}
    assert users["74"]["zip_code"] == "T8H1N"
    assert {genre for row in items.values() for genre in row["genres"]} == set(movielens_100k.GENRES)
    assert all(re.search(r"\(\d{4}\)", row["title"]) for key, row in items.items() if key != "267")
    ratings = recbole.interactions["rating"].to_pylist()
    assert [ratings.count(value) for value in (1.0, 2.0, 3.0, 4.0, 5.0)] == [6110, 11370, 27145, 34174, 21201]


def test_prepare_lays_out_the_real_data_once(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recbole: movielens_100k.Tables
) -> None:
    directory = tmp_path / "data"
    first = movielens_100k.prepare(str(directory), sources=("recbole",))
    assert (first.source, first.interactions, first.items, first.users) == ("recbole", 100_000, 1_682, 943)
    assert "research" in first.licence and "redistributed" in first.licence and "Harper" in first.licence
    assert sorted(path.name for path in directory.iterdir()) == [f"{name}.parquet" for name in _NAMES]
    for name in _NAMES:
        assert pq.read_table(directory / f"{name}.parquet").equals(recbole.by_name()[name])

    # Complete tables are reused with no source in reach; a torn one is not taken for data, and is fetched again.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert movielens_100k.prepare(str(directory), sources=("recbole",)).source is None
    table = directory / "interactions.parquet"
    table.write_bytes(table.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"out of reach.*recbole"):
        movielens_100k.prepare(str(directory), sources=("recbole",))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert movielens_100k.prepare(str(directory), sources=("recbole",)).source == "recbole"
    assert pq.read_table(table).equals(recbole.interactions)


def test_grouplens_archive_is_taken_only_with_its_checksum(
    grouplens_files: dict[str, bytes],
    recbole: movielens_100k.Tables,
    server: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, address = server
    archive = folder / "ml-100k.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        for name, content in grouplens_files.items():
            members.writestr(f"ml-100k/{name}", content)
    monkeypatch.setattr(movielens_100k, "_GROUPLENS_URL", f"{address}/ml-100k.zip")

    # Not the published archive: refused, though it can be parsed.
    with pytest.raises(UserError, match=r"grouplens: ml-100k\.zip is torn or changed"):
        movielens_100k.prepare(str(tmp_path / "data"), sources=("grouplens",))
    assert list((tmp_path / "data").iterdir()) == []

    monkeypatch.setattr(movielens_100k, "_GROUPLENS_MD5", _md5(archive))
    summary = movielens_100k.prepare(str(tmp_path / "data"), sources=("grouplens", "recbole"))
    assert summary.source == "grouplens"
    assert pq.read_table(tmp_path / "data" / "items.parquet").equals(recbole.items)

    # A download that ends early is refused as well.
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(UserError, match="torn or changed"):
        movielens_100k.prepare(str(tmp_path / "torn"), sources=("grouplens",))


def test_no_source_in_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens_100k, "_GROUPLENS_URL", "http://127.0.0.1:9/ml-100k.zip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"out of reach \(grouplens: .*; recbole: .*\)") as caught:
        movielens_100k.prepare(str(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write MovieLens-100K to .*file"):
        movielens_100k.prepare(str(tmp_path / "file" / "data"), sources=())


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
