"""Adds items to a pushed servable and removes others: a new version in seconds, nothing trained again.

New items get vectors from the servable's own candidate tower and go to the nearest partition; they become the least
popular rows. Imports no TFX, which takes longer to load than an update to make.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import BaseModel

from modules import push_destination as destinations
from modules.data import columns, examples, rows
from modules.data.examples import Value
from modules.data.tables import Column, Plan
from modules.encodings.features import Features
from modules.errors import UserError
from modules.retrieval.brute_force import BruteForce
from modules.retrieval.stock import stock
from modules.retrieval.top_k import Partitions, SearchParameters, TopK, resolve_strategy
from modules.retrieval.tuning import SAMPLING_TOLERANCE, recall
from modules.servable import catalogue as catalogues
from modules.servable import replay, signatures, warmup
from modules.servable.catalogue import EmbeddedCatalogue
from modules.servable.contract import QUERY_EMBEDDING, ServableContract, load, read_servable
from modules.servable.embedding import Embedding, candidate_requests
from modules.servable.signatures import ServableModule
from modules.settings import Index, Serving

_ADD = "--add"
UPDATE_PATH = os.path.join("assets.extra", "update.json")
"""In a version that was made by an update: what was updated, and the recall that was measured."""

_BATCH = 512


class Update(BaseModel):
    """An update that was pushed."""

    version: int
    updated_version: int
    """The version whose items were changed."""
    added: int
    removed: int
    catalogue_size: int
    recall: float
    """Share of the exact best that the updated index finds for the warm-up requests."""
    recall_k: int
    seconds: float


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

    Nobody else publishes there meanwhile: of two updates at once the second one changes what the first has pushed.

    Raises:
        UserError: Nothing has been pushed, the version cannot be updated, it lacks an item to be removed or has one to
            be added, the result could not be served (`catalogue.check`), or it misses the recall target.
    """
    if destinations.is_remote(push_destination):
        raise UserError(f"{push_destination}: only a local push destination can be updated; run the pipeline instead")
    started = time.monotonic()
    # Before the lock, which would make the folder.
    destinations.newest_version(push_destination)
    with destinations.exclusive(push_destination):
        newest = destinations.newest_version(push_destination)
        path = os.path.join(push_destination, newest)
        contract = read_servable(path)
        _check_updatable(contract, newest, features, serving)
        catalogue, partitions = catalogues.read(path)
        embedding = Embedding(load(path), contract.embedding)
        _check_ids(newest, set(catalogue.item_ids), set(new.examples), set(remove))

        removed = set(remove)
        kept = np.array([row for row, item_id in enumerate(catalogue.item_ids) if item_id not in removed], np.int64)
        added = _embedded(embedding, new, features, serving, item_column, contract.dimension)
        updated = catalogue.only(kept).followed_by(added)
        catalogues.check(updated, features, serving)
        vectors = updated.vectors[:]
        built = _index(contract, partitions, vectors, kept)
        requests = warmup.read(path)
        # The query vectors of the warm-up requests, which are real ones.
        queries = np.concatenate([embedding.query(**request).numpy() for request in requests[QUERY_EMBEDDING]])
        recall_k = min(index.recall_k, len(updated.item_ids))
        reached = _recall(built, vectors, queries, recall_k)
        if reached < index.recall_target - SAMPLING_TOLERANCE:
            raise UserError(
                f"the updated index would have recall@{recall_k} {reached:.4f} on warm-up requests, below "
                f"index.recall_target {index.recall_target}: too much has changed; run the pipeline"
            )

        try:
            with destinations.staging(push_destination) as staging:
                staged = os.path.join(staging, newest)
                with tempfile.TemporaryDirectory() as assets:
                    result = ServableModule(embedding, updated, built, features, serving, contract.evaluation_k, assets)
                    new_contract = contract.model_copy(update={"catalogue_size": len(updated.item_ids)})
                    signatures.save(result, staged, new_contract, requests)
                stamp = destinations.read_stamp(path)
                if stamp:
                    _write(os.path.join(staged, destinations.STAMP_PATH), stamp)
                failures = replay.replay(staged)["failures"]
                if failures:
                    raise UserError(
                        f"the updated version does not answer as it should: {failures[0]}; run the pipeline"
                    )
                outcome = Update(
                    version=destinations.next_version(push_destination),
                    updated_version=int(newest),
                    added=len(new.examples),
                    removed=len(removed),
                    catalogue_size=len(updated.item_ids),
                    recall=reached,
                    recall_k=recall_k,
                    seconds=round(time.monotonic() - started, 2),
                )
                _write(os.path.join(staged, UPDATE_PATH), outcome.model_dump_json(indent=2))
                # On a file system without locks, and for who copies a folder by hand, the lock is none.
                if destinations.newest_version(push_destination) != newest:
                    raise UserError(
                        f"{push_destination}: a newer version than {newest} was pushed meanwhile; update again"
                    )
                destinations.publish(staged, push_destination, outcome.version)
        except OSError as error:
            raise UserError(f"push to {push_destination}: {error.strerror}; make room, or correct its rights") from None
        except tf.errors.OpError as error:
            raise UserError(
                f"version {newest} or its update: {error.message}; make room, or run the pipeline"
            ) from None
        return outcome


def _check_ids(newest: str, there: set[str], added: set[str], removed: set[str]) -> None:
    """What is removed must be there, what is added must not."""
    for item_id in sorted(removed - there):
        raise UserError(f"--remove: version {newest} has no item {item_id!r}")
    for item_id in sorted(added & (there - removed)):
        raise UserError(f"--add: version {newest} has item {item_id!r} already; remove it in the same update")


def _check_updatable(contract: ServableContract, version: str, features: Features, serving: Serving) -> None:
    if contract.layer == "scann":
        raise UserError(
            f"version {version} is searched by ScaNN's own ops, whose index takes no items; run the pipeline, "
            "or use index.layer: stock"
        )
    history = features.history.column if features.history else None
    made_with = {
        "features.query": (contract.query_columns, tuple(f.column for f in features.query)),
        "the history feature": (contract.history_column, history),
        "serving.k": (contract.k, serving.k),
        "serving.exclude_history": (contract.exclude_history, serving.exclude_history),
        "serving.return_columns": (contract.return_columns, serving.return_columns),
        "serving.filter_columns": (contract.filter_columns, serving.filter_columns),
    }
    for name, (was, is_) in made_with.items():
        if was != is_:
            raise UserError(
                f"{name} is {is_} but version {version} was made with {was}; use its configuration, or run the pipeline"
            )


def _examples(batch: Any, id_column: str, wanted: Sequence[Column], file: str) -> list[tuple[str, bytes]]:
    cells: dict[str, Sequence[Value]] = {}
    for column in wanted:
        cells[column.name], faults = columns.cells(batch, column)
        for fault in faults:
            raise UserError(
                f"{_ADD}: {file}: {fault.rows.sum()} values of {column.source!r} {fault.what}, "
                f"for instance {fault.example}: {fault.fix}"
            )
    # The id is an id, whatever encoding reads it: 12 and 12.0 are the same.
    ids = columns.ids(batch.column(id_column))
    cells[wanted[0].name] = ids
    items = []
    for item_id, *row in zip(ids, *cells.values(), strict=True):
        if item_id is None:
            raise UserError(f"{_ADD}: {file}: a row has no {id_column}; give every item an id")
        items.append((item_id.decode(), examples.example(examples.features(zip(cells, row, strict=True)))))
    return items


def _embedded(
    embedding: Embedding, new: NewItems, features: Features, serving: Serving, item_column: str, dimension: int
) -> EmbeddedCatalogue:
    """The new items as a catalogue; nobody has interacted with any of them yet."""
    records = list(new.examples.values())
    vectors = [np.zeros((0, dimension), np.float32)]
    for start in range(0, len(records), _BATCH):
        chosen = tf.constant(records[start : start + _BATCH], tf.string)
        requests = candidate_requests(chosen, features, item_column)
        vectors.append(embedding.candidate(**requests)["embedding"].numpy())
    parsed = [tf.train.Example.FromString(record) for record in records]
    return EmbeddedCatalogue(
        list(new.examples),
        np.concatenate(vectors),
        np.zeros(len(records), np.float32),
        {c: [catalogues.joined(catalogues.values(e, c)) for e in parsed] for c in serving.return_columns},
        {c: [catalogues.values(e, c) for e in parsed] for c in serving.filter_columns},
    )


def _index(contract: ServableContract, partitions: Partitions | None, vectors: np.ndarray, kept: np.ndarray) -> TopK:
    """The same kind of index over other rows: those kept, in this order, then new ones."""
    if contract.layer == "brute_force":
        return BruteForce(vectors)
    parameters = SearchParameters(contract.partitions_to_search, contract.reorder)
    if partitions is not None:
        return stock(vectors, "tree", parameters, partitions.with_rows(kept, vectors[len(kept) :]))
    return stock(vectors, resolve_strategy(contract.strategy, len(vectors)), parameters)


def _recall(index: TopK, vectors: np.ndarray, queries: np.ndarray, k: int) -> float:
    scores, _ = index.search(tf.constant(queries), k, tf.zeros([len(queries), 0], tf.int32))
    return recall(scores.numpy(), np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :k])


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
