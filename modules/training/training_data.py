"""What one fit is trained on, epoch by epoch, from memory or from a stream."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from modules.popularity import recent_lift
from modules.training import sampling
from modules.training.chunk import Chunk
from modules.training.dataset import Sequences, Specification
from modules.training.sampling import Draw
from modules.training.stream import Stream, Train, ahead
from modules.training.totals import Totals
from modules.training.windows import SequenceTensors, Windows


class Step(NamedTuple):
    """What a training step is given."""

    tensors: SequenceTensors
    """Of the chunk that it is cut from."""
    ends: tf.Tensor
    """[B] int32, the newest places of its windows."""
    seed: tf.Tensor
    """[2] int32."""


class TrainingData:
    """What one fit is trained on, and what it counts of it.

    Args:
        specification: Of the fit.
        train: Users' sequences.

    Raises:
        UserError: There is nothing trainable.
    """

    def __init__(self, specification: Specification, train: Train) -> None:
        self._specification, self._stream = specification, train if isinstance(train, Stream) else None
        settings = specification.training
        self._whole = Chunk.of(specification, train) if isinstance(train, Sequences) else None
        size = len(specification.catalogue.is_candidate)
        self.totals = Totals.of(self._chunks, size, settings.recent_windows, settings.seed)
        self.windows = Windows(specification.features, specification.model, settings, specification.repeats)

    @property
    def frequency(self) -> np.ndarray:
        """[V + 1] float32 trainable interactions by label."""
        return self.totals.frequency.astype(np.float32)

    @property
    def steps(self) -> float:
        """Steps through all data, on average."""
        settings = self._specification.training
        return sampling.expected_steps(self.totals.counts, settings.user_exponent, settings.batch_size)

    @functools.cached_property
    def signature(self) -> Step:
        """Types and shapes of every step."""
        tensors = next(self._chunks()).tensors.signature
        return Step(tensors, tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32))

    def lift(self, window: float) -> np.ndarray:
        """[V + 1] recent popularity lift."""
        prior, is_candidate = self._specification.training.lift_prior, self._specification.catalogue.is_candidate
        return recent_lift(self.totals.frequency, self.totals.recent[window], prior, is_candidate)

    def epoch(self, number: int) -> Iterator[Step]:
        """The steps of an epoch, `training.epoch_steps` of them at most."""
        settings = self._specification.training
        times = float(np.mean(self.totals.counts**settings.user_exponent))
        share, done = 1.0, 0
        chunks = self._chunks()
        if self._stream is not None:
            rows = settings.epoch_steps * settings.batch_size
            part = self._stream.part(rows, settings.seed, number)
            share = min(1.0, rows / (part.share * times * len(self.totals.counts)))
            chunks = ahead(Chunk.of(self._specification, some) for some in self._stream.chunks_of(part))
        for place, chunk in enumerate(chunks):
            ends = chunk.ends(Draw(settings.seed, number, place), times, share)
            ends = ends[: (settings.epoch_steps - done) * settings.batch_size]
            for step in self.windows.steps(ends, settings.seed + 1000 * number, done):
                yield Step(chunk.tensors, *step)
                done += 1

    def cold_start(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Query features of some users as they began, and [V + 1] how likely items are.

        Every user counts alike: who comes new is one, however many interactions they will have.
        """
        some = self.totals.beginners
        queries = {**some.features, **some.context}
        if (age := self._specification.features.history_age) is not None:
            queries[age.column] = np.zeros(len(some), np.float32)
        return queries, self.totals.first_share

    def _chunks(self) -> Iterator[Chunk]:
        """All users, in the same order each time."""
        if self._whole is not None:
            yield self._whole
        elif self._stream is not None:
            for sequences in self._stream.chunks():
                yield Chunk.of(self._specification, sequences)
