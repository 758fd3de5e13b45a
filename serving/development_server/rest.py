"""TF Serving's REST interface on Python's own HTTP server."""

from __future__ import annotations

import json
import re
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from serving.development_server import grpc_services, json_tensor
from serving.development_server.errors import ServingError, invalid
from serving.development_server.metrics import Metrics
from serving.development_server.models import LOG, Models

METRICS_PATH = "/monitoring/prometheus/metrics"

# Named as http_rest_api_util.cc names them; the letters' case does not matter there either.
_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/(?P<model>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/(?P<model>[^/:]+))?{_WHICH}(?:/(?P<part>metadata))?", re.IGNORECASE)
_MAX_VERSION = 2**63 - 1
_IDLE_SECONDS = 120.0


class RestServer(ThreadingHTTPServer):
    """A thread per connection, kept alive between requests.

    Args:
        address: Host and port; port 0 takes a free one.
        models: What is asked.
        metrics: What is counted, and shown at `METRICS_PATH`.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True
    # Clients that all connect at once: with Python's 5 the rest waits a second for the kernel's next try.
    request_queue_size = 1024
    # Two servers on one port would share the requests.
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], models: Models, metrics: Metrics) -> None:
        self.models = models
        self.metrics = metrics
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = _IDLE_SECONDS
    server: RestServer

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def _answer(self) -> None:
        started = time.perf_counter()
        path = urlsplit(self.path).path
        content_type, model, code = "application/json", "", "OK"
        try:
            body = self._body()
            if path == METRICS_PATH:
                content, content_type = self.server.metrics.page().encode(), "text/plain"
                self._send(200, content, content_type)
                return
            if not path.lower().startswith("/v1/"):
                raise ServingError(grpc.StatusCode.NOT_FOUND, f"Not found: {path}")
            if self.command == "POST" and (match := _POST.fullmatch(path)):
                model, spec = match["model"], _spec(match)
                content = self._predict(spec, match["method"].lower(), body)
                self.server.metrics.request_latency.add(
                    spec.name, "predict", "REST", seconds=time.perf_counter() - started
                )
            elif self.command == "GET" and (match := _GET.fullmatch(path)):
                model = match["model"] or ""
                content = self._look_up(_spec(match), is_metadata=match["part"] is not None)
            else:
                raise invalid(f"Malformed request: {self.command} {path}")
            status = 200
        except ServingError as error:
            status, code = error.http_status, error.code.name
            content = json.dumps({"error": error.message}).encode()
        except _TooLarge as error:
            status, code = 413, "RESOURCE_EXHAUSTED"
            content = json.dumps({"error": str(error)}).encode()
        except ConnectionError:
            raise
        except Exception as error:
            LOG.exception("%s %s", self.command, path)
            status, code = 500, "INTERNAL"
            content = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        if path.lower().startswith("/v1/"):
            self.server.metrics.request_count.add(model, code)
        self._send(status, content, content_type)

    def _predict(self, spec: model_pb2.ModelSpec, method: str, body: bytes) -> bytes:
        if method != "predict":
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"the development server has no {method}; the model's signatures answer predict",
            )
        request = json_tensor.parse(body)
        spec.signature_name = request.signature
        with self.server.models.servable(spec) as (_, servable):
            try:
                inputs = request.tensors(servable.inputs(request.signature))
            except RecursionError:
                raise invalid("JSON Parse error: lists are nested too deeply") from None
            outputs = grpc_services.timed_predict(self.server.metrics, servable, spec, inputs)
        return json_tensor.write(outputs, request.is_rows)

    def _look_up(self, spec: model_pb2.ModelSpec, is_metadata: bool) -> bytes:
        if not spec.name:
            raise invalid("Missing model name in request.")
        if not is_metadata:
            status = grpc_services.status(self.server.models, spec)
            return json_format.MessageToJson(status, always_print_fields_with_no_presence=True).encode()
        response = grpc_services.metadata(
            self.server.models,
            get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=spec, metadata_field=[grpc_services.SIGNATURE_DEF]
            ),
        )
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[grpc_services.SIGNATURE_DEF].Unpack(signatures)
        content = {
            "model_spec": _as_dict(response.model_spec),
            "metadata": {grpc_services.SIGNATURE_DEF: _as_dict(signatures)},
        }
        return json.dumps(content, indent=1).encode()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self.close_connection = True
            raise invalid("the development server reads bodies with a Content-Length only, not chunked ones")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise invalid(f"Content-Length is not a number: {length}")
        if int(length) > grpc_services.MAX_MESSAGE_BYTES:
            self.close_connection = True
            raise _TooLarge(
                f"the body has {length} bytes; the development server reads {grpc_services.MAX_MESSAGE_BYTES}"
            )
        return self.rfile.read(int(length))

    def _send(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are counted in the metrics."""

    def version_string(self) -> str:
        return "twotower development server"


class _TooLarge(Exception):
    """A body that is not even read."""


def _spec(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match["model"] or ""))
    if match["version"]:
        if int(match["version"]) > _MAX_VERSION:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def _as_dict(message: object) -> dict[str, object]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
