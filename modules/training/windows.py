"""The input of a training step: windows up to places of the sequences, a part of each hidden, batch by batch.

What an objective needs of a sequence is cut here, inside the step's own graph, and never stored: cut in tf.data beside
the step, an epoch of MovieLens-100K took 1.25 s instead of 1.0 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from modules.data import histories
from modules.encodings.features import Features
from modules.settings import Model, Training
from modules.towers.history_encoder import Places
from modules.towers.masking import closeness, mask_items, mask_next, some_places
from modules.towers.two_tower import Batch, asks_all_places
from modules.training.dataset import Sequences


class SequenceTensors(NamedTuple):
    """What windows are cut from: the sequences of some users, place by place."""

    items: tf.Tensor
    """[T] int32 item ids."""
    weights: tf.Tensor
    """[T] float32, how much the window up to each place counts."""
    is_target: tf.Tensor
    """[T] bool, whether its item can be asked for."""
    starts: tf.Tensor
    """[T] int32, where the sequence of each place begins."""
    owner: tf.Tensor
    """[T] int32, the user of each place."""
    of_users: Mapping[str, tf.Tensor]
    """Encoded key → [U, ...], of the user's columns."""
    of_places: Mapping[str, tf.Tensor]
    """Encoded key → [T, ...], of the interaction's own columns."""

    @classmethod
    def of(
        cls, sequences: Sequences, features: Features, weights: np.ndarray, is_target: np.ndarray | None = None
    ) -> SequenceTensors:
        """The places of some sequences.

        Args:
            sequences: What is trained on.
            features: What the query tower reads.
            weights: [T] how much the window up to each place counts.
            is_target: [T] bool, places whose item can be asked for; None: all.
        """
        context = dict(sequences.context)
        if features.history_age is not None:
            context[features.history_age.column] = ages(sequences)
        return cls(
            items=tf.constant(sequences.items),
            weights=tf.constant(weights),
            is_target=tf.constant(np.ones(len(weights), bool) if is_target is None else is_target),
            starts=tf.constant(sequences.starts.astype(np.int32)),
            owner=tf.constant(sequences.owner.astype(np.int32)),
            of_users={key: tf.constant(values) for key, values in sequences.features.items()},
            of_places={key: tf.constant(values) for key, values in context.items()},
        )

    @property
    def signature(self) -> SequenceTensors:
        """Types and shapes, whatever users they are of."""
        return tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), self)


class Windows:
    """Batches of windows up to some places, a part of each hidden, or some of their places asked for.

    Args:
        features: What the query tower reads.
        model: `mask_rate` of it.
        training: Batch size, objective and locality.
        repeats: Whether an item can be asked for that is known: a query then sees the earlier times, and what it sees
            is a negative as well, or nothing would say that most of it does not come again.
    """

    def __init__(self, features: Features, model: Model, training: Training, repeats: bool = False) -> None:
        self._batch_size = training.batch_size
        self._rate, self._locality = model.mask_rate, training.locality
        self._history, self._repeats = features.history, repeats
        self._masks_items = masks_items(features, model, training)
        self._all_places = asks_all_places(features, model)
        self._targets = 1 if training.negatives == "in_batch" else training.sampled_targets
        self._size = 1 + (self._history.max_length if self._history else 0)

    def steps(self, ends: np.ndarray, seed: int, first: int = 0) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """What `cut` is given in each step: the newest places of windows [B] int32 in this order, and a seed [2].

        Args:
            ends: Places of the sequences, [C].
            seed: Of what is drawn in each step of an epoch.
            first: Number of the first step within the epoch.
        """
        for step, start in enumerate(range(0, len(ends), self._batch_size), first):
            some = ends[start : start + self._batch_size]
            yield tf.constant(some, tf.int32), tf.constant([seed, 100 * step], tf.int32)

    def cut(self, tensors: SequenceTensors, ends: tf.Tensor, seed: tf.Tensor) -> Batch:
        """The windows up to places [B], in graph: within the training step, a window need not be copied to it."""
        index = ends[:, tf.newaxis] - tf.range(self._size)[tf.newaxis]
        inside = index >= tf.gather(tensors.starts, ends)[:, tf.newaxis]
        index = tf.maximum(index, 0)
        window = tf.where(inside, tf.gather(tensors.items, index), 0)
        if self._all_places:
            return self._cut_all(tensors, window, index, inside & tf.gather(tensors.is_target, index), seed)
        query = _features_of(tensors, ends)
        if self._masks_items:
            hidden, visible = mask_items(window, self._rate, seed)
            near = closeness(window, self._locality, seed + 5)
        else:
            hidden, visible = mask_next(window, self._rate, seed, self._repeats)
            near = tf.ones_like(window, tf.float32)
        if self._history is not None:
            query[self._history.column] = visible
        targets = near * tf.cast(hidden, tf.float32)
        return Batch(query, self._known(window, hidden), targets, near, tf.gather(tensors.weights, ends), seed)

    def _known(self, window: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
        """`Batch.window`: what a loss asks for, and what takes no part in it because it is known."""
        return tf.where(hidden, window, 0) if self._repeats else window

    def _cut_all(
        self, tensors: SequenceTensors, window: tf.Tensor, index: tf.Tensor, can_be: tf.Tensor, seed: tf.Tensor
    ) -> Batch:
        """The rows that ask for some places of each window, everything before a place being its history.

        Args:
            tensors: What the windows are of.
            window: [B, S].
            index: [B, S] places of the sequences.
            can_be: [B, S] bool, what can be asked for.
            seed: [2].
        """
        # Rows of a batch are of about one length (sampling.by_length), most of them far below that of a window.
        longest = tf.reduce_max(tf.reduce_sum(tf.cast(window > 0, tf.int32), axis=1))
        window, index, can_be = window[:, :longest], index[:, :longest], can_be[:, :longest]
        chosen = some_places(window, can_be, self._targets, seed, self._repeats)
        # A loss needs a row; where nothing can be asked for it counts nothing.
        is_empty = ~tf.reduce_any(chosen)
        chosen |= is_empty & tf.reshape(tf.range(tf.size(window)) == 0, tf.shape(window))
        row, place = tf.unstack(tf.cast(tf.where(chosen), tf.int32), axis=1)
        of_row = tf.range(tf.shape(window)[1])[tf.newaxis] - place[:, tf.newaxis]
        known = tf.where(of_row >= 0, tf.gather(window, row), 0)
        targets = tf.cast(of_row == 0, tf.float32)
        ends = tf.gather_nd(index, tf.stack([row, place], axis=1))
        query = _features_of(tensors, ends)
        assert self._history is not None
        query[self._history.column] = tf.where(of_row > 0, known, 0)
        # A user's places share what the user counts.
        count = tf.math.unsorted_segment_sum(tf.ones_like(ends), row, tf.shape(window)[0])
        weight = tf.gather(tensors.weights, ends) / tf.cast(tf.gather(count, row), tf.float32)
        weight *= 1.0 - tf.cast(is_empty, tf.float32)
        places = Places(window[:, 1:], row, place)
        return Batch(
            query, self._known(known, of_row == 0), targets, tf.ones_like(targets), weight, seed, places=places
        )


def _features_of(tensors: SequenceTensors, ends: tf.Tensor) -> dict[str, tf.Tensor]:
    """Query features but the history, of the user and of the interaction at each of some places [B]."""
    owner = tf.gather(tensors.owner, ends)
    query = {key: tf.gather(values, owner) for key, values in tensors.of_users.items()}
    return query | {key: tf.gather(values, ends) for key, values in tensors.of_places.items()}


def masks_items(features: Features, model: Model, training: Training) -> bool:
    """Whether the objective is `masked_items`; without a history there is nothing to find an item from but itself."""
    if features.history is None or asks_all_places(features, model):
        return False
    return training.objective == "masked_items"


def ages(sequences: Sequences) -> np.ndarray:
    """[T] float32 seconds from the item before each place to it, as the encoding of the history's age has them."""
    # The encoding's missing value.
    return np.nan_to_num(histories.ages(sequences.times, sequences.offsets[:-1]), nan=0.0).astype(np.float32)
