"""The training loss of the two towers against numpy."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_towers import (
    CARDINALITIES,
    COLUMNS,
    FEATURES,
    ITEMS,
    PLAIN,
    batch,
    catalogue,
    frequency,
    is_candidate,
    query_inputs,
    softmax_cross_entropy,
    towers,
    windows,
)

from modules.encodings.features import Features
from modules.settings import Model, Training
from modules.towers import two_tower
from modules.towers.masking import closeness, mask_items
from modules.towers.two_tower import TwoTower
from modules.training.lazy_adamw import LazyAdamW

CANDIDATES = [i for i in range(1, ITEMS + 1) if i != 4]


def test_normalized_vectors_have_length_one():
    model = towers(Model(dimension=8, normalize=True, query_layers=(16,), candidate_layers=(16, 8)))
    for vectors in (model.query_vectors(query_inputs()), model.candidate_vectors(tf.range(1, 5))):
        # Beside the normalised part stands the lift.
        np.testing.assert_allclose(tf.norm(model.layout.learned.of(vectors), axis=1), 1.0, rtol=1e-5)
        assert vectors.shape[1] == 9


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_catalogue_loss(temperature):
    model = towers(negatives="catalogue", temperature=temperature)
    inputs, window = batch(), windows()
    queries = model.query_vectors(inputs.query).numpy()
    candidates = model.candidate_vectors(tf.range(ITEMS + 1)).numpy()
    losses = []
    for own, query in zip(window, queries, strict=True):
        allowed = [i for i in CANDIDATES if i == own[0] or i not in own]
        losses.append(softmax_cross_entropy(candidates[allowed] @ query / temperature, allowed.index(own[0])))
    expected = np.average(losses, weights=inputs.weight)
    assert float(model.compute_loss(inputs)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_in_batch_loss_with_log_q_and_without_accidental_hits(temperature):
    model = towers(negatives="in_batch", temperature=temperature)
    inputs, window = batch(rows=10), windows(rows=10)
    labels = window[:, 0]
    assert len(set(labels)) < len(labels), "the batch must have an accidental hit"
    queries = model.query_vectors(inputs.query).numpy()
    candidates = model.candidate_vectors(tf.constant(labels)).numpy()
    losses = []
    for row, query in enumerate(queries):
        allowed = [r for r in range(len(labels)) if r == row or labels[r] not in window[row]]
        # Any constant factor of q cancels.
        logits = candidates[allowed] @ query / temperature - np.log(frequency()[labels[allowed]] / 1000.0)
        losses.append(softmax_cross_entropy(logits, allowed.index(row)))
    expected = np.average(losses, weights=inputs.weight)
    assert float(model.compute_loss(inputs)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("negatives", ["catalogue", "sampled", "in_batch"])
def test_an_item_out_of_vocabulary_is_no_target(negatives):
    model = towers(negatives=negatives)
    inputs = batch()
    window = np.array([[ITEMS + 1, 2, 3, 0, 0, 0]] * 6, np.int32)
    hidden = inputs._replace(window=tf.constant(window))
    assert float(model.compute_loss(hidden, training=True)) == 0.0


def test_masked_items_are_found_near_their_place():
    model = towers(negatives="catalogue")
    window, seed = tf.constant(windows()), tf.constant([3, 4])
    hidden, visible = mask_items(window, 0.5, seed)
    near = closeness(window, 0.5, seed + 5)
    query = query_inputs() | {"history": visible}
    inputs = batch()._replace(query=query, targets=near * tf.cast(hidden, tf.float32), closeness=near)
    learned = model.query_tower.learned(query, 0.0, closeness=near).numpy()
    variables = {v.name: v.numpy() for v in model.query_tower.trainable_variables}
    (ids,) = (value for name, value in variables.items() if "terms" not in name and name.endswith("embeddings:0"))
    scale = model.query_tower.history_scale.numpy()
    without = model.query_tower.learned(query | {"history": tf.zeros_like(visible)}, 0.0).numpy()
    candidates = model.learned_candidates(tf.range(ITEMS + 1)).numpy()
    losses = []
    for row in range(6):
        seen, closeness_of_row, own = visible.numpy()[row], near.numpy()[row], window.numpy()[row]
        weights = closeness_of_row * (seen > 0)
        expected = without[row].copy()
        if weights.any():
            expected[:-1] += scale * weights @ ids[seen] / weights.sum()
        np.testing.assert_allclose(learned[row], expected, rtol=1e-3, atol=1e-3)
        is_target = hidden.numpy()[row] & np.isin(own, CANDIDATES)
        kept_out = set(own[~hidden.numpy()[row]]) - set(own[is_target])
        allowed = [i for i in CANDIDATES if i not in kept_out]
        each = [softmax_cross_entropy(candidates[allowed] @ expected, allowed.index(i)) for i in own[is_target]]
        losses.append(np.average(each, weights=closeness_of_row[is_target]) if each else 0.0)
    expected = np.average(losses, weights=inputs.weight)
    assert float(model.compute_loss(inputs, training=True)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("normalize", [False, True])
def test_without_a_history_items_become_as_likely_as_they_are_frequent(normalize):
    model = towers(Model(dimension=12, normalize=normalize), temperature=0.2)
    queries = {key: value.numpy() for key, value in query_inputs(rows=20).items()}
    counts = np.append(0, np.arange(ITEMS, 0, -1) ** 2).astype(np.float32)
    labels = np.array(CANDIDATES)
    share = counts[labels] / counts[labels].sum()

    def wrong():
        """Total variation: the share of probability in the wrong place."""
        empty = {**queries, "history": np.zeros_like(queries["history"])}
        candidates = model.learned_candidates(tf.constant(labels, tf.int32)).numpy()
        logits = model.query_tower.learned(empty, 0.0).numpy() @ candidates.T / 0.2
        likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.abs(likely.mean(axis=0) - share).sum() / 2

    before, weights = wrong(), [v.numpy() for v in model.trainable_variables]
    warm = {**query_inputs(rows=20), "history": tf.ones([20, 5], tf.int32)}
    vectors = model.query_vectors(warm).numpy()
    del queries["history"]
    model.fit_cold_start_query(queries, counts)
    queries["history"] = np.zeros([20, 5], np.int32)
    assert wrong() < before / 2
    np.testing.assert_array_equal(model.query_vectors(warm), vectors)
    for now, was in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_array_equal(now, was)


def test_layers_start_as_the_linear_tower():
    linear, deep = (
        TwoTower(
            FEATURES, COLUMNS, PLAIN.model_copy(update={"query_layers": sizes, "candidate_layers": sizes}), Training(),
            CARDINALITIES, ITEMS + 2,
            {"item": np.arange(ITEMS + 1), "title": np.ones((ITEMS + 1, 3), np.int64)},
            np.arange(ITEMS + 1) > 0, np.ones(ITEMS + 1, np.float32),
        )
        for sizes in ((), (16,))
    )  # fmt: skip
    np.testing.assert_allclose(linear.query_vectors(query_inputs()), deep.query_vectors(query_inputs()), rtol=1e-6)
    assert len(deep.trainable_variables) == len(linear.trainable_variables) + 8


@pytest.mark.parametrize(
    ("negatives", "names"),
    [("catalogue", ["likes"]), ("sampled", ["likes", "title", "item_ids", "item_bias"])],
)
def test_only_large_tables_of_which_a_step_reads_some_rows_are_updated_by_row(negatives, names, monkeypatch):
    model = towers(negatives=negatives)
    assert model.tables_by_row == [], "small ones are updated whole"
    monkeypatch.setattr(two_tower, "ROWS_OF_LARGE", 6)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch(), training=True)
    gradients = tape.gradient(loss, model.tables_by_row)
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
    assert len(gradients) == len(names)


def test_a_step_changes_the_rows_of_a_large_table_of_hashes_that_it_reads_and_no_others():
    user = {"column": "user", "encoding": "hash", "buckets": two_tower.ROWS_OF_LARGE // 2, "functions": 2}
    features = Features.model_validate({"query": [user, *FEATURES.query], "candidate": FEATURES.candidate})
    cardinalities = CARDINALITIES | {"user": features.query[0].cardinality(None, None)}
    model = TwoTower(
        features, COLUMNS, PLAIN, Training(), cardinalities, ITEMS + 2, catalogue(), is_candidate(), frequency()
    )
    (table,) = model.tables_by_row
    assert table.shape == (1 + two_tower.ROWS_OF_LARGE, 32)
    optimizer = LazyAdamW(0.1, 0.5, 0.9)
    optimizer.build_lazy(model.trainable_variables, model.tables_by_row)
    model.compile(optimizer=optimizer)
    ids = np.array([[1, 5001], [1, 7000], [0, 0], [4000, 7000], [5000, 10_000], [2, 5002]], np.int32)
    inputs = batch()
    before = table.numpy()
    model.train_step(inputs._replace(query={**inputs.query, "user": tf.constant(ids)}))
    changed = np.flatnonzero((table.numpy() != before).any(axis=1))
    # A missing value is not looked up.
    assert set(changed) == set(ids.ravel()) - {0}
