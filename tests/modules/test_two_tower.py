"""The towers and their losses against numpy, and that a query never sees its target."""

import numpy as np
import pytest
import tensorflow as tf

from modules.encodings.features import Columns, Features
from modules.encodings.history_age import HistoryAge
from modules.linear import Factors
from modules.settings import Model, Training
from modules.two_tower import COMPLETION, NEXT, TwoTower, closeness, hide, masked_softmax_loss

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


def towers(model=None, features=FEATURES, linear=None, **training):
    rng = np.random.default_rng(0)
    catalogue = {"item": np.arange(ITEMS + 1), "title": rng.integers(0, 6, (ITEMS + 1, 3))}
    is_candidate = np.arange(ITEMS + 1) > 0
    # Item 4 is in histories but no longer in the items table.
    is_candidate[4] = False
    cardinalities = {"likes": 6, "time": 4, "title": 6}
    frequency = np.append(0, np.arange(ITEMS, 0, -1)).astype(np.float32)
    built = TwoTower(
        features, COLUMNS, model or Model(dimension=8, dropout=0.0, id_dropout=0.0),
        Training(**training), cardinalities, ITEMS + 2, catalogue, is_candidate, frequency, linear,
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
    # The last row has no history.
    for row, length in enumerate([*rng.integers(0, 6, rows - 1), 0]):
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


def factors(rank=3):
    rng = np.random.default_rng(8)
    history, items = rng.normal(size=(ITEMS + 2, rank)), rng.normal(size=(ITEMS + 1, rank))
    # Neither padding nor unknown items have a row.
    history[[0, ITEMS + 1]] = items[0] = 0.0
    return Factors(history.astype(np.float32), items.astype(np.float32))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("recency", [0.0, 0.7])
def test_query_vector_is_the_sum_of_its_terms(dense, recency):
    linear = factors()
    model = towers(linear=linear)
    tower = model.query_tower
    tower.dense_history = dense
    tower.recency.assign(recency)
    tower.linear_recency.assign(0.4)
    tower.linear_gain.assign(1.5)
    tower.trend_gain.assign(0.3)
    tower.cold_trend_gain.assign(0.9)
    tower.no_history.assign(np.random.default_rng(2).normal(size=tower.no_history.shape))
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
        else:
            expected += tower.no_history.numpy()
        weights = (1.0 + np.arange(len(history))) ** -0.4
        closed_form = 1.5 * weights @ linear.history[history] if history else np.zeros(3)
        expected = np.concatenate([expected, [1.0], closed_form, [0.3 if history else 0.9]])
        np.testing.assert_allclose(vector, expected, rtol=2e-4, atol=1e-4)


def test_who_comes_back_gets_the_trend_and_who_is_in_the_middle_the_newest_items():
    day = 86_400.0
    query = [*FEATURES.query, HistoryAge()]
    model = towers(linear=factors(), features=FEATURES.model_copy(update={"query": query}))
    tower = model.query_tower
    assert tower.trend_gain.numpy() == 2.0
    for name, value in {"recency": 1.0, "linear_recency": 0.4, "trend_gain": 3.0, "cold_trend_gain": 0.9}.items():
        getattr(tower, name).assign(value)
    inputs = batch()
    empty = ~np.any(inputs["history"].numpy() > 0, axis=1)
    assert empty.sum() == 1

    def vectors(age):
        return model.query_vectors(inputs | {"history_age": tf.fill([6], np.float32(age))}).numpy()

    def with_recency(value):
        tower.recency.assign(value)
        found = vectors(0.0)
        tower.recency.assign(1.0)
        return found

    for age, recency, trend in ((0.0, 1.0, 0.0), (day / 3, 0.75, 0.75), (day, 0.5, 1.5), (1e12, 0.0, 3.0)):
        found, expected = vectors(age), with_recency(recency)
        np.testing.assert_allclose(found[:, :-1], expected[:, :-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[:, -1], np.where(empty, 0.9, trend), rtol=1e-4, atol=1e-5)
    # The age is never learned from.
    assert not any("projection_3" in v.name for v in tower.variables)


def test_bias_closed_form_and_trend_are_inside_the_candidate_vector():
    linear = factors()
    model = towers(linear=linear)
    model.candidate_tower.trend.assign(np.arange(ITEMS + 1) / 10.0)
    vectors = model.candidate_vectors(tf.range(1, ITEMS + 1)).numpy()
    np.testing.assert_allclose(vectors[:, 7], model.candidate_tower.bias.numpy()[1 : ITEMS + 1])
    np.testing.assert_allclose(vectors[:, 8:11], linear.items[1:])
    np.testing.assert_allclose(vectors[:, 11], np.arange(1, ITEMS + 1) / 10.0, rtol=1e-6)
    assert vectors.shape == (ITEMS, 12)
    assert model.query_vectors(batch()).shape == (6, 12)


def test_diversity_takes_the_popularity_off_the_scores():
    sizes = {"dimension": 8, "dropout": 0.0, "id_dropout": 0.0}
    plain, diverse = towers(Model(**sizes)), towers(Model(**sizes, diversity=0.5))
    labels, inputs = tf.range(1, ITEMS + 1), batch()
    scores = [
        tf.matmul(m.query_vectors(inputs), m.candidate_vectors(labels), transpose_b=True) for m in (plain, diverse)
    ]
    frequency = np.arange(ITEMS, 0, -1)
    discount = 0.5 * np.log((frequency + 1) / np.mean(frequency + 1))
    np.testing.assert_allclose(scores[0] - scores[1], np.tile(discount, (6, 1)), rtol=1e-3, atol=1e-3)


def test_normalized_vectors_have_length_one():
    model = towers(Model(dimension=8, normalize=True, query_layers=(16,), candidate_layers=(16, 8)))
    for vectors in (model.query_vectors(batch()), model.candidate_vectors(tf.range(1, 5))):
        # Beside the normalised part stands the trend.
        np.testing.assert_allclose(tf.norm(vectors[:, :8], axis=1), 1.0, rtol=1e-5)
        assert vectors.shape[1] == 9


@pytest.mark.parametrize("normalize", [False, True])
def test_an_unknown_item_has_the_vector_that_its_content_tells(normalize):
    sizes = {"dimension": 8, "dropout": 0.0, "id_dropout": 0.0, "diversity": 0.5, "normalize": normalize}
    model = towers(Model(**sizes), linear=factors())
    tower = model.candidate_tower
    tower.trend.assign(np.arange(ITEMS + 1) / 10.0)
    known = model.candidate_vectors(tf.range(1, ITEMS + 1)).numpy()
    # Items with the same title are told the same; item 4 is no candidate.
    catalogue = {key: values.numpy() for key, values in model._catalogue.items()}
    titles = np.array([[1, 2, 0], [3, 0, 0]])[np.arange(ITEMS + 1) % 2]
    tower.learn_unknown({**catalogue, "title": titles}, np.arange(ITEMS + 1) != 4, seed=0)
    new = {
        "item": tf.fill([2], ITEMS + 1),
        "title": tf.constant([[1, 2, 0], [3, 0, 0]]),
        "label": tf.zeros([2], tf.int32),
    }
    vectors = tower(new).numpy()
    wholes = model.candidate_vectors(tf.range(1, ITEMS + 1)).numpy()
    np.testing.assert_array_equal(wholes, known)
    # Between the mean of its kind and the mean of all, without a trend.
    kinds = [np.setdiff1d(np.arange(2, ITEMS + 1, 2), 4) - 1, np.arange(1, ITEMS + 1, 2) - 1]
    everything = np.setdiff1d(np.arange(ITEMS), 3)
    for vector, kind in zip(vectors, kinds, strict=True):
        ours, all_ = known[kind].mean(axis=0), known[everything].mean(axis=0)
        counted = np.r_[8:11, 12]
        share = (vector - all_)[counted] / (ours - all_)[counted]
        assert np.all((share > 0.2) & (share < 1.0)) and np.ptp(share) < 1e-3
        assert vector[11] == pytest.approx(0.0, abs=1e-5)
        if normalize:
            assert np.linalg.norm(vector[:8]) == pytest.approx(1.0, rel=1e-5)


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
    targets = np.array([[0.5, 0.0, 1.5, 0.0], [0.0, 1.0, 0.0, 0.0]], np.float32)
    is_candidate = np.array([False, True, True, True, False, True, True])
    actual = masked_softmax_loss(
        tf.constant(logits), tf.constant(owned), tf.constant(targets), tf.constant(is_candidate)
    )
    # Row 0: targets 2 and 1; 5 is owned, 4 no candidate. Row 1: its target is out of vocabulary.
    allowed = logits[0][[0, 1, 2, 5]]
    expected = np.average([softmax_cross_entropy(allowed, 0), softmax_cross_entropy(allowed, 1)], weights=[1.5, 0.5])
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


@pytest.mark.parametrize("normalize", [False, True])
def test_without_a_history_items_become_as_likely_as_they_are_frequent(normalize):
    model = towers(Model(dimension=12, normalize=normalize), temperature=0.2)
    queries = {key: value.numpy() for key, value in batch(rows=20).items()}
    counts = np.append(0, np.arange(ITEMS, 0, -1) ** 2).astype(np.float32)
    # Item 4 is no candidate.
    labels = np.array([1, 2, 3, *range(5, ITEMS + 1)])
    share = counts[labels] / counts[labels].sum()

    def wrong():
        candidates = model.candidate_tower.learned(model._encoded(tf.constant(labels, tf.int32))).numpy()
        empty = {**queries, "history": np.zeros_like(queries["history"])}
        logits = model.query_tower.learned(empty, 0.0).numpy() @ candidates.T / 0.2
        likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.abs(likely.mean(axis=0) - share).sum() / 2

    before, weights = wrong(), [v.numpy() for v in model.trainable_variables]
    warm = {**batch(rows=20), "history": tf.ones([20, 5], tf.int32)}
    vectors = model.query_vectors(warm).numpy()
    model.learn_no_history(queries, counts)
    assert wrong() < before / 2
    np.testing.assert_array_equal(model.query_vectors(warm), vectors)
    for now, was in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_array_equal(now, was)


def test_closeness_falls_with_the_distance_from_a_place_of_the_history():
    owned = tf.constant([[3, 5, 7, 8, 0, 0]] * 600)
    weights = closeness(owned, tf.fill([600], COMPLETION), 0.5, tf.constant([1, 2])).numpy()
    centres = weights.argmax(axis=1)
    np.testing.assert_allclose(np.bincount(centres, minlength=6) / 600, [0.25] * 4 + [0, 0], atol=0.06)
    distance = np.abs(np.arange(6) - centres[:, np.newaxis])
    np.testing.assert_allclose(weights, (1.0 + distance) ** -0.5, rtol=1e-5)
    np.testing.assert_array_equal(closeness(owned, tf.fill([600], NEXT), 0.5, tf.constant([1, 2])), 1.0)


def test_a_whole_history_is_completed_near_its_place():
    model = towers(Model(dimension=8, dropout=0.5, id_dropout=0.0), negatives="catalogue")
    inputs = {**batch(), "reading": tf.fill([6], COMPLETION)}
    labels, history = tf.cast(inputs["label"], tf.int32), inputs["history"]
    owned, hidden, visible = hide(labels, history, inputs["reading"], 0.5, inputs["seed"])
    near = closeness(owned, inputs["reading"], 0.5, inputs["seed"] + 5).numpy()
    learned = model.query_tower.learned({**inputs, "history": visible}, 0.0, closeness=tf.constant(near)).numpy()
    ids, scale = model.query_tower._item_ids.embeddings.numpy(), model.query_tower.history_scale.numpy()
    without = model.query_tower.learned({**inputs, "history": tf.zeros_like(visible)}, 0.0).numpy()
    candidates = model.candidate_tower.learned(model._encoded(tf.range(ITEMS + 1))).numpy()
    losses = []
    for row in range(6):
        seen = visible.numpy()[row]
        weights = near[row] * (seen > 0)
        query = without[row].copy()
        if weights.any():
            query[:-1] += scale * weights @ ids[seen] / weights.sum()
        np.testing.assert_allclose(learned[row], query, rtol=1e-3, atol=1e-3)
        own, is_target = (
            owned.numpy()[row],
            hidden.numpy()[row] & np.isin(owned.numpy()[row], [*range(1, 4), *range(5, ITEMS + 1)]),
        )
        kept_out = set(own[~hidden.numpy()[row]]) - set(own[is_target])
        allowed = [i for i in range(1, ITEMS + 1) if i != 4 and i not in kept_out]
        each = [softmax_cross_entropy(candidates[allowed] @ query, allowed.index(i)) for i in own[is_target]]
        losses.append(np.average(each, weights=near[row][is_target]) if each else 0.0)
    expected = np.average(losses, weights=inputs["interaction_weight"])
    assert float(model.compute_loss(inputs, training=True)) == pytest.approx(expected, rel=1e-3)


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


@pytest.mark.parametrize(("trend", "gain"), [(True, 0.75), (False, 0.0)])
def test_where_no_validation_says_otherwise_newcomers_get_what_is_popular_now(trend, gain):
    model = towers(Model(dimension=8, trend=trend))
    inputs = {**batch(rows=2), "history": tf.constant([[0] * 5, [1] * 5], tf.int32)}
    np.testing.assert_array_equal(model.query_vectors(inputs)[:, -1], np.array([gain, 0.0], np.float32))


def test_missing_values_add_nothing():
    model = towers()
    inputs = {key: tf.zeros_like(value) for key, value in batch(rows=1).items()}
    np.testing.assert_allclose(model.query_vectors(inputs)[0, :-2], model.query_tower.constant, atol=1e-6)


def test_id_dropout_hides_a_feature_of_a_row_whole():
    model = towers(Model(dimension=8, id_dropout=0.5))
    inputs = batch(rows=300)
    age_only = {k: tf.zeros_like(v) if k != "age" else tf.ones_like(v) for k, v in inputs.items()}
    base = model.query_tower.constant.numpy()
    vectors = model.query_tower.learned(age_only, 0.0, 0.5, tf.constant([5, 6])).numpy()[:, :-1] - base
    whole = model.query_tower.learned(age_only, 0.0).numpy()[0, :-1] - base
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
