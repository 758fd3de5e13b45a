"""The snapshot of users inside a servable: completes a request that says little more than a user's id."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import tensorflow as tf

from modules.encodings.base import MISSING_TIMESTAMP, Encoding
from modules.encodings.features import Features
from modules.preprocessing import request_signature
from modules.retrieval.top_k import NO_ROW, variable
from modules.servable.contract import USER_ID
from modules.servable.lookup import line_numbers
from modules.servable.user_snapshot import UserSnapshot, ragged


class KnownUsers(tf.Module):
    """Users' features and histories, in variables; after the last user comes one of whom nothing is known.

    Args:
        snapshot: What is known, of one user at least.
        features: What a query has.
        item_ids: [1 + C] strings: "", then the id of each row of the catalogue.
        file: Where the lookup table's file is written.
    """

    def __init__(self, snapshot: UserSnapshot, features: Features, item_ids: tf.Variable, file: str) -> None:
        super().__init__()
        self._query = features.query
        self._history, self._age = features.history, features.history_age
        self._user_column, self._time_column = snapshot.columns.user, snapshot.columns.timestamp
        self._item_ids = item_ids
        self._count = len(snapshot)
        self._numbers = line_numbers(file, snapshot.user_ids, default=self._count)
        ends, rows = ragged(snapshot.table["history"])
        self._places, self._rows = _Places(ends), variable(rows.astype(np.int32))
        newest = snapshot.table["newest"].fill_null(MISSING_TIMESTAMP).to_numpy()
        self._newest = variable(np.append(newest, MISSING_TIMESTAMP))
        known = snapshot.feature_columns
        self._known = {f.column: _of_users(f, snapshot.feature(f.column)) for f in self._query if f.column in known}

    def inputs(self) -> dict[str, tf.TensorSpec]:
        """What is asked beside `exclude` and filters: the user's id, and the query features, which may be missing.

        Where the history has an age, the time of asking as well, be it a feature or not.
        """
        specs = request_signature([f for f in self._query if f.column != self._user_column])
        if self._age is not None and self._time_column not in specs:
            specs[self._time_column] = tf.TensorSpec([None], tf.int64, name=self._time_column)
        return {USER_ID: tf.TensorSpec([None], tf.string, name=USER_ID), **specs}

    def complete(self, requests: Mapping[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Gives requests what they lack. What they say counts, and for whom nobody knows nothing else does.

        Args:
            requests: B of them, as `inputs` has them.

        Returns:
            The query features; and the rows of the histories that come from the snapshot, [B, H] int32, padded with -1.
        """
        user = self._numbers.lookup(requests[USER_ID])
        completed: dict[str, tf.Tensor] = {}
        for feature in self._query:
            column = feature.column
            if column == self._user_column:
                completed[column] = tf.where(user < self._count, requests[USER_ID], "")
            elif column in self._known:
                completed[column] = self._known[column].unless(requests[column], user)
            else:
                completed[column] = requests[column]
        if self._history is None:
            return completed, tf.zeros([tf.size(user), 0], tf.int32)

        given = requests[self._history.column]
        places = self._places.unless(given, user)
        rows = places.with_flat_values(tf.gather(self._rows, places.flat_values))
        items = rows.with_flat_values(tf.gather(self._item_ids, rows.flat_values - NO_ROW)).to_tensor("")
        # At most one of the two has something; empty strings are padding wherever they are.
        completed[self._history.column] = tf.concat([items, given], axis=1)
        if self._age is not None:
            asked, told = requests[self._time_column], requests[self._age.column]
            age = tf.cast(tf.maximum(asked - tf.gather(self._newest, user), 0), tf.float32)
            age = tf.where((rows.row_lengths() > 0) & (asked >= 0), age, math.nan)
            completed[self._age.column] = tf.where(tf.math.is_nan(told), age, told)
        return completed, rows.to_tensor(NO_ROW)


class _Places(tf.Module):
    """Where the values of each user are among those of all users."""

    def __init__(self, ends: np.ndarray) -> None:
        super().__init__()
        self._first = variable(np.concatenate([[0], ends, ends[-1:]]))

    def unless(self, given: tf.Tensor, user: tf.Tensor) -> tf.RaggedTensor:
        """[B, …] places; none where one of the texts [B, G] is given."""
        start, end = tf.gather(self._first, user), tf.gather(self._first, user + 1)
        return tf.ragged.range(tf.where(tf.reduce_any(given != "", axis=1), end, start), end)


class _Values(tf.Module):
    """One number of each user."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self._values = variable(values)

    def unless(self, given: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
        """[B]: what is given, and where that is missing, what is known."""
        missing = tf.math.is_nan(given) if given.dtype.is_floating else given < 0
        return tf.where(missing, tf.gather(self._values, user), given)


class _Texts(tf.Module):
    """One text of each user: most users share theirs with others."""

    def __init__(self, values: pa.Array) -> None:
        super().__init__()
        codes, texts = _coded(values)
        self._codes, self._texts = variable(np.append(codes, 0).astype(np.int32)), variable(texts)

    def unless(self, given: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
        """[B]: what is given, and where that is missing, what is known."""
        return tf.where(given == "", tf.gather(self._texts, tf.gather(self._codes, user)), given)


class _Lists(tf.Module):
    """A list of texts of each user."""

    def __init__(self, values: pa.Array) -> None:
        super().__init__()
        ends, flat = ragged(values)
        codes, texts = _coded(pa.array(flat, pa.string()))
        self._places = _Places(ends)
        self._codes, self._texts = variable(codes), variable(texts)

    def unless(self, given: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
        """[B, L]: what is given, and where that is nothing, what is known."""
        places = self._places.unless(given, user)
        texts = tf.gather(self._texts, tf.gather(self._codes, places.flat_values))
        return tf.concat([places.with_flat_values(texts).to_tensor(""), given], axis=1)


def _of_users(feature: Encoding, values: pa.Array) -> _Values | _Texts | _Lists:
    if feature.dtype == "string":
        return _Lists(values) if feature.is_list else _Texts(values)
    missing, dtype = (math.nan, np.float32) if feature.dtype == "float32" else (MISSING_TIMESTAMP, np.int64)
    return _Values(np.append(values.fill_null(missing).to_numpy(zero_copy_only=False), missing).astype(dtype))


def _coded(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Texts as positions in a list of different ones, int32 [N], and the list; "" is its first, for a missing one."""
    coded = values.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
    return codes, np.array([b"", *(text.encode() for text in coded.dictionary.to_pylist())], object)
