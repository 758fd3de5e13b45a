"""What a training query may see of its window, and what it is asked for.

A window [B, S] is what a user interacted with up to a place: the item there, then those before it, newest first, padded
with 0 at the end. Everything in here is graph code that the input pipeline runs.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Masked(NamedTuple):
    """A window in two parts."""

    hidden: tf.Tensor
    """[B, S] bool: the targets."""
    visible: tf.Tensor
    """[B, S] int32: what the query sees; 0 where an item is hidden, dropped, or equal to the target, unless repeats are
    answers."""


def mask_items(window: tf.Tensor, rate: float, seed: tf.Tensor) -> Masked:
    """`masked_items`: a random part of a set of items is to be found from the rest.

    Masked-set training: BERT4Rec (Sun et al., CIKM 2019) masks items of a history; here their order does not matter, as
    in a denoising autoencoder over sets (Mult-DAE: Liang et al., WWW 2018).

    Args:
        window: [B, S] int32, each item once.
        rate: Probability with which each item is hidden; where none would be, the newest is.
        seed: [2] int32.
    """
    drawn = tf.random.stateless_uniform(tf.shape(window), seed)
    chosen = (drawn < rate) & (window > 0)
    hidden = tf.where(tf.reduce_any(chosen, axis=1, keepdims=True), chosen, _is_newest(window))
    return Masked(hidden, tf.where(hidden, 0, window))


def mask_next(window: tf.Tensor, rate: float, seed: tf.Tensor, repeats: bool = False) -> Masked:
    """`next_item`: the newest item is to be found from those before it.

    Args:
        window: [B, S] int32; an item can be there more than once.
        rate: Probability with which the query does not see an item of its history either.
        seed: [2] int32.
        repeats: Whether a known item can be an answer.
    """
    drawn = tf.random.stateless_uniform(tf.shape(window), seed)
    dropped = (drawn < rate) & (window > 0)
    newest = _is_newest(window)
    # Who interacts with an item again must not see the earlier time, unless that it was there is what tells.
    out_of_sight = newest if repeats else window == window[:, :1]
    return Masked(newest, tf.where(out_of_sight | dropped, 0, window))


def some_places(window: tf.Tensor, can_be: tf.Tensor, count: int, seed: tf.Tensor, repeats: bool = False) -> tf.Tensor:
    """[B, S] bool: at most so many random places of each window whose item is to be found from those before it.

    Args:
        window: [B, S] int32 without gaps, padded with 0 at the end.
        can_be: [B, S] bool, what can be asked for. The oldest item has nothing before it; an item that was there before
            is known, and no answer.
        count: At most so many a row.
        seed: [2] int32.
        repeats: Whether a known item can be an answer.
    """
    size = tf.shape(window)[1]
    can_be &= tf.pad(window[:, 1:] > 0, [[0, 0], [0, 1]])
    if not repeats:
        older = tf.range(size)[tf.newaxis, tf.newaxis] > tf.range(size)[tf.newaxis, :, tf.newaxis]
        can_be &= ~tf.reduce_any((window[:, tf.newaxis] == window[:, :, tf.newaxis]) & older, axis=2)
    noise = tf.random.stateless_uniform(tf.shape(window), seed + 11)
    noise = tf.where(can_be, noise, -1.0)
    least = tf.math.top_k(noise, tf.minimum(count, size)).values[:, -1:]
    return (noise >= 0) & (noise >= least)


def closeness(window: tf.Tensor, locality: float, seed: tf.Tensor) -> tf.Tensor:
    """[B, S] weights (1 + d) ** −locality, d being how many items lie between one and a random one of the window.

    Args:
        window: [B, S] without gaps, padded with 0 at the end.
        locality: 0 makes all weights 1.
        seed: [2] int32.
    """
    count = tf.reduce_sum(tf.cast(window > 0, tf.float32), axis=1, keepdims=True)
    centre = tf.floor(tf.random.stateless_uniform(tf.shape(count), seed) * count)
    distance = tf.abs(tf.range(tf.cast(tf.shape(window)[1], tf.float32))[tf.newaxis] - centre)
    return tf.pow(1.0 + distance, -locality)


def _is_newest(window: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(window)
    return tf.one_hot(tf.zeros(shape[0], tf.int32), shape[1], on_value=True, off_value=False, dtype=tf.bool)


def many_hot(ids: tf.Tensor, weights: tf.Tensor, items: tf.Tensor | int) -> tf.Tensor:
    """[B, S] ids and weights → [B, items] sums of weights, column v − 1 for id v; other ids are left out."""
    rows = tf.shape(ids)[0]
    keep = (ids > 0) & (ids <= items)
    flat = tf.range(rows)[:, tf.newaxis] * items + ids - 1
    # Negative segments are dropped.
    flat = tf.where(keep, flat, -1)
    total = tf.math.unsorted_segment_sum(tf.reshape(weights, [-1]), tf.reshape(flat, [-1]), rows * items)
    return tf.reshape(total, [rows, items])
