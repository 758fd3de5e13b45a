"""The client: deadlines, what is tried again and what is not, and numpy in and out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import local_http
import numpy as np
import pytest
import tiny_models

from serving.client import Client, GrpcClient, RestClient, Retries, ServingError, padded
from serving.development_server.server import Options, Server

pytestmark = pytest.mark.slow

INPUTS = {"x": [0.5, float("nan")], "s": ["é", b"\xff\x00"]}
KINDS = {"grpc": GrpcClient, "rest": RestClient}
BOTH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    tiny_models.push(folder, 1)
    return folder


@pytest.fixture(scope="module")
def running(base_path: Path) -> Iterator[Server]:
    with Server(Options("tiny", str(base_path), grpc_port=0, rest_port=0)) as server:
        yield server


def client(kind: str, running: Server, **options: object) -> Client:
    return KINDS[kind](running.grpc_address if kind == "grpc" else running.rest_address, "tiny", **options)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@BOTH
def test_every_dtype_goes_there_and_back(running: Server, kind: str):
    with client(kind, running) as asked:
        answer = asked.predict(INPUTS)
        total = asked.predict({"n": np.array(41)}, "total")
    assert {name: value.dtype for name, value in answer.items()} == {
        "version": np.int64, "x": np.float32, "double": np.float64, "positive": np.bool_, "text": np.object_,
        "raw_bytes": np.object_,
    }  # fmt: skip
    assert answer["x"][0] == np.float32(0.5) and np.isnan(answer["x"][1])
    assert answer["double"][0] == 0.5 / 3 and answer["positive"].tolist() == [True, False]
    assert answer["text"][0] == "é" and answer["raw_bytes"].tolist() == ["é".encode(), b"\xff\x00"]
    assert total["total"].shape == () and total["total"] == 42
    assert answer.version == (1 if kind == "grpc" else None)


@BOTH
def test_metadata_and_status(running: Server, kind: str):
    with client(kind, running, version=1) as asked:
        signature = asked.metadata().signatures["serving_default"]
        assert signature.inputs["x"].dtype == np.float32 and signature.inputs["x"].shape == (None,)
        assert set(asked.metadata().signatures) == {"serving_default", "total"}
        (status,) = asked.status()
        assert (status.version, status.state, status.error_code) == (1, "AVAILABLE", "OK")


@BOTH
def test_lists_of_unequal_lengths_are_refused_before_anything_is_sent(running: Server, kind: str):
    with client(kind, running) as asked, pytest.raises(ValueError, match="input 's': lists of unequal lengths"):
        asked.predict({"x": [1.0], "s": [["a"], ["b", "c"]]})


def test_padding_keeps_the_newest_and_fills_the_end():
    lists = [["a", "b", "c"], [], ["d"]]
    assert padded(lists).tolist() == [["a", "b", "c"], ["", "", ""], ["d", "", ""]]
    assert padded(lists, 2).tolist() == [["b", "c"], ["", ""], ["d", ""]]
    assert padded(lists, 0).shape == (3, 0) and padded([]).shape == (0, 0)


@BOTH
def test_a_server_that_comes_up_in_time_is_waited_for(base_path: Path, kind: str):
    port = free_port()
    ports = {"grpc_port": 0, "rest_port": 0, f"{kind}_port": port}
    servers: list[Server] = []

    def come_up() -> None:
        time.sleep(0.5)
        servers.append(Server(Options("tiny", str(base_path), **ports)))

    late = threading.Thread(target=come_up)
    late.start()
    retries = Retries(attempts=100, longest_wait=0.2)
    with KINDS[kind](f"127.0.0.1:{port}", "tiny", timeout=30, retries=retries) as asked:
        assert asked.predict(INPUTS)["version"].tolist() == [1, 1]
    late.join()
    servers[0].stop()


@BOTH
def test_a_server_that_is_not_there_is_given_up_by_attempts_or_by_the_deadline(kind: str):
    address = f"127.0.0.1:{free_port()}"
    three = Retries(attempts=3, first_wait=0.01)
    with KINDS[kind](address, "tiny", retries=three) as asked, pytest.raises(ServingError, match="UNAVAILABLE"):
        asked.predict(INPUTS)
    started = time.monotonic()
    retries = Retries(attempts=10**6, first_wait=0.05, longest_wait=0.05)
    with KINDS[kind](address, "tiny", timeout=0.5, retries=retries) as asked, pytest.raises(ServingError):
        asked.predict(INPUTS)
    assert time.monotonic() - started < 3


@BOTH
def test_a_server_that_does_not_answer_costs_the_deadline_and_no_more(kind: str):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with KINDS[kind](address, "tiny") as asked, pytest.raises(ServingError, match=r"DEADLINE_EXCEEDED|UNAVAILABLE"):
            asked.predict(INPUTS, timeout=0.4)
        assert 0.3 < time.monotonic() - started < 3


@contextmanager
def answering(*statuses: int) -> Iterator[tuple[str, list[int]]]:
    """An HTTP server that gives these statuses one after the other; its address and what it has given."""
    given: list[int] = []

    class Handler(local_http.JsonHandler):
        def do_GET(self) -> None:
            given.append(statuses[len(given)])
            tree = {"error": f"number {len(given)}"} if given[-1] != 200 else {"model_version_status": []}
            self.answer(tree, given[-1])

    with local_http.running(Handler) as address:
        yield address, given


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        ((503, 503, 200), None),
        ((503, 503, 503), "503: number 3"),
        ((400, 200), "400: number 1"),
        ((404, 200), "404: number 1"),
        ((500, 200), "500: number 1"),
        ((503, 400, 200), "400: number 2"),
    ],
)
def test_only_what_is_safe_is_tried_again(statuses: tuple[int, ...], outcome: str | None):
    three = Retries(attempts=3, first_wait=0.01)
    with answering(*statuses) as (address, given), RestClient(address, "tiny", retries=three) as asked:
        if outcome is None:
            assert asked.status() == []
        else:
            with pytest.raises(ServingError) as error:
                asked.status()
            assert str(error.value) == outcome
    tried = next((n for n, status in enumerate(statuses) if status != 503), len(statuses) - 1) + 1
    assert given == list(statuses[:tried])


def test_waits_double_up_to_a_bound_and_differ():
    retries = Retries(first_wait=0.1, longest_wait=0.5)
    for attempt, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (50, 0.5)):
        waits = [retries.wait(attempt) for _ in range(200)]
        assert 0 <= min(waits) < 0.3 * bound and 0.7 * bound < max(waits) <= bound


def test_version_and_label_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        RestClient("localhost:1", "tiny", version=1, label="stable")
