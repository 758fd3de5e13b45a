"""The losses against their definition."""

import numpy as np
import tensorflow as tf
from tiny_towers import softmax_cross_entropy

from modules.towers.losses import draw_targets, masked_softmax_loss


def test_masked_softmax_with_several_targets():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 6)).astype(np.float32)
    window = np.array([[2, 5, 1, 0], [3, 9, 0, 0]])
    targets = np.array([[0.5, 0.0, 1.5, 0.0], [0.0, 1.0, 0.0, 0.0]], np.float32)
    is_candidate = np.array([False, True, True, True, False, True, True])
    actual = masked_softmax_loss(
        tf.constant(logits), tf.constant(window), tf.constant(targets), tf.constant(is_candidate)
    )
    # Row 0: targets 2 and 1; 5 is visible, 4 no candidate. Row 1: its target is out of vocabulary.
    allowed = logits[0][[0, 1, 2, 5]]
    expected = np.average([softmax_cross_entropy(allowed, 0), softmax_cross_entropy(allowed, 1)], weights=[1.5, 0.5])
    np.testing.assert_allclose(actual, [expected, 0.0], rtol=1e-5)


def test_a_target_is_drawn_as_often_as_it_weighs():
    window = tf.constant([[2, 5, 1, 7]] * 4000)
    targets = tf.constant([[1.0, 0.0, 3.0, 0.5]] * 4000)
    drawn = draw_targets(window, targets, tf.constant([3, 4])).numpy()
    shares = [np.mean(drawn == item) for item in (2, 5, 1, 7)]
    np.testing.assert_allclose(shares, np.array([1.0, 0.0, 3.0, 0.5]) / 4.5, atol=0.03)
