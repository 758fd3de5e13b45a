"""Transformed splits on disk as Transform leaves them, of a checkerboard in which every encoding occurs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from checkerboard import MODEL, TRAINING
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from modules import preprocessing
from modules.data.examples import HELD_OUT, LABEL, RELEVANT, SEQUENCE_PREFIX, TIME, WEIGHT
from modules.encodings.features import Columns, Features
from modules.settings import Model, Training
from modules.towers.terms import encoded_keys
from modules.training import dataset

COLUMNS = Columns(user="user", item="item", timestamp="time")
# Every encoding once in each tower where it can be.
EVERYTHING = Features.model_validate(
    {
        "query": [
            {"column": "user", "encoding": "vocabulary", "dimension": 8},
            {"column": "zip", "encoding": "hash", "buckets": 5, "dimension": 4},
            {"column": "likes", "encoding": "vocabulary", "multivalued": True, "dimension": 4},
            {"column": "words", "encoding": "text", "dimension": 4},
            {"column": "age", "encoding": "bucketized", "boundaries": [30], "dimension": 4},
            {"column": "income", "encoding": "normalized"},
            {"column": "visits", "encoding": "log1p"},
            {"column": "time", "encoding": "timestamp", "buckets": 3, "dimension": 4},
            {"encoding": "history", "max_length": 6},
            {"encoding": "history_age"},
        ],
        "candidate": [
            {"column": "item", "encoding": "vocabulary", "dimension": 8},
            {"column": "shelf", "encoding": "hash", "buckets": 5, "dimension": 4},
            {"column": "title", "encoding": "text", "min_count": 1, "dimension": 4},
            {"column": "genres", "encoding": "vocabulary", "multivalued": True, "dimension": 4},
            {"column": "year", "encoding": "bucketized", "buckets": 2, "dimension": 4},
            {"column": "price", "encoding": "normalized"},
            {"column": "stock", "encoding": "log1p"},
            {"column": "added", "encoding": "timestamp", "buckets": 2, "dimension": 4},
        ],
    }
)
CONTENT_AND_LIKES = Features.model_validate(
    {
        "query": [{"column": "likes", "encoding": "vocabulary", "multivalued": True}],
        "candidate": [{"column": "genres", "encoding": "vocabulary", "multivalued": True}],
    }
)
HASHED_ITEM = Features.model_validate(
    {
        "query": [{"encoding": "history", "max_length": 6}, {"column": "age", "encoding": "normalized"}],
        "candidate": [{"column": "item", "encoding": "hash", "buckets": 500}],
    }
)
USERS, ITEMS, TASTES, PER_USER = 60, 40, 4, 9
# Columns of the interactions table, whose encodings a train example has as lists.
OF_INTERACTIONS = {"time", "visits"}


def split_rows() -> dict[str, list[dict[str, list]]]:
    """A checkerboard: user u likes only items i with i % 4 == u % 4. The last item of a user is validation."""
    rng = np.random.default_rng(3)
    splits: dict[str, list[dict[str, list]]] = {"train": [], "validation": [], "catalogue": []}
    for item in range(ITEMS + 1):
        splits["catalogue"].append(item_columns(item))
    for user in range(USERS):
        taste = user % TASTES
        own = rng.permutation(np.arange(taste, ITEMS, TASTES))[:PER_USER]
        for position, item in enumerate(own):
            row = {
                "user": [f"u{user}"],
                "zip": [f"z{user % 7}"],
                "likes": [f"taste{taste}"],
                "words": [f"I like taste{taste}"],
                "age": [20.0 + user],
                "income": [float(user)],
                "visits": [float(position)],
                "time": [1_600_000_000 + 5000 * position],
                "history": [f"i{i}" for i in own[:position][-6:]],
                "history_age": [5000.0] if position else [],
                WEIGHT: [1.0],
                **item_columns(item),
            }
            splits["validation" if position == PER_USER - 1 else "train"].append(row)
    return splits


def item_columns(item: int) -> dict[str, list]:
    # The last row of the table is a cold item: nobody has interacted with it.
    return {
        "item": [f"i{item}"],
        "shelf": [f"s{item % TASTES}"],
        "title": [f"Thing taste{item % TASTES}"],
        "genres": [f"taste{item % TASTES}", "all"],
        "year": [1990.0 + item],
        "price": [float(item)],
        "stock": [1.0],
        "added": [1_500_000_000 + item],
    }


@dataclass(frozen=True)
class World:
    """Transformed splits, and the graph that made them."""

    folder: Path
    features: Features

    @property
    def tft_output(self) -> tft.TFTransformOutput:
        return tft.TFTransformOutput(str(self.folder / "graph"))

    def fn_args(self, output: Path, model: Model = MODEL, training: Training = TRAINING) -> SimpleNamespace:
        return SimpleNamespace(
            train_files=[str(self.folder / "examples/Split-train/*")],
            eval_files=[str(self.folder / "examples/Split-validation/*")],
            transform_graph_path=str(self.folder / "graph"),
            serving_model_dir=str(output / "serving"),
            model_run_dir=str(output / "run"),
            working_dir=str(output / "work"),
            base_model=None,
            custom_config={
                "features": self.features.model_dump_json(),
                "columns": COLUMNS.model_dump_json(),
                "model": model.model_dump_json(),
                "training": training.model_dump_json(),
                "checkpoint_root": str(output / "checkpoints"),
                "code": "abc",
            },
        )

    def specification(self, model: Model = MODEL, training: Training = TRAINING) -> dataset.Specification:
        files = [str(self.folder / "examples/Split-train/*")]
        return dataset.read_specification(self.features, COLUMNS, model, training, files, self.tft_output)

    def sequences(self) -> dataset.Sequences:
        files = [str(self.folder / "examples/Split-train/*")]
        return dataset.read_sequences(files, self.features, COLUMNS, self.tft_output)

    def queries(self) -> dataset.Queries | None:
        files = [str(self.folder / "examples/Split-validation/*")]
        return dataset.read_queries(files, self.specification(), self.tft_output)


def make_world(features: Features) -> World:
    """Runs Transform's analysis on the interactions, and writes what it encodes as its contract says."""
    folder = Path(tempfile.mkdtemp())
    config = {"features": features.model_dump_json(), "columns": COLUMNS.model_dump_json()}
    splits = split_rows()
    everything = {column for rows in splits.values() for row in rows for column in row}
    kinds = dict.fromkeys(everything, tf.string)
    kinds |= dict.fromkeys(("age", "income", "visits", "history_age", "year", "price", "stock", WEIGHT), tf.float32)
    kinds |= dict.fromkeys(("time", "added"), tf.int64)
    spec = {column: tf.io.VarLenFeature(kind) for column, kind in kinds.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))

    def arrays(rows: list[dict[str, list]]) -> list[dict[str, np.ndarray]]:
        kind = {tf.string: object, tf.float32: np.float32, tf.int64: np.int64}
        return [{c: np.array(row.get(c, []), kind[kinds[c]]) for c in everything} for row in rows]

    encoded: dict[str, list[dict[str, np.ndarray]]] = {}
    with tft_beam.Context(temp_dir=tempfile.mkdtemp()):
        analysed = (arrays(splits["train"] + splits["validation"]), metadata)
        function = analysed | tft_beam.AnalyzeDataset(lambda inputs: preprocessing.preprocessing_fn(inputs, config))
        _ = function | tft_beam.WriteTransformFn(str(folder / "graph"))
        for split, rows in splits.items():
            encoded[split], encoded_metadata = ((arrays(rows), metadata), function) | tft_beam.TransformDataset()
    written = {
        "train": _sequences(encoded["train"], encoded["validation"], features),
        "validation": _queries(encoded["train"], encoded["validation"], features),
        "catalogue": encoded["catalogue"],
    }
    spec = schema_utils.schema_as_feature_spec(encoded_metadata.schema).feature_spec
    for examples in written.values():
        for key, value in examples[0].items():
            if key.startswith(SEQUENCE_PREFIX) or key in ("history", RELEVANT):
                spec[key] = tf.io.VarLenFeature(tf.float32 if value.dtype.kind == "f" else tf.int64)
    schema = schema_utils.schema_from_feature_spec(spec)
    (folder / "graph/transformed_metadata/schema.pbtxt").write_text(text_format.MessageToString(schema))
    for split, examples in written.items():
        _write(folder / f"examples/Split-{split}", examples, spec, schema)
    return World(folder, features)


def _sequences(train: list, validation: list, features: Features) -> list[dict[str, Any]]:
    """One example for each user; the rows come user by user, and each user's validation row is the last one."""
    examples = []
    for user in range(USERS):
        rows = [*train[user * (PER_USER - 1) : (user + 1) * (PER_USER - 1)], validation[user]]
        keys = [k for f in features.query if f.column in OF_INTERACTIONS for k in encoded_keys([f])]
        lists = {key: np.concatenate([np.ravel(row[key]) for row in rows]) for key in keys}
        lists |= {"item": np.array([row[LABEL] for row in rows]), TIME: np.array([row[TIME] for row in rows])}
        lists |= {WEIGHT: np.array([row[WEIGHT] for row in rows]), HELD_OUT: np.array([0] * (PER_USER - 1) + [1])}
        examples.append(rows[0] | {SEQUENCE_PREFIX + key: values for key, values in lists.items()})
    return examples


def _queries(train: list, validation: list, features: Features) -> list[dict[str, Any]]:
    queries = []
    for user, row in enumerate(validation):
        before = [r[LABEL] for r in train[user * (PER_USER - 1) : (user + 1) * (PER_USER - 1)]]
        query = row | {RELEVANT: np.array([row[LABEL]])}
        queries.append(query | ({"history": np.array(before)} if features.history else {}))
    return queries


def _write(folder: Path, examples: list[dict[str, Any]], spec: dict[str, Any], schema: schema_pb2.Schema) -> None:
    folder.mkdir(parents=True)
    empty = {key: np.zeros(0, f.dtype.as_numpy_dtype) for key, f in spec.items() if isinstance(f, tf.io.VarLenFeature)}
    empty |= {key: np.zeros(f.shape, f.dtype.as_numpy_dtype) for key, f in spec.items() if key not in empty}
    coder = tft.coders.ExampleProtoCoder(schema)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(folder / "transformed_examples-00000-of-00001.gz"), options) as writer:
        for example in examples:
            # What a split has as a list, another may have as one value.
            kept = {k: v for k, v in example.items() if not (k == "history" and np.ndim(v) and k not in empty)}
            if "history" in empty and "history" in kept and RELEVANT not in kept:
                kept.pop("history")
            writer.write(coder.encode(empty | kept))
