"""Whether the runner of the Beam stages can be reached: asked before anything long starts, answered in one line."""

from __future__ import annotations

import socket

from modules.errors import UserError
from modules.settings import Beam

_SECONDS = 10
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def check(beam: Beam, root: str) -> None:
    """Asks what a run will need.

    Args:
        beam: The section `beam`.
        root: Where artifacts are.

    Raises:
        UserError: The job service or the workers do not answer, nobody is signed in to Google Cloud, or the workers
            will not see the artifacts.
    """
    if beam.job_endpoint is not None:
        check_endpoint("beam.job_endpoint", beam.job_endpoint)
    # Flink and Spark ask from their own nodes, where this address can mean something else.
    if beam.runner == "portable" and beam.worker_pool is not None:
        _connect("beam.worker_pool", beam.worker_pool, "start `python -m pipeline.beam_worker` there")
    if beam.runner == "dataflow":
        if not root.startswith("gs://"):
            raise UserError(
                f"beam.runner: Dataflow's workers cannot see {root}; compile the pipeline for Kubeflow or Vertex AI, "
                "with kubeflow.beam instead of beam (docs/scale.md)"
            )
        _check_credentials()


def check_endpoint(key: str, address: str) -> None:
    """Asks a job service what options it has.

    Beam itself would wait for it as long as for a job to end.

    Args:
        key: What named the address, for messages.
        address: host:port.

    Raises:
        UserError: Nothing answers, or not as a job service does.
    """
    _connect(key, address, "start the job service there")
    # Seconds, that are well spent once somebody listens.
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    try:
        with grpc.insecure_channel(address) as channel:
            beam_job_api_pb2_grpc.JobServiceStub(channel).DescribePipelineOptions(
                beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=_SECONDS
            )
    except grpc.RpcError as error:
        code = error.code().name.lower().replace("_", " ")
        raise UserError(
            f"{key}: what listens at {address} does not answer as a job service of Beam ({code}); correct the address, "
            "or start the job service there again"
        ) from None


def _connect(key: str, address: str, fix: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except OSError as error:
        # A name that nobody knows has no words in `strerror` on some systems.
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        raise UserError(f"{key}: {address} cannot be reached ({reason}); {fix}, or correct the address") from None


def _check_credentials() -> None:
    """Signs in to Google Cloud: the way of a token is the way of the job."""
    import google.auth
    from google.auth import exceptions
    from google.auth.transport import requests

    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
        credentials.refresh(requests.Request())
    except exceptions.GoogleAuthError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"beam.runner: Dataflow cannot be reached, nobody is signed in ({reason}); sign in with `gcloud auth "
            "application-default login`, or give the machine a service account"
        ) from None
