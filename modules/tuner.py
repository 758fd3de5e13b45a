"""Searches settings of the towers and their training: the `tuner_fn` of the stock Tuner."""

from __future__ import annotations

from typing import Any

import tensorflow_transform as tft
from tfx.components.tuner.component import TunerFnResult

from modules import settings
from modules.errors import UserError
from modules.training.dataset import queries_of, read_sequences, read_specification
from modules.training.search import latest_held_out, search


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
    sequences = latest_held_out(
        read_sequences(fn_args.train_files, specification.features, specification.columns, tft_output),
        tuner.validation,
    )
    queries = queries_of(specification, sequences, config["history"])
    if queries is None or sequences.is_validation.all():
        raise UserError(
            f"tuner.validation: {tuner.validation:g} of {len(sequences.items)} interactions leaves nothing to train on "
            "or judge by"
        )
    tried = search(specification, tuner, fn_args.working_dir)
    fit_kwargs = {"specification": specification, "sequences": sequences, "queries": queries}
    return TunerFnResult(tuner=tried, fit_kwargs=fit_kwargs)
