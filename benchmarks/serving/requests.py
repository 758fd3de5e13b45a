"""What a request costs by its history, and beside the tutorials' model: the native probe on a pushed version.

    python -m benchmarks.serving.requests [VERSION_FOLDER | --config F] [--histories 10,100,500] [--rounds 3]

TFRS's tutorials export a `BruteForce` layer over embeddings of ids: a user's id in, titles out. The one here has the
version's items and as many of them in an answer. It is not trained, which its time does not depend on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tensorflow_serving.apis import prediction_log_pb2

from benchmarks.serving.pushed import newest_version
from modules.servable import catalogue, warmup
from modules.servable.contract import read_servable
from serving.native import probe

TUTORIAL = "TFRS BruteForce, ids alone"
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
    options = parser.parse_args(arguments)
    version = options.version or newest_version(options.config)
    lengths = [int(length) for length in options.histories.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        try:
            kinds = dict(_kinds(version, lengths, Path(folder)))
            render(measure(kinds, options.rounds, options.seconds))
        except (probe.ProbeError, ValueError) as error:
            sys.exit(str(error))
    return 0


def measure(kinds: Mapping[str, Path], rounds: int, seconds: float) -> dict[str, dict[int, float]]:
    """Milliseconds p50 of one thread by kind of request and batch size: the median over the rounds."""
    seen: dict[str, dict[int, list[float]]] = {kind: {size: [] for size in _SIZES} for kind in kinds}
    for _ in range(rounds):
        for kind, version in kinds.items():
            for timing in probe.run(version, [1], seconds, signature=_SIGNATURE).timings:
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


def _kinds(version: Path, lengths: Sequence[int], folder: Path) -> Iterator[tuple[str, Path]]:
    contract = read_servable(str(version))
    items, _ = catalogue.read(str(version))
    tutorial = folder / "tutorial"
    export_tutorial(tutorial, list(items.item_ids), contract.k)
    users = [{"user_id": tf.constant([str(n) for n in range(size)])} for size in _SIZES]
    warmup.write(str(tutorial), contract.model, {_SIGNATURE: users})
    yield TUTORIAL, tutorial
    history = contract.embedding.features.history
    if history is None:
        raise ValueError(f"{version}: its queries have no history")
    request = _request(version)
    for length in lengths:
        if length > len(items.item_ids):
            raise ValueError(f"--histories: {length} is more than the catalogue's {len(items.item_ids)} items")
        other = folder / str(length)
        _share(version, other)
        # Most popular ones, all different.
        told = request | {history.column: np.array([[item.encode() for item in items.item_ids[:length]]], object)}
        requests = [{name: tf.constant(np.repeat(v, size, axis=0)) for name, v in told.items()} for size in _SIZES]
        warmup.write(str(other), contract.model, {_SIGNATURE: requests})
        yield f"history of {length}", other


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
