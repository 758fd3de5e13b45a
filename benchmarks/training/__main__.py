"""`make bench-training`: rows per second and memory of a fit, beside the plain TFRS loop, by the size of the catalogue.

All train the same towers on the same rows with the same batch. `sampled` and `catalogue` are ours,
`modules.training.loop.fit` under these `training.negatives`, with the moving average; what its epochs cost beside their
steps, as every row of a table catches up then, is told apart by epochs of two lengths. `tfrs` is what the tutorials do:
`tfrs.tasks.Retrieval` over the batch, `Model.fit` on a `tf.data` dataset of windows, AdamW. Each case runs in a process
of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SYSTEMS = ("sampled", "catalogue", "tfrs")
_LENGTH = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-training", description=__doc__)
    parser.add_argument("--items", default="10000,100000,1000000", help="sizes of the catalogue, comma-separated")
    parser.add_argument("--systems", default="sampled,tfrs", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--steps", type=int, default=100, help="of an epoch, at least 2; the second and third are measured"
    )
    parser.add_argument("--output", type=Path, default=Path("results/training.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(_measure(options.case, int(options.items), options)))
        return 0
    rows = [_in_a_process(system, items, options) for items in options.items.split(",") for system in _systems(options)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=2))
    _print(rows)
    return 0


def _systems(options: argparse.Namespace) -> list[str]:
    chosen = options.systems.split(",")
    if unknown := set(chosen) - set(SYSTEMS):
        raise SystemExit(f"--systems: unknown {unknown.pop()!r}; known are {', '.join(SYSTEMS)}")
    return chosen


def _in_a_process(system: str, items: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--case", system, "--items", items,
               "--dimension", str(options.dimension), "--batch-size", str(options.batch_size),
               "--steps", str(options.steps)]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["killed"])[-1]
        return {"system": system, "items": int(items), "error": f"exit code {ended.returncode}: {last}"}
    return json.loads(ended.stdout.splitlines()[-1])


def _measure(system: str, items: int, options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.local_runner import quiet_libraries

    quiet_libraries()
    import numpy as np

    from modules.encodings.features import Columns, Features
    from modules.settings import Model, Training
    from modules.training.dataset import CandidateTable, Sequences, Specification

    rng = np.random.default_rng(1)
    users = options.steps * options.batch_size
    topics = 64
    features = Features.model_validate(
        {
            "query": [{"encoding": "history", "max_length": _LENGTH}],
            "candidate": [
                {"column": "item", "encoding": "vocabulary"},
                {"column": "topic", "encoding": "vocabulary", "dimension": 16},
            ],
        }
    )
    # A long tail: the n-th item about as often as 1 / n.
    drawn = np.minimum(np.exp(rng.random((users, _LENGTH)) * np.log(items)).astype(np.int32), items)
    training = Training.model_validate(
        {
            "epochs": 3, "batch_size": options.batch_size, "user_exponent": 0.0, "objective": "next_item",
            "negatives": "in_batch" if system == "tfrs" else system, "refit": False,
        }
    )  # fmt: skip
    specification = Specification(
        features=features,
        columns=Columns(user="user", item="item", timestamp="time"),
        model=Model(dimension=options.dimension, item_item_rank=0),
        training=training,
        cardinalities={"item": items + 2, "topic": topics + 1, "history": items + 2},
        item_rows=items + 2,
        catalogue=CandidateTable(
            {"item": np.arange(items + 1), "topic": (np.arange(items + 1) % topics + 1).astype(np.int32)},
            np.arange(items + 1) > 0,
        ),
    )
    sequences = Sequences(
        offsets=np.arange(users + 1) * _LENGTH,
        user=np.arange(users),
        features={},
        items=drawn.ravel(),
        times=np.tile(np.arange(_LENGTH), users) * 1_000,
        weights=np.ones(users * _LENGTH, np.float32),
        is_validation=np.zeros(users * _LENGTH, bool),
        context={},
    )
    if system == "tfrs":
        seconds, end = _tfrs(specification, sequences), 0.0
    else:
        few = max(1, options.steps // 4)
        shorter = _ours(specification.with_settings({"training.epoch_steps": few}), sequences)
        seconds = _ours(specification, sequences)
        end = max(0.0, (shorter * options.steps - seconds * few) / (options.steps - few))
    rows = options.steps * options.batch_size
    return {
        "system": system,
        "items": items,
        "rows_per_second": round(rows / seconds),
        "step_ms": round(1_000 * (seconds - end) / options.steps, 2),
        "epoch_end_ms": round(1_000 * end, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def _ours(specification: Any, sequences: Any) -> float:
    from modules.training.loop import fit

    return min(epoch.seconds for epoch in fit(specification, sequences, None).report.history[1:])


def _tfrs(specification: Any, sequences: Any) -> float:
    import numpy as np
    import tensorflow as tf
    import tf_keras

    from modules.towers.two_tower import Batch, TwoTower
    from modules.training import sampling
    from modules.training.sampling import Draw
    from modules.training.windows import SequenceTensors, Windows

    class Tutorial(TwoTower):
        def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
            # All but the share of it, which is no tensor.
            return super().compute_loss(Batch(*inputs), training)

    features, training = specification.features, specification.training
    frequency = np.bincount(sequences.items, minlength=len(specification.catalogue.is_candidate)).astype(np.float32)
    model = Tutorial(
        features, specification.columns, specification.model, training, specification.cardinalities,
        specification.item_rows, specification.catalogue.features, specification.catalogue.is_candidate, frequency,
    )  # fmt: skip
    model.compile(optimizer=tf_keras.optimizers.AdamW(training.learning_rate, weight_decay=training.weight_decay))
    windows = Windows(features, specification.model, training)
    tensors = SequenceTensors.of(sequences, features, sequences.weights)
    counts = np.full(len(sequences.items), _LENGTH)
    seconds, of_one_device = [], Batch._fields.index("share")
    for epoch in range(3):
        # The rows that ours is trained on.
        drawn = sampling.draw_places(np.arange(len(counts)), counts, training.user_exponent, Draw(training.seed, epoch))
        places = tf.data.Dataset.from_tensor_slices(drawn.astype(np.int32)).batch(training.batch_size)
        # Without what only several devices or a transformer need, which are no tensors.
        cut = places.map(lambda ends: windows.cut(tensors, ends, tf.constant([1, 2]))[:of_one_device])
        batches = cut.prefetch(tf.data.AUTOTUNE)
        started = time.monotonic()
        model.fit(batches, epochs=1, verbose=0)
        seconds.append(time.monotonic() - started)
    return min(seconds[1:])


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "items", "system", "rows a second", "a step, ms", "end of an epoch, ms", "peak, GB", "rows beside TFRS"
    )
    of_tfrs = {row["items"]: row.get("rows_per_second") for row in rows if row["system"] == "tfrs"}
    console = Console(width=int(os.environ.get("COLUMNS", 100)))
    for row in rows:
        if "error" in row:
            console.print(f"{row['system']} with {row['items']:,} items: {row['error']}", soft_wrap=True)
            continue
        beside = of_tfrs.get(row["items"])
        ratio = f"{row['rows_per_second'] / beside:.1f}" if beside else ""
        table.add_row(
            f"{row['items']:,}", row["system"], f"{row['rows_per_second']:,}", f"{row['step_ms']:.1f}",
            f"{row['epoch_end_ms']:,.0f}" if row["epoch_end_ms"] else "", f"{row['peak_gb']:.2f}", ratio,
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
