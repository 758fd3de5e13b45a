"""Tensor protos as numpy arrays and back, without TensorFlow's copies through Python lists of every element.

A request's inputs are described first and read second: what is too large is refused before it is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.development_server.errors import invalid

_FIELDS: dict[int, tuple[str, np.dtype]] = {
    types_pb2.DT_FLOAT: ("float_val", np.dtype(np.float32)),
    types_pb2.DT_DOUBLE: ("double_val", np.dtype(np.float64)),
    types_pb2.DT_INT32: ("int_val", np.dtype(np.int32)),
    types_pb2.DT_INT16: ("int_val", np.dtype(np.int16)),
    types_pb2.DT_INT8: ("int_val", np.dtype(np.int8)),
    types_pb2.DT_UINT8: ("int_val", np.dtype(np.uint8)),
    types_pb2.DT_UINT32: ("uint32_val", np.dtype(np.uint32)),
    types_pb2.DT_INT64: ("int64_val", np.dtype(np.int64)),
    types_pb2.DT_UINT64: ("uint64_val", np.dtype(np.uint64)),
    types_pb2.DT_BOOL: ("bool_val", np.dtype(np.bool_)),
    types_pb2.DT_STRING: ("string_val", np.dtype(np.object_)),
}
_TYPES = {dtype: number for number, (_, dtype) in _FIELDS.items()}


class Inputs(Protocol):
    """The inputs of a request in whatever format they came."""

    def shapes(self, dtypes: Mapping[str, np.dtype]) -> dict[str, tuple[int, ...]]:
        """What `arrays` will allocate, without allocating it; inputs that are not there are left out.

        Args:
            dtypes: Of the signature's inputs, by name.

        Raises:
            ServingError: It cannot be known.
        """

    def arrays(self, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
        """The values of every input of the signature; strings as object arrays of bytes.

        Raises:
            ServingError: An input is missing, or its values do not fill its shape.
        """


class ProtoInputs:
    """The inputs of a PredictRequest; all of the signature's and no others.

    Args:
        protos: Each with its values in `tensor_content` or in the field of its type, where one value stands for all.
    """

    def __init__(self, protos: Mapping[str, tensor_pb2.TensorProto]) -> None:
        self._protos = protos

    def shapes(self, dtypes: Mapping[str, np.dtype]) -> dict[str, tuple[int, ...]]:
        _check_names(self._protos.keys(), dtypes.keys())
        return {name: _shape(name, proto) for name, proto in self._protos.items()}

    def arrays(self, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
        return {name: from_proto(name, proto) for name, proto in self._protos.items()}


def from_proto(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The tensor as an array; strings as objects.

    Args:
        name: Of the input, for the message.
        proto: With its values in `tensor_content` or in the field of its type, where one value stands for all.

    Raises:
        ServingError: The dtype is not served, or the values do not fill the shape.
    """
    if proto.dtype not in _FIELDS:
        names = {number: word for word, number in types_pb2.DataType.items()}
        raise invalid(f"input {name!r}: dtype {names.get(proto.dtype, proto.dtype)} is not served")
    field, dtype = _FIELDS[proto.dtype]
    shape = _shape(name, proto)
    count = math.prod(shape)
    if proto.tensor_content and dtype != np.object_:
        if len(proto.tensor_content) != count * dtype.itemsize:
            raise invalid(f"tensor parsing error: {name}: {len(proto.tensor_content)} bytes for {dtype} {list(shape)}")
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = getattr(proto, field)
    try:
        if len(values) == count:
            return np.array(values, dtype).reshape(shape)
        if len(values) == 1:
            return np.full(shape, values[0], dtype)
    except (OverflowError, ValueError) as error:
        # An integer beyond its dtype, or more dimensions than numpy has.
        raise invalid(f"tensor parsing error: {name}: {error}") from None
    raise invalid(f"tensor parsing error: {name}: {len(values)} values for {list(shape)}")


def to_proto(array: np.ndarray, proto: tensor_pb2.TensorProto) -> None:
    """Fills a proto with an array as TF Serving does by default: values in the field of their type."""
    if array.dtype not in _TYPES:
        # No dtype of ours: as TensorFlow itself writes it.
        proto.CopyFrom(tf.make_tensor_proto(array))
        return
    proto.dtype = _TYPES[array.dtype]
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, _FIELDS[proto.dtype][0]).extend(array.ravel().tolist())


def _shape(name: str, proto: tensor_pb2.TensorProto) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise invalid(f"tensor parsing error: {name}: its shape is not known")
    return shape


def _check_names(given: Collection[str], expected: Collection[str]) -> None:
    if set(given) != set(expected):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(expected)} len({{{_joined(given)}}}) != "
            f"len({{{_joined(expected)}}}). Sent extra: {{{_joined(set(given) - set(expected))}}}. "
            f"Missing but required: {{{_joined(set(expected) - set(given))}}}."
        )


def _joined(names: Collection[str]) -> str:
    return ",".join(sorted(names))
