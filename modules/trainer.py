"""Fits the two towers and exports the embedding model: the `run_fn` of the stock Trainer."""

from __future__ import annotations

from typing import Any

from modules.training import worker
from modules.training.distribution import Distribution
from modules.training.job import Job


# Called by the stock Trainer.
def run_fn(fn_args: Any) -> None:
    """Reads the transformed splits, fits, and writes the embedding model.

    Args:
        fn_args: `tfx.components.FnArgs`. `train_files` and `eval_files` are the patterns of the train and the
            validation split; the catalogue split lies beside them. `custom_config` holds `features`, `columns`, `model`
            and `training` (JSON of the settings) and `checkpoint_root`, where a killed run finds its last epoch again.
            `hyperparameters` is what the Tuner found, if there was one, and `base_model` the last pushed model.

    Raises:
        UserError: There is nothing to fit, the loss is not a number any more, or `training.distribution` asks for
            replicas that are not there.
        RuntimeError: Under `multi_worker` a worker was lost.
    """
    job = Job.of(fn_args)
    if job.training.distribution == "multi_worker":
        worker.run_apart(job)
    else:
        job.run(Distribution.within_process(job.training))
