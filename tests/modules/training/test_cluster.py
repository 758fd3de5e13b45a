"""What TF_CONFIG says, what is wrong with it in a line, and whether the workers that it names are there."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest
from local_workers import tf_configs

from modules.errors import UserError
from modules.settings import Training
from modules.training import worker
from modules.training.cluster import Cluster

TWO = {"worker": ["a:1", "b:2"]}


def config(cluster: Any, kind: Any = "worker", index: Any = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


@pytest.mark.parametrize(
    ("environment", "addresses", "number"),
    [
        (config(TWO), ["a:1", "b:2"], 0),
        (config(TWO, index=1), ["a:1", "b:2"], 1),
        (config({"worker": ["a:1", "b:2"], "chief": ["c:3"]}, "chief"), ["c:3", "a:1", "b:2"], 0),
        (config({"worker": ["a:1", "b:2"], "chief": ["c:3"]}), ["c:3", "a:1", "b:2"], 1),
        (config({"worker": ["[::1]:1", "10.0.0.2:65535"], "chief": []}), ["[::1]:1", "10.0.0.2:65535"], 0),
    ],
)
def test_the_chief_is_the_first_of_the_workers(environment, addresses, number):
    cluster = Cluster.of_environment(environment)
    assert [str(address) for address in cluster.addresses] == addresses
    assert cluster.number == number and cluster.is_chief == (number == 0)
    assert str(cluster.address) == addresses[number]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "needs TF_CONFIG, which is not set"),
        ({"TF_CONFIG": ""}, "needs TF_CONFIG, which is not set"),
        ({"TF_CONFIG": "{cluster"}, "TF_CONFIG is not JSON"),
        ({"TF_CONFIG": "9" * 5000}, "TF_CONFIG is not JSON"),
        ({"TF_CONFIG": "[1]"}, "TF_CONFIG has no 'cluster'"),
        ({"TF_CONFIG": json.dumps({"cluster": TWO})}, "TF_CONFIG has no 'task'"),
        (config({"worker": "a:1"}), "worker of TF_CONFIG must be a list"),
        (config({"worker": ["a:1", "b"]}), "worker 'b' of TF_CONFIG is no host:port"),
        (config({"worker": ["a:1", 2]}), "worker 2 of TF_CONFIG is no host:port"),
        (config({"worker": ["a:1", "b:65536"]}), "worker 'b:65536' of TF_CONFIG is no host:port"),
        (config({"worker": ["a:1", "a:1"]}), "the worker a:1 twice"),
        (config({"worker": ["a:1"]}), "names fewer than two workers"),
        (config({"worker": ["a:1"], "chief": ["b:1", "c:1"]}), "has 2 chiefs"),
        (config({"worker": ["a:1"], "ps": ["b:1"]}), "has the job 'ps'"),
        (config(TWO, index=2), "is worker 2, but its cluster has 2 of them"),
        (config(TWO, index=-1), "type 'worker', index -1"),
        (config(TWO, index=True), "index True"),
        (config(TWO, index="0"), "index '0'"),
        (config(TWO, kind="chief"), "type 'chief', index 0"),
        (config(TWO, kind=["worker"]), "index 0"),
    ],
)
def test_what_is_wrong_with_tf_config_is_said_in_a_line(environment, words):
    with pytest.raises(UserError) as refusal:
        Cluster.of_environment(environment)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("training.distribution: multi_worker") and "\n" not in str(refusal.value)


@pytest.fixture
def three() -> list[Cluster]:
    """Each worker's view of a cluster on ports that nobody has."""
    return [Cluster.of_environment({"TF_CONFIG": content}) for content in tf_configs(3)]


def test_workers_wait_until_all_of_them_are_there(three):
    arrived = []

    def take_part(number):
        time.sleep(0.3 * number)
        three[number].wait_for_others(20)
        arrived.append(time.monotonic())
        # As TensorFlow does from now on.
        with socket.create_server(("localhost", three[number].address.port)):
            done.wait(20)

    done, started = threading.Event(), time.monotonic()
    threads = [threading.Thread(target=take_part, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    while len(arrived) < 3 and time.monotonic() < started + 20:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert len(arrived) == 3 and min(arrived) >= started + 0.6


def test_who_is_not_there_in_time_is_named(three):
    started = time.monotonic()
    with socket.create_server(("localhost", three[0].address.port)), pytest.raises(UserError) as refusal:
        three[1].wait_for_others(0.3)
    assert f"worker {three[2].address} could not be reached within 0.3 s" in str(refusal.value)
    assert time.monotonic() < started + 5


def test_an_address_that_is_taken_is_named(three):
    with socket.create_server(("", three[0].address.port)), pytest.raises(UserError) as refusal:
        three[0].wait_for_others(0)
    assert f"cannot listen at {three[0].address}: Address already in use" in str(refusal.value)


def test_a_worker_that_waits_in_vain_ends_with_a_line_and_exit_code_2(monkeypatch, capsys):
    other = tf_configs(2)[1]
    monkeypatch.setenv("TF_CONFIG", other)
    monkeypatch.setattr("sys.argv", ["worker", "--wait", "0.1"])
    assert worker.main() == 2
    chief = json.loads(other)["cluster"]["worker"][0]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"error: training.distribution: multi_worker: worker {chief} could not be reached")


def test_the_wait_of_the_trainer_is_bounded():
    assert 0 < Training().worker_wait < 3600
