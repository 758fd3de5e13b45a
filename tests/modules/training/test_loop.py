"""Fitting on data with a known answer: early stopping, the refit, the same model twice, what validation chose."""

import json
import logging
import math
import os
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import checkerboard
import numpy as np
import pytest
import tensorflow as tf
from checkerboard import CONTENT_ONLY, FEATURES, HISTORY_ONLY, TASTES, changed, queries, sequences, specification
from killed_fits import die_after
from tensorflow.python.framework import config as framework_config

from modules.errors import UserError
from modules.towers.query import BlendWeights
from modules.training import checkpoints
from modules.training.calibration import CHOICES, WORTH, Calibration, Ranker
from modules.training.loop import fit


def query_vectors(model, asked):
    return model.query_vectors({key: tf.constant(values) for key, values in asked.features.items()}).numpy()


def candidate_vectors(model, spec):
    return model.candidate_vectors(tf.constant(spec.catalogue.labels, tf.int32)).numpy()


def own_taste_share(model, spec, asked):
    """Share of each query's ten best items that are of the user's taste; 0.25 for a model that learned nothing."""
    scores = query_vectors(model, asked) @ candidate_vectors(model, spec)[: checkerboard.ITEMS].T
    top = np.argsort(-scores, axis=1)[:, :10]
    # Label i + 1 is item i.
    return np.mean(top % TASTES == (asked.relevant[:, :1] - 1) % TASTES)


@pytest.fixture(scope="module")
def small():
    spec = specification(HISTORY_ONLY)
    of = sequences(HISTORY_ONLY)
    return spec, of, queries(spec, of)


@pytest.fixture(scope="module")
def fitted(small):
    """Three epochs without a refit."""
    spec, of, asked = small
    return fit(changed(spec, epochs=3, refit=False), of, asked)


@pytest.mark.parametrize("objective", ["masked_items", pytest.param("next_item", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "negatives", ["catalogue", *(pytest.param(other, marks=pytest.mark.slow) for other in ("sampled", "in_batch"))]
)
def test_a_fit_learns_the_checkerboard(negatives, objective):
    spec = changed(specification(FEATURES), negatives=negatives, objective=objective)
    of = sequences()
    asked = queries(spec, of)
    # The item-item model alone would answer.
    spec = spec.with_settings({"model.item_item_rank": 0})
    result = fit(spec, of, asked)
    assert own_taste_share(result.model, spec, asked) > 0.8
    assert result.report.epochs <= len(result.report.history) <= spec.training.epochs
    assert result.report.resumed_from_epoch == 0


# Where everybody goes the same way; without the item-item model, which knows what comes next.
WALKS = specification(HISTORY_ONLY).with_settings(
    {"model.item_item_rank": 0, "model.encoder_dropout": 0.1, "model.encoder_width": 32, "model.encoder_blocks": 1}
)


@pytest.mark.slow
# In a batch of its own items each row has one target, not up to eight.
@pytest.mark.parametrize(("negatives", "share"), [("catalogue", 0.9), ("sampled", 0.9), ("in_batch", 0.5)])
def test_a_transformer_learns_what_comes_next(negatives, share):
    spec = changed(WALKS, negatives=negatives, epochs=30, refit=False)
    spec = spec.with_settings({"model.history_encoder": "transformer"})
    of = checkerboard.walks()
    asked = queries(spec, of)
    result = fit(spec, of, asked)
    # Nine of ten go on to the next item.
    top = np.argmax(query_vectors(result.model, asked) @ candidate_vectors(result.model, spec).T, axis=1) + 1
    last = asked.features["history"][:, 0]
    assert np.mean(top == last % checkerboard.ITEMS + 1) > share
    assert result.report.encoders == {}


@pytest.mark.parametrize(
    "negatives", ["catalogue", *(pytest.param(other, marks=pytest.mark.slow) for other in ("sampled", "in_batch"))]
)
def test_users_with_one_item_make_no_steps_of_a_transformer(negatives):
    walks = checkerboard.walks()
    # Of nine users in ten the newest item is left, and with it what validation asks.
    kept = (walks.user // 7 % 10 == 0)[walks.owner] | walks.is_validation
    some = replace(walks.take(kept), is_validation=np.zeros(np.count_nonzero(kept), bool))
    spec = changed(WALKS, negatives=negatives, epochs=1, batch_size=4)
    spec = spec.with_settings({"model.history_encoder": "transformer"})
    result = fit(spec, some, None)
    # 24 users are left, each drawn once, twice or three times; with all 240 there would be 60 steps and more.
    assert 6 <= int(result.model.optimizer.iterations) <= 36
    assert 0 < result.report.history[0].loss < 10


@pytest.mark.slow
def test_auto_takes_the_encoder_that_is_better_on_validation(caplog):
    of = checkerboard.walks()
    spec = changed(WALKS, epochs=15, refit=False)
    asked = queries(spec, of)
    alone = {
        encoder: fit(spec.with_settings({"model.history_encoder": encoder}), of, asked)
        for encoder in ("mean", "transformer")
    }
    ndcg = {encoder: result.report.ndcg for encoder, result in alone.items()}
    assert ndcg["transformer"] > ndcg["mean"] + 0.01
    with caplog.at_level(logging.INFO, "twotower.progress"):
        chosen = fit(spec.with_settings({"model.history_encoder": "auto"}), of, asked)
    assert chosen.report.encoders == ndcg
    assert any(record.message.startswith("history encoder: mean ndcg@10 0.") for record in caplog.records)
    for a, b in zip(weights(chosen.model), weights(alone["transformer"].model), strict=True):
        np.testing.assert_array_equal(a, b)
    # A refit is of the same encoder; without queries nothing can be chosen.
    refitted = fit(changed(spec, refit=True, epochs=2).with_settings({"model.history_encoder": "auto"}), of, asked)
    better = max(refitted.report.encoders, key=refitted.report.encoders.get)
    assert (refitted.model.query_tower.encoder is not None) == (better == "transformer")
    unasked = fit(changed(spec, epochs=1).with_settings({"model.history_encoder": "auto"}), of, None)
    assert unasked.model.query_tower.encoder is None


@pytest.mark.slow
def test_without_a_history_the_item_is_found_from_the_user():
    spec = specification(CONTENT_ONLY)
    of = sequences(CONTENT_ONLY)
    asked = queries(spec, of)
    result = fit(spec, of, asked)
    assert own_taste_share(result.model, spec, asked) > 0.8


def test_the_item_item_model_alone_answers_before_anything_is_learned(small):
    spec, of, asked = small
    result = fit(changed(spec, epochs=1, learning_rate=1e-9, refit=False), of, asked)
    assert own_taste_share(result.model, spec, asked) > 0.8


def weights(model):
    return [v.numpy() for v in model.variables]


@pytest.mark.slow
def test_same_seed_same_weights():
    spec = changed(specification(FEATURES), epochs=2, refit=False)
    of = sequences()
    first, again, other = (weights(fit(s, of, queries(s, of)).model) for s in (spec, spec, changed(spec, seed=1)))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_an_epoch_ends_after_so_many_steps(small):
    spec, of, asked = small
    # Rows of an epoch are more than six batches of two here.
    result = fit(changed(spec, epochs=3, epoch_steps=2, batch_size=2, refit=False), of, asked)
    assert len(result.report.history) == 3
    assert int(result.model.optimizer.iterations) == 6


@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_a_setting(small, deterministic):
    spec, of, _ = small
    seen = []

    class AfterAnEpoch(logging.Handler):
        def emit(self, record):
            seen.append(framework_config.is_op_determinism_enabled())

    progress, handler = logging.getLogger("twotower.progress"), AfterAnEpoch(logging.INFO)
    level = progress.level
    progress.addHandler(handler)
    progress.setLevel(logging.INFO)
    try:
        fit(changed(spec, epochs=1, deterministic=deterministic), of, None)
    finally:
        progress.removeHandler(handler)
        progress.setLevel(level)
    assert seen == [deterministic] and not framework_config.is_op_determinism_enabled()


@pytest.mark.slow
def test_a_long_refit_goes_on_from_the_weights_that_the_search_found(small):
    spec, of, asked = small
    spec = changed(spec, epochs=8, patience=1000)
    searched = fit(changed(spec, refit=False), of, asked)
    anew, on = (fit(changed(spec, refit_steps=steps), of, asked) for steps in (1_000_000, 0))
    assert on.report.epochs == anew.report.epochs == searched.report.epochs
    steps = [int(result.model.optimizer.iterations) for result in (searched, anew, on)]
    assert steps[2] <= steps[0] / 2 < steps[1]

    def distance(model) -> float:
        pairs = zip(model.trainable_variables, searched.model.trainable_variables, strict=True)
        return math.sqrt(sum(float(tf.reduce_sum((a - b) ** 2)) for a, b in pairs))

    assert 0 < distance(on.model) < 0.5 * distance(anew.model)
    assert own_taste_share(on.model, spec, asked) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["mean", "transformer"])
def test_a_fit_that_died_goes_on_and_ends_with_the_same_weights(small, tmp_path, monkeypatch, encoder):
    spec, of, asked = small
    spec = changed(spec, epochs=6, patience=1000).with_settings({"model.history_encoder": encoder})
    whole = fit(spec, of, asked, str(tmp_path / "whole"))
    die_after(3, lambda: fit(spec, of, asked, str(tmp_path / "killed")), monkeypatch)
    resumed = fit(spec, of, asked, str(tmp_path / "killed"))
    assert resumed.report.resumed_from_epoch == 4 and whole.report.resumed_from_epoch == 0
    assert [e.loss for e in resumed.report.history] == [e.loss for e in whole.report.history]
    assert resumed.report.calibration == whole.report.calibration
    for a, b in zip(weights(resumed.model), weights(whole.model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("older", ["state", "epoch", "shape", "path"])
def test_nothing_is_taken_from_a_checkpoint_of_older_code(small, fitted, tmp_path, monkeypatch, caplog, older):
    spec, of, asked = small
    spec = changed(spec, epochs=3, refit=False)
    folder = str(tmp_path / "killed")
    with monkeypatch.context() as patch:
        if older == "state":
            # Nothing but the epochs, in a list.
            def dumps(content):
                return json.dumps(content["epochs"] if isinstance(content, dict) else content)

            patch.setattr(checkpoints, "json", SimpleNamespace(dumps=dumps))
        if older in ("state", "epoch"):
            patch.setattr(
                checkpoints, "asdict", lambda epoch: {k: v for k, v in asdict(epoch).items() if k != "gained"}
            )
            patch.setattr(checkpoints, "fields", lambda of: [field for field in fields(of) if field.name != "gained"])
        if older == "path":
            checkpoint = tf.train.Checkpoint
            patch.setattr(tf.train, "Checkpoint", lambda best, **others: checkpoint(best_weights=best, **others))
        before = spec.with_settings({"model.dimension": 24}) if older == "shape" else spec
        die_after(0, lambda: fit(before, of, asked, folder), monkeypatch)
    with caplog.at_level(logging.INFO, "twotower.progress"):
        anew = fit(spec, of, asked, folder)
    assert anew.report.resumed_from_epoch == 0
    said = [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()]
    assert said == ["training begins anew: the checkpoint of the killed one was written by other code"]
    for a, b in zip(weights(anew.model), weights(fitted.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_loss_that_is_no_number_names_the_learning_rate(small):
    spec, of, _ = small
    with pytest.raises(UserError, match=r"training\.learning_rate"):
        fit(changed(spec, learning_rate=1e30), of, None)


def test_nothing_to_train_on(small):
    spec, of, _ = small
    with pytest.raises(UserError, match="train split"):
        fit(spec, replace(of, items=np.full_like(of.items, spec.item_rows - 1)), None)


@pytest.mark.parametrize("metric", ["ndcg", "recall"])
def test_early_stopping_keeps_the_best_epoch(small, metric):
    spec, of, asked = small
    # A learning rate that overshoots: the last epochs are worse than an earlier one. The lift and the item-item model
    # would cover it up.
    spec = changed(spec, learning_rate=0.5, patience=3, epochs=30, refit=False, metric=metric)
    spec = spec.with_settings({"model.item_item_rank": 0, "model.popularity_lift": False})
    result = fit(spec, of, asked)
    values = [epoch.of(metric) for epoch in result.report.history]
    assert result.report.epochs == 1 + int(np.argmax(values))
    gained = [number for number, epoch in enumerate(result.report.history) if epoch.gained]
    # Each gained on the one before, and nothing goes on for what is better by less than chance.
    assert gained[0] == 0 and np.all(np.diff([values[number] for number in gained]) > 0)
    assert len(values) == min(30, gained[-1] + 1 + 3)
    assert result.report.of(metric) >= max(values) - 1e-6
    assert result.report.criterion == f"{metric}@10"


@pytest.mark.slow
def test_the_search_does_not_see_what_it_is_stopped_by(small):
    spec, of, asked = small
    spec = changed(spec, epochs=2, refit=False)
    # Other items in the held-out places: nothing but the questions would be different.
    other = replace(of, items=np.where(of.is_validation, 1 + of.items % checkerboard.ITEMS, of.items).astype(np.int32))
    for a, b in zip(weights(fit(spec, of, asked).model), weights(fit(spec, other, asked).model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_refit_sees_validation_too(small):
    spec, of, asked = small
    results = [fit(changed(spec, epochs=2, refit=refit), of, asked) for refit in (True, False)]
    # The bias of an item starts at the logarithm of its count in what it is fitted on.
    with_refit, without = (result.model.candidate_tower.bias.numpy() for result in results)
    assert (with_refit != without).any()
    assert results[0].report.history == replace(results[1].report, history=results[0].report.history).history
    assert [e.ndcg for e in results[0].report.history] == [e.ndcg for e in results[1].report.history]


def test_without_queries_everything_is_fitted_for_all_epochs(small):
    spec, of, _ = small
    result = fit(changed(spec, epochs=2), of, None)
    assert result.report.epochs == 2 and np.isnan(result.report.ndcg)
    assert result.report.calibration.ridge == 300.0 and result.report.calibration.recent_window == 0.2


@pytest.mark.slow
def test_what_weighs_the_parts_is_chosen_on_validation_and_kept_by_the_refit(small, fitted):
    spec, of, asked = small
    model, report = fitted.model, fitted.report
    ranker = Ranker(asked, spec.catalogue.labels, 10)
    candidates = candidate_vectors(model, spec)
    measured = ranker.rank(query_vectors(model, asked), candidates)
    assert [values.mean() for values in measured] == pytest.approx([report.ndcg, report.recall])
    assert report.ndcg >= report.history[report.epochs - 1].ndcg
    chosen = report.calibration.weights
    assert model.query_tower.blend == chosen
    for name in set(model.query_tower.weights_in_use) - {"cold_start_lift"}:
        # No other value is worth the steps to it.
        place = int(np.argmin(np.abs(np.array(CHOICES[name]) - getattr(chosen, name))))
        for other, choice in enumerate(CHOICES[name]):
            model.query_tower.blend = replace(chosen, **{name: choice})
            ndcg = ranker.rank(query_vectors(model, asked), candidates).ndcg
            assert ndcg.mean() <= report.ndcg * (1 + WORTH * abs(other - place)) + 1e-9
    model.query_tower.blend = chosen
    refitted = fit(changed(spec, epochs=3), of, asked)
    assert refitted.model.query_tower.blend == chosen


NEW = range(37, 41)
"""Labels of an item of each taste that nobody has interacted with before validation."""


def world_with_new_items():
    """Five interactions of each user, the last of them validation: a fifth of these are with new items."""
    spec = specification(FEATURES)
    of = sequences()
    of = of.take(np.arange(len(of.items)) % checkerboard.PER_USER > 3)
    rng, items = np.random.default_rng(1), []
    for user in range(checkerboard.USERS):
        own = 1 + rng.permutation(np.arange(user % TASTES, NEW[0] - 1, TASTES))[:5]
        items.append([*own[:-1], NEW[user % TASTES] if user % 5 == 0 else own[-1]])
    of = replace(of, items=np.concatenate(items).astype(np.int32))
    # Scores are those of the softmax that was fitted.
    spec = spec.with_settings({"model.item_item_rank": 0, "model.popularity_lift": False, "training.refit": False})
    return spec, of, queries(spec, of)


@pytest.fixture(scope="module")
def with_new_items():
    spec, of, asked = world_with_new_items()
    return spec, of, asked, fit(spec, of, asked)


@pytest.mark.slow
def test_the_offset_brings_new_items_into_answers_as_often_as_validation_has_them(with_new_items):
    spec, of, asked, result = with_new_items
    offset, labels = result.report.calibration.new_item_offset, spec.catalogue.labels
    assert result.model.candidate_tower.new_item_offset.numpy() == pytest.approx(offset)
    # Beside the four there is an item that nobody asks for.
    is_new = labels >= NEW[0]
    np.testing.assert_array_equal(is_new, np.bincount(of.items[~of.is_validation], minlength=42)[labels] == 0)
    scores = query_vectors(result.model, asked) @ candidate_vectors(result.model, spec).T
    scores[np.array([np.isin(labels, seen) for seen in asked.seen])] = -np.inf

    def expected(scores):
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (likely[:, is_new].sum(axis=1) / likely.sum(axis=1)).sum()

    def found(scores):
        """Of those who interacted with a new item, the share that has the one of their taste among the first five."""
        who = np.isin(asked.relevant[:, 0], NEW)
        top = labels[np.argsort(-scores[who], axis=1)[:, :5]]
        own = (top - 1) % TASTES == (asked.relevant[who][:, :1] - 1) % TASTES
        return np.any(np.isin(top, NEW) & own, axis=1).mean()

    without = scores - offset * is_new
    # Twelve of the sixty, but for the pull of the prior towards 0.
    assert expected(scores) == pytest.approx(12 - offset, rel=0.01)
    assert abs(expected(scores) - 12) < abs(expected(without) - 12)
    assert found(scores) > 0.6 and found(without) < 0.2, (offset, expected(without), found(scores), found(without))
    measured = Ranker(asked, labels, 10).rank(query_vectors(result.model, asked), candidate_vectors(result.model, spec))
    assert [values.mean() for values in measured] == pytest.approx([result.report.ndcg, result.report.recall])


@pytest.mark.slow
def test_the_refit_keeps_the_offset(with_new_items):
    spec, of, asked, result = with_new_items
    refitted = fit(changed(spec, refit=True), of, asked)
    offset = result.report.calibration.new_item_offset
    assert refitted.report.calibration.new_item_offset == offset
    assert refitted.model.candidate_tower.new_item_offset.numpy() == pytest.approx(offset)


@pytest.mark.slow
def test_exploration_adds_to_the_scores_of_new_items_and_changes_nothing_else(with_new_items):
    spec, of, asked, plain = with_new_items
    explored = fit(spec.with_settings({"model.exploration": 2.0}), of, asked)
    is_new = spec.catalogue.labels >= NEW[0]
    assert replace(explored.report, seconds=0, history=()) == replace(plain.report, seconds=0, history=())
    np.testing.assert_array_equal(query_vectors(explored.model, asked), query_vectors(plain.model, asked))
    moved, still = (candidate_vectors(result.model, spec) for result in (explored, plain))
    np.testing.assert_array_equal(moved[~is_new], still[~is_new])
    scores = query_vectors(plain.model, asked) @ (moved - still)[is_new].T
    np.testing.assert_allclose(scores, np.full_like(scores, 2.0), rtol=1e-5)


@pytest.mark.slow
def test_without_new_items_there_is_no_offset_and_nothing_to_explore(small):
    spec, of, asked = small
    is_candidate = spec.catalogue.is_candidate & (np.arange(checkerboard.ITEMS + 2) <= checkerboard.ITEMS)
    spec = replace(spec, catalogue=replace(spec.catalogue, is_candidate=is_candidate))
    spec = changed(spec, epochs=2, refit=False)
    results = [fit(spec.with_settings({"model.exploration": e}), of, asked) for e in (0.0, 4.0)]
    assert results[0].report.calibration.new_item_offset == 0.0
    assert results[0].report.calibration == results[1].report.calibration
    np.testing.assert_array_equal(*(candidate_vectors(result.model, spec) for result in results))


@pytest.mark.slow
def test_exploration_is_in_log_odds_at_any_temperature(with_new_items):
    spec, of, asked, _ = with_new_items
    spec = changed(spec, temperature=0.5, epochs=1, refit=False)
    plain, explored = (fit(spec.with_settings({"model.exploration": e}), of, asked).model for e in (0.0, 2.0))
    moved = (candidate_vectors(explored, spec) - candidate_vectors(plain, spec))[spec.catalogue.labels >= NEW[0]]
    logits = query_vectors(plain, asked) @ moved.T / 0.5
    np.testing.assert_allclose(logits, np.full_like(logits, 2.0), rtol=1e-5)


@pytest.mark.slow
def test_where_new_items_are_not_told_from_rare_ones_there_is_no_offset(with_new_items):
    spec, of, asked, plain = with_new_items
    assert plain.report.calibration.new_item_offset != 0.0
    capped = replace(spec, catalogue=replace(spec.catalogue, tells_new_items=False))
    assert fit(changed(capped, epochs=1), of, asked).report.calibration.new_item_offset == 0.0


@pytest.mark.parametrize("changes", [{"normalize": True}, None])
def test_where_there_is_no_bias_or_no_validation_there_is_no_offset(changes):
    spec, of, asked = world_with_new_items()
    spec = replace(spec, model=spec.model.model_copy(update=changes or {}))
    result = fit(changed(spec, epochs=1, temperature=0.1 if changes else 1.0), of, asked if changes else None)
    assert result.report.calibration.new_item_offset == 0.0


def test_without_a_history_items_are_as_likely_as_among_users_who_count_alike(small):
    spec, of, _ = small
    of = checkerboard.without(of)
    model = fit(spec, of, None).model
    counts = np.bincount(of.items, 1.0 / of.counts[of.owner])
    labels = np.flatnonzero(counts)
    counts = counts[labels]
    candidates = model.learned_candidates(tf.constant(labels, tf.int32)).numpy()

    def wrong():
        """Total variation: the share of probability in the wrong place."""
        scores = candidates @ model.query_tower.learned({"history": tf.zeros([1, 6], tf.int32)}, 0.0).numpy()[0]
        likely = np.exp(scores) / np.exp(scores).sum()
        return np.abs(likely - counts / counts.sum()).sum() / 2

    actual = wrong()
    model.query_tower.cold_start.assign(tf.zeros_like(model.query_tower.cold_start))
    assert actual < 0.75 * wrong()


def test_progress_says_the_epoch_and_tensorboard_has_it(small, caplog, tmp_path):
    spec, of, asked = small
    with caplog.at_level(logging.INFO, "twotower.progress"):
        fit(changed(spec, epochs=2, refit=False), of, asked, log_dir=str(tmp_path))
    # TensorFlow's own loggers write to the same place.
    said = [record.getMessage() for record in caplog.records if record.name == "twotower.progress"]
    assert said[0].startswith("epoch 1/2 · loss ") and "ndcg@10" in said[1]
    tags = {}
    for file in tmp_path.rglob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                tags.setdefault(value.tag, []).append(event.step)
    assert tags["epoch_loss"] == tags["epoch_ndcg@10"] == tags["epoch_factorized_top_k/top_10"] == [0, 1]


def test_determinism_is_left_as_it_was(fitted):
    from tensorflow.python.framework import config

    assert not config.is_op_determinism_enabled()
    assert os.environ["TF_USE_LEGACY_KERAS"] == "1"


def test_the_report_is_json_whose_calibration_can_be_read_back(fitted):
    content = json.loads(json.dumps(fitted.report.to_json()))
    calibration = content["calibration"]
    read = Calibration(**{**calibration, "weights": BlendWeights(**calibration["weights"])})
    assert read == fitted.report.calibration
