"""Adds items to a pushed servable and removes others: a new version in seconds, nothing trained again.

New items get vectors from the servable's own candidate tower and go to the nearest partition; they become the least
popular rows. Imports no TFX, which takes longer to load than an update to make.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import BaseModel
from tensorflow_serving.apis import prediction_log_pb2

from components.baseline_resolver import versions
from components.interaction_example_gen import columns, tables
from components.interaction_example_gen.tables import Column, Plan
from components.scann_index_builder.tuning import SAMPLING_TOLERANCE
from components.servable_validator import replay
from modules import retrieval, servable
from modules.errors import UserError
from modules.features import Features
from modules.retrieval import BruteForce, Effort, TopK, Tree
from modules.servable import Catalogue, Description, Servable
from modules.settings import Index, Serving

UPDATE_PATH = os.path.join("assets.extra", "update.json")
"""In a version that was made by an update: what was updated, and the recall that was measured."""

_BATCH = 512
_ADD = "--add"


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
        found: dict[str, bytes] = {}
        for number, file in enumerate(tables.files("items", path, _ADD)):
            for part in tables.parts(number, file, _ADD):
                for _, batch in tables.read(part, [id_column, *wanted]):
                    for item_id, example in _examples(batch, id_column, wanted, file):
                        if item_id in found:
                            raise UserError(f"{_ADD}: {file}: item {item_id!r} is there twice; keep one of its rows")
                        found[item_id] = example
        return cls(found)


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

    Raises:
        UserError: Nothing has been pushed, the version cannot be updated, an item to be removed is unknown or one to be
            added is known, the result could not be served (`servable.check`), or it misses the recall target.
    """
    started = time.monotonic()
    if versions.is_remote(push_destination):
        raise UserError(f"{push_destination}: only a local push destination can be updated; run the pipeline instead")
    newest = versions.latest_version(push_destination)
    if not newest:
        raise UserError(f"no model in {push_destination}: nothing has been pushed yet; start with `twotower run`")
    path = os.path.join(push_destination, newest)
    description = servable.load_description(path)
    _check_updatable(description, newest, features, serving)
    loaded = tf.saved_model.load(path)
    catalogue = servable.read_catalogue(loaded, path, description)
    old = set(catalogue.item_ids)
    for item_id in remove:
        if item_id not in old:
            raise UserError(f"--remove: version {newest} has no item {item_id!r}")
    for item_id in new.examples:
        if item_id in old - set(remove):
            raise UserError(f"--add: version {newest} has item {item_id!r} already; remove it in the same update")

    removed = set(remove)
    kept = np.array([row for row, item_id in enumerate(catalogue.item_ids) if item_id not in removed], np.int64)
    added = _embedded(loaded, new, features, serving, item_column, catalogue.vectors.shape[1])
    updated = catalogue.only(kept).followed_by(added)
    servable.check(updated, features, serving)
    effort = Effort(description.partitions_to_search, description.reorder)
    built = _index(loaded.index, description, updated.vectors, kept, effort)
    recall_k = min(index.recall_k, len(updated.item_ids))
    recall = _recall(built, updated.vectors, _warmup_queries(loaded, path), recall_k)
    if recall < index.recall_target - SAMPLING_TOLERANCE:
        raise UserError(
            f"the updated index would have recall@{recall_k} {recall:.4f} on warm-up requests, below "
            f"index.recall_target {index.recall_target}: too much has changed; run the pipeline"
        )

    staging = os.path.join(push_destination, f".staging-{socket.gethostname()}-{os.getpid()}-{int(time.time())}-"
                                             f"{uuid.uuid4().hex[:8]}")  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as assets:
            result = Servable(
                servable.embedding_of(loaded), updated, built, features, serving, description.evaluation_k, assets
            )
            new_description = description.model_copy(update={"catalogue_size": len(updated.item_ids)})
            servable.save(result, staging, new_description, _warmup(path))
        stamp = versions.read_stamp(path)
        if stamp:
            _write(os.path.join(staging, versions.STAMP), stamp)
        failures = replay.replay(staging)["failures"]
        if failures:
            raise UserError(f"the updated version does not answer as it should: {failures[0]}; run the pipeline")
        outcome = Update(
            version=max(int(time.time()), *(taken + 1 for taken in versions.versions(push_destination))),
            updated_version=int(newest),
            added=len(new.examples),
            removed=len(removed),
            catalogue_size=len(updated.item_ids),
            recall=recall,
            recall_k=recall_k,
            seconds=round(time.monotonic() - started, 2),
        )
        _write(os.path.join(staging, UPDATE_PATH), outcome.model_dump_json(indent=2))
        # The push: a version is there whole, or not at all.
        os.rename(staging, os.path.join(push_destination, str(outcome.version)))
    except OSError as error:
        raise UserError(f"push to {push_destination}: {error.strerror}; make room, or correct its rights") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return outcome


def _check_updatable(description: Description, version: str, features: Features, serving: Serving) -> None:
    if description.layer == "scann":
        raise UserError(
            f"version {version} is searched by ScaNN's own ops, whose index takes no items; run the pipeline, "
            "or use index.layer: stock"
        )
    history = features.history.column if features.history else None
    made_with = {
        "features.query": (description.query_columns, tuple(f.column for f in features.query)),
        "the history feature": (description.history_column, history),
        "serving.k": (description.k, serving.k),
        "serving.exclude_history": (description.exclude_history, serving.exclude_history),
        "serving.return_columns": (description.return_columns, serving.return_columns),
        "serving.filter_columns": (description.filter_columns, serving.filter_columns),
    }
    for name, (was, is_) in made_with.items():
        if was != is_:
            raise UserError(
                f"{name} is {is_} but version {version} was made with {was}; use its configuration, or run the pipeline"
            )


def _examples(batch: Any, id_column: str, wanted: Sequence[Column], file: str) -> list[tuple[str, bytes]]:
    cells: dict[str, Sequence[columns.Value]] = {}
    for column in wanted:
        cells[column.name], faults = columns.cells(batch, column)
        for fault in faults:
            raise UserError(
                f"{_ADD}: {file}: {fault.rows.sum()} values of {column.source!r} {fault.what}, "
                f"for instance {fault.example}: {fault.fix}"
            )
    ids = columns.ids(batch.column(id_column))
    # The id is an id, whatever encoding reads it: 12 and 12.0 are the same.
    cells[wanted[0].name] = ids
    found = []
    for number, item_id in enumerate(ids):
        if item_id is None:
            raise UserError(f"{_ADD}: {file}: a row has no {id_column}; give every item an id")
        example = tf.train.Example()
        for name, of_column in cells.items():
            value = of_column[number]
            feature = example.features.feature[name]
            if isinstance(value, bytes):
                feature.bytes_list.value.append(value)
            elif isinstance(value, list):
                feature.bytes_list.value.extend(value)
            elif isinstance(value, int):
                feature.int64_list.value.append(value)
            elif value is not None:
                feature.float_list.value.append(value)
            if value is None or value in (b"", []):
                del example.features.feature[name]
        found.append((item_id.decode(), example.SerializeToString()))
    return found


def _embedded(
    loaded: Any, new: NewItems, features: Features, serving: Serving, item_column: str, dimension: int
) -> Catalogue:
    """The new items as a catalogue; nobody has taken any of them up yet."""
    records = list(new.examples.values())
    vectors = [np.zeros((0, dimension), np.float32)]
    for start in range(0, len(records), _BATCH):
        chosen = tf.constant(records[start : start + _BATCH], tf.string)
        requests = servable.candidate_requests(chosen, features, item_column)
        vectors.append(loaded.signatures["candidate_embedding"](**requests)["embedding"].numpy())
    examples = [tf.train.Example.FromString(record) for record in records]
    return Catalogue(
        list(new.examples),
        np.concatenate(vectors),
        np.zeros(len(records), np.float32),
        {c: [servable.joined(servable.values(e, c)) for e in examples] for c in serving.return_columns},
        {c: [servable.values(e, c) for e in examples] for c in serving.filter_columns},
    )


def _index(old: Any, description: Description, vectors: np.ndarray, kept: np.ndarray, effort: Effort) -> TopK:
    if description.layer == "brute_force":
        return BruteForce(vectors)
    if description.strategy == "tree" and not hasattr(old, "_place_of"):
        raise UserError("the newest version has a partition tree of an older layout: run the pipeline")
    if description.strategy != "tree":
        return retrieval.stock(vectors, retrieval.resolve_strategy(description.strategy, len(vectors)), effort)  # type: ignore[arg-type]
    return Tree(vectors, retrieval.partitions_of(old).with_rows(kept, vectors[len(kept) :]), effort)


def _warmup(path: str) -> dict[str, list[dict[str, tf.Tensor]]]:
    """The requests that a version's servers replay, by signature."""
    found: dict[str, list[dict[str, tf.Tensor]]] = {}
    for record in tf.data.TFRecordDataset(os.path.join(path, servable.WARMUP_PATH)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {
            name: tf.constant(array, tf.string if array.dtype.kind == "O" else None, array.shape)
            for name, array in ((name, tf.make_ndarray(value)) for name, value in request.inputs.items())
        }
        found.setdefault(request.model_spec.signature_name, []).append(inputs)
    return found


def _warmup_queries(loaded: Any, path: str) -> np.ndarray:
    """[Q, D]: the query vectors of the warm-up requests, which are real ones."""
    asked = _warmup(path)["query_embedding"]
    return np.concatenate([loaded.signatures["query_embedding"](**request)["embedding"].numpy() for request in asked])


def _recall(index: TopK, vectors: np.ndarray, queries: np.ndarray, k: int) -> float:
    nothing = tf.zeros([len(queries), 0], tf.int32)
    scores, _ = index.search(tf.constant(queries), k, nothing)
    least = np.sort(queries @ vectors.T, axis=1)[:, -k][:, np.newaxis]
    # Found rows count by their scores: equal scores are equal rows.
    return float(np.mean(scores.numpy() >= least - 1e-5 * np.maximum(1, np.abs(least))))


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
