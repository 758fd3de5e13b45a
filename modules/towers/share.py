"""Which rows of a batch one replica takes, where several replicas share a training step."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Share(NamedTuple):
    """The n-th part of a batch's rows, parts being as equal as they can be.

    Every replica cuts the same global batch and draws the same for all of its rows; it then computes the losses of its
    own rows alone. So a draw is the same however many replicas there are, and what the batch has in common (its items,
    its sample) is that of the global batch.
    """

    number: tf.Tensor | int
    """Of the replica, from 0."""
    replicas: int

    def cut(self, values: tf.Tensor) -> tf.Tensor:
        """[B, ...] → [b, ...], the own rows; fewer rows than replicas leave some without any."""
        if self.replicas == 1:
            return values
        start, stop = self._bounds(tf.shape(values)[0])
        return values[start:stop]

    def size(self, rows: tf.Tensor) -> tf.Tensor:
        """b for B rows."""
        if self.replicas == 1:
            return rows
        start, stop = self._bounds(rows)
        return stop - start

    def own_first(self, values: tf.Tensor) -> tf.Tensor:
        """[B, ...] → [B, ...], turned so that the own rows come first."""
        if self.replicas == 1:
            return values
        return tf.roll(values, -self._bounds(tf.shape(values)[0])[0], axis=0)

    def _bounds(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return rows * self.number // self.replicas, rows * (self.number + 1) // self.replicas


WHOLE = Share(0, 1)
"""All rows: nothing is shared."""
