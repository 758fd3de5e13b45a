"""MovieLens-100K: fetches the real data set from one of two places and lays it out as three Parquet tables."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modules.errors import UserError

LICENCE = (
    "MovieLens-100K is © GroupLens Research, University of Minnesota. It may be used for research; it may not be "
    "redistributed, used commercially without GroupLens's permission, or shown as endorsed by them. Publications cite: "
    "F. M. Harper and J. A. Konstan (2015), The MovieLens Datasets: History and Context, ACM Transactions on "
    "Interactive Intelligent Systems 5(4), article 19, https://doi.org/10.1145/2827872. "
    "Full terms: https://files.grouplens.org/datasets/movielens/ml-100k-README.txt"
)

INTERACTIONS = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("rating", pa.float32()), ("timestamp", pa.int64())]
)
"""In the order of the original u.data."""
ITEMS = pa.schema(
    [("item_id", pa.string()), ("title", pa.string()), ("genres", pa.list_(pa.string())), ("release_year", pa.int64())]
)
USERS = pa.schema(
    [
        ("user_id", pa.string()),
        ("age", pa.int64()),
        ("gender", pa.string()),
        ("occupation", pa.string()),
        ("zip_code", pa.string()),
    ]
)

_SCHEMAS = {"interactions": INTERACTIONS, "items": ITEMS, "users": USERS}
_ROWS = {"interactions": 100_000, "items": 1_682, "users": 943}

_GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
# As published by GroupLens beside the archive (ml-100k.zip.md5).
_GROUPLENS_MD5 = "0e33842e24a9c977be4e0107933c0723"
_CONNECT_SECONDS = 5.0
_RECBOLE = "recbole==1.2.1"
_RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"

# The order of the 19 flags at the end of a u.item row (u.genre).
GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
          "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
          "Western")  # fmt: skip
# Item 267 is called "unknown" in u.item, and title and year alike "unkonwn" in RecBole's copy.
_RECBOLE_UNKNOWN = "unkonwn"


@dataclass(frozen=True)
class Tables:
    """The three canonical tables in memory."""

    interactions: pa.Table
    items: pa.Table
    users: pa.Table

    def by_name(self) -> dict[str, pa.Table]:
        return {"interactions": self.interactions, "items": self.items, "users": self.users}


@dataclass(frozen=True)
class Summary:
    """What `prepare` left in the directory."""

    directory: str
    source: str | None
    """grouplens or recbole; None when the tables were there already."""
    interactions: int
    items: int
    users: int
    licence: str = LICENCE


def prepare(directory: str, sources: Sequence[str] = ("grouplens", "recbole")) -> Summary:
    """Makes sure that the directory holds interactions.parquet, items.parquet and users.parquet, complete.

    Args:
        directory: Created if need be. Complete tables in it are kept as they are; other files are not touched.
        sources: Where to look, in this order: `grouplens` (the original archive), `recbole` (the same data inside a
            package that pip can fetch).

    Raises:
        UserError: No source could be reached or held the right data, or the directory cannot be written.
    """
    if all(_is_complete(directory, name) for name in _ROWS):
        return _summary(directory, None)
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".movielens-", dir=directory) as work:
            source, tables = _fetch(Path(work), sources)
            for name, table in tables.by_name().items():
                pq.write_table(table, Path(work) / f"{name}.parquet")
            for name in _ROWS:
                os.replace(Path(work) / f"{name}.parquet", Path(directory) / f"{name}.parquet")
    except OSError as error:
        raise UserError(
            f"cannot write MovieLens-100K to {directory}: {error.strerror or error}; give a folder that can be written"
        ) from None
    return _summary(directory, source)


def _summary(directory: str, source: str | None) -> Summary:
    return Summary(directory, source, _ROWS["interactions"], _ROWS["items"], _ROWS["users"])


def parse_grouplens(files: Mapping[str, bytes]) -> Tables:
    """Reads GroupLens's own layout.

    Args:
        files: `u.data` (tab-separated), `u.item` (`|`-separated with 19 genre flags) and `u.user` (`|`-separated), all
            in Latin-1.
    """
    items = []
    for row in _rows(files["u.item"], "|", "latin-1"):
        genres = [genre for genre, flag in zip(GENRES, row[5:], strict=True) if flag == "1"]
        items.append(_item(row[0], row[1], genres))
    return _tables(_rows(files["u.data"], "\t", "latin-1"), items, _rows(files["u.user"], "|", "latin-1"))


def parse_recbole(files: Mapping[str, bytes]) -> Tables:
    """Reads RecBole's layout: tab-separated UTF-8 with a line of typed names, the year cut off from the title.

    Args:
        files: `ml-100k.inter`, `ml-100k.item` and `ml-100k.user`.
    """
    items = []
    for item_id, title, year, genres in _rows(files["ml-100k.item"], "\t", "utf-8")[1:]:
        # The last brackets of a title are its "year", for item 1412 the V of "… (1995) (V)".
        whole = "unknown" if title == _RECBOLE_UNKNOWN else f"{title} ({year})"
        items.append(_item(item_id, whole, genres.split()))
    interactions = _rows(files["ml-100k.inter"], "\t", "utf-8")[1:]
    return _tables(interactions, items, _rows(files["ml-100k.user"], "\t", "utf-8")[1:])


def _rows(content: bytes, separator: str, encoding: str) -> list[list[str]]:
    return [line.split(separator) for line in content.decode(encoding).split("\n") if line]


def _item(item_id: str, title: str, genres: list[str]) -> dict[str, Any]:
    title = " ".join(title.split())
    years = re.findall(r"\((\d{4})\)", title)
    return {
        "item_id": item_id,
        "title": title,
        "genres": sorted(genres, key=GENRES.index),
        "release_year": int(years[-1]) if years else None,
    }


def _tables(interactions: list[list[str]], items: list[dict[str, Any]], users: list[list[str]]) -> Tables:
    user, item, rating, timestamp = zip(*interactions, strict=True)
    ids, ages, genders, occupations, zip_codes = zip(*users, strict=True)
    return Tables(
        interactions=pa.table([user, item, map(float, rating), map(int, timestamp)], schema=INTERACTIONS),
        items=pa.Table.from_pylist(items, schema=ITEMS),
        users=pa.table([ids, map(int, ages), genders, occupations, zip_codes], schema=USERS),
    )


def _is_complete(directory: str, name: str) -> bool:
    """Whether a table is whole: a torn Parquet file has no footer, another data set has other columns or rows."""
    try:
        with pq.ParquetFile(Path(directory) / f"{name}.parquet") as file:
            return file.metadata.num_rows == _ROWS[name] and file.schema_arrow.equals(_SCHEMAS[name])
    except (OSError, pa.ArrowException):
        return False


class _UnavailableError(Exception):
    """A source that cannot be reached or does not hold the data it should; the message says why."""


def _fetch(work: Path, sources: Sequence[str]) -> tuple[str, Tables]:
    failures = []
    for source in sources:
        if source not in _SOURCES:
            raise UserError(f"unknown source {source!r} of MovieLens-100K; known are {', '.join(_SOURCES)}")
        try:
            tables = _SOURCES[source](work)
            for name, table in tables.by_name().items():
                if table.num_rows != _ROWS[name]:
                    raise _UnavailableError(f"{table.num_rows} {name} instead of {_ROWS[name]}")
            return source, tables
        except _UnavailableError as error:
            failures.append(f"{source}: {error}")
    raise UserError(
        f"MovieLens-100K is out of reach ({'; '.join(failures)}); connect to the internet, or point pip at a package "
        "index, and run again"
    )


def _from_grouplens(work: Path) -> Tables:
    archive = work / "ml-100k.zip"
    try:
        with _open(_GROUPLENS_URL) as response, open(archive, "wb") as file:
            shutil.copyfileobj(response, file)
    # An HTTP body that ends early is an HTTPException or a ValueError, not an OSError.
    except Exception as error:
        raise _UnavailableError(" ".join(str(error).split()) or type(error).__name__) from None
    _verify(archive, "md5", _GROUPLENS_MD5)
    return parse_grouplens(_unzip(archive, "ml-100k/", ("u.data", "u.item", "u.user")))


def _from_recbole(work: Path) -> Tables:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(work), _RECBOLE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("recbole-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise _UnavailableError(f"pip download {_RECBOLE} failed ({reason})")
    _verify(wheels[0], "sha256", _RECBOLE_SHA256)
    names = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
    return parse_recbole(_unzip(wheels[0], "recbole/dataset_example/ml-100k/", names))


_SOURCES: dict[str, Callable[[Path], Tables]] = {"grouplens": _from_grouplens, "recbole": _from_recbole}


def _open(url: str) -> Any:
    """Opens a URL within `_CONNECT_SECONDS`, name resolution included, for which urllib knows no time limit."""
    result: dict[str, Any] = {}

    def connect() -> None:
        try:
            result["response"] = urllib.request.urlopen(url, timeout=_CONNECT_SECONDS)
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    if "response" in result:
        return result["response"]
    raise result.get("error") or TimeoutError(f"no answer within {_CONNECT_SECONDS:g} s")


def _verify(path: Path, algorithm: str, expected: str) -> None:
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != expected:
        raise _UnavailableError(f"{path.name} is torn or changed ({algorithm} {actual}, expected {expected})")


def _unzip(archive: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as members:
        return {name: members.read(folder + name) for name in names}
