"""The losses against their definition."""

import numpy as np
import tensorflow as tf
from tiny_towers import softmax_cross_entropy

from modules.towers.losses import SampledSoftmax, draw_targets, masked_softmax_loss


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


ITEMS = 40
IS_CANDIDATE = np.arange(ITEMS + 1) > 0
IS_CANDIDATE[4] = False
FREQUENCY = np.append(0, 400 // np.arange(1, ITEMS + 1)).astype(np.float32)


def _sampled(negatives, targets=16, seed=(3, 4), weights=((0.5, 0.0, 1.5, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0, 0, 0))):
    """Losses over a sample, and over the whole catalogue, of the same queries."""
    rng = np.random.default_rng(5)
    vectors = tf.constant(rng.normal(size=(ITEMS + 1, 3)), tf.float32)
    queries = tf.constant(rng.normal(size=(3, 3)), tf.float32)
    # 4 is no candidate, 90 out of vocabulary.
    window = tf.constant([[2, 5, 30, 0], [3, 90, 4, 0], [7, 1, 4, 90]])
    weights = tf.constant(weights)
    loss = SampledSoftmax(FREQUENCY, IS_CANDIDATE, negatives, targets, temperature=0.5)
    sampled = loss(queries, lambda labels: tf.gather(vectors, labels), window, weights, tf.constant(seed))
    logits = tf.matmul(queries, vectors[1:], transpose_b=True) / 0.5
    return sampled.numpy(), masked_softmax_loss(logits, window, weights, tf.constant(IS_CANDIDATE)).numpy()


def test_a_sample_that_holds_every_item_gives_the_loss_over_the_catalogue():
    sampled, whole = _sampled(negatives=5_000)
    np.testing.assert_allclose(sampled, whole, rtol=1e-5)
    # The second query has no target that is a candidate.
    assert sampled[1] == 0.0


def test_samples_estimate_the_sum_over_the_catalogue():
    rng = np.random.default_rng(5)
    vectors = tf.constant(rng.normal(size=(ITEMS + 1, 3)), tf.float32)
    query = rng.normal(size=3).astype(np.float32)
    popularity = np.where(IS_CANDIDATE, FREQUENCY, 0) / FREQUENCY[IS_CANDIDATE].sum()
    loss = tf.function(SampledSoftmax(FREQUENCY, IS_CANDIDATE, 12, 16, temperature=1.0))

    def of_labels(labels):
        return tf.gather(vectors, labels)

    estimates = []
    for number in range(500):
        # The same query and target beside others whose targets are as popular items are.
        others = rng.choice(ITEMS + 1, 60, p=popularity)
        window = tf.constant(np.append(9, others)[:, np.newaxis], tf.int32)
        queries = tf.constant(np.tile(query, (61, 1)))
        losses = loss(queries, of_labels, window, tf.ones([61, 1]), tf.constant([number, 9]))
        # exp of a loss is the sum over the sample divided by the target's part.
        estimates.append(np.exp(losses[0]))
    scores = np.exp(vectors.numpy() @ query)
    whole = scores[IS_CANDIDATE].sum() / scores[9]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert error < 0.01 * whole
    assert abs(np.mean(estimates) - whole) < 4 * error + 0.01 * whole


def test_of_many_targets_some_count_and_the_others_are_no_negatives():
    three = ((1.0, 1.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
    alone = {
        round(float(_sampled(5_000, weights=(one, *three[1:]))[1][0]), 4)
        for one in ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0))
    }
    drawn = {round(float(_sampled(5_000, targets=1, seed=(n, 9), weights=three)[0][0]), 4) for n in range(20)}
    assert drawn == alone
