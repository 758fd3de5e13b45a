"""What a request gets that cannot be answered: a gRPC status code and a message, whatever went wrong."""

from __future__ import annotations

import logging

import click
import grpc

LOG = logging.getLogger("twotower.serving")

_HTTP_STATUS = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
# gRPC sends a message among the headers, of which clients take 8 KB; a byte that is not printable ASCII takes three.
_MAX_ASCII, _MAX_OTHER = 1500, 500
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class StartError(click.ClickException):
    """A person's mistake that keeps the server from starting, in one line; this folder's own type of it."""


class ServingError(Exception):
    """What TF Serving answers instead of a result.

    Args:
        code: The gRPC status; REST answers with the HTTP status that TF Serving maps it to.
        message: What is wrong, for the person who sent the request. What is too long, for instance because it repeats
            a name of the request, loses its middle.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        message = _cut(message)
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        return _HTTP_STATUS.get(self.code, 500)


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT, by far the most frequent."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def as_serving_error(error: Exception) -> ServingError:
    """What a request gets that failed with any exception; one that nobody expected is logged.

    Args:
        error: Being handled.
    """
    if isinstance(error, ServingError):
        return error
    if isinstance(error, MemoryError):
        return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server has no memory left for this request")
    LOG.error("a request failed", exc_info=error)
    return ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def code_of(number: int) -> grpc.StatusCode:
    """The gRPC status with a number; TensorFlow's errors have the same numbers."""
    return _BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)


def _cut(message: str) -> str:
    limit = _MAX_ASCII if message.isascii() and message.isprintable() else _MAX_OTHER
    if len(message) <= limit:
        return message
    # The end often says what was expected.
    tail = limit // 3
    return f"{message[: limit - tail - 1]}…{message[-tail:]}"
