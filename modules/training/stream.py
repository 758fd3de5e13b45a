"""The train split: whole in memory where it is small, else a stream of chunks from the transformed files.

A chunk is some users' whole sequences, so that what cuts a step's windows is the same for both. Chunks are the buffer
that shuffles: within one users come in a random order, and files and parts of them in another order in each pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar, Union

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from modules.data.examples import HELD_OUT, SEQUENCE_PREFIX, TIME, USER, WEIGHT
from modules.data.time_histogram import TimeHistogram
from modules.encodings.features import Columns, Features
from modules.towers.terms import encoded_keys
from modules.training.dataset import (
    Queries,
    Sequences,
    Specification,
    keys_beside_history,
    most_queries,
    queries_of,
)
from modules.training.transformed import Lists, compact, dense, files_of, lists, read_batches, records_of

# An epoch that does not read everything reads from so many files at once, if there are as many: those of one may have
# something in common.
_FILES_AT_ONCE = 4

_T = TypeVar("_T")


class Part(NamedTuple):
    """What an epoch reads: of some files every `step`-th user, from the `first` one on."""

    files: tuple[str, ...]
    step: int
    first: int
    share: float
    """Of all users that it has."""


@dataclass(frozen=True)
class Reader:
    """Reads train examples as sequences."""

    features: Features
    columns: Columns
    tft_output: tft.TFTransformOutput

    def pieces(self, records: tf.data.Dataset) -> Iterator[Sequences]:
        """Sequences in the order of the records, a batch of them at a time."""
        keys = keys_beside_history(self.features)
        known = self.tft_output.transformed_feature_spec()
        of_interactions = [key for key in keys if SEQUENCE_PREFIX + key in known]
        of_users = [key for key in keys if key not in of_interactions]
        names = (self.columns.item, TIME, WEIGHT, HELD_OUT)
        items, times, weights, held_out = (SEQUENCE_PREFIX + name for name in names)
        of_places = [items, times, weights, held_out, *(SEQUENCE_PREFIX + key for key in of_interactions)]
        encoded = encoded_keys(self.features.query)
        for read in read_batches(records, [*of_users, USER, *of_places], self.tft_output):

            def flat(key: str, read: dict[str, np.ndarray | Lists] = read) -> np.ndarray:
                return lists(read, key).values

            yield Sequences(
                offsets=lists(read, items).offsets,
                user=dense(read, USER),
                features={key: compact(dense(read, key)) for key in of_users},
                items=flat(items).astype(np.int32),
                times=flat(times),
                weights=flat(weights),
                is_validation=flat(held_out) > 0,
                context={k: compact(flat(SEQUENCE_PREFIX + k).reshape(-1, *encoded[k].shape)) for k in of_interactions},
            )

    def counts(self, file: str) -> np.ndarray:
        """[U] int32 interactions of each user of a file; nothing else is parsed."""
        items = SEQUENCE_PREFIX + self.columns.item
        batches = read_batches(records_of([file]), [items], self.tft_output)
        lengths = (lists(batch, items).lengths.astype(np.int32) for batch in batches)
        return np.concatenate([np.zeros(0, np.int32), *lengths])


@dataclass(frozen=True)
class Stream:
    """Users' sequences of which not more than `limit` interactions are in memory at once."""

    reader: Reader
    files: tuple[str, ...]
    users: np.ndarray
    """[F] users of each file."""
    counts: np.ndarray
    """[U] int32 interactions of each user, in the order of the files."""
    limit: int
    held_out_from: int | None = None
    """Seconds from which on interactions are validation; None: as the examples say."""
    has_validation: bool = True
    """Whether the places that belong to validation are among the sequences."""

    def without_validation(self) -> Stream:
        """The places that do not belong to validation."""
        return replace(self, has_validation=False)

    def chunks(self) -> Iterator[Sequences]:
        """All of it, in the order of the files."""
        return self._chunks(records_of(self.files))

    def chunks_of(self, part: Part) -> Iterator[Sequences]:
        """What an epoch reads."""
        return self._chunks(records_of(part.files, _FILES_AT_ONCE, part.step, part.first))

    def part(self, users: int, seed: int, epoch: int) -> Part:
        """What an epoch reads: everything, or of at least so many users, about; a pass of epochs has each user once.

        Args:
            users: Wanted in an epoch.
            seed: Of the order in which a pass reads the files and their parts.
            epoch: Its number, from 0.
        """
        total = int(self.users.sum())
        at_once = max(_FILES_AT_ONCE, math.ceil(len(self.files) * users / total))
        for number in itertools.count():
            rng = np.random.default_rng([seed, number])
            order = rng.permutation(len(self.files))
            parts = []
            for start in range(0, len(order), at_once):
                some = order[start : start + at_once]
                files, of_files = tuple(self.files[file] for file in some), int(self.users[some].sum())
                step = max(1, of_files // users)
                parts += [Part(files, step, first, of_files / step / total) for first in range(step)]
            if epoch < len(parts):
                return parts[rng.permutation(len(parts))[epoch]]
            epoch -= len(parts)
        raise AssertionError

    def _chunks(self, records: tf.data.Dataset) -> Iterator[Sequences]:
        # Of what is ready and what is read ahead, each has half.
        return chunked((self._kept(piece) for piece in self.reader.pieces(records)), max(1, self.limit // 2))

    def _kept(self, sequences: Sequences) -> Sequences:
        if self.held_out_from is not None:
            sequences = replace(sequences, is_validation=sequences.times >= self.held_out_from)
        return sequences if self.has_validation else sequences.without_validation()


Train = Union[Sequences, Stream]
"""What a fit is fitted on."""


def read_train(patterns: Sequence[str], specification: Specification, tft_output: tft.TFTransformOutput) -> Train:
    """The train split, one sequence for each user: in memory up to `training.cache_interactions`, else a stream."""
    reader = Reader(specification.features, specification.columns, tft_output)
    files, limit = files_of(patterns), specification.training.cache_interactions
    read = _up_to(reader.pieces(records_of(files)), limit)
    if read is not None:
        return _in_order(read)
    counts = [reader.counts(file) for file in files]
    users = np.array([len(of_file) for of_file in counts])
    return Stream(reader, tuple(files), users, np.concatenate(counts), limit)


def latest_held_out(train: Train, share: float) -> Train:
    """The same with the latest `share` of the interactions as validation, cut between two different times."""
    histogram = TimeHistogram.total(TimeHistogram.of(chunk.times) for chunk in train.chunks())
    cut = histogram.latest(share).time if len(histogram.steps) else 0
    if isinstance(train, Stream):
        return replace(train, held_out_from=cut)
    return replace(train, is_validation=train.times >= cut)


def held_out_queries(specification: Specification, train: Train, mode: Literal["train", "rolling"]) -> Queries | None:
    """What the places that are validation ask; see `dataset.queries_of`.

    Args:
        specification: Of the fit.
        train: Whose validation asks.
        mode: `evaluation.history`.
    """
    if isinstance(train, Sequences):
        return queries_of(specification, train, mode)
    asks = [np.bincount(chunk.owner, chunk.is_validation, len(chunk)) > 0 for chunk in train.chunks()]
    asking = np.random.default_rng(specification.training.seed).permutation(np.flatnonzero(np.concatenate(asks)))
    chosen = np.sort(asking[: most_queries(specification.catalogue)])
    start, some = 0, []
    for chunk in train.chunks():
        some.append(chunk.users(within(chosen, start, len(chunk))))
        start += len(chunk)
    return queries_of(specification, Sequences.joined(some), mode)


def within(chosen: np.ndarray, start: int, count: int) -> np.ndarray:
    """Those of some rising numbers that are among the `count` from `start` on, counted from there."""
    return chosen[slice(*np.searchsorted(chosen, [start, start + count]))] - start


def chunked(pieces: Iterable[Sequences], limit: int) -> Iterator[Sequences]:
    """Pieces one after the other, in chunks of at most so many interactions, but of at least one user."""
    held: list[Sequences] = []
    count = 0
    for piece in pieces:
        while count + len(piece.items) > limit:
            fitting = int(np.searchsorted(piece.offsets, limit - count, side="right")) - 1
            fitting = fitting if held else max(1, fitting)
            held.append(piece.users(np.arange(fitting)))
            yield Sequences.joined(held)
            piece, count = piece.users(np.arange(fitting, len(piece))), 0
        if len(piece):
            held.append(piece)
            count += len(piece.items)
    if held:
        yield Sequences.joined(held)


def _up_to(pieces: Iterator[Sequences], limit: int) -> list[Sequences] | None:
    """All of the pieces; None where they have more interactions."""
    held, count = [], 0
    for piece in pieces:
        held.append(piece)
        count += len(piece.items)
        if count > limit:
            return None
    return held


def _in_order(pieces: list[Sequences]) -> Sequences:
    """Users by their hashes, so that nothing depends on the order of the files."""
    return Sequences.joined(pieces, lambda user, counts: np.lexsort((counts, user)))


def ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same; each is made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(next, items, None)
        while (item := made.result()) is not None:
            made = pool.submit(next, items, None)
            yield item
