"""Searches settings of the towers and their training: the `tuner_fn` of the stock Tuner."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras_tuner
import numpy as np
import tensorflow_transform as tft
from keras_tuner import errors, oracles
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult

from modules import settings, trainer
from modules.errors import UserError

_PROGRESS = logging.getLogger("twotower.progress")
_OBJECTIVE = keras_tuner.Objective("ndcg", "max")


# Called by the stock Tuner.
def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """A search over `tuner.search`, judged on the latest interactions of the training period.

    Whatever the pipeline's split is, the rows of train and validation are put in the order of time and the latest
    `tuner.validation` of them are held out: eval rows take no part.

    Args:
        fn_args: As for `trainer.run_fn`; `custom_config` also holds `tuner`, the JSON of `settings.Tuner`.
    """
    problem = trainer.read_problem(fn_args)
    config = settings.Tuner.model_validate_json(fn_args.custom_config["tuner"])
    tft_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    rows = trainer.read_rows([*fn_args.train_files, *(fn_args.eval_files or [])], problem.features, tft_output)
    train, latest = latest_apart(rows, config.validation)
    if not len(train) or not len(latest):
        raise UserError(
            f"tuner.validation: {config.validation:g} of {len(rows)} rows leaves nothing to train on or judge by"
        )
    space = search_space(config.search, {name: problem.setting(name) for name in config.search})
    oracle = ConfiguredFirst(
        objective=_OBJECTIVE, max_trials=config.trials, seed=problem.training.seed, hyperparameters=space
    )
    # Keras Tuner prints; a command's standard output belongs to its answer.
    oracle.verbose = 0
    search = Search(oracle=oracle, directory=fn_args.working_dir, project_name="search")
    return TunerFnResult(tuner=search, fit_kwargs={"problem": problem, "train": train, "validation": latest})


def search_space(search: Mapping[str, Sequence[float]], configured: Mapping[str, float]) -> keras_tuner.HyperParameters:
    """Each key's values with the configured one, which is the default."""
    space = keras_tuner.HyperParameters()
    for name, values in search.items():
        # Keras Tuner takes values of one type only.
        default = float(configured[name])
        space.Choice(name, sorted({*map(float, values), default}), default=default)
    return space


def latest_apart(rows: trainer.Rows, share: float) -> tuple[trainer.Rows, trainer.Rows]:
    """The rows before and the latest `share` of the rows, cut between two different times."""
    times = np.sort(rows.time)
    cut = times[max(0, len(times) - max(1, round(share * len(times))))] if len(times) else 0
    return rows.take(np.flatnonzero(rows.time < cut)), rows.take(np.flatnonzero(rows.time >= cut))


class ConfiguredFirst(oracles.RandomSearchOracle):
    """Random search whose first trial is the configuration as it stands: what wins is never worse on the same rows."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if not self.start_order:
            configured = {parameter.name: parameter.default for parameter in self.get_space().space}
            self._tried_so_far.add(self._compute_values_hash(configured))
            return {"status": "RUNNING", "values": configured}
        return super().populate_space(trial_id)


class Search(keras_tuner.engine.base_tuner.BaseTuner):
    """Fits the towers once for each trial."""

    def search_space_summary(self, extended: bool = False) -> None:
        """Nothing: the configuration says it."""

    def results_summary(self, num_trials: int = 10) -> None:
        """Nothing: the summary of the run says it, from the stage's `tuner_results`."""

    def run_trial(
        self, trial: Any, problem: trainer.Problem, train: trainer.Rows, validation: trainer.Rows
    ) -> dict[str, float]:
        values = trial.hyperparameters.values
        tried = problem.with_settings(values)
        tried = replace(tried, training=tried.training.model_copy(update={"refit": False}))
        _PROGRESS.info("trial %s · %s", trial.trial_id, ", ".join(f"{k} {v:g}" for k, v in values.items()))
        try:
            _, report = trainer.fit(tried, train, validation)
        except UserError as error:
            # Such as a loss that is not a number any more under too large a learning rate.
            raise errors.FailedTrialError(str(error)) from error
        finally:
            # A fit's graphs refer to each other in circles; twelve of them would stay until memory runs short.
            gc.collect()
        return {"ndcg": report["ndcg"]}
