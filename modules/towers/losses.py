"""Softmax losses of hidden items: over the whole catalogue, over a sample of it, or over a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from modules.towers.masking import many_hot
from modules.towers.share import WHOLE, Share

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
    visible = many_hot(window, tf.cast(targets <= 0, tf.float32), items) > 0
    targets = tf.where(is_candidate[tf.newaxis, 1:], many_hot(window, targets, items), 0.0)
    return _cross_entropy(logits, logits, targets, is_candidate[tf.newaxis, 1:] & ~visible)


def _cross_entropy(logits: tf.Tensor, normalizing: tf.Tensor, targets: tf.Tensor, is_negative: tf.Tensor) -> tf.Tensor:
    """[B] Σ_t w_t · (log Σ exp(normalizing over targets and negatives) − logits_t) / Σ_t w_t; all others [B, C].

    Args:
        logits: Scores.
        normalizing: The same as they count in the sum.
        targets: Weights w, 0 for what is none.
        is_negative: Bool.
    """
    is_target = targets > 0
    weight = tf.reduce_sum(targets, axis=1)
    positive = tf.reduce_sum(tf.where(is_target, logits * targets, 0.0), axis=1)
    total = tf.reduce_logsumexp(tf.where(is_negative | is_target, normalizing, _MASKED), axis=1)
    return tf.math.divide_no_nan(weight * total - positive, weight)


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


class SampledSoftmax:
    """Softmax over the hidden items of a batch and negatives that all of its queries share, corrected for the sampling.

    It estimates `masked_softmax_loss`: an item that is in the sample with probability π stands for 1 / π of its kind,
    so log π is taken off its logit (logQ: Bengio & Senécal 2008; Yi et al., RecSys 2019). A query's own targets are in
    the sample for certain, and stand for themselves (Khrylchenko et al., RecSys 2025). One half of the negatives is
    drawn uniformly, so that rare items are pushed down where they do not belong, the other half by popularity.

    Args:
        frequency: [V + 1] training interactions by label.
        is_candidate: [V + 1] bool; others take no part.
        negatives: How many are drawn, with replacement.
        targets: Of a query with more, so many random ones count in a step.
        temperature: Divides the logits.
    """

    def __init__(
        self, frequency: np.ndarray, is_candidate: np.ndarray, negatives: int, targets: int, temperature: float
    ) -> None:
        self._negatives, self._targets, self._temperature = negatives, targets, temperature
        labels = np.flatnonzero(is_candidate)
        popularity = np.where(is_candidate, frequency, 0.0).astype(np.float64)
        popularity /= max(popularity.sum(), 1.0)
        uniform = is_candidate / max(len(labels), 1)
        self._is_candidate = tf.constant(is_candidate)
        self._labels = tf.constant(labels, tf.int32)
        self._cumulated = tf.constant(np.cumsum(popularity[labels]), tf.float64)
        self._of_targets = tf.constant(popularity, tf.float32)
        self._of_drawn = tf.constant((uniform + popularity) / 2, tf.float32)

    def __call__(
        self,
        queries: tf.Tensor,
        candidates: Callable[[tf.Tensor], tf.Tensor],
        window: tf.Tensor,
        targets: tf.Tensor,
        seed: tf.Tensor,
        share: Share = WHOLE,
    ) -> tf.Tensor:
        """[b] losses.

        Args:
            queries: [b, D].
            candidates: Labels [C] → [C, D].
            window: [B, S] item ids, 0 is padding; ids that are no labels take no part.
            targets: [B, S] weights of the hidden items, 0 for the visible ones.
            seed: [2] int32.
            share: The rows b of the batch that are asked for; the sample is that of the whole batch.
        """
        window = tf.where(window < tf.size(self._is_candidate), window, 0)
        targets = tf.where(tf.gather(self._is_candidate, window), targets, 0.0)
        targets = self._some(targets, seed)
        hidden = tf.boolean_mask(window, targets > 0)
        sample, _ = tf.unique(tf.concat([hidden, self._draw(seed)], axis=0))
        sample = tf.sort(sample)
        logits = tf.matmul(queries, candidates(sample), transpose_b=True) / self._temperature
        window, targets = share.cut(window), share.cut(targets)
        size = tf.size(sample)
        place = tf.minimum(tf.searchsorted(sample, tf.reshape(window, [-1])), size - 1)
        column = tf.where(
            tf.reshape(tf.gather(sample, place), tf.shape(window)) == window, tf.reshape(place, tf.shape(window)) + 1, 0
        )
        visible = many_hot(column, tf.cast(targets <= 0, tf.float32), size) > 0
        targets = many_hot(column, targets, size)
        # Draws are many and each unlikely: an item is among them with 1 − exp(−expected number).
        expected = tf.cast(tf.size(hidden), tf.float32) * tf.gather(self._of_targets, sample)
        expected += self._negatives * tf.gather(self._of_drawn, sample)
        # What is in the sample can be so, however rare.
        inclusion = tf.maximum(-tf.math.expm1(-expected), 1e-12)
        normalizing = tf.where(targets > 0, logits, logits - tf.math.log(inclusion)[tf.newaxis])
        return _cross_entropy(logits, normalizing, targets, ~visible)

    def _draw(self, seed: tf.Tensor) -> tf.Tensor:
        """Labels, [negatives]."""
        half = self._negatives // 2
        uniform = tf.random.stateless_uniform([self._negatives - half], seed + 3, 0, tf.size(self._labels), tf.int32)
        # In float64: the shares of a long tail are below what float32 can tell apart in a sum of all.
        drawn = tf.random.stateless_uniform([half], seed + 5, dtype=tf.float64) * self._cumulated[-1]
        popular = tf.minimum(tf.searchsorted(self._cumulated, drawn, side="right"), tf.size(self._labels) - 1)
        return tf.gather(self._labels, tf.concat([uniform, popular], axis=0))

    def _some(self, targets: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """[B, S] the weights of at most so many random targets of each row, 0 for all others."""
        noise = tf.where(targets > 0, tf.random.stateless_uniform(tf.shape(targets), seed + 7), -1.0)
        count = tf.minimum(self._targets, tf.shape(targets)[1])
        least = tf.math.top_k(noise, count).values[:, -1:]
        return tf.where(noise >= tf.maximum(least, 0.0), targets, 0.0)


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
        """[b] losses of some rows of a batch.

        Args:
            queries: [b, D].
            candidates: [B, D] vectors of the positives.
            positives: [B] labels, those of the queries first.
            window: [b, S]; a batch mate is no negative where it is in the window already.
        """
        mates = tf.reduce_any(window[:, :, tf.newaxis] == positives[tf.newaxis, tf.newaxis, :], axis=1)
        return self._task(
            queries,
            candidates,
            candidate_sampling_probability=tf.gather(self._probability, positives),
            candidate_ids=positives,
            score_mask=~mates | tf.eye(tf.shape(window)[0], tf.size(positives), dtype=tf.bool),
            compute_metrics=False,
            compute_batch_metrics=False,
        )


def _scaled_probability(frequency: np.ndarray) -> np.ndarray:
    """Sampling probability of each item up to a factor, which the softmax does not feel.

    The largest is 1, because TFRS clips what it gets at 1e-6, which the true probabilities of a long tail fall below.
    """
    return np.maximum(frequency, 0.5).astype(np.float32) / max(float(frequency.max(initial=0.0)), 1.0)
