"""What the development server does around a model: switching, policies, labels, broken versions, JSON, its command."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from e2e_runs import twotower
from servers import eventually, http_request
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from modules.servable import contract as pipeline_contract
from serving.client import GrpcClient, RestClient, ServingError
from serving.development_server import errors, servable
from serving.development_server.limits import Limits
from serving.development_server.metrics import Metrics
from serving.development_server.models import Models, single_model
from serving.development_server.server import Options, Server

pytestmark = pytest.mark.slow

ANY = model_pb2.ModelSpec(name="tiny")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 3, to be copied from."""
    folder = tmp_path_factory.mktemp("versions")
    for number in (1, 2, 3):
        tiny_models.push(folder, number)
    return folder


@pytest.fixture
def base_path(versions: Path, tmp_path: Path) -> Path:
    shutil.copytree(versions / "1", tmp_path / "tiny" / "1")
    return tmp_path / "tiny"


@pytest.fixture
def models(base_path: Path) -> Iterator[Models]:
    models = Models(Metrics())
    models.reconfigure(single_model("tiny", str(base_path)))
    yield models
    models.close()


def asked(models: Models, spec: model_pb2.ModelSpec = ANY) -> int:
    """The version that answers, and does so with its own number."""
    with models.servable(spec) as (number, loaded):
        answer = loaded.predict("", {"x": np.array([1], np.float32), "s": np.array([b""], object)})
    assert answer["version"].tolist() == [number]
    return number


def states(models: Models) -> dict[int, str]:
    from tensorflow_serving.apis import get_model_status_pb2

    name = get_model_status_pb2.ModelVersionStatus.State.Name
    return {status.version: name(status.state) for status in models.status(ANY)}


def configured(base_path: Path, text: str) -> model_server_config_pb2.ModelServerConfig:
    from google.protobuf import text_format

    config = single_model("tiny", str(base_path))
    text_format.Merge(text, config.model_config_list.config[0])
    return config


def test_the_server_understands_the_contract_that_the_pipeline_writes():
    assert servable.CONTRACT_VERSION == pipeline_contract.CONTRACT_VERSION


def test_the_newest_version_answers_and_the_old_one_is_unloaded(models: Models, base_path: Path, versions: Path):
    assert asked(models) == 1
    shutil.copytree(versions / "3", base_path / "3")
    models.refresh()
    assert asked(models) == 3 and states(models) == {1: "END", 3: "AVAILABLE"}
    # An older one that comes later changes nothing.
    shutil.copytree(versions / "2", base_path / "2")
    models.refresh()
    assert asked(models) == 3 and states(models) == {1: "END", 3: "AVAILABLE"}
    shutil.rmtree(base_path / "3")
    models.refresh()
    assert asked(models) == 2


def test_a_version_is_unloaded_only_when_its_last_request_has_been_answered(
    models: Models, base_path: Path, versions: Path
):
    shutil.copytree(versions / "2", base_path / "2")
    inputs = {"x": np.array([1], np.float32), "s": np.array([b""], object)}
    with models.servable(ANY) as (number, loaded):
        swap = threading.Thread(target=models.refresh)
        swap.start()
        eventually(lambda: asked(models) == 2)
        assert number == 1 and loaded.predict("", inputs)["version"].tolist() == [1]
        assert swap.is_alive() and states(models)[1] == "UNLOADING"
    swap.join(10)
    assert states(models)[1] == "END"


def test_a_half_copied_version_is_skipped_and_loaded_once_it_is_whole(
    models: Models, base_path: Path, versions: Path, caplog: pytest.LogCaptureFixture
):
    shutil.copytree(versions / "2", base_path / "2", ignore=shutil.ignore_patterns("saved_model.pb"))
    for _ in range(3):
        models.refresh()
    assert asked(models) == 1 and states(models)[2] == "END"
    assert sum("version 2 skipped" in record.message for record in caplog.records) == 1, "said once"
    shutil.copy(versions / "2" / "saved_model.pb", base_path / "2")
    models.refresh()
    assert asked(models) == 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("saved_model.pb", b"\x0a\xff nonsense"),
        ("variables/variables.index", b""),
        ("variables/variables.data-00000-of-00001", b""),
        ("assets.extra/servable.json", b"{"),
        ("assets.extra/servable.json", b"[]"),
        ("assets.extra/tf_serving_warmup_requests", b"nonsense" * 10),
        ("assets.extra/servable.json", b'{"contract_version": 3}'),
    ],
)
def test_a_corrupt_version_or_one_of_a_newer_contract_is_skipped(
    models: Models, base_path: Path, versions: Path, file: str, content: bytes
):
    broken = shutil.copytree(versions / "2", base_path / "2")
    (broken / file).parent.mkdir(exist_ok=True)
    (broken / file).write_bytes(content)
    models.refresh()
    assert asked(models) == 1
    newest = models.status(ANY)[0]
    assert newest.version == 2 and newest.status.error_code != 0 and newest.status.error_message


def test_a_newer_contract_is_named(models: Models, base_path: Path):
    tiny_models.push(base_path, 9, {"contract_version": servable.CONTRACT_VERSION + 1, "layer": "stock"})
    models.refresh()
    newer = servable.CONTRACT_VERSION + 1
    assert f"contract version {newer} is newer than" in models.status(ANY)[0].status.error_message
    assert asked(models) == 1


def test_when_only_broken_versions_are_left_the_loaded_one_goes_on(models: Models, base_path: Path):
    (base_path / "2").mkdir()
    shutil.rmtree(base_path / "1")
    models.refresh()
    assert asked(models) == 1
    shutil.rmtree(base_path)
    models.refresh()
    assert asked(models) == 1


def test_policies(models: Models, base_path: Path, versions: Path):
    for number in (2, 3):
        shutil.copytree(versions / str(number), base_path / str(number))
    for text, available in (
        ("", {3}),
        ("model_version_policy { latest { num_versions: 2 } }", {2, 3}),
        ("model_version_policy { all {} }", {1, 2, 3}),
        ("model_version_policy { specific { versions: 1 versions: 7 } }", {1}),
    ):
        models.reconfigure(configured(base_path, text))
        assert {n for n, state in states(models).items() if state == "AVAILABLE"} == available
        for number in available:
            assert asked(models, model_pb2.ModelSpec(name="tiny", version={"value": number})) == number


def test_labels_move_only_to_versions_that_answer(models: Models, base_path: Path, versions: Path):
    def labelled(label: str) -> int:
        return asked(models, model_pb2.ModelSpec(name="tiny", version_label=label))

    models.reconfigure(configured(base_path, 'version_labels { key: "stable" value: 1 }'))
    assert labelled("stable") == 1
    with pytest.raises(errors.ServingError, match="version 2 of model tiny, which is not currently available"):
        models.reconfigure(configured(base_path, 'version_labels { key: "stable" value: 2 }'))
    assert labelled("stable") == 1
    with pytest.raises(errors.ServingError, match="Unrecognized servable version label: canary"):
        labelled("canary")
    shutil.copytree(versions / "2", base_path / "2")
    both = """model_version_policy { latest { num_versions: 2 } }
              version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }"""
    models.reconfigure(configured(base_path, both))
    assert (labelled("stable"), labelled("canary")) == (1, 2)


def test_a_model_that_the_configuration_leaves_out_is_gone(models: Models, base_path: Path):
    models.reconfigure(single_model("other", str(base_path)))
    with models.servable(model_pb2.ModelSpec(name="other")) as (number, _):
        assert number == 1
    with pytest.raises(errors.ServingError, match=r"Servable not found for request: Latest\(tiny\)"):
        asked(models)


@pytest.fixture(scope="module")
def running(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("running")
    shutil.copytree(versions / "1", folder / "tiny" / "1")
    with Server(Options("tiny", str(folder / "tiny"), grpc_port=0, rest_port=0)) as server:
        yield server


def predict(running: Server, body: object, path: str = "/v1/models/tiny:predict") -> tuple[int, dict]:
    status, content, _ = http_request(running.rest_address, "POST", path, json.dumps(body).encode())
    return status, json.loads(content)


def test_every_dtype_in_both_formats(running: Server):
    rows = [{"x": 0.1, "s": "é"}, {"x": float("nan"), "s": {"b64": "aGk="}}, {"x": float("-inf"), "s": ""}]
    status, document = predict(running, {"instances": rows})
    assert status == 200
    first, second, third = document["predictions"]
    assert first == {"version": 1, "x": 0.1, "double": pytest.approx(0.1 / 3), "positive": True, "text": "é",
                     "raw_bytes": {"b64": "w6k="}}  # fmt: skip
    assert np.isnan(second["x"]) and second["text"] == "hi" and second["raw_bytes"] == {"b64": "aGk="}
    assert third["x"] == float("-inf") and third["positive"] is False
    columns = {name: [row[name] for row in rows] for name in ("x", "s")}
    status, document = predict(running, {"inputs": columns})
    assert status == 200
    assert document["outputs"]["text"] == ["é", "hi", ""] and document["outputs"]["version"] == [1, 1, 1]


def test_a_scalar_goes_in_columns_only(running: Server):
    assert predict(running, {"signature_name": "total", "inputs": 41}) == (200, {"outputs": 42})
    assert predict(running, {"signature_name": "total", "inputs": {"n": 41}}) == (200, {"outputs": 42})
    status, document = predict(running, {"signature_name": "total", "instances": [41]})
    assert status == 400 and "input 'n' of signature 'total': expected int64 [], got int64 [1]" in document["error"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([True], "Type: Bool is not of expected type: float"),
        (["1"], 'JSON Value: "1" Type: String is not of expected type: float'),
        ([[1]], "input 'x' of signature 'serving_default': expected float32 [?], got float32 [1, 1]"),
        (1, "input 'x' of signature 'serving_default': expected float32 [?], got float32 []"),
        ([{"a": 1}], "Type: Object is not of expected type: float"),
    ],
)
def test_a_wrong_value_names_the_input(running: Server, value: object, says: str):
    status, document = predict(running, {"inputs": {"x": value, "s": ["a"]}})
    assert status == 400 and says in document["error"]
    assert "input: x" in document["error"] or "input 'x'" in document["error"]


def test_integers_out_of_range_and_fractions_are_refused(running: Server):
    for value in (2**63, -(2**63) - 1, 10**400, 1.5, True):
        status, document = predict(running, {"signature_name": "total", "inputs": value})
        assert status == 400 and "is not of expected type: int64" in document["error"], value


def test_what_tensorflow_itself_refuses_comes_with_the_shapes_of_the_inputs(running: Server):
    with GrpcClient(running.grpc_address, "tiny") as client, pytest.raises(ServingError) as error:
        client.predict({"x": np.zeros((2, 3), np.float32), "s": ["a"]})
    assert "input 'x' of signature 'serving_default': expected float32 [?], got float32 [2, 3]" in error.value.message
    with GrpcClient(running.grpc_address, "tiny") as client, pytest.raises(ServingError, match="got string"):
        client.predict({"x": ["a"], "s": ["a"]})


def test_lists_nested_beyond_reason_are_refused(running: Server):
    for depth in (500, 900, 100_000):
        body = b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"
        status, content, _ = http_request(running.rest_address, "POST", "/v1/models/tiny:predict", body)
        assert status == 400 and json.loads(content)["error"]
    assert predict(running, {"signature_name": "total", "inputs": 1})[0] == 200


def test_one_value_may_stand_for_all_but_not_for_a_billion(running: Server):
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "tiny"
    for name, dtype, size in (("x", 1, 4), ("s", 7, 4)):
        request.inputs[name].dtype = dtype
        request.inputs[name].tensor_shape.dim.add().size = size
    request.inputs["x"].float_val.append(0.5)
    request.inputs["s"].string_val.append(b"a")
    with grpc.insecure_channel(running.grpc_address) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert list(service.Predict(request, timeout=10).outputs["x"].float_val) == [0.5] * 4
        request.inputs["x"].tensor_shape.dim[0].size = 10**12
        with pytest.raises(grpc.RpcError, match="input 'x': 1000000000000 rows; this server takes 1024"):
            service.Predict(request, timeout=10)
        with pytest.raises(grpc.RpcError) as error:
            service.Classify(predict_pb2.PredictRequest(), timeout=10)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_http_oddities(running: Server):
    address, path = running.rest_address, "/v1/models/tiny:predict"
    assert http_request(address, "GET", "/nothing")[0] == 404
    assert http_request(address, "PUT", path, b"{}")[0] == 400
    assert http_request(address, "POST", path, b"{}", {"Content-Length": "x"})[0] == 400
    assert http_request(address, "POST", path, b"", {"Content-Length": str(2**40)})[0] == 413
    assert http_request(address, "POST", path, b"", {"Transfer-Encoding": "chunked"})[0] == 400
    assert predict(running, {}, "/v1/models/tiny:classify")[0] == 501
    assert predict(running, {"signature_name": "total", "inputs": 1}, "/V1/MODELS/tiny/versions/1:PREDICT")[0] == 200
    assert predict(running, {}, f"/v1/models/tiny/versions/{2**63}:predict")[0] == 400


def test_a_connection_is_kept_alive_after_an_error(running: Server):
    connection = http.client.HTTPConnection(running.rest_address, timeout=10)
    for body, expected in ((b"{", 400), (b'{"signature_name": "total", "inputs": 1}', 200)) * 2:
        connection.request("POST", "/v1/models/tiny:predict", body)
        response = connection.getresponse()
        response.read()
        assert response.status == expected and connection.sock is not None
    connection.close()


def test_a_server_that_stops_answers_what_is_under_way_and_closes_every_connection(base_path: Path):
    body = b'{"signature_name": "total", "inputs": 1}'
    head = f"POST /v1/models/tiny:predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
    with Server(Options("tiny", str(base_path), grpc_port=0, rest_port=0)) as server, contextlib.ExitStack() as opened:
        address = ("127.0.0.1", int(server.rest_address.rpartition(":")[2]))
        silent, kept_alive, under_way = (
            opened.enter_context(socket.create_connection(address, timeout=30)) for _ in range(3)
        )
        kept_alive.sendall(head + b"\r\n" + body)
        assert b'{"outputs": 2}' in kept_alive.recv(2**16)
        under_way.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert under_way.recv(2**16).endswith(b" 100 Continue\r\n\r\n")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert silent.recv(1) == kept_alive.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=30)
        assert stopping.is_alive(), "one is under way"
        under_way.sendall(body)
        answer = http.client.HTTPResponse(under_way)
        answer.begin()
        assert (answer.status, answer.read(), answer.headers["Connection"]) == (200, b'{"outputs": 2}', "close")
        under_way.close()
        stopping.join(30)
        assert not stopping.is_alive()


def test_a_changed_configuration_file_is_read_again(base_path: Path, versions: Path, tmp_path: Path):
    shutil.copytree(versions / "2", base_path / "2")
    file = tmp_path / "models.config"

    def write(stable: int) -> None:
        file.write_text(
            f"""model_config_list {{ config {{ name: "tiny" base_path: "{base_path}" model_platform: "tensorflow"
            model_version_policy {{ latest {{ num_versions: 2 }} }}
            version_labels {{ key: "stable" value: {stable} }} }} }}"""
        )

    write(1)
    options = Options(model_config_file=str(file), grpc_port=0, rest_port=0, poll_seconds=0.1)
    with Server(options) as server, RestClient(server.rest_address, "tiny", label="stable") as client:

        def stable() -> int:
            return int(client.predict({"x": [1.0], "s": ["a"]})["version"][0])

        assert stable() == 1
        write(2)
        eventually(lambda: stable() == 2)
        file.write_text("nonsense")
        with pytest.raises(AssertionError, match="in time"):
            eventually(lambda: stable() != 2, seconds=0.5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("nonsense", "not a ModelServerConfig"),
        ("", "names no model"),
        ('model_config_list { config { name: "a" base_path: "a" model_platform: "tensorflow" } }', "absolute path"),
        ('model_config_list { config { name: "a" base_path: "/" } }', "model_platform"),
        ('model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow" } }', "no such folder"),
    ],
)
def test_a_wrong_configuration_file_is_one_line(tmp_path: Path, content: str | None, says: str):
    file = tmp_path / "models.config"
    if content is not None:
        file.write_text(content)
    outcome = twotower("serve", "--model-config-file", str(file))
    assert outcome.code == 2 and says in outcome.errors and len(outcome.errors.splitlines()) == 1


def test_a_missing_folder_and_a_taken_port_are_one_line(base_path: Path):
    missing = twotower("serve", "--model-name", "tiny", "--model-base-path", str(base_path / "nothing"))
    assert missing.code == 2 and "no such folder" in missing.errors and len(missing.errors.splitlines()) == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for option in ("--grpc-port", "--rest-port"):
            ports = {"--grpc-port": "0", "--rest-port": "0", option: port}
            arguments = [text for pair in ports.items() for text in pair]
            outcome = twotower("serve", "--model-name", "tiny", "--model-base-path", str(base_path), *arguments)
            assert outcome.code == 2 and f"{option} {port}" in outcome.errors, outcome.errors
            assert outcome.errors.count("twotower:") == 1


@pytest.mark.parametrize("option", ["--grpc-port", "--rest-port"])
def test_a_port_that_is_none_is_one_line(base_path: Path, option: str):
    ports = {"--grpc-port": "0", "--rest-port": "0", option: "99999"}
    arguments = [text for pair in ports.items() for text in pair]
    outcome = twotower("serve", "--model-name", "tiny", "--model-base-path", str(base_path), *arguments)
    assert outcome.code == 2 and f"{option} 99999" in outcome.errors


def test_a_folder_without_versions_is_waited_for(tmp_path: Path, versions: Path):
    (tmp_path / "empty").mkdir()
    options = Options("tiny", str(tmp_path / "empty"), grpc_port=0, rest_port=0, poll_seconds=0.1)
    with Server(options) as server, RestClient(server.rest_address, "tiny") as client:
        with pytest.raises(ServingError, match="Could not find any versions of model tiny"):
            client.status()
        shutil.copytree(versions / "1", tmp_path / "empty" / ".staging")
        (tmp_path / "empty" / ".staging").rename(tmp_path / "empty" / "1")
        client.wait_until_available(30)
        assert client.predict({"x": [1.0], "s": ["a"]})["version"].tolist() == [1]


def test_the_command_starts_without_scann_and_tfx():
    code = """
import sys
import pipeline.cli, serving.development_server.server
print(sorted({m.split(".")[0] for m in sys.modules} & {"scann", "tfx", "apache_beam", "ml_metadata"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_the_limits_are_those_that_were_set(base_path: Path):
    options = Options(
        "tiny", str(base_path), grpc_port=0, rest_port=0, limits=Limits(max_batch=2, max_message_bytes=300)
    )
    with Server(options) as server:
        for kind, address in ((GrpcClient, server.grpc_address), (RestClient, server.rest_address)):
            with kind(address, "tiny") as client:
                assert client.predict({"x": [1.0, 2.0], "s": ["a", "b"]})["x"].tolist() == [1.0, 2.0]
                with pytest.raises(ServingError, match=r"3 rows; this server takes 2 \(--max-batch\)"):
                    client.predict({"x": [1.0, 2.0, 3.0], "s": ["a", "b", "c"]})
                with pytest.raises(ServingError, match=r"RESOURCE_EXHAUSTED|413"):
                    client.predict({"x": [1.0], "s": ["a" * 300]})
