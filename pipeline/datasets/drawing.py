"""What the drawn data sets share: long-tailed activity, names of ids, and a folder that changes whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from modules.errors import UserError

TRUTH_FILE = "truth.npz"
"""The law that a folder's tables were drawn from."""

_Law = TypeVar("_Law")


def activity(users: int, interactions: int, least: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """[U] interactions of each user, from `least` to `most`, long-tailed; they add up to `interactions`."""
    share = rng.lognormal(0.0, 1.0, users)
    low, high = 0.0, float(most) * interactions
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(share * middle, least, most).sum() < interactions:
            low = middle
        else:
            high = middle
    counts = np.clip(share * low, least, most).astype(np.int64)
    while missing := interactions - int(counts.sum()):
        places = np.flatnonzero(counts < most)
        counts[rng.permutation(places)[:missing]] += 1
    return counts


def names(prefix: str, numbers: np.ndarray) -> pa.Array:
    """Numbers as ids."""
    return pa.array(np.char.add(prefix, numbers.astype(str)))


@contextlib.contextmanager
def staged(folder: str) -> Iterator[str]:
    """A folder to write into, whose files replace those of an earlier draw in `folder` when all of them are there.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            yield staging
            # There may have been more shards.
            for old in Path(folder).glob("interactions-*.parquet"):
                old.unlink()
            for file in os.listdir(staging):
                os.replace(os.path.join(staging, file), os.path.join(folder, file))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another --output, or make room") from error


def save_law(law: Any, folder: str) -> None:
    """Writes the arrays of a dataclass as `TRUTH_FILE`."""
    np.savez(os.path.join(folder, TRUTH_FILE), **{field.name: getattr(law, field.name) for field in fields(law)})


def load_law(kind: type[_Law], folder: str) -> _Law:
    """The reverse of `save_law`."""
    with np.load(os.path.join(folder, TRUTH_FILE)) as arrays:
        return kind(**arrays)
