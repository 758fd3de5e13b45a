"""What one fit is trained on, and what it counts of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from modules.popularity import recent_lift
from modules.towers.two_tower import asks_all_places
from modules.training import sampling
from modules.training.dataset import Sequences, Specification
from modules.training.windows import Windows, masks_items

# Users whose features stand for everybody's in a cold-start query.
_COLD_START_USERS = 64


@dataclass(frozen=True)
class TrainingData:
    """What one fit is trained on, and what it counts of it."""

    specification: Specification
    sequences: Sequences
    """Of the users that have something trainable."""
    sets: Sequences
    """The same with each item of a user once, at its newest place, up to the newest one that can be an answer."""
    is_trainable: np.ndarray
    """[T] places of `sequences` whose item can be an answer."""
    windows: Windows

    @classmethod
    def of(cls, specification: Specification, sequences: Sequences) -> TrainingData:
        catalogue, settings, features = specification.catalogue, specification.training, specification.features
        trainable = sequences.trainable(catalogue)
        # Behind the last item that can be an answer nothing is asked for.
        last = np.full(len(sequences), -1)
        np.maximum.at(last, sequences.owner[trainable], np.flatnonzero(trainable))
        sequences = sequences.take(np.arange(len(trainable)) <= last[sequences.owner])
        is_trainable = sequences.trainable(catalogue)
        sets = sequences.distinct()
        size = features.history.max_length + 1 if features.history else 1
        sets = sets.take(np.repeat(sets.offsets[1:], sets.counts) - np.arange(len(sets.items)) <= size)
        counts = np.bincount(sequences.owner[is_trainable], minlength=len(sequences))
        model = specification.model
        if masks_items(features, model, settings):
            weights = np.zeros(len(sets.items), np.float32)
            newest = sets.offsets[1:] - 1
            weights[newest] = sets.weights[newest] * sampling.user_weights(counts, settings.user_exponent)
            windows = Windows(sets, features, model, settings, weights)
        else:
            weights = sequences.weights
            if asks_all_places(features, model):
                weights = weights * sampling.user_weights(counts, settings.user_exponent)[sequences.owner]
            windows = Windows(sequences, features, model, settings, weights, is_trainable)
        return cls(specification, sequences, sets, is_trainable, windows)

    @property
    def counts(self) -> np.ndarray:
        """[U] trainable interactions of each user."""
        return np.bincount(self.sequences.owner[self.is_trainable], minlength=len(self.sequences))

    @functools.cached_property
    def has_next(self) -> np.ndarray:
        """[U] bool: users with an item that can be asked for, and that comes new after another one."""
        sequences = self.sequences
        size = int(sequences.items.max(initial=0)) + 1
        _, first = np.unique(sequences.owner * size + sequences.items, return_index=True)
        asked = first[self.is_trainable[first] & (first > sequences.starts[first])]
        return np.bincount(sequences.owner[asked], minlength=len(sequences)) > 0

    @property
    def labels(self) -> np.ndarray:
        """Of the trainable interactions."""
        return self.sequences.items[self.is_trainable]

    @property
    def frequency(self) -> np.ndarray:
        """[V + 1] float32 trainable interactions by label."""
        size = len(self.specification.catalogue.is_candidate)
        return np.bincount(self.labels, minlength=size).astype(np.float32)

    def lift(self, window: float) -> np.ndarray:
        """[V + 1] recent popularity lift."""
        prior, is_candidate = self.specification.training.lift_prior, self.specification.catalogue.is_candidate
        return recent_lift(self.labels, self.sequences.times[self.is_trainable], window, prior, is_candidate)

    def epoch(self, number: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """What the windows of each step of an epoch are cut by."""
        settings, counts = self.specification.training, self.counts
        features, model = self.specification.features, self.specification.model
        if asks_all_places(features, model):
            assert features.history is not None
            users = sampling.draw_users(counts, settings.user_exponent, settings.seed, number)
            users = users[self.has_next[users]]
            size = features.history.max_length + 1
            places = sampling.draw_ends(self.sequences.offsets, users, size, settings.seed, number)
            lengths = np.minimum(self.sequences.counts[users], size)
            places = places[sampling.by_length(lengths, settings.batch_size, settings.seed, number)]
        elif masks_items(features, model, settings):
            users = sampling.draw_users(counts, settings.user_exponent, settings.seed, number)
            places = self.sets.offsets[1:][users] - 1
        else:
            trainable = np.flatnonzero(self.is_trainable)
            of_user = counts[self.sequences.owner[trainable]]
            places = sampling.draw_places(trainable, of_user, settings.user_exponent, settings.seed, number)
        places = places[: settings.epoch_steps * settings.batch_size]
        return self.windows.steps(places, settings.seed + 1000 * number)

    def cold_start(self, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Query features of some users as they began, and [V + 1] how likely items are.

        Every user counts alike: who comes new is one, however many interactions they will have.
        """
        trainable = np.flatnonzero(self.is_trainable)
        owner = self.sequences.owner[trainable]
        users, first = np.unique(owner, return_index=True)
        some = np.sort(np.random.default_rng(seed).permutation(len(users))[:_COLD_START_USERS])
        queries = {key: values[users[some]] for key, values in self.sequences.features.items()}
        queries |= {key: values[trainable[first[some]]] for key, values in self.sequences.context.items()}
        if (age := self.specification.features.history_age) is not None:
            queries[age.column] = np.zeros(len(some), np.float32)
        size = len(self.specification.catalogue.is_candidate)
        return queries, np.bincount(self.labels, 1.0 / self.counts[owner], minlength=size)
