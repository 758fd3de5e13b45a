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
from modules.towers.history_encoder import Places
from modules.towers.masking import closeness, mask_items, mask_next, some_places
from modules.towers.two_tower import Batch, asks_all_places
from modules.training.dataset import Sequences


class Windows:
    """Batches of windows up to some places, a part of each hidden, or some of their places asked for.

    Args:
        sequences: What is trained on.
        features: What the query tower reads.
        model: `mask_rate` of it.
        training: Batch size, objective and locality.
        weights: [T] how much the window up to each place counts.
        is_target: [T] bool, places whose item can be asked for; None: all.
    """

    def __init__(
        self,
        sequences: Sequences,
        features: Features,
        model: Model,
        training: Training,
        weights: np.ndarray,
        is_target: np.ndarray | None = None,
    ) -> None:
        self._is_target = tf.constant(np.ones(len(weights), bool) if is_target is None else is_target)
        self._batch_size = training.batch_size
        self._rate, self._locality = model.mask_rate, training.locality
        self._history = features.history
        self._masks_items = masks_items(features, model, training)
        self._all_places = asks_all_places(features, model)
        self._targets = 1 if training.negatives == "in_batch" else training.sampled_targets
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
        index = tf.maximum(index, 0)
        window = tf.where(inside, tf.gather(self._items, index), 0)
        if self._all_places:
            return self._cut_all(window, index, inside & tf.gather(self._is_target, index), seed)
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

    def _cut_all(self, window: tf.Tensor, index: tf.Tensor, can_be: tf.Tensor, seed: tf.Tensor) -> Batch:
        """The rows that ask for some places of each window, everything before a place being its history.

        Args:
            window: [B, S].
            index: [B, S] places of the sequences.
            can_be: [B, S] bool, what can be asked for.
            seed: [2].
        """
        # Rows of a batch are of about one length (sampling.by_length), most of them far below that of a window.
        longest = tf.reduce_max(tf.reduce_sum(tf.cast(window > 0, tf.int32), axis=1))
        window, index, can_be = window[:, :longest], index[:, :longest], can_be[:, :longest]
        chosen = some_places(window, can_be, self._targets, seed)
        # A loss needs a row; where nothing can be asked for it counts nothing.
        is_empty = ~tf.reduce_any(chosen)
        chosen |= is_empty & tf.reshape(tf.range(tf.size(window)) == 0, tf.shape(window))
        row, place = tf.unstack(tf.cast(tf.where(chosen), tf.int32), axis=1)
        of_row = tf.range(tf.shape(window)[1])[tf.newaxis] - place[:, tf.newaxis]
        known = tf.where(of_row >= 0, tf.gather(window, row), 0)
        targets = tf.cast(of_row == 0, tf.float32)
        places = tf.gather_nd(index, tf.stack([row, place], axis=1))
        owner = tf.gather(self._owner, places)
        query = {key: tf.gather(values, owner) for key, values in self._of_users.items()}
        query |= {key: tf.gather(values, places) for key, values in self._of_places.items()}
        assert self._history is not None
        query[self._history.column] = tf.where(of_row > 0, known, 0)
        # A user's places share what the user counts.
        count = tf.math.unsorted_segment_sum(tf.ones_like(places), row, tf.shape(window)[0])
        weight = tf.gather(self._weights, places) / tf.cast(tf.gather(count, row), tf.float32)
        weight *= 1.0 - tf.cast(is_empty, tf.float32)
        return Batch(
            query, known, targets, tf.ones_like(targets), weight, seed, places=Places(window[:, 1:], row, place)
        )


def masks_items(features: Features, model: Model, training: Training) -> bool:
    """Whether the objective is `masked_items`; without a history there is nothing to find an item from but itself."""
    if features.history is None or asks_all_places(features, model):
        return False
    return training.objective == "masked_items"


def ages(sequences: Sequences) -> np.ndarray:
    """[T] float32 seconds from the item before each place to it, as the encoding of the history's age has them."""
    # The encoding's missing value.
    return np.nan_to_num(histories.ages(sequences.times, sequences.offsets[:-1]), nan=0.0).astype(np.float32)
