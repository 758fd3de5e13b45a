"""Requests that a snapshot completes, beside what plain Python makes of the same user."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from known_towers import FEATURES as TOWERS
from known_towers import SERVING, World, save_servable

from modules.data.tables import Column
from modules.data.user_tables import UserTables
from modules.encodings.features import Columns, Features
from modules.preprocessing import missing
from modules.servable import replay
from modules.servable.contract import read_servable
from modules.servable.known_users import KnownUsers
from modules.servable.user_snapshot import take
from modules.settings import Interactions, Items, Tables, Users

COLUMNS = Columns(user="customer", item="item_id", timestamp="at")
FEATURES = Features.model_validate(
    {
        "query": [
            {"encoding": "vocabulary", "column": "customer"},
            {"encoding": "bucketized", "column": "age", "boundaries": [30]},
            {"encoding": "vocabulary", "column": "gender"},
            {"encoding": "vocabulary", "column": "tags", "multivalued": True},
            {"encoding": "timestamp", "column": "joined"},
            {"encoding": "vocabulary", "column": "device"},
            {"encoding": "history", "max_length": 3},
            {"encoding": "history_age"},
        ],
        "candidate": [{"encoding": "vocabulary", "column": "item_id"}],
    }
)
CATALOGUE = ["c", "a", "b", "d"]
USERS = {
    "u": {"age": 33.5, "gender": "F", "tags": ["x", "y"], "joined": 77},
    "v": {"age": None, "gender": None, "tags": None, "joined": None},
    "idle": {"age": 20.0, "gender": "M", "tags": ["y"], "joined": 5},
}
HISTORIES = {"u": [("a", 10), ("?", 11), ("b", 20), ("c", 30), ("d", 40)], "v": [("b", 50)]}


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> KnownUsers:
    folder = tmp_path_factory.mktemp("tables")
    rows = [{"customer": u, "item_id": i, "at": t} for u, pairs in HISTORIES.items() for i, t in pairs]
    pq.write_table(pa.Table.from_pylist(rows), folder / "interactions.parquet")
    pq.write_table(pa.Table.from_pylist([{"id": u, **about} for u, about in USERS.items()]), folder / "users.parquet")
    tables = Tables(
        interactions=Interactions(path=str(folder / "interactions.parquet"), user="customer", timestamp="at"),
        items=Items(path="none"),
        users=Users(path=str(folder / "users.parquet"), id="id"),
    )
    attributes = [
        Column(name="age", source="age", kind="float32"),
        Column(name="gender", source="gender"),
        Column(name="tags", source="tags", multivalued=True),
        Column(name="joined", source="joined", kind="int64"),
    ]
    taken = take(UserTables(tables, attributes), attributes, CATALOGUE, FEATURES, COLUMNS, 10)
    assert taken.unknown == 1
    ids = tf.Variable([b"", *(item.encode() for item in CATALOGUE)])
    return KnownUsers(taken.users, FEATURES, ids, str(folder / "ids.txt"))


def ask(users: KnownUsers, who: list[str], **said: object) -> tuple[dict[str, list], list[list[int]]]:
    """Completed requests without padding, and rows."""
    assert set(users.inputs()) == {
        "user_id", "age", "gender", "tags", "joined", "device", "history", "history_age", "at"
    }  # fmt: skip
    others = [f for f in FEATURES.query if f.column != "customer"]
    request = {"user_id": tf.constant(who, tf.string), "at": tf.fill([len(who)], tf.constant(-1, tf.int64)),
               **missing(others, len(who)), **{name: tf.constant(value) for name, value in said.items()}}  # fmt: skip
    completed, rows = users.complete(request)
    assert set(completed) == {f.column for f in FEATURES.query}
    texts = {name: value.numpy().tolist() for name, value in completed.items()}
    for name, value in texts.items():
        if completed[name].dtype == tf.string:
            texts[name] = [
                [text.decode() for text in cell if text] if isinstance(cell, list) else cell.decode() for cell in value
            ]
    return texts, [[row for row in of_user if row >= 0] for of_user in rows.numpy().tolist()]


def test_a_user_id_alone_says_what_the_tables_know_and_nothing_of_a_stranger(users: KnownUsers) -> None:
    found, rows = ask(users, ["u", "nobody", "v", "idle", ""], at=np.array([100, 100, 55, 100, 100]))
    assert found["customer"] == ["u", "", "v", "idle", ""]
    np.testing.assert_array_equal(found["age"], [33.5, math.nan, math.nan, 20, math.nan])
    assert found["gender"] == ["F", "", "", "M", ""]
    assert found["tags"] == [["x", "y"], [], [], ["y"], []]
    assert found["joined"] == [77, -1, -1, 5, -1]
    assert found["device"] == [""] * 5
    assert found["history"] == [["b", "c", "d"], [], ["b"], [], []], "the newest three, oldest first"
    assert rows == [[CATALOGUE.index(i) for i in history] for history in found["history"]]
    np.testing.assert_array_equal(found["history_age"], [60, math.nan, 5, math.nan, math.nan])


def test_what_a_request_says_wins(users: KnownUsers) -> None:
    found, rows = ask(
        users, ["u", "u", "nobody"], age=[40.0, math.nan, 41.0], gender=["", "M", "M"], device=["tv", "", "tv"],
        tags=[["z", ""], ["", ""], ["", "w"]], joined=np.array([-1, 3, 4]), history=[["", "q"], ["", ""], ["a", ""]],
        at=np.array([35, 35, 35]), history_age=[math.nan, math.nan, 8.0],
    )  # fmt: skip
    np.testing.assert_array_equal(found["age"], [40.0, 33.5, 41.0])
    assert found["gender"] == ["F", "M", "M"] and found["device"] == ["tv", "", "tv"]
    assert found["tags"] == [["z"], ["x", "y"], ["w"]] and found["joined"] == [77, 3, 4]
    assert found["history"] == [["q"], ["b", "c", "d"], ["a"]] and rows == [[], [1 + 1, 0, 3], []]
    # Of a history of the request's own only the request knows the age; an age is never negative.
    np.testing.assert_array_equal(found["history_age"], [math.nan, 0, 8])


def test_without_a_time_there_is_no_age(users: KnownUsers) -> None:
    found, _ = ask(users, ["u", "u"], history_age=[math.nan, 9.0])
    np.testing.assert_array_equal(found["history_age"], [math.nan, 9])
    assert ask(users, [])[0]["customer"] == []


@pytest.mark.slow
def test_a_servable_answers_for_an_id_as_for_its_features_and_history(
    known_world: World, known_embedding: str, tmp_path: Path
) -> None:
    world, catalogue = known_world, known_world.catalogue()
    snapshot = world.snapshot(tmp_path, catalogue.item_ids, count=20)
    path = save_servable(world, known_embedding, tmp_path / "1", SERVING, users=snapshot)
    assert read_servable(str(path)).known_users == 20 and replay.replay(str(path))["failures"] == []
    loaded = tf.saved_model.load(str(path))
    known = set(snapshot.user_ids)
    histories = [
        history[-3:] if user in known else [] for user, history in zip(world.users, world.histories, strict=True)
    ]
    width = max(map(len, histories))
    rules = {
        "exclude": tf.constant([["i5"]] * len(histories)),
        "filter_genres": tf.constant([["Drama" if number % 2 else ""] for number in range(len(histories))]),
    }
    expected = loaded.signatures["recommend_filtered"](
        user_id=tf.constant([user if user in known else "" for user in world.users]),
        history=tf.constant([history + [""] * (width - len(history)) for history in histories]),
        **rules,
    )
    asked = missing([f for f in TOWERS.query if f.column != "user_id"], len(histories))
    found = loaded.signatures["recommend_user"](user_id=tf.constant(world.users), **asked, **rules)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.slow
def test_the_replay_knows_what_users_have_seen(known_world: World, known_embedding: str, tmp_path: Path) -> None:
    """A servable whose histories are not those of its file recommends what its users have seen."""
    catalogue = known_world.catalogue()
    snapshot = known_world.snapshot(tmp_path, catalogue.item_ids)
    path = save_servable(known_world, known_embedding, tmp_path / "1", SERVING, users=snapshot)
    table = snapshot.table
    everything = pa.array([list(range(140))] * len(table), pa.large_list(pa.int32()))
    pq.write_table(table.set_column(1, "history", everything), path / "assets.extra" / "users.parquet")
    failures = replay.replay(str(path))["failures"]
    assert any("recommend_user: item" in f and "although the request excludes it" in f for f in failures), failures
