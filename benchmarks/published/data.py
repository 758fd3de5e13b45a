"""The data sets that the papers report on: fetched by commit and checksum, or taken from a folder, and laid out.

Each is two files of a public repository: a line `user item item …` a user, in the order of time and without times, and
the attributes of each item.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from modules.errors import UserError

_URL = "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/2a81540ae18615d88ef88227b0c066e5b74781e5/data/{}"
_SECONDS = 60.0


@dataclass(frozen=True)
class DataSet:
    """Two files and what is in them."""

    sequences: str
    """Name of the file of sequences."""
    sequences_sha256: str
    attributes: str
    attributes_sha256: str
    users: int
    items: int


DATA_SETS = {
    "lastfm": DataSet(
        "LastFM.txt", "9ded486adb5b0fe9dc761950afa0a9a05e93ff018992e0c52bf11afec529f802",
        "LastFM_item2attributes.json", "a4ccd678dc9ff6d43fe5073f491db5c9b02eb98dfa4f8c0382913a784be217ef", 1_090, 3_646,
    ),
    "beauty": DataSet(
        "Beauty.txt", "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
        "Beauty_item2attributes.json", "129e40f67486f6877eff0f5318cfa8530ee8ac23d8b0d1de04e1bb7a2ba0b2d4",
        22_363, 12_101,
    ),
}  # fmt: skip


def lay_out(name: str, folder: Path, source: Path | None = None) -> None:
    """Writes `interactions.parquet` and `items.parquet`; the time of an interaction is its place in the sequence.

    Args:
        name: Of `DATA_SETS`.
        folder: Where to.
        source: A folder that has the files; None fetches them.

    Raises:
        UserError: A file cannot be had, or is not the one that the papers used.
    """
    known = DATA_SETS[name]
    sequences = read_sequences(_content(known.sequences, known.sequences_sha256, source))
    attributes = json.loads(_content(known.attributes, known.attributes_sha256, source))
    items = sorted({item for sequence in sequences.values() for item in sequence}, key=int)
    if (len(sequences), len(items)) != (known.users, known.items):
        raise UserError(f"{name}: {len(sequences):,} users and {len(items):,} items; the papers have others")
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(interactions(sequences), folder / "interactions.parquet")
    # Each attribute once, in the order of the file.
    of_items = [list(dict.fromkeys(map(str, attributes.get(item, [])))) for item in items]
    table = pa.table({"item_id": items, "attributes": pa.array(of_items, pa.list_(pa.string()))})
    pq.write_table(table, folder / "items.parquet")


def read_sequences(content: bytes) -> dict[str, list[str]]:
    """User → items, oldest first."""
    lines = (line.split() for line in content.decode().splitlines())
    return {user: items for user, *items in lines}


def interactions(sequences: dict[str, list[str]]) -> pa.Table:
    """A row an interaction."""
    rows = [(user, item, place) for user, items in sequences.items() for place, item in enumerate(items)]
    users, items, times = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": items, "timestamp": pa.array(times, pa.int64())})


def _content(name: str, sha256: str, source: Path | None) -> bytes:
    where = str(source / name) if source else _URL.format(name)
    try:
        if source:
            content = (source / name).read_bytes()
        else:
            with urllib.request.urlopen(where, timeout=_SECONDS) as response:
                content = response.read()
    except OSError as error:
        # urllib keeps it elsewhere than the system's own errors.
        reason = getattr(error, "reason", None) or error.strerror
        raise UserError(f"{where}: {reason}; give a folder that has {name} with --from") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{os.fspath(where)} is torn or another file than the papers used (sha256)")
    return content
