"""What bad input gets: TF Serving's status code, its error shape, and a server that goes on answering."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from servers import Target, http_request

from serving.client import GrpcClient, RestClient, ServingError


@pytest.fixture(autouse=True)
def it_goes_on_answering(target: Target) -> Iterator[None]:
    yield
    for kind in (GrpcClient, RestClient):
        with target.client(kind) as client:
            assert client.predict(target.request("serving_default"))["item_id"][0][0]


def post(target: Target, body: bytes, path: str = "") -> tuple[int, str]:
    """Status and the text under `error`, the only key that a refusal has."""
    path = path or f"/v1/models/{target.model}:predict"
    status, content, headers = http_request(target.rest, "POST", path, body)
    assert headers["content-type"] == "application/json"
    document = json.loads(content)
    assert list(document) == ["error"], content[:200]
    return status, document["error"]


def refused(target: Target, inputs: dict[str, np.ndarray], signature: str = "serving_default", **which) -> ServingError:
    with target.client(GrpcClient, **which) as client, pytest.raises(ServingError) as error:
        client.predict(inputs, signature)
    return error.value


def a_string(target: Target, rank: int = 1) -> str:
    inputs = target.signatures["serving_default"].inputs
    return next(n for n, s in inputs.items() if s.dtype == np.object_ and len(s.shape or ()) == rank)


def test_a_wrong_dtype(target: Target):
    name = a_string(target)
    request = {**target.request("serving_default"), name: np.array([1.5], np.float32)}
    assert refused(target, request).code == "INVALID_ARGUMENT"
    columns = {n: v.tolist() for n, v in request.items()}
    status, error = post(target, json.dumps({"inputs": columns}).encode())
    assert status == 400 and "is not of expected type: string" in error


def test_a_wrong_rank(target: Target):
    name = a_string(target, rank=2)
    request = {**target.request("serving_default"), name: np.array(["a"], object)}
    assert refused(target, request).code == "INVALID_ARGUMENT"
    columns = {n: v.tolist() for n, v in request.items()}
    assert post(target, json.dumps({"inputs": columns}).encode())[0] == 400


def test_uneven_batches(target: Target):
    name = a_string(target)
    request = {**target.request("serving_default", 2), name: np.array(["a", "b", "c"], object)}
    assert refused(target, request).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_missing_or_an_unknown_input_is_named(target: Target, change: str):
    request = target.request("serving_default")
    name = a_string(target)
    if change == "missing":
        del request[name]
    else:
        request[name := "no_such_input"] = np.array(["a"], object)
    error = refused(target, request)
    assert error.code == "INVALID_ARGUMENT" and name in error.message
    row = {n: v.tolist()[0] for n, v in request.items()}
    status, message = post(target, json.dumps({"instances": [row]}).encode())
    assert status == 400 and name in message
    if change == "missing":
        columns = {n: v.tolist() for n, v in request.items()}
        status, message = post(target, json.dumps({"inputs": columns}).encode())
        assert (status, message) == (400, f"Missing named input: {name} in 'inputs' object.")


def test_an_unknown_signature(target: Target):
    error = refused(target, target.request("serving_default"), "no_such_signature")
    assert error.code == "FAILED_PRECONDITION" and '"no_such_signature" not found' in error.message
    status, message = post(target, b'{"signature_name": "no_such_signature", "inputs": {}}')
    assert status == 400 and '"no_such_signature" not found' in message


def test_an_unknown_model_version_or_label(target: Target):
    request = target.request("serving_default")
    body = json.dumps({"inputs": {n: v.tolist() for n, v in request.items()}}).encode()
    error = refused(target, request, version=987654321987654321)
    assert error.code == "NOT_FOUND" and "Servable not found for request: Specific(" in error.message
    status, message = post(target, body, f"/v1/models/{target.model}/versions/987654321987654321:predict")
    assert status == 404 and "Servable not found for request: Specific(" in message
    error = refused(target, request, label="no-such-label")
    assert (error.code, error.message) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: no-such-label",
    )
    status, message = post(target, body, f"/v1/models/{target.model}/labels/no-such-label:predict")
    assert (status, message) == (400, "Unrecognized servable version label: no-such-label")
    status, message = post(target, body, "/v1/models/no-such-model:predict")
    assert (status, message) == (404, "Servable not found for request: Latest(no-such-model)")
    with GrpcClient(target.grpc, "no-such-model") as client, pytest.raises(ServingError, match="NOT_FOUND"):
        client.predict(request)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"{", "JSON Parse error"),
        (b'{"inputs": ', "JSON Parse error"),
        (b"[1, 2]", "Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances": 1}', "Expecting 'instances' to be an list/array"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b'{"instances": [1], "inputs": {}}', "expecting only one of 'inputs' or 'instances' keys"),
        (b'{"signature_name": 5, "inputs": {}}', "'signature_name' key must be a string value"),
        (b'{"instances": [1]}', "instances is a plain list, but expecting list of objects"),
        (b'{"inputs": [1]}', "inputs is a plain value/list, but expecting an object"),
        (b'{"signature_name": "similar_items", "inputs": ["a", ["b"]]}', "unexpected level"),
        (b'{"signature_name": "similar_items", "inputs": [["a"], "b"]}', "found at incorrect level"),
        (b'{"signature_name": "similar_items", "inputs": [["a", "b"], ["c"]]}', "unexpected size"),
        (b'{"signature_name": "similar_items", "inputs": [null]}', "is not of expected type: string"),
        (b'{"signature_name": "similar_items", "inputs": {"b64": "?"}}', "Unable to base64 decode"),
        (b'{"signature_name": "similar_items", "instances": ["a", {"item_id": "b"}]}', "but got object at item 1"),
    ],
)
def test_a_malformed_body_says_what_is_wrong(target: Target, body: bytes, says: str):
    status, message = post(target, body)
    assert status == 400 and says in message


def test_uneven_instances_are_refused(target: Target):
    name = a_string(target, rank=2)
    request = target.request("serving_default")
    rows = [{n: v.tolist()[0] for n, v in request.items()} for _ in range(2)]
    rows[0][name], rows[1][name] = ["a"], ["a", "b"]
    status, message = post(target, json.dumps({"instances": rows}).encode())
    assert status == 400 and f"Failed to process element: 1 key: {name} of 'instances' list" in message


def test_a_body_of_10_mb(target: Target):
    ten = 10 * 2**20
    assert post(target, b'{"inputs": "' + b"x" * ten)[0] == 400
    assert post(target, b"x" * ten)[0] == 400
    status, message = post(target, b'{"inputs": [' + b"1," * (ten // 2) + b"1]}")
    assert status == 400 and len(message) < 10_000
    request = {**target.request("serving_default"), "no_such_input": np.array(["x" * ten], object)}
    assert refused(target, request).code == "INVALID_ARGUMENT"


def test_nan_where_a_string_belongs(target: Target):
    request = {n: v.tolist() for n, v in target.request("serving_default").items()}
    request[a_string(target)] = [float("nan")]
    status, message = post(target, json.dumps({"inputs": request}).encode())
    assert status == 400 and "is not of expected type: string" in message


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models/{model}:predict"), ("POST", "/v1/models/{model}"), ("GET", "/v1/models/{model}/nothing"),
     ("POST", "/v1/models/{model}:nothing")],
)  # fmt: skip
def test_a_malformed_path(target: Target, method: str, path: str):
    path = path.format(model=target.model)
    status, content, _ = http_request(target.rest, method, path, b"{}" if method == "POST" else None)
    assert status == 400
    assert json.loads(content) == {"error": f"Malformed request: {method} {path}"}


def test_a_tensor_whose_values_do_not_fill_its_shape(target: Target):
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = target.model
    request.model_spec.signature_name = "candidate_embedding"
    for name, spec in target.signatures["candidate_embedding"].inputs.items():
        proto = request.inputs[name]
        proto.dtype = 7 if spec.dtype == np.object_ else 1
        proto.tensor_shape.dim.add().size = 3
        proto.tensor_content = b"12345"
    with grpc.insecure_channel(target.grpc) as channel, pytest.raises(grpc.RpcError) as error:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
