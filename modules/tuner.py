"""Searches settings of the towers and their training: the `tuner_fn` of the stock Tuner."""

from __future__ import annotations

from typing import Any

import tensorflow_transform as tft
from tfx.components.tuner.component import TunerFnResult

from modules import settings
from modules.errors import UserError
from modules.training.dataset import read_specification
from modules.training.search import search
from modules.training.stream import held_out_queries, latest_held_out, read_train


# Called by the stock Tuner.
def tuner_fn(fn_args: Any) -> TunerFnResult:
    """A search over `tuner.search`, judged on the latest interactions of the training period.

    Whatever the pipeline's split is, the latest `tuner.validation` of the train and validation interactions are held
    out, and asked for as `evaluation.history` says: eval takes no part.

    Args:
        fn_args: As for `trainer.run_fn`; `custom_config` also holds `tuner`, the JSON of `settings.Tuner`, and
            `history`, which is `evaluation.history`.

    Raises:
        UserError: There is nothing to train on or to judge by.
    """
    config = fn_args.custom_config
    tuner = settings.Tuner.model_validate_json(config["tuner"])
    tft_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    specification = read_specification(config, fn_args.train_files, tft_output)
    train = latest_held_out(read_train(fn_args.train_files, specification, tft_output), tuner.validation)
    queries = held_out_queries(specification, train, config["history"])
    if queries is None or all(chunk.is_validation.all() for chunk in train.chunks()):
        raise UserError(
            f"tuner.validation: {tuner.validation:g} of {train.counts.sum()} interactions leaves nothing to train on "
            "or judge by"
        )
    tried = search(specification, tuner, fn_args.working_dir)
    fit_kwargs = {"specification": specification, "train": train, "queries": queries}
    return TunerFnResult(tuner=tried, fit_kwargs=fit_kwargs)
