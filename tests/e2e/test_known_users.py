"""`recommend_user` after a run: what an id alone is answered with, and what `twotower update-users` changes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import world
from e2e_runs import Small, twotower

from modules.preprocessing import missing
from pipeline.config import load
from pipeline.recommender import Recommender, Request

pytestmark = pytest.mark.slow

NOW = world.START + 86400 * 400
KNOWN, LENGTH = 100, 12


@pytest.fixture
def pushed(small: Small, tmp_path: Path) -> list[str]:
    """Options that name a copy of what the run has pushed."""
    small.serve_in(tmp_path / "served")
    return ["--config", small.config_path, "--set", f"output.push={tmp_path / 'served'}"]


def _by_id(model: Recommender, users: list[str]) -> list[list[str]]:
    nothing = missing([f for f in model._wanted.values() if f.column != "user_id"], len(users))
    asked = {**nothing, "user_id": tf.constant(users), "timestamp": tf.fill([len(users)], tf.constant(NOW, tf.int64))}
    rules = {name: tf.zeros([len(users), 0], tf.string) for name in ("exclude", "filter_genres")}
    answer = model._model.signatures["recommend_user"](**asked, **rules)
    return [[item.decode() for item in row if item] for row in answer["item_id"].numpy()]


def _expected(model: Recommender, requests: list[Request]) -> list[list[str]]:
    bounded = [dataclasses.replace(r, history=r.history[-LENGTH:]) for r in requests]
    return [[item.item_id for item in answer] for answer in model.recommend(bounded)]


def test_an_id_alone_is_answered_as_the_features_and_the_history_of_the_tables(pushed: list[str], tmp_path: Path):
    config = load(pushed[1], [pushed[3]])
    model = Recommender(config, now=NOW)
    requests = dict(model.requests())
    newest = sorted(requests, key=lambda user: -(requests[user].newest or 0))
    known, others = newest[: KNOWN - 5], newest[KNOWN + 5 :]
    assert _by_id(model, known) == _expected(model, [requests[user] for user in known])
    [anonymous] = _expected(model, [Request({"timestamp": NOW}, [])])
    assert _by_id(model, [*others, "nobody"]) == [anonymous] * (len(others) + 1)

    # Later, one of them interacts with items of another taste, and so does somebody new, and with an unknown item.
    new = [(known[3], str(item), NOW - 50 + item) for item in range(1, 9)] + [("new", "4", NOW - 9)]
    columns = zip(*[*new, ("new", "none such", NOW - 8)], strict=True)
    table = dict(zip(("user_id", "item_id", "timestamp"), map(list, columns), strict=True))
    pq.write_table(pa.table(table), tmp_path / "new.parquet")
    pq.write_table(pa.table({"user_id": ["new"], "age": [33], "gender": ["F"]}), tmp_path / "users.parquet")
    outcome = twotower(
        "update-users", *pushed, "--interactions", str(tmp_path / "new.parquet"),
        "--users", str(tmp_path / "users.parquet"),
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    answer = outcome.answer
    assert (answer["interactions"], answer["unknown_items"], answer["known_users"]) == (9, 1, KNOWN)

    model = Recommender(config, now=NOW)
    assert model.version == answer["version"]
    old = requests[known[3]]
    later = [
        Request(old.values, [*old.history, *(item for user, item, _ in new if user != "new")], NOW - 42),
        Request({"user_id": "new", "age": 33, "gender": "F"}, ["4"], NOW - 9),
    ]
    found = _by_id(model, [known[3], "new", known[0]])
    assert found[:2] == _expected(model, later)
    assert found[2] == _expected(model, [requests[known[0]]])[0], "whom no row names is known as before"
    assert not np.isin(found[0], later[0].history[-LENGTH:]).any()


def test_a_mistake_is_one_line(pushed: list[str], tmp_path: Path):
    pq.write_table(pa.table({"user_id": ["1"], "timestamp": [NOW]}), tmp_path / "short.parquet")
    pq.write_table(pa.table({"user_id": ["1", "1"], "age": [1, 2], "gender": ["F", "F"]}), tmp_path / "twice.parquet")
    for arguments, words in (
        ([], "nothing to update: give --interactions FILE or --users FILE"),
        (["--interactions", str(tmp_path / "none.parquet")], "--interactions: there is no file"),
        (["--interactions", str(tmp_path / "short.parquet")], "--interactions: "),
        (["--users", str(tmp_path / "twice.parquet")], "user '1' is there twice; keep one of the rows"),
        (["--users", "x.csv", "--set", "serving.known_users=0"], "serving.known_users is 0"),
    ):
        outcome = twotower("update-users", *pushed, *arguments)
        assert outcome.code == 2 and words in outcome.errors, outcome.errors
        assert outcome.errors.count("\n") == 1
    assert len(list((tmp_path / "served" / "small-world").iterdir())) == 1, "nothing is pushed"
