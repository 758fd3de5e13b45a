"""The towers and their losses against numpy, and that a query never sees its target."""

import numpy as np
import pytest
import tensorflow as tf

from modules.features import Columns, Features
from modules.settings import Model, Training
from modules.two_tower import COMPLETION, NEXT, TwoTower, hide, masked_softmax_loss

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


def towers(model=None, features=FEATURES, **training):
    rng = np.random.default_rng(0)
    catalogue = {"item": np.arange(ITEMS + 1), "title": rng.integers(0, 6, (ITEMS + 1, 3))}
    is_candidate = np.arange(ITEMS + 1) > 0
    # Item 4 is in histories but no longer in the items table.
    is_candidate[4] = False
    cardinalities = {"likes": 6, "time": 4, "title": 6}
    frequency = np.append(0, np.arange(ITEMS, 0, -1)).astype(np.float32)
    built = TwoTower(
        features, COLUMNS, model or Model(dimension=8, dropout=0.0, id_dropout=0.0, item_id_dropout=0.0),
        Training(**training), cardinalities, ITEMS + 2, catalogue, is_candidate, frequency,
    )  # fmt: skip
    # Trained weights are no zeros.
    for variable in built.trainable_variables:
        variable.assign_add(tf.constant(rng.normal(0, 0.3, variable.shape), tf.float32))
    return built


def batch(rows=6, seed=1):
    rng = np.random.default_rng(seed)
    owned = np.stack([rng.permutation(np.arange(1, ITEMS + 1))[:6] for _ in range(rows)])
    owned[owned == 4] = ITEMS + 1
    owned[:, 0] = np.where(owned[:, 0] > ITEMS, 1, owned[:, 0])
    for row, length in enumerate(rng.integers(0, 6, rows)):
        owned[row, 1 + length :] = 0
    return {
        "age": tf.constant(rng.normal(size=rows), tf.float32),
        "likes": tf.constant(rng.integers(0, 6, (rows, 3)), tf.int32),
        "time_bucket": tf.constant(rng.integers(0, 4, rows), tf.int32),
        "time_cyclic": tf.constant(rng.normal(size=(rows, 4)), tf.float32),
        "history": tf.constant(owned[:, 1:], tf.int32),
        "label": tf.constant(owned[:, 0], tf.int64),
        "interaction_weight": tf.constant(rng.uniform(0.5, 2, rows), tf.float32),
        "reading": tf.fill([rows], NEXT),
        "seed": tf.constant([3, 4], tf.int32),
    }


def softmax_cross_entropy(logits, target):
    return np.log(np.sum(np.exp(logits))) - logits[target]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("recency", [0.0, 0.7])
def test_query_vector_is_the_sum_of_its_terms(dense, recency):
    model = towers()
    tower = model.query_tower
    tower.dense_history = dense
    tower.recency.assign(recency)
    inputs = batch()
    by_name = {v.name.rsplit("query_tower/", 1)[-1]: v.numpy() for v in tower.variables}
    ids = tower._item_ids.embeddings.numpy()
    actual = model.query_vectors(inputs).numpy()
    for row, vector in enumerate(actual):
        expected = tower.constant.numpy().copy()
        expected += inputs["age"][row].numpy() * by_name["terms/projection_0/kernel:0"][0]
        likes = [i for i in inputs["likes"].numpy()[row] if i]
        if likes:
            expected += (
                by_name["terms/embedding_1/embeddings:0"][likes].mean(axis=0) @ by_name["terms/projection_1/kernel:0"]
            )
        bucket = inputs["time_bucket"].numpy()[row]
        time = by_name["terms/embedding_2/embeddings:0"][bucket] * (bucket > 0)
        expected += np.append(time, inputs["time_cyclic"].numpy()[row]) @ by_name["terms/projection_2/kernel:0"]
        history = [i for i in inputs["history"].numpy()[row] if i]
        weights = (1.0 + np.arange(len(history))) ** -recency
        if history:
            expected += tower.history_scale.numpy() * (weights / weights.sum()) @ ids[history]
        np.testing.assert_allclose(vector, np.append(expected, 1.0), rtol=2e-4, atol=1e-4)


def test_bias_is_inside_the_candidate_vector():
    model = towers()
    vectors = model.candidate_vectors(tf.range(1, ITEMS + 1)).numpy()
    np.testing.assert_allclose(vectors[:, -1], model.candidate_tower.bias.numpy()[1 : ITEMS + 1])
    assert vectors.shape == (ITEMS, 8)


def test_normalized_vectors_have_length_one():
    model = towers(Model(dimension=8, normalize=True, query_layers=(16,), candidate_layers=(16, 8)))
    for vectors in (model.query_vectors(batch()), model.candidate_vectors(tf.range(1, 5))):
        np.testing.assert_allclose(tf.norm(vectors, axis=1), 1.0, rtol=1e-5)
        assert vectors.shape[1] == 8


def test_hidden_id_is_the_unknown_item():
    model = towers()
    labels = tf.constant([2, 3])
    hidden = model.candidate_vectors(labels, tf.constant([True, False])).numpy()
    known = model.candidate_vectors(labels).numpy()
    unknown = model.candidate_tower({"item": tf.constant([ITEMS + 1]), "title": model._catalogue["title"][2:3]})
    np.testing.assert_allclose(hidden[0], unknown[0], rtol=1e-6)
    np.testing.assert_array_equal(hidden[1], known[1])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_catalogue_loss(temperature):
    model = towers(negatives="catalogue", temperature=temperature)
    inputs = batch()
    queries = model.query_vectors(inputs).numpy()
    candidates = model.candidate_vectors(tf.range(ITEMS + 1)).numpy()
    losses = []
    for row, query in enumerate(queries):
        label, owned = int(inputs["label"][row]), set(inputs["history"].numpy()[row])
        allowed = [i for i in range(1, ITEMS + 1) if i != 4 and (i == label or i not in owned)]
        losses.append(softmax_cross_entropy(candidates[allowed] @ query / temperature, allowed.index(label)))
    expected = np.average(losses, weights=inputs["interaction_weight"])
    assert float(model.compute_loss(inputs)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_in_batch_loss_with_log_q_and_without_accidental_hits(temperature):
    model = towers(negatives="in_batch", temperature=temperature)
    inputs = batch(rows=10)
    labels = inputs["label"].numpy()
    assert len(set(labels)) < len(labels), "the batch must have an accidental hit"
    queries = model.query_vectors(inputs).numpy()
    candidates = model.candidate_vectors(tf.constant(labels)).numpy()
    frequency = np.append(0, np.arange(ITEMS, 0, -1))
    losses = []
    for row, query in enumerate(queries):
        owned = {int(labels[row]), *inputs["history"].numpy()[row]}
        allowed = [r for r in range(len(labels)) if r == row or labels[r] not in owned]
        # Any constant factor of q cancels.
        logits = candidates[allowed] @ query / temperature - np.log(frequency[labels[allowed]] / 1000.0)
        losses.append(softmax_cross_entropy(logits, allowed.index(row)))
    expected = np.average(losses, weights=inputs["interaction_weight"])
    assert float(model.compute_loss(inputs)) == pytest.approx(expected, rel=1e-4)


def test_masked_softmax_with_several_targets():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 6)).astype(np.float32)
    owned = np.array([[2, 5, 1, 0], [3, 9, 0, 0]])
    hidden = np.array([[True, False, True, False], [False, True, False, False]])
    is_candidate = np.array([False, True, True, True, False, True, True])
    actual = masked_softmax_loss(
        tf.constant(logits), tf.constant(owned), tf.constant(hidden), tf.constant(is_candidate)
    )
    # Row 0: targets 2 and 1; 5 is owned, 4 no candidate. Row 1: its target is out of vocabulary.
    allowed = logits[0][[0, 1, 2, 5]]
    expected = np.mean([softmax_cross_entropy(allowed, 0), softmax_cross_entropy(allowed, 1)])
    np.testing.assert_allclose(actual, [expected, 0.0], rtol=1e-5)


@pytest.mark.parametrize("reading", [COMPLETION, NEXT])
def test_nothing_sees_its_target(reading):
    labels = tf.constant([3] * 400)
    # Under NEXT item 3 was taken up before, too; a whole history has each item once.
    second = 3 if reading == NEXT else 4
    history = tf.constant([[5, second, 7, 8, 0, 0]] * 400)
    owned, hidden, visible = (
        t.numpy() for t in hide(labels, history, tf.fill([400], reading), 0.4, tf.constant([1, 2]))
    )
    np.testing.assert_array_equal(owned[0], [3, 5, second, 7, 8, 0, 0])
    for own, hid, vis in zip(owned, hidden, visible, strict=True):
        assert hid.any() and not hid[own == 0].any()
        assert set(vis) - {0} <= set(own[~hid])
        assert not (set(own[hid]) & set(vis)), "a target is visible"
    if reading == NEXT:
        np.testing.assert_array_equal(hidden, np.tile([True] + [False] * 6, (400, 1)))
    else:
        np.testing.assert_allclose(hidden[:, 1:5].mean(axis=0), 0.4, atol=0.08)
    np.testing.assert_allclose((visible[:, 3] > 0).mean(), 0.6, atol=0.08)


def test_query_vectors_do_not_depend_on_the_target():
    model = towers()
    inputs = batch()
    before = model.query_vectors(inputs).numpy()
    other = {**inputs, "label": inputs["label"][::-1], "interaction_weight": inputs["interaction_weight"][::-1]}
    np.testing.assert_array_equal(model.query_vectors(other), before)


def test_rows_of_a_batch_do_not_touch_each_other():
    inputs = batch()
    arguments = [tf.cast(inputs["label"], tf.int32), inputs["history"], inputs["reading"]]
    together = hide(*arguments, 0.0, inputs["seed"])
    for row in range(6):
        alone = hide(*(value[row : row + 1] for value in arguments), 0.0, inputs["seed"])
        for whole, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(whole[row : row + 1], one)


def test_missing_values_add_nothing():
    model = towers()
    inputs = {key: tf.zeros_like(value) for key, value in batch(rows=1).items()}
    np.testing.assert_allclose(model.query_vectors(inputs)[0, :-1], model.query_tower.constant, atol=1e-6)


def test_id_dropout_hides_a_feature_of_a_row_whole():
    model = towers(Model(dimension=8, id_dropout=0.5))
    inputs = batch(rows=300)
    age_only = {k: tf.zeros_like(v) if k != "age" else tf.ones_like(v) for k, v in inputs.items()}
    base = model.query_tower.constant.numpy()
    vectors = model.query_tower(age_only, 0.0, 0.5, tf.constant([5, 6])).numpy()[:, :-1] - base
    whole = model.query_tower(age_only).numpy()[0, :-1] - base
    kept = np.isclose(vectors, whole, atol=1e-5).all(axis=1)
    assert (kept | np.isclose(vectors, 0, atol=1e-5).all(axis=1)).all()
    assert 0.4 < kept.mean() < 0.6


def test_layers_start_as_the_linear_tower():
    linear, deep = (
        TwoTower(
            FEATURES, COLUMNS, Model(dimension=8, query_layers=sizes, candidate_layers=sizes), Training(),
            {"likes": 6, "time": 4, "title": 6}, ITEMS + 2,
            {"item": np.arange(ITEMS + 1), "title": np.ones((ITEMS + 1, 3), np.int64)},
            np.arange(ITEMS + 1) > 0, np.ones(ITEMS + 1, np.float32),
        )
        for sizes in ((), (16,))
    )  # fmt: skip
    np.testing.assert_allclose(linear.query_vectors(batch()), deep.query_vectors(batch()), rtol=1e-6)
    assert len(deep.trainable_variables) == len(linear.trainable_variables) + 8
