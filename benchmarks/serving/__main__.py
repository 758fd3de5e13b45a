"""Measures the development server on a pushed model: latency and throughput by concurrency, and a soak with swaps.

    python -m benchmarks.serving [--config F | --model-base-path FOLDER] [--seconds 10] [--output F.json]
    python -m benchmarks.serving --soak 600 --swaps 20 [--rate 40]

Server and clients share this machine's processors: latencies at high concurrency are those of both. Beside them stands
the servable's own clock, by the C++ code that TF Serving runs (`native`; `make native` has it for every signature).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.serving import marked_versions
from benchmarks.serving.pushed import newest_version
from serving.client import DEFAULT_SIGNATURE, Client, GrpcClient, RestClient, ServingError
from serving.native import probe

MODEL = "bench"
CONCURRENCY = (1, 8, 64)
KINDS: dict[str, type[Client]] = {"gRPC": GrpcClient, "REST": RestClient}

_WARM_CALLS = 100
_SOAK_CLIENTS = 8
# Memory counts as flat when the last tenth of a soak holds at most this multiple of the second tenth.
_FLAT = 1.10
_SWAP_SECONDS = 300.0

Request = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Level:
    """What clients saw that asked all the time, each again as soon as it had its answer."""

    interface: str
    """`native` is none: threads that call TensorFlow's session in C++."""
    clients: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_second: float
    failures: int


@dataclass
class Soak:
    """What happened at a fixed load while versions were swapped."""

    seconds: float
    swaps: int
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    versions_that_answered: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    slowest_ms: float = 0.0
    rss_mb: list[float] = field(default_factory=list)
    """Of the server, every second."""

    @property
    def memory(self) -> tuple[float, float]:
        """Mean resident megabytes in the second tenth and in the last one."""
        tenth = max(1, len(self.rss_mb) // 10)
        return float(np.mean(self.rss_mb[tenth : 2 * tenth])), float(np.mean(self.rss_mb[-tenth:]))

    @property
    def passed(self) -> bool:
        early, late = self.memory
        return not self.failures and not self.mixed and late <= _FLAT * early


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--model-base-path", type=Path, help="pushed versions (default: where the config's runs push)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each level of concurrency")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="a soak instead of the levels")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=40.0, help="requests per second of the soak")
    parser.add_argument("--output", type=Path, help="the same as JSON")
    options = parser.parse_args()

    source = newest_version(options.config, options.model_base_path)
    requests = single_requests(source)
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "model": marked_versions.description(source) | {"signatures": None},
    }
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory() as folder:
        base_path = Path(folder) / MODEL
        shutil.copytree(source, base_path / "1")
        if options.soak:
            with server(base_path) as (addresses, process):
                outcome = soak(base_path, addresses, process, requests, options)
            result["soak"] = asdict(outcome) | {"passed": outcome.passed}
            render_soak(outcome, console)
            code = 0 if outcome.passed else 1
        else:
            alone = in_process(base_path / "1", requests)
            levels, missing = native_levels(base_path / "1", options.seconds)
            with server(base_path) as (addresses, _):
                levels += [
                    level(name, addresses[name], clients, requests, options.seconds)
                    for name in KINDS
                    for clients in CONCURRENCY
                ]
            result |= {"in_process_p50_ms": alone, "levels": [asdict(one) for one in levels], "native_missing": missing}
            render_levels(alone, levels, console)
            if missing:
                console.print(f"native: {missing}")
            code = 1 if any(one.failures for one in levels) else 0
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1))
    return code


def single_requests(version: Path) -> list[Request]:
    """The warm-up requests of one row to `serving_default`: real queries."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    requests: list[Mapping[str, np.ndarray]] = []
    path = str(version / "assets.extra" / "tf_serving_warmup_requests")
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        if request.model_spec.signature_name == "serving_default" and len(next(iter(inputs.values()))) == 1:
            requests.append(inputs)
    return requests


@contextlib.contextmanager
def server(base_path: Path) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """`twotower serve` in a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--json", "--grpc-port", "0", "--rest-port", "0"]
    command += ["--model-name", MODEL, "--model-base-path", str(base_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        yield {"gRPC": addresses["grpc"], "REST": addresses["rest"]}, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def in_process(version: Path, requests: Sequence[Request]) -> float:
    """Milliseconds (p50) of the same call without a server around it."""
    from serving.development_server.metrics import Metrics
    from serving.development_server.servable import Servable

    servable = Servable(str(version), Metrics())
    milliseconds = _timed(lambda n: servable.predict("", requests[n % len(requests)]), lambda n: n < 10 * _WARM_CALLS)
    servable.close()
    return round(float(np.percentile(milliseconds, 50)), 3)


def native_levels(version: Path, seconds: float) -> tuple[list[Level], str]:
    """The same load on the servable alone, without Python; or nothing, and why."""
    try:
        report = probe.run(version, CONCURRENCY, seconds, signature=DEFAULT_SIGNATURE, batch=1)
    except probe.ProbeError as error:
        return [], str(error)
    levels = [
        Level("native", t.threads, t.p50_ms, t.p95_ms, t.p99_ms, t.per_second, failures=0) for t in report.timings
    ]
    return levels, ""


def level(name: str, address: str, clients: int, requests: Sequence[Request], seconds: float) -> Level:
    """Closed-loop load of so many clients."""
    times: list[list[float]] = [[] for _ in range(clients)]
    failures: list[str] = []
    with KINDS[name](address, MODEL, timeout=60.0) as client:
        _timed(lambda n: client.predict(requests[n % len(requests)]), lambda n: n < _WARM_CALLS)
        end = time.perf_counter() + seconds

        def run(own: list[float]) -> None:
            try:
                own += _timed(
                    lambda n: client.predict(requests[n % len(requests)]), lambda _: time.perf_counter() < end
                )
            except ServingError as error:
                failures.append(str(error))

        started = time.perf_counter()
        _in_threads(run, times)
        took = time.perf_counter() - started
    milliseconds = [t for own in times for t in own]
    p50, p95, p99 = (round(float(p), 2) for p in np.percentile(milliseconds, (50, 95, 99)))
    return Level(name, clients, p50, p95, p99, round(len(milliseconds) / took, 1), len(failures))


def soak(
    base_path: Path,
    addresses: Mapping[str, str],
    process: psutil.Process,
    requests: Sequence[Request],
    options: argparse.Namespace,
) -> Soak:
    """Fixed load over both interfaces while versions come and go; every answer has to be of one version."""
    column = marked_versions.marked_column(base_path / "1")
    outcome = Soak(options.soak, options.swaps)
    source = base_path.with_name("source")
    shutil.copytree(base_path / "1", source)
    stop = threading.Event()
    lock = threading.Lock()
    answered: set[str] = set()
    milliseconds: list[float] = []

    def run(number: int) -> None:
        name = list(KINDS)[number % len(KINDS)]
        pause = _SOAK_CLIENTS / options.rate
        due = time.perf_counter() + pause * number / _SOAK_CLIENTS
        with KINDS[name](addresses[name], MODEL, timeout=60.0) as client:
            while not stop.wait(max(0.0, due - time.perf_counter())):
                due += pause
                started = time.perf_counter()
                try:
                    answer = client.predict(requests[outcome.requests % len(requests)])
                except ServingError as error:
                    outcome.failures.append(f"{name}: {error}")
                    continue
                took = 1000 * (time.perf_counter() - started)
                texts = [text for text in answer[column].flat if text]
                marks = {text.partition("⟩")[0] if text.startswith("⟨") else "⟨1" for text in texts}
                with lock:
                    outcome.requests += 1
                    milliseconds.append(took)
                    answered.update(marks)
                    if len(marks) > 1 or (answer.version is not None and marks != {f"⟨{answer.version}"}):
                        outcome.mixed.append(f"{name}: version {answer.version}, marks {sorted(marks)}")

    def watch() -> None:
        while not stop.wait(1.0):
            outcome.rss_mb.append(round(process.memory_info().rss / 2**20, 1))

    def swap() -> None:
        started = time.perf_counter()
        with GrpcClient(addresses["gRPC"], MODEL) as client:
            for number in range(2, options.swaps + 2):
                pause = started + (number - 1) * options.soak / (options.swaps + 1) - time.perf_counter()
                time.sleep(max(0.0, pause))
                marked_versions.push(source, base_path / str(number), f"⟨{number}⟩ ")
                deadline = time.perf_counter() + _SWAP_SECONDS
                while client.metadata(timeout=60.0).version != number:
                    if time.perf_counter() > deadline:
                        outcome.failures.append(f"version {number} did not take over in {_SWAP_SECONDS:.0f} s")
                        return
                    time.sleep(0.2)
                shutil.rmtree(base_path / str(number - 1))
            time.sleep(max(0.0, started + options.soak - time.perf_counter()))
        stop.set()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(_SOAK_CLIENTS)]
    threads += [threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    try:
        swap()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    p50, p99, slowest = np.percentile(milliseconds, (50, 99, 100))
    outcome.p50_ms, outcome.p99_ms, outcome.slowest_ms = (round(float(p), 2) for p in (p50, p99, slowest))
    outcome.versions_that_answered = len(answered)
    return outcome


def render_levels(alone: float, levels: Sequence[Level], console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"one request in process: {alone:.2f} ms p50")
    for name in ("interface", "clients", "p50 ms", "p95 ms", "p99 ms", "requests/s", "over in-process p50"):
        table.add_column(name, justify="left" if name == "interface" else "right")
    for one in levels:
        over = f"{one.p50_ms - alone:+.2f} ms, ×{one.p50_ms / alone:.1f}"
        numbers = (f"{one.p50_ms:.2f}", f"{one.p95_ms:.2f}", f"{one.p99_ms:.2f}", f"{one.per_second:.0f}")
        table.add_row(one.interface, str(one.clients), *numbers, over)
    console.print(table)


def render_soak(outcome: Soak, console: Console) -> None:
    early, late = outcome.memory
    console.print(
        f"soak of {outcome.seconds:.0f} s, {outcome.swaps} swaps: {outcome.requests:,} answers from "
        f"{outcome.versions_that_answered} versions, {len(outcome.failures)} failed, {len(outcome.mixed)} mixed; "
        f"p50 {outcome.p50_ms:.1f} ms, p99 {outcome.p99_ms:.1f} ms, slowest {outcome.slowest_ms:.0f} ms; "
        f"server memory {early:.0f} MB early, {late:.0f} MB late (×{late / early:.3f})"
    )
    for line in (outcome.failures + outcome.mixed)[:5]:
        console.print(f"  {line}")


def _timed(call: Callable[[int], object], goes_on: Callable[[int], bool]) -> list[float]:
    milliseconds: list[float] = []
    while goes_on(len(milliseconds)):
        started = time.perf_counter()
        call(len(milliseconds))
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds


def _in_threads(run: Callable[[list[float]], None], arguments: Sequence[list[float]]) -> None:
    threads = [threading.Thread(target=run, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
