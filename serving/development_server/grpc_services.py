"""TF Serving's gRPC services."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.development_server.errors import ServingError, invalid
from serving.development_server.metrics import Metrics
from serving.development_server.models import Models
from serving.development_server.servable import DEFAULT_SIGNATURE, Servable
from serving.development_server.tensors import from_proto, to_proto

SIGNATURE_DEF = "signature_def"
"""The one metadata field that there is."""
MAX_MESSAGE_BYTES = 64 * 2**20

_THREADS = 16


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        started = time.perf_counter()
        name, status = request.model_spec.name, "OK"
        try:
            response = self._predict(request)
            self._metrics.request_latency.add(name, "Predict", "GRPC", seconds=time.perf_counter() - started)
            return response
        except ServingError as error:
            status = error.code.name
            context.abort(error.code, error.message)
        finally:
            self._metrics.request_count.add(name, status)

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return _answer(context, lambda: metadata(self._models, request))

    def Classify(self, request: Any, context: grpc.ServicerContext) -> None:
        _unimplemented(context, "Classify")

    def Regress(self, request: Any, context: grpc.ServicerContext) -> None:
        _unimplemented(context, "Regress")

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> None:
        _unimplemented(context, "MultiInference")

    def _predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        spec = request.model_spec
        with self._models.servable(spec) as (version, servable):
            inputs = {name: from_proto(name, value) for name, value in request.inputs.items()}
            outputs = timed_predict(self._metrics, servable, spec, inputs, request.output_filter)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = version
        response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
        for name, value in outputs.items():
            to_proto(value, response.outputs[name])
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus, and HandleReloadConfigRequest, which moves labels."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return _answer(context, lambda: status(self._models, request.model_spec))

    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        def reload() -> model_management_pb2.ReloadConfigResponse:
            self._models.reconfigure(request.config)
            response = model_management_pb2.ReloadConfigResponse()
            response.status.SetInParent()
            return response

        return _answer(context, reload)


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


def bind(models: Models, metrics: Metrics, address: str) -> tuple[grpc.Server, int]:
    """A server that waits to be started, and its port.

    Raises:
        RuntimeError: The port is taken.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
        options=[
            # Without it a second server on the same port starts, and gets every other request.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(models, metrics), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), server)
    return server, server.add_insecure_port(address)


def _answer(context: grpc.ServicerContext, answer: Callable[[], Any]) -> Any:
    try:
        return answer()
    except ServingError as error:
        context.abort(error.code, error.message)


def _unimplemented(context: grpc.ServicerContext, method: str) -> None:
    context.abort(
        grpc.StatusCode.UNIMPLEMENTED, f"the development server has no {method}; the model's signatures answer Predict"
    )
