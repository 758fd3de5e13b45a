"""TF Serving's gRPC services."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import message
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
)

from serving.development_server.admission import Admission
from serving.development_server.errors import ServingError, as_serving_error, invalid
from serving.development_server.metrics import Metrics
from serving.development_server.models import Models
from serving.development_server.servable import DEFAULT_SIGNATURE, Servable
from serving.development_server.tensors import ProtoInputs, to_proto

SIGNATURE_DEF = "signature_def"
"""The one metadata field that there is."""

_THREADS = 16
# Requests other than Predict are names and configurations.
_MAX_OTHER_BYTES = 2**20
_UNIMPLEMENTED = ("Classify", "Regress", "MultiInference")

M = TypeVar("M", bound=message.Message)


class PredictionService:
    """Predict and GetModelMetadata.

    Args:
        models: What is asked.
        metrics: What is counted.
        admission: What a request passes first.
    """

    def __init__(self, models: Models, metrics: Metrics, admission: Admission) -> None:
        self._models = models
        self._metrics = metrics
        self._admission = admission

    def methods(self) -> dict[str, grpc.RpcMethodHandler]:
        handlers = {name: _method(functools.partial(_unimplemented, name)) for name in _UNIMPLEMENTED}
        metadata_request = get_model_metadata_pb2.GetModelMetadataRequest
        return {
            **handlers,
            "Predict": _method(self._predict),
            "GetModelMetadata": _method(
                lambda body: metadata(self._models, _decoded(metadata_request, body, _MAX_OTHER_BYTES))
            ),
        }

    def _predict(self, body: bytes) -> predict_pb2.PredictResponse:
        started = time.perf_counter()
        name, status = "", "OK"
        try:
            with self._admission.admitted(len(body)):
                self._admission.check_fields(body)
                request = _decoded(predict_pb2.PredictRequest, body, self._admission.limits.max_message_bytes)
                name = request.model_spec.name
                response = self._answer(request)
            self._metrics.request_latency.add(name, "Predict", "GRPC", seconds=time.perf_counter() - started)
            return response
        except Exception as error:
            failure = as_serving_error(error)
            status = failure.code.name
            raise failure from None
        finally:
            self._metrics.request_count.add(self._models.label(name), status)

    def _answer(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        spec = request.model_spec
        with self._models.servable(spec) as (version, servable):
            inputs = servable.read(spec.signature_name, ProtoInputs(request.inputs), self._admission.limits)
            outputs = timed_predict(self._metrics, servable, spec, inputs, request.output_filter)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = version
        response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
        for name, value in outputs.items():
            to_proto(value, response.outputs[name])
        return response


class ModelService:
    """GetModelStatus, and HandleReloadConfigRequest, which moves labels.

    Args:
        models: What is asked and configured.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def methods(self) -> dict[str, grpc.RpcMethodHandler]:
        return {"GetModelStatus": _method(self._status), "HandleReloadConfigRequest": _method(self._reload)}

    def _status(self, body: bytes) -> get_model_status_pb2.GetModelStatusResponse:
        request = _decoded(get_model_status_pb2.GetModelStatusRequest, body, _MAX_OTHER_BYTES)
        return status(self._models, request.model_spec)

    def _reload(self, body: bytes) -> model_management_pb2.ReloadConfigResponse:
        request = _decoded(model_management_pb2.ReloadConfigRequest, body, _MAX_OTHER_BYTES)
        self._models.reconfigure(request.config)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response


def timed_predict(
    metrics: Metrics, servable: Servable, spec: model_pb2.ModelSpec, inputs: Any, outputs: Any = ()
) -> dict[str, Any]:
    started = time.perf_counter()
    answer = servable.predict(spec.signature_name, inputs, outputs)
    metrics.runtime_latency.add(spec.name, "Predict", "TF1", seconds=time.perf_counter() - started)
    return answer


def metadata(
    models: Models, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The signatures of a version.

    Raises:
        ServingError: Unknown model, version, label or field.
    """
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field {field} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    signatures = get_model_metadata_pb2.SignatureDefMap()
    with models.servable(request.model_spec) as (version, servable):
        for name, definition in servable.definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    response.metadata[SIGNATURE_DEF].Pack(signatures)
    return response


def status(models: Models, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
    """The states of a model's versions.

    Raises:
        ServingError: Unknown model or version.
    """
    return get_model_status_pb2.GetModelStatusResponse(model_version_status=models.status(spec))


def bind(models: Models, metrics: Metrics, admission: Admission, address: str) -> tuple[grpc.Server, int]:
    """A server that waits to be started, and its port.

    Raises:
        RuntimeError: The port is taken.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
        options=[
            # Without it a second server on the same port starts, and gets every other request.
            ("grpc.so_reuseport", 0),
            # Also of what a compressed message becomes.
            ("grpc.max_receive_message_length", admission.limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
        ],
    )
    services: dict[str, PredictionService | ModelService] = {
        "tensorflow.serving.PredictionService": PredictionService(models, metrics, admission),
        "tensorflow.serving.ModelService": ModelService(models),
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, service.methods()) for name, service in services.items()]
    )
    return server, server.add_insecure_port(address)


def _method(answer: Callable[[bytes], message.Message]) -> grpc.RpcMethodHandler:
    """A method that takes the request's bytes: what gRPC's own decoding cannot read, it logs with a traceback each."""

    def call(body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return answer(body).SerializeToString()
        except Exception as error:
            failure = as_serving_error(error)
        context.abort(failure.code, failure.message)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(call)


def _decoded(kind: type[M], body: bytes, most: int) -> M:
    """A request.

    Raises:
        ServingError: INTERNAL, as of any gRPC server, for what is none; RESOURCE_EXHAUSTED for what is longer than
            `most` bytes.
    """
    if len(body) > most:
        raise ServingError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"Received message larger than max ({len(body)} vs. {most})"
        )
    try:
        return kind.FromString(body)
    except message.DecodeError:
        raise ServingError(grpc.StatusCode.INTERNAL, f"the request is no {kind.DESCRIPTOR.name}") from None


def _unimplemented(method: str, body: bytes) -> NoReturn:
    raise ServingError(
        grpc.StatusCode.UNIMPLEMENTED, f"the development server has no {method}; the model's signatures answer Predict"
    )
