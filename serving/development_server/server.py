"""The server as a whole: two ports over the same models, and a look at their folders every second."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2

from serving.development_server import grpc_services
from serving.development_server.admission import Admission
from serving.development_server.errors import LOG, ServingError, StartError
from serving.development_server.limits import Limits
from serving.development_server.metrics import Metrics
from serving.development_server.models import Models, check_folder, read_config, single_model
from serving.development_server.pages import Pages
from serving.development_server.rest import RestServer
from serving.page.bounds import Bounds

_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Options:
    """What `twotower serve` takes.

    Either `model_config_file`, or `model_name` with `model_base_path`.
    """

    model_name: str = ""
    model_base_path: str = ""
    model_config_file: str = ""
    """A ModelServerConfig in text format; read again whenever it changes."""
    host: str = "127.0.0.1"
    grpc_port: int = 8500
    """0 takes a free one, here and for REST."""
    rest_port: int = 8501
    poll_seconds: float = 1.0
    """How often folders are looked at; TF Serving's default."""
    limits: Limits = field(default_factory=Limits)
    """How large a request may be."""
    page: Bounds | None = field(default_factory=Bounds)
    """How much goes into the page at `/`; None has no page."""
    enable_cors_support: bool = False
    """Lets pages of other origins ask over REST; TF Serving's flag `--rest_api_enable_cors_support`."""


class Server:
    """A running development server; a context manager that stops it.

    Args:
        options: What to serve, and where.

    Raises:
        StartError: A folder or file is missing, the configuration is wrong, or a port is taken.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        for name, port in (("grpc", options.grpc_port), ("rest", options.rest_port)):
            # gRPC would take a larger number modulo 65536.
            if not 0 <= port <= 65535:
                raise StartError(f"--{name}-port {port}: ports are 0 to 65535")
        metrics = Metrics()
        self._config = _config(options)
        self._complaint = ""
        self.models = Models(metrics)
        admission = Admission(options.limits)
        # The ports first: whoever took one already need not wait for the models.
        host = f"[{options.host}]" if ":" in options.host else options.host
        try:
            self._rest = RestServer(
                (options.host, options.rest_port), self.models, metrics, admission,
                None if options.page is None else Pages(self.models, options.page), options.enable_cors_support,
            )  # fmt: skip
        except OSError as error:
            reason = error.strerror or str(error)
            raise StartError(_port_message("rest", options.rest_port, options.host, reason)) from None
        try:
            self._grpc, grpc_port = grpc_services.bind(self.models, metrics, admission, f"{host}:{options.grpc_port}")
        except RuntimeError:
            self._rest.server_close()
            raise StartError(
                _port_message("grpc", options.grpc_port, options.host, "taken, or no address of this machine")
            ) from None
        self.models.reconfigure(self._config)
        self._grpc.start()
        self.grpc_address = f"{host}:{grpc_port}"
        self.rest_address = f"{host}:{self._rest.server_port}"
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._rest.serve_forever, name="rest", daemon=True),
            threading.Thread(target=self._watch, name="watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops listening, answers what is under way, closes every connection, and gives the memory back."""
        self._stopping.set()
        stopped = self._grpc.stop(_GRACE_SECONDS)
        self._rest.stop(_GRACE_SECONDS)
        stopped.wait()
        for thread in self._threads:
            thread.join()
        self.models.close()

    def _watch(self) -> None:
        while not self._stopping.wait(self._options.poll_seconds):
            try:
                if self._options.model_config_file:
                    self._read_config_again()
                self.models.refresh()
            except Exception:
                # Whatever is wrong with a folder, what is loaded goes on answering.
                LOG.exception("the model folders could not be looked at")

    def _read_config_again(self) -> None:
        # Its content and not its time: that may stand still between the emptying and the filling of a file.
        try:
            config = _config(self._options)
            if config != self._config:
                self.models.reconfigure(config)
                LOG.info("%s has been read again", self._options.model_config_file)
            self._config, self._complaint = config, ""
        except (StartError, ServingError) as error:
            if str(error) != self._complaint:
                LOG.error("%s; the configuration stays as it was", error)
            self._complaint = str(error)


def serve(options: Options, announce: Callable[[Server], None]) -> None:
    """Runs a server until SIGINT or SIGTERM.

    Args:
        options: What to serve, and where.
        announce: Called with the server once it listens.

    Raises:
        StartError: As `Server`.
    """
    logging.basicConfig(format="%(asctime)s %(message)s")
    LOG.setLevel(logging.INFO)
    # TensorFlow says at every load that its loader, which TF Serving calls too, is not the newest.
    tf.get_logger().setLevel(logging.ERROR)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Server(options) as server:
        announce(server)
        stop.wait()


def _config(options: Options) -> model_server_config_pb2.ModelServerConfig:
    if options.model_config_file:
        return read_config(options.model_config_file)
    check_folder(options.model_base_path, "--model-base-path")
    base_path = options.model_base_path
    return single_model(options.model_name, base_path if "://" in base_path else os.path.abspath(base_path))


def _port_message(name: str, port: int, host: str, reason: str) -> str:
    return f"--{name}-port {port}: cannot listen on {host}: {reason}; choose another port"
