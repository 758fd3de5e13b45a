"""What a request costs by its history, and beside the tutorials' model: the native probe on a pushed version.

    python -m benchmarks.serving.requests [VERSION_FOLDER | --config F] [--histories 10,100,500] [--rounds 3]
    python -m benchmarks.serving.requests [VERSION_FOLDER | --config F] --catalogue 1000000

TFRS's tutorials export a `BruteForce` layer over embeddings of ids: a user's id in, titles out. The one here has the
version's items and as many of them in an answer. It is not trained, which its time does not depend on.

With `--catalogue` the version's towers answer from so many items: its own, and copies of them with some noise. A
partition tree finds them, how well is no subject here, and a whole request is beside its parts, query tower and search.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tensorflow_serving.apis import prediction_log_pb2

from benchmarks.serving.pushed import newest_version
from modules.retrieval.brute_force import BruteForce
from modules.retrieval.scann import train_partitions
from modules.retrieval.stock import stock
from modules.retrieval.top_k import SearchParameters, TopK
from modules.servable import catalogue, signatures, warmup
from modules.servable.catalogue import EmbeddedCatalogue
from modules.servable.contract import QUERY_EMBEDDING, load, read_servable
from modules.servable.embedding import Embedding
from modules.servable.signatures import ServableModule
from modules.settings import Serving
from serving.native import probe

TUTORIAL = "TFRS BruteForce, ids alone"
SEARCH, TOWER, BOTH = "search alone", "query tower alone", "both parts"
_SIGNATURE = "serving_default"
_USERS, _DIMENSION = 1_000, 32
_SIZES = (1, 16)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.requests", description=__doc__)
    parser.add_argument("version", nargs="?", type=Path, help="a version folder (default: the newest that was pushed)")
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--histories", default="10,100,500", help="lengths")
    parser.add_argument("--rounds", type=int, default=3, help="in each, every kind of request has its turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each kind of request and batch size")
    parser.add_argument("--max-per-value", type=int, default=2, help="of the first filter column, in a line of its own")
    parser.add_argument("--catalogue", type=int, help="a whole request and its parts over so many items")
    parser.add_argument("--partitions-to-search", type=int, default=10, help="of the tree over --catalogue's items")
    options = parser.parse_args(arguments)
    version = options.version or newest_version(options.config)
    lengths = [int(length) for length in options.histories.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.catalogue:
                kinds = dict(_parts(version, options.catalogue, options.partitions_to_search, Path(folder)))
                times = measure(kinds, options.rounds, options.seconds)
                parts = [times[kind] for kind in (SEARCH, TOWER)]
                render({BOTH: {size: sum(part[size] for part in parts) for size in _SIZES}} | times)
            else:
                kinds = dict(_kinds(version, lengths, options.max_per_value, Path(folder)))
                render(measure(kinds, options.rounds, options.seconds))
        except (probe.ProbeError, ValueError) as error:
            sys.exit(str(error))
    return 0


def measure(kinds: Mapping[str, tuple[Path, str]], rounds: int, seconds: float) -> dict[str, dict[int, float]]:
    """Milliseconds p50 of one thread by kind of request and batch size: the median over the rounds.

    Args:
        kinds: By name a version folder and the signature that is asked.
        rounds: In each, every kind has its turn.
        seconds: For each kind and batch size.
    """
    seen: dict[str, dict[int, list[float]]] = {kind: {size: [] for size in _SIZES} for kind in kinds}
    for _ in range(rounds):
        for kind, (version, signature) in kinds.items():
            for timing in probe.run(version, [1], seconds, signature=signature).timings:
                seen[kind][timing.batch].append(timing.p50_ms)
    return {kind: {size: statistics.median(times) for size, times in of.items()} for kind, of in seen.items()}


def render(times: Mapping[str, Mapping[int, float]]) -> None:
    """A line for each kind of request, with its ratio to the first."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("request")
    for size in _SIZES:
        table.add_column(f"batch {size}: p50 ms", justify="right")
        table.add_column("ratio", justify="right")
    first = next(iter(times.values()))
    for kind, of_size in times.items():
        cells = [text for size in _SIZES for text in (f"{of_size[size]:.3f}", f"{of_size[size] / first[size]:.2f}")]
        table.add_row(kind, *cells)
    Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(table)


def _kinds(version: Path, lengths: Sequence[int], most: int, folder: Path) -> Iterator[tuple[str, tuple[Path, str]]]:
    contract = read_servable(str(version))
    items, _ = catalogue.read(str(version))
    tutorial = folder / "tutorial"
    export_tutorial(tutorial, list(items.item_ids), contract.k)
    users = [{"user_id": tf.constant([str(n) for n in range(size)])} for size in _SIZES]
    warmup.write(str(tutorial), contract.model, {_SIGNATURE: users})
    yield TUTORIAL, (tutorial, _SIGNATURE)
    history = contract.embedding.features.history
    if history is None:
        raise ValueError(f"{version}: its queries have no history")
    request = _request(version)

    def told(length: int) -> list[dict[str, tf.Tensor]]:
        # Most popular ones, all different.
        items_told = np.array([[item.encode() for item in items.item_ids[:length]]], object)
        told = request | {history.column: items_told}
        return [{name: tf.constant(np.repeat(v, size, axis=0)) for name, v in told.items()} for size in _SIZES]

    for length in lengths:
        if length > len(items.item_ids):
            raise ValueError(f"--histories: {length} is more than the catalogue's {len(items.item_ids)} items")
        other = folder / str(length)
        _share(version, other)
        warmup.write(str(other), contract.model, {_SIGNATURE: told(length)})
        yield f"history of {length}", (other, _SIGNATURE)
    if contract.filter_columns:
        column = contract.filter_columns[0]
        limited = folder / "limited"
        limits = {"max_per_value": {column: most}}
        _save(version, limited, items, BruteForce(items.vectors), {_SIGNATURE: told(lengths[0])}, limits)
        yield f"history of {lengths[0]}, at most {most} of {column}", (limited, _SIGNATURE)


def _parts(version: Path, size: int, to_search: int, folder: Path) -> Iterator[tuple[str, tuple[Path, str]]]:
    own, _ = catalogue.read(str(version))
    items = _enlarged(own, size)
    partitions = train_partitions(items.vectors)
    # All members of so many partitions.
    index = stock(items.vectors, "tree", SearchParameters(to_search, reorder=size), partitions)
    asked = warmup.read(str(version))[_SIGNATURE]
    requests = dict.fromkeys((_SIGNATURE, QUERY_EMBEDDING), asked)
    whole, alone = folder / "whole", folder / "search"
    _save(version, whole, items, index, requests, {})
    contract = read_servable(str(version))

    @tf.function(input_signature=[tf.TensorSpec([None, items.vectors.shape[1]], tf.float32, name="queries")])
    def search(queries: tf.Tensor) -> dict[str, tf.Tensor]:
        scores, rows = index.search(queries, contract.k, tf.zeros([tf.shape(queries)[0], 0], tf.int32))
        return {"scores": scores, "rows": rows}

    tf.saved_model.save(index, str(alone), signatures={_SIGNATURE: search})
    embedding = Embedding(load(str(version)), contract.embedding)
    queries = [{"queries": embedding.query(**request)} for request in asked]
    warmup.write(str(alone), contract.model, {_SIGNATURE: queries})
    yield SEARCH, (alone, _SIGNATURE)
    yield TOWER, (whole, QUERY_EMBEDDING)
    yield "whole request", (whole, _SIGNATURE)


def _enlarged(own: EmbeddedCatalogue, size: int) -> EmbeddedCatalogue:
    """The items of a catalogue, then copies of them with other ids and vectors nearby."""
    if size < len(own.item_ids):
        raise ValueError(f"--catalogue: {size} is less than the {len(own.item_ids)} items that there are")
    draw = np.random.default_rng(0)
    copies = own.only(np.resize(np.arange(len(own.item_ids)), size - len(own.item_ids)))
    spread = np.std(own.vectors[:], axis=0).astype(np.float32)
    noise = draw.standard_normal(copies.vectors.shape, np.float32)
    ids = [f"{item} {number}" for number, item in enumerate(copies.item_ids)]
    return own.followed_by(replace(copies, item_ids=ids, vectors=copies.vectors[:] + 0.5 * spread * noise))


def _save(
    version: Path,
    folder: Path,
    items: EmbeddedCatalogue,
    index: TopK,
    requests: Mapping[str, Sequence[Mapping[str, tf.Tensor]]],
    changes: dict[str, Any],
) -> None:
    """Writes a servable of a version's towers with other items or other rules.

    Args:
        version: Whose towers.
        folder: Where to.
        items: What can be recommended.
        index: Over their vectors.
        requests: By signature.
        changes: Of the section `serving`.
    """
    contract = read_servable(str(version))
    names = ("k", "exclude_history", "return_columns", "filter_columns", "max_per_value")
    serving = Serving.model_validate({name: getattr(contract, name) for name in names} | changes)
    embedding = Embedding(load(str(version)), contract.embedding)
    with tempfile.TemporaryDirectory() as assets:
        servable = ServableModule(
            embedding, items, index, contract.embedding.features, serving, contract.evaluation_k, assets
        )
        signatures.save(servable, str(folder), contract, requests)


def export_tutorial(folder: Path, item_ids: Sequence[str], k: int) -> None:
    """Writes what TFRS's tutorials serve: `user_id` [B] → `scores` and `ids` [B, k]."""
    import tensorflow_recommenders as tfrs
    import tf_keras

    known = tf_keras.layers.StringLookup(vocabulary=[str(n) for n in range(_USERS)], mask_token=None)
    users = tf_keras.Sequential([known, tf_keras.layers.Embedding(known.vocabulary_size(), _DIMENSION)])
    index = tfrs.layers.factorized_top_k.BruteForce(users, k=k)
    vectors = np.random.default_rng(0).normal(size=(len(item_ids), _DIMENSION)).astype(np.float32)
    index.index(tf.constant(vectors), tf.constant(item_ids))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="user_id")])
    def serve(user_id: tf.Tensor) -> dict[str, tf.Tensor]:
        scores, ids = index(user_id)
        return {"scores": scores, "ids": ids}

    tf.saved_model.save(index, str(folder), signatures={_SIGNATURE: serve})


def _request(version: Path) -> dict[str, np.ndarray]:
    """The first warm-up request of one query."""
    for record in tf.data.TFRecordDataset(str(version / warmup.WARMUP_PATH)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        if request.model_spec.signature_name == _SIGNATURE:
            return {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
    raise ValueError(f"{version}: no warm-up request for {_SIGNATURE}")


def _share(version: Path, folder: Path) -> None:
    """A folder with the version's model, and nothing yet beside it."""
    folder.mkdir()
    for name in ("saved_model.pb", "variables", "assets"):
        (folder / name).symlink_to((version / name).resolve())


if __name__ == "__main__":
    sys.exit(main())
