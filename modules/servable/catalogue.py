"""The embedded catalogue: every item with its vector, and its files beside the SavedModel."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf

from modules.encodings.features import Features
from modules.errors import UserError
from modules.retrieval.top_k import Partitions
from modules.retrieval.vectors import Vectors, parts
from modules.servable.contract import CANDIDATES, EXCLUDE, EXPLAIN, FILTER_PREFIX, ITEM_ID, SCORE
from modules.settings import Serving

CATALOGUE_PATH = os.path.join("assets.extra", "catalogue.parquet")
"""One row per item, in the order of the index: `row`, `item_id`, `vector` (fixed-size list of float32), `popularity`,
`returned` and `filterable` (structs with a field for each such column, of a string or a list of strings; left out where
there is no such column), `partition` (left out without a tree)."""
PARTITIONS_PATH = os.path.join("assets.extra", "partitions.parquet")
"""One row per partition: `partition` and `centroid` (fixed-size list of float32). Not there without a tree."""

_LIST_SEPARATOR = "|"
# Vectors do not repeat, so a dictionary of them only costs; their bytes compress a little when sorted by place.
_WRITTEN = {"compression": "zstd", "use_dictionary": ["item_id"]}


@dataclass(frozen=True)
class EmbeddedCatalogue:
    """What can be recommended, one row per item, with vectors, in the order of `by_popularity`."""

    item_ids: Sequence[str]
    vectors: Vectors
    """[C, D] float32 candidate embeddings."""
    popularity: np.ndarray
    """[C] float32 training interactions."""
    returned: Mapping[str, Sequence[str]]
    """Column → one string per row, for `serving.return_columns`."""
    filterable: Mapping[str, Sequence[Sequence[str]]]
    """Column → the values of each row, for `serving.filter_columns`."""

    def only(self, rows: Sequence[int] | np.ndarray) -> EmbeddedCatalogue:
        """Some of the rows, in this order."""
        return EmbeddedCatalogue(
            [self.item_ids[row] for row in rows],
            self.vectors[np.asarray(rows, np.int64)],
            self.popularity[rows],
            {column: [values[row] for row in rows] for column, values in self.returned.items()},
            {column: [values[row] for row in rows] for column, values in self.filterable.items()},
        )

    def followed_by(self, less_popular: EmbeddedCatalogue) -> EmbeddedCatalogue:
        """These rows, then others with the same columns."""
        return EmbeddedCatalogue(
            [*self.item_ids, *less_popular.item_ids],
            np.concatenate([self.vectors[:], less_popular.vectors[:]]),
            np.concatenate([self.popularity, less_popular.popularity]),
            {column: [*values, *less_popular.returned[column]] for column, values in self.returned.items()},
            {column: [*values, *less_popular.filterable[column]] for column, values in self.filterable.items()},
        )


def by_popularity(item_ids: pa.Array | pa.ChunkedArray, popularity: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The order that rows must have: the most popular item first, equally popular ones by id.

    Args:
        item_ids: [C] strings.
        popularity: [C] numbers.

    Returns:
        [C] int64 numbers of the items.
    """
    table = pa.table({"item_id": item_ids, "popularity": popularity})
    order = pc.sort_indices(table, sort_keys=[("popularity", "descending"), ("item_id", "ascending")])
    return order.to_numpy().astype(np.int64)


def check(catalogue: EmbeddedCatalogue, features: Features, serving: Serving) -> None:
    """Refuses what cannot be served.

    Raises:
        UserError: The catalogue is empty or smaller than an answer, an id comes twice, an id or a filter value has a
            line break, an embedding is not finite, or a column has the name of an input or output.
    """
    size = len(catalogue.item_ids)
    if not size:
        raise UserError("the catalogue is empty: the items table has no rows to recommend; check tables.items.path")
    if serving.k > size:
        raise UserError(f"serving.k is {serving.k} but the catalogue has {size} items; set it to {size} or less")
    seen: set[str] = set()
    for item_id in catalogue.item_ids:
        if item_id in seen:
            raise UserError(f"item {item_id!r} is twice in the catalogue; tables.items needs one row per item")
        if not item_id or "\n" in item_id or "\r" in item_id:
            raise UserError(f"item id {item_id!r} is empty or has a line break; correct it in tables.items")
        seen.add(item_id)
    broken = np.concatenate([~np.isfinite(part).all(axis=1) for _, part in parts(catalogue.vectors)]).nonzero()[0]
    if len(broken):
        raise UserError(
            f"the embedding of item {catalogue.item_ids[broken[0]]!r} is not finite ({len(broken)} of {size} items): "
            "training diverged; lower training.learning_rate"
        )
    for column in serving.return_columns:
        if column in (ITEM_ID, SCORE):
            raise UserError(f"serving.return_columns: {column!r} is an output of its own; remove it")
    for feature in features.query:
        if feature.column in (EXCLUDE, EXPLAIN, CANDIDATES) or feature.column.startswith(FILTER_PREFIX):
            raise UserError(f"features.query: {feature.column!r} is the name of another input; rename the column")
    for column in serving.filter_columns:
        values = {value for of_row in catalogue.filterable[column] for value in of_row if value}
        if not values:
            raise UserError(f"serving.filter_columns: no item has a value in {column!r}; remove it")
        for value in values:
            if "\n" in value or "\r" in value:
                raise UserError(f"serving.filter_columns: {column!r} has the value {value!r} with a line break")


def write(folder: str, catalogue: EmbeddedCatalogue, partitions: Partitions | None) -> None:
    """Writes the catalogue's files.

    Args:
        folder: The servable, local or remote.
        catalogue: In the order of the index.
        partitions: Of the index, if it has some.
    """
    if partitions is not None:
        numbers = pa.array(np.arange(len(partitions.centroids), dtype=np.int32))
        table = pa.table({"partition": numbers, "centroid": vector_column(partitions.centroids)})
        write_table(folder, PARTITIONS_PATH, table.schema, [table])
    schema = _rows(catalogue, partitions, 0, catalogue.vectors[:0]).schema
    groups = (_rows(catalogue, partitions, start, part) for start, part in parts(catalogue.vectors))
    write_table(folder, CATALOGUE_PATH, schema, groups)


def read(folder: str) -> tuple[EmbeddedCatalogue, Partitions | None]:
    """The catalogue of a servable, and the partitions of its index.

    Args:
        folder: The servable, local or remote.

    Raises:
        UserError: A file is missing or cannot be read.
    """
    table = read_table(folder, CATALOGUE_PATH)
    catalogue = EmbeddedCatalogue(
        table["item_id"].to_pylist(),
        matrix(table["vector"]),
        table["popularity"].to_numpy(),
        fields(table, "returned"),
        fields(table, "filterable"),
    )
    if "partition" not in table.column_names:
        return catalogue, None
    centroids = matrix(read_table(folder, PARTITIONS_PATH)["centroid"])
    return catalogue, Partitions(centroids, table["partition"].to_numpy())


def size(folder: str) -> int:
    """The number of items of a servable's catalogue file, whose rows are not read.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    return _open(folder, CATALOGUE_PATH).metadata.num_rows


def row_groups(folder: str, columns: Sequence[str], at_most: int | None = None) -> Iterator[tuple[int, pa.Table]]:
    """(First row, columns) of the catalogue file's row groups, one in memory at a time.

    Args:
        folder: The servable, local or remote.
        columns: Names of columns.
        at_most: So many groups, evenly from all of them; None for all.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    file = _open(folder, CATALOGUE_PATH)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.cumsum([0, *counts])
    chosen = min(len(counts), at_most or len(counts))
    for group in np.linspace(0, len(counts) - 1, chosen).round().astype(int).tolist():
        yield int(starts[group]), file.read_row_group(group, columns)


def values(example: tf.train.Example, column: str) -> list[str]:
    """A column's values as strings, whatever their type; 3.0 is "3"."""
    feature = example.features.feature[column]
    if feature.HasField("bytes_list"):
        return [value.decode("utf-8", "replace") for value in feature.bytes_list.value]
    if feature.HasField("int64_list"):
        return [str(value) for value in feature.int64_list.value]
    return [f"{value:.7g}" for value in feature.float_list.value]


def joined(values: Sequence[str]) -> str:
    """The values of one row as one output string."""
    return _LIST_SEPARATOR.join(values)


def _rows(catalogue: EmbeddedCatalogue, partitions: Partitions | None, start: int, vectors: np.ndarray) -> pa.Table:
    """Rows of the catalogue's file: those from `start` on that have these vectors."""
    rows = slice(start, start + len(vectors))
    columns: dict[str, pa.Array] = {
        "row": pa.array(np.arange(rows.start, rows.stop, dtype=np.int32)),
        "item_id": pa.array(catalogue.item_ids[rows], pa.string()),
        "vector": vector_column(vectors),
        "popularity": pa.array(catalogue.popularity[rows], pa.float32()),
    }
    if catalogue.returned:
        columns["returned"] = _struct({c: values[rows] for c, values in catalogue.returned.items()}, pa.string())
    if catalogue.filterable:
        kind = pa.list_(pa.string())
        columns["filterable"] = _struct({c: values[rows] for c, values in catalogue.filterable.items()}, kind)
    if partitions is not None:
        columns["partition"] = pa.array(partitions.of_row[rows], pa.int32())
    return pa.table(columns)


def _struct(columns: Mapping[str, Sequence[object]], kind: pa.DataType) -> pa.StructArray:
    return pa.StructArray.from_arrays([pa.array(values, kind) for values in columns.values()], list(columns))


def fields(table: pa.Table, name: str) -> dict[str, list]:
    """`returned` or `filterable` by column; empty where the catalogue has no such."""
    if name not in table.column_names:
        return {}
    column = table[name].combine_chunks()
    return {field.name: column.field(field.name).to_pylist() for field in column.type}


def vector_column(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """Vectors [N, D] as a column of lists of D."""
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of D numbers as [N, D]."""
    parts = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.zeros((0, column.type.list_size), np.float32)


def write_table(folder: str, name: str, schema: pa.Schema, row_groups: Iterable[pa.Table]) -> None:
    """Writes a table as a file of a servable, which is local or remote."""
    path = os.path.join(folder, name)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tempfile.TemporaryDirectory() as local:
        # Parquet seeks; an object store takes whole files.
        file = os.path.join(local, "table.parquet")
        with pq.ParquetWriter(file, schema, **_WRITTEN) as writer:
            for group in row_groups:
                writer.write_table(group)
        tf.io.gfile.copy(file, path, overwrite=True)


def read_table(folder: str, name: str) -> pa.Table:
    """A table that is a file of a servable.

    Raises:
        UserError: It is missing or cannot be read.
    """
    return _open(folder, name).read()


def _open(folder: str, name: str) -> pq.ParquetFile:
    path = os.path.join(folder, name)
    try:
        if "://" not in path:
            # A file of this machine is read as far as it is asked for.
            return pq.ParquetFile(pa.OSFile(path))
        with tf.io.gfile.GFile(path, "rb") as file:
            return pq.ParquetFile(pa.BufferReader(file.read()))
    except (tf.errors.OpError, OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0][:200]}); run the pipeline again") from None
