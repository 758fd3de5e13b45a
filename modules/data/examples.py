"""Examples: their splits, their keys, and how cells become serialized tf.Examples.

Imports TensorFlow only to write one.

InteractionExampleGen writes four splits:

- `train`: one example for each user. The user's columns once; and as aligned lists, oldest first, what belongs to each
  of the user's train and validation interactions: `sequence_<key>` for the item, the time, the weight, whether the
  interaction is held out for validation, and the interactions table's own query features.
- `validation`, `eval`: queries. The user's columns, the time of asking, the own query features of the first asked
  interaction, the history and its age as they were known then, the relevant items, the slices.
- `catalogue`: one example for each item.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, Union

import numpy as np

TRAIN, VALIDATION, EVAL, CATALOGUE = "train", "validation", "eval", "catalogue"
"""The splits: sequences to fit, queries to stop early by, queries to judge by, items."""

# Keys that the pipeline itself adds; a table's column may not have these names.
SEQUENCE_PREFIX = "sequence_"
"""Prefix of the lists of a train example, raw and transformed."""
HELD_OUT = "is_validation"
"""With the prefix: int64, 1 where an interaction belongs to validation, which the fit leaves out until the refit, else
0."""
WEIGHT = "interaction_weight"
"""With the prefix: the configured weights of the interactions, 1.0 where there is none."""
RELEVANT = "relevant_items"
"""All items that count as hits for a query: what the user interacts with later."""
SLICE_PREFIX = "slice_"
"""Prefix of the string columns that the Evaluator slices by: `slice_gender`, `slice_age`, `slice_activity`."""
LABEL = "label"
"""Transformed example of an item: its index in the item vocabulary, [B] int64, 0 when it is not in there."""
USER = "user_hash"
"""Transformed example: whose it is, [B] int64, a hash of the user id; 0 when it is missing. No tower reads it."""
TIME = "interaction_time"
"""Transformed example: when it happened, int64 seconds. No tower reads it."""

VALUE_SEPARATOR = "\x1f"
"""Joins the values of one cell where a list has an element for each interaction (U+001F, made to separate units)."""

Kind = Literal["string", "float32", "int64"]
Value = Union[bytes, list[bytes], float, int, None]
"""One cell of a table; None when there is nothing to write."""


def aligned(cells: Sequence[Value], kind: Kind) -> np.ndarray:
    """Cells as the elements of an aligned list, [N] objects of type bytes, float32 or int64.

    A missing cell is "", NaN or −1; the values of a cell that has several are joined by `VALUE_SEPARATOR`.
    """
    if kind == "string":
        separator = VALUE_SEPARATOR.encode()
        joined = (separator.join(cell) if isinstance(cell, list) else cell for cell in cells)
        return np.array([cell or b"" for cell in joined], object)
    missing, dtype = (math.nan, np.float32) if kind == "float32" else (-1, np.int64)
    return np.array([missing if cell is None else cell for cell in cells], dtype)


def cell(element: bytes | np.floating | np.integer, multivalued: bool) -> Value:
    """The cell that became this element of an aligned list; None for a missing one."""
    if isinstance(element, bytes):
        if not element:
            return None
        return element.split(VALUE_SEPARATOR.encode()) if multivalued else element
    if isinstance(element, np.floating):
        return None if np.isnan(element) else float(element)
    return None if element < 0 else int(element)


def features(cells: Iterable[tuple[str, Value | Sequence[bytes] | np.ndarray]]) -> bytes:
    """Serialized tf.train.Features of a cell or a list per key; what is missing or empty leaves its key out.

    Concatenated, they are the union of their keys: concatenation of serialized messages merges them
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins). So what many examples share is encoded once.
    """
    import tensorflow as tf

    message = tf.train.Features()
    for key, value in cells:
        if value is None or (not isinstance(value, (int, float)) and len(value) == 0):
            continue
        feature = message.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        elif isinstance(value, float):
            feature.float_list.value.append(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            feature.float_list.value.extend(value.tolist())
        elif isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            feature.int64_list.value.extend(value.tolist())
        else:
            feature.bytes_list.value.extend(value)
    # Map keys come in the order of their hashes otherwise; the same tables shall give the same bytes.
    return message.SerializeToString(deterministic=True)


def example(*features: bytes) -> bytes:
    """A serialized tf.train.Example of serialized features: field 1, its length, its bytes."""
    body = b"".join(features)
    length, varint = len(body), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return b"\x0a" + varint + body
