"""Splits as Transform leaves them, of the features of the checkerboard, written without Transform."""

from __future__ import annotations

from pathlib import Path

import checkerboard
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from google.protobuf import text_format
from tensorflow_transform.tf_metadata import schema_utils

from modules.data.examples import TRAIN
from modules.training.dataset import Sequences, Specification
from modules.training.stream import Train, read_train

# As Transform describes it: what is a list for one user, and what is one value.
TRANSFORMED = {
    "user": tf.io.FixedLenFeature([], tf.int64),
    "age": tf.io.FixedLenFeature([], tf.float32),
    "time_bucket": tf.io.FixedLenFeature([], tf.int64),
    "time_cyclic": tf.io.FixedLenFeature([4], tf.float32),
    "history": tf.io.VarLenFeature(tf.int64),
    "history_age": tf.io.FixedLenFeature([], tf.float32),
    "relevant_items": tf.io.VarLenFeature(tf.int64),
    "user_hash": tf.io.FixedLenFeature([], tf.int64),
    "item": tf.io.FixedLenFeature([], tf.int64),
    "genres": tf.io.FixedLenFeature([2], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
    "sequence_item": tf.io.VarLenFeature(tf.int64),
    "sequence_interaction_time": tf.io.VarLenFeature(tf.int64),
    "sequence_interaction_weight": tf.io.VarLenFeature(tf.float32),
    "sequence_is_validation": tf.io.VarLenFeature(tf.int64),
    "sequence_time_bucket": tf.io.VarLenFeature(tf.int64),
    "sequence_time_cyclic": tf.io.VarLenFeature(tf.float32),
}
_MISSING = {"user": 0, "age": 0.0, "time_bucket": 0, "time_cyclic": [0.0] * 4, "history_age": 0.0, "user_hash": 0,
            "item": 0, "genres": [0, 0], "label": 0}  # fmt: skip


def write(folder: Path, split: str, examples: list[dict], shards: int = 2) -> str:
    """The pattern of a split's files."""
    path = folder / "examples" / f"Split-{split}"
    path.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        name = f"transformed_examples-{shard:05d}-of-{shards:05d}.gz"
        with tf.io.TFRecordWriter(str(path / name), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
            for example in examples[shard::shards]:
                features = tf.train.Features()
                for key, value in (_MISSING | example).items():
                    values = np.ravel(value).tolist()
                    if np.asarray(value).dtype.kind == "f" and np.size(value):
                        features.feature[key].float_list.value.extend(values)
                    else:
                        features.feature[key].int64_list.value.extend(map(int, values))
                writer.write(tf.train.Example(features=features).SerializeToString())
    return str(path / "*")


def write_graph(folder: Path) -> tft.TFTransformOutput:
    """The description of the examples, and the vocabulary of two items with their counts."""
    metadata = folder / "graph/transformed_metadata"
    metadata.mkdir(parents=True)
    schema = schema_utils.schema_from_feature_spec(TRANSFORMED)
    (metadata / "schema.pbtxt").write_text(text_format.MessageToString(schema))
    (metadata / "asset_map").write_text('{"items": "items", "items_frequency": "items_frequency"}')
    assets = folder / "graph/transform_fn/assets"
    assets.mkdir(parents=True)
    (assets / "items").write_text("b\na\n")
    (assets / "items_frequency").write_text("5 b\n3 a\n")
    return tft.TFTransformOutput(str(folder / "graph"))


def on_disk(folder: Path, sequences: Sequences, specification: Specification, limit: int, shards: int = 3) -> Train:
    """Sequences that lie in files, read with `training.cache_interactions`."""
    examples = []
    for user in range(len(sequences)):
        own = slice(sequences.offsets[user], sequences.offsets[user + 1])
        about = {"user_hash": sequences.user[user]} | {k: values[user] for k, values in sequences.features.items()}
        lists = {
            "item": sequences.items[own],
            "interaction_time": sequences.times[own],
            "interaction_weight": sequences.weights[own],
            "is_validation": sequences.is_validation[own],
            **{key: values[own] for key, values in sequences.context.items()},
        }
        examples.append(about | {f"sequence_{key}": values for key, values in lists.items()})
    pattern = write(folder, TRAIN, examples, shards)
    cached = checkerboard.changed(specification, cache_interactions=limit)
    return read_train([pattern], cached, write_graph(folder))
