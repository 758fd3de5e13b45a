"""The benchmark of the whole pipeline's growth: what ALS and the law are asked, and how they are judged."""

from __future__ import annotations

import json
from pathlib import Path

import example_gen_runs
import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.scale import __main__ as benchmark
from benchmarks.scale import queries
from modules.data.examples import EVAL
from pipeline.config import load
from pipeline.datasets import synthetic

USERS, ITEMS, INTERACTIONS = 60, 300, 900


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn tables, and what InteractionExampleGen makes of them, where a run has it."""
    folder = tmp_path_factory.mktemp("scale")
    tables, examples = folder / "tables", folder / "runs/synthetic/InteractionExampleGen/examples/1"
    synthetic.write(USERS, ITEMS, INTERACTIONS, 1, str(tables))
    config = load("configs/synthetic.yaml", [
        f"tables.interactions.path={tables}/interactions-*.parquet", f"tables.items.path={tables}/items.parquet",
        f"tables.users.path={tables}/users.parquet",
    ])  # fmt: skip
    sections = (config.features, config.evaluation, config.serving)
    features, evaluation, serving = (section.model_dump() for section in sections)
    examples.mkdir(parents=True)
    (examples.parent / "1.manifest.json").touch()
    example_gen_runs.run(config.tables, config.split, features, evaluation, serving, str(examples), read=())
    assert benchmark.main(["--queries", str(folder)]) == 0
    return folder


def test_train_and_the_relevant_items_are_all_that_was_drawn(folder: Path):
    drawn = pq.read_table(folder / "tables" / "interactions-00000-of-00001.parquet").to_pydict()
    pairs = {(int(u[1:]), int(i[1:])) for u, i in zip(drawn["user_id"], drawn["item_id"], strict=True)}
    with np.load(folder / "train.npz") as train:
        learned = set(zip(train["users"].tolist(), train["items"].tolist(), strict=True))
        held_out = set(zip(train["users"][train["held_out"]].tolist(), train["items"][train["held_out"]].tolist(),
                           strict=True))  # fmt: skip
        assert train["count"].tolist() == [USERS, ITEMS]
    asked = {name: queries.Asked.load(folder / f"{name}.npz") for name in ("validation", EVAL)}
    wanted = {
        name: {(int(of.users[q]), int(i)) for q in range(len(of)) for i in of.relevant_of(q)}
        for name, of in asked.items()
    }
    assert learned | wanted[EVAL] == pairs and not learned & wanted[EVAL]
    assert wanted["validation"] == held_out
    for query in range(len(asked[EVAL])):
        user = int(asked[EVAL].users[query])
        assert {(user, int(item)) for item in asked[EVAL].history_of(query)} == {p for p in learned if p[0] == user}


def test_the_law_ranks_better_than_popularity_and_than_chance(folder: Path):
    asked = queries.Asked.load(folder / "eval.npz")
    best = json.loads((folder / "best.json").read_text())["recall"]
    with np.load(folder / "train.npz") as train:
        popular = np.bincount(train["items"], minlength=ITEMS).astype(np.float32)
    of_popular = queries.measure(asked, lambda asked, some: np.tile(popular, (len(some), 1))).recall
    assert queries.RECALL_K / ITEMS < of_popular < best < 1


def test_a_hundred_items_that_were_not_seen_are_judged():
    asked = queries.Asked(
        users=np.array([0, 1]), times=np.array([0, 0]),
        history=np.array([0, 1, 2]), history_offsets=np.array([0, 3, 3]),
        relevant=np.array([3, 250, 0, 99, 100, 101]), relevant_offsets=np.array([0, 2, 6]),
    )  # fmt: skip
    # Item i is the i-th best of all; the first query's own three make room for three more.
    measured = queries.measure(asked, lambda asked, some: np.tile(-np.arange(300.0), (len(some), 1)))
    assert measured.recall == (1 / 2 + 2 / 4) / 2
    # 3 is the first of the first query's answer, 0 of the second's; 99 is far behind.
    ideal = 1 / np.log2([2, 3, 4, 5])
    assert measured.ndcg == pytest.approx((1 / ideal[:2].sum() + 1 / ideal.sum()) / 2)


def test_time_that_grows_as_the_data_has_slope_1():
    rows = [{"size": "100k"}, {"size": "1M"}, {"size": "10M"}]
    assert benchmark._slopes(rows, [2.0, 20.0, 2_000.0]) == ["1.00", "2.00"]
    assert benchmark._slopes(rows, [0.1, 20.0, 20.0]) == ["", "0.00"]


@pytest.mark.slow
def test_a_size_that_fails_is_told_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--sizes", "10k", "--no-als", "--output", str(tmp_path), "--set", "training.epoch=1"]
    assert benchmark.main(arguments) == 1
    assert "training.epoch: unknown key" in " ".join(capsys.readouterr().out.split())


def test_an_unknown_size_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        benchmark.main(["--sizes", "2M"])
    assert "known are 10k, 100k, 1M, 10M" in capsys.readouterr().err
