"""A client for models on TF Serving, over gRPC or REST: numpy in, numpy out, with deadlines and retries.

    with GrpcClient("localhost:8500", "movielens-100k", label="stable") as client:
        answer = client.predict({"user_id": ["42"], …, "history": padded([["50", "181"]]), "history_age": [0.0]})
        answer["item_id"], answer["score"]

Imports nothing else of this project; gRPC needs tensorflow-serving-api (and waits for its import of TensorFlow), REST
needs urllib3. One file, to be copied into a service that asks a model.
"""

from __future__ import annotations

import abc
import base64
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

T = TypeVar("T")
Inputs = Mapping[str, Any]
"""Name → array, or (nested) lists of equal lengths; strings as `str` or `bytes`."""

DEFAULT_SIGNATURE = "serving_default"
USER_SIGNATURE, _USER_ID = "recommend_user", "user_id"

_NUMPY_TYPES = {
    "DT_FLOAT": np.float32, "DT_DOUBLE": np.float64, "DT_INT8": np.int8, "DT_INT16": np.int16, "DT_INT32": np.int32,
    "DT_INT64": np.int64, "DT_UINT8": np.uint8, "DT_UINT32": np.uint32, "DT_UINT64": np.uint64, "DT_BOOL": np.bool_,
    "DT_STRING": np.object_,
}  # fmt: skip


class ServingError(Exception):
    """The server refused a request, or could not be reached before the deadline.

    Args:
        code: The name of the gRPC status, such as INVALID_ARGUMENT; for REST that of the HTTP status, such as 400.
        message: The server's own words, or why there are none.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Retries:
    """When a call is tried again: the server was not there, or said that it is not ready. Never after the deadline.

    Predictions change nothing on the server, so a request whose connection broke may be sent twice.
    """

    attempts: int = 4
    """In all; 1 tries once."""
    first_wait: float = 0.05
    """Seconds before the second attempt, at most; doubled for each further one."""
    longest_wait: float = 1.0

    def wait(self, attempt: int) -> float:
        """Seconds after the n-th failure: random up to the bound, so that clients do not come back all at once."""
        return random.uniform(0, min(self.longest_wait, self.first_wait * 2 ** (attempt - 1)))


@dataclass(frozen=True)
class Prediction(Mapping[str, np.ndarray]):
    """Outputs by name; strings are object arrays of `str`, those of outputs named `…_bytes` of `bytes`."""

    outputs: Mapping[str, np.ndarray]
    version: int | None
    """The version that answered; REST does not say."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]

    def __iter__(self) -> Any:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature."""

    dtype: np.dtype
    """Object for strings."""
    shape: tuple[int | None, ...] | None
    """None for what is free; None as a whole for any rank."""


@dataclass(frozen=True)
class Signature:
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Metadata:
    """What a version offers."""

    version: int
    signatures: Mapping[str, Signature]


@dataclass(frozen=True)
class VersionStatus:
    """The state of one version: START, LOADING, AVAILABLE, UNLOADING or END."""

    version: int
    state: str
    error_code: str
    """OK, or why it does not answer."""
    error_message: str


def padded(lists: Sequence[Sequence[str]], width: int | None = None) -> np.ndarray:
    """Lists of unequal lengths as one [B, W] array of strings, filled up with "", which the servable passes over.

    Args:
        lists: B lists.
        width: W, by default the longest list's. A server that joins requests into batches needs the same width in all
            of them; longer lists keep their end, which is the newest part of a history.
    """
    if width is None:
        width = max(map(len, lists), default=0)
    array = np.full((len(lists), width), "", object)
    for row, values in enumerate(lists):
        kept = list(values)[max(0, len(values) - width) :]
        array[row, : len(kept)] = kept
    return array


class Client(abc.ABC):
    """One model on one server.

    Args:
        address: Host and port.
        model: Its name.
        version: Asks this version only.
        label: Asks the version that has this label; not beside `version`.
        timeout: Seconds for a call with all its attempts, unless the call has its own.
        retries: When and how often a failed call is tried again.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 5.0,
        retries: Retries | None = None,
    ) -> None:
        if version is not None and label is not None:
            raise ValueError("version and label exclude each other")
        self.address = address
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        self.retries = retries or Retries()
        self._of_users: Mapping[str, TensorSpec] = {}

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abc.abstractmethod
    def predict(
        self, inputs: Inputs, signature: str = DEFAULT_SIGNATURE, *, timeout: float | None = None
    ) -> Prediction:
        """Asks the model.

        Args:
            inputs: Columns by name, the batch first.
            signature: Which of the model's signatures.
            timeout: Seconds, for all attempts together.

        Raises:
            ServingError: The server refuses the request, or does not answer in time.
            ValueError: An input has lists of unequal lengths.
        """

    def recommend_user(
        self, user_ids: Sequence[str], inputs: Inputs | None = None, *, timeout: float | None = None
    ) -> Prediction:
        """Asks by user id a model that knows users: it has their features and histories itself.

        Args:
            user_ids: B users; unknown ones are answered as anonymous.
            inputs: What is to be said beside the ids, as `predict` has it: the time of asking, items to exclude,
                filters, or what is newer than what the model knows. What is left out is missing.
            timeout: Seconds, for all attempts together.

        Raises:
            ServingError: The model knows no users, refuses the request, or does not answer in time.
            ValueError: An input has lists of unequal lengths.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        if not self._of_users:
            # Read once: which inputs there are follows from the configuration.
            signature = self.metadata(timeout=deadline - time.monotonic()).signatures.get(USER_SIGNATURE)
            if signature is None:
                raise ServingError("NOT_FOUND", f"{self.model} has no signature {USER_SIGNATURE}: it knows no users")
            self._of_users = signature.inputs
        absent = {name: missing(spec, len(user_ids)) for name, spec in self._of_users.items() if name != _USER_ID}
        asked = {**absent, **(inputs or {}), _USER_ID: list(user_ids)}
        try:
            return self.predict(asked, USER_SIGNATURE, timeout=max(deadline - time.monotonic(), 1e-3))
        except ServingError:
            # A newer version may take other inputs.
            self._of_users = {}
            raise

    @abc.abstractmethod
    def metadata(self, *, timeout: float | None = None) -> Metadata:
        """The signatures of the version that is asked.

        Raises:
            ServingError: The model is not served.
        """

    @abc.abstractmethod
    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """The states of all versions, or of the one that is asked; the newest first.

        Raises:
            ServingError: The server has never seen the model or the version.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Gives the connections back."""

    def wait_until_available(self, timeout: float) -> None:
        """Returns once a version answers: this client's, or any.

        Raises:
            ServingError: None does within `timeout` seconds; with the last reason.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                if any(v.state == "AVAILABLE" for v in self.status(timeout=max(0.1, deadline - time.monotonic()))):
                    return
                failure = ServingError("UNAVAILABLE", f"no version of {self.model} is available")
            except ServingError as error:
                failure = error
            if time.monotonic() >= deadline:
                raise failure
            time.sleep(0.1)

    def _attempt(self, call: Callable[[float], T], timeout: float | None) -> T:
        """Calls with the seconds that are left, again while that is safe and there is time."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        attempt = 1
        while True:
            try:
                return call(max(deadline - time.monotonic(), 1e-3))
            except _NotReadyError as error:
                wait = self.retries.wait(attempt)
                if attempt >= self.retries.attempts or time.monotonic() + wait >= deadline:
                    raise ServingError(error.code, error.message) from None
                attempt += 1
                time.sleep(wait)


class GrpcClient(Client):
    """Over gRPC: the faster one, and its answers say which version they come from."""

    def __init__(self, address: str, model: str, **options: Any) -> None:
        super().__init__(address, model, **options)
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # The attempts and the time between them are ours alone.
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(
        self, inputs: Inputs, signature: str = DEFAULT_SIGNATURE, *, timeout: float | None = None
    ) -> Prediction:
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec(signature))
        for name, value in inputs.items():
            _fill(request.inputs[name], _array(name, value))
        response = self._call(self._prediction.Predict, request, timeout)
        outputs = {name: _from_proto(name, proto) for name, proto in response.outputs.items()}
        return Prediction(outputs, response.model_spec.version.value)

    def metadata(self, *, timeout: float | None = None) -> Metadata:
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        response = self._call(self._prediction.GetModelMetadata, request, timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        from google.protobuf import json_format

        return _metadata(
            response.model_spec.version.value,
            json_format.MessageToDict(signatures, preserving_proto_field_name=True)["signature_def"],
        )

    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        from tensorflow.core.protobuf import error_codes_pb2
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec())
        response = self._call(self._models.GetModelStatus, request, timeout)
        state = get_model_status_pb2.ModelVersionStatus.State
        return _newest_first(
            VersionStatus(
                v.version,
                state.Name(v.state),
                error_codes_pb2.Code.Name(v.status.error_code),
                v.status.error_message,
            )
            for v in response.model_version_status
        )

    def reload(self, config: Any, *, timeout: float | None = None) -> None:
        """Has the server take over a ModelServerConfig: this is how labels move.

        Raises:
            ServingError: The server refuses it, for instance for a label on a version that does not answer.
        """
        from tensorflow_serving.apis import model_management_pb2

        self._call(
            self._models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest(config=config), timeout
        )

    def close(self) -> None:
        self._channel.close()

    def _spec(self, signature: str = "") -> Any:
        from tensorflow_serving.apis import model_pb2

        spec = model_pb2.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        import grpc

        def call(seconds: float) -> Any:
            try:
                return method(request, timeout=seconds)
            except grpc.RpcError as error:
                kind = _NotReadyError if error.code() == grpc.StatusCode.UNAVAILABLE else ServingError
                raise kind(error.code().name, error.details()) from None

        return self._attempt(call, timeout)


class RestClient(Client):
    """Over HTTP and JSON; connections are kept alive and shared by threads."""

    def __init__(self, address: str, model: str, *, connections: int = 64, **options: Any) -> None:
        super().__init__(address, model, **options)
        import urllib3

        host, _, port = address.rpartition(":")
        self._pool = urllib3.HTTPConnectionPool(host.strip("[]"), int(port), maxsize=connections, retries=False)
        which = f"/versions/{self.version}" if self.version is not None else ""
        which = f"/labels/{quote(self.label, safe='')}" if self.label is not None else which
        self._path = f"/v1/models/{quote(model, safe='')}{which}"
        # JSON has no dtypes; the version's own metadata has.
        self._dtypes: dict[str, dict[str, np.dtype]] = {}

    def predict(
        self, inputs: Inputs, signature: str = DEFAULT_SIGNATURE, *, timeout: float | None = None
    ) -> Prediction:
        columns = {name: _to_json(_array(name, value)) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        outputs = self._call("POST", f"{self._path}:predict", timeout, body)["outputs"]
        dtypes = self._dtypes.get(signature, {})
        if not isinstance(outputs, dict):
            # The only output of a signature comes without its name.
            if len(dtypes) != 1:
                dtypes = self._output_dtypes(signature, timeout)
            outputs = {next(iter(dtypes)): outputs}
        elif outputs.keys() - dtypes.keys():
            dtypes = self._output_dtypes(signature, timeout)
        return Prediction({name: _from_json(value, dtypes[name]) for name, value in outputs.items()}, None)

    def metadata(self, *, timeout: float | None = None) -> Metadata:
        document = self._call("GET", f"{self._path}/metadata", timeout)
        version = int(document["model_spec"]["version"])
        return _metadata(version, document["metadata"]["signature_def"]["signature_def"])

    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        document = self._call("GET", self._path, timeout)
        return _newest_first(
            VersionStatus(int(v["version"]), v["state"], v["status"]["error_code"], v["status"]["error_message"])
            for v in document["model_version_status"]
        )

    def close(self) -> None:
        self._pool.close()

    def _output_dtypes(self, signature: str, timeout: float | None) -> dict[str, np.dtype]:
        outputs = self.metadata(timeout=timeout).signatures[signature].outputs
        self._dtypes[signature] = {name: spec.dtype for name, spec in outputs.items()}
        return self._dtypes[signature]

    def _call(self, method: str, path: str, timeout: float | None, body: bytes | None = None) -> Any:
        import urllib3

        def call(seconds: float) -> Any:
            try:
                response = self._pool.request(
                    method,
                    path,
                    body=body,
                    headers={"Content-Type": "application/json"},
                    timeout=urllib3.Timeout(total=seconds),
                )
            except urllib3.exceptions.NewConnectionError as error:
                # A kind of timeout to urllib3; refused it is, and at once.
                raise _NotReadyError("UNAVAILABLE", f"{self.address}: {error}") from None
            except urllib3.exceptions.TimeoutError as error:
                raise ServingError("DEADLINE_EXCEEDED", f"no answer within {seconds:.3g} s: {error}") from None
            except urllib3.exceptions.HTTPError as error:
                raise _NotReadyError("UNAVAILABLE", f"{self.address}: {error}") from None
            if response.status == 200:
                return json.loads(response.data)
            kind = _NotReadyError if response.status == 503 else ServingError
            raise kind(str(response.status), _message(response.data))

        return self._attempt(call, timeout)


class _NotReadyError(ServingError):
    """A failure after which the same request may be sent again."""


def _array(name: str, value: Any) -> np.ndarray:
    """What is sent for an input: strings as objects, Python's floats as the float32 that models take."""
    if isinstance(value, np.ndarray):
        return value.astype(object) if value.dtype.kind in "US" else value
    array = np.array(value, object)
    leaves = set(map(type, array.ravel().tolist()))
    if list in leaves or tuple in leaves:
        raise ValueError(f"input {name!r}: lists of unequal lengths; `padded` fills them up")
    # No leaves at all: only lists of strings may be empty.
    if leaves <= {str, bytes}:
        return array
    return np.array(value, np.float32 if float in leaves else None)


def missing(spec: TensorSpec, batch: int) -> np.ndarray:
    """An input [B] or [B, 0] that says nothing: "", NaN or -1."""
    if spec.shape is not None and len(spec.shape) == 2:
        return np.empty((batch, 0), spec.dtype)
    return np.full(batch, {"O": "", "f": np.nan, "i": -1}[spec.dtype.kind], spec.dtype)


def _fill(proto: Any, array: np.ndarray) -> None:
    from tensorflow.core.framework import types_pb2

    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if array.dtype.kind == "O":
        proto.dtype = types_pb2.DT_STRING
        proto.string_val.extend([v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()])
        return
    names = [name for name, dtype in _NUMPY_TYPES.items() if dtype == array.dtype.type]
    if not names:
        raise ServingError("INVALID_ARGUMENT", f"arrays of {array.dtype} cannot be sent")
    proto.dtype = types_pb2.DataType.Value(names[0])
    proto.tensor_content = np.ascontiguousarray(array).tobytes()


def _from_proto(name: str, proto: Any) -> np.ndarray:
    from tensorflow.core.framework import types_pb2

    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype == types_pb2.DT_STRING:
        return _strings(name, proto.string_val, shape)
    if proto.dtype == types_pb2.DT_FLOAT and not proto.tensor_content:
        return np.array(proto.float_val, np.float32).reshape(shape)
    import tensorflow as tf

    return tf.make_ndarray(proto)


def _strings(name: str, values: Sequence[bytes], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = list(values) if name.endswith("_bytes") else [v.decode("utf-8", "replace") for v in values]
    return array.reshape(shape)


def _to_json(array: np.ndarray) -> Any:
    if array.dtype.kind != "O":
        return array.tolist()
    values = np.empty(array.size, object)
    values[:] = [{"b64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for v in array.ravel().tolist()]
    return values.reshape(array.shape).tolist()


def _from_json(value: Any, dtype: np.dtype) -> np.ndarray:
    if dtype.kind != "O":
        return np.array(value, dtype)
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    for _ in shape[1:]:
        value = [element for part in value for element in part]
    array = np.empty(len(value) if shape else 1, object)
    array[:] = [base64.b64decode(v["b64"]) if isinstance(v, dict) else v for v in (value if shape else [value])]
    return array.reshape(shape)


def _metadata(version: int, signatures: Mapping[str, Any]) -> Metadata:
    # TF Serving lists the model's initialisation beside its signatures; it has no method.
    return Metadata(
        version,
        {
            name: Signature(_specs(definition.get("inputs", {})), _specs(definition.get("outputs", {})))
            for name, definition in signatures.items()
            if definition.get("method_name")
        },
    )


def _specs(tensors: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, info in tensors.items():
        shape = info.get("tensor_shape", {})
        sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
        specs[name] = TensorSpec(
            np.dtype(_NUMPY_TYPES[info["dtype"]]),
            None if shape.get("unknown_rank") else tuple(None if size < 0 else size for size in sizes),
        )
    return specs


def _newest_first(versions: Any) -> list[VersionStatus]:
    return sorted(versions, key=lambda v: -v.version)


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return data.decode("utf-8", "replace")[:300]
