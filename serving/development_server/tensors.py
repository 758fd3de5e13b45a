"""Tensor protos as numpy arrays and back, without TensorFlow's copies through Python lists of every element."""

from __future__ import annotations

import math

import numpy as np
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
# A proto of a few bytes can ask for any number of copies of its one value.
_MAX_COPIES = 2**24
_TYPES = {dtype: number for number, (_, dtype) in _FIELDS.items()}


def from_proto(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The tensor as an array; strings as objects.

    Args:
        name: Of the input, for the message.
        proto: With its values in `tensor_content` or in the field of its type, where one value stands for all.

    Raises:
        ServingError: The dtype is not served, or the values do not fill the shape.
    """
    if proto.dtype not in _FIELDS:
        raise invalid(f"input {name!r}: dtype {types_pb2.DataType.Name(proto.dtype)} is not served")
    field, dtype = _FIELDS[proto.dtype]
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise invalid(f"tensor parsing error: {name}: its shape is not known")
    count = math.prod(shape)
    if proto.tensor_content and dtype != np.object_:
        if len(proto.tensor_content) != count * dtype.itemsize:
            raise invalid(f"tensor parsing error: {name}: {len(proto.tensor_content)} bytes for {dtype} {list(shape)}")
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = getattr(proto, field)
    try:
        if len(values) == count:
            return np.array(values, dtype).reshape(shape)
        if len(values) == 1 and count <= _MAX_COPIES:
            return np.full(shape, values[0], dtype)
    except OverflowError as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from None
    raise invalid(f"tensor parsing error: {name}: {len(values)} values for {list(shape)}")


def to_proto(array: np.ndarray, proto: tensor_pb2.TensorProto) -> None:
    """Fills a proto with an array as TF Serving does by default: values in the field of their type."""
    proto.dtype = _TYPES[array.dtype]
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, _FIELDS[proto.dtype][0]).extend(array.ravel().tolist())
