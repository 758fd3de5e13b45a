"""What a fit reads: users' sequences, validation's queries and the catalogue, as Transform encodes them.

Sequences lie in flat arrays, each interaction once. What a training step needs of them, a window up to a place with a
part of it hidden, is cut in the input pipeline (training/windows.py) and never stored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import tensorflow_transform as tft

from modules.data import histories
from modules.data.examples import LABEL, RELEVANT, TRAIN, USER, VALIDATION
from modules.encodings import items as item_ids
from modules.encodings.features import Columns, Features
from modules.encodings.history import newest_first
from modules.settings import Model, Training
from modules.towers.terms import encoded_keys
from modules.training.transformed import Lists, compact, dense, lists, ranges, read_whole

# After an epoch a fixed draw of the validation queries is ranked: at most so many, and with a large catalogue as many
# as make this number of scores, but some hundreds in any case: fewer would say nothing.
_MAX_QUERIES, _MAX_SCORES, _MIN_QUERIES = 10_000, 2**24, 250
# Items out of vocabulary, at most, whose scores are looked at: what all of them score together they say well enough.
_NEW_ITEMS = 20_000


@dataclass(frozen=True)
class CandidateTable:
    """Transformed candidate features by label, [V + 1, ...]; row 0 and items without a row are no candidates."""

    features: Mapping[str, np.ndarray]
    is_candidate: np.ndarray
    out_of_vocabulary: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The same [N, ...] of a draw of the items that nobody has interacted with, not even in validation."""
    of_each: float = 1.0
    """How many items each of that draw stands for."""
    tells_new_items: bool = True
    """Whether items without interactions are told from rare ones: not where the vocabulary is capped."""

    @property
    def labels(self) -> np.ndarray:
        """Labels of the items that can be an answer, rising."""
        return np.flatnonzero(self.is_candidate)

    def label_of(self, items: np.ndarray) -> np.ndarray:
        """Item ids as labels: what is out of vocabulary has 0."""
        return np.where(items < len(self.is_candidate), items, 0)


@dataclass(frozen=True)
class Specification:
    """All that a fit needs beside what it is fitted on."""

    features: Features
    columns: Columns
    model: Model
    training: Training
    cardinalities: Mapping[str, int]
    item_rows: int
    """Rows of the table that the history and the item id share: 1 + V + out-of-vocabulary buckets."""
    catalogue: CandidateTable
    repeats: bool = False
    """Whether an item of the history can be the answer: `serving.exclude_history` is off."""

    def setting(self, name: str) -> float:
        """The value of `model.…` or `training.…`."""
        section, _, key = name.partition(".")
        return getattr(getattr(self, section), key)

    def with_settings(self, values: Mapping[str, Any]) -> Specification:
        """The same under other values of `model.…` and `training.…`."""
        sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
        for name, value in values.items():
            section, _, key = name.partition(".")
            sections[section][key] = value
        return replace(
            self,
            model=Model.model_validate(self.model.model_dump() | sections["model"]),
            training=Training.model_validate(self.training.model_dump() | sections["training"]),
        )


@dataclass(frozen=True)
class Sequences:
    """Users' interactions, oldest first, one user after the other; a place is a position in the flat arrays.

    User u has the places offsets[u] … offsets[u + 1] − 1. Users are in the order of their hash, so that nothing depends
    on the order of the files.
    """

    offsets: np.ndarray
    """[U + 1] int64."""
    user: np.ndarray
    """[U] int64 hashes."""
    features: Mapping[str, np.ndarray]
    """Encoded key → [U, ...], of the user's columns."""
    items: np.ndarray
    """[T] int32 item ids: 1 … V, above V out of vocabulary."""
    times: np.ndarray
    """[T] int64 seconds."""
    weights: np.ndarray
    """[T] float32."""
    is_validation: np.ndarray
    """[T] bool."""
    context: Mapping[str, np.ndarray]
    """Encoded key → [T, ...], of the interaction's own columns."""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def counts(self) -> np.ndarray:
        """[U] interactions of each user."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> np.ndarray:
        """[T] user of each place, from 0."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def starts(self) -> np.ndarray:
        """[T] where the sequence of each place begins."""
        return np.repeat(self.offsets[:-1], self.counts)

    @classmethod
    def joined(
        cls, pieces: list[Sequences], order: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    ) -> Sequences:
        """Several one after the other; the list is emptied, so that no more than one array is held twice.

        Args:
            pieces: At least one.
            order: Hashes [U] and counts [U] of the users → their order; None: as they come.
        """
        parts = [{f.name: getattr(piece, f.name) for f in fields(piece)} | {"counts": piece.counts} for piece in pieces]
        pieces.clear()

        def taken(values: Sequence[dict[str, np.ndarray]], key: str) -> np.ndarray:
            return np.concatenate([part.pop(key) for part in values])

        user, counts = taken(parts, "user"), taken(parts, "counts")
        users: np.ndarray | slice = slice(None)
        places: np.ndarray | slice = slice(None)
        if order is not None:
            users = order(user, counts)
            places = ranges((np.cumsum(counts) - counts)[users], counts[users])
        nested = {name: [part.pop(name) for part in parts] for name in ("features", "context")}
        return cls(
            offsets=np.append(0, np.cumsum(counts[users])),
            user=user[users],
            features={key: taken(nested["features"], key)[users] for key in list(nested["features"][0])},
            context={key: taken(nested["context"], key)[places] for key in list(nested["context"][0])},
            **{name: taken(parts, name)[places] for name in ("items", "times", "weights", "is_validation")},
        )

    def chunks(self) -> Iterator[Sequences]:
        """Itself, the only chunk: what a `Stream` (training/stream.py) has several of."""
        yield self

    def without_validation(self) -> Sequences:
        """The places that do not belong to validation."""
        return self.take(~self.is_validation)

    def take(self, kept: np.ndarray) -> Sequences:
        """The places where `kept` [T] bool is true, of the users that have one left."""
        if kept.all() and self.counts.all():
            return self
        counts = np.bincount(self.owner[kept], minlength=len(self))
        return self._of_users(np.flatnonzero(counts), np.flatnonzero(kept), counts)

    def users(self, chosen: np.ndarray) -> Sequences:
        """Some users whole, in the order of their numbers [C]."""
        return self._of_users(chosen, ranges(self.offsets[:-1][chosen], self.counts[chosen]), self.counts)

    def _of_users(self, users: np.ndarray, places: np.ndarray, counts: np.ndarray) -> Sequences:
        return Sequences(
            offsets=np.append(0, np.cumsum(counts[users])),
            user=self.user[users],
            features={key: values[users] for key, values in self.features.items()},
            items=self.items[places],
            times=self.times[places],
            weights=self.weights[places],
            is_validation=self.is_validation[places],
            context={key: values[places] for key, values in self.context.items()},
        )

    def trainable(self, catalogue: CandidateTable) -> np.ndarray:
        """[T] bool: places whose item can be an answer."""
        return catalogue.is_candidate[catalogue.label_of(self.items)]

    def distinct(self) -> Sequences:
        """The same with each item of a user once, at its newest place."""
        size = int(self.items.max(initial=0)) + 1
        # The first of equal keys when read from the end is the newest place.
        _, from_end = np.unique((self.owner * size + self.items)[::-1], return_index=True)
        kept = np.zeros(len(self.items), bool)
        kept[len(self.items) - 1 - from_end] = True
        return self.take(kept)


@dataclass(frozen=True)
class Queries:
    """What validation asks: features [Q, ...], and for each query its relevant and its seen labels, 0-padded."""

    features: Mapping[str, np.ndarray]
    relevant: np.ndarray
    """[Q, R], at least one each, none of them seen."""
    seen: np.ndarray
    """[Q, S] what cannot be an answer: the whole history; nothing where `Specification.repeats`."""

    def __len__(self) -> int:
        return len(self.relevant)


def read_specification(
    config: Mapping[str, str], train_files: Sequence[str], tft_output: tft.TFTransformOutput
) -> Specification:
    """The settings, and what Transform learned and encoded of the catalogue, whose split lies beside `train_files`.

    Args:
        config: `features`, `columns`, `model` and `training`, JSON of each, as in custom_config of Trainer and Tuner;
            `repeats` is `true` where an item of the history can be the answer.
        train_files: Patterns of the train split's files.
        tft_output: Of Transform.
    """
    features = Features.model_validate_json(config["features"])
    columns = Columns.model_validate_json(config["columns"])
    catalogue_files = os.path.join(os.path.dirname(os.path.dirname(train_files[0])), "Split-catalogue", "*")
    items = features.items(columns)
    return Specification(
        features=features,
        columns=columns,
        model=Model.model_validate_json(config["model"]),
        training=Training.model_validate_json(config["training"]),
        cardinalities={f.column: rows for f in features.all if (rows := f.cardinality(tft_output, items)) is not None},
        item_rows=items.rows(tft_output),
        # In a vocabulary with limits it cannot be told what is new from what is rare.
        catalogue=read_catalogue(
            [catalogue_files], features, tft_output, items.min_count <= 1 and items.max_size is None
        ),
        repeats=json.loads(config.get("repeats", "false")),
    )


def read_catalogue(
    patterns: Sequence[str], features: Features, tft_output: tft.TFTransformOutput, is_whole: bool = False
) -> CandidateTable:
    """The candidate side of the transformed items, laid out by label.

    Args:
        patterns: Files of the catalogue split.
        features: Of both towers.
        tft_output: Of Transform.
        is_whole: Whether the vocabulary has all items with interactions, so that those outside of it have none; else
            these are left out, and new items are not told from rare ones.
    """
    arrays = read_whole(patterns, [*encoded_keys(features.candidate), LABEL], tft_output)
    labels = dense(arrays, LABEL)
    items = len(item_ids.frequency(tft_output))
    is_candidate = np.zeros(items + 1, bool)
    is_candidate[labels] = True
    is_candidate[0] = False
    by_label, new = {}, {}
    for key in encoded_keys(features.candidate):
        values = compact(dense(arrays, key))
        by_label[key] = np.zeros((items + 1, *values.shape[1:]), values.dtype)
        by_label[key][labels] = values
        new[key] = values[labels == 0]
    count = np.count_nonzero(labels == 0)
    if not is_whole or not count:
        return CandidateTable(by_label, is_candidate, tells_new_items=is_whole)
    # In an order that is not that of the files; without an id of its own an item is what its features are.
    columns = [np.ascontiguousarray(values.reshape(count, -1)).view(np.uint8) for values in new.values()]
    as_bytes = np.ascontiguousarray(np.concatenate(columns, axis=1))
    order = np.argsort(as_bytes.view(f"V{as_bytes.shape[1]}").ravel(), kind="stable")
    if count > _NEW_ITEMS:
        order = order[np.random.default_rng(0).choice(count, _NEW_ITEMS, replace=False)]
    return CandidateTable(
        by_label, is_candidate, {key: values[order] for key, values in new.items()}, count / len(order)
    )


def read_queries(
    patterns: Sequence[str], specification: Specification, tft_output: tft.TFTransformOutput
) -> Queries | None:
    """The queries of the validation split; None if none of them can be answered."""
    features = specification.features
    keys = keys_beside_history(features)
    history, age = features.history, features.history_age
    known = [key for key in (history and history.column, age and age.column) if key]
    read = read_whole(patterns, [*keys, *known, USER, RELEVANT], tft_output)
    relevant, user = lists(read, RELEVANT), dense(read, USER)
    seen = Lists(np.zeros(0, np.int64), np.zeros(len(user), np.int64))
    if history is not None:
        seen = lists(read, history.column)
    arrays = {key: compact(dense(read, key)) for key in keys}
    if age is not None:
        arrays[age.column] = dense(read, age.column)
    # Beam writes examples in an order of its own; a fit must not depend on it. Queries of one user differ in their
    # history, or else in what they ask for.
    first = np.append(relevant.values, 0)[relevant.offsets[:-1]]
    order = np.lexsort((first, seen.lengths, user))
    arrays = {key: values[order] for key, values in arrays.items()}
    return answerable(specification, arrays, relevant.take(order), seen.take(order))


def answerable(
    specification: Specification, features: Mapping[str, np.ndarray], relevant: Lists, seen: Lists
) -> Queries | None:
    """Queries as the Evaluator counts them: an item of the history is not relevant; who asks for no other is left out.

    With `Specification.repeats` every item that is asked for is relevant, and nothing is seen.

    Args:
        specification: Says what a candidate is, and how long a history the tower reads.
        features: Transformed query features [Q, ...] without the history.
        relevant: Labels.
        seen: Item ids of the whole histories, oldest first.

    Returns:
        A fixed draw of at most `most_queries` of them; None where none is left.
    """
    catalogue, history = specification.catalogue, specification.features.history
    labels = catalogue.label_of(relevant.values)
    size = int(max(labels.max(initial=0), seen.values.max(initial=0))) + 1
    wanted = np.unique((relevant.rows * size + labels)[catalogue.is_candidate[labels]])
    kept_out = Lists(seen.values[:0], np.zeros_like(seen.lengths)) if specification.repeats else seen
    wanted = np.setdiff1d(wanted, kept_out.rows * size + kept_out.values, assume_unique=False)
    asked = Lists(wanted % size, np.bincount(wanted // size, minlength=len(relevant.lengths)))
    left = np.flatnonzero(asked.lengths)
    if not len(left):
        return None
    drawn = np.random.default_rng(specification.training.seed).permutation(left)[: most_queries(catalogue)]
    chosen = {key: values[drawn] for key, values in features.items()}
    histories_ = seen.take(drawn)
    if history is not None:
        chosen[history.column] = newest_first(histories_.ragged(), history.max_length).numpy()
    return Queries(chosen, asked.take(drawn).padded(), kept_out.take(drawn).padded())


def most_queries(catalogue: CandidateTable) -> int:
    """How many validation queries are ranked over this catalogue, at most."""
    return min(_MAX_QUERIES, max(_MIN_QUERIES, _MAX_SCORES // max(1, len(catalogue.labels))))


def queries_of(specification: Specification, sequences: Sequences, mode: Literal["train", "rolling"]) -> Queries | None:
    """What the places that are validation ask, cut from the sequences as InteractionExampleGen cuts its queries.

    Args:
        specification: Of the fit.
        sequences: `is_validation` says what is asked for.
        mode: `evaluation.history`.
    """
    train, validation = histories.SPLITS.index(TRAIN), histories.SPLITS.index(VALIDATION)
    split = np.where(sequences.is_validation, validation, train)
    asking = np.unique(sequences.owner[sequences.is_validation])
    place, of_user, ages = [], [], []
    seen: list[np.ndarray] = []
    relevant: list[np.ndarray] = []
    drawn = np.random.default_rng(specification.training.seed).permutation(asking)
    for user in np.sort(drawn[: most_queries(specification.catalogue)]):
        start = sequences.offsets[user]
        own = slice(start, sequences.offsets[user + 1])
        for query in histories.queries(sequences.times[own], sequences.items[own], split[own], validation, mode):
            place.append(start + query.position)
            of_user.append(user)
            ages.append(query.age or 0)
            seen.append(sequences.items[own][query.history])
            relevant.append(sequences.items[own][query.relevant])
    features = {key: values[of_user] for key, values in sequences.features.items()}
    features |= {key: values[place] for key, values in sequences.context.items()}
    if specification.features.history_age is not None:
        features[specification.features.history_age.column] = np.array(ages, np.float32)
    return answerable(specification, features, _as_lists(relevant), _as_lists(seen))


def keys_beside_history(features: Features) -> list[str]:
    of_history = {f.column for f in (features.history, features.history_age) if f is not None}
    return [key for key in encoded_keys(features.query) if key not in of_history]


def _as_lists(parts: Sequence[np.ndarray]) -> Lists:
    return Lists(np.concatenate([np.zeros(0, np.int64), *parts]), np.array([len(part) for part in parts], np.int64))
