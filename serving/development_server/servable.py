"""One version in memory: a TensorFlow session over a SavedModel, as TF Serving holds it, and its signatures."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import message
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving.development_server.errors import ServingError, code_of, invalid
from serving.development_server.limits import Limits, flag
from serving.development_server.metrics import Metrics
from serving.development_server.tensors import Inputs, ProtoInputs

CONTRACT_VERSION = 2
"""The newest `contract_version` of assets.extra/servable.json that this server understands."""
DEFAULT_SIGNATURE = "serving_default"

_DESCRIPTION = os.path.join("assets.extra", "servable.json")
_WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")
# As many as TF Serving replays.
_MAX_WARMUP = 1000
# What the version brings itself is no stranger's request.
_UNLIMITED = Limits(*[2**62] * len(dataclasses.fields(Limits)))


@dataclass(frozen=True)
class _Input:
    name: str
    tensor: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None
    """None: of any rank."""

    def has_batch(self, shape: Sequence[int]) -> bool:
        """Whether a value's first dimension is the batch's, which the model leaves open."""
        return self.shape is not None and len(self.shape) == len(shape) > 0 and self.shape[0] is None

    def check(self, signature: str, value: np.ndarray) -> None:
        fits = self.shape is None or (
            len(self.shape) == value.ndim
            and all(size is None or size == given for size, given in zip(self.shape, value.shape, strict=True))
        )
        if value.dtype != self.dtype or not fits:
            raise invalid(
                f"input {self.name!r} of signature {signature!r}: expected {_in_words(self.dtype, self.shape)}, "
                f"got {_in_words(value.dtype, value.shape)}"
            )


class _Signature:
    """A signature's inputs and outputs, and the session's way to run it."""

    def __init__(self, session: Any, name: str, definition: meta_graph_pb2.SignatureDef) -> None:
        self.name = name
        self.definition = definition
        self.inputs = {
            key: _Input(key, info.name, np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype), _shape(info))
            for key, info in sorted(definition.inputs.items())
        }
        self.outputs = sorted(definition.outputs)
        options = config_pb2.CallableOptions(
            feed=[spec.tensor for spec in self.inputs.values()],
            fetch=[definition.outputs[key].name for key in self.outputs],
        )
        # The request's own thread runs the graph: handing a small graph to a pool costs a fifth of its time.
        options.run_options.inter_op_thread_pool = -1
        # Session.run looks up every feed and fetch by name in each call; what it does in the end is this.
        self._run = session._make_callable_from_options(options)

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        return {name: spec.dtype for name, spec in self.inputs.items()}

    def admit(self, shapes: Mapping[str, Sequence[int]], limits: Limits) -> None:
        """Refuses what is too large, or whose inputs have different batch sizes, by its shapes alone."""
        batches, values = {}, 0
        for name, shape in shapes.items():
            # No larger number is of use, and one of thousands of digits cannot even be written into a message.
            batch, width = (shape[0] if shape else 1), min(math.prod(shape[1:]), 2**63)
            values += batch * width
            for what, number, (most, option) in (
                ("rows", batch, (limits.max_batch, flag("max_batch"))),
                ("values in a row", width, limits.width(name)),
                ("values", batch * width, limits.size(name)),
                ("values with the inputs before it", values, (limits.max_values, flag("max_values"))),
            ):
                if number > most:
                    raise invalid(f"input {name!r}: {number} {what}; this server takes {most} ({option})")
            if name in self.inputs and self.inputs[name].has_batch(shape):
                batches[name] = batch
        if len(set(batches.values())) > 1:
            sizes = ", ".join(f"{name} {batch}" for name, batch in sorted(batches.items()))
            raise invalid(f"the inputs of signature {self.name!r} must have equal batch sizes: {sizes}")

    def admit_padded(self, inputs: Mapping[str, np.ndarray], limits: Limits) -> None:
        """Refuses one long string beside many rows: a row is padded to the longest one once it is parsed.

        `evaluate` makes a matrix of its serialized examples, as wide as the longest list in any of them.
        """
        for name, value in inputs.items():
            if value.dtype.kind == "O" and value.ndim == 1 and len(value):
                padded, most = len(value) * max(map(len, value.tolist())), limits.max_message_bytes
                if padded > most:
                    raise invalid(
                        f"input {name!r}: {padded} bytes, padded to its longest value; this server takes {most} "
                        f"({flag('max_message_bytes')})"
                    )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = [inputs[name] for name in self.inputs]
        for spec, value in zip(self.inputs.values(), values, strict=True):
            spec.check(self.name, value)
        try:
            return dict(zip(self.outputs, self._run(*values), strict=True))
        except tf.errors.OpError as error:
            code, text = code_of(error.error_code), error.message
        except UnicodeDecodeError as error:
            # A message of TensorFlow's that repeats bytes of the request; its code is lost on the way to Python.
            code, text = grpc.StatusCode.INVALID_ARGUMENT, error.object.decode("utf-8", "replace")
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
        raise ServingError(code, f"{text} (inputs: {shapes})")


class Servable:
    """A loaded version that has answered its warm-up requests.

    Args:
        path: A version folder.
        metrics: Where the time of loading and warming up is noted.

    Raises:
        ServingError: The folder holds no whole SavedModel, its contract is newer than this server, or a warm-up request
            fails.
    """

    def __init__(self, path: str, metrics: Metrics) -> None:
        self.path = path
        started = time.perf_counter()
        try:
            self._session, definitions = _load(path)
        except ServingError as error:
            metrics.load_attempts.add(path, error.code.name)
            raise
        metrics.load_attempts.add(path, "OK")
        metrics.load_latency.add(path, seconds=time.perf_counter() - started)
        self.definitions = definitions
        self._signatures = {
            name: _Signature(self._session, name, definition)
            for name, definition in definitions.items()
            # What initialises the model is listed like a signature, but nobody calls it.
            if definition.method_name
        }
        started = time.perf_counter()
        try:
            self._warm_up()
        except ServingError as error:
            metrics.warmup_latency.add(path, error.code.name, seconds=time.perf_counter() - started)
            self.close()
            raise ServingError(error.code, f"warm-up: {error.message}") from None
        metrics.warmup_latency.add(path, "OK", seconds=time.perf_counter() - started)

    def read(self, signature: str, inputs: Inputs, limits: Limits) -> dict[str, np.ndarray]:
        """The values of a request, refused before they are allocated when they are too many.

        Args:
            signature: Its name, "" for the default.
            inputs: As they came.
            limits: What is too many.

        Raises:
            ServingError: Too large, or not what the signature takes.
        """
        chosen = self._signature(signature)
        chosen.admit(inputs.shapes(chosen.dtypes), limits)
        arrays = inputs.arrays(chosen.dtypes)
        chosen.admit_padded(arrays, limits)
        return arrays

    def predict(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
            signature: Its name, "" for the default one.
            inputs: Every input of the signature; strings as object arrays of bytes.
            outputs: The outputs wanted, empty for all.

        Raises:
            ServingError: As TF Serving answers; the message names the input.
        """
        chosen = self._signature(signature)
        wanted: set[str] = set()
        for name in outputs:
            if name in wanted:
                raise invalid(f"duplicate output tensor alias: {name}")
            wanted.add(name)
            if name not in chosen.definition.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                    f"{{{_joined(chosen.outputs)}}}."
                )
        answer = chosen.run(inputs)
        return {name: answer[name] for name in outputs} if outputs else answer

    def inputs(self, signature: str) -> dict[str, np.dtype]:
        """Names and dtypes of a signature's inputs, for JSON that has neither.

        Raises:
            ServingError: There is no such signature.
        """
        chosen = self._signatures.get(signature or DEFAULT_SIGNATURE)
        if chosen is None:
            raise invalid(f'Serving signature name: "{signature or DEFAULT_SIGNATURE}" not found in signature def')
        return chosen.dtypes

    def close(self) -> None:
        """Gives the memory back. Nobody may be asking any more."""
        self._signatures.clear()
        self._session.close()
        del self._session
        # A graph's objects point at each other; in a server that makes few others Python would not look for long.
        gc.collect()
        # Nor does the C library return by itself what the loader took in small pieces: a tenth of the process.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def _signature(self, name: str) -> _Signature:
        chosen = self._signatures.get(name or DEFAULT_SIGNATURE)
        if chosen is None:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.'
            )
        return chosen

    def _warm_up(self) -> None:
        path = os.path.join(self.path, _WARMUP)
        if not tf.io.gfile.exists(path):
            return
        try:
            records = tf.compat.v1.io.tf_record_iterator(path)
            for _, record in zip(range(_MAX_WARMUP), records, strict=False):
                log = prediction_log_pb2.PredictionLog.FromString(record)
                if log.HasField("predict_log"):
                    request = log.predict_log.request
                    signature = request.model_spec.signature_name
                    self.predict(signature, self.read(signature, ProtoInputs(request.inputs), _UNLIMITED))
        except tf.errors.OpError as error:
            raise ServingError(code_of(error.error_code), error.message) from None
        except message.DecodeError as error:
            raise ServingError(grpc.StatusCode.DATA_LOSS, f"{path} has a record that cannot be read: {error}") from None


def _load(path: str) -> tuple[Any, dict[str, meta_graph_pb2.SignatureDef]]:
    description = _description(path)
    contract = description.get("contract_version", CONTRACT_VERSION)
    if not isinstance(contract, int) or contract > CONTRACT_VERSION:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"contract version {contract} is newer than {CONTRACT_VERSION}, which this server understands",
        )
    if _needs_scann(description):
        _register_scann_ops()
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    try:
        with graph.as_default():
            loaded = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], path)
    except Exception as error:
        session.close()
        # A damaged SavedModel fails anywhere in TensorFlow's loader, with whatever exception that place knows.
        code = code_of(error.error_code) if isinstance(error, tf.errors.OpError) else grpc.StatusCode.INTERNAL
        raise ServingError(code, next(iter(str(error).splitlines()), type(error).__name__)) from None
    return session, dict(loaded.signature_def)


def _description(path: str) -> dict[str, Any]:
    """assets.extra/servable.json; empty for a SavedModel that does not come from this pipeline."""
    if not tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
        raise ServingError(grpc.StatusCode.NOT_FOUND, f"{path} has no saved_model.pb (yet)")
    file = os.path.join(path, _DESCRIPTION)
    if not tf.io.gfile.exists(file):
        return {}
    try:
        with tf.io.gfile.GFile(file) as lines:
            description = json.load(lines)
    except (ValueError, tf.errors.OpError) as error:
        raise ServingError(grpc.StatusCode.DATA_LOSS, f"{file} cannot be read: {error}") from None
    if not isinstance(description, dict):
        raise ServingError(grpc.StatusCode.DATA_LOSS, f"{file} is not a JSON object")
    return description


def _needs_scann(description: dict[str, Any]) -> bool:
    """Contract 1 names the index layer alone, contract 2 the ops."""
    ops = description.get("ops")
    if isinstance(ops, list):
        return any(str(op).startswith("Scann>") for op in ops)
    return description.get("layer") == "scann"


def _register_scann_ops() -> None:
    try:
        from scann.scann_ops.py import scann_ops  # noqa: F401
    except ImportError as error:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION, f"the index needs ScaNN's ops, and scann does not import: {error}"
        ) from None


def _shape(info: meta_graph_pb2.TensorInfo) -> tuple[int | None, ...] | None:
    if info.tensor_shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)


def _in_words(dtype: np.dtype, shape: tuple[int | None, ...] | None) -> str:
    # numpy's word for strings of any length is object.
    name = "string" if dtype.kind in "OSU" else str(dtype)
    return name if shape is None else f"{name} [{', '.join('?' if size is None else str(size) for size in shape)}]"


def _joined(names: Collection[str]) -> str:
    return ",".join(sorted(names))
