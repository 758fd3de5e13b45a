"""What an epoch trains on: which users, or which places of their sequences, and how much each counts.

A user with n interactions counts n ** user_exponent (`training.user_exponent`), under either objective. Every draw
depends on the seed and the epoch alone, so that a resumed fit draws what the killed one would have drawn.
"""

from __future__ import annotations

import numpy as np


def draw_users(counts: np.ndarray, exponent: float, seed: int, epoch: int) -> np.ndarray:
    """Users of an epoch in the order of training, each about as often as any other.

    `user_weights` makes the difference between them: drawn by weight, light users would be seen too rarely. Together
    they are as many as `draw_places` would draw.

    Args:
        counts: [U] interactions of each user.
        exponent: `training.user_exponent`.
        seed: `training.seed`.
        epoch: Its number, from 0.

    Returns:
        [C] user numbers.
    """
    rng = np.random.default_rng([seed, epoch])
    times = np.floor(np.mean(counts**exponent) + rng.random(len(counts))).astype(np.int64)
    return rng.permutation(np.repeat(np.arange(len(counts)), times))


def expected_steps(counts: np.ndarray, exponent: float, batch_size: int) -> float:
    """Steps of an epoch, on average, under either objective: Σ n ** exponent rows in batches.

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


def draw_places(places: np.ndarray, counts: np.ndarray, exponent: float, seed: int, epoch: int) -> np.ndarray:
    """Places of an epoch in the order of training, each with probability n ** (exponent − 1).

    Args:
        places: [P] places to draw from.
        counts: [P] interactions n of the user of each.
        exponent: `training.user_exponent`.
        seed: `training.seed`.
        epoch: Its number, from 0.

    Returns:
        [C] of the places.
    """
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(places[rng.random(len(places)) < counts ** (exponent - 1.0)])


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
