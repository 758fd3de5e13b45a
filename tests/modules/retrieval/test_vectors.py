"""Vectors in a file are those of an array, and an index over them is the same."""

import errno
import os

import numpy as np
import pytest
import tensorflow as tf
from index_conformance import DIMENSION, clustered

from modules.retrieval import vectors as module
from modules.retrieval.stock import stock
from modules.retrieval.top_k import Partitions, SearchParameters, nearest
from modules.retrieval.vectors import VectorFile, as_tensor, in_memory, parts, zeros


@pytest.fixture
def many_parts(monkeypatch):
    """Parts of seven vectors, of which the last one is not full."""
    monkeypatch.setattr(module, "_PART_BYTES", 7 * DIMENSION * 4 + 3)


def _in_file(vectors: np.ndarray, path) -> VectorFile:
    """Written in two calls and in no order."""
    file = VectorFile(str(path), *vectors.shape)
    order = np.random.default_rng(0).permutation(len(vectors))
    for rows in np.split(order, [len(order) // 3]):
        file.write(rows, vectors[rows])
    return VectorFile(str(path), *vectors.shape)


def test_a_file_gives_back_what_was_written_to_its_rows(many_parts, tmp_path):
    vectors = clustered(100)
    file = _in_file(vectors, tmp_path / "vectors")
    assert (len(file), file.shape, file.nbytes, file.dtype) == (100, vectors.shape, vectors.nbytes, np.float32)
    for rows in (slice(None), slice(20, 31), slice(95, 200), slice(7, 7), np.array([99, 0, 50, 50]), np.array([], int)):
        np.testing.assert_array_equal(file[rows], vectors[rows])
    with pytest.raises(ValueError, match="consecutive"):
        file[::2]
    starts, pieces = zip(*parts(file), strict=True)
    assert starts == tuple(range(0, 100, 7))
    np.testing.assert_array_equal(np.concatenate(pieces), vectors)


def test_a_disk_without_room_is_met_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left") as error:
        VectorFile(str(tmp_path / "vectors"), 10, 3)
    assert error.value.filename == str(tmp_path / "vectors")


def test_a_variable_takes_the_memory_of_the_array_that_was_filled():
    filled = zeros(1000, 3)
    variable = tf.Variable(tf.reshape(as_tensor(filled), [500, 6]))
    filled[1, 0] = 5
    assert variable.numpy()[0].tolist() == [0, 0, 0, 5, 0, 0], "the same memory, seen from both"
    vectors = clustered(50)
    np.testing.assert_array_equal(in_memory(vectors), vectors)
    vectors[:] = 0
    assert np.any(in_memory(clustered(50)) != vectors), "an array that is not `zeros`' own is copied"


def test_an_index_over_a_file_is_the_index_over_an_array(many_parts, tmp_path):
    vectors, queries = clustered(300), clustered(9, seed=1)
    file = _in_file(vectors, tmp_path / "vectors")
    centroids = clustered(11, seed=2)
    np.testing.assert_array_equal(
        nearest(centroids, file), ((vectors[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    )
    partitions = Partitions(centroids, nearest(centroids, file))
    nothing, parameters = tf.zeros([9, 0], tf.int32), SearchParameters(3, 20)
    # The directions of the quantized layer come from a sum over parts.
    for strategy, tolerance in (("exact", 0), ("tree", 0), ("quantized", 1e-5)):
        one, other = (stock(each, strategy, parameters, partitions) for each in (vectors, file))
        for ours, theirs in zip(one.search(queries, 10, nothing), other.search(queries, 10, nothing), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance)


@pytest.mark.parametrize("strategy", ["exact", "quantized", "tree"])
def test_reading_all_vectors_copies_none_after_a_search_has_gathered_some(strategy):
    vectors, queries = clustered(200), clustered(3, seed=1)
    partitions = Partitions(clustered(5), np.arange(200, dtype=np.int32) % 5)
    index = stock(vectors, strategy, SearchParameters(partitions_to_search=2, reorder=20), partitions)
    index.search(queries, 5, tf.zeros([3, 0], tf.int32))
    index.vectors(tf.constant([3, 4]))
    held = max(index.variables, key=lambda variable: variable.shape.num_elements())
    first, second = held.read_value(), held.read_value()
    addresses = {np.frombuffer(memoryview(each), np.float32).ctypes.data for each in (first, second)}
    assert len(addresses) == 1
