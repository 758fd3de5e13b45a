"""Warm-up requests: real ones for every signature, which TF Serving replays before a version takes traffic."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from modules.encodings.base import MISSING_TIMESTAMP
from modules.encodings.features import Features
from modules.preprocessing import missing, requests_from_examples
from modules.servable.catalogue import EmbeddedCatalogue
from modules.servable.contract import (
    CANDIDATE_EMBEDDING,
    CANDIDATES,
    EXCLUDE,
    EXPLAIN,
    EXPLAIN_EMBEDDING,
    FILTER_PREFIX,
    ITEM_ID,
    QUERY_EMBEDDING,
    RECOMMEND_USER,
    USER_ID,
)
from modules.servable.embedding import candidate_requests
from modules.servable.user_snapshot import UserSnapshot
from modules.settings import Serving

WARMUP_PATH = os.path.join("assets.extra", "tf_serving_warmup_requests")
"""Where TF Serving looks for them."""

_SINGLE = 4
_BATCH = 16
# Queries in the requests for `query_embedding`, by which an update measures its recall.
_RECALL_QUERIES = 256


def requests(
    catalogue: EmbeddedCatalogue, features: Features, serving: Serving, item_column: str, queries: Sequence[bytes],
    items: Sequence[bytes],
) -> dict[str, list[dict[str, tf.Tensor]]]:  # fmt: skip
    """Requests for every signature, single ones and a batch, made from real examples; more for `query_embedding`.

    Args:
        catalogue: Where excluded items and filter values are taken from.
        features: Which columns a request has.
        serving: The filters there are.
        item_column: Column of the item id.
        queries: Serialized eval examples, at least one.
        items: Serialized catalogue examples, at least one.
    """
    result: dict[str, list[dict[str, tf.Tensor]]] = {}
    popular = list(catalogue.item_ids[:2])
    sizes = [slice(n, n + 1) for n in range(min(_SINGLE, len(queries)))] + [slice(0, _BATCH)]
    for chosen in sizes:
        examples = tf.constant(list(queries[chosen]), tf.string)
        request = requests_from_examples(examples, features.query)
        batch = int(examples.shape[0])
        exclude = {EXCLUDE: tf.constant([popular] * batch, tf.string)}
        filters = {
            FILTER_PREFIX + column: tf.constant([[_most_common(catalogue.filterable[column])]] * batch, tf.string)
            for column in serving.filter_columns
        }
        explained = {EXPLAIN: tf.constant([popular] * batch, tf.string)}
        candidates = {CANDIDATES: tf.constant([catalogue.vectors[:2]] * batch, tf.float32)}
        item_ids = tf.constant(list(catalogue.item_ids[chosen]), tf.string)
        some_items = tf.constant(list(items[chosen] or items[:1]), tf.string)
        for signature, inputs in {
            "serving_default": request,
            "recommend_excluding": {**request, **exclude},
            "recommend_filtered": {**request, **exclude, **filters},
            "similar_items": {ITEM_ID: item_ids if len(item_ids) else tf.constant([catalogue.item_ids[0]])},
            QUERY_EMBEDDING: request,
            CANDIDATE_EMBEDDING: candidate_requests(some_items, features, item_column),
            "evaluate": {"examples": examples},
            EXPLAIN: {**request, **explained},
            EXPLAIN_EMBEDDING: {**request, **candidates},
        }.items():
            result.setdefault(signature, []).append(inputs)
    for start in range(_BATCH, min(len(queries), _RECALL_QUERIES), _BATCH):
        examples = tf.constant(list(queries[start : start + _BATCH]), tf.string)
        result[QUERY_EMBEDDING].append(requests_from_examples(examples, features.query))
    return result


def with_users(
    requests: Mapping[str, Sequence[Mapping[str, tf.Tensor]]], users: UserSnapshot, features: Features
) -> dict[str, list[dict[str, tf.Tensor]]]:
    """The same requests, and of those to `recommend_filtered` what asks as much by user id: everything else is missing.

    Args:
        requests: By signature.
        users: Who is known.
        features: Which columns a request has.
    """
    asked = []
    first = users.table["user_id"].slice(0, _BATCH).to_pylist()
    for number, request in enumerate(requests["recommend_filtered"]):
        batch = int(request[EXCLUDE].shape[0])
        nobody = missing([f for f in features.query if f.column != users.columns.user], batch)
        if features.history_age is not None or users.columns.timestamp in nobody:
            nobody[users.columns.timestamp] = tf.fill([batch], tf.constant(users.newest or MISSING_TIMESTAMP, tf.int64))
        known = [first[(number + place) % len(first)] for place in range(batch)]
        rules = {n: value for n, value in request.items() if n == EXCLUDE or n.startswith(FILTER_PREFIX)}
        asked.append({USER_ID: tf.constant(known), **nobody, **rules})
    return {**{name: list(map(dict, of_name)) for name, of_name in requests.items()}, RECOMMEND_USER: asked}


def write(folder: str, model: str, requests: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes requests as TF Serving replays them.

    Args:
        folder: The servable.
        model: The model's name in requests.
        requests: By signature.
    """
    path = os.path.join(folder, WARMUP_PATH)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for signature, of_signature in requests.items():
            for request in of_signature:
                writer.write(_prediction_log(model, signature, request).SerializeToString())


def read(folder: str) -> dict[str, list[dict[str, tf.Tensor]]]:
    """The requests that a servable carries, by signature."""
    requests: dict[str, list[dict[str, tf.Tensor]]] = {}
    for record in tf.data.TFRecordDataset(os.path.join(folder, WARMUP_PATH)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        arrays = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        requests.setdefault(request.model_spec.signature_name, []).append(
            {n: tf.constant(a, tf.string if a.dtype.kind == "O" else None, a.shape) for n, a in arrays.items()}
        )
    return requests


def _most_common(values: Sequence[Sequence[str]]) -> str:
    return Counter(value for of_row in values for value in of_row if value).most_common(1)[0][0]


def _prediction_log(model: str, signature: str, request: Mapping[str, tf.Tensor]) -> prediction_log_pb2.PredictionLog:
    predict = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=model, signature_name=signature),
        inputs={name: tf.make_tensor_proto(value) for name, value in request.items()},
    )
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=predict))
