"""The tables of a configuration as the judge reads them: the same ids and times that the pipeline would read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from modules.data import columns
from modules.data import tables as files
from modules.encodings.hash import Hash
from modules.encodings.text import Text
from modules.encodings.vocabulary import Vocabulary
from modules.errors import UserError
from pipeline.config import Config

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Tables:
    """What there is to recommend from."""

    interactions: pd.DataFrame
    """`user`, `item`, `timestamp`; the index is the row of `raw`. Only items of the catalogue."""
    items: pd.DataFrame
    """`item`, and as tokens in `content` what the configuration's text and category features say of it."""
    users: pd.DataFrame
    """`user` and its attributes."""
    raw: pa.Table
    """The interactions table as it is."""


def read(config: Config) -> Tables:
    """Reads the tables of a configuration.

    Raises:
        UserError: A file is missing or unreadable.
    """
    names = config.tables.interactions
    raw = _table("interactions", names.path)
    times = np.concatenate([columns.seconds(chunk)[0] for chunk in raw.column(names.timestamp).chunks])
    interactions = pd.DataFrame({"user": _ids(raw, names.user), "item": _ids(raw, names.item), "timestamp": times})
    items = _table("items", config.tables.items.path)
    catalogue = pd.DataFrame({"item": _ids(items, config.tables.items.id)})
    catalogue["content"] = _content(items, config)
    users = pd.DataFrame({"user": pd.Series(dtype=object)})
    if config.tables.users is not None:
        table = _table("users", config.tables.users.path)
        users = table.drop_columns([config.tables.users.id]).to_pandas()
        users.insert(0, "user", _ids(table, config.tables.users.id))
    known = interactions["item"].isin(catalogue["item"]) & interactions["user"].notna()
    if not known.any():
        raise UserError(f"tables.interactions: {names.path} has no row whose item is in {config.tables.items.path}")
    return Tables(interactions[known], catalogue, users, raw)


def _table(table: str, path: str) -> pa.Table:
    return pa.Table.from_batches(list(_batches(table, path)))


def _batches(table: str, path: str) -> Iterator[pa.RecordBatch]:
    for number, file in enumerate(files.files(table, path)):
        for part in files.parts(number, file):
            for _, batch in files.read(part, _header(file)):
                yield batch


def _header(file: str) -> list[str]:
    with files.open_file(file) as stream:
        if ".csv" in file.lower():
            return next(csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline="")), [])
        return pq.read_schema(stream).names


def _ids(table: pa.Table, column: str) -> list[str | None]:
    ids = [value for chunk in table.column(column).chunks for value in columns.ids(chunk)]
    return [None if value is None else value.decode() for value in ids]


def _content(items: pa.Table, config: Config) -> list[list[str]]:
    """Tokens of each item: the words of texts, and `column=value` of categories."""
    content: list[list[str]] = [[] for _ in range(items.num_rows)]
    for feature in config.features.candidate:
        if feature.column in (config.tables.interactions.item, config.tables.items.id):
            continue
        if not isinstance(feature, (Text, Vocabulary, Hash)):
            continue
        separator = None if isinstance(feature, Text) else feature.separator
        values = [cell for chunk in items.column(feature.column).chunks for cell in columns.lists(chunk, separator)]
        for tokens, cell in zip(content, values, strict=True):
            texts = [value.decode() for value in cell or []]
            tokens += _words(texts) if isinstance(feature, Text) else [f"{feature.column}={text}" for text in texts]
    return content


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in _WORD.findall(text.lower())]
