"""Versions: hot swap under load, broken pushes, labels. Pushes into the model's folder and puts it back."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from servers import Pushing, Target, eventually, mark, newest
from tensorflow_serving.config import model_server_config_pb2

from serving.client import Client, GrpcClient, RestClient, ServingError


def state(target: Target, version: int) -> str:
    """The state of a version, "" when the server has not seen it."""
    with target.client(RestClient, version=version) as client:
        try:
            return client.status()[0].state
        except ServingError:
            return ""


class Load:
    """A client that asks all the time, and what it was answered."""

    def __init__(self, target: Target, column: str, kind: type[Client]) -> None:
        self.target, self.column, self.kind = target, column, kind
        self.answered: set[str] = set()
        self.failures: list[str] = []
        self.requests = 0

    def run(self, stop: threading.Event) -> None:
        request = self.target.request("serving_default", 2)
        with self.target.client(self.kind) as client:
            while not stop.is_set():
                try:
                    answer = client.predict(request)
                except ServingError as error:
                    self.failures.append(str(error))
                    continue
                self.requests += 1
                texts = [text for text in answer[self.column].flat if text]
                marks = {text.partition(" ")[0] if text.startswith("⟨") else "" for text in texts}
                if len(marks) > 1:
                    self.failures.append(f"an answer of several versions: {marks}")
                if answer.version is not None and marks not in ({""}, {mark(answer.version).strip()}):
                    self.failures.append(f"version {answer.version} answered as {marks}")
                self.answered |= marks
                # Without a pause the server's processors would be busy with us alone.
                time.sleep(0.03)


@contextmanager
def under_load(target: Target, column: str) -> Iterator[list[Load]]:
    loads = [Load(target, column, kind) for kind in (GrpcClient, RestClient) for _ in range(2)]
    stop = threading.Event()
    threads = [threading.Thread(target=load.run, args=(stop,)) for load in loads]
    for thread in threads:
        thread.start()
    try:
        yield loads
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_new_version_takes_over_under_load_and_the_old_one_again_when_it_goes(target: Target, pushing: Pushing):
    first = newest(target)
    with under_load(target, pushing.column) as loads:
        second = pushing.push()
        eventually(lambda: newest(target) == second)
        eventually(lambda: state(target, first) == "END")
        time.sleep(0.3)
        pushing.withdraw()
        eventually(lambda: newest(target) == first)
        time.sleep(0.3)
    for load in loads:
        assert not load.failures, load.failures[:3]
        assert load.requests and load.answered == {"", mark(second).strip()}
    with target.client(GrpcClient, version=second) as client, pytest.raises(ServingError, match="NOT_FOUND"):
        client.predict(target.request("serving_default"))


def test_broken_pushes_leave_the_old_version_answering(target: Target, pushing: Pushing):
    first = newest(target)
    whole = pushing.base_path / str(first)
    with under_load(target, pushing.column) as loads:
        half_copied = pushing.path()
        shutil.copytree(whole, half_copied, ignore=shutil.ignore_patterns("saved_model.pb"))
        eventually(lambda: state(target, int(half_copied.name)) == "END")
        corrupt = pushing.path()
        shutil.copytree(whole, corrupt)
        data = corrupt / "variables" / "variables.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
        eventually(lambda: state(target, int(corrupt.name)) == "END")
        with target.client(RestClient, version=int(corrupt.name)) as client:
            assert client.status()[0].error_code != "OK"
        assert newest(target) == first
    for load in loads:
        assert not load.failures and load.answered == {""}


@pytest.fixture
def configured(target: Target) -> Iterator[GrpcClient]:
    """A client that sends configurations; afterwards the server serves the newest version again, without labels."""
    with target.client(GrpcClient) as client:
        yield client
        client.reload(configuration(target, {}))


def configuration(target: Target, labels: dict[str, int]) -> model_server_config_pb2.ModelServerConfig:
    """The two newest versions for labels, the newest one without any."""
    model = model_server_config_pb2.ModelConfig(
        name=target.model, base_path=target.remote_base_path, model_platform="tensorflow", version_labels=labels
    )
    model.model_version_policy.latest.num_versions = 2 if labels else 1
    return model_server_config_pb2.ModelServerConfig(model_config_list={"config": [model]})


def test_a_canary_is_asked_by_label_promoted_and_rolled_back(target: Target, configured: GrpcClient, pushing: Pushing):
    first = newest(target)
    configured.reload(configuration(target, {"stable": first}))
    second = pushing.push()
    eventually(lambda: newest(target) == second)
    assert state(target, first) == "AVAILABLE"

    def answers(label: str) -> list[str]:
        request = target.request("serving_default")
        texts = []
        for kind in (GrpcClient, RestClient):
            with target.client(kind, label=label) as client:
                texts.append(client.predict(request)[pushing.column][0][0])
                client.metadata()
        return [mark(second) if text.startswith(mark(second)) else "" for text in texts]

    configured.reload(configuration(target, {"stable": first, "canary": second}))
    assert answers("stable") == ["", ""] and answers("canary") == [mark(second)] * 2
    configured.reload(configuration(target, {"stable": second, "canary": second}))
    assert answers("stable") == [mark(second)] * 2
    configured.reload(configuration(target, {"stable": first, "canary": second}))
    assert answers("stable") == ["", ""]


def test_a_label_in_use_does_not_move_to_a_version_that_is_not_there(target: Target, configured: GrpcClient):
    if not target.remote_base_path:
        pytest.skip("the server's configuration needs its folder: --serving-base-path")
    first = newest(target)
    configured.reload(configuration(target, {"stable": first}))
    with pytest.raises(ServingError, match="not currently available for inference") as error:
        configured.reload(configuration(target, {"stable": first + 17}))
    assert error.value.code == "FAILED_PRECONDITION"
    with target.client(GrpcClient, label="stable") as client:
        assert client.predict(target.request("serving_default")).version == first
