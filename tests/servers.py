"""Servers under test: `twotower serve` started as a person does it, requests for any of our models, pushes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import marked_versions
from serving.client import Client, GrpcClient, Signature

RECOMMEND = ("serving_default", "recommend_excluding", "recommend_filtered")
RECOMMEND_USER = "recommend_user"
SIGNATURES = (
    *RECOMMEND, "similar_items", "query_embedding", "candidate_embedding", "evaluate", "explain", "explain_embedding"
)  # fmt: skip


@dataclass(frozen=True)
class Running:
    """A server process."""

    grpc: str
    rest: str
    process: int
    log: Path

    def says(self, text: str) -> bool:
        return text in self.log.read_text()


@contextmanager
def development_server(*arguments: str) -> Iterator[Running]:
    """Runs the command on free ports until the block ends."""
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--json", "--grpc-port", "0", "--rest-port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "w") as errors:
            process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            addresses = json.loads(line)
            yield Running(addresses["grpc"], addresses["rest"], process.pid, log)
            assert process.poll() is None, log.read_text()
        finally:
            os.kill(process.pid, signal.SIGTERM)
            code = process.wait(30)
            process.stdout.close()
        assert code == 0, log.read_text()


def eventually(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
    """Waits until a condition holds, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result or time.monotonic() > deadline:
            assert result, "it did not happen in time"
            return result
        time.sleep(0.1)


def http_request(
    address: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """One plain HTTP request: status, body, headers."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


@dataclass(frozen=True)
class Target:
    """A server and what is known of its model."""

    grpc: str
    rest: str
    model: str
    base_path: Path | None
    """Where versions are pushed."""
    remote_base_path: str
    """The same, as the server's configuration calls it."""
    signatures: dict[str, Signature]
    items: tuple[str, ...]
    """Some known item ids, from an answer."""

    def client(self, kind: type[Client], **options: object) -> Client:
        address = self.grpc if kind is GrpcClient else self.rest
        return kind(address, self.model, **{"timeout": 30.0, **options})  # type: ignore[arg-type]

    def request(self, signature: str, batch: int = 1, history: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """A request of unknown people who took up `history`; known items where a signature asks for items."""
        return {name: self._input(signature, name, batch, history) for name in self.signatures[signature].inputs}

    def _input(self, signature: str, name: str, batch: int, history: tuple[str, ...]) -> np.ndarray:
        spec = self.signatures[signature].inputs[name]
        assert spec.shape is not None
        if len(spec.shape) == 3:
            return np.ones((batch, 2, spec.shape[2]), spec.dtype)
        if spec.dtype == np.object_ and len(spec.shape) == 2:
            values = history if name in self.lists(signature) else self.items[:2] if name == "explain" else ()
            return np.array([list(values)] * batch, object).reshape(batch, len(values))
        if name == "item_id":
            return np.array([self.items[row % len(self.items)] for row in range(batch)], object)
        if signature == "evaluate":
            return np.array([b""] * batch, object)
        value: object = "nobody" if spec.dtype == np.object_ else 30
        return np.full(batch, value, spec.dtype)

    def lists(self, signature: str) -> list[str]:
        """The query's own list inputs: the history, and features with several values."""
        own = self.signatures["query_embedding"].inputs
        return [n for n, s in self.signatures[signature].inputs.items() if n in own and len(s.shape or ()) == 2]


class Pushing:
    """Versions above those that are there, each with its number as the mark of its answers."""

    def __init__(self, base_path: Path) -> None:
        self.base_path = base_path
        self.first = max(int(folder.name) for folder in base_path.iterdir() if folder.name.isdigit())
        self.pushed: list[Path] = []

    def path(self) -> Path:
        """Where the next version goes; it is removed after the test."""
        # A number that the server has never seen: what it remembers of an old one would pass for news.
        folder = self.base_path / str(max(self.first + 1, time.time_ns() // 1_000_000))
        self.pushed.append(folder)
        return folder

    def push(self) -> int:
        """Pushes a marked version and returns its number."""
        folder = self.path()
        marked_versions.push(self.base_path / str(self.first), folder, mark(int(folder.name)))
        return int(folder.name)

    def withdraw(self) -> None:
        for folder in self.pushed:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def column(self) -> str:
        return marked_versions.marked_column(self.base_path / str(self.first))


def look_at(grpc: str, rest: str, model: str, base_path: Path | None, remote: str) -> Target:
    """Asks a server what its model offers."""
    with GrpcClient(grpc, model, timeout=30.0) as client:
        client.wait_until_available(120)
        signatures = dict(client.metadata().signatures)
        bare = Target(grpc, rest, model, base_path, remote, signatures, ())
        items = client.predict(bare.request("serving_default"))["item_id"][0]
    return Target(grpc, rest, model, base_path, remote, signatures, tuple(i for i in items if i))


def newest(target: Target) -> int:
    """The version that answers those who ask for none."""
    with target.client(GrpcClient) as client:
        return client.metadata().version


def mark(version: int) -> str:
    """How the answers of a pushed version begin."""
    return f"⟨{version}⟩ "
