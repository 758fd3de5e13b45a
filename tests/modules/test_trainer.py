"""The Trainer's `run_fn` on transformed examples: what it exports, and what it takes over."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from checkerboard import COLUMNS, HISTORY_ONLY, MODEL, TRAINING
from known_towers import contract
from local_workers import tf_configs
from tensorflow.core.protobuf import saved_model_pb2
from transformed_world import (
    CONTENT_AND_LIKES,
    EVERYTHING,
    HASHED_ITEM,
    ITEMS,
    LARGE_TABLES,
    TASTES,
    item_columns,
    make_world,
    split_rows,
)

from modules import trainer, tuner
from modules.errors import UserError
from modules.servable.contract import SERVABLE_PATH, read_embedding
from modules.servable.embedding import Embedding, candidate_requests, read_variables
from modules.settings import Serving, Tuner
from modules.towers.two_tower import TwoTower
from modules.training.export import export
from modules.training.loop import fit
from modules.training.warm_start import WarmStart, fitted_variables

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worlds():
    made = {}

    def get(features):
        if id(features) not in made:
            made[id(features)] = make_world(features)
        return made[id(features)]

    return get


@pytest.fixture(scope="module")
def world(worlds):
    return worlds(EVERYTHING)


@pytest.fixture(scope="module")
def small_world(worlds):
    return worlds(HISTORY_ONLY)


def own_taste_share(module, users=range(8)):
    """Share of each user's ten best items that are of the user's taste; 0.25 for a model that learned nothing."""
    catalogue = [item_columns(i) for i in range(ITEMS)]
    candidates = module.signatures["candidate_embedding"](**requests(module, "candidate_embedding", catalogue))
    rows = [next(r for r in split_rows()["validation"] if r["user"] == [f"u{u}"]) for u in users]
    queries = module.signatures["query_embedding"](**requests(module, "query_embedding", rows))
    scores = queries["embedding"].numpy() @ candidates["embedding"].numpy().T
    top = np.argsort(-scores, axis=1)[:, :10]
    return np.mean(top % TASTES == np.array(users)[:, np.newaxis] % TASTES)


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


@pytest.mark.parametrize(
    ("features", "negatives"),
    [
        (EVERYTHING, "catalogue"),
        (HISTORY_ONLY, "catalogue"),
        (CONTENT_AND_LIKES, "in_batch"),
        (HASHED_ITEM, "catalogue"),
    ],
    ids=range(4),
)
def test_run_fn_learns_the_checkerboard_and_exports_it(features, negatives, tmp_path, worlds):
    # One refit will do: most of a fit's time here is that of tracing its graph, which grows with the features.
    changes = {"negatives": negatives, "epochs": 6, "refit": features is HISTORY_ONLY}
    args = worlds(features).fn_args(tmp_path, training=TRAINING.model_copy(update=changes))
    trainer.run_fn(args)
    module = tf.saved_model.load(args.serving_model_dir)
    assert own_taste_share(module) > 0.8
    report = json.loads((tmp_path / "run/training.json").read_text())
    assert report["resumed_from_epoch"] == 0
    assert report["epochs"] <= len(report["history"]) <= 6
    assert report["tuned"] == {}
    assert any((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert not any((tmp_path / "checkpoints").rglob("*")), "a finished fit leaves no checkpoint"


def test_a_transformer_is_exported_and_a_warm_start_takes_it_over(worlds, tmp_path):
    world = worlds(HISTORY_ONLY)
    model = MODEL.model_copy(update={"history_encoder": "transformer", "encoder_width": 16, "encoder_dropout": 0.1})
    args = world.fn_args(tmp_path, model, TRAINING.model_copy(update={"refit": False}))
    trainer.run_fn(args)
    module = tf.saved_model.load(args.serving_model_dir)
    assert own_taste_share(module) > 0.8
    # The order of a history counts; how far it is padded, and what is asked beside it, do not.
    signature, (name,) = module.signatures["query_embedding"], module.signatures["query_embedding"].output_dtypes
    histories = [["i1", "i5", "i9", ""], ["i9", "i5", "i1", ""], ["i1", "", "", ""], ["", "", "", ""]]
    together = signature(history=tf.constant(histories))[name].numpy()
    for row, history in enumerate(histories):
        alone = signature(history=tf.constant([[item for item in history if item] or [""]]))[name].numpy()
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4, atol=1e-5)
    # An item counts for as much as the score loses without it.
    candidates = np.random.default_rng(0).normal(size=(1, together.shape[1])).astype(np.float32)
    answer = module.signatures["explain_embedding"](
        history=tf.constant(histories[:1]), candidates=tf.constant(candidates[np.newaxis])
    )
    reasons = zip(answer["reason_item_id"].numpy()[0, 0], answer["reason_score"].numpy()[0, 0], strict=True)
    reasons = {item.decode(): score for item, score in reasons if item}
    assert set(reasons) == {"i1", "i5", "i9"} and not answer["reason_exact"].numpy().any()
    for item, score in reasons.items():
        rest = signature(history=tf.constant([[i for i in histories[0] if i != item]]))[name].numpy()
        np.testing.assert_allclose(score, (together[0] - rest[0]) @ candidates[0], rtol=1e-3, atol=1e-4)
    learned = slice(0, model.dimension)
    assert np.abs(together[0, learned] - together[1, learned]).max() > 1e-3
    described = contract(read_embedding(args.serving_model_dir), Serving(k=5), ITEMS)
    (Path(args.serving_model_dir) / SERVABLE_PATH).write_text(described.model_dump_json())
    before = read_variables(args.serving_model_dir, read_embedding(args.serving_model_dir))
    spec = dataclasses.replace(world.specification(), model=model)
    started = TwoTower(
        spec.features, spec.columns, spec.model, spec.training, spec.cardinalities, spec.item_rows,
        spec.catalogue.features, spec.catalogue.is_candidate, np.ones(len(spec.catalogue.is_candidate), np.float32),
        seed=7,
    )  # fmt: skip
    taken = WarmStart(args.serving_model_dir, HISTORY_ONLY, COLUMNS, world.tft_output).apply(started)
    assert set(taken) == set(before) and "query_tower/block_1_projection" in taken
    for at, variable in fitted_variables(HISTORY_ONLY, COLUMNS, started).items():
        np.testing.assert_array_equal(variable.numpy(), before[at])


@pytest.fixture(scope="module")
def exported(world, tmp_path_factory):
    """The export of a fit of one epoch."""
    args = world.fn_args(tmp_path_factory.mktemp("exported"), training=TRAINING.model_copy(update={"epochs": 1}))
    trainer.run_fn(args)
    return tf.saved_model.load(args.serving_model_dir)


def test_exported_vectors_and_popularity(exported):
    rows = [item_columns(i) for i in (0, 5, ITEMS, 999)]
    answer = exported.signatures["candidate_embedding"](**requests(exported, "candidate_embedding", rows))
    splits = split_rows()
    taken = [item for row in splits["train"] for item in row["sequence_item"]]
    counts = [taken.count(f"i{i}") for i in (0, 5, ITEMS, 999)]
    np.testing.assert_array_equal(answer["popularity"], counts)
    # The learned part, the item-item model of at most one dimension for each item, the lift.
    assert answer["embedding"].shape == (4, MODEL.dimension + ITEMS + 1)
    assert np.isfinite(answer["embedding"]).all()


def explained(module, request, candidates):
    answer = module.signatures["explain_embedding"](
        **request, candidates=tf.constant([candidates] * len(request["time"]))
    )
    return {name: value.numpy() for name, value in answer.items()}


def test_the_export_explains_the_scores_of_its_vectors(exported):
    rows = split_rows()["validation"][:3]
    rows[2] = rows[2] | {"history": ["i3", "no such item", "i3", "i7"]}
    request = requests(exported, "query_embedding", rows)
    catalogue = [item_columns(i) for i in (0, 5, ITEMS, 999)]
    candidates = exported.signatures["candidate_embedding"](**requests(exported, "candidate_embedding", catalogue))
    candidates = candidates["embedding"].numpy()
    answer = explained(exported, request, candidates)
    scores = exported.signatures["query_embedding"](**request)["embedding"].numpy() @ candidates.T
    assert answer["part_exact"].all() and answer["reason_exact"].all()
    np.testing.assert_allclose(answer["part_score"].sum(axis=2), scores, rtol=1e-4, atol=1e-4)
    names = [name.decode() for name in answer["part"][0]]
    whole = answer["part_score"][2][:, [names.index("history"), names.index("item_item")]].sum(axis=1)
    np.testing.assert_allclose(answer["reason_score"][2][:, :3].sum(axis=1), whole, rtol=1e-3, atol=1e-4)
    assert {item.decode() for item in answer["reason_item_id"][2].ravel()} == {"i3", "i7", "no such item", ""}


def test_under_layers_it_explains_by_what_is_missing_from_requests(world, tmp_path):
    spec = world.specification()
    spec = dataclasses.replace(spec, model=spec.model.model_copy(update={"query_layers": (6,)}))
    frequency = np.ones(len(spec.catalogue.is_candidate), np.float32)
    model = TwoTower(
        spec.features, spec.columns, spec.model, spec.training, spec.cardinalities, spec.item_rows,
        spec.catalogue.features, spec.catalogue.is_candidate, frequency, seed=7,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign_add(rng.normal(0, 0.3, variable.shape).astype(np.float32))
    export(model, spec, world.tft_output, str(tmp_path / "model"))
    module = tf.saved_model.load(str(tmp_path / "model"))
    row = split_rows()["validation"][5] | {"history": ["i3", "i9", "i4"], "history_age": [50_000.0]}
    request = requests(module, "query_embedding", [row])
    candidates = rng.normal(size=(2, model.layout.width)).astype(np.float32)
    answer = explained(module, request, candidates)

    def score(**changes):
        return module.signatures["query_embedding"](**request | changes)["embedding"].numpy()[0] @ candidates.T

    exact = answer["part_exact"][0]
    np.testing.assert_allclose(answer["part_score"][0][:, exact].sum(axis=1), score(), rtol=1e-4, atol=1e-4)
    missing = {tf.string: "", tf.float32: np.nan, tf.int64: -1}
    columns = [name.decode() for name in answer["part"][0][~exact]]
    assert set(columns) == set(request) - {"history"}
    for column, found in zip(columns, answer["part_score"][0][:, ~exact].T, strict=True):
        nothing = tf.fill(tf.shape(request[column]), tf.constant(missing[request[column].dtype], request[column].dtype))
        np.testing.assert_allclose(found, score() - score(**{column: nothing}), rtol=1e-3, atol=1e-4)
    assert not answer["reason_exact"].any()
    for place in range(2):
        for item, found in zip(answer["reason_item_id"][0, place], answer["reason_score"][0, place], strict=True):
            if item:
                left = [i for i in row["history"] if i != item.decode()]
                wanted = score()[place] - score(history=tf.constant([left]))[place]
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
        assert set(answer["reason_item_id"][0, place]) == {b"i3", b"i9", b"i4", b""}


def test_request_without_anything_gets_a_finite_vector(exported):
    signature = exported.signatures["query_embedding"]
    missing = {tf.string: "", tf.float32: np.nan, tf.int64: -1}
    specs = signature.structured_input_signature[1]
    empty = {n: tf.fill([1] * s.shape.rank, tf.constant(missing[s.dtype], s.dtype)) for n, s in specs.items()}
    assert np.isfinite(signature(**empty)["embedding"]).all()


@pytest.fixture(scope="module")
def with_large_tables(worlds, tmp_path_factory):
    """Folder of an export whose user id and shelf are hashed by two functions, and whose items are capped."""
    world = worlds(LARGE_TABLES)
    args = world.fn_args(tmp_path_factory.mktemp("large"), training=TRAINING)
    trainer.run_fn(args)
    # A warm start reads a contract too, which the export lacks.
    described = contract(read_embedding(args.serving_model_dir), Serving(k=5), ITEMS)
    (Path(args.serving_model_dir) / SERVABLE_PATH).write_text(described.model_dump_json())
    return args.serving_model_dir


def test_items_beyond_the_cap_are_candidates_by_their_content(worlds, with_large_tables):
    module = tf.saved_model.load(with_large_tables)
    known = {token.decode() for token in worlds(LARGE_TABLES).tft_output.vocabulary_by_name("items")}
    rows = [item_columns(i) for i in range(ITEMS)]
    beyond = np.array([row["item"][0] not in known for row in rows])
    assert beyond.sum() == ITEMS - 24
    answer = module.signatures["candidate_embedding"](**requests(module, "candidate_embedding", rows))
    nobodys = [row | {"item": ["never seen"]} for row in rows]
    by_content = module.signatures["candidate_embedding"](**requests(module, "candidate_embedding", nobodys))
    alike = np.isclose(answer["embedding"], by_content["embedding"], atol=1e-6).all(axis=1)
    np.testing.assert_array_equal(alike, beyond)
    np.testing.assert_array_equal(answer["popularity"] == 0, beyond)
    # Their shelf tells their taste: they are ranked above the items that a user does not like.
    users = range(8)
    queries = [next(r for r in split_rows()["validation"] if r["user"] == [f"u{u}"]) for u in users]
    vectors = module.signatures["query_embedding"](**requests(module, "query_embedding", queries))["embedding"].numpy()
    scores = vectors @ answer["embedding"].numpy().T
    own = np.arange(ITEMS) % TASTES == np.array(users)[:, np.newaxis] % TASTES
    for row, liked in zip(scores, own, strict=True):
        assert np.median(row[liked & beyond]) > np.median(row[~liked & ~beyond])


def test_tables_of_hashes_are_variables_of_the_export_and_no_constants(with_large_tables):
    variables = read_variables(with_large_tables, read_embedding(with_large_tables))
    assert variables["query_tower/hash_of_2:user/embedding/embeddings"].shape == (1 + 2 * 20, 8)
    assert variables["candidate_tower/hash_of_2:shelf/embedding/embeddings"].shape == (1 + 2 * 30, 4)
    saved = saved_model_pb2.SavedModel.FromString((Path(with_large_tables) / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    constants = [node.attr["value"].tensor for node in nodes if node.op == "Const"]
    assert {node.op for node in nodes} >= {"StringToHashBucketFast", "StringToHashBucketStrong", "VarHandleOp"}
    numbers = [np.prod([d.size for d in each.tensor_shape.dim]) for each in constants if each.dtype == tf.float32]
    assert max(numbers) <= MODEL.dimension


def test_a_warm_start_takes_over_hashed_rows_only_under_the_same_functions(worlds, with_large_tables):
    world = worlds(LARGE_TABLES)
    before = read_variables(with_large_tables, read_embedding(with_large_tables))

    def started(features):
        """What a warm start takes over, and the towers' variables."""
        spec = dataclasses.replace(world.specification(), features=features)
        frequency = np.ones(len(spec.catalogue.is_candidate), np.float32)
        model = TwoTower(
            spec.features, spec.columns, spec.model, spec.training, spec.cardinalities, spec.item_rows,
            spec.catalogue.features, spec.catalogue.is_candidate, frequency, seed=7,
        )  # fmt: skip
        taken = WarmStart(with_large_tables, features, COLUMNS, world.tft_output).apply(model)
        return set(taken), fitted_variables(features, COLUMNS, model)

    taken, variables = started(LARGE_TABLES)
    assert taken == set(before) == set(variables)
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable.numpy(), before[name])
    # One function of 40 buckets has as many rows, but they mean something else.
    user = LARGE_TABLES.query[0].model_copy(update={"buckets": 40, "functions": 1})
    taken, variables = started(LARGE_TABLES.model_copy(update={"query": (user, *LARGE_TABLES.query[1:])}))
    table = variables["query_tower/hash:user/embedding/embeddings"].numpy()
    assert table.shape == before["query_tower/hash_of_2:user/embedding/embeddings"].shape
    assert taken == {name for name in before if ":user/" not in name}


def test_sequences_and_queries_are_those_of_the_interactions(world):
    sequences, queries, rows = world.sequences(), world.queries(), split_rows()
    vocabulary = ["", *(token.decode() for token in world.tft_output.vocabulary_by_name("items"))]
    users = ["", *(token.decode() for token in world.tft_output.vocabulary_by_name("vocabulary_user"))]
    for number, user in enumerate(sequences.features["user"]):
        (own,) = [r for r in rows["train"] if r["user"] == [users[user]]]
        places = slice(*sequences.offsets[number : number + 2])
        assert [vocabulary[item] for item in sequences.items[places]] == own["sequence_item"]
        assert sequences.times[places].tolist() == own["sequence_time"]
        assert sequences.is_validation[places].tolist() == [False] * 8 + [True]
        row = int(np.flatnonzero(queries.features["user"] == user)[0])
        *before, last = own["sequence_item"]
        assert [vocabulary[item] for item in queries.features["history"][row]] == before[::-1][:6]
        assert [vocabulary[item] for item in queries.seen[row]] == before
        assert [vocabulary[item] for item in queries.relevant[row]] == [last]
    np.testing.assert_array_equal(queries.features["history_age"], 5000.0)


def test_two_workers_export_what_one_process_fits_and_only_the_chief_writes(small_world, tmp_path, monkeypatch):
    training = TRAINING.model_copy(update={"epochs": 2, "refit": False, "negatives": "sampled", "worker_wait": 60})
    configs, root = tf_configs(2), Path(__file__).parents[2]
    (tmp_path / "elsewhere").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-m", "modules.training.worker", "--wait", "60"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, cwd=tmp_path / "elsewhere",
        env=os.environ | {"TF_CONFIG": configs[1], "PYTHONPATH": str(root)},
    )  # fmt: skip
    monkeypatch.setenv("TF_CONFIG", configs[0])
    args = small_world.fn_args(tmp_path, training=training.model_copy(update={"distribution": "multi_worker"}))
    try:
        trainer.run_fn(args)
        said, _ = other.communicate(timeout=30)
    finally:
        other.kill()
    assert other.returncode == 0 and "epoch 2/2" in said
    assert not any((tmp_path / "elsewhere").iterdir())
    specification = small_world.specification(training=training)
    one = fit(specification, small_world.sequences(), small_world.queries())
    report = json.loads((tmp_path / "run/training.json").read_text())
    for key in ("loss", "ndcg", "recall"):
        expected = [getattr(epoch, key) for epoch in one.report.history]
        np.testing.assert_allclose([epoch[key] for epoch in report["history"]], expected, rtol=1e-5)
    assert report["calibration"] == one.report.to_json()["calibration"] and report["epochs"] == one.report.epochs
    written = read_variables(args.serving_model_dir, read_embedding(args.serving_model_dir))
    for name, variable in fitted_variables(specification.features, specification.columns, one.model).items():
        np.testing.assert_allclose(written[name], variable.numpy(), atol=1e-5, err_msg=name)
    assert "query_embedding" in tf.saved_model.load(args.serving_model_dir).signatures


def test_a_worker_that_is_not_there_is_named_and_nothing_is_written(small_world, tmp_path, monkeypatch):
    config = tf_configs(2)[0]
    monkeypatch.setenv("TF_CONFIG", config)
    training = TRAINING.model_copy(update={"distribution": "multi_worker", "worker_wait": 1})
    with pytest.raises(UserError) as refusal:
        trainer.run_fn(small_world.fn_args(tmp_path, training=training))
    missing = json.loads(config)["cluster"]["worker"][1]
    expected = f"training.distribution: multi_worker: worker {missing} could not be reached within 1 s"
    assert str(refusal.value).startswith(expected)
    assert not any(tmp_path.iterdir())


def test_the_tuner_finds_the_learning_rate_that_learns(small_world, tmp_path):
    args = small_world.fn_args(tmp_path, training=TRAINING.model_copy(update={"epochs": 3, "learning_rate": 1e-7}))
    args.custom_config["model"] = MODEL.model_copy(update={"item_item_rank": 0}).model_dump_json()
    args.custom_config["tuner"] = Tuner(trials=2, search={"training.learning_rate": (0.02,)}).model_dump_json()
    args.custom_config["history"] = "train"
    result = tuner.tuner_fn(args)
    result.tuner.search(**result.fit_kwargs)
    assert result.tuner.get_best_hyperparameters(1)[0].values == {"training.learning_rate": 0.02}


def test_items_that_are_added_to_a_servable_have_the_offset_and_what_is_explored(world, tmp_path):
    training = TRAINING.model_copy(update={"epochs": 1, "refit": False})
    features, vectors, known = world.features, {}, {}
    for exploration in (0.0, 2.0):
        model = MODEL.model_copy(update={"exploration": exploration})
        args = world.fn_args(tmp_path / str(exploration), model, training)
        trainer.run_fn(args)
        folder = args.serving_model_dir
        contract_ = read_embedding(folder)
        embedding = Embedding(tf.saved_model.load(folder), contract_)

        def embed(items, embedding=embedding):
            """As `twotower update` embeds the rows of a table."""
            records = []
            for item in items:
                record = tf.train.Example()
                for column, values in item.items():
                    feature = record.features.feature[column]
                    if isinstance(values[0], str):
                        feature.bytes_list.value.extend(value.encode() for value in values)
                    elif isinstance(values[0], float):
                        feature.float_list.value.extend(values)
                    else:
                        feature.int64_list.value.extend(values)
                records.append(record.SerializeToString())
            return embedding.candidate(**candidate_requests(tf.constant(records), features, "item"))[
                "embedding"
            ].numpy()

        # Two of no vocabulary, and one that was in the items table already.
        vectors[exploration] = embed([item_columns(999), item_columns(1000), item_columns(ITEMS)])
        known[exploration] = embed([item_columns(0), item_columns(1)])
    np.testing.assert_array_equal(known[0.0], known[2.0])
    bias = np.arange(vectors[0.0].shape[1]) == MODEL.dimension - 1
    np.testing.assert_allclose(vectors[2.0] - vectors[0.0], np.tile(2.0 * bias, (3, 1)), atol=1e-6)
    # The next fit finds an offset of its own.
    (Path(folder) / SERVABLE_PATH).write_text(contract(contract_, Serving(k=5), ITEMS).model_dump_json())
    specification = world.specification(training=training)
    start = WarmStart(folder, specification.features, specification.columns, world.tft_output)
    result = fit(specification, world.sequences(), world.queries(), warm_start=start)
    offset = result.report.calibration.new_item_offset
    assert offset and result.model.candidate_tower.new_item_offset.numpy() == pytest.approx(offset)
    assert "item_bias" in str(result.report.warm_started) and "new_item" not in str(result.report.warm_started)


def test_a_warm_start_before_anything_was_pushed_is_a_first_fit(small_world, tmp_path):
    training = TRAINING.model_copy(update={"epochs": 1, "warm_start": True})
    args = small_world.fn_args(tmp_path, training=training)
    args.base_model = str(tmp_path / "nothing")
    trainer.run_fn(args)
    report = json.loads((tmp_path / "run/training.json").read_text())
    assert report["warm_started"] == []
    assert tf.saved_model.contains_saved_model(args.serving_model_dir)


def test_a_warm_start_takes_over_every_row_that_both_know(small_world, tmp_path):
    args = small_world.fn_args(tmp_path / "first", training=TRAINING.model_copy(update={"epochs": 2}))
    trainer.run_fn(args)
    # A warm start reads a contract, a checkpoint and vocabularies; the export lacks the first alone.
    embedding = read_embedding(args.serving_model_dir)
    specification = small_world.specification()
    described = contract(embedding, Serving(k=5), len(specification.catalogue.labels))
    (Path(args.serving_model_dir) / SERVABLE_PATH).write_text(described.model_dump_json())
    training = TRAINING.model_copy(update={"epochs": 1, "refit": False, "learning_rate": 1e-9, "weight_decay": 0.0})
    specification = small_world.specification(training=training)
    start = WarmStart(args.serving_model_dir, specification.features, specification.columns, small_world.tft_output)
    result = fit(specification, small_world.sequences(), small_world.queries(), warm_start=start)
    before = read_variables(args.serving_model_dir, embedding)
    fitted = fitted_variables(specification.features, specification.columns, result.model)
    assert set(result.report.warm_started) == set(before) == set(fitted)
    for name, variable in fitted.items():
        # Same vocabulary, same rows; an epoch at this rate moves nothing.
        np.testing.assert_allclose(variable.numpy(), before[name], atol=1e-5)
    assert len(fitted) >= len(result.model.trainable_variables)


def test_a_warm_start_from_a_model_of_another_contract_is_a_first_fit(small_world, tmp_path, caplog):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / SERVABLE_PATH).write_text(json.dumps({"contract_version": 1, "layer": "stock"}))
    training = TRAINING.model_copy(update={"epochs": 1, "refit": False})
    specification = small_world.specification(training=training)
    start = WarmStart(str(tmp_path), specification.features, specification.columns, small_world.tft_output)
    with caplog.at_level("INFO", "twotower.progress"):
        result = fit(specification, small_world.sequences(), small_world.queries(), warm_start=start)
    assert result.report.warm_started == ()
    assert "a first fit, since" in caplog.text and "under contract version 1" in caplog.text
