"""What the judge holds out has no way into our model, though the pipeline's table has it for its Evaluator."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import world
from e2e_runs import twotower

from benchmarks.quality.judge import Protocol
from benchmarks.quality.systems import ours
from benchmarks.quality.tables import read
from pipeline.config import load

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Fitted:
    """One run on the benchmark's own table."""

    folder: Path
    table: pd.DataFrame
    weights: dict[str, np.ndarray]
    """Everything in the pushed servable: towers, vectors of the index, counts."""
    overrides: list[str]
    measured: dict[str, float]
    """By the pipeline's own Evaluator."""


def fit(folder: Path, table: pd.DataFrame, config: str) -> Fitted:
    folder.mkdir()
    table.to_parquet(folder / "interactions.parquet", index=False)
    overrides = ["split={strategy: column, column: split}", f"tables.interactions.path={folder}/interactions.parquet",
                 "training.epochs=2", "training.refit=true", "evaluation.beat_popularity=false", "evaluation.slices=[]",
                 "evaluation.k=[10,60]", "serving.k=68",
                 f"output.root={folder}/runs", f"output.push={folder}/served"]  # fmt: skip
    outcome = twotower("run", "--config", config, *(part for o in overrides for part in ("--set", o)))
    assert outcome.code == 0, outcome.errors
    (variables,) = glob.glob(f"{folder}/served/*/*/variables/variables.index")
    reader = tf.train.load_checkpoint(variables.removesuffix(".index"))
    weights = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return Fitted(folder, table, weights, overrides, outcome.answer["metrics"]["overall"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaks")
    world.write_parquet(folder)
    # Of the query's encodings those that are made of items: other columns are the same in both tables.
    candidate = world.config(folder)["features"]["candidate"]
    world.write_config(folder, features={"query": world.FEW_FEATURES["query"], "candidate": candidate})
    return folder


@pytest.fixture(scope="module")
def protocol(folder: Path) -> Protocol:
    return Protocol("leave-last-out", read(load(str(folder / "config.yaml"))), 1, folder / "task")


@pytest.fixture(scope="module")
def both(folder: Path, protocol: Protocol) -> tuple[Fitted, Fitted]:
    """The judge's table for leave-last-out, and the same with other items in the eval rows."""
    config = str(folder / "config.yaml")
    table = pd.read_parquet(protocol.write_pipeline_tables(folder / "tables") / "interactions.parquet")
    other = table.copy()
    held = other["split"] == "eval"
    other.loc[held, "item_id"] = other.loc[held, "item_id"] % world.ITEMS + 1
    assert held.sum() == world.USERS
    return fit(folder / "asked", table, config), fit(folder / "changed", other, config)


def test_other_test_items_leave_the_model_as_it_is_to_the_bit(both: tuple[Fitted, Fitted]) -> None:
    asked, changed = both
    assert asked.weights.keys() == changed.weights.keys()
    vectors = [name for name, value in asked.weights.items() if getattr(value, "ndim", 0) == 2]
    assert vectors
    for name, value in asked.weights.items():
        # What is known of users goes up to the end of the data, on purpose: the Evaluator does not look at it.
        if "_CHECKPOINTABLE_OBJECT_GRAPH" not in name and not name.startswith("_known_users/"):
            assert np.array_equal(value, changed.weights[name]), name


def test_the_sequences_hold_what_may_be_learned_and_nothing_else(both: tuple[Fitted, Fitted]) -> None:
    asked, _ = both
    rows = asked.table[asked.table["split"] != "eval"].sort_values("timestamp", kind="stable")
    rows = rows.assign(item=rows["item_id"].astype(str), held=(rows["split"] == "validation").astype(int))
    may = {
        str(user): list(zip(group["item"], group["timestamp"], group["held"], strict=True))
        for user, group in rows.groupby("user_id")
    }
    files = glob.glob(f"{asked.folder}/runs/**/examples/*/Split-train/*.gz", recursive=True)
    found = {}
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        items = [item.decode() for item in feature["sequence_item_id"].bytes_list.value]
        times, of_validation = (feature[f"sequence_{key}"].int64_list.value for key in ("timestamp", "is_validation"))
        (user,) = feature["user_id"].bytes_list.value
        found[user.decode()] = list(zip(items, times, of_validation, strict=True))
    assert found == may


def test_the_judge_and_the_pipelines_evaluator_agree(
    folder: Path, protocol: Protocol, both: tuple[Fitted, Fitted]
) -> None:
    asked, _ = both
    path = f"tables.interactions.path={folder}/tables/history.parquet"
    config = load(str(folder / "config.yaml"), [*asked.overrides, path])
    answers = ours.ask(config, pd.read_parquet(folder / "task" / "queries.parquet"), {"all": []}, 1)
    (row,) = protocol.judge("ours", answers, {"settings": {}, "tune_seconds": 0.0, "fit_seconds": 0.0})
    for name in ("ndcg@10", "recall@10", "precision@10", "coverage@10"):
        assert row.mean[name] == pytest.approx(asked.measured[name], abs=1e-6), name
