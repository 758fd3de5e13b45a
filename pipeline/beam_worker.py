"""A pool of Python workers for Beam's portable runners: `python -m pipeline.beam_worker --port 50000`.

Beam has a pool of its own, `apache_beam.runners.worker.worker_pool_main`. What differs here, and why:

- A worker is told the options of the job, as in a container of Beam's: `--beam_plugins` is obeyed, and what the worker
  logs reaches the job service. Beam's pool does that only with the program `boot` of its images.
- Workers have the environment that `twotower` gives itself (`local_runner.quiet_libraries`), however bare the pool's.
- Workers run in the pool's own Python, whatever `python` is on the path.
- A worker that cannot start is said to the runner. One that ends in the middle of a job is said in the pool's log.

Who can reach the port can have code executed here: it belongs on a private network, as with Beam's own.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from apache_beam.runners.worker import worker_pool_main
from google.protobuf import json_format, text_format

from pipeline import local_runner

_LOGGER = logging.getLogger("twotower.beam_worker")
_PROVISION_SECONDS = 60


class Pool(worker_pool_main.BeamFnExternalWorkerPoolServicer):
    """Starts a process for each worker that a runner asks for."""

    def StartWorker(self, start_worker_request: Any, unused_context: Any) -> Any:
        """Starts a worker; what keeps it from starting is in the answer."""
        worker_id = start_worker_request.worker_id
        try:
            environment = {**os.environ, **_of_the_job(start_worker_request)}
            process = subprocess.Popen(
                [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"], env=environment
            )
        except Exception:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        self._worker_processes[worker_id] = process
        _LOGGER.info("worker %s is process %d", worker_id, process.pid)
        threading.Thread(target=self._wait, args=(worker_id, process), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def _wait(self, worker_id: str, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self._worker_processes.pop(worker_id, None)
        how = "is done" if code == 0 else f"was ended by signal {-code}" if code < 0 else f"failed with code {code}"
        _LOGGER.log(logging.ERROR if code else logging.INFO, "worker %s %s", worker_id, how)


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
        "CONTROL_API_SERVICE_DESCRIPTOR": _text(request.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": _text(request.logging_endpoint),
        "PIPELINE_OPTIONS": json_format.MessageToJson(provision.info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(provision.info.runner_capabilities),
    }


def _text(endpoint: endpoints_pb2.ApiServiceDescriptor) -> str:
    return text_format.MessageToString(endpoint, as_one_line=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is ended; its workers end with it."""
    parser = argparse.ArgumentParser(prog="pipeline.beam_worker", description="A pool of Python workers for Beam.")
    parser.add_argument("--port", type=int, default=50000, help="where runners ask for workers (default: 50000)")
    options = parser.parse_args(arguments)
    local_runner.quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # Beam ends the workers when the interpreter exits, which a signal by itself does not let happen.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address, server = Pool.start(use_process=True, port=options.port)
    _LOGGER.info("workers are to be had at %s", address)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
