"""What an epoch trains on: which users, or which places of their sequences, and how much each counts.

A user with n interactions counts n ** user_exponent (`training.user_exponent`), under either objective. Every draw
depends on the seed, the epoch and the number of the chunk within it, so that a resumed fit draws what the killed one
would have drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Batches whose rows are sorted by length together.
_BATCHES_AT_ONCE = 32


class Draw(NamedTuple):
    """What a draw depends on."""

    seed: int
    """`training.seed`."""
    epoch: int
    """Its number, from 0."""
    chunk: int = 0
    """Number of the chunk of users within the epoch, from 0."""

    def generator(self, purpose: int = 0) -> np.random.Generator:
        """Another one for each purpose."""
        return np.random.default_rng([self.seed, self.epoch, purpose, self.chunk])


def draw_users(users: int, times: float, draw: Draw) -> np.ndarray:
    """Users of an epoch in the order of training, each about as often as any other.

    `user_weights` makes the difference between them: drawn by weight, light users would be seen too rarely.

    Args:
        users: How many there are.
        times: How often each is drawn, on average: with the mean of n ** user_exponent they are together as many as
            `draw_places` would draw.
        draw: What it depends on.

    Returns:
        [C] user numbers.
    """
    rng = draw.generator()
    of_each = np.floor(times + rng.random(users)).astype(np.int64)
    return rng.permutation(np.repeat(np.arange(users), of_each))


def draw_ends(offsets: np.ndarray, users: np.ndarray, size: int, draw: Draw) -> np.ndarray:
    """[C] the newest place of a window of each of some users: the newest of all, or a random one of a longer sequence.

    Args:
        offsets: [U + 1] where each user's sequence begins and the last one ends.
        users: [C] user numbers.
        size: Places of a window.
        draw: What it depends on.
    """
    longer = np.maximum(np.diff(offsets)[users] - size, 0)
    return offsets[1:][users] - 1 - draw.generator(1).integers(0, longer + 1)


def by_length(lengths: np.ndarray, batch_size: int, draw: Draw) -> np.ndarray:
    """An order [C] in which the rows of a batch are about as long as each other: padding is work for nothing.

    Of so many batches at a time the rows are sorted, and then the batches are shuffled.

    Args:
        lengths: [C] of the rows, which are in a random order.
        batch_size: Rows of a step.
        draw: What it depends on.
    """
    pool = batch_size * _BATCHES_AT_ONCE
    parts = [start + np.argsort(lengths[start : start + pool], kind="stable") for start in range(0, len(lengths), pool)]
    order = np.concatenate([np.zeros(0, np.int64), *parts])
    starts = np.arange(0, len(order), batch_size)
    # The last batch, which may be short, stays the last.
    shuffled = np.append(draw.generator(2).permutation(starts[:-1]), starts[-1:])
    return np.concatenate([order[:0], *(order[start : start + batch_size] for start in shuffled)])


def expected_steps(counts: np.ndarray, exponent: float, batch_size: int) -> float:
    """Steps through all data, on average, under either objective: Σ n ** exponent rows in batches.

    Args:
        counts: [U] interactions n of each user.
        exponent: `training.user_exponent`.
        batch_size: Rows of a step.
    """
    return float(np.sum(counts[counts > 0] ** exponent)) / batch_size


def user_weights(counts: np.ndarray, exponent: float) -> np.ndarray:
    """[U] float32 with mean 1: how much a user counts, n ** exponent for n interactions."""
    weights = counts**exponent
    return (weights / weights.mean()).astype(np.float32)


def draw_places(places: np.ndarray, counts: np.ndarray, exponent: float, draw: Draw, share: float = 1.0) -> np.ndarray:
    """Places of an epoch in the order of training, each with probability share · n ** (exponent − 1).

    Args:
        places: [P] places to draw from.
        counts: [P] interactions n of the user of each.
        exponent: `training.user_exponent`.
        draw: What it depends on.
        share: At most 1.

    Returns:
        [C] of the places.
    """
    rng = draw.generator()
    return rng.permutation(places[rng.random(len(places)) < share * counts ** (exponent - 1.0)])


def some_users(counts: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Users, rising, with at most `limit` interactions together: all of them, or as many of a fixed draw; at least one.

    Args:
        counts: [U] interactions of each user.
        limit: Of the interactions.
        seed: Of the draw.
    """
    if counts.sum() <= limit:
        return np.arange(len(counts))
    drawn = np.random.default_rng(seed).permutation(len(counts))
    return np.sort(drawn[: max(1, int(np.searchsorted(np.cumsum(counts[drawn]), limit, side="right")))])
