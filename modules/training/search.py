"""The search for better settings: random search with Keras Tuner, a fit for each trial."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras_tuner
from keras_tuner import errors, oracles
from pydantic import ValidationError

from modules import settings
from modules.errors import UserError
from modules.training.dataset import Queries, Specification
from modules.training.distribution import Distribution
from modules.training.loop import fit
from modules.training.stream import Train

_PROGRESS = logging.getLogger("twotower.progress")


def search(specification: Specification, tuner: settings.Tuner, folder: str) -> Search:
    """The search that `tuner` describes, keeping its state in a folder."""
    space = search_space(tuner.search, {name: specification.setting(name) for name in tuner.search})
    oracle = ConfiguredFirst(
        objective=keras_tuner.Objective(specification.training.metric, "max"), max_trials=tuner.trials,
        seed=specification.training.seed, hyperparameters=space,
    )  # fmt: skip
    # Keras Tuner prints; a command's standard output belongs to its answer.
    oracle.verbose = 0
    return Search(oracle=oracle, directory=folder, project_name="search")


def search_space(search: Mapping[str, Sequence[float]], configured: Mapping[str, float]) -> keras_tuner.HyperParameters:
    """Each key's values with the configured one, which is the default."""
    space = keras_tuner.HyperParameters()
    for name, values in search.items():
        # Keras Tuner takes values of one type only.
        default = float(configured[name])
        space.Choice(name, sorted({*map(float, values), default}), default=default)
    return space


class ConfiguredFirst(oracles.RandomSearchOracle):
    """Random search whose first trial is the configuration as it stands: what wins is not worse there."""

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

    def run_trial(self, trial: Any, specification: Specification, train: Train, queries: Queries) -> dict[str, float]:
        values = trial.hyperparameters.values
        _PROGRESS.info("trial %s · %s", trial.trial_id, ", ".join(f"{k} {v:g}" for k, v in values.items()))
        try:
            tried = specification.with_settings(values)
            tried = replace(tried, training=tried.training.model_copy(update={"refit": False}))
            # A trial stays within this process: its own devices share it.
            replicas = Distribution.within_process(tried.training)
            report = fit(tried, train, queries, distribution=replicas).report
            return {"ndcg": report.ndcg, "recall": report.recall}
        except (UserError, ValidationError) as error:
            # Such as a loss that is not a number any more under too large a learning rate, or values that do not fit
            # each other.
            raise errors.FailedTrialError(str(error)) from error
        finally:
            # A fit's graphs refer to each other in circles; twelve of them would stay until memory runs short.
            gc.collect()
