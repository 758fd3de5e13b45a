"""The embedding model, which the Trainer exports and every servable carries: its signatures and what they read.

Both the export and a servable are a SavedModel with the signatures `query_embedding`, `candidate_embedding` and
`explain_embedding`. Whoever wants the towers of one takes what these read, so that nothing depends on how a SavedModel
is built inside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from modules import saved_model
from modules.encodings.features import Features
from modules.preprocessing import column_from_examples, requests_from_examples
from modules.servable.contract import (
    CANDIDATE_EMBEDDING,
    EMBEDDING_PATH,
    EXPLAIN_EMBEDDING,
    QUERY_EMBEDDING,
    EmbeddingContract,
)
from modules.towers.layout import VectorLayout

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Embedding(tf.Module):
    """The two towers inside a loaded SavedModel, to be saved again inside another one.

    Args:
        loaded: The Trainer's export, or a servable.
        contract: What it says of its towers.
    """

    def __init__(self, loaded: Any, contract: EmbeddingContract) -> None:
        super().__init__()
        self.contract = contract
        # What was made before there was the last one goes on without it.
        names = [QUERY_EMBEDDING, CANDIDATE_EMBEDDING, *{EXPLAIN_EMBEDDING}.intersection(loaded.signatures)]
        self.signatures = {name: loaded.signatures[name] for name in names}
        view = tf.train.TrackableView(loaded)
        self.fitted = {name: _at(view, key) for name, key in contract.variables.items()}
        self.resources = saved_model.resources(loaded, self.signatures.values())

    def inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        """What a signature takes, by name."""
        specs = self.signatures[signature].structured_input_signature[1]
        return {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}

    def query(self, **requests: tf.Tensor) -> tf.Tensor:
        """[B, D] query vectors of raw requests."""
        return self.signatures[QUERY_EMBEDDING](**requests)["embedding"]

    def candidate(self, **requests: tf.Tensor) -> dict[str, tf.Tensor]:
        """`embedding` [B, D] and `popularity` [B] of raw items."""
        return self.signatures[CANDIDATE_EMBEDDING](**requests)


def candidate_requests(examples: tf.Tensor, features: Features, item_column: str) -> dict[str, tf.Tensor]:
    """Serialized catalogue examples [B] as requests to `candidate_embedding`: candidate features and the item id."""
    requests = requests_from_examples(examples, features.candidate)
    if item_column not in requests:
        requests[item_column] = column_from_examples(examples, item_column)[:, 0]
    return requests


def save(
    module: tf.Module,
    signatures: Mapping[str, Any],
    folder: str,
    features: Features,
    layout: VectorLayout,
    variables: Mapping[str, tf.Variable],
) -> None:
    """Writes an embedding model with its contract.

    Args:
        module: Tracks all that the signatures read.
        signatures: `query_embedding`, `candidate_embedding` and `explain_embedding`, as traced functions.
        folder: Where to.
        features: As the towers were fitted with.
        layout: Which dimensions of a vector mean what.
        variables: What a warm start takes over, by names that do not depend on the order of features.
    """
    exported = tf.Module()
    exported.fitted, exported.model = dict(variables), module
    tf.saved_model.save(exported, folder, dict(signatures))
    contract = EmbeddingContract(features=features, layout=layout, variables=checkpoint_keys(folder, "fitted"))
    tf.io.gfile.makedirs(os.path.join(folder, os.path.dirname(EMBEDDING_PATH)))
    with tf.io.gfile.GFile(os.path.join(folder, EMBEDDING_PATH), "w") as file:
        file.write(contract.model_dump_json(indent=2))


def read_variables(folder: str, contract: EmbeddingContract) -> dict[str, np.ndarray]:
    """The values that a warm start takes over, by name, without loading the model.

    Args:
        folder: The Trainer's export, or a servable.
        contract: What it says of its towers.
    """
    reader = tf.train.load_checkpoint(os.path.join(folder, "variables", "variables"))
    return {name: reader.get_tensor(key) for name, key in contract.variables.items()}


def checkpoint_keys(folder: str, *path: str) -> dict[str, str]:
    """Keys in a SavedModel's checkpoint of the variables in a dict, by the dict's keys.

    Args:
        folder: The SavedModel.
        path: Attributes that lead from the saved object to the dict.
    """
    reader = tf.train.load_checkpoint(os.path.join(folder, "variables", "variables"))
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(_OBJECT_GRAPH))
    node = graph.nodes[0]
    for name in path:
        node = graph.nodes[_children(node)[name]]
    return {name: graph.nodes[child].attributes[0].checkpoint_key for name, child in _children(node).items()}


def _children(node: Any) -> dict[str, int]:
    return {child.local_name: child.node_id for child in node.children}


def _at(view: tf.train.TrackableView, key: str) -> tf.Variable:
    """The variable under a key of the checkpoint: a key is a path of attributes from the root to a value."""
    node = view.root
    for part in key.removesuffix(_VALUE).split("/"):
        # As TensorFlow escapes names that hold a slash or a dot.
        name = re.sub(r"\.([S.])", lambda match: "/" if match[1] == "S" else ".", part)
        node = view.children(node)[name]
    return node
