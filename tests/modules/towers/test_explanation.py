"""What a score is made of, against scores that are computed anew and against numpy."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from tiny_towers import FEATURES, ITEMS, PLAIN, factors, query_inputs, towers

from modules.encodings.history_age import HistoryAge
from modules.settings import Model
from modules.towers.explanation import REASONS, explain
from modules.towers.query import BlendWeights

WITH_AGE = FEATURES.model_copy(update={"query": (*FEATURES.query, HistoryAge())})
WEIGHTS = BlendWeights(recency=0.7, item_item_recency=0.4, item_item=1.5, lift=0.8, cold_start_lift=0.9)
COLUMNS = ("age", "likes", "time", "history_age")
OTHERS = ["bias", "item_item", "lift", "discount"]
# What is explained by sums, and what is not.
LINEAR = {"plain": PLAIN, "of length 1": PLAIN.model_copy(update={"normalize": True})}
BENT = {
    "layers": PLAIN.model_copy(update={"query_layers": (6,)}),
    "transformer": Model(dimension=8, history_encoder="transformer", encoder_width=4, encoder_heads=2),
}
ROWS = 6


def built(model):
    """Towers with every part there is, queries and candidates for them; the last query has no history."""
    both = towers(model.model_copy(update={"diversity": 0.3}), WITH_AGE, factors())
    both.query_tower.blend = WEIGHTS
    both.query_tower.cold_start.assign(np.random.default_rng(2).normal(size=both.query_tower.cold_start.shape))
    both.candidate_tower.lift.assign(np.random.default_rng(3).normal(size=ITEMS + 1))
    inputs = query_inputs(ROWS) | {"history_age": tf.constant(np.geomspace(1e3, 1e6, ROWS), tf.float32)}
    # The first query has an item twice.
    history = inputs["history"].numpy()
    history[0] = [3, 7, 3, 1, 0]
    inputs["history"] = tf.constant(history)
    labels = np.random.default_rng(4).integers(1, ITEMS + 1, (ROWS, 3))
    return both, inputs, tf.reshape(both.candidate_vectors(tf.constant(labels.ravel())), [ROWS, 3, -1])


def names(history):
    """Raw ids: of one that is out of vocabulary as well."""
    return tf.constant(np.where(history.numpy() > 0, np.char.add("i", history.numpy().astype(str)), "").astype(object))


def explained(both, inputs, history, candidates):
    answer = tf.function(lambda: explain(both.query_tower, inputs, history, candidates), autograph=False)()
    return {key: value.numpy() for key, value in answer.items()}


def scores(both, inputs, candidates):
    return np.einsum("bd,bnd->bn", both.query_vectors(inputs), candidates)


def without(inputs, row, column=None, item=None):
    """The query of a row [1, ...] without a feature, or without an item in its history."""
    changed = {key: value.numpy()[row : row + 1].copy() for key, value in inputs.items()}
    for key in changed:
        if column is not None and key in (column, f"{column}_bucket", f"{column}_cyclic"):
            changed[key][:] = 0
    if item is not None:
        left = [i for i in changed["history"][0] if i not in (0, item)]
        changed["history"][0] = left + [0] * (len(changed["history"][0]) - len(left))
    return changed


def lost(both, inputs, candidates, row, queries):
    """[queries, n]: how much lower than those of a row the scores of other queries are."""
    together = {key: tf.constant(np.concatenate([query[key] for query in queries])) for key in inputs}
    vectors = both.query_vectors(together).numpy()
    return scores(both, inputs, candidates)[row] - vectors @ candidates.numpy()[row].T


def of_items(answer, row, place):
    pairs = zip(answer["reason_item_id"][row, place], answer["reason_score"][row, place], strict=True)
    return {int(item.decode()[1:]): score for item, score in pairs if item}


def assert_best_first_then_padding(answer):
    ids, values = answer["reason_item_id"], answer["reason_score"]
    assert ids.shape == values.shape == (ROWS, 3, REASONS)
    np.testing.assert_array_equal(np.isneginf(values), ids == b"")
    assert np.all(values[:, :, :-1] >= values[:, :, 1:])


@pytest.mark.parametrize("model", LINEAR.values(), ids=LINEAR)
def test_parts_and_items_are_the_summands_of_the_score(model):
    both, inputs, candidates = built(model)
    answer = explained(both, inputs, names(inputs["history"]), candidates)
    others = OTHERS[1:] if model.normalize else OTHERS
    part = [name.decode() for name in answer["part"][0]]
    assert part == ["constant", "age", "likes", "time", "cold_start", "history", *others]
    assert answer["part_exact"].all() and answer["reason_exact"].all()
    expected = scores(both, inputs, candidates)
    np.testing.assert_allclose(answer["part_score"].sum(axis=2), expected, rtol=1e-5, atol=1e-5)

    of = {name: answer["part_score"][:, :, place] for place, name in enumerate(part)}
    assert (of["cold_start"][:-1] == 0).all() and (of["cold_start"][-1] != 0).all() and (of["history"][-1] == 0).all()
    tower = both.query_tower
    tower.blend = replace(WEIGHTS, lift=0.0, cold_start_lift=0.0)
    np.testing.assert_allclose(of["lift"], expected - scores(both, inputs, candidates), rtol=1e-3, atol=1e-4)
    tower.blend = replace(WEIGHTS, item_item=0.0)
    np.testing.assert_allclose(of["item_item"], expected - scores(both, inputs, candidates), rtol=1e-3, atol=1e-4)
    tower.blend = WEIGHTS
    if not model.normalize:
        # What is added is what falls away.
        columns = COLUMNS[:-1]
        for row in range(ROWS):
            wanted = lost(both, inputs, candidates, row, [without(inputs, row, column) for column in columns])
            np.testing.assert_allclose([of[column][row] for column in columns], wanted, rtol=1e-3, atol=1e-4)

    assert_best_first_then_padding(answer)
    table, tables = both.query_tower._item_ids.embeddings.numpy(), factors()
    gap = inputs["history_age"].numpy() / (inputs["history_age"].numpy() + model.inactivity_gap)
    for row, history in enumerate(inputs["history"].numpy()):
        history = history[history > 0]
        weights = (1.0 + np.arange(len(history))) ** -(0.7 * (1 - gap[row]))
        learned = tower.history_scale.numpy() * (weights / weights.sum())[:, np.newaxis] * table[history]
        if model.normalize:
            whole = tower._terms_of_learned(inputs)
            learned /= np.linalg.norm(sum(term.numpy()[row] for term in whole.values()))
        item_item = 1.5 * ((1.0 + np.arange(len(history))) ** -0.4)[:, np.newaxis] * tables.history[history]
        layout = both.layout
        for place, candidate in enumerate(candidates.numpy()[row]):
            each = learned @ candidate[: learned.shape[1]]
            each = each + item_item @ candidate[layout.item_item.start : layout.item_item.stop]
            wanted = {i: each[history == i].sum() for i in history}
            found = of_items(answer, row, place)
            assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
            total = of["history"][row, place] + of["item_item"][row, place]
            assert sum(found.values()) == pytest.approx(total, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("model", BENT.values(), ids=BENT)
def test_where_it_is_no_sum_it_is_what_the_score_loses_without(model):
    both, inputs, candidates = built(model)
    answer = explained(both, inputs, names(inputs["history"]), candidates)
    expected = scores(both, inputs, candidates)
    part, exact = [name.decode() for name in answer["part"][0]], answer["part_exact"][0]
    summed = answer["part_score"][:, :, exact].sum(axis=2)
    np.testing.assert_allclose(summed, expected, rtol=1e-5, atol=1e-5)
    if model.query_layers:
        assert part == ["learned", *OTHERS, *COLUMNS]
        assert exact.tolist() == [name not in COLUMNS for name in part]
    else:
        assert part == ["constant", "age", "likes", "time", "cold_start", "history", *OTHERS] and exact.all()
    assert not answer["reason_exact"].any()
    assert_best_first_then_padding(answer)
    for row, history in enumerate(inputs["history"].numpy()):
        items = [item for item in dict.fromkeys(history) if item]
        queries = [without(inputs, row, column) for column in COLUMNS]
        queries += [without(inputs, row, item=item) for item in items]
        wanted = lost(both, inputs, candidates, row, queries)
        np.testing.assert_allclose(
            answer["part_score"][row][:, ~exact].T, wanted[: np.sum(~exact)], rtol=1e-4, atol=1e-4
        )
        for place in range(3):
            of_each = dict(zip(items, wanted[len(COLUMNS) :, place], strict=True))
            assert of_items(answer, row, place) == pytest.approx(of_each, rel=1e-4, abs=1e-4)


def test_only_the_best_of_a_long_history_are_named_and_only_the_newest_left_out():
    history = tf.constant(np.arange(60)[np.newaxis] % ITEMS + 1, tf.int32)
    features = FEATURES.model_copy(update={"query": (FEATURES.history.model_copy(update={"max_length": 60}),)})
    ids = tf.constant([[f"h{n}" for n in range(60)]])
    for model in (PLAIN, BENT["layers"]):
        both = towers(model, features)
        inputs, candidates = {"history": history}, both.candidate_vectors(tf.constant([1, 2]))[tf.newaxis]
        answer = explained(both, inputs, ids, candidates)
        if model is PLAIN:
            items = both.query_tower._item_ids.embeddings.numpy()[history[0]]
            each = both.query_tower.history_scale.numpy() / 60 * candidates.numpy()[0, :, :7] @ items.T
        else:
            others = [np.append(np.delete(history.numpy(), n, axis=1), [[0]], 1) for n in range(50)]
            each = lost(both, inputs, candidates, 0, [{"history": other} for other in others]).T
        for place in range(2):
            best = np.argsort(-each[place], kind="stable")[:REASONS]
            np.testing.assert_allclose(answer["reason_score"][0, place], each[place][best], rtol=1e-3, atol=1e-5)
            assert {int(i[1:]) for i in answer["reason_item_id"][0, place]} <= set(range(each.shape[1]))


def test_a_model_without_a_history_names_no_items_and_a_batch_may_be_empty():
    features = FEATURES.model_copy(update={"query": FEATURES.query[:1]})
    for model in (PLAIN, BENT["layers"]):
        both = towers(model, features)
        for rows in (2, 0):
            inputs = {"age": tf.ones([rows])}
            answer = explained(both, inputs, None, tf.ones([rows, 4, both.layout.width]))
            assert answer["part_score"].shape == (rows, 4, answer["part"].shape[1])
            assert answer["reason_item_id"].shape == (rows, 4, REASONS)
            assert not rows or set(answer["reason_item_id"].ravel()) == {b""}
