"""Fitting on data with a known answer, the same model twice, going on after a kill, and the exported signatures."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from known_towers import contract
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from modules import linear, preprocessing, trainer, validation
from modules.data.examples import LABEL, WEIGHT
from modules.encodings.features import Columns, Features
from modules.errors import UserError
from modules.servable.contract import SERVABLE_PATH, read_embedding
from modules.servable.embedding import read_variables
from modules.settings import Model, Serving, Training
from modules.validation import Blend, Judge
from modules.warm_start import Start, fitted_variables

pytestmark = pytest.mark.slow

COLUMNS = Columns(user="user", item="item", timestamp="time")
# Every encoding once in each tower where it can be.
EVERYTHING = Features.model_validate(
    {
        "query": [
            {"column": "user", "encoding": "vocabulary", "dimension": 8},
            {"column": "zip", "encoding": "hash", "buckets": 5, "dimension": 4},
            {"column": "likes", "encoding": "vocabulary", "multivalued": True, "dimension": 4},
            {"column": "words", "encoding": "text", "dimension": 4},
            {"column": "age", "encoding": "bucketized", "boundaries": [30], "dimension": 4},
            {"column": "income", "encoding": "normalized"},
            {"column": "visits", "encoding": "log1p"},
            {"column": "time", "encoding": "timestamp", "buckets": 3, "dimension": 4},
            {"encoding": "history", "max_length": 6},
            {"encoding": "history_age"},
        ],
        "candidate": [
            {"column": "item", "encoding": "vocabulary", "dimension": 8},
            {"column": "shelf", "encoding": "hash", "buckets": 5, "dimension": 4},
            {"column": "title", "encoding": "text", "min_count": 1, "dimension": 4},
            {"column": "genres", "encoding": "vocabulary", "multivalued": True, "dimension": 4},
            {"column": "year", "encoding": "bucketized", "buckets": 2, "dimension": 4},
            {"column": "price", "encoding": "normalized"},
            {"column": "stock", "encoding": "log1p"},
            {"column": "added", "encoding": "timestamp", "buckets": 2, "dimension": 4},
        ],
    }
)
HISTORY_ONLY = Features.model_validate(
    {"query": [{"encoding": "history", "max_length": 6}], "candidate": [{"column": "item", "encoding": "vocabulary"}]}
)
CONTENT_ONLY = Features.model_validate(
    {
        "query": [{"column": "likes", "encoding": "vocabulary", "multivalued": True}],
        "candidate": [{"column": "genres", "encoding": "vocabulary", "multivalued": True}],
    }
)
HASHED_ITEM = Features.model_validate(
    {
        "query": [{"encoding": "history", "max_length": 6}, {"column": "age", "encoding": "normalized"}],
        "candidate": [{"column": "item", "encoding": "hash", "buckets": 500}],
    }
)
TRAINING = Training(epochs=12, batch_size=64, learning_rate=0.02, weight_decay=0.5, user_exponent=1.0)
MODEL = Model(dimension=16)
USERS, ITEMS, TASTES, PER_USER = 60, 40, 4, 9


def split_rows() -> dict[str, list[dict[str, list]]]:
    """A checkerboard: user u likes only items i with i % 4 == u % 4. The last item of a user is validation."""
    rng = np.random.default_rng(3)
    splits: dict[str, list[dict[str, list]]] = {"train": [], "validation": [], "catalogue": []}
    for item in range(ITEMS + 1):
        splits["catalogue"].append(item_columns(item))
    for user in range(USERS):
        taste = user % TASTES
        own = rng.permutation(np.arange(taste, ITEMS, TASTES))[:PER_USER]
        for position, item in enumerate(own):
            row = {
                "user": [f"u{user}"],
                "zip": [f"z{user % 7}"],
                "likes": [f"taste{taste}"],
                "words": [f"I like taste{taste}"],
                "age": [20.0 + user],
                "income": [float(user)],
                "visits": [float(position)],
                "time": [1_600_000_000 + 5000 * position],
                "history": [f"i{i}" for i in own[:position][-6:]],
                "history_age": [5000.0] if position else [],
                WEIGHT: [1.0],
                **item_columns(item),
            }
            splits["validation" if position == PER_USER - 1 else "train"].append(row)
    return splits


def item_columns(item: int) -> dict[str, list]:
    # The last row of the table is a cold item: nobody has taken it up.
    return {
        "item": [f"i{item}"],
        "shelf": [f"s{item % TASTES}"],
        "title": [f"Thing taste{item % TASTES}"],
        "genres": [f"taste{item % TASTES}", "all"],
        "year": [1990.0 + item],
        "price": [float(item)],
        "stock": [1.0],
        "added": [1_500_000_000 + item],
    }


@dataclass(frozen=True)
class World:
    """Transformed splits on disk, as Transform leaves them."""

    folder: Path
    features: Features
    tft_output: tft.TFTransformOutput

    def fn_args(self, output: Path, model: Model = MODEL, training: Training = TRAINING) -> SimpleNamespace:
        return SimpleNamespace(
            train_files=[str(self.folder / "examples/Split-train/*")],
            eval_files=[str(self.folder / "examples/Split-validation/*")],
            transform_graph_path=str(self.folder / "graph"),
            serving_model_dir=str(output / "serving"),
            model_run_dir=str(output / "run"),
            custom_config={
                "features": self.features.model_dump_json(),
                "columns": COLUMNS.model_dump_json(),
                "model": model.model_dump_json(),
                "training": training.model_dump_json(),
                "checkpoint_root": str(output / "checkpoints"),
                "code": "abc",
            },
        )

    def problem(self, model: Model = MODEL, training: Training = TRAINING) -> trainer.Problem:
        return trainer.read_problem(self.fn_args(self.folder, model, training))

    def rows(self, split: str) -> trainer.Rows:
        return trainer.read_rows([str(self.folder / f"examples/Split-{split}/*")], self.features, self.tft_output)


def make_world(features: Features) -> World:
    folder = Path(tempfile.mkdtemp())
    config = {"features": features.model_dump_json(), "columns": COLUMNS.model_dump_json()}
    splits = split_rows()
    everything = {column for rows in splits.values() for row in rows for column in row}
    kinds = dict.fromkeys(everything, tf.string)
    kinds |= dict.fromkeys(("age", "income", "visits", "history_age", "year", "price", "stock", WEIGHT), tf.float32)
    kinds |= dict.fromkeys(("time", "added"), tf.int64)
    spec = {column: tf.io.VarLenFeature(kind) for column, kind in kinds.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))

    def arrays(rows):
        kind = {tf.string: object, tf.float32: np.float32, tf.int64: np.int64}
        return [{c: np.array(row.get(c, []), kind[kinds[c]]) for c in everything} for row in rows]

    with tft_beam.Context(temp_dir=tempfile.mkdtemp()):
        analysed = (arrays(splits["train"] + splits["validation"]), metadata)
        function = analysed | tft_beam.AnalyzeDataset(lambda inputs: preprocessing.preprocessing_fn(inputs, config))
        _ = function | tft_beam.WriteTransformFn(str(folder / "graph"))
        for split, rows in splits.items():
            (encoded, encoded_metadata) = ((arrays(rows), metadata), function) | tft_beam.TransformDataset()
            write(folder / f"examples/Split-{split}", encoded, encoded_metadata.schema)
    return World(folder, features, tft.TFTransformOutput(str(folder / "graph")))


def write(folder: Path, encoded: list[dict[str, np.ndarray]], schema: schema_pb2.Schema) -> None:
    folder.mkdir(parents=True)
    coder = tft.coders.ExampleProtoCoder(schema)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(folder / "transformed_examples-00000-of-00001.gz"), options) as writer:
        for row in encoded:
            writer.write(coder.encode(row))


@pytest.fixture(scope="module")
def world():
    return make_world(EVERYTHING)


@pytest.fixture(scope="module")
def small_world():
    return make_world(HISTORY_ONLY)


def own_taste_share(module, users=range(8)):
    """Share of each user's ten best items that are of the user's taste; 0.25 for a model that learned nothing."""
    catalogue = [item_columns(i) for i in range(ITEMS)]
    candidates = module.signatures["candidate_embedding"](**requests(module, "candidate_embedding", catalogue))
    rows = [next(r for r in split_rows()["validation"] if r["user"] == [f"u{u}"]) for u in users]
    queries = module.signatures["query_embedding"](**requests(module, "query_embedding", rows))
    scores = queries["embedding"].numpy() @ candidates["embedding"].numpy().T
    top = np.argsort(-scores, axis=1)[:, :10]
    return np.mean(top % TASTES == np.array(users)[:, np.newaxis] % TASTES)


def query_vectors(model, queries):
    return model.query_vectors({key: tf.constant(values) for key, values in queries.features.items()}).numpy()


def requests(module, signature, rows):
    """What a client sends for these rows: lists padded with ""."""
    tensors = {}
    for name, spec in module.signatures[signature].structured_input_signature[1].items():
        if spec.shape.rank == 2:
            length = max(len(row[name]) for row in rows)
            tensors[name] = tf.constant([row[name] + [""] * (length - len(row[name])) for row in rows])
        else:
            tensors[name] = tf.constant([row[name][0] for row in rows], spec.dtype)
    return tensors


@pytest.mark.parametrize("features", [EVERYTHING, HISTORY_ONLY, CONTENT_ONLY, HASHED_ITEM], ids=range(4))
@pytest.mark.parametrize("negatives", ["catalogue", "in_batch"])
def test_run_fn_learns_the_checkerboard_and_exports_it(features, negatives, tmp_path, worlds):
    args = worlds(features).fn_args(tmp_path, training=TRAINING.model_copy(update={"negatives": negatives}))
    trainer.run_fn(args)
    module = tf.saved_model.load(args.serving_model_dir)
    assert own_taste_share(module) > 0.8
    report = json.loads((tmp_path / "run/training.json").read_text())
    assert report["resumed_from_epoch"] == 0
    assert report["epochs"] <= len(report["history"]) <= TRAINING.epochs
    assert any((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert not any((tmp_path / "checkpoints").rglob("*")), "a finished fit leaves no checkpoint"


@pytest.fixture(scope="module")
def worlds(world, small_world):
    made = {id(EVERYTHING): world, id(HISTORY_ONLY): small_world}

    def get(features):
        if id(features) not in made:
            made[id(features)] = make_world(features)
        return made[id(features)]

    return get


def test_exported_vectors_and_popularity(world, tmp_path):
    args = world.fn_args(tmp_path, training=TRAINING.model_copy(update={"epochs": 1}))
    trainer.run_fn(args)
    module = tf.saved_model.load(args.serving_model_dir)
    rows = [item_columns(i) for i in (0, 5, ITEMS, 999)]
    answer = module.signatures["candidate_embedding"](**requests(module, "candidate_embedding", rows))
    splits = split_rows()
    counts = [sum(r["item"] == [f"i{i}"] for r in splits["train"] + splits["validation"]) for i in (0, 5, ITEMS, 999)]
    np.testing.assert_array_equal(answer["popularity"], counts)
    # The learned part, the closed form of at most one dimension per item, the trend.
    assert answer["embedding"].shape == (4, MODEL.dimension + ITEMS + 1)
    assert np.isfinite(answer["embedding"]).all()


def test_request_without_anything_gets_a_finite_vector(world, tmp_path):
    args = world.fn_args(tmp_path, training=TRAINING.model_copy(update={"epochs": 1}))
    trainer.run_fn(args)
    signature = tf.saved_model.load(args.serving_model_dir).signatures["query_embedding"]
    missing = {tf.string: "", tf.float32: np.nan, tf.int64: -1}
    specs = signature.structured_input_signature[1]
    empty = {n: tf.fill([1] * s.shape.rank, tf.constant(missing[s.dtype], s.dtype)) for n, s in specs.items()}
    assert np.isfinite(signature(**empty)["embedding"]).all()


def weights(model):
    return [v.numpy() for v in model.variables]


def test_same_seed_same_weights(world):
    training = TRAINING.model_copy(update={"epochs": 2, "refit": False})
    models = [
        trainer.fit(world.problem(training=t), world.rows("train"), world.rows("validation"))[0]
        for t in (training, training, training.model_copy(update={"seed": 1}))
    ]
    first, again, other = map(weights, models)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


KILLED = """
import sys, pickle
sys.path.insert(0, {tests!r})
from test_trainer import *
world = World(Path({folder!r}), EVERYTHING, tft.TFTransformOutput({folder!r} + "/graph"))
trainer.run_fn(world.fn_args(Path({output!r}), training=Training.model_validate_json({training!r})))
"""


def test_killed_fit_goes_on_and_ends_with_the_same_weights(world, tmp_path):
    # Long enough to be killed in the middle; patience 1000 keeps early stopping out of it.
    training = TRAINING.model_copy(update={"epochs": 14, "patience": 1000})
    script = KILLED.format(
        tests=str(Path(__file__).parent), folder=str(world.folder), output=str(tmp_path / "killed"),
        training=training.model_dump_json(),
    )  # fmt: skip
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed/checkpoints").rglob("ckpt-[3-9].index")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/serving").exists()
    trainer.run_fn(world.fn_args(tmp_path / "killed", training=training))
    trainer.run_fn(world.fn_args(tmp_path / "whole", training=training))
    reports = [json.loads((tmp_path / name / "run/training.json").read_text()) for name in ("killed", "whole")]
    assert reports[0]["resumed_from_epoch"] >= 3
    assert reports[1]["resumed_from_epoch"] == 0
    assert [e["loss"] for e in reports[0]["history"]] == [e["loss"] for e in reports[1]["history"]]
    vectors = []
    for name in ("killed", "whole"):
        module = tf.saved_model.load(str(tmp_path / name / "serving"))
        rows = split_rows()["validation"]
        vectors.append(module.signatures["query_embedding"](**requests(module, "query_embedding", rows))["embedding"])
    np.testing.assert_array_equal(*vectors)


def test_loss_that_is_no_number_names_the_learning_rate(small_world):
    problem = small_world.problem(training=TRAINING.model_copy(update={"learning_rate": 1e30}))
    with pytest.raises(UserError, match=r"training\.learning_rate"):
        trainer.fit(problem, small_world.rows("train"), None)


def test_nothing_to_train_on(small_world):
    problem = small_world.problem()
    rows = small_world.rows("train")
    with pytest.raises(UserError, match="train split"):
        trainer.fit(problem, replace(rows, label=np.zeros_like(rows.label)), None)


def test_early_stopping_keeps_the_best_epoch(world):
    # A learning rate that overshoots: the last epochs are worse than an earlier one.
    training = TRAINING.model_copy(update={"learning_rate": 0.2, "patience": 3, "epochs": 30, "refit": False})
    problem = world.problem(training=training)
    model, report = trainer.fit(problem, world.rows("train"), world.rows("validation"))
    ndcg = [epoch["ndcg"] for epoch in report["history"]]
    assert report["epochs"] == 1 + int(np.argmax(ndcg))
    labels = np.flatnonzero(problem.catalogue.is_candidate)
    queries = trainer.validation_queries(world.rows("train"), world.rows("validation"), problem)
    candidates = model.candidate_vectors(tf.constant(labels, tf.int32))
    again, _ = Judge(queries, labels, training.metric_k).rank(query_vectors(model, queries), candidates.numpy())
    assert again.mean() == pytest.approx(max(ndcg), abs=1e-6)


@pytest.mark.parametrize("which", ["small_world", "worlds"])
def test_validation_rows_of_items_not_in_table_leave_nothing_to_stop_by(which, request, caplog):
    world = request.getfixturevalue(which)
    world = world if isinstance(world, World) else world(CONTENT_ONLY)
    problem = world.problem(training=TRAINING.model_copy(update={"epochs": 2}))
    train, validation = world.rows("train"), world.rows("validation")
    with caplog.at_level(logging.INFO, "twotower.progress"):
        model, report = trainer.fit(problem, train, replace(validation, label=np.zeros_like(validation.label)))
    assert "no validation row" in caplog.text
    alone, _ = trainer.fit(problem, train, None)
    assert report["epochs"] == 2 and np.isnan(report["ndcg"])
    for actual, expected in zip(model.variables, alone.variables, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_refit_sees_validation_rows_too(small_world):
    without = trainer.fit(small_world.problem(), small_world.rows("train"), small_world.rows("validation"))[0]
    training = TRAINING.model_copy(update={"refit": False})
    with_refit = trainer.fit(
        small_world.problem(training=training), small_world.rows("train"), small_world.rows("validation")
    )[0]
    # The bias of an item starts at the logarithm of its count in the rows of the fit.
    assert (without.candidate_tower.bias.numpy() != with_refit.candidate_tower.bias.numpy()).any()


def test_validation_queries_are_put_as_the_evaluation_puts_them(world):
    problem = world.problem()
    train, validation = world.rows("train"), world.rows("validation")
    queries = trainer.validation_queries(train, validation, problem)
    assert len(queries.relevant) == USERS
    vocabulary = ["", *items.vocabulary(world.tft_output)]
    raw = split_rows()
    users = [t.decode() for t in world.tft_output.vocabulary_by_name("vocabulary_user")]
    for user, history, relevant, seen in zip(
        queries.features["user"], queries.features["history"], queries.relevant, queries.seen, strict=True
    ):
        own = [r["item"][0] for r in raw["train"] if r["user"][0] == users[user - 1]]
        target = [r["item"][0] for r in raw["validation"] if r["user"][0] == users[user - 1]]
        assert [vocabulary[i] for i in history] == own[::-1][:6]
        assert {vocabulary[i] for i in seen if i} == set(own)
        assert [vocabulary[i] for i in relevant] == target
    np.testing.assert_array_equal(queries.features["history_age"], 5000.0)
    # Who is asked about before the last training row, as in a random split, is in the middle of it; who has none is as
    # the first validation row says.
    known = np.isin(train.user, np.unique(train.user)[1:])
    earlier = replace(validation, time=validation.time - 20_000)
    queries = trainer.validation_queries(train.take(np.flatnonzero(known)), earlier, problem)
    assert sorted(queries.features["history_age"]) == [0.0] * (USERS - 1) + [5000.0]


def test_ranking_metrics_against_plain_python(small_world):
    problem = small_world.problem()
    train, validation = small_world.rows("train"), small_world.rows("validation")
    model = problem.build(train, None)
    queries = trainer.validation_queries(train, validation, problem)
    labels = np.flatnonzero(problem.catalogue.is_candidate)
    candidates = model.candidate_vectors(tf.constant(labels, tf.int32))
    vectors = query_vectors(model, queries)
    ndcg, recall = Judge(queries, labels, 5).rank(vectors, candidates.numpy())
    expected = []
    for vector, relevant, seen in zip(vectors, queries.relevant, queries.seen, strict=True):
        scores = {int(i): float(c @ vector) for i, c in zip(labels, candidates.numpy(), strict=True) if i not in seen}
        top = sorted(scores, key=lambda i: -scores[i])[:5]
        gains = [1 / np.log2(2 + rank) for rank, item in enumerate(top) if item in relevant]
        expected.append((sum(gains), len(gains)))
    np.testing.assert_allclose(np.stack([ndcg, recall], axis=1), expected, rtol=1e-5)


@pytest.mark.parametrize("kept", [2**29, 0])
@pytest.mark.parametrize(
    ("which", "changes"),
    [
        ("world", {"linear_rank": 7}),
        ("world", {"linear_rank": 7, "diversity": 0.5}),
        ("world", {"linear_rank": 0, "normalize": True}),
        ("small_world", {"linear_rank": 5, "trend": False}),
    ],
)
def test_parts_that_are_kept_score_as_whole_vectors_do(which, changes, kept, request, monkeypatch):
    monkeypatch.setattr(validation, "_KEPT", kept)
    monkeypatch.setattr(validation, "_QUERY_BATCH", 7)
    world = request.getfixturevalue(which)
    train, asked = world.rows("train"), world.rows("validation")
    problem = world.problem(model=MODEL.model_copy(update=changes))
    rng = np.random.default_rng(5)
    # Nobody has taken up some items yet.
    train = train.take(np.flatnonzero(train.label % 4 > 0))
    factors = None
    if problem.model.linear_rank:
        tables = [rng.normal(size=(rows, problem.model.linear_rank)) for rows in (problem.item_rows, ITEMS + 1)]
        factors = linear.Factors(*(table.astype(np.float32) for table in tables))
    model = problem.build(train, factors)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    queries = trainer.validation_queries(train, asked, problem)
    # Somebody comes without a history.
    queries.features["history"][3] = 0
    judge = Judge(queries, problem.candidates, 10)
    labels = tf.constant(problem.candidates, tf.int32)
    tower, found = model.query_tower, set()
    blend = Blend(judge, tower, model.candidate_vectors(labels).numpy())
    for step in range(4):
        model.candidate_tower.trend.assign(rng.normal(size=len(problem.catalogue.is_candidate)))
        if step >= 2:
            for variable in model.trainable_variables:
                variable.assign(rng.normal(size=variable.shape))
        if step == 3:
            # These items are told their closed-form part.
            model.candidate_tower.learn_unknown(problem.catalogue.features, problem.catalogue.is_candidate, 1)
        candidates = model.candidate_vectors(labels).numpy()
        (blend.take if step >= 2 else blend.take_trend)(candidates)
        for _ in range(12):
            for name in ("recency", "linear_recency", "linear_gain", "trend_gain", "cold_trend_gain"):
                if hasattr(tower, name) and rng.random() < 0.5:
                    getattr(tower, name).assign(rng.choice([0.0, 0.5, 2.0]))
            vectors = query_vectors(model, queries)
            np.testing.assert_allclose(blend.vectors(), vectors, rtol=1e-5, atol=1e-6)
            expected, actual = judge.rank(vectors, candidates), blend.measure()
            np.testing.assert_allclose(actual, expected, atol=1e-9)
            found.add(float(expected[0].mean()))
    assert len(found) > 5, "the numbers and the trend make no difference here"


def test_a_user_counts_by_the_exponent():
    groups = np.repeat([3, 5, 9], [4, 25, 100])
    for exponent in (1.0, 0.5, 0.0):
        for completion in (0.0, 0.5, 1.0):
            training = Training(user_exponent=exponent, completion=completion)
            draws = [trainer.draw_rows(groups, training, epoch) for epoch in range(200)]
            rows = [np.bincount(groups[next_rows], minlength=10)[[3, 5, 9]] for next_rows, _ in draws]
            users = np.array([np.bincount(completed, minlength=3) for _, completed in draws], np.float32)
            counts = np.array([4, 25, 100]) ** exponent
            users *= trainer.completion_weights(groups, training)
            np.testing.assert_allclose(np.mean(rows, axis=0), (1 - completion) * counts, rtol=0.15, atol=0.15)
            np.testing.assert_allclose(np.mean(users, axis=0), completion * counts, rtol=0.15, atol=0.15)


@pytest.mark.parametrize("which", ["world", "small_world"])
def test_rows_are_grouped_by_user_whatever_the_towers_read(which, request):
    rows = request.getfixturevalue(which).rows("train")
    groups = trainer.user_groups(rows)
    owners = [row["user"][0] for row in split_rows()["train"]]
    # The files keep the order of the rows.
    assert len(set(zip(groups.tolist(), owners, strict=True))) == len(set(groups.tolist())) == len(set(owners))


@pytest.mark.parametrize("which", ["world", "small_world"])
def test_whole_histories_own_all_that_a_user_took_up(which, request):
    world = request.getfixturevalue(which)
    problem, rows = world.problem(), world.rows("train") + world.rows("validation")
    wholes = trainer.whole_histories(rows, trainer.user_groups(rows), problem)
    vocabulary = ["", *items.vocabulary(world.tft_output)]
    splits = split_rows()
    expected = set()
    for user in range(USERS):
        own = [r["item"][0] for r in splits["train"] + splits["validation"] if r["user"] == [f"u{user}"]]
        # The item, then the newest six before it.
        expected.add(tuple(own[::-1][:7]))
    owned = np.column_stack([wholes.label, wholes.features["history"]])
    assert {tuple(vocabulary[i] for i in row) for row in owned} == expected


def test_progress_says_the_epoch(small_world, caplog):
    with caplog.at_level(logging.INFO, "twotower.progress"):
        training = TRAINING.model_copy(update={"epochs": 2, "refit": False})
        trainer.fit(small_world.problem(training=training), small_world.rows("train"), small_world.rows("validation"))
    # TensorFlow's own loggers write to the same place.
    said = [record.getMessage() for record in caplog.records if record.name == "twotower.progress"]
    assert said[0].startswith("epoch 1/2 · loss ")
    assert "ndcg@10" in said[1]


def test_determinism_is_left_as_it_was(small_world):
    from tensorflow.python.framework import config

    training = TRAINING.model_copy(update={"epochs": 1})
    trainer.fit(small_world.problem(training=training), small_world.rows("train"), None)
    assert not config.is_op_determinism_enabled()
    assert os.environ["TF_USE_LEGACY_KERAS"] == "1"
    assert LABEL not in small_world.rows("train").features


def test_another_window_must_be_better_beyond_chance():
    rng = np.random.default_rng(0)
    here = rng.uniform(0, 1, 200)
    there = rng.uniform(0, 1, 200)
    assert not trainer.surely_better(there - there.mean() + here.mean() + 0.02, here)
    assert trainer.surely_better(here + 0.02 + rng.normal(0, 0.05, 200), here)
    assert not trainer.surely_better(here, here)
    assert not trainer.surely_better(np.array([1.0]), np.array([0.0])), "one query says nothing"


def test_trend_is_the_share_now_over_the_share_in_the_long_run():
    labels = np.array([1, 1, 1, 2, 2, 3, 3, 3, 3, 3])
    # Not in the order of time: the two latest rows are an item 2 and an item 1.
    times = np.array([1, 2, 10, 3, 11, 4, 5, 6, 7, 8])
    catalogue = trainer.Catalogue({}, np.array([False, True, True, True, True, False]))
    actual = trainer.trend(labels, times, 0.2, catalogue)
    share = np.array([0.5, 3.5, 2.5, 5.5, 0.5, 0.5]) / 13
    recent = (np.array([0, 1, 1, 0, 0, 0]) + 0.4 * share) / 2.4
    expected = np.log(recent / share)
    expected[[0, 5]] = 0
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert actual[2] > actual[1] > 0 > actual[3]


def test_what_weighs_the_parts_is_chosen_on_validation_and_kept_by_the_refit(small_world):
    train, validation = small_world.rows("train"), small_world.rows("validation")
    problem = small_world.problem(training=TRAINING.model_copy(update={"epochs": 3, "refit": False}))
    model, report = trainer.fit(problem, train, validation)
    queries = trainer.validation_queries(train, validation, problem)
    candidates = model.candidate_vectors(tf.constant(problem.candidates, tf.int32))
    judge = Judge(queries, problem.candidates, 10)
    measured = judge.rank(query_vectors(model, queries), candidates.numpy())
    assert [values.mean() for values in measured] == pytest.approx([report["ndcg"], report["recall"]])
    assert report["ndcg"] >= report["history"][report["epochs"] - 1]["ndcg"]
    for name, value in report["chosen"]["gains"].items():
        variable = getattr(model.query_tower, name)
        assert variable.numpy() == pytest.approx(value)
        # No other value is worth the steps to it.
        choices = trainer._CHOICES[name]
        place = int(np.argmin(np.abs(np.array(choices) - value)))
        for other, choice in enumerate(choices):
            variable.assign(choice)
            ndcg, _ = judge.rank(query_vectors(model, queries), candidates.numpy())
            assert ndcg.mean() <= report["ndcg"] * (1 + trainer._WORTH * abs(other - place)) + 1e-9
        variable.assign(value)
    refitted, _ = trainer.fit(
        small_world.problem(training=TRAINING.model_copy(update={"epochs": 3})), train, validation
    )
    for name, value in report["chosen"]["gains"].items():
        assert getattr(refitted.query_tower, name).numpy() == pytest.approx(value)


def test_without_a_history_items_are_as_likely_as_among_users_who_count_alike(small_world):
    rows = small_world.rows("train")
    kept = np.random.default_rng(0).random(len(rows)) < np.where(rows.label <= 12, 0.95, 0.3)
    rows = rows.take(np.flatnonzero(kept))
    model, _ = trainer.fit(small_world.problem(), rows, None)
    _, user, of_user = np.unique(rows.user, return_inverse=True, return_counts=True)
    counts = np.bincount(rows.label, 1.0 / of_user[user])
    labels = np.flatnonzero(counts)
    counts = counts[labels]
    candidates = model.candidate_tower.learned(model._encoded(tf.constant(labels, tf.int32))).numpy()

    def wrong():
        """Total variation: the share of probability in the wrong place."""
        scores = candidates @ model.query_tower.learned({"history": tf.zeros([1, 6], tf.int32)}, 0.0).numpy()[0]
        likely = np.exp(scores) / np.exp(scores).sum()
        return np.abs(likely - counts / counts.sum()).sum() / 2

    fitted = wrong()
    model.query_tower.no_history.assign(tf.zeros_like(model.query_tower.no_history))
    assert fitted < 0.75 * wrong()


def test_the_order_of_the_rows_in_the_files_does_not_matter(small_world, tmp_path):
    shutil.copytree(small_world.folder / "examples", tmp_path / "examples")
    (file,) = (tmp_path / "examples/Split-train").iterdir()
    records = list(tf.data.TFRecordDataset(str(file), compression_type="GZIP").as_numpy_iterator())
    with tf.io.TFRecordWriter(str(file), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for place in np.random.default_rng(0).permutation(len(records)):
            writer.write(records[place])
    there, here = (
        trainer.read_rows([str(folder / "examples/Split-train/*")], small_world.features, small_world.tft_output)
        for folder in (small_world.folder, tmp_path)
    )
    np.testing.assert_array_equal(there.label, here.label)
    for key, values in there.features.items():
        np.testing.assert_array_equal(values, here.features[key])


def test_a_warm_start_before_anything_was_pushed_is_a_first_fit(small_world, tmp_path):
    training = TRAINING.model_copy(update={"epochs": 1, "warm_start": True})
    args = small_world.fn_args(tmp_path, training=training)
    args.base_model = str(tmp_path / "nothing")
    trainer.run_fn(args)
    report = json.loads((tmp_path / "run/training.json").read_text())
    assert report["taken_over"] == []
    assert tf.saved_model.contains_saved_model(args.serving_model_dir)


def test_a_warm_start_takes_over_every_row_that_both_know(small_world, tmp_path):
    args = small_world.fn_args(tmp_path / "first", training=TRAINING.model_copy(update={"epochs": 2}))
    trainer.run_fn(args)
    # A warm start reads a contract, a checkpoint and vocabularies; the export lacks the first alone.
    embedding = read_embedding(args.serving_model_dir)
    described = contract(embedding, Serving(k=5), len(small_world.problem().candidates))
    (Path(args.serving_model_dir) / SERVABLE_PATH).write_text(described.model_dump_json())
    problem = small_world.problem()
    model = problem.build(small_world.rows("train"), None)
    start = Start(args.serving_model_dir, problem.features, problem.columns, small_world.tft_output)
    taken = start.apply(model)
    old = read_variables(args.serving_model_dir, embedding)
    fitted = fitted_variables(problem.features, problem.columns, model)
    assert set(taken) == set(old) == set(fitted)
    for name, variable in fitted.items():
        # Same vocabulary, same rows.
        np.testing.assert_array_equal(variable.numpy(), old[name])
    assert len(taken) >= len(model.trainable_variables)


def test_a_warm_start_from_a_model_of_another_contract_is_a_first_fit(small_world, tmp_path, caplog):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / SERVABLE_PATH).write_text(json.dumps({"contract_version": 1, "layer": "stock"}))
    problem = small_world.problem()
    start = Start(str(tmp_path), problem.features, problem.columns, small_world.tft_output)
    with caplog.at_level("INFO", "twotower.progress"):
        assert start.apply(problem.build(small_world.rows("train"), None)) == []
    assert "a first fit, since" in caplog.text and "under contract version 1" in caplog.text
