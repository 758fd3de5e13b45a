"""Requests that nobody honest sends, over both interfaces, to a server process whose memory is watched.

One file, because all of them go to the same process, one after the other.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known_towers import World, save_servable
from servers import SIGNATURES, Running, Target, development_server, http_request, look_at
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import model_management_pb2, predict_pb2

from modules.settings import Serving
from serving.client import GrpcClient, _fill

pytestmark = pytest.mark.slow

_MODEL = "known"
_MEGABYTE = 2**20
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
# What a refusal may cost above what the server has: a message's bytes twice, and what little is decoded.
_MOST_MEMORY = 160 * _MEGABYTE
# Milliseconds, on a machine where others work as well.
_MOST_SECONDS = 0.5
# Requests of each grammar; `make fuzz-serving` sends more, and shows what is in memory meanwhile.
_EXAMPLES = int(os.environ.get("HOSTILE_REQUESTS", 400))
# Times what the server has at rest, after all of them and at any moment between.
_MOST_GROWTH = 1.5


@dataclass(frozen=True)
class Attacked:
    """A server and what it answered before anybody attacked it."""

    running: Running
    target: Target
    channel: grpc.Channel
    good: dict[str, predict_pb2.PredictRequest]
    expected: bytes

    def call(self, body: bytes, method: str = _PREDICT) -> tuple[grpc.StatusCode, str | bytes, float]:
        """Code, details or answer, and seconds; the bytes go out as they are."""
        started = time.perf_counter()
        try:
            answer = self.channel.unary_unary(method)(body, timeout=60)
            return grpc.StatusCode.OK, answer, time.perf_counter() - started
        except grpc.RpcError as error:
            return error.code(), error.details(), time.perf_counter() - started

    def post(self, body: bytes) -> tuple[int, str, float]:
        started = time.perf_counter()
        status, content, headers = http_request(self.target.rest, "POST", f"/v1/models/{_MODEL}:predict", body)
        assert headers["content-type"] == "application/json"
        document = json.loads(content)
        assert list(document) == ["error"]
        return status, document["error"], time.perf_counter() - started

    def answers_as_before(self) -> bool:
        code, answer, _ = self.call(self.good["serving_default"].SerializeToString())
        return code == grpc.StatusCode.OK and answer == self.expected

    @contextmanager
    def memory_below(self, most: int) -> Iterator[None]:
        """The process takes no more than so many bytes above what it has, not even for a moment."""
        process = Path(f"/proc/{self.running.process}")
        # Sets the peak to what is in memory now.
        (process / "clear_refs").write_text("5")
        before = self._status("VmHWM")
        yield
        assert self._status("VmHWM") - before < most

    @contextmanager
    def growth_below(self, most: float, interface: str) -> Iterator[Callable[[], None]]:
        """The process never has more than so many times what it has now. What is given counts a request.

        Prints a curve: requests so far, and megabytes.
        """
        process = Path(f"/proc/{self.running.process}")
        (process / "clear_refs").write_text("5")
        rest, sent = self._status("VmRSS"), 0

        def count() -> None:
            nonlocal sent
            sent += 1
            if sent % max(1, _EXAMPLES // 10) == 0:
                print(f"{interface}: {sent:,} requests, {self._status('VmRSS') / _MEGABYTE:.0f} MB")

        print(f"\n{interface}: at rest {rest / _MEGABYTE:.0f} MB")
        yield count
        peak = self._status("VmHWM")
        print(f"{interface}: peak {peak / _MEGABYTE:.0f} MB, {peak / rest:.2f} times what it was at rest")
        assert peak < most * rest

    def _status(self, key: str) -> int:
        text = Path(f"/proc/{self.running.process}/status").read_text()
        (kilobytes,) = re.findall(rf"{key}:\s+(\d+) kB", text)
        return int(kilobytes) * 1024


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    world = World(300)
    serving = Serving(k=20, return_columns=("title",), filter_columns=("genres",))
    save_servable(world, world.save_embedding(folder / "embedding"), folder / _MODEL / "1", serving)
    with development_server("--model-name", _MODEL, "--model-base-path", str(folder / _MODEL)) as running:
        target = look_at(running.grpc, running.rest, _MODEL, None, "")
        good = {name: request(target, name) for name in SIGNATURES}
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(running.grpc, options=options) as channel:
            bare = Attacked(running, target, channel, good, b"")
            for each in good.values():
                assert bare.call(each.SerializeToString())[0] == grpc.StatusCode.OK
            code, answer, _ = bare.call(good["serving_default"].SerializeToString())
            assert code == grpc.StatusCode.OK and isinstance(answer, bytes)
            yield Attacked(running, target, channel, good, answer)


@pytest.fixture(autouse=True)
def it_goes_on_answering(attacked: Attacked) -> Iterator[None]:
    yield
    assert attacked.answers_as_before()
    log = attacked.running.log.read_text()
    assert "Traceback" not in log and len(log) < 100_000, log[-5000:]


def request(target: Target, signature: str) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = _MODEL
    message.model_spec.signature_name = signature
    for name, value in target.request(signature, history=target.items[:2]).items():
        _fill(message.inputs[name], value)
    return message


def bomb(like: tensor_pb2.TensorProto, *shape: int) -> tensor_pb2.TensorProto:
    """A tensor of this shape whose one value stands for all."""
    tensor = tensor_pb2.TensorProto(dtype=like.dtype)
    for size in shape:
        tensor.tensor_shape.dim.add().size = size
    if like.dtype == types_pb2.DT_STRING:
        tensor.string_val.append(b"")
    else:
        tensor.float_val.append(0.5)
    return tensor


def test_a_value_that_stands_for_millions_is_refused_before_it_is_copied(attacked: Attacked):
    shapes = [(2**24,), (1, 2**24), (2**24, 1), (2**12, 2**12), (2**31, 2**31), (0, 2**62), (1, *[2**62] * 300)]
    with attacked.memory_below(_MOST_MEMORY):
        for good in attacked.good.values():
            for shape in shapes:
                # One input alone, and all of them together, so that their batches are equal.
                for changed in ([name] for name in good.inputs):
                    check_bomb(attacked, good, changed, shape)
                check_bomb(attacked, good, list(good.inputs), shape)


def check_bomb(
    attacked: Attacked, good: predict_pb2.PredictRequest, changed: list[str], shape: tuple[int, ...]
) -> None:
    message = predict_pb2.PredictRequest()
    message.CopyFrom(good)
    for name in changed:
        message.inputs[name].CopyFrom(bomb(good.inputs[name], *shape))
    body = message.SerializeToString()
    assert len(body) < 20_000
    code, details, seconds = attacked.call(body)
    assert code == grpc.StatusCode.INVALID_ARGUMENT, (good.model_spec.signature_name, changed, shape, details)
    assert seconds < _MOST_SECONDS


@pytest.mark.parametrize("dtype", [types_pb2.DT_FLOAT, types_pb2.DT_INT64, types_pb2.DT_BOOL, types_pb2.DT_STRING])
def test_an_input_that_nobody_asked_for_is_not_copied_either(attacked: Attacked, dtype: int):
    message = predict_pb2.PredictRequest()
    message.CopyFrom(attacked.good["serving_default"])
    message.inputs["more"].CopyFrom(bomb(tensor_pb2.TensorProto(dtype=dtype), 2**24))
    with attacked.memory_below(_MOST_MEMORY):
        assert attacked.call(message.SerializeToString())[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_different_batch_sizes_are_named(attacked: Attacked):
    message = predict_pb2.PredictRequest()
    message.CopyFrom(attacked.good["serving_default"])
    message.inputs["history"].CopyFrom(bomb(message.inputs["history"], 3, 2))
    code, details, _ = attacked.call(message.SerializeToString())
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "equal batch sizes: history 3, user_id 1" in str(details)
    body = json.dumps({"inputs": {"user_id": ["a"], "history": [["a"], ["b"], ["c"]]}}).encode()
    status, error, _ = attacked.post(body)
    assert status == 400 and "equal batch sizes: history 3, user_id 1" in error


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field on the wire."""

    def varint(value: int) -> bytes:
        more, value = value >> 7, value & 127
        return bytes([value | 128]) + varint(more) if more else bytes([value])

    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor_on_the_wire(content: bytes) -> bytes:
    return field(1, field(1, _MODEL.encode())) + field(2, field(1, b"history") + field(2, content))


FIFTEEN = 15 * _MEGABYTE
AMPLIFIED: dict[str, Callable[[], bytes]] = {
    "strings": lambda: tensor_on_the_wire(field(8, b"") * (FIFTEEN // 2)),
    "dimensions": lambda: tensor_on_the_wire(field(2, field(2, b"") * (FIFTEEN // 2))),
    "resources": lambda: tensor_on_the_wire(field(14, b"") * (FIFTEEN // 2)),
    "variants": lambda: tensor_on_the_wire(field(15, b"") * (FIFTEEN // 2)),
    "inputs": lambda: field(2, b"") * (FIFTEEN // 2),
    "outputs": lambda: field(3, b"") * (FIFTEEN // 2),
    "a tensor again and again": lambda: field(2, field(2, b"") * (FIFTEEN // 2)),
}


@pytest.mark.parametrize("kind", AMPLIFIED)
def test_a_message_of_two_byte_fields_is_not_decoded(attacked: Attacked, kind: str):
    body = AMPLIFIED[kind]()
    with attacked.memory_below(_MOST_MEMORY):
        code, _, seconds = attacked.call(body)
    assert code == grpc.StatusCode.INVALID_ARGUMENT and seconds < 3


@pytest.mark.parametrize("method", ["GetModelMetadata", "Classify", "MultiInference"])
def test_other_methods_take_small_messages_only(attacked: Attacked, method: str):
    with attacked.memory_below(_MOST_MEMORY):
        code, _, _ = attacked.call(field(2, b"") * (FIFTEEN // 2), f"/tensorflow.serving.PredictionService/{method}")
    assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model_config_list {}",
        "custom_model_config {}",
        'model_config_list { config { name: "known" } }',
        'model_config_list { config { name: "known" base_path: "here" model_platform: "tensorflow" } }',
        'model_config_list { config { name: "a" } config { name: "a" } }',
    ],
)
def test_a_configuration_that_is_none_changes_nothing(attacked: Attacked, text: str):
    request = text_format.Parse(f"config {{ {text} }}", model_management_pb2.ReloadConfigRequest())
    method = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
    assert attacked.call(request.SerializeToString(), method)[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert attacked.call(field(1, field(1, field(1, b"") * 2**20)), method)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_too_long_a_message_is_refused_by_its_length(attacked: Attacked):
    with attacked.memory_below(_MOST_MEMORY):
        assert attacked.call(bytes(100 * _MEGABYTE))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        status, error, _ = attacked.post(b" " * (17 * _MEGABYTE))
    assert status == 413 and "--max-message-bytes" in error
    call = attacked.channel.unary_unary(_PREDICT)
    with attacked.memory_below(_MOST_MEMORY), pytest.raises(grpc.RpcError) as refused:
        call(bytes(500 * _MEGABYTE), timeout=60, compression=grpc.Compression.Gzip)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "body",
    [
        b'{"signature_name": "similar_items", "instances": [' + b'"",' * 2**20 + b'""]}',
        b'{"signature_name": "similar_items", "inputs": [' + b'"",' * 2**20 + b'""]}',
        b'{"inputs": {"user_id": ["a"], "history": [[' + b'"",' * 2**20 + b'""]]}}',
        b'{"instances": [{"user_id": "a", "history": [' + b'"",' * 2**20 + b'""]}]}',
        b'{"inputs": {"user_id": [' + b'"",' * 2**18 + b'""], "history": [' + b"[]," * 2**18 + b"[]]}}",
        b'{"instances": [' + b'{"user_id": "", "history": []},' * 2**15 + b"{}]}",
    ],
    ids=["rows", "columns", "wide column", "wide row", "long columns", "many rows"],
)
def test_rest_refuses_as_many_rows_and_values(attacked: Attacked, body: bytes):
    with attacked.memory_below(_MOST_MEMORY):
        status, error, seconds = attacked.post(body)
    assert status == 400 and "this server takes" in error and seconds < 3


def test_one_long_example_does_not_widen_a_thousand_others(attacked: Attacked):
    values = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b""] * 2**20))
    long = tf.train.Example(features=tf.train.Features(feature={"history": values})).SerializeToString()
    message = request(attacked.target, "evaluate")
    del message.inputs["examples"]
    _fill(message.inputs["examples"], np.array([long, *[b""] * 1000], object))
    with attacked.memory_below(_MOST_MEMORY):
        code, details, _ = attacked.call(message.SerializeToString())
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "padded to its longest value" in str(details)


def test_what_the_limits_allow_is_answered(attacked: Attacked):
    with attacked.target.client(GrpcClient) as client:
        assert client.predict(attacked.target.request("serving_default", 1024))["item_id"].shape == (1024, 20)
        excluding = attacked.target.request("recommend_excluding")
        excluding["exclude"] = np.array([[f"i{n}" for n in range(100_000)]], object)
        assert not client.predict(excluding, "recommend_excluding")["item_id"][0][0]


def test_filters_are_bounded_over_all_rows(attacked: Attacked):
    message = request(attacked.target, "recommend_filtered")
    for name in message.inputs:
        rank = len(attacked.target.signatures["recommend_filtered"].inputs[name].shape or ())
        message.inputs[name].CopyFrom(bomb(message.inputs[name], *[1000, 9][:rank]))
    code, details, _ = attacked.call(message.SerializeToString())
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "input 'filter_genres': 9000 values;" in str(details)


def test_bytes_that_are_no_utf_8_come_back_in_a_message(attacked: Attacked):
    message = request(attacked.target, "evaluate")
    message.inputs["examples"].string_val[0] = b"\xff\xfe no example"
    code, details, _ = attacked.call(message.SerializeToString())
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "no example" in str(details)
    body = json.dumps({"signature_name": "evaluate", "inputs": {"examples": [{"b64": "//4gbm8gZXhhbXBsZQ=="}]}})
    status, error, _ = attacked.post(body.encode())
    assert status == 400 and "no example" in error


def test_names_that_are_echoed_are_cut(attacked: Attacked):
    for name in ("x" * _MEGABYTE, "é\n" * _MEGABYTE):
        message = request(attacked.target, "serving_default")
        message.inputs[name].CopyFrom(message.inputs["user_id"])
        code, details, _ = attacked.call(message.SerializeToString())
        assert code == grpc.StatusCode.INVALID_ARGUMENT and len(str(details)) <= 1500
        assert str(details).endswith("Missing but required: {}.")
        message = request(attacked.target, "serving_default")
        message.model_spec.name = name
        code, details, _ = attacked.call(message.SerializeToString())
        assert code == grpc.StatusCode.NOT_FOUND and len(str(details)) <= 1500
    status, content, _ = http_request(attacked.target.rest, "GET", f"/v1/models/{'x' * 60_000}")
    assert status == 404 and len(content) < 2000


def test_strangers_add_nothing_to_the_metrics(attacked: Attacked):
    def page() -> int:
        return len(http_request(attacked.target.rest, "GET", "/monitoring/prometheus/metrics")[1])

    def ask(name: str) -> None:
        message = request(attacked.target, "serving_default")
        message.model_spec.name = name
        attacked.call(message.SerializeToString())
        http_request(attacked.target.rest, "GET", f"/v1/models/{name}")

    ask("stranger")
    before = page()
    for number in range(200):
        ask(f"stranger-{number}")
    assert page() < before + 50


def test_what_is_no_request_does_not_fill_the_log(attacked: Attacked):
    before = len(attacked.running.log.read_text())
    for body in [b"\xff" * 50, b"\x0a\xff", *[bytes([n]) * 9 for n in range(100)]]:
        code, _, _ = attacked.call(body)
        assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), body
        raw(attacked, body + b"\r\n\r\n")
    assert len(attacked.running.log.read_text()) == before


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


def raw(attacked: Attacked, content: bytes) -> Response:
    """Sends bytes as they are, and nothing after them."""
    host, _, port = attacked.target.rest.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, headers, response.read())


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GET http://[::1 HTTP/1.1\r\n\r\n", 400),
        (b"\r\n", 400),
        (b" \x1c\xa0\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/models/known\r\n\r\n", 200),
        (b"GET /v1/models/known HTTP/0.9\r\n\r\n", 200),
        (b"GET /v1/models/known HTTP/2.0\r\n\r\n", 505),
        (b"GET /v1/models/known HTTP/x\r\n\r\n", 400),
        (b"BREW /v1/models/known HTTP/1.1\r\n\r\n", 501),
        (b"get /v1/models/known HTTP/1.1\r\n\r\n", 501),
        (b"GET /v1/models/known HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /v1/models/known HTTP/1.1\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"POST /v1/models/known:predict HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST /v1/models/known:predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/models/known:predict HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /v1/models/known:predict HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /v1/models/known:predict HTTP/1.1\r\nContent-Length: 99\r\n\r\n{", 400),
        (b"GET /v1/models/known/versions/" + b"1" * 5000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/models/known/versions/" + b"0" * 5000 + b"1 HTTP/1.1\r\n\r\n", 200),
        (b"GET /v1/models/%ff%00 HTTP/1.1\r\n\r\n", 404),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_http_gets_its_status_in_json(attacked: Attacked, content: bytes, status: int):
    response = raw(attacked, content)
    assert response.status == status and response.headers["content-type"] == "application/json"
    document = json.loads(response.body)
    if status != 200:
        assert list(document) == ["error"] and document["error"] and len(response.body) < 2000


@pytest.mark.parametrize(
    "body",
    [
        b'{"signature_name": "similar_items", "inputs": ' + b"[" * 70 + b'"a"' + b"]" * 70 + b"}",
        b'{"signature_name": "similar_items", "instances": ' + b"[" * 70 + b'"a"' + b"]" * 70 + b"}",
        b'{"signature_name": "similar_items", "inputs": [' + b"9" * 5000 + b"]}",
        b'{"signature_name": "similar_items", "inputs": ["\\ud800"]}',
        b'{"signature_name": "\\ud800", "inputs": ["a"]}',
        b'{"signature_name": "similar_items", "inputs": ["\xff"]}',
    ],
    ids=["70 deep", "70 deep rows", "5,000 digits", "half a pair", "half a pair as a name", "no UTF-8"],
)
def test_odd_json_gets_400(attacked: Attacked, body: bytes):
    assert attacked.post(body)[0] == 400


# The property: whatever comes is answered with a proper code, and the next honest request as ever.

CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
STATUSES = {200, 400, 404, 413, 414, 431, 501, 505}

odd_numbers = st.sampled_from([0, 1, 2, 3, 70, 2**24, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -1, -(2**63)])
odd_texts = st.sampled_from(["", "known", "x" * 10_000, "é\n\0", "../..", "serving_default", '"{}', "\u2028"])
odd_bytes = st.one_of(st.binary(max_size=20), st.sampled_from([b"", b"\xff\xfe", b"i5", b"\0" * 4000]))


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """A serialized TensorProto: any dtype, any shape, any contents, seldom three that belong together."""
    tensor = tensor_pb2.TensorProto()
    dtypes = [number for _, number in types_pb2.DataType.items()]
    tensor.dtype = draw(st.sampled_from([*dtypes, 7, 7, 7, 1, 9, 999, -1]))
    tensor.tensor_shape.unknown_rank = draw(st.integers(0, 9)) == 0
    known = st.sampled_from([[1], [1, 1], [1, 0], [1] * 70, [0] * 300, [2**62] * 5000])
    shape = draw(st.one_of(known, st.lists(odd_numbers, max_size=3)))
    for size in shape:
        tensor.tensor_shape.dim.add(size=size, name=draw(odd_texts) if len(shape) < 2 else "")
    count = draw(st.sampled_from([0, 1, 1, 2, 70]))
    match draw(st.integers(0, 9)):
        case 0:
            tensor.tensor_content = draw(odd_bytes)
        case 1:
            tensor.int_val.extend([draw(st.integers(-(2**31), 2**31 - 1))] * count)
        case 2:
            tensor.int64_val.extend([draw(st.sampled_from([0, -(2**63), 2**63 - 1]))] * count)
        case 3:
            tensor.float_val.extend([draw(st.floats(width=32))] * count)
        case 4:
            tensor.half_val.extend([draw(st.integers(0, 2**31 - 1))] * count)
        case 5:
            tensor.resource_handle_val.add(device="x")
        case 6:
            tensor.variant_val.add(type_name="x").tensors.add()
        case _:
            tensor.string_val.extend([draw(odd_bytes)] * count)
    content = tensor.SerializeToString()
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@st.composite
def predict_requests(draw: st.DrawFn) -> tuple[str, Any]:
    """A signature, and how its honest request is changed: inputs replaced, left out, added, and the bytes broken."""
    changes = st.dictionaries(
        st.one_of(st.integers(0, 5), odd_texts), st.one_of(st.none(), tensors()), min_size=1, max_size=3
    )
    spec = st.fixed_dictionaries(
        {}, optional={"name": odd_texts, "version": odd_numbers, "label": odd_texts, "signature": odd_texts}
    )
    outputs = st.lists(st.one_of(st.just("item_id"), odd_texts), max_size=3)
    broken = st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 500), st.binary(max_size=3)))
    unchanged: Any = st.just({})
    return draw(st.sampled_from(SIGNATURES)), (
        draw(changes),
        draw(st.one_of(unchanged, unchanged, spec)),
        draw(st.one_of(st.just([]), outputs)),
        draw(broken),
    )


def changed(good: predict_pb2.PredictRequest, how: Any) -> bytes:
    inputs, spec, outputs, broken = how
    message = predict_pb2.PredictRequest()
    message.model_spec.CopyFrom(good.model_spec)
    if "name" in spec:
        message.model_spec.name = spec["name"]
    if "signature" in spec:
        message.model_spec.signature_name = spec["signature"]
    if "version" in spec:
        message.model_spec.version.value = spec["version"]
    if "label" in spec:
        message.model_spec.version_label = spec["label"]
    message.output_filter.extend(outputs)
    names = sorted(good.inputs)
    replaced = {(names[key % len(names)] if isinstance(key, int) else key): value for key, value in inputs.items()}
    wire = {name: good.inputs[name].SerializeToString() for name in names} | replaced
    body = message.SerializeToString() + b"".join(
        field(2, field(1, name.encode()) + field(2, value)) for name, value in wire.items() if value is not None
    )
    if broken is not None:
        place = broken[0] % (len(body) + 1)
        body = body[:place] + broken[1] + body[place + 1 :]
    return body


fuzzing = settings(
    max_examples=_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def test_whatever_comes_over_grpc_gets_a_proper_code(attacked: Attacked):
    with attacked.growth_below(_MOST_GROWTH, "gRPC") as count:

        @fuzzing
        @given(request=predict_requests())
        def ask(request: tuple[str, Any]) -> None:
            count()
            signature, how = request
            body = changed(attacked.good[signature], how)
            code, details, seconds = attacked.call(body)
            try:
                predict_pb2.PredictRequest.FromString(body)
                codes = CODES
            except Exception:
                # What cannot be decoded gets what every gRPC server gives.
                codes = {grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT}
            assert code in codes, details
            assert len(details) < 2000 or code == grpc.StatusCode.OK
            assert seconds < 5
            assert attacked.answers_as_before()

        ask()


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), odd_texts,
        st.sampled_from([2**63, -(2**64), 10**400, "\ud800", {"b64": "aQ=="}, {"b64": "?"}, {"b64": 1}, {}]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=8,
)  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON that is close to a request, and bytes that are no JSON."""
    deep = draw(st.sampled_from([b"", b"", b"", b"[" * 70, b"[" * 5000]))
    digits = draw(st.sampled_from([b"", b"", b"", b"9" * 5000]))
    if deep or digits:
        content = deep + (digits or b'"a"') + b"]" * len(deep)
        return (
            b'{"signature_name": "similar_items", "%s": ' % draw(st.sampled_from([b"inputs", b"instances"]))
            + content
            + b"}"
        )
    name = draw(st.sampled_from([*SIGNATURES, "nothing", 5, "\ud800", "x" * 9999]))
    inputs = st.fixed_dictionaries(
        {"user_id": st.one_of(st.just(["a"]), values), "history": st.one_of(st.just([["i5"]]), values)},
        optional={"item_id": values, "examples": values, "exclude": values, "x" * 9999: values},
    )
    content = draw(st.one_of(inputs, values, st.lists(st.one_of(inputs, values), max_size=3)))
    document = {"signature_name": name, draw(st.sampled_from(["inputs", "instances", "\ud800"])): content}
    if draw(st.booleans()):
        del document["signature_name"]
    body = json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 5)):
        case 0:
            return body[: draw(st.integers(0, len(body)))]
        case 1:
            return body + draw(odd_bytes)
        case _:
            return body


@st.composite
def http_requests(draw: st.DrawFn) -> bytes:
    """A request line, headers and a body: honest ones, and one or all of them odd."""
    number = st.sampled_from([b"1", b"0001", b"2", b"1" * 5000, b"9" * 19, b"-1", b"1.5", b"\xb2", b""])
    name = st.sampled_from([b"known", b"%6bnown", b"unknown", b"%ff", b"%", b"x" * 9999, b"%00", b"a:b", b"\xe9"])
    which = st.one_of(st.just(b""), st.builds(b"/versions/%b".__mod__, number), st.builds(b"/labels/%b".__mod__, name))
    tail = st.sampled_from(
        [b":predict", b":predict", b":classify", b"", b"/metadata", b"/nothing", b":PREDICT", b"?a=[", b"#"]
    )
    prefix = st.sampled_from([b"/v1/models/", b"/v1/models/", b"/V1/models/", b"http://h/v1/models/", b"http://[::1/v1/models/",
                              b"//[/v1/models/", b"*", b"/", b"/monitoring/prometheus/", b"x" * 70_000])  # fmt: skip
    honest: Any = st.just(b"/v1/models/known:predict")
    target = draw(st.one_of(honest, honest, st.builds(lambda *parts: b"".join(parts), prefix, name, which, tail)))
    verb = st.sampled_from([b"POST", b"POST", b"POST", b"GET", b"PUT", b"OPTIONS", b"BREW", b"", b"\xff", b"get"])
    version = st.sampled_from(
        [b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/3.0", b"HTTP/1.x", b"HTTP/" + b"1" * 5000, b""]
    )
    line = b" ".join([draw(verb), target, draw(version)])
    body = draw(bodies())
    lengths = [b"%d" % len(body)] * 6 + [
        b"0",
        b"99999",
        b"-1",
        b"x",
        b"9" * 5000,
        b"\xb2",
        b"%d, %d" % (len(body), len(body)),
    ]
    headers = [b"Content-Length: " + draw(st.sampled_from(lengths))]
    many, long = b"\r\n".join([b"a: b"] * 150), b"a: " + b"b" * 70_000
    odd = [b"Transfer-Encoding: chunked", b"Content-Length: 7", b"Expect: 100-continue", b"Connection: close",
           b" folded", b"no colon", b": empty", b"a: \xff", many, long]  # fmt: skip
    headers += draw(st.one_of(st.just([]), st.just([]), st.lists(st.sampled_from(odd), max_size=2)))
    return b"\r\n".join([line, *headers, b"", body])


def test_whatever_comes_over_rest_gets_a_proper_status_in_json(attacked: Attacked):
    with attacked.growth_below(_MOST_GROWTH, "REST") as count:

        @fuzzing
        @given(content=http_requests())
        def ask(content: bytes) -> None:
            count()
            response = raw(attacked, content)
            assert response.status in STATUSES, response
            if response.status != 200:
                assert response.headers["content-type"] == "application/json"
                assert list(json.loads(response.body)) == ["error"] and len(response.body) < 10_000
            assert attacked.answers_as_before()

        ask()
