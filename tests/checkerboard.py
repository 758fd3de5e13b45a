"""A checkerboard in memory: user u likes only items i with i % 4 == u % 4; a model that learned nothing fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from modules.encodings.features import Columns, Features
from modules.settings import Model, Training
from modules.training.dataset import CandidateTable, Queries, Sequences, Specification, queries_of

COLUMNS = Columns(user="user", item="item", timestamp="time")
FEATURES = Features.model_validate(
    {
        "query": [
            {"column": "user", "encoding": "vocabulary", "dimension": 8},
            {"column": "age", "encoding": "normalized"},
            {"column": "time", "encoding": "timestamp", "buckets": 3, "dimension": 4},
            {"encoding": "history", "max_length": 6},
            {"encoding": "history_age"},
        ],
        "candidate": [
            {"column": "item", "encoding": "vocabulary", "dimension": 8},
            {"column": "genres", "encoding": "vocabulary", "multivalued": True, "max_values": 2, "dimension": 4},
        ],
    }
)
HISTORY_ONLY = Features.model_validate(
    {"query": [{"encoding": "history", "max_length": 6}], "candidate": [{"column": "item", "encoding": "vocabulary"}]}
)
CONTENT_ONLY = Features.model_validate(
    {
        "query": [{"column": "user", "encoding": "vocabulary"}],
        "candidate": [{"column": "genres", "encoding": "vocabulary", "multivalued": True, "max_values": 2}],
    }
)
TRAINING = Training(epochs=12, batch_size=64, learning_rate=0.02, weight_decay=0.5, user_exponent=1.0)
MODEL = Model(dimension=16)
USERS, ITEMS, TASTES, PER_USER = 60, 40, 4, 9
START, STEP = 1_600_000_000, 5000


def specification(features: Features = FEATURES, model: Model = MODEL, training: Training = TRAINING) -> Specification:
    """Item i has the label i + 1; the label ITEMS + 1 is of an item that nobody has interacted with."""
    items = np.arange(ITEMS + 2)
    genres = np.stack([1 + (items - 1) % TASTES, np.full(ITEMS + 2, TASTES + 1)], axis=1)
    keys = {f.column for f in features.candidate}
    table = {key: values for key, values in {"item": items, "genres": genres}.items() if key in keys}
    return Specification(
        features=features,
        columns=COLUMNS,
        model=model,
        training=training,
        cardinalities={"user": USERS + 1, "time": 4, "genres": TASTES + 2, "item": ITEMS + 3, "history": ITEMS + 3},
        item_rows=ITEMS + 3,
        catalogue=CandidateTable(table, items > 0),
    )


def sequences(features: Features = FEATURES, users: int = USERS) -> Sequences:
    """Each user's nine items, the last of them validation."""
    rng = np.random.default_rng(3)
    items = [1 + rng.permutation(np.arange(user % TASTES, ITEMS, TASTES))[:PER_USER] for user in range(users)]
    place = np.tile(np.arange(PER_USER), users)
    of_users: dict[str, Any] = {"user": np.arange(1, users + 1), "age": np.linspace(-1, 1, users, dtype=np.float32)}
    context = {"time_bucket": 1 + place // 3, "time_cyclic": np.tile(rng.normal(size=(users, 4)), (1, PER_USER))}
    context["time_cyclic"] = context["time_cyclic"].reshape(-1, 4).astype(np.float32)
    columns = {f.column for f in features.query}
    return Sequences(
        offsets=np.arange(users + 1) * PER_USER,
        user=np.arange(users) * 7 + 1,
        features={key: values for key, values in of_users.items() if key in columns},
        items=np.concatenate(items).astype(np.int32),
        times=START + STEP * place,
        weights=np.ones(users * PER_USER, np.float32),
        is_validation=place == PER_USER - 1,
        context=context if "time" in columns else {},
    )


def walks(users: int = 4 * USERS) -> Sequences:
    """Everybody goes through the items in one order, now and then three items on: only the last item says the next."""
    rng = np.random.default_rng(4)
    steps = rng.choice([1, 3], (users, PER_USER), p=[0.9, 0.1])
    items = 1 + (rng.integers(0, ITEMS, (users, 1)) + np.cumsum(steps, axis=1)) % ITEMS
    return replace(sequences(HISTORY_ONLY, users), items=items.reshape(-1).astype(np.int32))


def queries(spec: Specification, of: Sequences) -> Queries:
    asked = queries_of(spec, of, "train")
    assert asked is not None
    return asked


def without(some: Sequences, seed: int = 0) -> Sequences:
    """The same with a third of the first twelve items' interactions left, so that items differ in popularity."""
    kept = np.random.default_rng(seed).random(len(some.items)) < np.where(some.items <= 12, 0.95, 0.3)
    return some.take(kept)


def changed(spec: Specification, **training: object) -> Specification:
    return replace(spec, training=spec.training.model_copy(update=training))


def random_sequences(seed: int, users: int = 5) -> Sequences:
    """Of lengths 1 … 7 over few items, so that items come again."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 8, users)
    total = int(counts.sum())
    return Sequences(
        offsets=np.append(0, np.cumsum(counts)),
        user=np.arange(users),
        features={"user": np.arange(1, users + 1), "age": rng.normal(size=users).astype(np.float32)},
        items=rng.integers(1, 6, total).astype(np.int32),
        times=np.concatenate([np.sort(rng.integers(0, 50, count)) for count in counts]),
        weights=rng.random(total).astype(np.float32),
        is_validation=rng.random(total) < 0.3,
        context={
            "time_bucket": rng.integers(1, 4, total),
            "time_cyclic": rng.normal(size=(total, 4)).astype(np.float32),
        },
    )


def rounds(users: int = 2 * USERS) -> Sequences:
    """Everybody comes back, at random, to three items of their own: none is new after the first times."""
    rng = np.random.default_rng(5)
    own = np.stack([rng.permutation(ITEMS)[:3] for _ in range(users)])
    items = 1 + np.take_along_axis(own, rng.integers(0, 3, (users, PER_USER)), axis=1)
    return replace(sequences(HISTORY_ONLY, users), items=items.reshape(-1).astype(np.int32))
