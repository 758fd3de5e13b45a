"""Serialized examples of a split: a sample, evenly from its files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tfx import types
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils

from modules.errors import UserError

MAX_QUERIES = 1000
# Queries are taken evenly from this many records of each file, so that a large split is not read whole.
_RECORDS_PER_FILE = 20_000


def sample(examples: list[types.Artifact], split: str, at_most: int = MAX_QUERIES) -> list[bytes]:
    """Serialized examples of a split, evenly from its files.

    Raises:
        UserError: There are none.
    """
    [uri] = artifact_utils.get_split_uris(examples, split)
    files = sorted(fileio.glob(io_utils.all_files_pattern(uri)))

    def records() -> Iterator[bytes]:
        for file in files:
            dataset = tf.data.TFRecordDataset(file, compression_type="GZIP" if file.endswith(".gz") else "")
            yield from dataset.take(max(at_most, _RECORDS_PER_FILE)).as_numpy_iterator()

    # Read twice and not kept: they are many more than are chosen.
    count = sum(1 for _ in records())
    if not count:
        raise UserError(f"split {split!r} has no examples; choose another split or add interactions")
    chosen = set(np.linspace(0, count - 1, min(at_most, count)).round().astype(int).tolist())
    return [record for number, record in enumerate(records()) if number in chosen]
