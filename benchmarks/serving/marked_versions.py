"""A second version of a pushed model that answers the same items, and in every answer says which version it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf


def description(version: Path) -> dict[str, object]:
    """assets.extra/servable.json of a version folder."""
    return json.loads((version / "assets.extra" / "servable.json").read_text())


def marked_column(version: Path) -> str:
    """The returned column that carries the mark.

    Raises:
        ValueError: The model returns no column beside ids and scores.
    """
    columns = description(version)["return_columns"]
    if not isinstance(columns, list) or not columns:
        raise ValueError(f"{version}: serving.return_columns is empty, so answers of two versions look the same")
    return columns[0]


def push(source: Path, target: Path, mark: str) -> None:
    """Copies a version with every value of its marked column prefixed; the folder appears whole, as a push does.

    Args:
        source: A version folder.
        target: The new version folder; it must not exist.
        mark: The prefix.
    """
    staging = target.with_name(f".staging-{target.name}")
    shutil.copytree(source, staging)
    column = marked_column(source)
    prefix = str(staging / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    names = sorted(reader.get_variable_to_shape_map())
    marked = [name for name in names if f"/{column}/" in f"/{name}" and reader.get_tensor(name).dtype == np.object_]
    if len(marked) != 1:
        raise ValueError(f"{source}: {column} is in the variables {marked}, expected one")
    values = [reader.get_tensor(name) for name in names]
    tensors = [
        tf.constant([mark.encode() + title for title in value], tf.string) if name == marked[0] else tf.constant(value)
        for name, value in zip(names, values, strict=True)
    ]
    shutil.rmtree(staging / "variables")
    os.makedirs(staging / "variables")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    os.rename(staging, target)
