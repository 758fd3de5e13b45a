"""Status, metadata and metrics over both interfaces."""

from __future__ import annotations

import json

import grpc
import pytest
from servers import Target, http_request

from serving.client import Client, GrpcClient, RestClient, ServingError

BOTH = pytest.mark.parametrize("kind", [GrpcClient, RestClient])


@BOTH
def test_the_version_that_answers_is_available(target: Target, kind: type[Client]):
    with target.client(kind) as client:
        available = [v for v in client.status() if v.state == "AVAILABLE"]
        assert available and all((v.error_code, v.error_message) == ("OK", "") for v in available)
        assert client.metadata().version == available[0].version
    with target.client(kind, version=available[0].version) as client:
        (alone,) = client.status()
        assert alone == available[0]


def test_an_answer_over_grpc_says_its_version_and_signature(target: Target):
    with target.client(GrpcClient) as client:
        newest = client.metadata().version
        assert client.predict(target.request("serving_default")).version == newest
    with target.client(GrpcClient, version=newest) as client:
        assert client.predict(target.request("serving_default")).version == newest


@BOTH
def test_unknown_models_and_versions_are_not_found(target: Target, kind: type[Client]):
    address = target.grpc if kind is GrpcClient else target.rest
    with kind(address, "no-such-model") as client:
        with pytest.raises(ServingError, match="Could not find any versions of model no-such-model") as error:
            client.status()
        assert error.value.code in ("NOT_FOUND", "404")
        with pytest.raises(ServingError, match="Servable not found"):
            client.metadata()
    missing = f"Could not find version 987654321 of model {target.model}"
    with target.client(kind, version=987654321) as client, pytest.raises(ServingError, match=missing):
        client.status()


def test_the_status_document_has_tf_servings_shape(target: Target):
    status, content, headers = http_request(target.rest, "GET", f"/v1/models/{target.model}")
    assert status == 200 and headers["content-type"] == "application/json"
    first = json.loads(content)["model_version_status"][0]
    assert set(first) == {"version", "state", "status"} and isinstance(first["version"], str)
    assert set(first["status"]) == {"error_code", "error_message"}


def test_the_metadata_document_has_tf_servings_shape(target: Target):
    _, content, _ = http_request(target.rest, "GET", f"/v1/models/{target.model}/metadata")
    document = json.loads(content)
    assert set(document) == {"model_spec", "metadata"} and document["model_spec"]["name"] == target.model
    similar = document["metadata"]["signature_def"]["signature_def"]["similar_items"]
    assert similar["method_name"] == "tensorflow/serving/predict"
    assert similar["inputs"]["item_id"]["dtype"] == "DT_STRING"
    assert similar["inputs"]["item_id"]["tensor_shape"]["dim"][0]["size"] == "-1"


def test_other_metadata_fields_and_an_unnamed_model_are_refused(target: Target):
    from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

    with grpc.insecure_channel(target.grpc) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["nothing"])
        request.model_spec.name = target.model
        with pytest.raises(grpc.RpcError, match="Metadata field nothing is not supported"):
            service.GetModelMetadata(request, timeout=30)
        with pytest.raises(grpc.RpcError) as error:
            service.Predict(predict_pb2.PredictRequest(), timeout=30)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status, content, _ = http_request(target.rest, "GET", "/v1/models")
    assert (status, json.loads(content)["error"]) == (400, "Missing model name in request.")


def test_metrics_count_what_was_asked(target: Target):
    def count(status: str) -> int:
        code, page, headers = http_request(target.rest, "GET", "/monitoring/prometheus/metrics")
        if code == 404:
            pytest.skip("this TF Serving was started without --monitoring_config_file")
        assert code == 200 and headers["content-type"].startswith("text/plain")
        assert b"# TYPE :tensorflow:serving:request_latency histogram" in page
        line = f':tensorflow:serving:request_count{{model_name="{target.model}",status="{status}"}} '
        return next((int(t.removeprefix(line)) for t in page.decode().splitlines() if t.startswith(line)), 0)

    with target.client(GrpcClient) as over_grpc, target.client(RestClient) as over_rest:
        over_rest.predict(target.request("serving_default"))
        before, refused_before = count("OK"), count("INVALID_ARGUMENT")
        over_grpc.predict(target.request("serving_default"))
        over_rest.predict(target.request("similar_items"), "similar_items")
        with pytest.raises(ServingError):
            over_grpc.predict({})
    assert count("OK") >= before + 2
    assert count("INVALID_ARGUMENT") >= refused_before + 1
