"""Two towers over twelve items with weights that are no zeros, and a batch for them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from modules.encodings.features import Columns, Features
from modules.item_item import Factors
from modules.settings import Model, Training
from modules.towers.masking import mask_next
from modules.towers.two_tower import Batch, TwoTower

COLUMNS = Columns(user="user", item="item", timestamp="time")
FEATURES = Features.model_validate(
    {
        "query": [
            {"column": "age", "encoding": "normalized"},
            {"column": "likes", "encoding": "vocabulary", "multivalued": True, "max_values": 3, "dimension": 4},
            {"column": "time", "encoding": "timestamp", "buckets": 3, "dimension": 4},
            {"encoding": "history", "max_length": 5},
        ],
        "candidate": [
            {"column": "item", "encoding": "vocabulary"},
            {"column": "title", "encoding": "text", "max_tokens": 3, "dimension": 4},
        ],
    }
)
ITEMS = 12
CARDINALITIES = {"likes": 6, "time": 4, "title": 6}
PLAIN = Model(dimension=8, mask_rate=0.0, query_feature_dropout=0.0)


def catalogue() -> dict[str, np.ndarray]:
    return {"item": np.arange(ITEMS + 1), "title": np.random.default_rng(0).integers(0, 6, (ITEMS + 1, 3))}


def is_candidate() -> np.ndarray:
    """Item 4 is in histories but no longer in the items table."""
    candidates = np.arange(ITEMS + 1) > 0
    candidates[4] = False
    return candidates


def frequency() -> np.ndarray:
    return np.append(0, np.arange(ITEMS, 0, -1)).astype(np.float32)


def towers(
    model: Model = PLAIN, features: Features = FEATURES, factors: Factors | None = None, **training: object
) -> TwoTower:
    built = TwoTower(
        features, COLUMNS, model, Training.model_validate(training), CARDINALITIES, ITEMS + 2, catalogue(),
        is_candidate(), frequency(), factors,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for variable in built.trainable_variables:
        variable.assign_add(tf.constant(rng.normal(0, 0.3, variable.shape), tf.float32))
    return built


def factors(rank: int = 3) -> Factors:
    rng = np.random.default_rng(8)
    history, items = rng.normal(size=(ITEMS + 2, rank)), rng.normal(size=(ITEMS + 1, rank))
    # Neither padding nor what is out of vocabulary has a row.
    history[[0, ITEMS + 1]] = items[0] = 0.0
    return Factors(history.astype(np.float32), items.astype(np.float32))


def windows(rows: int = 6, seed: int = 1) -> np.ndarray:
    """[rows, 6] item ids, newest first; the last row has a newest item alone."""
    rng = np.random.default_rng(seed)
    window = np.stack([rng.permutation(np.arange(1, ITEMS + 1))[:6] for _ in range(rows)])
    window[window == 4] = ITEMS + 1
    window[:, 0] = np.where(window[:, 0] > ITEMS, 1, window[:, 0])
    for row, length in enumerate([*rng.integers(0, 6, rows - 1), 0]):
        window[row, 1 + length :] = 0
    return window.astype(np.int32)


def query_inputs(rows: int = 6, seed: int = 1) -> dict[str, tf.Tensor]:
    """Transformed query features; the last row has no history."""
    rng = np.random.default_rng(seed)
    return {
        "age": tf.constant(rng.normal(size=rows), tf.float32),
        "likes": tf.constant(rng.integers(0, 6, (rows, 3)), tf.int32),
        "time_bucket": tf.constant(rng.integers(0, 4, rows), tf.int32),
        "time_cyclic": tf.constant(rng.normal(size=(rows, 4)), tf.float32),
        "history": tf.constant(windows(rows, seed)[:, 1:]),
    }


def batch(rows: int = 6, seed: int = 1) -> Batch:
    """Under next_item: the newest item of each window is to be found from those before it."""
    window, key = tf.constant(windows(rows, seed)), tf.constant([3, 4], tf.int32)
    hidden, visible = mask_next(window, 0.0, key)
    return Batch(
        query=query_inputs(rows, seed) | {"history": visible},
        window=window,
        targets=tf.cast(hidden, tf.float32),
        closeness=tf.ones_like(window, tf.float32),
        weight=tf.constant(np.random.default_rng(seed).uniform(0.5, 2, rows), tf.float32),
        seed=key,
    )


def softmax_cross_entropy(logits: np.ndarray, target: int) -> float:
    return float(np.log(np.sum(np.exp(logits))) - logits[target])
