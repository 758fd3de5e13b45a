"""Users whose sequences are in memory, ready to be trained on: all of a fit's, or some of them at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from modules.towers.two_tower import asks_all_places
from modules.training import sampling
from modules.training.dataset import Sequences, Specification
from modules.training.sampling import Draw
from modules.training.windows import SequenceTensors, masks_items


@dataclass(frozen=True)
class Chunk:
    """Users whose sequences are in memory, ready to be trained on."""

    specification: Specification
    sequences: Sequences
    """Of the users that have something trainable."""
    sets: Sequences
    """The same with each item of a user once, at its newest place, up to the newest one that can be an answer; with
    `Specification.repeats` every place."""
    is_trainable: np.ndarray
    """[T] places of `sequences` whose item can be an answer."""

    @classmethod
    def of(cls, specification: Specification, sequences: Sequences) -> Chunk:
        """Of some users; who has nothing trainable is left out."""
        catalogue, features = specification.catalogue, specification.features
        trainable = sequences.trainable(catalogue)
        # Behind the last item that can be an answer nothing is asked for.
        last = np.full(len(sequences), -1)
        np.maximum.at(last, sequences.owner[trainable], np.flatnonzero(trainable))
        sequences = sequences.take(np.arange(len(trainable)) <= last[sequences.owner])
        sets = sequences if specification.repeats else sequences.distinct()
        size = features.history.max_length + 1 if features.history else 1
        sets = sets.take(np.repeat(sets.offsets[1:], sets.counts) - np.arange(len(sets.items)) <= size)
        return cls(specification, sequences, sets, sequences.trainable(catalogue))

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """[U] trainable interactions of each user."""
        return np.bincount(self.sequences.owner[self.is_trainable], minlength=len(self.sequences))

    @functools.cached_property
    def has_next(self) -> np.ndarray:
        """[U] bool: users with an item that can be asked for, and that comes, new or again, after another one."""
        sequences = self.sequences
        places = np.arange(len(sequences.items))
        if not self.specification.repeats:
            size = int(sequences.items.max(initial=0)) + 1
            _, places = np.unique(sequences.owner * size + sequences.items, return_index=True)
        asked = places[self.is_trainable[places] & (places > sequences.starts[places])]
        return np.bincount(sequences.owner[asked], minlength=len(sequences)) > 0

    @property
    def labels(self) -> np.ndarray:
        """Of the trainable interactions."""
        return self.sequences.items[self.is_trainable]

    @functools.cached_property
    def tensors(self) -> SequenceTensors:
        """What windows are cut from."""
        features, model, settings = self.specification.features, self.specification.model, self.specification.training
        # In a step only the proportions of weights count, so that each chunk may have its own mean.
        of_users = sampling.user_weights(self.counts, settings.user_exponent)
        if masks_items(features, model, settings):
            weights = np.zeros(len(self.sets.items), np.float32)
            newest = self.sets.offsets[1:] - 1
            weights[newest] = self.sets.weights[newest] * of_users
            return SequenceTensors.of(self.sets, features, weights)
        weights = self.sequences.weights
        if asks_all_places(features, model):
            weights = weights * of_users[self.sequences.owner]
        return SequenceTensors.of(self.sequences, features, weights, self.is_trainable)

    def ends(self, draw: Draw, times: float, share: float = 1.0) -> np.ndarray:
        """The newest places [C] of the windows that an epoch trains on, in this order.

        Args:
            draw: What it depends on.
            times: n ** user_exponent of a user with n interactions, on average over all users of all chunks.
            share: How many of the windows there are to be, in proportion to those of an epoch through all data.
        """
        features, model, settings = self.specification.features, self.specification.model, self.specification.training
        if asks_all_places(features, model):
            assert features.history is not None
            users = sampling.draw_users(len(self.counts), share * times, draw)
            users = users[self.has_next[users]]
            size = features.history.max_length + 1
            ends = sampling.draw_ends(self.sequences.offsets, users, size, draw)
            lengths = np.minimum(self.sequences.counts[users], size)
            return ends[sampling.by_length(lengths, settings.batch_size, draw)]
        if masks_items(features, model, settings):
            return self.sets.offsets[1:][sampling.draw_users(len(self.counts), share * times, draw)] - 1
        trainable = np.flatnonzero(self.is_trainable)
        of_user = self.counts[self.sequences.owner[trainable]]
        return sampling.draw_places(trainable, of_user, settings.user_exponent, draw, share)

    def beginnings(self, users: np.ndarray) -> Sequences:
        """The first trainable interaction of some users [C], in the order of their numbers."""
        trainable = np.flatnonzero(self.is_trainable)
        _, first = np.unique(self.sequences.owner[trainable], return_index=True)
        some = np.zeros(len(self.is_trainable), bool)
        some[trainable[first[users]]] = True
        return self.sequences.take(some)
