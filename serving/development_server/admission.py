"""What a request passes before it is decoded: its size, the number of its fields, and how many are answered at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serving.development_server.errors import invalid
from serving.development_server.limits import Limits, flag

_AT_ONCE = 16
# Decoding may take many times a message's bytes: only one at a time that is larger than this.
_LARGE_BYTES = 2**20
# Below it even the worst message decodes into a few megabytes.
_SCANNED_BYTES = 2**16
# Beside the values themselves: names, dtypes, shapes.
_OTHER_FIELDS = 10_000
# Fields of a PredictRequest that are opened: field → the same of its message. `inputs` (a map entry) → `value` (a
# TensorProto) → `tensor_shape`.
_OPENED: Mapping[int, Any] = {2: {2: {2: {}}}}
_TENSOR = _OPENED[2][2]
# resource_handle_val and variant_val: no signature takes them, and two bytes of them become a hundred.
_NEVER_SERVED = (14, 15)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Admission:
    """Lets requests in, a bounded number at a time, over both interfaces.

    Args:
        limits: Of each.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all = threading.BoundedSemaphore(_AT_ONCE)
        self._large = threading.Lock()

    @contextmanager
    def admitted(self, size: int) -> Iterator[None]:
        """A place for a request of `size` bytes, from its decoding to its answer; waits until there is one."""
        with self._large if size > _LARGE_BYTES else self._all:
            yield

    def check_fields(self, message: bytes) -> None:
        """Refuses a serialized PredictRequest that would decode into many times its bytes.

        A field of two bytes (an empty string, map entry or dimension) becomes an object of up to 170: they are counted
        before they are decoded.

        Raises:
            ServingError: INVALID_ARGUMENT: more fields than `max_values` allows, or a tensor of a dtype that is never
                served. A message that cannot be decoded at all passes; the decoder says so.
        """
        if len(message) > _SCANNED_BYTES:
            _count(message, 0, len(message), _OPENED, self.limits.max_values + _OTHER_FIELDS)


def _count(data: bytes, position: int, end: int, opened: Mapping[int, Any], left: int) -> int:
    """How many of `left` fields are left after those of a message and of the messages in it that are opened."""
    try:
        while position < end:
            left -= 1
            if left < 0:
                raise invalid(f"the request has more values than this server takes ({flag('max_values')})")
            tag, position = _varint(data, position)
            number, kind = tag >> 3, tag & 7
            if opened is _TENSOR and number in _NEVER_SERVED:
                raise invalid("tensor parsing error: tensors of resources and variants are not served")
            if kind == _BYTES:
                length, position = _varint(data, position)
                if number in opened:
                    left = _count(data, position, min(position + length, end), opened[number], left)
                position += length
            elif kind == _VARINT:
                _, position = _varint(data, position)
            else:
                position += {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
    except IndexError:
        # Cut off in a number: the decoder refuses it.
        pass
    return left


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and the position behind it."""
    byte = data[position]
    if byte < 128:
        return byte, position + 1
    number, shift = byte & 127, 7
    while byte >= 128:
        position += 1
        byte = data[position]
        number |= (byte & 127) << shift
        shift += 7
        if shift > 70:
            # Longer than any number: what follows is no message.
            raise IndexError
    return number, position + 1
