"""Runs in a process of its own: loads a servable as a server would, replays its warm-up requests, checks each answer.

    python replay.py <servable> <result.json>

Imports TensorFlow, TensorFlow Serving's request format and nothing of this project: what only works beside the code
that built it fails here. ScaNN's ops are registered for a servable that says it needs them.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RECOMMEND = ("serving_default", "recommend_excluding", "recommend_filtered")
SIGNATURES = (*RECOMMEND, "similar_items", "query_embedding", "candidate_embedding", "evaluate")

_LATENCY_CALLS = 200
_LATENCY_SECONDS = 5.0
_FLOAT_ERROR = 1e-4


def main(path: str, result_path: str) -> None:
    import tensorflow as tf

    result = replay(path)
    with tf.io.gfile.GFile(result_path, "w") as file:
        json.dump(result, file)


def replay(path: str) -> dict[str, Any]:
    """Loads and exercises a servable.

    Returns:
        `failures`: sentences, none when all is well; `requests`: how many were replayed; `latency_ms`: p50 and p99 of
        single requests to `serving_default`, None when there was no answer.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    with tf.io.gfile.GFile(os.path.join(path, "assets.extra", "servable.json")) as file:
        description = json.load(file)
    if any(op.startswith("Scann>") for op in description["ops"]):
        from scann.scann_ops.py import scann_ops  # noqa: F401  (registers the ops)
    try:
        model = tf.saved_model.load(path)
    except Exception as error:
        return {"failures": [f"does not load: {_first_line(error)}"], "requests": 0, "latency_ms": None}
    with tf.io.gfile.GFile(os.path.join(path, description["item_ids"])) as file:
        known = {line.rstrip("\n").encode() for line in file}

    warmup = os.path.join(path, "assets.extra", "tf_serving_warmup_requests")
    requests: list[tuple[str, dict[str, np.ndarray]]] = []
    for record in tf.data.TFRecordDataset(warmup).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    failures = [f"{name}: the signature is missing" for name in SIGNATURES if name not in model.signatures]
    replayed = {name for name, _ in requests}
    failures += [f"{name}: no warm-up request calls it" for name in SIGNATURES if name not in replayed]
    singles = [inputs for name, inputs in requests if name == "serving_default" and _batch(inputs) == 1]
    requests += [("serving_default", _nothing(inputs)) for inputs in singles[:1]]

    for name, inputs in requests:
        if name not in model.signatures:
            continue
        try:
            outputs = {key: value.numpy() for key, value in _call(model, name, inputs).items()}
            failures += [f"{name}: {fault}" for fault in faults(name, inputs, outputs, description, known)]
        except Exception as error:
            failures.append(f"{name}: does not answer: {_first_line(error)}")
    latency = None if failures or not singles else _latency(model, singles)
    return {"failures": list(dict.fromkeys(failures)), "requests": len(requests), "latency_ms": latency}


def faults(
    signature: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    known: set[bytes],
) -> list[str]:
    """What is wrong with an answer, in words."""
    batch, k = _batch(inputs), description["k"]
    expected: dict[str, tuple[Any, tuple[int, ...]]]
    if signature in (*RECOMMEND, "similar_items"):
        columns = dict.fromkeys(description["return_columns"], (np.object_, (batch, k)))
        expected = {"item_id": (np.object_, (batch, k)), "score": (np.float32, (batch, k)), **columns}
        found = _contract_faults(outputs, expected)
        return found or _ranking_faults(signature, inputs, outputs, description, known)
    if signature == "evaluate":
        at = (batch, description["evaluation_k"])
        expected = dict.fromkeys(("classes", "classes_with_seen", "popular"), (np.object_, at))
        expected |= dict.fromkeys(("scores", "head"), (np.float32, at))
        found = _contract_faults(outputs, {**expected, "catalogue_size": (np.float32, (batch,))})
        return found or [
            fault
            for name in ("classes", "classes_with_seen", "popular")
            for row in outputs[name]
            for fault in _list_faults(name, row, known)
        ]
    expected = {"embedding": (np.float32, (batch, description["dimension"]))}
    if signature == "candidate_embedding":
        expected["popularity"] = (np.float32, (batch,))
    found = _contract_faults(outputs, expected)
    return found or ([] if np.isfinite(outputs["embedding"]).all() else ["embedding has values that are not finite"])


def _contract_faults(
    outputs: Mapping[str, np.ndarray], expected: Mapping[str, tuple[Any, tuple[int, ...]]]
) -> list[str]:
    """Names, dtypes and shapes."""
    if set(outputs) != set(expected):
        return [f"outputs are {sorted(outputs)}, expected {sorted(expected)}"]
    found = []
    for name, (dtype, shape) in expected.items():
        output = outputs[name]
        if output.dtype != dtype or output.shape != shape:
            # numpy's word for strings of any length is object.
            is_, wanted = (str(np.dtype(d)).replace("object", "string") for d in (output.dtype, dtype))
            found.append(f"{name} is {is_} {list(output.shape)}, expected {wanted} {list(shape)}")
    return found


def _ranking_faults(
    signature: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    known: set[bytes],
) -> list[str]:
    found: list[str] = []
    for number, (items, scores) in enumerate(zip(outputs["item_id"], outputs["score"], strict=True)):
        found += _list_faults("item_id", items, known)
        filled = items != b""
        if np.isnan(scores).any() or not np.isfinite(scores[filled]).all() or not np.isneginf(scores[~filled]).all():
            found.append("score is not finite beside an item, or not -inf beside padding")
        elif np.any(np.diff(scores[filled]) > _FLOAT_ERROR * np.maximum(1, np.abs(scores[filled][1:]))):
            found.append("scores are not best first")
        kept_out = _kept_out(signature, inputs, number, description)
        returned = sorted(kept_out & set(items[filled]))
        if returned:
            found.append(f"item {returned[0].decode()!r} comes back although the request excludes it")
        left = len(known - kept_out)
        least = min(description["k"], left)
        if signature == "similar_items" and inputs["item_id"][number] not in known:
            least = 0
        if signature != "recommend_filtered" and filled.sum() < least:
            found.append(f"{filled.sum()} items come back, {least} exist")
    return found


def _kept_out(
    signature: str, inputs: Mapping[str, np.ndarray], number: int, description: Mapping[str, Any]
) -> set[bytes]:
    """The items that may not come back for one request of a batch."""
    if signature == "similar_items":
        return {inputs["item_id"][number]}
    items: set[bytes] = set()
    if description["exclude_history"] and description["history_column"]:
        items |= set(inputs[description["history_column"]][number])
    if "exclude" in inputs:
        items |= set(inputs["exclude"][number])
    return items - {b""}


def _list_faults(name: str, items: np.ndarray, known: set[bytes]) -> list[str]:
    """Known ids, each once, padding last."""
    filled = [item for item in items if item != b""]
    found = []
    if list(items[: len(filled)]) != filled:
        found.append(f"{name} has padding before an item")
    twice = len(filled) - len(set(filled))
    if twice:
        found.append(f"{name} has {twice} items twice")
    unknown = sorted(set(filled) - known)
    if unknown:
        found.append(f"{name} has {unknown[0].decode(errors='replace')!r}, which the catalogue does not know")
    return found


def _nothing(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A request that says nothing: every value missing, every list empty."""
    missing = {"O": b"", "f": math.nan, "i": -1}
    return {
        name: value[:, :0] if value.ndim == 2 else np.full(value.shape, missing[value.dtype.kind], value.dtype)
        for name, value in inputs.items()
    }


def _latency(model: Any, requests: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    milliseconds: list[float] = []
    end = time.perf_counter() + _LATENCY_SECONDS
    while len(milliseconds) < _LATENCY_CALLS and time.perf_counter() < end:
        inputs = requests[len(milliseconds) % len(requests)]
        started = time.perf_counter()
        _call(model, "serving_default", inputs)["item_id"].numpy()
        milliseconds.append(1000 * (time.perf_counter() - started))
    p50, p99 = np.percentile(milliseconds, (50, 99))
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4)}


def _call(model: Any, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import tensorflow as tf

    tensors = {
        name: tf.constant(value, tf.string if value.dtype.kind == "O" else None, value.shape)
        for name, value in inputs.items()
    }
    return model.signatures[signature](**tensors)


def _batch(inputs: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(inputs.values())))


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


if __name__ == "__main__":
    main(*sys.argv[1:])
