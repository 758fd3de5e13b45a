"""Vectors of items that nobody has taken up yet: told from their content, by ridge regression on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf
import tf_keras

from modules.encodings.base import Encoding
from modules.encodings.bucketized import Bucketized
from modules.encodings.hash import Hash
from modules.encodings.text import Text
from modules.encodings.timestamp import Timestamp
from modules.encodings.vocabulary import Vocabulary

# The penalty counts as this many items without content would.
_RIDGE = 10.0
# Steps of the conjugate gradient method, and how small the residual must get.
_STEPS = 200
_TOLERANCE = 1e-6


class ContentMap(tf_keras.layers.Layer):
    """Content → vector: an intercept plus a row for each value that an item has.

    Where a feature has n values for an item, each counts 1 / √n: more values say more, but not n times as much.

    Args:
        features: Content features of the candidate tower.
        cardinalities: Rows of each feature that has ids, by column.
        intercept: [D] vector of an item until `fit` has been called.
    """

    def __init__(self, features: Sequence[Encoding], cardinalities: Mapping[str, int], intercept: np.ndarray) -> None:
        super().__init__(name="content_map")
        # Key of the transformed examples → rows of its table; ids have one each, numbers one a column.
        self._rows: dict[str, int] = {}
        self._ids: set[str] = set()
        for feature in features:
            if isinstance(feature, Timestamp):
                self._rows[feature.bucket_key] = cardinalities[feature.column]
                self._ids.add(feature.bucket_key)
                self._rows[feature.cyclic_key] = 4
            elif isinstance(feature, (Vocabulary, Hash, Text, Bucketized)):
                self._rows[feature.column] = cardinalities[feature.column]
                self._ids.add(feature.column)
            else:
                self._rows[feature.column] = 1
        self._intercept = tf.Variable(intercept, trainable=False, dtype=tf.float32, name="content_intercept")
        self._tables = [
            tf.Variable(tf.zeros([rows, len(intercept)]), trainable=False, name=f"content_rows_{number}")
            for number, rows in enumerate(self._rows.values())
        ]

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[B, D] vectors of transformed candidate features."""
        total = self._intercept[tf.newaxis]
        for key, table in zip(self._rows, self._tables, strict=True):
            values = inputs[key]
            values = values[:, tf.newaxis] if values.shape.rank == 1 else values
            if key in self._ids:
                present = tf.cast(values > 0, tf.float32)
                weights = tf.math.divide_no_nan(present, tf.sqrt(tf.reduce_sum(present, axis=1, keepdims=True)))
                total += tf.einsum("bm,bmd->bd", weights, tf.gather(table, values))
            else:
                total += tf.matmul(values, table)
        return total

    def fit(self, features: Mapping[str, np.ndarray], vectors: np.ndarray) -> None:
        """Sets intercept and rows so that the items' vectors come out as well as the penalty lets them.

        Args:
            features: Transformed candidate features of items, [N, ...] by key.
            vectors: [N, D] of these items.
        """
        if not self._rows:
            self._intercept.assign(vectors.mean(axis=0))
            return
        design = self.design(features)
        weights = ridge_regression(design, vectors.astype(np.float64), _RIDGE)
        self._intercept.assign(vectors.mean(axis=0) - np.asarray(design.mean(axis=0)).ravel() @ weights)
        starts = np.cumsum([0, *self._rows.values()])
        for table, start, end in zip(self._tables, starts, starts[1:], strict=False):
            table.assign(weights[start:end])

    def design(self, features: Mapping[str, np.ndarray]) -> scipy.sparse.csr_matrix:
        """[N, rows of all tables] by what each row is multiplied."""
        parts = []
        for key, rows in self._rows.items():
            values = features[key].reshape(len(features[key]), -1)
            if key not in self._ids:
                parts.append(scipy.sparse.csr_matrix(values.astype(np.float64)))
                continue
            item, place = np.nonzero(values > 0)
            weights = np.count_nonzero(values > 0, axis=1)[item] ** -0.5
            parts.append(scipy.sparse.csr_matrix((weights, (item, values[item, place])), (len(values), rows)))
        return scipy.sparse.hstack(parts).tocsr()


def ridge_regression(design: scipy.sparse.csr_matrix, targets: np.ndarray, ridge: float) -> np.ndarray:
    """[F, D] weights W that minimise ‖Y − XW‖² + ridge ‖W‖² with X and Y centred, by conjugate gradients.

    Args:
        design: X, [N, F].
        targets: Y, [N, D].
        ridge: Above 0.
    """

    def normal(weights: np.ndarray) -> np.ndarray:
        fitted = design @ weights
        # What is centred on one side need not be on the other.
        return design.T @ (fitted - fitted.mean(axis=0)) + ridge * weights

    residual = design.T @ (targets - targets.mean(axis=0))
    weights = np.zeros_like(residual)
    direction, size = residual.copy(), np.sum(residual**2, axis=0)
    enough = _TOLERANCE**2 * size
    for _ in range(_STEPS):
        if np.all(size <= enough):
            break
        image = normal(direction)
        step = size / np.maximum(np.sum(direction * image, axis=0), 1e-300)
        weights += step * direction
        residual -= step * image
        size, before = np.sum(residual**2, axis=0), size
        direction = residual + size / np.maximum(before, 1e-300) * direction
    return weights
