"""Softmax losses of hidden items: over the whole catalogue, or over a batch with logQ correction."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from modules.towers.masking import many_hot

_MASKED = np.float32(-1e9)


def masked_softmax_loss(logits: tf.Tensor, window: tf.Tensor, targets: tf.Tensor, is_candidate: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of the hidden items against every candidate that is not visible in the window.

    −Σ_{t hidden} w_t · log softmax(logits over hidden ∪ not in the window)[t] / Σ_t w_t over the hidden candidates; 0
    where no hidden item is a candidate. The multinomial likelihood of Liang et al., WWW 2018, without what is known.

    Args:
        logits: [B, V] of the items 1 … V.
        window: [B, S] item ids, 0 is padding, above V is out of vocabulary.
        targets: [B, S] weights w of the hidden items, 0 for the visible ones.
        is_candidate: [V + 1] bool; others take no part.

    Returns:
        [B] losses.
    """
    items = tf.shape(logits)[1]
    window = tf.cast(window, tf.int32)
    visible = many_hot(window, tf.cast(targets <= 0, tf.float32), items)
    targets = tf.where(is_candidate[tf.newaxis, 1:], many_hot(window, targets, items), 0.0)
    is_target = targets > 0
    logits = tf.where(is_candidate[tf.newaxis, 1:] & ((visible <= 0) | is_target), logits, _MASKED)
    weight = tf.reduce_sum(targets, axis=1)
    positive = tf.reduce_sum(tf.where(is_target, logits * targets, 0.0), axis=1)
    return tf.math.divide_no_nan(weight * tf.reduce_logsumexp(logits, axis=1) - positive, weight)


def draw_targets(window: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """[B] one hidden item of each window, with probability proportional to its weight.

    By the Gumbel-max trick: argmax of log w + Gumbel noise (Gumbel 1954; Maddison et al., NeurIPS 2014).

    Args:
        window: [B, S] item ids.
        targets: [B, S] weights of the hidden items, 0 for the visible ones.
        seed: [2] int32.
    """
    noise = tf.random.stateless_uniform(tf.shape(window), seed, 1e-9)
    drawn = tf.where(targets > 0, tf.math.log(targets) - tf.math.log(-tf.math.log(noise)), _MASKED)
    return tf.gather(window, tf.argmax(drawn, axis=1, output_type=tf.int32), batch_dims=1)


class InBatchSoftmax:
    """Softmax over the items of the batch, corrected by the logarithm of how often an item comes to be in one (logQ).

    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019, with TFRS's
    task; q is the item's share of the interactions.

    Args:
        frequency: [V + 1] training interactions by label.
        temperature: Divides the logits.
    """

    def __init__(self, frequency: np.ndarray, temperature: float) -> None:
        self._probability = tf.constant(_scaled_probability(frequency))
        self._task = tfrs.tasks.Retrieval(
            loss=tf_keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
            temperature=temperature,
            remove_accidental_hits=True,
            name="retrieval",
        )

    def __call__(self, queries: tf.Tensor, candidates: tf.Tensor, positives: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        """[B] losses.

        Args:
            queries: [B, D].
            candidates: [B, D] vectors of the positives.
            positives: [B] labels.
            window: [B, S]; a batch mate is no negative where it is in the window already.
        """
        mates = tf.reduce_any(window[:, :, tf.newaxis] == positives[tf.newaxis, tf.newaxis, :], axis=1)
        return self._task(
            queries,
            candidates,
            candidate_sampling_probability=tf.gather(self._probability, positives),
            candidate_ids=positives,
            score_mask=~mates | tf.eye(tf.size(positives), dtype=tf.bool),
            compute_metrics=False,
            compute_batch_metrics=False,
        )


def _scaled_probability(frequency: np.ndarray) -> np.ndarray:
    """Sampling probability of each item up to a factor, which the softmax does not feel.

    The largest is 1, because TFRS clips what it gets at 1e-6, which the true probabilities of a long tail fall below.
    """
    return np.maximum(frequency, 0.5).astype(np.float32) / max(float(frequency.max(initial=0.0)), 1.0)
