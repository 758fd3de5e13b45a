"""What an artifact says, whatever the order, the number of files and the map order in which it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf


def examples(uri: str) -> dict[str, Counter[bytes]]:
    """Split → its examples as a set in which one can be twice."""
    found = {}
    for split in sorted(Path(uri).glob("Split-*")):
        found[split.name] = Counter(
            tf.train.Example.FromString(record).SerializeToString(deterministic=True)
            for record in tf.data.TFRecordDataset(
                [str(path) for path in split.iterdir()], compression_type="GZIP"
            ).as_numpy_iterator()
        )
    return found


def statistics(uri: str) -> dict[tuple[str, str], Any]:
    """Split and feature → what was counted; means and deviations are sums of floats, histograms are not looked at."""
    from tensorflow_metadata.proto.v0 import statistics_pb2

    found: dict[tuple[str, str], Any] = {}
    for split in sorted(Path(uri).glob("Split-*")):
        lists = statistics_pb2.DatasetFeatureStatisticsList.FromString((split / "FeatureStats.pb").read_bytes())
        (dataset,) = lists.datasets
        found[split.name, ""] = dataset.num_examples
        for feature in dataset.features:
            which = feature.WhichOneof("stats")
            of_type = getattr(feature, which)
            common = of_type.common_stats
            counted = (which, common.num_non_missing, common.num_missing, common.min_num_values, common.max_num_values)
            if which == "string_stats":
                counted += (of_type.unique, tuple(sorted((v.value, v.frequency) for v in of_type.top_values)))
            elif which == "num_stats":
                counted += (of_type.min, of_type.max, of_type.num_zeros)
            found[split.name, feature.name or ".".join(feature.path.step)] = counted
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def variables(saved_model: Path) -> dict[str, np.ndarray]:
    """Every variable of a SavedModel."""
    reader = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        # The graph of Python's objects, which numbers them.
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names that only one has, or that do not have the same bits."""
    return [
        name
        for name in sorted({*one, *other})
        if name not in one or name not in other or not np.array_equal(one[name], other[name])
    ]


def catalogue(servable: Path) -> list[dict[str, Any]]:
    """The embedded items, by their id."""
    rows: list[dict[str, Any]] = pq.read_table(servable / "assets.extra" / "catalogue.parquet").to_pylist()
    return sorted(rows, key=lambda row: row["item_id"])


def left_over(root: Path) -> Iterator[Path]:
    """Folders of artifacts that no stage has called whole: they have no manifest beside them."""
    for key in root.glob("*/*"):
        if key.parent.name != ".system" and key.name != ".system" and key.is_dir():
            for artifact in key.iterdir():
                if artifact.is_dir() and artifact.name.isdigit() and not Path(f"{artifact}.manifest.json").exists():
                    yield artifact
