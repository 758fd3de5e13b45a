"""Fits the two towers and exports the embedding model: the `run_fn` of the stock Trainer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from modules import lock
from modules.training.dataset import read_queries, read_sequences, read_specification
from modules.training.export import export
from modules.training.loop import fit
from modules.training.warm_start import WarmStart


# Called by the stock Trainer.
def run_fn(fn_args: Any) -> None:
    """Reads the transformed splits, fits, and writes the embedding model.

    Args:
        fn_args: `tfx.components.FnArgs`. `train_files` and `eval_files` are the patterns of the train and the
            validation split; the catalogue split lies beside them. `custom_config` holds `features`, `columns`, `model`
            and `training` (JSON of the settings) and `checkpoint_root`, where a killed run finds its last epoch again.
            `hyperparameters` is what the Tuner found, if there was one, and `base_model` the last pushed model.

    Raises:
        UserError: There is nothing to fit, or the loss is not a number any more.
    """
    config = fn_args.custom_config
    tuned: Mapping[str, float] = (getattr(fn_args, "hyperparameters", None) or {}).get("values", {})
    tft_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    specification = read_specification(config, fn_args.train_files, tft_output).with_settings(tuned)
    sequences = read_sequences(fn_args.train_files, specification.features, specification.columns, tft_output)
    queries = read_queries(fn_args.eval_files or [], specification, tft_output)
    warm_start = None
    if specification.training.warm_start and fn_args.base_model and tf.io.gfile.exists(fn_args.base_model):
        warm_start = WarmStart(fn_args.base_model, specification.features, specification.columns, tft_output)
    with _unshared(_checkpoint(fn_args)) as checkpoint:
        fitted = fit(specification, sequences, queries, checkpoint, fn_args.model_run_dir, warm_start)
        export(fitted.model, specification, tft_output, fn_args.serving_model_dir)
        if fn_args.model_run_dir:
            with tf.io.gfile.GFile(os.path.join(fn_args.model_run_dir, "training.json"), "w") as file:
                json.dump(fitted.report.to_json() | {"tuned": tuned}, file, indent=2)
        if checkpoint and tf.io.gfile.exists(checkpoint):
            tf.io.gfile.rmtree(checkpoint)


@contextlib.contextmanager
def _unshared(checkpoint: str | None) -> Iterator[str | None]:
    """The folder of checkpoints; None while another run fits the same model with it."""
    if checkpoint is None or "://" in checkpoint:
        yield checkpoint
        return
    with lock.exclusive(checkpoint, wait_seconds=0) as is_ours:
        yield checkpoint if is_ours else None


def _checkpoint(fn_args: Any) -> str | None:
    """A folder that the same fit finds again after a kill, and no other one."""
    config = fn_args.custom_config
    if not config.get("checkpoint_root"):
        return None
    identity = json.dumps(
        [config, sorted(fn_args.train_files), fn_args.transform_graph_path, getattr(fn_args, "base_model", None),
         getattr(fn_args, "hyperparameters", None)], sort_keys=True,
    )  # fmt: skip
    return os.path.join(config["checkpoint_root"], hashlib.sha256(identity.encode()).hexdigest()[:16])
