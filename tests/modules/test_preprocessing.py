"""Every encoding against a plain Python oracle, in Transform's output and in the graph that serves requests."""

import math
import re
import tempfile
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from modules import preprocessing
from modules.features import LABEL, TIME, USER, WEIGHT, Columns, Features

COLUMNS = Columns(user="user", item="item", timestamp="time")
FEATURES = Features.model_validate(
    {
        "query": [
            {"column": "user", "encoding": "vocabulary", "min_count": 12, "oov_buckets": 3},
            {"column": "job", "encoding": "vocabulary", "max_size": 2},
            {"column": "zip", "encoding": "hash", "buckets": 7},
            {"column": "age", "encoding": "bucketized", "boundaries": [18, 30]},
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
        ],
    }
)
CONFIG = {"features": FEATURES.model_dump_json(), "columns": COLUMNS.model_dump_json()}
STRINGS = ("user", "job", "zip", "history", "item", "title", "genres", "tags")
FLOATS = ("age", "spend", "income", "visits", "history_age", WEIGHT)
TITLES = ["Toy Story (1995)", "L'Été à Paris!", "", "one two three four five"]
GENRES = [["Action", "Comedy"], [], ["Drama"], ["Action", "Drama", "War", "Comedy"]]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(7)
    rows = []
    for i in range(120):
        row = {
            "user": [f"u{int(rng.zipf(1.6)) % 9}"],
            "job": [["cook", "nurse", "poet"][int(rng.integers(3)) % (1 + i % 3)]],
            "zip": [f"{i:05d}"],
            "age": [float(rng.choice([5, 18, 29.5, 30, 77]))],
            "spend": [float(rng.normal())],
            "income": [float(rng.normal(50, 9))],
            "visits": [float(rng.integers(-2, 50))],
            "time": [int(rng.integers(0, 2_000_000_000))],
            "history": [f"i{j}" for j in rng.integers(0, 25, i % 6)],
            # A clock can be wrong: a history may seem to be newer than the request.
            "history_age": [math.inf if i == 7 else float(1000 * i - 5000)] if i % 6 else [],
            "item": [f"i{int(rng.zipf(1.5)) % 20}"],
            "title": [TITLES[i % 4]],
            "genres": GENRES[i % 4],
            "tags": ["a|b | c" if i % 2 else "a"],
            WEIGHT: [1.0 + i % 2],
        }
        for column in ("job", "age", "spend", "income", "visits"):
            if i % 11 == 3:
                row[column] = []
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def transformed(rows):
    """(encoded rows, Transform output) of the real analysis."""
    dtypes = dict.fromkeys(STRINGS, tf.string) | dict.fromkeys(FLOATS, tf.float32) | {"time": tf.int64}
    spec = {column: tf.io.VarLenFeature(dtype) for column, dtype in dtypes.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    output = tempfile.mkdtemp()
    with tft_beam.Context(temp_dir=tempfile.mkdtemp()):
        data = [{c: np.array(v, object if c in STRINGS else None) for c, v in row.items()} for row in rows]
        (encoded, _), function = (data, metadata) | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: preprocessing.preprocessing_fn(inputs, CONFIG)
        )
        _ = function | tft_beam.WriteTransformFn(output)
    return {key: np.stack([row[key] for row in encoded]) for key in encoded[0]}, tft.TFTransformOutput(output)


def vocabulary(values, min_count=1, max_size=None):
    """Most frequent first; Transform breaks ties by the later string first."""
    counts = {v: n for v, n in Counter(values).items() if n >= min_count and v}
    ordered = sorted(counts, key=lambda v: (counts[v], v.encode()), reverse=True)
    return {v: 1 + i for i, v in enumerate(ordered[:max_size])}


def scalars(rows, column, missing):
    return [row[column][0] if row[column] else missing for row in rows]


def check_ids(actual, values, known, oov_buckets):
    """Known values have their index, the missing one 0, unknown ones an id behind the vocabulary."""
    for got, value in zip(actual.ravel(), np.ravel(values), strict=True):
        if value == "":
            assert got == 0
        elif value in known:
            assert got == known[value]
        else:
            assert len(known) < got <= len(known) + oov_buckets


def tokens(text):
    return re.sub(r"[\W_]+", " ", text.lower()).split()


def padded(values, length):
    return (list(values) + [""] * length)[:length]


def test_vocabulary_single(rows, transformed):
    encoded, output = transformed
    users = scalars(rows, "user", "")
    known = vocabulary(users, min_count=12)
    assert 0 < len(known) < len(set(users)), "the data must have users below min_count"
    check_ids(encoded["user"], users, known, 3)
    jobs = scalars(rows, "job", "")
    check_ids(encoded["job"], jobs, vocabulary(jobs, max_size=2), 1)
    assert preprocessing.cardinality(FEATURES.query[0], COLUMNS, FEATURES, output) == 1 + len(known) + 3


def test_items_label_and_history_share_one_vocabulary(rows, transformed):
    encoded, output = transformed
    items = scalars(rows, "item", "")
    known = vocabulary(items)
    check_ids(encoded["item"], items, known, 2)
    np.testing.assert_array_equal(encoded[LABEL], [known[i] for i in items])
    newest_first = [padded(row["history"][::-1], 3) for row in rows]
    check_ids(encoded["history"], newest_first, known, 2)
    assert preprocessing.item_vocabulary(output) == list(known)
    counts = Counter(items)
    np.testing.assert_array_equal(preprocessing.item_frequency(output), [counts[i] for i in known])


def test_lists_and_text(rows, transformed):
    encoded, _ = transformed
    genres = [padded(row["genres"], 3) for row in rows]
    check_ids(encoded["genres"], genres, vocabulary(np.ravel(genres)), 1)
    words = [padded(tokens(row["title"][0]), 4) for row in rows]
    check_ids(encoded["title"], words, vocabulary(np.ravel(words)), 1)
    assert encoded["title"].shape == (len(rows), 4)


def test_hash(rows, transformed):
    encoded, _ = transformed
    expected = tf.strings.to_hash_bucket_fast(scalars(rows, "zip", ""), 7).numpy() + 1
    np.testing.assert_array_equal(encoded["zip"], expected)
    assert len(set(encoded["zip"])) == 7
    parts = [padded([p.strip() for p in row["tags"][0].split("|")], 2) for row in rows]
    expected = tf.where(tf.constant(parts) == "", 0, tf.strings.to_hash_bucket_fast(parts, 5) + 1).numpy()
    np.testing.assert_array_equal(encoded["tags"], expected)


def test_numbers(rows, transformed):
    encoded, _ = transformed
    income = np.array(scalars(rows, "income", np.nan), np.float64)
    z = (income - np.nanmean(income)) / np.nanstd(income)
    np.testing.assert_allclose(encoded["income"], np.nan_to_num(z), atol=1e-4)
    visits = np.array(scalars(rows, "visits", 0.0))
    np.testing.assert_allclose(encoded["visits"], np.log1p(np.maximum(visits, 0)), rtol=1e-6)
    age = np.array(scalars(rows, "age", np.nan))
    np.testing.assert_array_equal(encoded["age"], np.where(np.isnan(age), 0, 1 + np.digitize(age, [18, 30])))
    np.testing.assert_array_equal(encoded[WEIGHT], scalars(rows, WEIGHT, 1.0))
    age = np.clip(np.float32(scalars(rows, "history_age", 0.0)), 0.0, np.finfo(np.float32).max)
    np.testing.assert_array_equal(encoded["history_age"], age)


def test_quantile_buckets_are_even_and_rise(rows, transformed):
    encoded, _ = transformed
    spend = np.array(scalars(rows, "spend", np.nan))
    present = ~np.isnan(spend)
    assert not encoded["spend"][~present].any()
    counts = np.bincount(encoded["spend"][present], minlength=5)[1:]
    assert np.abs(counts - present.sum() / 4).max() <= 2
    assert (np.diff(encoded["spend"][present][np.argsort(spend[present])]) >= 0).all()


def test_timestamp(rows, transformed):
    encoded, _ = transformed
    seconds = np.array(scalars(rows, "time", -1), np.int64)
    day = seconds % 86400 / 86400 * 2 * np.pi
    week = (seconds + 3 * 86400) % (7 * 86400) / (7 * 86400) * 2 * np.pi
    expected = np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], axis=1)
    np.testing.assert_allclose(encoded["time_cyclic"], expected, atol=1e-5)
    assert set(encoded["time_bucket"]) == {1, 2, 3, 4}
    assert (np.diff(encoded["time_bucket"][np.argsort(seconds)]) >= 0).all()


def test_every_feature_writes_the_keys_that_it_names(transformed):
    encoded, _ = transformed
    keys = [key for feature in (*FEATURES.query, *FEATURES.candidate) for key in feature.keys]
    assert len(set(keys)) == len(keys)
    assert set(keys) | {LABEL, USER, TIME, WEIGHT} == set(encoded)


def test_no_feature_replaces_the_encoding_of_another():
    features = Features.model_validate(
        {
            "query": [{"column": "time", "encoding": "timestamp"}, {"column": "time_bucket", "encoding": "log1p"}],
            "candidate": [{"column": "item", "encoding": "vocabulary"}],
        }
    )
    dtypes = {"user": tf.string, "item": tf.string, "time": tf.int64, "time_bucket": tf.float32}
    config = CONFIG | {"features": features.model_dump_json()}
    spec = {column: tf.io.VarLenFeature(dtype) for column, dtype in dtypes.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    row = {"user": ["a"], "item": ["b"], "time": [3], "time_bucket": [1.0]}
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


@pytest.mark.parametrize("side", ["query", "candidate"])
def test_a_request_is_encoded_as_in_training(rows, transformed, side):
    encoded, output = transformed
    preprocessor = preprocessing.Preprocessor(output, getattr(FEATURES, side))
    served = preprocessor(request(rows, preprocessor.signature()))
    keys = {key for f in getattr(FEATURES, side) for key in f.keys}
    keys |= set() if side == "query" else {LABEL}
    for key in keys:
        np.testing.assert_allclose(served[key].numpy(), encoded[key], atol=1e-6, err_msg=key)


def test_examples_and_requests_are_the_same(rows, transformed):
    _, output = transformed
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
    for features in (FEATURES.query, FEATURES.candidate):
        preprocessor = preprocessing.Preprocessor(output, features)
        expected = preprocessor(request(rows, preprocessor.signature()))
        got = preprocessor(preprocessing.requests_from_examples(tf.constant(serialized), features))
        for key, value in expected.items():
            if key in got:
                np.testing.assert_allclose(got[key].numpy(), value.numpy(), atol=1e-6, err_msg=key)


def test_an_empty_request_encodes_to_nothing(transformed):
    _, output = transformed
    preprocessor = preprocessing.Preprocessor(output, FEATURES.query)
    empty = [{column: [] for column in (*STRINGS, *FLOATS, "time")}] * 2
    for key, value in preprocessor(request(empty, preprocessor.signature())).items():
        if key != WEIGHT:
            assert not value.numpy().any(), key
