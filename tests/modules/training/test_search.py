"""The search: what trials are judged by, and that the configuration itself is one of them."""

import checkerboard
import keras_tuner
import numpy as np
import pytest

from modules import settings
from modules.training import search, stream
from modules.training.dataset import Sequences


def sequences(times):
    count = len(times)
    return Sequences(
        offsets=np.array([0, count]), user=np.array([1]), features={}, items=np.ones(count, np.int32),
        times=np.array(times), weights=np.ones(count, np.float32), is_validation=np.zeros(count, bool), context={},
    )  # fmt: skip


def test_trials_are_judged_by_the_latest_interactions():
    split = stream.latest_held_out(sequences([5, 1, 9, 3, 7, 2, 8, 4, 6, 0]), 0.3)
    assert sorted(split.times[split.is_validation]) == [7, 8, 9]


def test_interactions_of_one_time_stay_together():
    split = stream.latest_held_out(sequences([1, 1, 2, 2, 2, 2]), 0.2)
    np.testing.assert_array_equal(split.is_validation, [False, False, True, True, True, True])


def test_the_configuration_is_the_first_trial_and_is_not_tried_again(tmp_path):
    space = keras_tuner.HyperParameters()
    space.Choice("training.learning_rate", [0.1, 0.2, 0.3], default=0.2)
    oracle = search.ConfiguredFirst(
        objective=keras_tuner.Objective("ndcg", "max"), max_trials=10, seed=1, hyperparameters=space
    )
    oracle.verbose = 0
    oracle._set_project_dir(str(tmp_path), "search")
    tried = []
    while (trial := oracle.create_trial("one")).status != "STOPPED":
        tried.append(trial.hyperparameters.values["training.learning_rate"])
        oracle.update_trial(trial.trial_id, {"ndcg": 0.5})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert tried[0] == 0.2
    assert sorted(tried) == [0.1, 0.2, 0.3]


@pytest.mark.slow
def test_a_search_finds_the_learning_rate_that_learns(tmp_path):
    spec = checkerboard.specification(checkerboard.HISTORY_ONLY)
    spec = checkerboard.changed(spec, learning_rate=1e-7, epochs=8, metric="recall")
    spec = spec.with_settings({"model.item_item_rank": 0, "model.popularity_lift": False})
    split = stream.latest_held_out(checkerboard.sequences(spec.features), 0.1)
    tuner = settings.Tuner(trials=2, search={"training.learning_rate": (0.02,)})
    tried = search.search(spec, tuner, str(tmp_path))
    tried.search(specification=spec, train=split, queries=checkerboard.queries(spec, split))
    (best,) = tried.get_best_hyperparameters(1)
    assert best.values == {"training.learning_rate": 0.02}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training.learning_rat": (0.1,)}, "'training.learning_rat' is no key of model or training"),
        ({"index.partitions": (3,)}, "'index.partitions' is no key of model or training"),
        ({"training.negatives": (1,)}, "training.negatives is not a number"),
        ({"model.popularity_lift": (1,)}, "model.popularity_lift is not a number"),
        ({"model.mask_rate": (1.5,)}, "model.mask_rate: 1.5: Input should be less than 1"),
        ({"model.mask_rate": ()}, "model.mask_rate has no values"),
        ({"model.dropout": (0.2,)}, "model.dropout is now model.mask_rate"),
    ],
)
def test_a_search_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        settings.Tuner(search=changes)


def test_whole_numbers_are_searched_beside_the_configured_one():
    space = search.search_space({"model.dimension": (128, 512.0)}, {"model.dimension": 256})
    assert space.get("model.dimension") == 256
    assert space.space[0].values == [128, 256, 512]
    assert settings.Model.model_validate({"dimension": space.space[0].values[-1]}).dimension == 512
