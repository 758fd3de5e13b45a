"""A pool of Python workers for Beam's portable runners: `python -m pipeline.beam_worker --port 50000`.

Beam has a pool of its own, `apache_beam.runners.worker.worker_pool_main`. What differs here, and why:

- A worker is told the options of the job, as in a container of Beam's: `--beam_plugins` is obeyed, and what the worker
  logs reaches the job service. Beam's pool does that only with the program `boot` of its images.
- Workers have the environment that `twotower` gives itself (`local_runner.quiet_libraries`), however bare the pool's.
- Workers run in the pool's own Python, whatever `python` is on the path.
- A worker that dies, or cannot even start, is told to the runner as the failure of what it was doing. Beam's own job
  service notices a death by the data that stay away, and waits for ever where none were to come.

Who can reach the port can have code executed here: it belongs on a private network, as with Beam's own.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format

from pipeline import local_runner

_LOGGER = logging.getLogger("twotower.beam_worker")
_PROVISION_SECONDS = 60
_GRACE_SECONDS = 10
# As Beam sets them between runner and worker: messages of any size, and as many pings as come.
_CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
]


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts a process for each worker that a runner asks for."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def StartWorker(self, request: Any, context: Any) -> Any:
        """Starts a worker; what keeps it from starting is in the answer."""
        try:
            # A later job may use a name again.
            self._workers[request.worker_id] = Worker(request)
        except Exception:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:
        """Ends a worker."""
        worker = self._workers.pop(request.worker_id, None)
        if worker is not None:
            worker.stop()
        return beam_fn_api_pb2.StopWorkerResponse()

    def stop(self) -> None:
        """Ends all workers."""
        for worker in self._workers.values():
            worker.stop()


class Worker(beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """A worker's process, and the door between it and its runner.

    Instructions and their outcomes pass through here, so that what a dead process leaves undone can be answered. Data
    and state go from one to the other.
    """

    def __init__(self, request: Any) -> None:
        self.id = request.worker_id
        self._lock = threading.Lock()
        self._undone: set[str] = set()
        self._ended = ""
        """How the process ended, in words; "" while it runs."""
        self._instructions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        environment = {**os.environ, **_of_the_job(request)}

        self._channel = grpc.insecure_channel(request.control_endpoint.url, options=_CHANNEL)
        self._runner = beam_fn_api_pb2_grpc.BeamFnControlStub(self._channel)
        self._server = grpc.server(futures.ThreadPoolExecutor(), options=_CHANNEL)
        beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(self, self._server)
        door = endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{self._server.add_insecure_port('localhost:0')}")
        self._server.start()
        environment["CONTROL_API_SERVICE_DESCRIPTOR"] = _text(door)
        command = [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"]
        self._process = subprocess.Popen(command, env=environment)
        _LOGGER.info("%s is process %d", self.id, self._process.pid)
        for target in (self._listen_to_runner, self._wait):
            threading.Thread(target=target, daemon=True).start()

    def stop(self) -> None:
        """Ends the process, kindly at first."""
        self._process.terminate()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def Control(self, outcomes: Iterator[Any], context: Any) -> Iterator[Any]:
        """What the process calls: takes its outcomes, gives it the runner's instructions."""
        threading.Thread(target=self._listen_to_process, args=(outcomes,), daemon=True).start()
        yield from iter(self._instructions.get, None)

    def GetProcessBundleDescriptor(self, request: Any, context: Any) -> Any:
        """What the process asks when an instruction names a piece of the pipeline that it has not seen yet."""
        return self._runner.GetProcessBundleDescriptor(request)

    def _listen_to_runner(self) -> None:
        outcomes = iter(self._outcomes.get, None)
        try:
            for instruction in self._runner.Control(outcomes, metadata=[("worker_id", self.id)]):
                with self._lock:
                    if self._ended:
                        self._fail(instruction.instruction_id)
                    else:
                        self._undone.add(instruction.instruction_id)
                        self._instructions.put(instruction)
        except grpc.RpcError as error:
            _LOGGER.error("%s has lost its runner: %s", self.id, error.code())
        # No more work: the process ends by itself.
        self._instructions.put(None)

    def _listen_to_process(self, outcomes: Iterator[Any]) -> None:
        try:
            for outcome in outcomes:
                with self._lock:
                    self._undone.discard(outcome.instruction_id)
                    self._outcomes.put(outcome)
        except grpc.RpcError:
            # The process has gone, which `_wait` sees as well.
            return

    def _wait(self) -> None:
        code = self._process.wait()
        with self._lock:
            how = "is done" if code == 0 else f"was ended by signal {-code}" if code < 0 else f"failed with code {code}"
            self._ended = f"{self.id} {how}"
            for instruction_id in sorted(self._undone):
                self._fail(instruction_id)
            self._undone.clear()
        _LOGGER.log(logging.ERROR if code else logging.INFO, self._ended)
        self._server.stop(_GRACE_SECONDS)

    def _fail(self, instruction_id: str) -> None:
        self._outcomes.put(beam_fn_api_pb2.InstructionResponse(instruction_id=instruction_id, error=self._ended))


def _of_the_job(request: Any) -> dict[str, str]:
    """The environment variables by which Beam's containers tell a worker whom it works for, and how."""
    with grpc.insecure_channel(request.provision_endpoint.url) as channel:
        provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel).GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            timeout=_PROVISION_SECONDS,
            metadata=[("worker_id", request.worker_id)],
        )
    return {
        "WORKER_ID": request.worker_id,
        "LOGGING_API_SERVICE_DESCRIPTOR": _text(request.logging_endpoint),
        "PIPELINE_OPTIONS": json_format.MessageToJson(provision.info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(provision.info.runner_capabilities),
    }


def _text(endpoint: endpoints_pb2.ApiServiceDescriptor) -> str:
    return text_format.MessageToString(endpoint, as_one_line=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is ended by SIGTERM or Ctrl-C; its workers end with it."""
    parser = argparse.ArgumentParser(prog="pipeline.beam_worker", description="A pool of Python workers for Beam.")
    parser.add_argument("--port", type=int, default=50000, help="where runners ask for workers (default: 50000)")
    options = parser.parse_args(arguments)
    local_runner.quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pool = Pool()
    server = grpc.server(futures.ThreadPoolExecutor(), options=_CHANNEL)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    port = server.add_insecure_port(f"[::]:{options.port}")
    server.start()
    _LOGGER.info("workers are to be had at port %d", port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.wait_for_termination()
    except KeyboardInterrupt:
        pool.stop()


if __name__ == "__main__":
    main()
