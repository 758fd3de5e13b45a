"""The Tuner's parts: what trials are judged by, and that the configuration itself is one of them."""

import keras_tuner
import numpy as np
import pytest

from modules import settings, trainer, tuner


def rows(times):
    count = len(times)
    return trainer.Rows({}, np.arange(count), np.ones(count, np.float32), np.zeros(count, np.int64), np.array(times))


def test_trials_are_judged_by_the_latest_rows():
    train, latest = tuner.latest_apart(rows([5, 1, 9, 3, 7, 2, 8, 4, 6, 0]), 0.3)
    assert sorted(train.time) == [0, 1, 2, 3, 4, 5, 6]
    assert sorted(latest.time) == [7, 8, 9]


def test_rows_of_one_time_stay_together():
    train, latest = tuner.latest_apart(rows([1, 1, 2, 2, 2, 2]), 0.2)
    assert sorted(train.time) == [1, 1]
    assert sorted(latest.time) == [2, 2, 2, 2]


def test_the_configuration_is_the_first_trial_and_is_not_tried_again(tmp_path):
    space = keras_tuner.HyperParameters()
    space.Choice("training.learning_rate", [0.1, 0.2, 0.3], default=0.2)
    oracle = tuner.ConfiguredFirst(
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


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"training.learning_rat": (0.1,)}, "'training.learning_rat' is no key of model or training"),
        ({"index.partitions": (3,)}, "'index.partitions' is no key of model or training"),
        ({"training.negatives": (1,)}, "training.negatives is not a number"),
        ({"model.trend": (1,)}, "model.trend is not a number"),
        ({"model.dropout": (1.5,)}, "model.dropout: 1.5: Input should be less than 1"),
        ({"model.dropout": ()}, "model.dropout has no values"),
    ],
)
def test_a_search_that_cannot_be_is_refused(search, words):
    with pytest.raises(ValueError, match=words):
        settings.Tuner(search=search)


def test_whole_numbers_are_searched_beside_the_configured_one():
    space = tuner.search_space({"model.dimension": (128, 512.0)}, {"model.dimension": 256})
    assert space.get("model.dimension") == 256
    assert space.space[0].values == [128, 256, 512]
    assert settings.Model.model_validate({"dimension": space.space[0].values[-1]}).dimension == 512
