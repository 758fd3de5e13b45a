"""InteractionExampleGen on real tables in temporary folders, against a naive oracle.

One file, as the executor is one: every case is judged by the same oracle.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import re
import resource
import signal
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem
from example_gen_runs import Output, Rows, run
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tfx.components.util import examples_utils
from tfx.types import artifact_utils

from components.interaction_example_gen import executor
from modules.data import columns, histories, tables, time_histogram
from modules.data.examples import CATALOGUE, EVAL, TRAIN, VALIDATION
from modules.data.report import Report
from modules.encodings.features import Features
from modules.errors import UserError
from modules.full_disk import refusal
from modules.settings import (
    ColumnSplit,
    Evaluation,
    LeaveLastOutSplit,
    RandomSplit,
    Serving,
    Split,
    Tables,
    TemporalSplit,
)
from pipeline.datasets import movielens_100k

# With an image named, which the in-memory runner never asks for, TFX does not pack a copy of itself for remote workers.
# Of the towers; examples hold whole histories.
MAX_LENGTH = 3


FEATURES: dict[str, Any] = {
    "query": [
        {"column": "user_id", "encoding": "vocabulary"},
        {"column": "age", "encoding": "normalized"},
        {"column": "city", "encoding": "vocabulary"},
        {"column": "device", "encoding": "vocabulary"},
        {"column": "timestamp", "encoding": "timestamp"},
        {"column": "history", "encoding": "history", "max_length": MAX_LENGTH},
        {"column": "history_age", "encoding": "history_age"},
    ],
    "candidate": [
        {"column": "item_id", "encoding": "vocabulary"},
        {"column": "title", "encoding": "text"},
        {"column": "tags", "encoding": "vocabulary", "multivalued": True},
        {"column": "price", "encoding": "log1p"},
    ],
}
ONLY_IDS: dict[str, Any] = {
    "query": [FEATURES["query"][0], *FEATURES["query"][-2:]],
    "candidate": [FEATURES["candidate"][0]],
}
EVALUATION: dict[str, Any] = {
    "slices": [
        {"column": "city"},
        {"column": "device"},
        {"column": "age", "boundaries": [18, 25]},
        {"column": "activity", "boundaries": [2, 4]},
    ]
}
SERVING: dict[str, Any] = {"return_columns": ["title", "maker", "year"], "filter_columns": ["tags", "maker"]}


@dataclass
class World:
    """Tables and settings of one test; `write` puts them into a folder, `run` runs the executor on them."""

    interactions: Rows
    items: Rows
    users: Rows | None
    split: Split = field(default_factory=LeaveLastOutSplit)
    features: dict[str, Any] = field(default_factory=lambda: FEATURES)
    evaluation: dict[str, Any] = field(default_factory=lambda: EVALUATION)
    serving: dict[str, Any] = field(default_factory=lambda: SERVING)
    names: dict[str, Any] = field(default_factory=dict)
    """Further keys of `tables`: items_not_in_table, or a dict for one of the tables."""

    def settings(self, folder: Path, suffix: str = "parquet") -> Tables:
        tree: dict[str, Any] = {"interactions": {"weight": "weight"}, "items": {"title": "title"}}
        if self.users is not None:
            tree["users"] = {}
        for name, value in self.names.items():
            tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
        for name in ("interactions", "items", "users"):
            if name in tree:
                tree[name].setdefault("path", str(folder / f"{name}.{suffix}"))
        return Tables.model_validate(tree)

    def write(self, folder: Path) -> None:
        for name, rows in (("interactions", self.interactions), ("items", self.items), ("users", self.users)):
            if rows is not None:
                pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=7)

    def run(self, folder: Path, tables_settings: Tables | None = None) -> Output:
        if tables_settings is None:
            self.write(folder)
            tables_settings = self.settings(folder)
        uri = tempfile.mkdtemp(prefix="examples-", dir=folder)
        return run(tables_settings, self.split, self.features, self.evaluation, self.serving, uri)

    def check(self, settings: Tables) -> tables.Plan:
        evaluation, serving = Evaluation.model_validate(self.evaluation), Serving.model_validate(self.serving)
        return tables.check_tables(settings, self.split, Features.model_validate(self.features), evaluation, serving)


def small_world(interactions: Rows | None = None, **changes: Any) -> World:
    """Three users, four items; user u3 and item i9 are in no other table, u2 and i2 lack some attributes."""
    if interactions is None:
        interactions = [
            interaction(user, item, time, n)
            for n, (user, item, time) in enumerate(
                [
                    ("u1", "i1", 10), ("u2", "i4", 5), ("u1", "i2", 20), ("u1", "i3", 15), ("u2", "i1", 7),
                    ("u1", "i4", 20), ("u2", "i9", 8), ("u3", "i2", 30), ("u2", "i3", 9), ("u1", "i1", 40),
                ]
            )
        ]  # fmt: skip
    items = [
        {"item_id": "i1", "title": 'One, "the" first', "tags": ["a", "b"], "price": 1.5, "maker": "x", "year": 1999},
        {"item_id": "i2", "title": "Two", "tags": [], "price": None, "maker": None, "year": None},
        {"item_id": "i3", "title": "Three\nlines", "tags": ["b", "c"], "price": 3.0, "maker": "y", "year": 2001},
        {"item_id": "i4", "title": "Four é", "tags": ["c"], "price": 4.0, "maker": "x", "year": 2002},
    ]
    users = [
        {"user_id": "u1", "age": 17, "city": "Bonn"},
        {"user_id": "u2", "age": None, "city": None},
        {"user_id": "u4", "age": 50, "city": "Rome"},
    ]
    return World(**{"interactions": interactions, "items": items, "users": users, **changes})


def interaction(user: str, item: str, time: int, n: int, **more: Any) -> dict[str, Any]:
    """The weight is the row's number, so that a row can be found again among the examples."""
    return {"user_id": user, "item_id": item, "timestamp": time, "weight": float(n + 1), "device": "app", **more}


# The oracle: every definition spelled out over plain lists, one row at a time.


def expected_sequences(rows: Rows, labels: list[str | None], max_sequence: int = 5_000) -> dict[str, list[Any]]:
    """By user, (item, time, weight, held out) of train and validation rows, oldest first; None labels a dropped one."""
    found: dict[str, list[Any]] = {}
    for n in sorted(range(len(rows)), key=lambda n: (rows[n]["timestamp"], n)):
        if labels[n] in (TRAIN, VALIDATION):
            row = (rows[n]["item_id"], rows[n]["timestamp"], rows[n]["weight"], int(labels[n] == VALIDATION))
            found.setdefault(rows[n]["user_id"], []).append(row)
    return {user: sequence[-max_sequence:] for user, sequence in found.items()}


def actual_sequences(output: Output) -> dict[str, list[Any]]:
    keys = ("item_id", "timestamp", "interaction_weight", "is_validation")
    return {user: [tuple(of[key] for key in keys) for of in rows] for user, rows in output.sequences().items()}


def expected_queries(rows: Rows, labels: list[str | None], mode: str) -> Counter[tuple[Any, ...]]:
    """(split, user, asked, history, its age, relevant) of every query; rows labelled None were dropped."""
    found: Counter[tuple[Any, ...]] = Counter()
    order = sorted(range(len(rows)), key=lambda n: (rows[n]["timestamp"], n))
    for split, before in ((VALIDATION, [TRAIN]), (EVAL, [TRAIN, VALIDATION])):
        for user in {row["user_id"] for row in rows}:
            own = [n for n in order if rows[n]["user_id"] == user]
            asked_for = [n for n in own if labels[n] == split]
            if mode == "rolling":
                questions = [
                    ([n], [m for m in own[: own.index(n)] if labels[m] in [*before, split]]) for n in asked_for
                ]
            else:
                questions = [(asked_for, [m for m in own if labels[m] in before])] if asked_for else []
            for targets, known in questions:
                time = max(rows[n]["timestamp"] for n in (targets[0], *known))
                history = tuple(rows[n]["item_id"] for n in known)
                age = time - rows[known[-1]]["timestamp"] if known else None
                found[split, user, time, history, age, tuple(dict.fromkeys(rows[n]["item_id"] for n in targets))] += 1
    return found


def actual_queries(output: Output) -> Counter[tuple[Any, ...]]:
    return Counter(
        (name, *row["user_id"], row["timestamp"], tuple(row.get("history", ())), row.get("history_age"),
         tuple(row["relevant_items"]))
        for name, row in output.queries()
    )  # fmt: skip


def labels_of(rows: Rows, split: Split) -> list[str | None]:
    """Splits by their definition, for the strategies that have one without a hash."""
    if isinstance(split, ColumnSplit):
        return [row[split.column] for row in rows]
    if isinstance(split, LeaveLastOutSplit):
        labels: list[str | None] = [TRAIN] * len(rows)
        for user in {row["user_id"] for row in rows}:
            own = sorted((row["timestamp"], n) for n, row in enumerate(rows) if row["user_id"] == user)
            if len(own) >= 3:
                labels[own[-1][1]], labels[own[-2][1]] = EVAL, VALIDATION
        return labels
    assert isinstance(split, TemporalSplit)
    if split.validation_from is not None and split.eval_from is not None:
        cuts = split.validation_from, split.eval_from
    else:
        cuts = brute_force_cuts([row["timestamp"] for row in rows], split)
    return [EVAL if r["timestamp"] >= cuts[1] else VALIDATION if r["timestamp"] >= cuts[0] else TRAIN for r in rows]


def brute_force_cuts(times: list[int], split: TemporalSplit) -> tuple[int, int]:
    """The cut-offs between different times whose shares come nearest, eval first; the earlier one of two equals."""
    different = sorted(set(times))

    def nearest(candidates: list[int], share: float) -> int:
        return min(candidates, key=lambda cut: (abs(sum(t < cut for t in times) - share * len(times)), cut))

    eval_from = nearest(different[2:], 1 - split.eval)
    return nearest([t for t in different[1:] if t < eval_from], 1 - split.eval - split.validation), eval_from


# What is in the examples.


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    return small_world().run(tmp_path_factory.mktemp("small"))


def test_examples_carry_what_the_contract_says(output: Output) -> None:
    """Worked out by hand. u1: i1 10, i3 15, i2 20, i4 20, i1 40; u2: i4 5, i1 7, i3 9 (i9 dropped); u3: i2 30."""
    sequences = {row["user_id"][0]: row for row in output.splits[TRAIN]}
    # Equal times keep the table's order; the last but one of u1 is validation's, the last is of eval and not here.
    assert sequences["u1"] == {
        "user_id": ["u1"], "age": 17.0, "city": ["Bonn"],
        "sequence_item_id": ["i1", "i3", "i2", "i4"], "sequence_timestamp": [10, 15, 20, 20],
        "sequence_interaction_weight": [1.0, 4.0, 3.0, 6.0], "sequence_is_validation": [0, 0, 0, 1],
        "sequence_device": ["app"] * 4,
    }  # fmt: skip
    # u2 has no attributes, u3 is in no users table.
    assert sequences["u2"]["sequence_item_id"] == ["i4", "i1"] and "age" not in sequences["u2"]
    assert sequences["u3"] == {
        "user_id": ["u3"], "sequence_item_id": ["i2"], "sequence_timestamp": [30], "sequence_is_validation": [0],
        "sequence_interaction_weight": [8.0], "sequence_device": ["app"],
    }  # fmt: skip
    assert len(sequences) == len(output.splits[TRAIN]) == 3

    queries = {(name, row["user_id"][0]): row for name, row in output.queries()}
    about = {
        "user_id": ["u1"], "age": 17.0, "city": ["Bonn"], "device": ["app"],
        "slice_city": ["Bonn"], "slice_age": ["<18"], "slice_device": ["app"], "slice_activity": ["4+"],
    }  # fmt: skip
    assert queries[VALIDATION, "u1"] == {
        **about, "timestamp": 20, "relevant_items": ["i4"], "history": ["i1", "i3", "i2"], "history_age": 0.0,
    }  # fmt: skip
    # Longer than the tower reads.
    assert queries[EVAL, "u1"] == {
        **about, "timestamp": 40, "relevant_items": ["i1"], "history": ["i1", "i3", "i2", "i4"], "history_age": 20.0,
    }  # fmt: skip
    assert queries[EVAL, "u2"] == {
        "slice_city": ["unknown"], "slice_age": ["unknown"], "slice_device": ["app"], "slice_activity": ["2-3"],
        "user_id": ["u2"], "device": ["app"], "timestamp": 9, "relevant_items": ["i3"], "history": ["i4", "i1"],
        "history_age": 2.0,
    }  # fmt: skip
    assert len(queries) == 4


@pytest.mark.slow
def test_the_interactions_own_columns_stay_aligned(tmp_path: Path) -> None:
    """Lists, numbers and times, each of them missing somewhere; in a query they are what they are in any example."""
    own: Rows = [
        {"seen_on": ["tv", "app"], "paid": 1.5, "opened": 100},
        {"seen_on": None, "paid": None, "opened": None},
        {"seen_on": ["tv"], "paid": 2.5, "opened": 300},
        {"seen_on": [], "paid": None, "opened": 400},
    ]
    rows = [{**interaction("u1", f"i{n + 1}", 10 * n, n), **more} for n, more in enumerate(own)]
    features = {
        **ONLY_IDS,
        "query": [
            *ONLY_IDS["query"],
            {"column": "seen_on", "encoding": "vocabulary", "multivalued": True},
            {"column": "paid", "encoding": "normalized"},
            {"column": "opened", "encoding": "timestamp"},
        ],
    }
    slices = {"slices": [{"column": "seen_on"}]}
    world = small_world(rows, users=None, features=features, evaluation=slices, split=LeaveLastOutSplit())
    output = world.run(tmp_path)
    (example,) = output.splits[TRAIN]
    assert example["sequence_seen_on"] == ["tv\x1fapp", "", "tv"]
    np.testing.assert_array_equal(example["sequence_paid"], [1.5, np.nan, 2.5])
    assert example["sequence_opened"] == [100, -1, 300]
    (validation,), (eval_,) = output.splits[VALIDATION], output.splits[EVAL]
    assert (validation["seen_on"], validation["paid"], validation["opened"]) == (["tv"], 2.5, 300)
    assert validation["slice_seen_on"] == ["tv"] and eval_["slice_seen_on"] == ["unknown"]
    assert "seen_on" not in eval_ and "paid" not in eval_ and eval_["opened"] == 400
    world.interactions[0]["seen_on"] = ["a\x1fb"]
    message = r"1 values of 'seen_on' hold the character U\+001F, .* row 1 of .*: remove it"
    assert_refused(world, tmp_path / "refused", message)


@pytest.mark.slow
def test_long_sequences_are_cut_and_counted(tmp_path: Path) -> None:
    rows = [interaction("long", f"i{n % 4 + 1}", n, n) for n in range(20)]
    rows += [interaction("short", "i1", n, 20 + n) for n in range(5)]
    world = small_world(rows, users=None, features=ONLY_IDS, evaluation={}, names={"max_sequence": 7})
    output = world.run(tmp_path)
    labels = labels_of(rows, world.split)
    assert actual_sequences(output) == expected_sequences(rows, labels, 7)
    # 19 of `long` are of train or validation, 7 of them kept. What is known in a query is whole.
    assert (output.count("cut_sequences"), output.count("cut_interactions")) == (1, 12)
    assert actual_queries(output) == expected_queries(rows, labels, "train")
    world.names = {"max_sequence": 1}
    message = r"tables\.max_sequence is 1, which leaves validation interactions alone; raise it"
    assert_refused(world, tmp_path / "refused", message)


def test_without_a_history_feature_queries_have_none(tmp_path: Path) -> None:
    features = {**ONLY_IDS, "query": ONLY_IDS["query"][:1]}
    output = small_world(features=features, evaluation={"history": "rolling"}).run(tmp_path)
    assert all("history" not in row and "history_age" not in row for _, row in output.queries())
    assert [row["relevant_items"] for row in output.splits[EVAL]] == [["i1"], ["i3"]]


@pytest.mark.slow
def test_the_bytes_of_train_grow_with_the_interactions_and_not_with_their_histories(tmp_path: Path) -> None:
    """Each user's example stays below one line through the number of interactions, up to a thousand of them."""
    lengths = [3, 10, 30, 100, 300, 1000]
    rows = [
        interaction(f"u{length}", f"i{n % 4 + 1}", 1_600_000_000 + n, n) for length in lengths for n in range(length)
    ]
    output = small_world(rows, users=None, evaluation={}, features=ONLY_IDS).run(tmp_path)
    paths = tf.io.gfile.glob(os.path.join(output.artifact.uri, f"Split-{TRAIN}", "data_tfrecord-*.gz"))
    records = list(tf.data.TFRecordDataset(paths, compression_type="GZIP").as_numpy_iterator())
    size = {tf.train.Example.FromString(r).features.feature["user_id"].bytes_list.value[0]: len(r) for r in records}
    # An id of two letters and its frame 4, a time 5, a weight 4, a flag 1.
    for length in lengths:
        assert size[f"u{length}".encode()] <= 200 + 14 * length


def test_catalogue_holds_the_items_and_nothing_of_a_query(output: Output) -> None:
    rows = {row["item_id"][0]: row for row in output.splits[CATALOGUE]}
    assert len(rows) == len(output.splits[CATALOGUE]) == 4
    assert rows["i1"] == {
        "item_id": ["i1"], "title": ['One, "the" first'], "tags": ["a", "b"], "price": 1.5, "maker": ["x"],
        "year": ["1999"],
    }  # fmt: skip
    assert rows["i2"] == {"item_id": ["i2"], "title": ["Two"]}


def test_artifact_is_what_stock_components_expect(output: Output) -> None:
    assert artifact_utils.decode_split_names(output.artifact.split_names) == [TRAIN, VALIDATION, EVAL, CATALOGUE]
    assert examples_utils.get_payload_format_string(output.artifact) == "FORMAT_TF_EXAMPLE"
    assert examples_utils.get_file_format(output.artifact) == "tfrecords_gzip"
    counts = {
        "interactions": 10, "users": 3, "items": 4, "items_not_in_table": 1, "dropped_items_not_in_table": 1,
        "users_not_in_table": 1,
        "dropped_users_not_in_table": 0, "examples_train": 3, "examples_validation": 2, "examples_eval": 2,
        "examples_catalogue": 4, "interactions_train": 5, "interactions_validation": 2, "interactions_eval": 2,
        "cut_sequences": 0, "cut_interactions": 0,
    }  # fmt: skip
    assert {name: output.count(name) for name in counts} == counts


def test_items_not_in_table_are_kept_and_users_not_in_table_dropped(tmp_path: Path) -> None:
    """And the items table may call the item id otherwise."""
    world = small_world(names={"items_not_in_table": "keep", "users_not_in_table": "drop", "items": {"id": "code"}})
    world.items = [{"code": row["item_id"], **{k: v for k, v in row.items() if k != "item_id"}} for row in world.items]
    kept = world.run(tmp_path)
    assert kept.sequences().keys() == {"u1", "u2"}
    # u2's i9 is part of the sequence and of the history, and not in the catalogue.
    assert [row["item_id"] for row in kept.sequences()["u2"]] == ["i4", "i1", "i9"]
    assert [row["history"] for row in kept.splits[EVAL] if row["user_id"] == ["u2"]] == [["i4", "i1", "i9"]]
    assert sorted(row["item_id"][0] for row in kept.splits[CATALOGUE]) == ["i1", "i2", "i3", "i4"]
    assert all("code" not in row for row in kept.splits[CATALOGUE])
    assert (kept.count("items_not_in_table"), kept.count("dropped_items_not_in_table")) == (1, 0)
    assert (kept.count("users_not_in_table"), kept.count("dropped_users_not_in_table")) == (1, 1)


# Splits and histories as properties.

# Columns that become no input of the servable may be named as anybody likes.
PART = "sp:lit/größe €"
rows_of_users = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["i1", "i2", "i3", "i4"]), st.integers(0, 12)),
    min_size=8,
    max_size=40,
).map(
    lambda triples: [
        interaction(user, item, time, n, **{PART: (TRAIN, VALIDATION, EVAL, TRAIN)[(time * 7 + n) % 4]})
        for n, (user, item, time) in enumerate(triples)
    ]
)
splits = st.sampled_from(
    [
        TemporalSplit(validation=0.2, eval=0.2),
        TemporalSplit(validation_from=4, eval_from=8),
        RandomSplit(validation=0.3, eval=0.3),
        LeaveLastOutSplit(),
        ColumnSplit(column=PART),
    ]
)


def assert_nothing_leaks(output: Output, rows: Rows, labels: list[str | None]) -> None:
    """No query sees its future, none sees what it asks for, and no sequence holds an eval interaction."""
    by_weight = {row["weight"]: (row, label) for row, label in zip(rows, labels, strict=True)}
    for user, sequence in output.sequences().items():
        for of in sequence:
            row, label = by_weight[of["interaction_weight"]]
            assert (row["user_id"], row["item_id"], row["timestamp"]) == (user, of["item_id"], of["timestamp"])
            assert label == (VALIDATION if of["is_validation"] else TRAIN)
        assert [of["timestamp"] for of in sequence] == sorted(of["timestamp"] for of in sequence)
    for split, query in output.queries():
        hidden = [EVAL] if split == VALIDATION else []
        past = Counter(
            row["item_id"]
            for row, label in by_weight.values()
            if [row["user_id"]] == query["user_id"] and row["timestamp"] <= query["timestamp"] and label not in hidden
        )
        assert not Counter(query.get("history", ())) - past


def assert_as_the_oracle_says(rows: Rows, split: Split, modes: Sequence[str]) -> None:
    """Runs the component on a table of ids, and compares every example with the definitions."""
    labels: list[str | None] = [] if isinstance(split, RandomSplit) else labels_of(rows, split)
    for mode in modes:
        world = small_world(rows, split=split, users=None, features=ONLY_IDS, evaluation={"history": mode})
        with tempfile.TemporaryDirectory() as folder:
            output = world.run(Path(folder))
        if isinstance(split, RandomSplit) and not labels:
            # What is in no sequence is eval's: the queries must ask for just that.
            held = {of["interaction_weight"]: of["is_validation"] for s in output.sequences().values() for of in s}
            names = {0: TRAIN, 1: VALIDATION, None: EVAL}
            labels = [names[held.get(row["weight"])] for row in rows]
        assert actual_sequences(output) == expected_sequences(rows, labels)
        assert actual_queries(output) == expected_queries(rows, labels, mode)
        assert_nothing_leaks(output, rows, labels)


@pytest.mark.parametrize(
    ("split", "modes"),
    [
        (TemporalSplit(validation=0.2, eval=0.2), ("rolling", "train")),
        (TemporalSplit(validation_from=20, eval_from=30), ("train",)),
        pytest.param(RandomSplit(validation=0.3, eval=0.3), ("rolling", "train"), marks=pytest.mark.slow),
        (LeaveLastOutSplit(), ("train",)),
        pytest.param(ColumnSplit(column=PART), ("rolling", "train"), marks=pytest.mark.slow),
    ],
    ids=lambda value: value.strategy if isinstance(value, tables.Settings) else None,
)
def test_splits_and_histories_equal_the_oracle(split: Split, modes: Sequence[str]) -> None:
    """80 rows of 8 users, times in disorder and with many ties, some users with one or two rows."""
    rng = np.random.default_rng(3)
    users = [*rng.integers(0, 5, 75), 5, 6, 6, 7, 7]
    rows = [
        interaction(
            f"u{user}", f"i{rng.integers(1, 5)}", int(rng.integers(0, 40)), n, **{PART: histories.SPLITS[n % 3]}
        )
        for n, user in enumerate(users)
    ]
    assert_as_the_oracle_says(rows, split, modes)


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rows=rows_of_users, split=splits)
def test_no_query_sees_its_future_in_any_small_table(rows: Rows, split: Split) -> None:
    assume(len({row["timestamp"] for row in rows}) > 2)
    try:
        assert_as_the_oracle_says(rows, split, ("rolling", "train"))
    except UserError as error:
        assert "split of" in str(error) and "is empty" in str(error)


def test_time_histogram_beyond_its_limit_stays_within_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_histogram, "_MOST_STEPS", 64)
    rng = np.random.default_rng(0)
    times = rng.integers(0, 10_000, 5_000)
    combine = executor._CountTimes()
    accumulators = []
    for chunk in np.split(times, 10):
        accumulator = combine.create_accumulator()
        for part in np.split(chunk, 5):
            accumulator = combine.add_input(accumulator, (b"", b"", _at(part)))
        accumulators.append(combine.compact(accumulator))
    merged = combine.extract_output(combine.merge_accumulators(accumulators))
    assert merged is not None
    steps, counts = merged
    assert len(steps) <= 64 and counts.sum() == 5_000
    width = int(np.gcd.reduce(np.diff(steps)))
    assert width & (width - 1) == 0
    np.testing.assert_array_equal(steps, np.unique(times // width) * width)
    assert histories.fraction_cutoffs(steps, counts, TemporalSplit())[1] == pytest.approx(
        np.quantile(times, 0.9), abs=2 * width
    )


def _at(times: np.ndarray) -> histories.Interactions:
    return histories.Interactions(times, times, np.full(len(times), b"i", object), np.ones(len(times)))


@pytest.mark.slow
def test_random_split_does_not_depend_on_files_or_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rows = [
        interaction(f"u{user}", f"i{item}", int(time), n)
        for n, (user, item, time) in enumerate(rng.integers(1, [5, 5, 1000], (300, 3)))
    ]
    # The same interaction twice is two interactions.
    rows[1] = {**rows[0], "weight": 2.0}
    world = small_world(rows, split=RandomSplit(), users=None, features=ONLY_IDS, evaluation={"history": "rolling"})
    whole = world.run(tmp_path)
    shuffled = [rows[n] for n in rng.permutation(300)]
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, start in enumerate(range(0, 300, 100)):
        pq.write_table(pa.Table.from_pylist(shuffled[start : start + 100]), folder / f"part-{number}.parquet")
    world.names = {"interactions": {"path": str(folder / "part-*.parquet")}}
    cut = world.run(tmp_path, world.settings(tmp_path))

    def membership(output: Output) -> Counter[tuple[Any, ...]]:
        found = Counter(
            (VALIDATION if of["is_validation"] else TRAIN, user, of["item_id"], of["timestamp"])
            for user, sequence in output.sequences().items()
            for of in sequence
        )
        return found + Counter((EVAL, *q["user_id"], *q["relevant_items"], q["timestamp"]) for q in output.splits[EVAL])

    assert membership(whole) == membership(cut) and membership(cut).total() == 300
    assert 0.04 < whole.count("interactions_eval") / 300 < 0.16


# CSV, types and names.


@pytest.mark.slow
def test_csv_gives_the_same_examples_as_parquet(output: Output, tmp_path: Path) -> None:
    world = small_world()
    flat = [{**row, "tags": "|".join(row["tags"])} for row in world.items]
    assert world.users is not None
    # Two files, one of them compressed; times as dates in one cell, ages as pandas writes integers with gaps.
    rows = world.interactions
    dated = [{**row, "timestamp": f"1970-01-01 00:00:{row['timestamp']:02d}"} for row in rows]
    for name, table in (
        ("interactions-1", dated[:4]),
        ("interactions-2", rows[4:]),
        ("items", flat),
        ("users", world.users),
    ):
        suffix = "csv.gz" if name == "interactions-2" else "csv"
        with pa.output_stream(str(tmp_path / f"{name}.{suffix}"), compression="detect") as stream:
            pa.csv.write_csv(pa.Table.from_pylist(table), stream)
    world.features = {**FEATURES, "candidate": [_separated(f) for f in FEATURES["candidate"]]}
    world.names = {"interactions": {"path": str(tmp_path / "interactions-*")}}
    found = world.run(tmp_path, world.settings(tmp_path, "csv"))
    for name, split in output.splits.items():
        assert sorted(found.splits[name], key=repr) == sorted(split, key=repr), name


@pytest.mark.slow
def test_ids_and_times_of_any_type_mean_the_same(tmp_path: Path) -> None:
    """Whole numbers, floats, dictionaries and strings are one id; seconds, dates with and without zone one time."""
    seconds = [1577836800 + n for n in range(4)]
    stamps = [datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=n + 0.5) for n in range(4)]
    zoned = pa.array(stamps, pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("ms", "+02:00"))
    types = [
        (pa.array([second + 0.5 for second in seconds]), pa.array([1.0, 2.0, 3.0, 4.0])),
        (pa.array(stamps, pa.timestamp("us")), pa.array([1, 2, 3, 4], pa.int8())),
        (zoned, pa.array(["1", "2", "3", "4"]).dictionary_encode()),
        (
            pa.array([stamp.isoformat() + "Z" for stamp in stamps]),
            pa.array(["1.0", "2.0", "3", "4"], pa.large_string()),
        ),
    ]
    pq.write_table(pa.table({"item_id": [1, 2, 3, 4]}), tmp_path / "items.parquet")
    for user, (times, ids) in enumerate(types):
        rows = pa.table({"user_id": pa.array([user] * 4), "item_id": ids, "timestamp": times})
        pq.write_table(rows, tmp_path / f"interactions-{user}.parquet")
    world = small_world(
        [], users=None, features=ONLY_IDS, evaluation={"history": "rolling"}, serving={},
        names={"interactions": {"path": str(tmp_path / "interactions-*"), "weight": None}, "items": {"title": None}},
    )  # fmt: skip
    output = world.run(tmp_path, world.settings(tmp_path))
    for user in map(str, range(len(types))):
        sequence = output.sequences()[user]
        assert [(of["item_id"], of["timestamp"]) for of in sequence] == list(zip("123", seconds, strict=False)), user
        assert [query for query in output.splits[EVAL] if query["user_id"] == [user]] == [
            {
                "user_id": [user], "timestamp": seconds[3], "relevant_items": ["4"], "history": ["1", "2", "3"],
                "history_age": float(seconds[3] - seconds[2]),
            }
        ]  # fmt: skip


def test_values_by_type() -> None:
    assert columns.texts(pa.array([True, None, False])) == [b"true", None, b"false"]
    assert columns.texts(pa.array([1.0, 2.5, math.nan, None, math.inf])) == [b"1", b"2.5", None, None, b"inf"]
    assert columns.texts(pa.array(["a", "", None, "é"])) == [b"a", None, None, "é".encode()]
    assert columns.texts(pa.array([datetime.date(2020, 2, 3)])) == [b"2020-02-03"]
    assert columns.ids(pa.array(["12.0", "x.0", "12", ".0"])) == [b"12", b"x.0", b"12", b".0"]
    assert columns.lists(pa.array([["a", None, ""], None, [], ["b"]]), None) == [[b"a"], None, None, [b"b"]]
    assert columns.lists(pa.array([["x"], ["a", "b"], [], ["c"]]).slice(1), None) == [[b"a", b"b"], None, [b"c"]]
    assert columns.lists(pa.array([[1, 2]], pa.list_(pa.int32(), 2)), None) == [[b"1", b"2"]]
    assert columns.lists(pa.array(["a | b||", "", None, "c"]), "|") == [[b"a", b"b"], None, None, [b"c"]]
    found, (words,) = columns.numbers(pa.array(["1", " 2.5", "NA", None, "x", "y"]))
    np.testing.assert_array_equal(found, [1, 2.5, np.nan, np.nan, np.nan, np.nan])
    assert (words.rows.tolist(), words.example) == ([False] * 4 + [True] * 2, "'x'")
    found, missing, (word,) = columns.seconds(pa.array(["10", "1970-01-01T00:01:00+01:00", "", "soon"]))
    assert (found[0], found[1], missing.tolist(), word.example) == (10, 60 - 3600, [False, False, True, True], "'soon'")
    before = pa.array([datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000)], pa.timestamp("us"))
    assert columns.seconds(before)[0].tolist() == [-1]
    assert columns.seconds(pa.array([datetime.date(1970, 1, 2)]))[0].tolist() == [86400]


@pytest.mark.parametrize(
    ("boundaries", "names"),
    [
        ((18, 25), {17: "<18", 17.9: "<18", 18: "18-24", 24: "18-24", 25: "25+", 99: "25+"}),
        ((0.5, 1.5), {0: "<0.5", 0.5: "0.5-1.5", 1.5: "1.5+"}),
        ((3, 4, 10), {3: "3", 4: "4-9", 10: "10+"}),
    ],
)
def test_ranges_are_named_by_their_boundaries(boundaries: tuple[float, ...], names: dict[float, str]) -> None:
    assert {value: columns.ranges(boundaries)(value).decode() for value in names} == names


# Bad input: one line each, and nothing left behind.


def test_everything_wrong_with_the_rows_is_said_at_once(tmp_path: Path) -> None:
    """Each kind of mistake once, in a table that is right otherwise: every one gets its words, count and example."""
    world = small_world(
        split=ColumnSplit(column="part"), names={"items_not_in_table": "fail", "users_not_in_table": "fail"}
    )
    parts = itertools.cycle([TRAIN, VALIDATION, EVAL])
    good = [{**row, "timestamp": float(row["timestamp"]), "part": next(parts)} for row in world.interactions]
    bad: Rows = [
        {"timestamp": math.nan}, {"timestamp": -5.0}, {"timestamp": 1.7e12}, {"weight": -1.0}, {"weight": math.nan},
        {"user_id": None}, {"item_id": ""}, {"part": "test"}, {"part": None},
    ]  # fmt: skip
    world.interactions = [*good, *({**good[0], **changes} for changes in bad)]
    assert world.users is not None
    world.users = [{**row, "age": str(row["age"] or "")} for row in world.users]
    world.users[0]["age"] = "old"
    world.users.append(world.users[2])
    world.items.append(world.items[0])
    refused = assert_refused(world, tmp_path, "tables")
    place = re.escape(str(tmp_path / "interactions.parquet"))
    for message in (
        rf"1 values of 'timestamp' are missing \(NaN or empty\), for instance nan in row 11 of {place}: write the time",
        rf"1 values of 'timestamp' are before 1970 or after 2099, .* instance -5\.0 in row 12 of {place}: correct or",
        rf"1 values of 'timestamp' are infinite .* 1700000000000\.0 in row 13 of {place}: .* milliseconds",
        rf"1 values of 'weight' are no weights, .* instance -1\.0 in row 14 of {place}: correct them",
        rf"1 values of 'weight' are missing \(NaN or empty\), for instance nan in row 15 of {place}: write a weight",
        rf"1 rows have no user_id, for instance row 16 of {place}",
        rf"1 rows have no item_id, for instance row 17 of {place}",
        r"2 values of 'part' are none of train, validation and eval, for instance ('test'|None) in row 1[89]",
        r"1 rows have an item that .*items\.parquet lacks, for instance 'i9': add those items, or set",
        r"1 rows have a user that .*users\.parquet lacks, for instance 'u3': add those users, or set",
        r"tables\.items: 1 values of 'item_id' are there more than once, for instance 'i1': keep one row of each",
        r"tables\.users: 1 values of 'user_id' are there more than once, for instance 'u4'",
        r"tables\.users: 1 values of 'age' are not numbers, for instance 'old'",
    ):
        assert re.search(message, refused), message


@pytest.mark.slow
def test_times_that_are_words_and_an_empty_split(tmp_path: Path) -> None:
    world = small_world(split=TemporalSplit(validation_from=1000, eval_from=2000))
    message = r"the validation split of 9 interactions is empty; move split\.validation_from and split\.eval_from"
    assert_refused(world, tmp_path, message)
    world.interactions = [{**row, "timestamp": str(row["timestamp"])} for row in world.interactions]
    world.interactions[3]["timestamp"] = "yesterday"
    assert_refused(
        world, tmp_path, r"1 values of 'timestamp' are neither seconds.*nor dates.* instance 'yesterday' in row 4"
    )


@pytest.mark.parametrize(
    ("counts", "split", "message"),
    [
        ({"items": 0}, RandomSplit(), r"tables\.items: .*items\.parquet has no rows"),
        ({"interactions": 0}, RandomSplit(), r"tables\.interactions: .*interactions\.parquet has no rows"),
        ({"interactions_train": 0}, RandomSplit(), r"none of the 8 interactions has an item .* hold the same ids\?"),
        ({}, RandomSplit(), r"the validation split of 8 interactions is empty; .* raise split\.validation"),
        ({"interactions_train": 0, "interactions_eval": 8}, RandomSplit(), r"the train split .* lower both fractions"),
        ({}, TemporalSplit(), r"the validation split .* needs three different times"),
        ({}, LeaveLastOutSplit(), r"no user has three interactions; choose another split\.strategy"),
        ({}, ColumnSplit(column="part"), r"write 'validation' into column 'part'"),
    ],
)
def test_empty_tables_and_splits_name_their_fix(
    tmp_path: Path, counts: dict[str, int], split: Split, message: str
) -> None:
    found = {"items": 4, "interactions": 8, "interactions_train": 8, **counts}
    with pytest.raises(UserError, match=message):
        Report(((name,), (number, "")) for name, number in found.items()).raise_problems(
            small_world().settings(tmp_path), split
        )


@pytest.mark.slow
def test_torn_files_and_files_with_other_columns(tmp_path: Path) -> None:
    world = small_world()
    world.write(tmp_path)
    whole = tmp_path / "interactions.parquet"
    table = pq.read_table(whole)
    pq.write_table(table, tmp_path / "part-1.parquet")
    pq.write_table(table.drop_columns(["item_id"]), tmp_path / "part-2.parquet")
    (tmp_path / "part-3.parquet").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "part-4.csv").write_text("user_id,item_id,timestamp,weight,device\nu1,i1,1,1,app\nu1,i2\n")
    world.names = {"interactions": {"path": str(tmp_path / "part-*")}}
    settings = world.settings(tmp_path)
    with pytest.raises(UserError) as caught:
        world.run(tmp_path, settings)
    assert re.search(r"1 files .*part-2\.parquet \(it has no column 'item_id'\): write all files", str(caught.value))
    assert re.search(r"2 files cannot be read, for instance .*part-3\.parquet \(.*\): is it torn\?", str(caught.value))
    # The first file is looked at before anything runs.
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"part-1\.parquet cannot be read"):
        world.check(settings)
    (tmp_path / "part-0.csv").write_text("")
    with pytest.raises(UserError, match=r"part-0\.csv\) has no column 'user_id'; it has no columns at all"):
        world.check(settings)


def test_refused_writes_are_named(tmp_path: Path) -> None:
    world = small_world()
    world.write(tmp_path)
    settings = world.settings(tmp_path)
    (tmp_path / "file").write_text("in the way")
    arguments = world.split, world.features, world.evaluation, world.serving
    with pytest.raises(UserError, match=r"cannot write to .*file/examples.*output\.root"):
        run(settings, *arguments, str(tmp_path / "file" / "examples"))

    # A disk that is full in the middle of the run: the kernel refuses files above a size.
    uri = tmp_path / "full"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(Exception, match="File too large") as error:
            run(settings, *arguments, str(uri))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    found = refusal(error.value)
    assert found is not None and found.reason == "File too large"
    assert list(uri.iterdir()) == []


def assert_refused(world: World, folder: Path, message: str) -> str:
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message) as caught:
        world.run(folder)
    assert "\n" not in str(caught.value)
    (uri,) = folder.glob("examples-*")
    assert list(uri.iterdir()) == []
    uri.rmdir()
    return str(caught.value)


# What is found before anything runs.


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"items": {"path": "/nowhere/x.parquet"}}, r"tables\.items\.path: there is no file /nowhere/x\.parquet"),
        ({"users": {"path": "/nowhere/*.csv"}}, r"tables\.users\.path: there is no file /nowhere/\*\.csv"),
        ({"users": {"path": "/tmp"}}, r"tables\.users\.path: /tmp is a folder; name its files"),
        ({"items": {"path": __file__}}, r"tables\.items\.path: .*\.py is neither Parquet nor CSV"),
        ({"interactions": {"user": "who"}}, r"tables\.interactions\.user: .* no column 'who'; it has user_id, item_id"),
        ({"items": {"id": "code"}}, r"tables\.items\.id: items .* no column 'code'; it has item_id, title, tags"),
        ({"users": {"id": "who"}}, r"tables\.users\.id: users .* no column 'who'; it has user_id, age, city"),
        ({"interactions": {"weight": "stars"}}, r"tables\.interactions\.weight: .* no column 'stars'"),
        ({"items": {"title": "name"}}, r"tables\.items\.title: items .* no column 'name'"),
    ],
)
def test_missing_files_and_columns(tmp_path: Path, names: dict[str, Any], message: str) -> None:
    world = small_world(names=names)
    world.write(tmp_path)
    with pytest.raises(UserError, match=message):
        world.check(world.settings(tmp_path))
    with pytest.raises(UserError, match=message):
        world.run(tmp_path, world.settings(tmp_path))


@pytest.mark.parametrize(
    ("query", "candidate", "message"),
    [
        ({"column": "mood", "encoding": "vocabulary"}, None,
         r"features\.query: no table has a column 'mood' \(interactions .* has user_id.*; users .* has user_id, age"),
        ({"column": "both", "encoding": "vocabulary"}, None, r"both interactions and users have a column 'both'"),
        ({"column": "when", "encoding": "log1p"}, None, r"'when' is of type timestamp.*timestamp encoding"),
        (None, {"column": "age", "encoding": "normalized"}, r"features\.candidate: items .* no column 'age'"),
        (None, {"column": "tags", "encoding": "vocabulary"}, r"'tags' is of type list.*multivalued: true"),
        (None, {"column": "tags", "encoding": "normalized"}, r"'tags' is of type list.*does not become a number"),
        (None, {"column": "timestamp", "encoding": "timestamp"}, r"an example has 'timestamp' already"),
    ],
)  # fmt: skip
def test_features_that_the_tables_do_not_give(
    tmp_path: Path, query: dict[str, Any] | None, candidate: dict[str, Any] | None, message: str
) -> None:
    features = {
        "query": [ONLY_IDS["query"][0], *([query] if query else [])],
        "candidate": [ONLY_IDS["candidate"][0], *([candidate] if candidate else [])],
    }
    world = small_world(features=features, evaluation={})
    assert world.users is not None
    world.interactions = [{**r, "both": 1, "when": datetime.datetime(2020, 1, 1)} for r in world.interactions]
    world.users = [{**row, "both": 2} for row in world.users]
    world.items = [{**row, "timestamp": 5} for row in world.items]
    world.write(tmp_path)
    with pytest.raises(UserError, match=message):
        world.check(world.settings(tmp_path))


def test_the_item_is_no_query_feature(tmp_path: Path) -> None:
    query = [{"column": "item_id", "encoding": "vocabulary"}]
    features = {"query": query, "candidate": [{"column": "title", "encoding": "text"}]}
    world = small_world(features=features, evaluation={})
    world.write(tmp_path)
    with pytest.raises(UserError, match=r"features\.query: 'item_id' is the item to be predicted"):
        world.check(world.settings(tmp_path))


def test_slices_and_split_columns_are_looked_for(tmp_path: Path) -> None:
    world = small_world(evaluation={"slices": [{"column": "mood"}]})
    world.write(tmp_path)
    with pytest.raises(UserError, match=r"evaluation\.slices: no table has a column 'mood'"):
        world.check(world.settings(tmp_path))
    world = small_world(split=ColumnSplit(column="part"))
    with pytest.raises(UserError, match=r"split\.column: interactions .* no column 'part'"):
        world.check(world.settings(tmp_path))


# Cache keys and places.


def test_fingerprint_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    world = small_world()
    world.write(tmp_path)
    settings = world.settings(tmp_path)
    first = tables.fingerprint(settings)
    os.utime(tmp_path / "items.parquet", (1, 1))
    assert tables.fingerprint(settings) == first
    content = bytearray((tmp_path / "items.parquet").read_bytes())
    content[10] ^= 1
    (tmp_path / "items.parquet").write_bytes(content)
    assert tables.fingerprint(settings) != first
    (tmp_path / "users.parquet").unlink()
    with pytest.raises(UserError, match=r"tables\.users\.path: there is no file"):
        tables.fingerprint(settings)


def test_only_what_decides_the_examples_is_a_parameter(tmp_path: Path) -> None:
    """Another embedding size, floor, k or history length is no reason to run again; another slice is."""
    world = small_world()

    def parameter(features: dict[str, Any], evaluation: dict[str, Any], serving: dict[str, Any]) -> str:
        return tables.wanted(
            world.settings(tmp_path), Features.model_validate(features), Evaluation.model_validate(evaluation),
            Serving.model_validate(serving),
        ).model_dump_json()  # fmt: skip

    first = parameter(FEATURES, EVALUATION, SERVING)
    wider = {key: [{**f} for f in value] for key, value in FEATURES.items()}
    wider["query"][0]["dimension"] = 7
    wider["query"][-2]["max_length"] = 8
    assert parameter(wider, {**EVALUATION, "floors": {"mrr": 0.1}}, {**SERVING, "k": 500}) == first
    assert parameter(FEATURES, {}, SERVING) != first


class _FarAway(LocalFileSystem):
    """The local disk behind a scheme of its own, as a bucket is behind gs://."""

    @classmethod
    def scheme(cls) -> str:
        return "faraway"

    def match(self, patterns: list[str], limits: list[int] | None = None) -> Any:
        results = super().match([pattern.removeprefix("faraway://") for pattern in patterns], limits)
        for result in results:
            for metadata in result.metadata_list:
                metadata.path = "faraway://" + metadata.path
        return results

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().open(path.removeprefix("faraway://"), *args, **kwargs)


@pytest.mark.slow
def test_remote_tables_are_read_through_beams_file_systems(output: Output, tmp_path: Path) -> None:
    assert FileSystems.get_filesystem("faraway://x").scheme() == "faraway"
    world = small_world()
    world.write(tmp_path)
    names = ("interactions", "items", "users")
    world.names = {name: {"path": f"faraway://{tmp_path}/{name}.par*"} for name in names}
    settings = world.settings(tmp_path)
    found = world.run(tmp_path, settings)
    assert {name: sorted(map(repr, rows)) for name, rows in found.splits.items()} == {
        name: sorted(map(repr, rows)) for name, rows in output.splits.items()
    }
    first = tables.fingerprint(settings)
    os.utime(tmp_path / "items.parquet", (1, 1))
    assert tables.fingerprint(settings) != first
    world.names = {"items": {"path": "faraway:///nowhere/*.csv"}}
    with pytest.raises(UserError, match=r"there is no file faraway:///nowhere"):
        world.check(world.settings(tmp_path))


# The real data.


@pytest.mark.slow
def test_movielens_100k(tmp_path: Path) -> None:
    try:
        movielens_100k.prepare(str(tmp_path), sources=("recbole",))
    except UserError as error:
        pytest.skip(str(error))
    features = {
        "query": [
            {"column": "user_id", "encoding": "vocabulary"},
            {"column": "age", "encoding": "normalized"},
            {"column": "history", "encoding": "history", "max_length": 20},
        ],
        "candidate": [
            {"column": "item_id", "encoding": "vocabulary"},
            {"column": "genres", "encoding": "vocabulary", "multivalued": True},
        ],
    }
    places = {name: {"path": str(tmp_path / f"{name}.parquet")} for name in ("interactions", "items", "users")}
    uri = str(tmp_path / "examples")
    settings = Tables.model_validate(places)
    found = run(settings, TemporalSplit(), features, {}, {"return_columns": ["title"]}, uri, (EVAL, CATALOGUE))
    assert (found.count("interactions"), found.count("items"), found.count("users")) == (100_000, 1_682, 943)
    assert found.count("items_not_in_table") == found.count("users_not_in_table") == 0
    total = sum(found.count(f"interactions_{name}") for name in (TRAIN, VALIDATION, EVAL))
    assert (total, found.count("examples_eval")) == (100_000, 166)
    times = np.sort(pq.read_table(tmp_path / "interactions.parquet")["timestamp"].to_numpy())
    assert found.count("interactions_eval") == pytest.approx((times >= times[90_000]).sum(), abs=5)
    by_day = sum((Counter(of_split) for of_split in found.days.values()), Counter())
    assert by_day == Counter((times // 86_400).tolist()), "each interaction on its day"
    assert max(found.days[TRAIN]) <= min(found.days[VALIDATION]) <= max(found.days[VALIDATION]) <= min(found.days[EVAL])
    history_lengths = [len(row.get("history", ())) for row in found.splits[EVAL]]
    assert sum(length == 0 for length in history_lengths) == 76
    toy_story = next(row for row in found.splits[CATALOGUE] if row["item_id"] == ["1"])
    assert toy_story["title"] == ["Toy Story (1995)"]


def _separated(feature: dict[str, Any]) -> dict[str, Any]:
    if feature["column"] != "tags":
        return feature
    return {"column": "tags", "encoding": "vocabulary", "separator": "|"}
