"""Adds items to a pushed servable and removes others: a new version in seconds, nothing trained again.

New items get vectors from the servable's own candidate tower and go to the nearest partition; they become the least
popular rows. Imports no TFX, which takes longer to load than an update to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from modules.data import columns, examples, rows
from modules.data.examples import Value
from modules.data.tables import Column, Plan
from modules.encodings.features import Features
from modules.errors import UserError
from modules.nearest import meant
from modules.retrieval.top_k import TopK
from modules.retrieval.tuning import SAMPLING_TOLERANCE, recall
from modules.servable import catalogue as catalogues
from modules.servable.catalogue import EmbeddedCatalogue
from modules.servable.contract import QUERY_EMBEDDING
from modules.servable.embedding import candidate_requests
from modules.servable.new_version import Opened, Updated, opened
from modules.settings import Index, Serving

_ADD = "--add"
_BATCH = 512


class Update(Updated):
    """An update of items that was pushed."""

    added: int
    removed: int
    catalogue_size: int
    recall: float
    """Share of the exact best that the updated index finds for the warm-up requests."""
    recall_k: int


@dataclass(frozen=True)
class NewItems:
    """Rows of an items table, as the pipeline's examples have them."""

    examples: Mapping[str, bytes]
    """Item id → serialized tf.Example with candidate features and the columns of an answer."""

    @classmethod
    def read(cls, path: str, id_column: str, plan: Plan) -> NewItems:
        """Reads a table.

        Args:
            path: Its file or files.
            id_column: The table's column of ids.
            plan: Which columns to take, made for this table.

        Raises:
            UserError: A file cannot be read, a row has no id or one that came before, or a value has the wrong type.
        """
        wanted: list[Column] = [*plan.items, *plan.returned]
        by_id: dict[str, bytes] = {}
        for file, batch in rows.batches("items", path, [id_column, *wanted], _ADD):
            for item_id, example in _examples(batch, id_column, wanted, file):
                if item_id in by_id:
                    raise UserError(f"{_ADD}: {file}: item {item_id!r} is there twice; keep one of its rows")
                by_id[item_id] = example
        return cls(by_id)


def update(
    push_destination: str,
    new: NewItems,
    remove: Sequence[str],
    features: Features,
    serving: Serving,
    index: Index,
    item_column: str,
) -> Update:
    """Pushes a version that is the newest one with other items.

    Args:
        push_destination: The folder with the versions, a local one.
        new: Items to add; the id of a removed item may come back with other features.
        remove: Ids to remove.
        features: As the newest version was made with.
        serving: As the newest version was made with.
        index: The recall that the new version must have.
        item_column: Key of the item id in examples.

    Users that the newest version knows are known to the new one, too; removed items are gone from their histories.

    Raises:
        UserError: Nothing has been pushed, the version cannot be updated, it lacks an item to be removed or has one to
            be added, the result could not be served (`catalogue.check`), or it misses the recall target.
    """
    with opened(push_destination, features, serving) as newest:
        catalogue = newest.catalogue
        _check_ids(newest.version, set(catalogue.item_ids), set(new.examples), set(remove))

        removed = set(remove)
        kept = np.array([row for row, item_id in enumerate(catalogue.item_ids) if item_id not in removed], np.int64)
        added = _embedded(newest, new, item_column)
        updated = catalogue.only(kept).followed_by(added)
        catalogues.check(updated, features, serving)
        parts = newest.partitions
        divided = None if parts is None else parts.with_rows(kept, added.vectors[:])
        built = newest.index(divided, updated)
        # The query vectors of the warm-up requests, which are real ones.
        embedding = newest.embedding
        queries = np.concatenate([embedding.query(**request).numpy() for request in newest.requests[QUERY_EMBEDDING]])
        recall_k = min(index.recall_k, len(updated.item_ids))
        reached = _recall(built, updated.vectors[:], queries, recall_k)
        if reached < index.recall_target - SAMPLING_TOLERANCE:
            raise UserError(
                f"the updated index would have recall@{recall_k} {reached:.4f} on warm-up requests, below "
                f"index.recall_target {index.recall_target}: too much has changed; run the pipeline"
            )
        users = newest.users
        if users is not None:
            users = users.with_catalogue(catalogue.item_ids, updated.item_ids)
        return newest.push(
            updated, built, users, Update,
            added=len(new.examples), removed=len(removed), catalogue_size=len(updated.item_ids), recall=reached,
            recall_k=recall_k,
        )  # fmt: skip


def _check_ids(newest: str, there: set[str], added: set[str], removed: set[str]) -> None:
    """What is removed must be there, what is added must not."""
    for item_id in sorted(removed - there):
        raise UserError(f"--remove: version {newest} has no item {item_id!r}{meant(item_id, there)}")
    for item_id in sorted(added & (there - removed)):
        raise UserError(f"--add: version {newest} has item {item_id!r} already; remove it in the same update")


def _examples(batch: Any, id_column: str, wanted: Sequence[Column], file: str) -> list[tuple[str, bytes]]:
    cells: dict[str, Sequence[Value]] = {}
    for column in wanted:
        cells[column.name], faults = columns.cells(batch, column)
        rows.refuse(_ADD, file, column.source, faults)
    # The id is an id, whatever encoding reads it: 12 and 12.0 are the same.
    ids = columns.ids(batch.column(id_column))
    cells[wanted[0].name] = ids
    items = []
    for item_id, *row in zip(ids, *cells.values(), strict=True):
        if item_id is None:
            raise UserError(f"{_ADD}: {file}: a row has no {id_column}; give every item an id")
        items.append((item_id.decode(), examples.example(examples.features(zip(cells, row, strict=True)))))
    return items


def _embedded(newest: Opened, new: NewItems, item_column: str) -> EmbeddedCatalogue:
    """The new items as a catalogue; nobody has interacted with any of them yet."""
    records, serving = list(new.examples.values()), newest.serving
    vectors = [np.zeros((0, newest.contract.dimension), np.float32)]
    for start in range(0, len(records), _BATCH):
        chosen = tf.constant(records[start : start + _BATCH], tf.string)
        requests = candidate_requests(chosen, newest.features, item_column)
        vectors.append(newest.embedding.candidate(**requests)["embedding"].numpy())
    parsed = [tf.train.Example.FromString(record) for record in records]
    return EmbeddedCatalogue(
        list(new.examples),
        np.concatenate(vectors),
        np.zeros(len(records), np.float32),
        {c: [catalogues.joined(catalogues.values(e, c)) for e in parsed] for c in serving.return_columns},
        {c: [catalogues.values(e, c) for e in parsed] for c in serving.filter_columns},
    )


def _recall(index: TopK, vectors: np.ndarray, queries: np.ndarray, k: int) -> float:
    scores, _ = index.search(tf.constant(queries), k, tf.zeros([len(queries), 0], tf.int32))
    return recall(scores.numpy(), np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :k])
