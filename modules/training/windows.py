"""The input of a training step: windows up to places of the sequences, a part of each hidden, batch by batch.

What an objective needs of a sequence is cut here, inside the step's own graph, and never stored: cut in tf.data beside
the step, an epoch of MovieLens-100K took 1.25 s instead of 1.0 s.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from modules.data import histories
from modules.encodings.features import Features
from modules.settings import Model, Training
from modules.towers.masking import closeness, mask_items, mask_next
from modules.towers.two_tower import Batch
from modules.training.dataset import Sequences


class Windows:
    """Batches of windows up to some places, a part of each hidden.

    Args:
        sequences: What is trained on.
        features: What the query tower reads.
        model: `mask_rate` of it.
        training: Batch size, objective and locality.
        weights: [T] how much the window up to each place counts.
    """

    def __init__(
        self, sequences: Sequences, features: Features, model: Model, training: Training, weights: np.ndarray
    ) -> None:
        self._batch_size = training.batch_size
        self._rate, self._locality = model.mask_rate, training.locality
        self._history = features.history
        self._masks_items = masks_items(features, training)
        self._size = 1 + (self._history.max_length if self._history else 0)
        self._items, self._weights = tf.constant(sequences.items), tf.constant(weights)
        self._starts = tf.constant(sequences.starts.astype(np.int32))
        self._owner = tf.constant(sequences.owner.astype(np.int32))
        self._of_users = {key: tf.constant(values) for key, values in sequences.features.items()}
        context = dict(sequences.context)
        if features.history_age is not None:
            context[features.history_age.column] = ages(sequences)
        self._of_places = {key: tf.constant(values) for key, values in context.items()}

    def steps(self, places: np.ndarray, seed: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """What `cut` is given in each step of an epoch: places [B] int32 in this order, and a seed [2].

        Args:
            places: Places of the sequences, [C].
            seed: Of what is drawn in each step.
        """
        for step, start in enumerate(range(0, len(places), self._batch_size)):
            some = places[start : start + self._batch_size]
            yield tf.constant(some, tf.int32), tf.constant([seed, 100 * step], tf.int32)

    def cut(self, places: tf.Tensor, seed: tf.Tensor) -> Batch:
        """The windows up to places [B], in graph: within the training step, a window need not be copied to it."""
        index = places[:, tf.newaxis] - tf.range(self._size)[tf.newaxis]
        inside = index >= tf.gather(self._starts, places)[:, tf.newaxis]
        window = tf.where(inside, tf.gather(self._items, tf.maximum(index, 0)), 0)
        owner = tf.gather(self._owner, places)
        query = {key: tf.gather(values, owner) for key, values in self._of_users.items()}
        query |= {key: tf.gather(values, places) for key, values in self._of_places.items()}
        if self._masks_items:
            hidden, visible = mask_items(window, self._rate, seed)
            near = closeness(window, self._locality, seed + 5)
        else:
            hidden, visible = mask_next(window, self._rate, seed)
            near = tf.ones_like(window, tf.float32)
        if self._history is not None:
            query[self._history.column] = visible
        targets = near * tf.cast(hidden, tf.float32)
        return Batch(query, window, targets, near, tf.gather(self._weights, places), seed)


def masks_items(features: Features, training: Training) -> bool:
    """Whether the objective is `masked_items`; without a history there is nothing to find an item from but itself."""
    return training.objective == "masked_items" and features.history is not None


def ages(sequences: Sequences) -> np.ndarray:
    """[T] float32 seconds from the item before each place to it, as the encoding of the history's age has them."""
    # The encoding's missing value.
    return np.nan_to_num(histories.ages(sequences.times, sequences.offsets[:-1]), nan=0.0).astype(np.float32)
