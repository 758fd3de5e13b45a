"""Transform's preprocessing function and the same graph for raw requests; each feature's encoding says what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import wrap_function
from tensorflow_transform import tf2_utils

from modules import saved_model
from modules.data.examples import HELD_OUT, LABEL, RELEVANT, SEQUENCE_PREFIX, TIME, USER, VALUE_SEPARATOR, WEIGHT
from modules.encodings.base import MISSING_TIMESTAMP, Encoding
from modules.encodings.features import Columns, Features
from modules.encodings.history import FlatHistory, History
from modules.encodings.items import ItemIds
from modules.encodings.values import present, scalar

# Wide enough for no two users to share a number.
_USERS = 2**62
# What a feature is encoded from has this name and its column's bytes in Transform's graph: there a request's own values
# come in.
_READ = "read."
_MISSING = {"string": "", "float32": math.nan, "int64": MISSING_TIMESTAMP}


# Called by Transform, once for the analysis and once to trace the graph that also runs in the servable.
def preprocessing_fn(inputs: dict[str, Any], custom_config: dict[str, str]) -> dict[str, Any]:
    """Encodes every configured feature; shapes and value ranges are in the docstrings of modules/encodings.

    Args:
        inputs: Raw columns as `SparseTensor` [B, ?] (or dense), by name. A split has some of them; others are empty.
        custom_config: `features` and `columns`, the JSON of `Features` and `Columns`.

    Returns:
        By key, with B users, queries or items in a batch:

        - what features encode to, dense; the history whole and sparse (`encodings.history`)
        - `sequence_<key>`: the same for the interactions' own columns in sequences, sparse [B, N · width]
        - `sequence_<item column>` sparse [B, N] ids, `sequence_interaction_time` int64 seconds,
          `sequence_interaction_weight`, `sequence_is_validation`
        - `relevant_items`: sparse [B, R] labels; `label` [B] of an item; `user_hash` [B]
    """
    features = Features.model_validate_json(custom_config["features"])
    columns = Columns.model_validate_json(custom_config["columns"])
    sequences = {key.removeprefix(SEQUENCE_PREFIX): _sparse(values) for key, values in inputs.items()
                 if key.startswith(SEQUENCE_PREFIX)}  # fmt: skip
    taken = sequences[columns.item]
    items = features.items(columns).learn(taken.values)

    outputs: dict[str, Any] = {
        LABEL: items.labels(_first(inputs, columns.item, "string")),
        USER: _user(_first(inputs, columns.user, "string")),
        SEQUENCE_PREFIX + columns.item: taken.with_values(items.ids(taken.values)),
        SEQUENCE_PREFIX + TIME: sequences[columns.timestamp],
        SEQUENCE_PREFIX + WEIGHT: sequences[WEIGHT],
        SEQUENCE_PREFIX + HELD_OUT: sequences[HELD_OUT],
    }
    if RELEVANT in inputs:
        relevant = _sparse(inputs[RELEVANT])
        outputs[RELEVANT] = relevant.with_values(items.labels(relevant.values))
    for feature in features.all:
        raw = present(inputs[feature.column]) if feature.column in inputs else None
        own = sequences.get(feature.column) if feature in features.query else None
        encoded = _encode(feature, raw, own, items)
        twice = outputs.keys() & encoded.keys()
        if twice:
            raise ValueError(f"two features encode to {min(twice)!r}, which a configuration's check refuses")
        outputs |= encoded
    return outputs


def _encode(
    feature: Encoding, raw: tf.SparseTensor | None, sequence: tf.SparseTensor | None, items: ItemIds
) -> dict[str, Any]:
    """A feature of queries, users or items, and the same of each interaction of a sequence."""
    outputs: dict[str, Any] = {}
    own = None if raw is None else feature.read(raw)
    each = None if sequence is None else feature.read(_each(sequence, feature.is_list))
    # Learned from the training period: from each interaction, or else from each user or item once.
    learned = feature.learn(own if each is None else each, items)
    if raw is not None:
        own = _named(own, feature)
        outputs |= zip(feature.keys, feature.encode(own, learned, items), strict=True)
    if sequence is not None:
        for key, values in zip(feature.keys, feature.encode(each, learned, items), strict=True):
            # [N, …] of all users together, row by row → each user's own in one list.
            outputs[SEQUENCE_PREFIX + key] = _widened(sequence, values, feature.encoded[key].width)
    return outputs


def _named(read: tf.Tensor | tf.SparseTensor, feature: Encoding) -> tf.Tensor | tf.SparseTensor:
    if isinstance(read, tf.SparseTensor):
        return read.with_values(_named(read.values, feature))
    return tf.identity(read, _name_of(feature))


def _name_of(feature: Encoding) -> str:
    return _READ + feature.column.encode().hex()


def _widened(sequence: tf.SparseTensor, values: tf.Tensor, width: int) -> tf.SparseTensor:
    """Lists [B, N] whose every element is a row of `values`: [B, N · width]."""
    if width == 1:
        return sequence.with_values(tf.reshape(values, [-1]))
    places = tf.constant([[0, place] for place in range(width)], tf.int64)
    indices = sequence.indices[:, tf.newaxis] * [1, width] + places
    return tf.SparseTensor(tf.reshape(indices, [-1, 2]), tf.reshape(values, [-1]), sequence.dense_shape * [1, width])


def _each(sequence: tf.SparseTensor, is_list: bool) -> tf.Tensor | tf.SparseTensor:
    """The interactions of all users, as if each were a request: [N], or [N, ?] without missing values."""
    if not is_list:
        return sequence.values
    parts = tf.strings.split(sequence.values, VALUE_SEPARATOR)
    return present(parts.to_tensor(default_value=""))


def _first(inputs: Mapping[str, Any], column: str, dtype: str) -> tf.Tensor:
    return scalar(present(inputs[column]), _MISSING[dtype])


def _user(users: tf.Tensor) -> tf.Tensor:
    return tf.where(users == "", tf.zeros([], tf.int64), tf.strings.to_hash_bucket_fast(users, _USERS) + 1)


def _sparse(values: tf.Tensor | tf.SparseTensor) -> tf.SparseTensor:
    """Lists as they are: in an aligned list a missing value keeps its place."""
    return values if isinstance(values, tf.SparseTensor) else tf.sparse.from_dense(values)


def request_signature(features: Sequence[Encoding]) -> dict[str, tf.TensorSpec]:
    """What a client sends for these features: [B], or [B, L] padded with "" for lists.

    A missing value is "", NaN, or -1 for a timestamp.
    """
    return {
        f.column: tf.TensorSpec([None, None] if f.is_list else [None], tf.as_dtype(f.dtype), name=f.column)
        for f in features
    }


def missing(features: Sequence[Encoding], batch: int) -> dict[str, tf.Tensor]:
    """Requests [B] that say nothing of these features."""
    return {
        f.column: tf.zeros([batch, 0], tf.string)
        if f.is_list
        else tf.fill([batch], tf.constant(_MISSING[f.dtype], f.dtype))
        for f in features
    }


def requests_from_examples(serialized: tf.Tensor, features: Sequence[Encoding]) -> dict[str, tf.Tensor]:
    """Reads serialized tf.Examples [B] as a client would send them (`request_signature`), in graph."""
    parsed = tf.io.parse_example(serialized, {f.column: tf.io.VarLenFeature(tf.as_dtype(f.dtype)) for f in features})
    return {
        f.column: tf.sparse.to_dense(parsed[f.column], default_value="")
        if f.is_list
        else scalar(parsed[f.column], _MISSING[f.dtype])
        for f in features
    }


def column_from_examples(serialized: tf.Tensor, column: str) -> tf.Tensor:
    """One string column of serialized tf.Examples [B] as [B, L], padded with ""."""
    parsed = tf.io.parse_example(serialized, {column: tf.io.VarLenFeature(tf.string)})
    return tf.sparse.to_dense(parsed[column], default_value="")


class Preprocessor(tf.Module):
    """Transform's graph for raw requests: the part of it that some features (one tower's) need.

    Args:
        transform: Transform's SavedModel, loaded.
        features: The features whose encodings are wanted.
        item_column: Column of the item's id, which a request then carries too, so that `label` comes out.
    """

    def __init__(self, transform: Any, features: Sequence[Encoding], item_column: str | None = None) -> None:
        super().__init__()
        self._features = tuple(features)
        self._own = {} if item_column is None else {item_column: tf.TensorSpec([None], tf.string, name=item_column)}
        self._history = next((f for f in features if isinstance(f, History)), None)
        keys = [key for feature in features for key in feature.keys]
        wanted = keys if item_column is None else [*keys, LABEL]
        self._encode, part = _pruned(transform.transform_fn, features, list(self._own), wanted)
        self._tables = saved_model.resources(transform, [part])

    def signature(self) -> dict[str, tf.TensorSpec]:
        """The request tensors that a call takes."""
        return self._own | request_signature(self._features)

    def __call__(self, requests: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encodes requests [B], while a function is traced; keys and shapes as the features' `encoded` says."""
        encoded, history = self.flat(requests)
        if history is not None and self._history is not None:
            encoded[self._history.column] = history.dense(self._history.max_length)
        return encoded

    def flat(self, requests: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], FlatHistory | None]:
        """The same with the history, where there is one, as `FlatHistory`."""
        read: dict[str, tf.Tensor] = {}
        for feature in self._features:
            raw = requests[feature.column]
            if feature is self._history:
                there = tf.where(raw != "")
                read[feature.column] = tf.gather_nd(raw, there)
            else:
                read[feature.column] = feature.read(raw if raw.shape.rank == 1 else present(raw))
        encoded = self._encode(read, {name: present(requests[name]) for name in self._own})
        if self._history is None:
            return encoded, None
        ids = encoded.pop(self._history.column)
        batch = tf.shape(requests[self._history.column], tf.int64)[0]
        return encoded, FlatHistory.of(there[:, 0], ids, batch)


def _pruned(
    transform: Any, features: Sequence[Encoding], columns: Sequence[str], keys: Sequence[str]
) -> tuple[Callable[[Mapping[str, tf.Tensor], Mapping[str, tf.SparseTensor]], dict[str, tf.Tensor]], Any]:
    """A function of some features that computes some keys, and nothing else; and the part of the graph that it runs.

    Transform's own layer runs the whole graph for each request, sequences and the other tower's features included.

    Args:
        transform: `transform_fn` of Transform's SavedModel.
        features: What each of them reads is given, dense; of the history its values [N].
        columns: Whose raw values are given beside that.
        keys: What is wanted; it follows from these features and columns. Of the history it is the ids [N].
    """
    graph = transform.graph
    inputs = tf.nest.pack_sequence_as(
        transform.structured_input_signature[0][0],
        graph.inputs[: len(graph.inputs) - len(graph.internal_captures)],
        expand_composites=True,
    )
    outputs = tf.nest.pack_sequence_as(transform.structured_outputs, graph.outputs, expand_composites=True)
    wanted = {key: outputs[key].values if isinstance(outputs[key], tf.SparseTensor) else outputs[key] for key in keys}
    whole = wrap_function.WrappedFunction(graph, wrap_function.VariableHolder(share_variables=True))
    feeds = [graph.get_tensor_by_name(f"{_name_of(feature)}:0") for feature in features]
    feeds += tf.nest.flatten({column: inputs[column] for column in columns}, expand_composites=True)
    # A function waits for all of its look-ups, wanted or not, unless the outputs are taken from before that.
    flat = tf.nest.flatten(wanted)
    fetches, _ = tf2_utils.strip_and_get_tensors_and_control_dependencies(flat)
    pruned = whole.prune(feeds, fetches)
    part = pruned.graph
    needed = _leading_to(part.outputs)
    nodes = part.as_graph_def()
    kept = [node for node in nodes.node if node.name in needed]
    del nodes.node[:]
    nodes.node.extend(kept)

    def encode(read: Mapping[str, tf.Tensor], raw: Mapping[str, tf.SparseTensor]) -> dict[str, tf.Tensor]:
        given = [read[feature.column] for feature in features]
        given += tf.nest.flatten({column: raw[column] for column in columns}, expand_composites=True)
        tables = [tf.compat.v1.get_default_graph().capture(table) for table in part.external_captures]
        # Its nodes become the caller's own. TensorFlow would run a call of it as a graph apart, folding nothing in it.
        values = tf.import_graph_def(
            nodes,
            {p.name: v for p, v in zip(part.inputs, [*given, *tables], strict=True) if p.op.name in needed},
            [tensor.name for tensor in part.outputs],
            name="transform",
        )
        # Pruning forgets them.
        for value, tensor in zip(values, flat, strict=True):
            value.set_shape(tensor.shape)
        return tf.nest.pack_sequence_as(wanted, values)

    return encode, pruned


def _leading_to(outputs: Sequence[tf.Tensor]) -> set[str]:
    """Names of the operations that outputs need.

    A pruned graph has what led to its feeds as well, and a check among that would run and want what nobody gives.
    """
    needed: set[str] = set()
    left = [tensor.op for tensor in outputs]
    while left:
        operation = left.pop()
        if operation.name not in needed:
            needed.add(operation.name)
            left += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return needed
