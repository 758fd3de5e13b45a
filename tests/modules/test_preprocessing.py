"""Every encoding against a plain Python oracle: in sequences, queries and items, and in the graph that serves."""

import math
import re
import tempfile
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from modules import beam_signatures, preprocessing
from modules.data.examples import HELD_OUT, LABEL, RELEVANT, SEQUENCE_PREFIX, TIME, USER, VALUE_SEPARATOR, WEIGHT
from modules.encodings import items
from modules.encodings.features import Columns, Features

# One Transform for all of them, of every encoding.
pytestmark = pytest.mark.slow

COLUMNS = Columns(user="user", item="item", timestamp="time")
FEATURES = Features.model_validate(
    {
        "query": [
            {"column": "user", "encoding": "vocabulary", "oov_buckets": 3},
            {"column": "job", "encoding": "vocabulary", "max_size": 2},
            {"column": "age", "encoding": "bucketized", "boundaries": [18, 30]},
            {"column": "zip", "encoding": "hash", "buckets": 7},
            {"column": "shop", "encoding": "hash", "buckets": 7, "functions": 3},
            {"column": "device", "encoding": "vocabulary", "min_count": 9},
            {"column": "baskets", "encoding": "vocabulary", "multivalued": True, "max_values": 2},
            {"column": "spend", "encoding": "bucketized", "buckets": 4},
            {"column": "income", "encoding": "normalized"},
            {"column": "visits", "encoding": "log1p"},
            {"column": "time", "encoding": "timestamp", "buckets": 4},
            {"encoding": "history", "max_length": 3},
            {"encoding": "history_age"},
        ],
        "candidate": [
            {"column": "item", "encoding": "vocabulary", "oov_buckets": 2},
            {"column": "title", "encoding": "text", "min_count": 1, "max_tokens": 4},
            {"column": "genres", "encoding": "vocabulary", "multivalued": True, "max_values": 3},
            {"column": "tags", "encoding": "hash", "buckets": 5, "separator": "|", "max_values": 2},
            {
                "column": "makers",
                "encoding": "hash",
                "buckets": 5,
                "functions": 2,
                "multivalued": True,
                "max_values": 3,
            },
            {"column": "same", "encoding": "normalized"},
        ],
    }
)
CONFIG = {"features": FEATURES.model_dump_json(), "columns": COLUMNS.model_dump_json()}
OF_INTERACTIONS = ("zip", "shop", "device", "baskets", "spend", "income", "visits", "time")
STRINGS = (
    "user", "job", "zip", "shop", "device", "baskets", "history", "item", "title", "genres", "tags", "makers", RELEVANT,
)  # fmt: skip
FLOATS = ("age", "spend", "income", "visits", "history_age", "same")
TITLES = ["Toy Story (1995)", "L'Été à Paris!", "", "one two three four five"]
GENRES = [["Action", "Comedy"], [], ["Drama"], ["Action", "Drama", "War", "Comedy"]]


def interaction(rng, i):
    """One interaction's own columns, or a query's, each a list of its values."""
    row = {
        "zip": [f"{i:05d}"],
        "shop": [f"shop {i}"] if i % 5 else [],
        "device": [["phone", "tv", "watch"][int(rng.integers(3)) % (1 + i % 3)]],
        "baskets": [f"b{j}" for j in rng.integers(0, 4, i % 4)],
        "spend": [float(rng.normal())],
        "income": [float(rng.normal(50, 9))],
        "visits": [float(rng.integers(-2, 50))],
        "time": [int(rng.integers(0, 2_000_000_000))],
    }
    for column in ("device", "spend", "income", "visits"):
        if i % 11 == 3:
            row[column] = []
    return row


def person(rng, i):
    row = {"user": [f"u{i}"], "job": [["cook", "nurse", "poet"][i % 3 if i % 2 else 0]], "age": [float(5 + 9 * i)]}
    return row | ({"job": [], "age": []} if i % 7 == 3 else {})


@dataclass(frozen=True)
class World:
    people: list
    sequences: list
    """Of each person, the interactions, with `item`, `weight` and `held_out`."""
    queries: list
    items: list

    @property
    def interactions(self):
        return [each for sequence in self.sequences for each in sequence]


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(7)
    people = [person(rng, i) for i in range(15)]
    sequences, number = [], 0
    for user in range(15):
        sequence = []
        for _ in range(4 + user % 5):
            own = interaction(rng, number) | {"item": [f"i{int(rng.zipf(1.5)) % 20}"], "weight": 1.0 + number % 2}
            sequence.append(own | {"held_out": number % 4 == 3})
            number += 1
        sequences.append(sequence)
    queries = []
    for i in range(30):
        query = person(rng, i) | interaction(rng, i)
        query["history"] = [f"i{j}" for j in rng.integers(0, 25, i % 6)]
        # A clock can be wrong: a history may seem to be newer than the request.
        query["history_age"] = [math.inf if i == 7 else float(1000 * i - 5000)] if i % 6 else []
        query[RELEVANT] = [f"i{j}" for j in rng.integers(0, 25, 1 + i % 3)]
        queries.append(query)
    catalogue = [
        {"item": [f"i{i}"], "title": [TITLES[i % 4]], "genres": GENRES[i % 4], "tags": ["a|b | c" if i % 2 else "a"],
         "makers": [f"m{j}" for j in range(i % 4)], "same": [4.0]}
        for i in range(22)
    ]  # fmt: skip
    return World(people, sequences, queries, catalogue)


def sequence_row(user, sequence):
    """The train example of a user: aligned lists, in which a missing value keeps its place."""
    missing = dict.fromkeys(STRINGS, "") | dict.fromkeys(FLOATS, math.nan) | {"time": -1}
    row = dict(user)
    for column in OF_INTERACTIONS:
        cells = [each[column] for each in sequence]
        if column == "baskets":
            row[SEQUENCE_PREFIX + column] = [VALUE_SEPARATOR.join(cell) for cell in cells]
        else:
            row[SEQUENCE_PREFIX + column] = [cell[0] if cell else missing[column] for cell in cells]
    row[SEQUENCE_PREFIX + "item"] = [each["item"][0] for each in sequence]
    row[SEQUENCE_PREFIX + WEIGHT] = [each["weight"] for each in sequence]
    row[SEQUENCE_PREFIX + HELD_OUT] = [int(each["held_out"]) for each in sequence]
    return row


@pytest.fixture(scope="module")
def transformed(world):
    """(encoded users, encoded queries, encoded items, Transform output) of the real analysis."""
    dtypes = dict.fromkeys(STRINGS, tf.string) | dict.fromkeys(FLOATS, tf.float32) | {"time": tf.int64}
    sequences = {SEQUENCE_PREFIX + c: dtypes[c] for c in (*OF_INTERACTIONS, "item")}
    sequences |= {SEQUENCE_PREFIX + WEIGHT: tf.float32, SEQUENCE_PREFIX + HELD_OUT: tf.int64}
    spec = {column: tf.io.VarLenFeature(dtype) for column, dtype in (dtypes | sequences).items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    users = [sequence_row(*pair) for pair in zip(world.people, world.sequences, strict=True)]

    def instances(rows):
        kinds = {c: object if spec[c].dtype == tf.string else spec[c].dtype.as_numpy_dtype for c in spec}
        return [{c: np.array(row.get(c, []), kinds[c]) for c in spec} for row in rows]

    output = tempfile.mkdtemp()
    with beam_signatures.kept(), tft_beam.Context(temp_dir=tempfile.mkdtemp()):
        function = (instances(users + world.items), metadata) | tft_beam.AnalyzeDataset(
            lambda inputs: preprocessing.preprocessing_fn(inputs, CONFIG)
        )
        groups = (users, world.queries, world.items)
        rows = [row for group in groups for row in group]
        encoded, _ = ((instances(rows), metadata), function) | tft_beam.TransformDataset()
        _ = function | tft_beam.WriteTransformFn(output)
    left = iter(encoded)
    return (*([next(left) for _ in group] for group in groups), tft.TFTransformOutput(output))


def stacked(rows, key):
    return np.stack([row[key] for row in rows])


def joined(rows, key):
    """The lists of all users, one after the other."""
    return np.concatenate([row[SEQUENCE_PREFIX + key] for row in rows])


def vocabulary(values, min_count=1, max_size=None):
    """Most frequent first; Transform breaks ties by the later string first."""
    counts = {v: n for v, n in Counter(values).items() if n >= min_count and v}
    ordered = sorted(counts, key=lambda v: (counts[v], v.encode()), reverse=True)
    return {v: 1 + i for i, v in enumerate(ordered[:max_size])}


def scalars(rows, column, missing):
    return [row[column][0] if row[column] else missing for row in rows]


def check_ids(actual, values, known, oov_buckets):
    """Known values have their index, the missing one 0, those out of vocabulary an id behind it."""
    for got, value in zip(np.ravel(actual), np.ravel(values), strict=True):
        if value == "":
            assert got == 0
        elif value in known:
            assert got == known[value]
        else:
            assert len(known) < got <= len(known) + oov_buckets


def several_hashes(values, buckets, functions):
    """[N, functions] ids: each function's own part of the table, 0 for a missing value."""
    rows = [tf.strings.to_hash_bucket_fast(values, buckets).numpy()]
    for function in range(1, functions):
        key = [int.from_bytes(b"twotower"), function]
        rows.append(tf.strings.to_hash_bucket_strong(values, buckets, key=key).numpy())
    ids = 1 + np.stack(rows, axis=1) + buckets * np.arange(functions)
    return ids * (np.array(values) != "")[:, np.newaxis]


def tokens(text):
    return re.sub(r"[\W_]+", " ", text.lower()).split()


def padded(values, length):
    return (list(values) + [""] * length)[:length]


def test_a_users_columns_are_learned_from_each_user_once(world, transformed):
    users, queries, _, output = transformed
    known = vocabulary(scalars(world.people, "user", ""))
    check_ids(stacked(users, "user"), scalars(world.people, "user", ""), known, 3)
    check_ids(stacked(queries, "user"), scalars(world.queries, "user", ""), known, 3)
    jobs = scalars(world.people, "job", "")
    check_ids(stacked(queries, "job"), scalars(world.queries, "job", ""), vocabulary(jobs, max_size=2), 1)
    feature = FEATURES.query[0]
    assert feature.cardinality(output, FEATURES.items(COLUMNS)) == 1 + len(known) + 3
    age = np.array(scalars(world.queries, "age", np.nan))
    expected = np.where(np.isnan(age), 0, 1 + np.digitize(age, [18, 30]))
    np.testing.assert_array_equal(stacked(queries, "age"), expected)


def test_an_interactions_columns_are_learned_from_sequences_and_aligned_with_them(world, transformed):
    users, queries, _, _ = transformed
    devices = scalars(world.interactions, "device", "")
    known = vocabulary(devices, min_count=9)
    assert 0 < len(known) < len(set(devices)) - 1 or len(known) == 2
    check_ids(joined(users, "device"), devices, known, 1)
    check_ids(stacked(queries, "device"), scalars(world.queries, "device", ""), known, 1)
    hashed = tf.strings.to_hash_bucket_fast(scalars(world.interactions, "zip", ""), 7).numpy() + 1
    np.testing.assert_array_equal(joined(users, "zip"), hashed)
    shops = joined(users, "shop").reshape(-1, 3)
    np.testing.assert_array_equal(shops, several_hashes(scalars(world.interactions, "shop", ""), 7, 3))
    np.testing.assert_array_equal(stacked(queries, "shop"), several_hashes(scalars(world.queries, "shop", ""), 7, 3))
    for user, sequence in zip(users, world.sequences, strict=True):
        assert len(user[SEQUENCE_PREFIX + "device"]) == len(sequence)
        assert len(user[SEQUENCE_PREFIX + "time_cyclic"]) == 4 * len(sequence)


def test_a_cell_of_several_values_keeps_its_place_in_a_sequence(world, transformed):
    users, queries, _, _ = transformed
    cells = [padded(each["baskets"], 2) for each in world.interactions]
    known = vocabulary(np.ravel(cells))
    check_ids(joined(users, "baskets"), cells, known, 1)
    check_ids(stacked(queries, "baskets"), [padded(q["baskets"], 2) for q in world.queries], known, 1)


def test_items_labels_history_and_relevant_items_share_one_vocabulary(world, transformed):
    users, queries, catalogue, output = transformed
    taken = [each["item"][0] for each in world.interactions]
    known = vocabulary(taken)
    check_ids(joined(users, "item"), taken, known, 2)
    check_ids(stacked(catalogue, "item"), scalars(world.items, "item", ""), known, 2)
    np.testing.assert_array_equal(stacked(catalogue, LABEL), [known.get(row["item"][0], 0) for row in world.items])
    for encoded, query in zip(queries, world.queries, strict=True):
        check_ids(encoded["history"], query["history"], known, 2)
        np.testing.assert_array_equal(encoded[RELEVANT], [known.get(i, 0) for i in query[RELEVANT]])
    assert items.vocabulary(output) == list(known)
    counts = Counter(taken)
    np.testing.assert_array_equal(items.frequency(output), [counts[i] for i in known])
    assert FEATURES.items(COLUMNS).rows(output) == 1 + len(known) + 2


def test_times_weights_and_held_out_interactions_stay_as_they_are(world, transformed):
    users = transformed[0]
    np.testing.assert_array_equal(joined(users, TIME), [each["time"][0] for each in world.interactions])
    np.testing.assert_array_equal(joined(users, WEIGHT), [each["weight"] for each in world.interactions])
    np.testing.assert_array_equal(joined(users, HELD_OUT), [each["held_out"] for each in world.interactions])
    of_users, of_queries = stacked(users, USER), stacked(transformed[1], USER)
    assert len(set(of_users)) == len(users) and (of_users > 0).all()
    np.testing.assert_array_equal(of_users, of_queries[: len(users)])


def test_items_lists_and_text(world, transformed):
    catalogue = transformed[2]
    genres = [padded(row["genres"], 3) for row in world.items]
    check_ids(stacked(catalogue, "genres"), genres, vocabulary(np.ravel(genres)), 1)
    words = [padded(tokens(row["title"][0]), 4) for row in world.items]
    check_ids(stacked(catalogue, "title"), words, vocabulary(np.ravel(words)), 1)
    parts = [padded([p.strip() for p in row["tags"][0].split("|")], 2) for row in world.items]
    expected = tf.where(tf.constant(parts) == "", 0, tf.strings.to_hash_bucket_fast(parts, 5) + 1).numpy()
    np.testing.assert_array_equal(stacked(catalogue, "tags"), expected)
    makers = [padded(row["makers"], 3) for row in world.items]
    expected = several_hashes(np.ravel(makers), 5, 2).reshape(len(makers), 6)
    np.testing.assert_array_equal(stacked(catalogue, "makers"), expected)
    assert not stacked(catalogue, "same").any(), "a number that is the same everywhere says nothing"


def test_numbers(world, transformed):
    users, queries, _, _ = transformed
    income = np.array(scalars(world.interactions, "income", np.nan), np.float64)
    for rows, got in ((world.interactions, joined(users, "income")), (world.queries, stacked(queries, "income"))):
        own = np.array(scalars(rows, "income", np.nan), np.float64)
        z = (own - np.nanmean(income)) / np.nanstd(income)
        np.testing.assert_allclose(got, np.nan_to_num(z), atol=1e-4)
    visits = np.array(scalars(world.interactions, "visits", 0.0))
    np.testing.assert_allclose(joined(users, "visits"), np.log1p(np.maximum(visits, 0)), rtol=1e-6)
    age = np.clip(np.float32(scalars(world.queries, "history_age", 0.0)), 0.0, np.finfo(np.float32).max)
    np.testing.assert_array_equal(stacked(queries, "history_age"), age)


def test_quantile_buckets_are_even_and_rise(world, transformed):
    spend = np.array(scalars(world.interactions, "spend", np.nan))
    got = joined(transformed[0], "spend")
    there = ~np.isnan(spend)
    assert not got[~there].any()
    counts = np.bincount(got[there], minlength=5)[1:]
    assert np.abs(counts - there.sum() / 4).max() <= 2
    assert (np.diff(got[there][np.argsort(spend[there])]) >= 0).all()


def test_timestamp(world, transformed):
    seconds = np.array(scalars(world.interactions, "time", -1), np.int64)
    day = seconds % 86400 / 86400 * 2 * np.pi
    week = (seconds + 3 * 86400) % (7 * 86400) / (7 * 86400) * 2 * np.pi
    expected = np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], axis=1)
    np.testing.assert_allclose(joined(transformed[0], "time_cyclic").reshape(-1, 4), expected, atol=1e-5)
    bucket = joined(transformed[0], "time_bucket")
    assert set(bucket) == {1, 2, 3, 4}
    assert (np.diff(bucket[np.argsort(seconds)]) >= 0).all()


def test_every_feature_writes_the_keys_that_it_names(transformed):
    keys = [key for feature in FEATURES.all for key in feature.keys]
    assert len(set(keys)) == len(keys)
    own = [key for f in FEATURES.query if f.column in OF_INTERACTIONS for key in f.keys]
    sequences = {SEQUENCE_PREFIX + key for key in [*own, "item", TIME, WEIGHT, HELD_OUT]}
    assert set(transformed[1][0]) == set(keys) | sequences | {LABEL, USER, RELEVANT}
    for feature in FEATURES.all:
        for key, encoded in feature.encoded.items():
            if feature.encoding != "history":
                got = np.stack([row[key] for row in transformed[1]])
                assert got.shape[1:] == encoded.shape, key
                assert np.issubdtype(got.dtype, np.integer) == encoded.holds_ids, key


def test_no_feature_replaces_the_encoding_of_another():
    features = Features.model_validate(
        {
            "query": [{"column": "time", "encoding": "timestamp"}, {"column": "time_bucket", "encoding": "log1p"}],
            "candidate": [{"column": "item", "encoding": "vocabulary"}],
        }
    )
    dtypes = {"user": tf.string, "item": tf.string, "time": tf.int64, "time_bucket": tf.float32}
    dtypes |= {SEQUENCE_PREFIX + "item": tf.string, SEQUENCE_PREFIX + "time": tf.int64,
               SEQUENCE_PREFIX + WEIGHT: tf.float32, SEQUENCE_PREFIX + HELD_OUT: tf.int64}  # fmt: skip
    config = CONFIG | {"features": features.model_dump_json()}
    spec = {column: tf.io.VarLenFeature(dtype) for column, dtype in dtypes.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    row = {c: np.array([], object if d == tf.string else d.as_numpy_dtype) for c, d in dtypes.items()}
    with (
        tft_beam.Context(temp_dir=tempfile.mkdtemp()),
        pytest.raises(ValueError, match="two features encode to 'time_bucket'"),
    ):
        _ = ([row], metadata) | tft_beam.AnalyzeDataset(lambda inputs: preprocessing.preprocessing_fn(inputs, config))


def request(rows, signature):
    tensors = {}
    for column, spec in signature.items():
        if spec.shape.rank == 2:
            width = max(len(row[column]) for row in rows)
            tensors[column] = tf.constant([padded(row[column], width) for row in rows], spec.dtype)
        else:
            missing = {tf.string: "", tf.float32: math.nan, tf.int64: -1}[spec.dtype]
            tensors[column] = tf.constant(scalars(rows, column, missing), spec.dtype)
    return tensors


def traced(preprocessor):
    return tf.function(preprocessor.__call__, autograph=False)


@pytest.mark.parametrize("side", ["query", "candidate"])
def test_a_request_is_encoded_as_in_training(world, transformed, side):
    rows, encoded = (world.queries, transformed[1]) if side == "query" else (world.items, transformed[2])
    of_side = {"query": (FEATURES.query,), "candidate": (FEATURES.candidate, COLUMNS.item)}[side]
    preprocessor = preprocessing.Preprocessor(tf.saved_model.load(transformed[3].transform_savedmodel_dir), *of_side)
    served = traced(preprocessor)(request(rows, preprocessor.signature()))
    keys = {key for f in getattr(FEATURES, side) for key in f.keys} - {"history"}
    keys |= set() if side == "query" else {LABEL}
    for key in keys:
        np.testing.assert_allclose(served[key].numpy(), stacked(encoded, key), atol=1e-6, err_msg=key)
    if side == "query":
        for got, row in zip(served["history"].numpy(), encoded, strict=True):
            newest = list(row["history"][::-1][:3])
            assert got.tolist() == newest + [0] * (3 - len(newest))


def test_examples_and_requests_are_the_same(world, transformed):
    loaded = tf.saved_model.load(transformed[3].transform_savedmodel_dir)
    for features, rows in ((FEATURES.query, world.queries), (FEATURES.candidate, world.items)):
        serialized = []
        for row in rows:
            example = tf.train.Example()
            for column, values in row.items():
                if column in STRINGS:
                    example.features.feature[column].bytes_list.value.extend(v.encode() for v in values)
                elif column == "time":
                    example.features.feature[column].int64_list.value.extend(values)
                else:
                    example.features.feature[column].float_list.value.extend(values)
            serialized.append(example.SerializeToString())
        preprocessor = preprocessing.Preprocessor(loaded, features)
        encode = traced(preprocessor)
        expected = encode(request(rows, preprocessor.signature()))
        got = encode(preprocessing.requests_from_examples(tf.constant(serialized), features))
        for f in features:
            for key in f.keys:
                np.testing.assert_allclose(got[key].numpy(), expected[key].numpy(), atol=1e-6, err_msg=key)


def test_a_request_runs_the_operations_of_its_own_features_only(transformed):
    """The queries' graph has no words of titles in it, the items' none of the time of day."""
    loaded = tf.saved_model.load(transformed[3].transform_savedmodel_dir)
    operations = {}
    for features in (FEATURES.query, FEATURES.candidate):
        preprocessor = preprocessing.Preprocessor(loaded, features)
        function = traced(preprocessor).get_concrete_function(preprocessor.signature())
        graph = function.graph.as_graph_def()
        nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
        operations[features] = {node.op for node in nodes}
    assert "StringSplitV2" in operations[FEATURES.candidate] - operations[FEATURES.query]
    assert "Sin" in operations[FEATURES.query] - operations[FEATURES.candidate]


def test_an_empty_request_encodes_to_nothing(transformed):
    loaded = tf.saved_model.load(transformed[3].transform_savedmodel_dir)
    preprocessor = preprocessing.Preprocessor(loaded, FEATURES.query)
    empty = [{f.column: [] for f in FEATURES.query}] * 2
    encoded = traced(preprocessor)(request(empty, preprocessor.signature()))
    for f in FEATURES.query:
        for key in f.keys:
            assert not encoded[key].numpy().any(), key
