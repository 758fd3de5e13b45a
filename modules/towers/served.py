"""The query tower as a request runs it: the vectors of `QueryTower`, to the last digits, from few operations.

A request is a few hundred tiny operations, and what a session does around each of them is much of its time. So what is
linear in a query's numbers is one product with one matrix here: projections, constant, cold start and lift. A history
stays as it comes, one item after another without padding, and is summed by the product of a sparse matrix with a table,
which copies no rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from modules.encodings.history import FlatHistory
from modules.towers.query import QueryTower
from modules.towers.terms import finish


class ServedQueryTower:
    """Query vectors under the weights that a fitted tower has now.

    No part of a Keras model: what a SavedModel must track of it is `kernel`, beside the tower's own variables.

    Args:
        tower: Fitted, exported and without a transformer over the history. Rows of its features' tables that stand for
            missing values become 0, since what a fit leaves there has no meaning.
    """

    def __init__(self, tower: QueryTower) -> None:
        assert tower.encoder is None and tower.is_exported
        self._tower, self._weights, self._layout = tower, tower.blend, tower.layout
        self._width = tower.terms.width
        self._has_bias = tower.layout.learned.size > self._width
        self._scale = 0.0 if tower.history is None else float(tower.history_scale.numpy())
        tower.terms.clear_missing()
        self.kernel = tf.Variable(np.concatenate([self._rows_of_features(), self._rows_of_queries()]), trainable=False)
        """[N, E]: a query's numbers → the learned part without the history, bias, lift and discount."""

    def __call__(self, inputs: Mapping[str, tf.Tensor], history: FlatHistory | None) -> tf.Tensor:
        """[B, D] query vectors.

        Args:
            inputs: Transformed query features [B, ...], but for the history.
            history: Where the tower reads one.
        """
        tower, layout = self._tower, self._layout
        numbers = tower.terms.numbers(inputs)
        activity = None
        if history is None:
            numbers.append(tf.ones([tf.shape(next(iter(inputs.values())))[0], 1]))
        else:
            is_empty = tf.cast(history.is_empty[:, tf.newaxis], tf.float32)
            numbers += [1.0 - is_empty, is_empty]
            if tower.age is not None:
                inactivity = tower.inactivity(inputs)
                numbers.append((1.0 - is_empty) * inactivity)
                activity = 1.0 - inactivity
        product = tf.matmul(tf.concat(numbers, axis=1), self.kernel)
        sizes = [self._width, *self._has_bias * [1], layout.lift.size + layout.discount.size]
        learned, *bias, others = tf.split(product, sizes, axis=1)
        item_item = []
        if history is not None:
            learned += self._mean(history, activity)
            item_item = self._item_item(history)
        learned = finish(tower.residual(learned), bias[0] if bias else None)
        return tf.concat([learned, *item_item, others], axis=1)

    def _mean(self, history: FlatHistory, activity: tf.Tensor | None) -> tf.Tensor:
        """[B, width]: the weighted mean of the items' embeddings, as the tower scales it."""
        recency = self._weights.recency
        exponent = -recency if activity is None else tf.gather(-recency * activity[:, 0], history.row)
        weights = self._by_rank(history, exponent if recency else 0.0)
        batch = tf.size(history.is_empty, tf.int64)
        total = tf.math.unsorted_segment_sum(weights, history.row, batch)[:, tf.newaxis]
        scales = tf.math.divide_no_nan(self._scale, total)
        return scales * _weighted_sum(self._tower.item_table, history, weights, batch)

    def _item_item(self, history: FlatHistory) -> list[tf.Tensor]:
        """[B, R], where there is such a part."""
        if self._tower.factors is None:
            return []
        weights = self._by_rank(history, -self._weights.item_item_recency)
        batch = tf.size(history.is_empty, tf.int64)
        return [_weighted_sum(self._tower.factors, history, self._weights.item_item * weights, batch)]

    def _by_rank(self, history: FlatHistory, exponent: tf.Tensor | float) -> tf.Tensor:
        """[N] (1 + rank) ** exponent; 0 for items that are older than what the tower reads."""
        assert self._tower.history is not None
        is_read = tf.cast(history.rank < self._tower.history.max_length, tf.float32)
        if isinstance(exponent, float) and exponent == 0.0:
            return is_read
        return is_read * tf.pow(1.0 + tf.cast(history.rank, tf.float32), exponent)

    def _rows_of_features(self) -> np.ndarray:
        kernel = self._tower.terms.kernel
        others = self._layout.learned.size - self._width + self._layout.lift.size + self._layout.discount.size
        return np.pad(kernel, [(0, 0), (0, others)])

    def _rows_of_queries(self) -> np.ndarray:
        """For what a query has beside its features: a history or none, and how long ago that was."""
        tower, weights = self._tower, self._weights
        constant = tower.constant.numpy()
        lift = self._layout.learned.size

        def row(learned: np.ndarray, lift: float) -> np.ndarray:
            discount = self._layout.discount.size * [1.0]
            return np.array([*learned, *self._has_bias * [1.0], lift, *discount], np.float32)

        if tower.history is None:
            return row(constant, weights.lift)[np.newaxis]
        told, empty = row(constant, weights.lift), row(constant + tower.cold_start.numpy(), weights.cold_start_lift)
        if tower.age is None:
            return np.stack([told, empty])
        inactive = np.zeros_like(told)
        inactive[lift], told[lift] = weights.lift, 0.0
        return np.stack([told, empty, inactive])


def _weighted_sum(table: tf.Tensor, history: FlatHistory, weights: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    """[B, width]: Σ weights [N] · rows of a table, for each request."""
    matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.stack([history.row, history.item], axis=1),
        values=weights,
        # The kernel of the product divides by the number of rows.
        dense_shape=tf.stack([tf.maximum(batch, 1), int(table.shape[0])]),
    )
    return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=table)[:batch]
