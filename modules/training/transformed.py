"""Transformed examples as they lie on disk: a stream of batches, or all of them as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

_BATCH = 4096


class Lists(NamedTuple):
    """Lists of different lengths: their values one after the other, and how many each has."""

    values: np.ndarray
    lengths: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The list that each value belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def offsets(self) -> np.ndarray:
        """[N + 1] where each list begins and the last one ends."""
        return np.append(0, np.cumsum(self.lengths))

    def take(self, chosen: np.ndarray) -> Lists:
        """Some of the lists."""
        return Lists(self.values[ranges(self.offsets[chosen], self.lengths[chosen])], self.lengths[chosen])

    def padded(self) -> np.ndarray:
        """[N, longest, at least 1], 0 behind the values."""
        padded = np.zeros([len(self.lengths), max(1, int(self.lengths.max(initial=0)))], self.values.dtype)
        padded[np.arange(padded.shape[1]) < self.lengths[:, np.newaxis]] = self.values
        return padded

    def ragged(self) -> tf.RaggedTensor:
        return tf.RaggedTensor.from_row_lengths(self.values, self.lengths)


def files_of(patterns: Sequence[str]) -> list[str]:
    """The files that patterns stand for, in the order of their names."""
    return sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))


def records_of(files: Sequence[str], at_once: int = 1, step: int = 1, first: int = 0) -> tf.data.Dataset:
    """Serialized examples of some files; the same ones in the same order each time.

    Args:
        files: In this order.
        at_once: From so many files an example is taken in turn.
        step: Of each file only every so many-th example is taken; what lies between is not parsed.
        first: The first one of each file.
    """

    def of_file(file: tf.Tensor) -> tf.data.Dataset:
        compression = tf.where(tf.strings.regex_full_match(file, r".*\.gz"), "GZIP", "")
        return tf.data.TFRecordDataset(file, compression_type=compression).shard(step, first)

    names = tf.data.Dataset.from_tensor_slices(tf.constant(list(files), tf.string, [len(files)]))
    return names.interleave(of_file, cycle_length=at_once)


def read_batches(
    records: tf.data.Dataset, keys: Sequence[str], tft_output: tft.TFTransformOutput
) -> Iterator[dict[str, np.ndarray | Lists]]:
    """Some keys of serialized examples, batch by batch: arrays [B, ...], or lists where lengths vary.

    Without examples there is one batch, which is empty.
    """
    transformed = tft_output.transformed_feature_spec()
    spec = {
        key: tf.io.RaggedFeature(transformed[key].dtype, row_splits_dtype=tf.int64)
        if isinstance(transformed[key], tf.io.VarLenFeature)
        else transformed[key]
        for key in keys
    }
    batches = records.batch(_BATCH).map(lambda serialized: tf.io.parse_example(serialized, spec))
    is_empty = True
    for batch in batches.prefetch(1):
        is_empty = False
        yield {key: _in_numpy(values) for key, values in batch.items()}
    if is_empty:
        nothing = tf.io.parse_example(tf.zeros([0], tf.string), spec)
        yield {key: _in_numpy(values) for key, values in nothing.items()}


def read_whole(
    patterns: Sequence[str], keys: Sequence[str], tft_output: tft.TFTransformOutput
) -> dict[str, np.ndarray | Lists]:
    """Some keys of all examples, in the order of the files: arrays [N, ...], or lists where lengths vary."""
    parts: dict[str, list[Any]] = {key: [] for key in keys}
    for batch in read_batches(records_of(files_of(patterns)), keys, tft_output):
        for key, values in batch.items():
            parts[key].append(values)
    return {key: _joined(parts.pop(key)) for key in keys}


def dense(arrays: Mapping[str, np.ndarray | Lists], key: str) -> np.ndarray:
    """What has one value or one row of values in each example."""
    values = arrays[key]
    assert isinstance(values, np.ndarray), f"{key} is a list in the transformed examples"
    return values


def lists(arrays: Mapping[str, np.ndarray | Lists], key: str) -> Lists:
    """What has a list of its own length in each example."""
    values = arrays[key]
    assert isinstance(values, Lists), f"{key} is no list in the transformed examples"
    return values


def compact(values: np.ndarray) -> np.ndarray:
    """Ids as int32: half the memory, and vocabularies are far below 2³¹."""
    return values.astype(np.int32) if values.dtype == np.int64 else values


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, …, start + length − 1 of each, one range after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def _in_numpy(values: Any) -> np.ndarray | Lists:
    if isinstance(values, tf.RaggedTensor):
        return Lists(values.values.numpy(), values.row_lengths().numpy())
    return values.numpy()


def _joined(parts: Sequence[Any]) -> np.ndarray | Lists:
    if isinstance(parts[0], Lists):
        return Lists(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return np.concatenate(parts)
