"""Answers: every signature over both interfaces, their shapes and dtypes, and what the servable promises about them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from servers import RECOMMEND, RECOMMEND_USER, SIGNATURES, Target, http_request

from serving.client import Client, GrpcClient, RestClient

BOTH = pytest.mark.parametrize("kind", [GrpcClient, RestClient])


def items(answer: np.ndarray, row: int = 0) -> list[str]:
    return [item for item in answer[row] if item]


def rows(target: Target, signature: str, inputs: dict[str, np.ndarray], which: str = "") -> tuple[int, dict]:
    """The same request in REST's row format, over plain HTTP."""
    columns = {name: value.tolist() for name, value in inputs.items()}
    instances = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    body = json.dumps({"signature_name": signature, "instances": instances}).encode()
    status, content, headers = http_request(target.rest, "POST", f"/v1/models/{target.model}{which}:predict", body)
    assert headers["content-type"] == "application/json"
    return status, json.loads(content)


def offered(target: Target, signature: str) -> None:
    """A model that was made without known users, on a server that somebody else runs, does not have all of them."""
    if signature == RECOMMEND_USER and target.base_path is None and signature not in target.signatures:
        pytest.skip("this model knows no users: serving.known_users is 0")


def test_the_metadata_have_every_signature(target: Target):
    assert set(SIGNATURES) <= set(target.signatures)
    with target.client(RestClient) as client:
        assert client.metadata().signatures == target.signatures


@BOTH
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("signature", [*(s for s in SIGNATURES if s != "evaluate"), RECOMMEND_USER])
def test_every_signature_answers_with_the_shapes_and_dtypes_of_its_metadata(
    target: Target, kind: type[Client], signature: str, batch: int
):
    offered(target, signature)
    with target.client(kind) as client:
        answer = client.predict(target.request(signature, batch), signature)
    outputs = target.signatures[signature].outputs
    assert set(answer) == set(outputs)
    for name, spec in outputs.items():
        assert answer[name].dtype == spec.dtype, name
        assert answer[name].shape[0] == batch, name
        assert spec.shape is not None and len(spec.shape) == answer[name].ndim, name
        for declared, given in zip(spec.shape[1:], answer[name].shape[1:], strict=True):
            assert declared in (None, given), name


def test_evaluate_takes_serialized_examples(target: Target):
    with target.client(GrpcClient) as client:
        over_grpc = client.predict({"examples": [b"", b""]}, "evaluate")
    with target.client(RestClient) as client:
        over_rest = client.predict({"examples": [b"", b""]}, "evaluate")
    assert over_grpc["classes"].shape[0] == 2
    np.testing.assert_array_equal(over_grpc["classes"], over_rest["classes"])
    np.testing.assert_array_equal(over_grpc["scores"], over_rest["scores"])


@pytest.mark.parametrize("signature", [*RECOMMEND, RECOMMEND_USER])
def test_both_interfaces_and_both_formats_give_the_same_answer(target: Target, signature: str):
    offered(target, signature)
    request = target.request(signature, 2, history=target.items[:2])
    with target.client(GrpcClient) as grpc_client, target.client(RestClient) as rest_client:
        over_grpc, over_rest = grpc_client.predict(request, signature), rest_client.predict(request, signature)
    status, document = rows(target, signature, request)
    assert status == 200
    for name, value in over_grpc.items():
        np.testing.assert_array_equal(value, over_rest[name])
        from_rows = np.array([row[name] for row in document["predictions"]], value.dtype)
        np.testing.assert_array_equal(value, from_rows)


def test_rows_of_a_single_input_and_output_go_without_names(target: Target):
    body = json.dumps({"signature_name": "similar_items", "instances": list(target.items[:2])}).encode()
    status, content, _ = http_request(target.rest, "POST", f"/v1/models/{target.model}:predict", body)
    assert status == 200 and len(json.loads(content)["predictions"]) == 2
    status, document = rows(target, "query_embedding", target.request("query_embedding", 2))
    assert status == 200
    with target.client(GrpcClient) as client:
        expected = client.predict(target.request("query_embedding", 2), "query_embedding")["embedding"]
    np.testing.assert_array_equal(np.array(document["predictions"], np.float32), expected)


def test_base64_is_decoded(target: Target):
    import base64

    encoded = [{"b64": base64.b64encode(item.encode()).decode()} for item in target.items[:2]]
    answers = []
    for value in (encoded, list(target.items[:2])):
        body = json.dumps({"signature_name": "similar_items", "inputs": value}).encode()
        status, content, _ = http_request(target.rest, "POST", f"/v1/models/{target.model}:predict", body)
        assert status == 200
        answers.append(json.loads(content))
    assert answers[0] == answers[1]


@BOTH
def test_an_unknown_user_id_alone_is_answered_as_nobody(target: Target, kind: type[Client]):
    offered(target, RECOMMEND_USER)
    nothing = {
        name: np.full(value.shape, {"O": "", "f": np.nan, "i": -1}[value.dtype.kind], value.dtype)
        for name, value in target.request("serving_default", 2).items()
    }
    with target.client(kind) as client:
        expected = client.predict(nothing)
        answer = client.recommend_user(["no such user", ""])
        first = answer["item_id"][0, 0]
        others = client.recommend_user(["no such user"], {"exclude": [[first]]})
    np.testing.assert_array_equal(answer["item_id"], expected["item_id"])
    np.testing.assert_allclose(answer["score"], expected["score"], rtol=1e-4)
    assert first not in others["item_id"][0] and items(others["item_id"])


@BOTH
def test_scores_fall_and_no_item_comes_twice(target: Target, kind: type[Client]):
    with target.client(kind) as client:
        answer = client.predict(target.request("serving_default", 2))
    for row in range(2):
        found = items(answer["item_id"], row)
        assert found and len(set(found)) == len(found)
        assert (np.diff(answer["score"][row][: len(found)]) <= 1e-5).all()


@BOTH
def test_a_batch_answers_as_its_rows_alone(target: Target, kind: type[Client]):
    request = target.request("serving_default", 3)
    lists = target.lists("serving_default")
    for name in lists:
        request[name] = np.array([[target.items[0], ""], [target.items[1], target.items[2]], ["", ""]], object)
    with target.client(kind) as client:
        together = client.predict(request)
        for row in range(3):
            alone = client.predict({name: value[row : row + 1] for name, value in request.items()})
            np.testing.assert_array_equal(together["item_id"][row], alone["item_id"][0])
            np.testing.assert_allclose(together["score"][row], alone["score"][0], rtol=1e-4)


@BOTH
def test_an_empty_history_of_any_width_is_no_history(target: Target, kind: type[Client]):
    assert target.lists("serving_default"), "the model has a history"
    with target.client(kind) as client:
        empty = client.predict(target.request("serving_default"))
        blank = client.predict(target.request("serving_default", history=("", "", "")))
    np.testing.assert_array_equal(empty["item_id"], blank["item_id"])


@BOTH
def test_ids_of_10_kb_and_other_unknown_ids_are_unknown_people(target: Target, kind: type[Client]):
    with target.client(kind) as client:
        expected = client.predict(target.request("serving_default"))
        for stranger in ("x" * 10_240, "", "Ж\u0000\n🙂"):
            request = target.request("serving_default")
            for name, value in request.items():
                if value.dtype == np.object_:
                    request[name] = np.full(value.shape or (1,), stranger, object)
            answer = client.predict(request)
            assert len(items(answer["item_id"])) == len(items(expected["item_id"]))


@BOTH
def test_an_unknown_item_has_no_neighbours_and_a_known_one_never_itself(target: Target, kind: type[Client]):
    known = target.items[0]
    with target.client(kind) as client:
        answer = client.predict({"item_id": [known, "no such item", "x" * 10_240]}, "similar_items")
    assert items(answer["item_id"], 0) and known not in answer["item_id"][0]
    assert not items(answer["item_id"], 1) and not items(answer["item_id"], 2)
    assert np.isneginf(answer["score"][1:]).all()


@BOTH
def test_what_is_explained_is_the_score_that_is_served(target: Target, kind: type[Client]):
    history = target.items[:3]
    request = target.request("serving_default", 2, history=history)
    with target.client(kind) as client:
        served = client.predict(request)
        asked = np.append(served["item_id"][:, :4], [["no such item"], [""]], axis=1)
        answer = client.predict({**request, "explain": asked}, "explain")
        nothing = client.predict({**request, "explain": np.empty((2, 0), object)}, "explain")
    np.testing.assert_array_equal(answer["item_id"][:, :4], served["item_id"][:, :4])
    np.testing.assert_allclose(answer["score"][:, :4], served["score"][:, :4], rtol=1e-4, atol=1e-4)
    assert not items(answer["item_id"][:, 4]) and np.isneginf(answer["score"][:, 4]).all()
    exact = answer["part_exact"][:, np.newaxis]
    summed = np.sum(answer["part_score"] * exact, axis=2)
    np.testing.assert_allclose(summed[:, :4], answer["score"][:, :4], rtol=1e-3, atol=1e-3)
    assert not answer["part_score"][:, 4].any()
    reasons = set(answer["reason_item_id"][:, :4].ravel()) - {""}
    assert reasons and reasons <= set(history)
    assert not set(answer["reason_item_id"][:, 4].ravel()) - {""}
    assert nothing["part_score"].shape[:2] == nothing["item_id"].shape == (2, 0)


@BOTH
def test_excluded_items_stay_out_even_when_the_list_is_longer_than_the_catalogue(target: Target, kind: type[Client]):
    request = target.request("recommend_excluding")
    with target.client(kind) as client:
        first = items(
            client.predict({**request, "exclude": np.empty((1, 0), object)}, "recommend_excluding")["item_id"]
        )
        some = np.array([first[:3]], object)
        rest = items(client.predict({**request, "exclude": some}, "recommend_excluding")["item_id"])
        assert rest and not set(first[:3]) & set(rest)
        long = np.array([[*first, *(f"no such item {n}" for n in range(20_000)), *first]], object)
        rest = items(client.predict({**request, "exclude": long}, "recommend_excluding")["item_id"])
        assert not set(first) & set(rest)


@BOTH
def test_when_everything_is_excluded_the_answer_is_padding(target: Target, kind: type[Client]):
    seen: list[str] = []
    request = target.request("recommend_excluding")
    with target.client(kind) as client:
        for _ in range(1000):
            answer = client.predict(
                {**request, "exclude": np.array([seen], object).reshape(1, -1)}, "recommend_excluding"
            )
            new = items(answer["item_id"])
            if not new or len(seen) > 5000:
                break
            seen += new
    if len(seen) <= 5000:
        assert set(answer["item_id"][0]) == {""} and np.isneginf(answer["score"]).all()
    assert len(set(seen)) == len(seen)


@BOTH
def test_a_missing_number_is_nan(target: Target, kind: type[Client]):
    request = target.request("serving_default")
    numbers = [name for name, value in request.items() if value.dtype == np.float32]
    with target.client(kind) as client:
        answer = client.predict({**request, **{name: np.array([np.nan], np.float32) for name in numbers}})
    found = len(items(answer["item_id"]))
    assert found and np.isfinite(answer["score"][0][:found]).all()


def test_only_the_outputs_that_are_asked_for_come_back(target: Target):
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest(output_filter=["item_id"])
    request.model_spec.name = target.model
    request.model_spec.signature_name = "similar_items"
    request.inputs["item_id"].dtype = 7
    request.inputs["item_id"].tensor_shape.dim.add().size = 1
    request.inputs["item_id"].string_val.append(target.items[0].encode())
    with grpc.insecure_channel(target.grpc) as channel:
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        assert set(predict(request, timeout=30).outputs) == {"item_id"}
        request.output_filter.append("nothing")
        with pytest.raises(grpc.RpcError) as refused:
            predict(request, timeout=30)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "output tensor alias not found in signature: nothing" in refused.value.details()
