"""Warm-up requests: for every signature, of real examples, as TF Serving replays them."""

import numpy as np
import pytest
import tensorflow as tf
from known_towers import COLUMNS, FEATURES, SERVING, World
from tensorflow_serving.apis import prediction_log_pb2

from modules.servable import warmup

_SIGNATURES = {
    "serving_default": ("history", "user_id"),
    "recommend_excluding": ("exclude", "history", "user_id"),
    "recommend_filtered": ("exclude", "filter_genres", "history", "user_id"),
    "similar_items": ("item_id",),
    "query_embedding": ("history", "user_id"),
    "candidate_embedding": ("genres", "item_id"),
    "evaluate": ("examples",),
    "explain": ("explain", "history", "user_id"),
    "explain_embedding": ("candidates", "history", "user_id"),
}


@pytest.fixture(scope="module")
def world():
    return World(300)


def _requests(world, queries, items):
    return warmup.requests(
        world.catalogue(), FEATURES, SERVING, COLUMNS.item,
        [world.query_example(n) for n in range(queries)], [world.item_example(n) for n in range(items)],
    )  # fmt: skip


def test_every_signature_is_asked_single_ones_and_a_batch(world):
    requests = _requests(world, 30, 30)
    assert {name: tuple(sorted(of_name[0])) for name, of_name in requests.items()} == _SIGNATURES
    for of_signature in requests.values():
        sizes = [int(next(iter(request.values())).shape[0]) for request in of_signature]
        assert sizes[:5] == [1, 1, 1, 1, 16]
    asked = np.concatenate([request["user_id"] for request in requests["query_embedding"]])
    assert set(asked) == {f"u{n}".encode() for n in range(30)}, "an update measures its recall on many"


def test_one_query_and_one_item_are_enough(world):
    assert set(_requests(world, 1, 1)) == set(_SIGNATURES)


def test_the_file_is_what_tf_serving_replays_and_is_read_again(world, tmp_path):
    requests = _requests(world, 20, 20)
    warmup.write(str(tmp_path), "films", requests)
    records = tf.data.TFRecordDataset(str(tmp_path / warmup.WARMUP_PATH)).as_numpy_iterator()
    logged = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    assert {request.model_spec.name for request in logged} == {"films"}
    assert {request.model_spec.signature_name for request in logged} == set(_SIGNATURES)
    again = warmup.read(str(tmp_path))
    assert {name: len(of_name) for name, of_name in again.items()} == {n: len(r) for n, r in requests.items()}
    for name, of_name in requests.items():
        for ours, theirs in zip(of_name, again[name], strict=True):
            for key, value in ours.items():
                np.testing.assert_array_equal(theirs[key], value)
                assert theirs[key].dtype == value.dtype
