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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RECOMMEND = ("serving_default", "recommend_excluding", "recommend_filtered")
RECOMMEND_USER = "recommend_user"
"""The signature of a servable that knows users."""
SIGNATURES = (*RECOMMEND, "similar_items", "query_embedding", "candidate_embedding", "evaluate")
EXPLAIN = ("explain", "explain_embedding")
"""Of a servable that has them: one that was made before there were any can be updated."""

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
        contract = json.load(file)
    if any(op.startswith("Scann>") for op in contract["ops"]):
        from scann.scann_ops.py import scann_ops  # noqa: F401  (registers the ops)
    try:
        model = tf.saved_model.load(path)
    except Exception as error:
        return {"failures": [f"does not load: {_first_line(error)}"], "requests": 0, "latency_ms": None}
    with tf.io.gfile.GFile(os.path.join(path, contract["item_ids"])) as file:
        ids = [line.rstrip("\n").encode() for line in file]
    most = contract.get("max_per_value")
    limits = _Limits(path, most) if most else None

    warmup = os.path.join(path, "assets.extra", "tf_serving_warmup_requests")
    requests: list[tuple[str, dict[str, np.ndarray]]] = []
    for record in tf.data.TFRecordDataset(warmup).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    expected = [*SIGNATURES, *(name for name in EXPLAIN if name in contract["signatures"])]
    expected += [RECOMMEND_USER] if contract.get("known_users") else []
    failures = [f"{name}: the signature is missing" for name in expected if name not in model.signatures]
    replayed = {name for name, _ in requests}
    failures += [f"{name}: no warm-up request calls it" for name in expected if name not in replayed]
    singles = [inputs for name, inputs in requests if name == "serving_default" and _batch(inputs) == 1]
    requests += [("serving_default", _nothing(inputs)) for inputs in singles[:1]]

    histories = _histories(path, ids, requests) if contract["history_column"] else {}
    for name, inputs in requests:
        if name not in model.signatures:
            continue
        try:
            outputs = {key: value.numpy() for key, value in _call(model, name, inputs).items()}
            if name == RECOMMEND_USER and histories:
                inputs = _with_histories(inputs, contract["history_column"], histories)
            failures += [f"{name}: {fault}" for fault in faults(name, inputs, outputs, contract, set(ids), limits)]
        except Exception as error:
            failures.append(f"{name}: does not answer: {_first_line(error)}")
    latency = None if failures or not singles else _latency(model, singles)
    return {"failures": list(dict.fromkeys(failures)), "requests": len(requests), "latency_ms": latency}


def _histories(
    path: str, ids: Sequence[bytes], requests: Sequence[tuple[str, Mapping[str, np.ndarray]]]
) -> dict[bytes, list[bytes]]:
    """The histories that the servable knows of the users of requests; none where nobody is asked for by id."""
    asked = {user.decode() for name, inputs in requests if name == RECOMMEND_USER for user in inputs["user_id"]}
    if not asked:
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tensorflow as tf

    with tf.io.gfile.GFile(os.path.join(path, "assets.extra", "users.parquet"), "rb") as file:
        read = pq.read_table(
            pa.BufferReader(file.read()), columns=["user_id", "history"], filters=[("user_id", "in", asked)]
        )
    return {user["user_id"].encode(): [ids[row] for row in user["history"]] for user in read.to_pylist()}


def _with_histories(
    inputs: Mapping[str, np.ndarray], column: str, histories: Mapping[bytes, Sequence[bytes]]
) -> dict[str, np.ndarray]:
    """The inputs with the histories that answer them: the request's own ones, or else those of known users."""
    own = [[item for item in history if item] for history in inputs[column]]
    used = [o or list(histories.get(user, ())) for o, user in zip(own, inputs["user_id"], strict=True)]
    width = max(map(len, used))
    return {**inputs, column: np.array([u + [b""] * (width - len(u)) for u in used], object).reshape(len(used), width)}


def faults(
    signature: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    contract: Mapping[str, Any],
    known: set[bytes],
    limits: _Limits | None = None,
) -> list[str]:
    """What is wrong with an answer, in words."""
    batch, k = _batch(inputs), contract["k"]
    expected: dict[str, tuple[Any, tuple[int, ...]]]
    if signature in (*RECOMMEND, RECOMMEND_USER, "similar_items"):
        columns = dict.fromkeys(contract["return_columns"], (np.object_, (batch, k)))
        expected = {"item_id": (np.object_, (batch, k)), "score": (np.float32, (batch, k)), **columns}
        wrong = _contract_faults(outputs, expected)
        return wrong or _ranking_faults(signature, inputs, outputs, contract, known, limits)
    if signature == "evaluate":
        at = (batch, contract["evaluation_k"])
        expected = dict.fromkeys(("classes", "classes_with_seen", "popular"), (np.object_, at))
        expected |= dict.fromkeys(("scores", "head"), (np.float32, at))
        wrong = _contract_faults(outputs, {**expected, "catalogue_size": (np.float32, (batch,))})
        return wrong or [
            fault
            for name in ("classes", "classes_with_seen", "popular")
            for row in outputs[name]
            for fault in _list_faults(name, row, known)
        ]
    if signature in EXPLAIN:
        return _explanation_faults(signature, inputs, outputs, contract)
    expected = {"embedding": (np.float32, (batch, contract["dimension"]))}
    if signature == "candidate_embedding":
        expected["popularity"] = (np.float32, (batch,))
    wrong = _contract_faults(outputs, expected)
    return wrong or ([] if np.isfinite(outputs["embedding"]).all() else ["embedding has values that are not finite"])


def _contract_faults(
    outputs: Mapping[str, np.ndarray], expected: Mapping[str, tuple[Any, tuple[int, ...]]]
) -> list[str]:
    """Names, dtypes and shapes."""
    if set(outputs) != set(expected):
        return [f"outputs are {sorted(outputs)}, expected {sorted(expected)}"]
    wrong = []
    for name, (dtype, shape) in expected.items():
        output = outputs[name]
        if output.dtype != dtype or output.shape != shape:
            # numpy's word for strings of any length is object.
            is_, wanted = (str(np.dtype(d)).replace("object", "string") for d in (output.dtype, dtype))
            wrong.append(f"{name} is {is_} {list(output.shape)}, expected {wanted} {list(shape)}")
    return wrong


def _ranking_faults(
    signature: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    contract: Mapping[str, Any],
    known: set[bytes],
    limits: _Limits | None,
) -> list[str]:
    wrong: list[str] = []
    for number, (items, scores) in enumerate(zip(outputs["item_id"], outputs["score"], strict=True)):
        wrong += _list_faults("item_id", items, known)
        filled = items != b""
        if np.isnan(scores).any() or not np.isfinite(scores[filled]).all() or not np.isneginf(scores[~filled]).all():
            wrong.append("score is not finite beside an item, or not -inf beside padding")
        elif np.any(np.diff(scores[filled]) > _FLOAT_ERROR * np.maximum(1, np.abs(scores[filled][1:]))):
            wrong.append("scores are not best first")
        kept_out = _kept_out(signature, inputs, number, contract)
        answered = set(items[filled])
        returned = sorted(kept_out & answered)
        if returned:
            wrong.append(f"item {returned[0].decode()!r} comes back although the request excludes it")
        left = known - kept_out
        if limits is not None and signature in (*RECOMMEND, RECOMMEND_USER):
            wrong += limits.faults(answered)
            left = answered | limits.open(answered, left - answered)
        least = min(contract["k"], len(left))
        if signature == "similar_items" and inputs["item_id"][number] not in known:
            least = 0
        if signature not in ("recommend_filtered", RECOMMEND_USER) and filled.sum() < least:
            wrong.append(f"{filled.sum()} items come back, {least} exist")
    return wrong


def _explanation_faults(
    signature: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], contract: Mapping[str, Any]
) -> list[str]:
    """Wrong shapes, parts that do not add up to their score, or a reason that is not in the history."""
    asked = inputs["explain" if signature == "explain" else "candidates"].shape[:2]
    parts = outputs["part"].shape if "part" in outputs else (asked[0], 0)
    reasons = (*asked, *outputs["reason_score"].shape[2:]) if "reason_score" in outputs else asked
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "part": (np.object_, parts), "part_exact": (np.bool_, parts), "part_score": (np.float32, (*asked, parts[-1])),
        "reason_item_id": (np.object_, reasons), "reason_score": (np.float32, reasons),
        "reason_exact": (np.bool_, asked[:1]),
    }  # fmt: skip
    if signature == "explain":
        expected |= {"item_id": (np.object_, asked), "score": (np.float32, asked)}
        for column in contract["return_columns"]:
            expected |= {column: (np.object_, asked), f"reason_{column}": (np.object_, reasons)}
    wrong = _contract_faults(outputs, expected)
    if wrong:
        return wrong
    summed = np.sum(outputs["part_score"] * outputs["part_exact"][:, np.newaxis], axis=2)
    size = np.sum(np.abs(outputs["part_score"]), axis=2)
    if signature == "explain":
        there = outputs["item_id"] != b""
        score = outputs["score"]
    else:
        there, score = np.ones(asked, bool), summed
    if not np.isfinite(summed).all() or np.any(
        np.abs(summed - score)[there] > _FLOAT_ERROR * np.maximum(1, size)[there]
    ):
        wrong.append("the parts of a score do not add up to it")
    column = contract["history_column"]
    for number, named in enumerate(outputs["reason_item_id"]):
        if set(named.ravel()) - {b""} - set(inputs[column][number] if column else ()):
            wrong.append("a reason is no item of the history")
    return wrong


class _Limits:
    """`serving.max_per_value`: at most m items of each value of a column in a recommendation."""

    def __init__(self, path: str, most: Mapping[str, int]) -> None:
        self._most = most
        self._kinds: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
        """Item → its columns and values."""
        self._items: dict[tuple[str, str], set[bytes]] = defaultdict(set)
        """Column and value → the items that have it."""
        filterable = _filterable(path)
        for column in most:
            for item, of_item in filterable[column].items():
                for value in set(of_item) - {""}:
                    self._kinds[item].append((column, value))
                    self._items[column, value].add(item)

    def faults(self, answered: set[bytes]) -> list[str]:
        """Of which values an answer has too many items."""
        return [
            f"{count} items with {column} {value!r} come back, {self._most[column]} at most may"
            for (column, value), count in self._counts(answered).items()
            if count > self._most[column]
        ]

    def open(self, answered: set[bytes], others: set[bytes]) -> set[bytes]:
        """Which other items could come back beside those of an answer."""
        for (column, value), count in self._counts(answered).items():
            if count >= self._most[column]:
                others = others - self._items[column, value]
        return others

    def _counts(self, answered: set[bytes]) -> Counter[tuple[str, str]]:
        return Counter(kind for item in sorted(answered) for kind in self._kinds.get(item, ()))


def _filterable(path: str) -> dict[str, dict[bytes, list[str]]]:
    """Column → item → values, from the catalogue beside the SavedModel."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tensorflow as tf

    with tf.io.gfile.GFile(os.path.join(path, "assets.extra", "catalogue.parquet"), "rb") as file:
        table = pq.read_table(pa.BufferReader(file.read()), columns=["item_id", "filterable"])
    items = [item.encode() for item in table["item_id"].to_pylist()]
    column = table["filterable"].combine_chunks()
    return {field.name: dict(zip(items, column.field(field.name).to_pylist(), strict=True)) for field in column.type}


def _kept_out(signature: str, inputs: Mapping[str, np.ndarray], number: int, contract: Mapping[str, Any]) -> set[bytes]:
    """The items that may not come back for one request of a batch."""
    if signature == "similar_items":
        return {inputs["item_id"][number]}
    items: set[bytes] = set()
    if contract["exclude_history"] and contract["history_column"]:
        items |= set(inputs[contract["history_column"]][number])
    if "exclude" in inputs:
        items |= set(inputs["exclude"][number])
    return items - {b""}


def _list_faults(name: str, items: np.ndarray, known: set[bytes]) -> list[str]:
    """Known ids, each once, padding last."""
    filled = [item for item in items if item != b""]
    wrong = []
    if list(items[: len(filled)]) != filled:
        wrong.append(f"{name} has padding before an item")
    twice = len(filled) - len(set(filled))
    if twice:
        wrong.append(f"{name} has {twice} items twice")
    foreign = sorted(set(filled) - known)
    if foreign:
        wrong.append(f"{name} has {foreign[0].decode(errors='replace')!r}, which is not in the catalogue")
    return wrong


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
