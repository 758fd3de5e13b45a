"""TF Serving's REST interface on Python's own HTTP server."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from serving.development_server import grpc_services, json_tensor
from serving.development_server.admission import Admission
from serving.development_server.errors import ServingError, as_serving_error, invalid
from serving.development_server.limits import flag
from serving.development_server.metrics import Metrics
from serving.development_server.models import MAX_VERSION, Models
from serving.development_server.pages import HEADERS, PAGE_PATH, Pages

METRICS_PATH = "/monitoring/prometheus/metrics"

# Named as http_rest_api_util.cc names them; the letters' case does not matter there either.
_WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/(?P<model>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/(?P<model>[^/:]+))?{_WHICH}(?:/(?P<part>metadata))?", re.IGNORECASE)
_JSON = "application/json"
# What TF Serving lets pages of other origins do.
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_IDLE_SECONDS = 120.0
_LINGER_SECONDS = 2.0


class RestServer(ThreadingHTTPServer):
    """A thread per connection, kept alive between requests.

    Args:
        address: Host and port; port 0 takes a free one.
        models: What is asked.
        metrics: What is counted, and shown at `METRICS_PATH`.
        admission: What a request passes first.
        pages: What is at `/`; None for nothing.
        has_cors: Whether pages of other origins may ask.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True
    # Clients that all connect at once: with Python's 5 the rest waits a second for the kernel's next try.
    request_queue_size = 1024
    # Two servers on one port would share the requests.
    allow_reuse_port = False

    def __init__(
        self,
        address: tuple[str, int],
        models: Models,
        metrics: Metrics,
        admission: Admission,
        pages: Pages | None,
        has_cors: bool,
    ) -> None:
        self.models = models
        self.metrics = metrics
        self.admission = admission
        self.pages = pages
        self.has_cors = has_cors
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.is_stopping = False
        self._open: set[socket.socket] = set()
        self._idle: set[socket.socket] = set()
        """Those of `_open` that wait for a request."""
        self._changed = threading.Condition()
        super().__init__(address, _Handler)

    def stop(self, grace_seconds: float) -> None:
        """Stops listening, answers what is under way, and closes every connection.

        Args:
            grace_seconds: After these a request that is under way is given up.
        """
        self.shutdown()
        self.server_close()
        with self._changed:
            self.is_stopping = True
            # What was sent already can still be read; then the connection ends as if its client had closed it.
            _end(self._idle, socket.SHUT_RD)
            if not self._changed.wait_for(lambda: not self._open, grace_seconds):
                _end(self._open, socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._open.add(request)
            self._idle.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._idle.discard(request)
            self._open.discard(request)
            self._changed.notify_all()

    def begins(self, connection: socket.socket) -> None:
        """Notes that a request has come."""
        with self._changed:
            self._idle.discard(connection)

    def waits(self, connection: socket.socket) -> bool:
        """Notes that the next request is waited for; False where none may come any more."""
        with self._changed:
            if not self.is_stopping:
                self._idle.add(connection)
            return not self.is_stopping

    def handle_error(self, request: object, client_address: object) -> None:
        """Logs what nobody expected; Python's own would print a traceback for every client that hangs up."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            as_serving_error(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = _IDLE_SECONDS
    server: RestServer
    raw_requestline: bytes

    # For what is answered before the request line has been read: without a version there would be no status line.
    default_request_version = protocol_version

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        if not self.server.waits(self.connection):
            self.close_connection = True

    def parse_request(self) -> bool:
        self.server.begins(self.connection)
        self.command = self.requestline = ""
        if not str(self.raw_requestline, "iso-8859-1").split():
            # Python's server would hang up without a word.
            self.send_error(HTTPStatus.BAD_REQUEST, "Bad request syntax: the request line is empty")
            return False
        return super().parse_request()

    def handle_expect_100(self) -> bool:
        """Sends it at once, for what is written is held back: such a client waits before it sends a body."""
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    def finish(self) -> None:
        """Reads on for a moment: closed with a part unread, a connection is reset, and its client loses the answer."""
        super().finish()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            deadline = time.monotonic() + _LINGER_SECONDS
            while time.monotonic() < deadline and self.connection.recv(2**16):
                pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What Python's server itself refuses: methods, versions, lines and headers that are none."""
        # How far it came with the request is not known; what follows may be its body.
        self.close_connection = True
        text = message or HTTPStatus(code).phrase
        # Its own words for the client, cut as all others are.
        self._send(code, _error(ServingError(grpc.StatusCode.INVALID_ARGUMENT, text).message), _JSON)

    def _answer(self) -> None:
        started = time.perf_counter()
        model, code, is_counted = "", "OK", True
        status, content_type = 200, _JSON
        headers: Mapping[str, str] = {}
        try:
            path = _path(self.path)
            is_counted = path.lower().startswith("/v1/")
            if is_counted and self.server.has_cors:
                headers = _CORS
            body = self._body()
            if path == METRICS_PATH:
                content, content_type = self.server.metrics.page().encode(), "text/plain"
            elif path == PAGE_PATH and self.command in ("GET", "HEAD") and self.server.pages is not None:
                content, content_type = self.server.pages.page(urlsplit(self.path).query), "text/html; charset=utf-8"
                headers = HEADERS
            elif not is_counted:
                raise ServingError(grpc.StatusCode.NOT_FOUND, f"Not found: {path}")
            elif self.command == "POST" and (match := _POST.fullmatch(path)):
                spec = _spec(match)
                model = spec.name
                with self.server.admission.admitted(len(body)):
                    content = self._predict(spec, match["method"].lower(), body)
                self.server.metrics.request_latency.add(
                    spec.name, "predict", "REST", seconds=time.perf_counter() - started
                )
            elif self.command == "GET" and (match := _GET.fullmatch(path)):
                spec = _spec(match)
                model = spec.name
                content = self._look_up(spec, is_metadata=match["part"] is not None)
            elif self.command == "OPTIONS" and (_POST.fullmatch(path) or _GET.fullmatch(path)):
                # What a browser asks before some requests to another origin.
                if not re.search("https?://", self.headers.get("Origin", "")):
                    raise ServingError(
                        grpc.StatusCode.FAILED_PRECONDITION, "Origin header is missing in CORS preflight"
                    )
                content = b""
            else:
                raise invalid(f"Malformed request: {self.command} {path}")
        except ConnectionError:
            raise
        except _TooLarge as error:
            status, code, content = 413, "RESOURCE_EXHAUSTED", _error(str(error))
        except Exception as error:
            failure = as_serving_error(error)
            status, code, content = failure.http_status, failure.code.name, _error(failure.message)
        if is_counted:
            self.server.metrics.request_count.add(self.server.models.label(model), code)
        self._send(status, content, content_type, headers)

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
                # Without a signature REST answers in other words than gRPC.
                servable.inputs(request.signature)
                inputs = servable.read(request.signature, request, self.server.admission.limits)
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
        """The request's body; where it does not say its length, nothing can be read after it either."""
        keeps_open, self.close_connection = self.close_connection, True
        if "Transfer-Encoding" in self.headers:
            raise invalid("the development server reads bodies with a Content-Length only, not chunked ones")
        given = set(self.headers.get_all("Content-Length", ["0"]))
        length = _number(given.pop())
        if length is None or given:
            raise invalid(f"Content-Length is not a number: {self.headers['Content-Length']}")
        most = self.server.admission.limits.max_message_bytes
        if length > most:
            raise _TooLarge(f"the body has {length} bytes; this server takes {most} ({flag('max_message_bytes')})")
        self.close_connection = keeps_open
        return self.rfile.read(length)

    def _send(self, status: int, content: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        # To a request of an older version as well: no client of today reads an answer without headers.
        self.request_version = self.protocol_version
        self.close_connection |= self.server.is_stopping
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
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


def _end(connections: Iterable[socket.socket], how: int) -> None:
    for connection in connections:
        # Its client may have closed it.
        with contextlib.suppress(OSError):
            connection.shutdown(how)


class _TooLarge(Exception):
    """A body that is not even read."""


def _spec(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match["model"] or ""))
    if match["version"]:
        version = _number(match["version"])
        if version is None:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = version
    if match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def _path(target: str) -> str:
    """The path of a request line's target, which may be a whole URL."""
    try:
        return urlsplit(target).path
    except ValueError as error:
        # A host in brackets that is no address.
        raise invalid(f"Malformed request: {target}: {error}") from None


def _number(digits: str) -> int | None:
    """An int64 that is not negative; None for everything else, of any length."""
    if not (digits.isascii() and digits.isdigit()):
        return None
    # Before the conversion: Python refuses thousands of digits with an error of its own.
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) < 20 and int(digits) <= MAX_VERSION else None


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


def _as_dict(message: object) -> dict[str, object]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
