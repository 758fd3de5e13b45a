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
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from modules import beam_signatures, preprocessing
from modules.data.examples import HELD_OUT, RELEVANT, SEQUENCE_PREFIX, WEIGHT
from modules.encodings.features import Columns, Features
from modules.settings import Model, Training
from modules.training import dataset, stream

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
# What stands in for tables of tens of millions of ids: hashed by two functions, or capped by frequency.
LARGE_TABLES = Features.model_validate(
    {
        "query": [
            {"column": "user", "encoding": "hash", "buckets": 20, "functions": 2, "dimension": 8},
            {"encoding": "history", "max_length": 6},
        ],
        "candidate": [
            {"column": "item", "encoding": "vocabulary", "max_size": 24},
            {"column": "shelf", "encoding": "hash", "buckets": 30, "functions": 2, "dimension": 4},
        ],
    }
)
USERS, ITEMS, TASTES, PER_USER = 60, 40, 4, 9


def split_rows() -> dict[str, list[dict[str, list]]]:
    """A checkerboard: user u likes only items i with i % 4 == u % 4. The last item of a user is validation.

    As InteractionExampleGen writes it: users' sequences, queries, items.
    """
    rng = np.random.default_rng(3)
    splits: dict[str, list[dict[str, list]]] = {"train": [], "validation": [], "catalogue": []}
    for item in range(ITEMS + 1):
        splits["catalogue"].append(item_columns(item))
    for user in range(USERS):
        taste = user % TASTES
        own = [f"i{item}" for item in rng.permutation(np.arange(taste, ITEMS, TASTES))[:PER_USER]]
        places = range(PER_USER)
        about = {
            "user": [f"u{user}"],
            "zip": [f"z{user % 7}"],
            "likes": [f"taste{taste}"],
            "words": [f"I like taste{taste}"],
            "age": [20.0 + user],
            "income": [float(user)],
        }
        lists = {
            "item": own,
            "time": [1_600_000_000 + 5000 * place for place in places],
            "visits": [float(place) for place in places],
            WEIGHT: [1.0] * PER_USER,
            HELD_OUT: [0] * (PER_USER - 1) + [1],
        }
        query = {
            "visits": lists["visits"][-1:],
            "time": lists["time"][-1:],
            "history": own[:-1],
            "history_age": [5000.0],
            RELEVANT: own[-1:],
        }
        splits["train"].append(about | {SEQUENCE_PREFIX + key: values for key, values in lists.items()})
        splits["validation"].append(about | query)
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
                **self.settings(model, training),
                "checkpoint_root": str(output / "checkpoints"),
                "code": "abc",
            },
        )

    def settings(self, model: Model, training: Training) -> dict[str, str]:
        """The part of a custom_config that says what is fitted."""
        settings = {"features": self.features, "columns": COLUMNS, "model": model, "training": training}
        return {key: value.model_dump_json() for key, value in settings.items()}

    def specification(self, model: Model = MODEL, training: Training = TRAINING) -> dataset.Specification:
        files = [str(self.folder / "examples/Split-train/*")]
        return dataset.read_specification(self.settings(model, training), files, self.tft_output)

    def sequences(self) -> stream.Train:
        files = [str(self.folder / "examples/Split-train/*")]
        return stream.read_train(files, self.specification(), self.tft_output)

    def queries(self) -> dataset.Queries | None:
        files = [str(self.folder / "examples/Split-validation/*")]
        return dataset.read_queries(files, self.specification(), self.tft_output)


def make_world(features: Features) -> World:
    """Runs Transform on the splits, and writes what it encodes."""
    folder = Path(tempfile.mkdtemp())
    config = {"features": features.model_dump_json(), "columns": COLUMNS.model_dump_json()}
    splits = split_rows()
    columns = sorted({column for rows in splits.values() for row in rows for column in row})
    numbers = ("age", "income", "visits", "history_age", "year", "price", "stock", WEIGHT)
    kinds = dict.fromkeys(columns, tf.string)
    for prefix in ("", SEQUENCE_PREFIX):
        kinds |= {prefix + c: tf.float32 for c in numbers if prefix + c in kinds}
        kinds |= {prefix + c: tf.int64 for c in ("time", "added", HELD_OUT) if prefix + c in kinds}
    spec = {column: tf.io.VarLenFeature(kind) for column, kind in kinds.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))

    def arrays(rows: list[dict[str, list]]) -> list[dict[str, np.ndarray]]:
        kind = {tf.string: object, tf.float32: np.float32, tf.int64: np.int64}
        return [{c: np.array(row.get(c, []), kind[kinds[c]]) for c in columns} for row in rows]

    with beam_signatures.kept(), tft_beam.Context(temp_dir=tempfile.mkdtemp()):
        analysed = (arrays(splits["train"] + splits["catalogue"]), metadata)
        function = analysed | tft_beam.AnalyzeDataset(lambda inputs: preprocessing.preprocessing_fn(inputs, config))
        _ = function | tft_beam.WriteTransformFn(str(folder / "graph"))
        rows = [row for of_split in splits.values() for row in of_split]
        encoded, encoded_metadata = ((arrays(rows), metadata), function) | tft_beam.TransformDataset()
    left = iter(encoded)
    for split, rows in splits.items():
        _write(folder / f"examples/Split-{split}", [next(left) for _ in rows], encoded_metadata.schema)
    return World(folder, features)


def _write(folder: Path, examples: list[dict[str, Any]], schema: schema_pb2.Schema) -> None:
    folder.mkdir(parents=True)
    coder = tft.coders.ExampleProtoCoder(schema)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(folder / "transformed_examples-00000-of-00001.gz"), options) as writer:
        for example in examples:
            writer.write(coder.encode(example))
