"""TF Serving's JSON for predict requests and answers, rows and columns (util/json_tensor.cc of TensorFlow Serving)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from serving.development_server.errors import ServingError, invalid

_ALLOWED: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}
"""Kind of a numpy dtype → what JSON values it takes."""
_TYPE_WORDS = {"f4": "float", "f8": "double", "b1": "bool"}
_DEBUG_CHARACTERS = 256
_TYPE_NAMES = {
    type(None): "Null", bool: "Bool", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number",
}  # fmt: skip


@dataclass(frozen=True)
class PredictBody:
    """A parsed request whose tensors wait for the signature's dtypes: the `Inputs` of a request in JSON."""

    signature: str
    content: Any
    """The value of `instances` or `inputs`."""
    is_rows: bool

    def shapes(self, dtypes: Mapping[str, np.dtype]) -> dict[str, tuple[int, ...]]:
        """Of the inputs that are there, by their first elements; `arrays` finds out whether the others fit."""
        content = self.content[0] if self.is_rows else self.content
        if not _is_object(content):
            content = dict.fromkeys(list(dtypes)[:1], content)
        batch = (len(self.content),) if self.is_rows else ()
        return {name: (*batch, *_shape(content[name])) for name in dtypes if name in content}

    def arrays(self, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
        """The inputs by name.

        Args:
            dtypes: Of the signature's inputs, by name.

        Raises:
            ServingError: A value does not fit its dtype, lists are uneven, or an input is missing.
        """
        return _from_rows(self.content, dtypes) if self.is_rows else _from_columns(self.content, dtypes)


def parse(body: bytes) -> PredictBody:
    """Reads a predict request.

    Raises:
        ServingError: Not JSON, or not an object with one of `instances` and `inputs`.
    """
    document = _document(body)
    signature = document.get("signature_name", "")
    if isinstance(signature, str):
        _encoded(signature)
    if not isinstance(signature, str):
        raise invalid(
            f"JSON Value: {_in_short(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    if "instances" in document and "inputs" in document:
        raise _misformed(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        )
    if "instances" in document:
        if not isinstance(document["instances"], list):
            raise _misformed(document, "Expecting 'instances' to be an list/array")
        if not document["instances"]:
            raise _misformed(document, "No values in 'instances' array")
        return PredictBody(signature, document["instances"], True)
    if "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    return PredictBody(signature, document["inputs"], False)


def write(outputs: Mapping[str, np.ndarray], is_rows: bool) -> bytes:
    """An answer in the format of its request: `predictions`, one entry per row, or `outputs`.

    Raises:
        ServingError: Rows are asked for, and the outputs have no common first dimension.
    """
    values = {name: _values(name, array) for name, array in outputs.items()}
    if not is_rows:
        content: Any = values if len(values) > 1 else next(iter(values.values()))
        return json.dumps({"outputs": content}).encode()
    sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
    expected = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size is None:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size != expected:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {size} expecting: {expected}")
    if len(values) == 1:
        return json.dumps({"predictions": next(iter(values.values()))}).encode()
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return json.dumps({"predictions": rows}).encode()


def _document(body: bytes) -> dict[str, Any]:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode().lstrip()
        # What follows the document is not looked at, as in TF Serving.
        document, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from None
    except (RecursionError, ValueError) as error:
        # Nested or long beyond what Python's parser takes.
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise _misformed(document, "Is not object")
    return document


def _from_rows(rows: list[Any], dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    are_objects = _is_object(rows[0])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in dtypes}
    for number, row in enumerate(rows):
        if _is_object(row) != are_objects:
            was, expected = ("list", "object") if are_objects else ("object", "value/list")
            raise invalid(f"Expecting {expected} but got {was} at item {number} of input list")
        named = row if are_objects else {next(iter(dtypes)): row}
        for name, value in named.items():
            try:
                if name not in dtypes:
                    raise invalid(f"JSON object: does not have named input: {name}")
                tensor = _tensor(value, dtypes[name])
                if parts[name] and parts[name][0].shape != tensor.shape:
                    expecting, got = (str(list(p.shape)).replace(" ", "") for p in (parts[name][0], tensor))
                    raise invalid(f"Expecting shape {expecting} but got: {got}")
            except ServingError as error:
                key = f" key: {name}" if are_objects else ""
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. "
                    f"Error: INVALID_ARGUMENT: {error.message}"
                ) from None
            parts[name].append(tensor)
        if named.keys() != dtypes.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {_in_short(row)} keys must be "
                f"equal to: {','.join(sorted(dtypes))}"
            )
    return {name: np.stack(tensors) for name, tensors in parts.items()}


def _from_columns(content: Any, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    if not _is_object(content):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        content = {next(iter(dtypes)): content}
    for name in dtypes:
        if name not in content:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    tensors = {}
    for name, dtype in dtypes.items():
        try:
            tensors[name] = _tensor(content[name], dtype)
        except ServingError as error:
            # TF Serving does not say which input it was.
            raise invalid(f"Failed to process input: {name}. Error: {error.message}") from None
    return tensors


def _tensor(value: Any, dtype: np.dtype) -> np.ndarray:
    """A value or nested lists of equal lengths as an array."""
    shape = _shape(value)
    flat: list[Any] = []
    _flatten(value, 0, shape, flat)
    tensor = np.empty(len(flat), dtype)
    try:
        tensor[:] = _checked(flat, dtype)
    except OverflowError as error:
        raise invalid(f"JSON Value: {error}") from None
    try:
        return tensor.reshape(shape)
    except ValueError as error:
        # More dimensions than numpy has.
        raise invalid(f"JSON Value: {_in_short(value)} {error}") from None


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _flatten(value: Any, level: int, shape: list[int], flat: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_in_short(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        flat.append(value)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    if level == len(shape) - 1 and list not in set(map(type, value)):
        flat.extend(value)
        return
    for element in value:
        _flatten(element, level + 1, shape, flat)


def _checked(values: list[Any], dtype: np.dtype) -> list[Any]:
    if dtype.kind == "O":
        return [_encoded(v) if type(v) is str else _from_base64(v, dtype) for v in values]
    types = set(map(type, values))
    allowed = _ALLOWED.get(dtype.kind)
    if allowed is None:
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"Conversion of JSON values to type: {_type_name(dtype)}")
    if not types <= allowed:
        raise _wrong_type(next(v for v in values if type(v) not in allowed), dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for value in values:
            if not limits.min <= value <= limits.max:
                raise _wrong_type(value, dtype)
    return values


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _from_base64(value: Any, dtype: np.dtype) -> bytes:
    if not _is_base64(value):
        if isinstance(value, dict):
            raise invalid(f"JSON Value: {_in_short(value)} not formatted correctly for base64 data")
        raise _wrong_type(value, dtype)
    try:
        return base64.b64decode(value["b64"] + "=" * (-len(value["b64"]) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _values(name: str, array: np.ndarray) -> Any:
    """Nested lists for JSON; floats with the digits of their own precision, not those of the double they become."""
    if array.dtype.kind == "O":
        is_bytes = name.endswith("_bytes")
        texts = np.empty(array.size, object)
        texts[:] = [_to_base64(v) if is_bytes else v.decode("utf-8", "replace") for v in array.ravel().tolist()]
        return texts.reshape(array.shape).tolist()
    if array.dtype == np.float32:
        return array.astype("U").astype(np.float64).tolist()
    return array.tolist()


def _to_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _wrong_type(value: Any, dtype: np.dtype) -> ServingError:
    return invalid(
        f"JSON Value: {_in_short(value)} Type: {_TYPE_NAMES[type(value)]} is not of expected type: {_type_name(dtype)}"
    )


def _misformed(document: Any, message: str) -> ServingError:
    return invalid(f"JSON Value: {_in_short(document)} {message}")


def _type_name(dtype: np.dtype) -> str:
    return _TYPE_WORDS.get(dtype.kind + str(dtype.itemsize), "string" if dtype.kind == "O" else str(dtype))


def _in_short(value: Any) -> str:
    """The beginning of a value's JSON; what is longer is not written out to be thrown away."""
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part
        if len(text) >= _DEBUG_CHARACTERS:
            break
    return text[:_DEBUG_CHARACTERS]
