"""Small fits on a checkerboard, in processes of their own: `python tests/distributed_fits.py FOLDER PROCESSES`.

PROCESSES is JSON, a list of [TF_CONFIG, cases]; each process is forked when everything is imported. With a TF_CONFIG it
is one of several workers; where that is null, it fits on one device and then by two replicas of its own.
Each fit leaves FOLDER/<case>-<how>.npz, where how is `one`, `two` or `worker<n>`: what is learned, as early stopping
chose it, by the variables' names; `loss` and `ndcg` of the epochs; `by_row`, the tables that were updated by row.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))

import numpy as np
import tensorflow as tf
from checkerboard import ITEMS, TASTES, changed, queries, sequences, specification
from transformed_files import on_disk

from modules.encodings.features import Features
from modules.settings import Training
from modules.towers import two_tower
from modules.training.cluster import Cluster
from modules.training.dataset import CandidateTable, Specification
from modules.training.distribution import Distribution
from modules.training.loop import fit
from modules.training.stream import Stream, Train

FEATURES = Features.model_validate(
    {
        "query": [
            {"column": "user", "encoding": "vocabulary", "dimension": 8},
            {"column": "age", "encoding": "normalized"},
            {"encoding": "history", "max_length": 6},
        ],
        "candidate": [
            {"column": "item", "encoding": "vocabulary", "dimension": 8},
            {"column": "genres", "encoding": "vocabulary", "multivalued": True, "max_values": 2, "dimension": 4},
        ],
    }
)
# Eight interactions of each in an epoch: five whole batches and one row, so that a replica has none.
USERS, BATCH = 57, 91
CASES = ("in_batch", "sampled by row", "catalogue with a transformer", "catalogue from a stream")


def world(negatives: str, encoder: str = "mean") -> Specification:
    """A world in which every weight matters, since Adam makes steps of whatever noise is left of a gradient of zero."""
    spec = specification(FEATURES)
    # What all items have in common shifts all scores alike.
    genres = np.stack([1 + np.arange(ITEMS + 2) % TASTES, np.where(np.arange(ITEMS + 2) % 3, TASTES + 1, 0)], axis=1)
    table = {**spec.catalogue.features, "genres": genres}
    spec = replace(spec, catalogue=CandidateTable(table, spec.catalogue.is_candidate))
    spec = changed(spec, negatives=negatives, epochs=2, refit=False, batch_size=BATCH, sampled_negatives=8)
    # Nothing but the learned part is asked for, and validation has little to choose.
    beside = {"model.item_item_rank": 0, "model.popularity_lift": False, "model.history_encoder": encoder}
    beside |= {"model.encoder_width": 8, "model.encoder_blocks": 1}
    return spec.with_settings({"model.query_feature_dropout": 0.3, **beside})


def run(case: str, distribution: Distribution, folder: Path, how: str) -> None:
    """One fit of two epochs."""
    negatives, _, how_else = case.partition(" ")
    # Here tables have some dozens of rows.
    two_tower.ROWS_OF_LARGE = 10 if how_else == "by row" else 10_000
    encoder = "transformer" if how_else == "with a transformer" else "mean"
    spec, of = world(negatives, encoder), sequences(FEATURES, USERS)
    train: Train = of
    if how_else == "from a stream":
        train = on_disk(Path(tempfile.mkdtemp()), of, spec, limit=len(of.items) // 2)
        assert isinstance(train, Stream)
    fitted = fit(spec, train, queries(spec, of), distribution=distribution)
    weights = {variable.name: variable.numpy() for variable in fitted.model.trainable_variables}
    report = {
        "loss": np.array([epoch.loss for epoch in fitted.report.history]),
        "ndcg": np.array([epoch.ndcg for epoch in fitted.report.history]),
        "by_row": np.array([table.name for table in fitted.model.tables_by_row], str),
    }
    np.savez(folder / f"{case}-{how}.npz", **weights, **report)


def fit_all(folder: Path, cases: Sequence[str]) -> None:
    """What one process does."""
    if "TF_CONFIG" in os.environ:
        cluster = Cluster.of_environment()
        cluster.wait_for_others(60)
        workers = Distribution.of_cluster(cluster)
        for case in cases:
            run(case, workers, folder, f"worker{cluster.number}")
        workers.from_chief(0)
        return
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    replicas = Distribution.within_process(Training(distribution="mirrored"))
    for case in cases:
        run(case, Distribution(), folder, "one")
        run(case, replicas, folder, "two")


def start(folder: Path, tf_config: str | None, cases: Sequence[str]) -> int:
    """Forks a process; TensorFlow starts its threads when it computes first."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        if tf_config is not None:
            os.environ["TF_CONFIG"] = tf_config
        fit_all(folder, cases)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    processes = [start(Path(sys.argv[1]), *each) for each in json.loads(sys.argv[2])]
    statuses = [os.waitpid(process, 0)[1] for process in processes]
    sys.exit(any(statuses))
