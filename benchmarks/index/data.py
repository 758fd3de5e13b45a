"""Vectors to search and held-out queries: unclustered, clustered, and two-tower embeddings of long-tail data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DIMENSION = 64
QUERIES = 512
"""Each for choosing an effort and for measuring it."""


def make(kind: str, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [size, 64] and queries [2 × QUERIES, 64], float32; the same ones for the same seed."""
    vectors, queries = KINDS[kind](size, np.random.default_rng(seed))
    return np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(queries, np.float32)


def _gaussian(size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The worst case: no structure that an index could use."""
    return _normal(generator, size), _normal(generator, 2 * QUERIES)


def _clustered(size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """400 vectors to a cluster on average, of different lengths; queries are noisier members of clusters."""
    centres = _normal(generator, max(1, size // 400))
    vectors = centres[generator.integers(len(centres), size=size)] + 0.6 * _normal(generator, size)
    vectors *= generator.uniform(0.7, 1.3, (size, 1)).astype(np.float32)
    chosen = generator.integers(len(centres), size=2 * QUERIES)
    return vectors, centres[chosen] + 0.8 * _normal(generator, 2 * QUERIES)


def _two_tower(size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two towers fitted on generated interactions whose popularity has a long tail.

    An item has a category, one of its subcategories, a maker, a price band and two words; a user cares for three
    subcategories and takes the popular items of them. The candidate tower sums the features' embeddings, the query
    tower is a linear map of the mean over the items taken before. In-batch softmax with the logQ correction.
    """
    import tensorflow as tf

    subcategories = max(20, size // 500)
    subcategory = generator.integers(subcategories, size=size)
    columns = [
        (subcategory // 20, subcategories // 20 + 1),
        (subcategory, subcategories),
        ((subcategory * 7 + (generator.pareto(1.2, size) * 3).astype(np.int64)) % 5000, 5000),
        (generator.integers(20, size=size), 20),
        (generator.integers(5000, size=size), 5000),
        ((subcategory * 13 + generator.integers(50, size=size)) % 20_000, 20_000),
    ]
    offsets = np.cumsum([0, *(count for _, count in columns)])
    features = np.stack([values + offset for (values, _), offset in zip(columns, offsets, strict=False)], axis=1)
    order = np.argsort(subcategory, kind="stable")
    counts = np.bincount(subcategory, minlength=subcategories)
    first = np.cumsum(counts) - counts

    def taken(users: int, items: int) -> np.ndarray:
        liked = np.minimum((generator.pareto(0.7, (users, 3)) * subcategories / 50).astype(np.int64), subcategories - 1)
        # An item's place within its subcategory is its popularity's rank there.
        of = np.take_along_axis(liked, generator.integers(3, size=(users, items)), axis=1)
        rank = np.minimum((counts[of] * generator.random((users, items)) ** 4).astype(np.int64), counts[of] - 1)
        return order[np.maximum(first[of] + rank, 0)]

    table = tf.Variable(0.05 * generator.normal(size=(int(offsets[-1]), DIMENSION)).astype(np.float32))
    linear = tf.Variable(np.eye(DIMENSION, dtype=np.float32))
    optimizer = tf.compat.v1.train.AdagradOptimizer(0.3)

    def candidate(items: np.ndarray) -> tf.Tensor:
        return tf.reduce_sum(tf.gather(table, features[items]), axis=-2)

    def query(histories: np.ndarray) -> tf.Tensor:
        return tf.reduce_mean(candidate(histories), axis=1) @ linear

    batch, length = 512, 6
    for _ in range(500):
        items = taken(batch, length + 1)
        target = items[:, -1]
        # An item's probability to be in a batch, up to a factor, falls with its rank in the subcategory.
        frequency = np.bincount(np.unique(target, return_inverse=True)[1])[np.unique(target, return_inverse=True)[1]]
        with tf.GradientTape() as tape:
            scores = tf.matmul(query(items[:, :-1]), candidate(target), transpose_b=True)
            scores -= np.log(frequency).astype(np.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(np.arange(batch), scores)
            loss = tf.reduce_mean(losses)
        variables = [table, linear]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    parts = np.array_split(np.arange(size), max(1, size // 50_000))
    return np.concatenate([candidate(part).numpy() for part in parts]), query(taken(2 * QUERIES, length)).numpy()


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """[Q, k]: the rows with the highest inner products, best first."""
    rows = []
    for part in np.array_split(queries, max(1, len(queries) * len(vectors) // 50_000_000)):
        scores = part @ vectors.T
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        rows.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(rows)


def _normal(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.standard_normal((count, DIMENSION), np.float32)


KINDS: dict[str, Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "gaussian": _gaussian,
    "clustered": _clustered,
    "two_tower": _two_tower,
}
