"""What a page knows of a version before it asks: titles, filter values and known users, which no REST interface serves.

Read from the files beside the SavedModel (docs/serving.md), bounded so that the page stays a file for a browser.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.page.bounds import Bounds
from serving.page.errors import PageError

_DESCRIPTION = os.path.join("assets.extra", "servable.json")
_CATALOGUE = os.path.join("assets.extra", "catalogue.parquet")
_USERS = os.path.join("assets.extra", "users.parquet")
_COLUMNS = b"twotower.columns"
"""Of the users' file: what the tables call a user's id and the time of an interaction."""
_TITLE = "title"
_HISTORY_AGE, _TIMESTAMP = "history_age", "timestamp"
"""Encodings of features that the page treats in a way of their own."""
# More are not looked through by a person.
_MAX_FILTER_VALUES, _MAX_SUGGESTIONS = 1000, 50


def newest(base_path: str) -> str:
    """The newest version's folder.

    Args:
        base_path: The folder with the versions, local or remote.

    Raises:
        PageError: There is none.
    """
    names = _listed(base_path)
    versions = sorted((name for name in names if name.isascii() and name.isdigit()), key=int)
    if not versions:
        raise PageError(f"{base_path} has no version; push a model first with `twotower run`")
    return os.path.join(base_path, versions[-1])


def contents(folder: str, model: str, bounds: Bounds) -> dict[str, Any]:
    """What the page of a version needs, as JSON has it.

    Args:
        folder: The version, local or remote.
        model: Its name in requests.
        bounds: Of what is taken.

    Raises:
        PageError: The version does not come from this pipeline, or a file of it cannot be read.
    """
    path = os.path.join(folder, _DESCRIPTION)
    if not _exists(path):
        raise PageError(f"{folder} has no {_DESCRIPTION}; there is a page for versions of this pipeline only")
    try:
        contract = json.loads(_bytes(path))
        returned = contract["return_columns"]
        title = _TITLE if _TITLE in returned else next(iter(returned), None)
        filters = list(contract["filter_columns"])
        features = {f["column"]: f["encoding"] for f in contract["embedding"]["features"]["query"]}
        users, rows = _users(folder, bounds.users if contract.get("known_users") else 0)
        items, values, shown = _items(folder, title, filters, bounds.items, rows)
        users["history"] = [np.searchsorted(shown, history).tolist() for history in users["history"]]
        columns = users.pop("columns")
        return {
            "model": model,
            "version": os.path.basename(folder.rstrip("/")),
            "features": list(features),
            "history": contract["history_column"],
            "age": _first(features, _HISTORY_AGE),
            "time": columns.get("timestamp") or _first(features, _TIMESTAMP),
            "user": columns.get("user"),
            "title": title,
            "catalogue_size": contract["catalogue_size"],
            "known_users": contract.get("known_users", 0),
            "items": items,
            "filters": values,
            "users": users,
        }
    except (KeyError, TypeError, AttributeError, ValueError, OSError, pa.ArrowException) as error:
        raise PageError(f"{folder}: no page can be made of the files in assets.extra: {_in_short(error)}") from None


def _first(features: Mapping[str, str], encoding: str) -> str | None:
    """The column that has an encoding."""
    return next((column for column, its in features.items() if its == encoding), None)


def _items(
    folder: str, title: str | None, filters: list[str], bound: int, rows: np.ndarray
) -> tuple[dict[str, Any], dict[str, list[str]], np.ndarray]:
    """Columns of the items that are shown, the values of each filter column, and the rows that are shown.

    An item's filter values are positions in the latter.
    """
    wanted = ["item_id", *([f"returned.{title}"] if title else []), *(f"filterable.{column}" for column in filters)]
    table = _table(os.path.join(folder, _CATALOGUE), wanted)
    # The rows follow popularity.
    shown = np.union1d(np.arange(min(bound, table.num_rows)), rows).astype(np.int64)
    chosen = table.take(pa.array(shown))
    items: dict[str, Any] = {"id": chosen["item_id"].to_pylist()}
    items["title"] = _field(chosen, "returned", title).to_pylist() if title else []
    values: dict[str, list[str]] = {}
    for column in filters:
        values[column] = _frequent(_field(table, "filterable", column), _MAX_FILTER_VALUES)
        place = {value: number for number, value in enumerate(values[column])}
        of_items = _field(chosen, "filterable", column).to_pylist()
        items[column] = [[place[value] for value in of_item or () if value in place] for of_item in of_items]
    return items, values, shown


def _users(folder: str, bound: int) -> tuple[dict[str, Any], np.ndarray]:
    """Columns of the users that are shown, histories as rows of the catalogue; and all rows in these."""
    path = os.path.join(folder, _USERS)
    nobody: dict[str, Any] = {"id": [], "history": [], "newest": [], "features": {}, "suggestions": {}, "columns": {}}
    if not _exists(path):
        return nobody, np.empty(0, np.int64)
    # With a bound of 0 nobody is shown, but what the columns are called is no secret.
    table = _table(path)
    chosen = table.slice(0, bound)
    features = [field.name for field in table.schema.field("features").type] if "features" in table.column_names else []
    histories = [np.array(history or [], np.int64) for history in chosen["history"].to_pylist()]
    users = {
        "id": chosen["user_id"].to_pylist(),
        "history": histories,
        "newest": chosen["newest"].to_pylist(),
        "features": {name: _finite(_field(chosen, "features", name).to_pylist()) for name in features},
        "suggestions": {
            name: _frequent(values, _MAX_SUGGESTIONS)
            for name in features
            if not pa.types.is_floating((values := _field(table, "features", name)).type)
        },
        "columns": json.loads(table.schema.metadata[_COLUMNS]),
    }
    return users, np.concatenate([np.empty(0, np.int64), *histories])


def _frequent(values: pa.ChunkedArray, most: int) -> list[str]:
    """Different values of a column of texts or lists of texts, the most frequent first."""
    flat = pc.list_flatten(values) if pa.types.is_list(values.type) else values
    counted = pc.value_counts(flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat)
    table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
    order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("value", "ascending")])
    return [value for value in table["value"].take(order).to_pylist() if value][:most]


def _field(table: pa.Table, struct: str, name: str) -> pa.ChunkedArray:
    return pc.struct_field(table[struct], name)


def _finite(values: list[Any]) -> list[Any]:
    """JSON has no NaN; None is missing as well."""
    return [None if isinstance(value, float) and not np.isfinite(value) else value for value in values]


def _table(path: str, columns: list[str] | None = None) -> pa.Table:
    source = pa.BufferReader(_bytes(path)) if "://" in path else path
    return pq.ParquetFile(source).read(columns=columns)


def _exists(path: str) -> bool:
    if "://" not in path:
        return os.path.isfile(path)
    import tensorflow as tf

    return tf.io.gfile.exists(path)


def _bytes(path: str) -> bytes:
    if "://" not in path:
        with open(path, "rb") as file:
            return file.read()
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise OSError(error.message) from None


def _listed(folder: str) -> list[str]:
    """Names in a folder; none where there is no such folder."""
    if "://" not in folder:
        return os.listdir(folder) if os.path.isdir(folder) else []
    import tensorflow as tf

    return [name.rstrip("/") for name in tf.io.gfile.listdir(folder)] if tf.io.gfile.isdir(folder) else []


def _in_short(error: Exception) -> str:
    words = f"no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(words.split())[:200] or type(error).__name__


def as_json(tree: Mapping[str, Any]) -> str:
    """JSON that may stand inside of a page: no text of a table can end the element that it is in."""
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
