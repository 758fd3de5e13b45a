"""Vectors in memory or in a file, read part by part: an index is built over more of them than fit twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import tensorflow as tf

_FLOAT = np.dtype(np.float32)
_PART_BYTES = 2**24
# Where TensorFlow wants the first byte of a tensor.
_ALIGNMENT = 64


class VectorFile:
    """[C, D] float32, row after row in a local file. What is asked for is read, and nothing is kept.

    Args:
        path: The file; it is made, all zeros, where there is none.
        size: C.
        dimension: D.
    """

    dtype = _FLOAT

    def __init__(self, path: str, size: int, dimension: int) -> None:
        self.shape = size, dimension
        self._path = path
        if not os.path.exists(path):
            with open(path, "wb") as file:
                try:
                    # A full disk is met here: written through a map, it would end the process.
                    os.posix_fallocate(file.fileno(), 0, self.nbytes)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, path) from None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The vectors of consecutive rows, or of some rows [N] int."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise ValueError("rows of a slice must be consecutive")
            width, count = self.shape[1], max(0, stop - start)
            offset = start * width * self.dtype.itemsize
            # Read and not mapped: pages of a map would count as memory of this process.
            return np.fromfile(self._path, self.dtype, count * width, offset=offset).reshape(count, width)
        chosen = np.empty((len(rows), self.shape[1]), self.dtype)
        for start, part in parts(self):
            here = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            chosen[here] = part[rows[here] - start]
        return chosen

    def write(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Writes the vectors [N, D] of some rows [N] int."""
        # Rows are far apart and short; the map goes when it has been written to, and its pages with it.
        np.memmap(self._path, self.dtype, "r+", shape=self.shape)[rows] = vectors


Vectors: TypeAlias = np.ndarray | VectorFile
"""[C, D] float32."""


def parts(vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each part, and the part [N, D]; the parts follow each other."""
    rows = max(1, _PART_BYTES // (vectors.dtype.itemsize * max(1, vectors.shape[1])))
    for start in range(0, len(vectors), rows):
        yield start, vectors[start : start + rows]


def zeros(rows: int, dimension: int) -> np.ndarray:
    """[rows, dimension] float32, to be filled and then given to `as_tensor`."""
    count = rows * dimension * _FLOAT.itemsize
    memory = np.zeros(count + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + count].view(_FLOAT).reshape(rows, dimension)


def as_tensor(filled: np.ndarray) -> tf.Tensor:
    """The memory of an array that `zeros` has made, as a tensor; the array must not be changed any more.

    `tf.constant` copies an array, and a second time where its memory is not aligned.
    """
    return tf.experimental.dlpack.from_dlpack(filled.__dlpack__())


def in_memory(vectors: Vectors) -> tf.Tensor:
    """All vectors in one tensor of its own."""
    filled = zeros(*vectors.shape)
    for start, part in parts(vectors):
        filled[start : start + len(part)] = part
    return as_tensor(filled)
