"""What a process of the Trainer does: reads the transformed splits, fits, and writes the embedding model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from modules import lock
from modules.settings import Training
from modules.training.dataset import read_queries, read_specification
from modules.training.distribution import Distribution
from modules.training.export import export
from modules.training.loop import fit
from modules.training.stream import read_train
from modules.training.warm_start import WarmStart


@dataclass(frozen=True)
class Job:
    """What TFX's `FnArgs` say, as JSON can carry it; see `modules.trainer.run_fn`."""

    custom_config: dict[str, Any]
    train_files: list[str]
    eval_files: list[str]
    transform_graph_path: str
    serving_model_dir: str
    model_run_dir: str | None
    base_model: str | None
    hyperparameters: dict[str, Any] | None

    @classmethod
    def of(cls, fn_args: Any) -> Job:
        """From `tfx.components.FnArgs`."""
        return cls(
            custom_config=fn_args.custom_config,
            train_files=list(fn_args.train_files),
            eval_files=list(fn_args.eval_files or []),
            transform_graph_path=fn_args.transform_graph_path,
            serving_model_dir=fn_args.serving_model_dir,
            model_run_dir=fn_args.model_run_dir,
            base_model=getattr(fn_args, "base_model", None),
            hyperparameters=getattr(fn_args, "hyperparameters", None),
        )

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The reverse of `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def tuned(self) -> dict[str, float]:
        """What the Tuner found, by `section.key`."""
        return (self.hyperparameters or {}).get("values", {})

    @property
    def training(self) -> Training:
        """The section `training`, before the Tuner's values."""
        return Training.model_validate_json(self.custom_config["training"])

    def run(self, distribution: Distribution) -> None:
        """Reads, fits and writes; a process that is not the chief writes nothing.

        Raises:
            UserError: There is nothing to fit, or the loss is not a number any more.
        """
        tft_output = tft.TFTransformOutput(self.transform_graph_path)
        specification = read_specification(self.custom_config, self.train_files, tft_output).with_settings(self.tuned)
        train = read_train(self.train_files, specification, tft_output)
        queries = read_queries(self.eval_files, specification, tft_output)
        if not distribution.is_chief:
            fit(specification, train, queries, distribution=distribution)
            return
        warm_start = None
        if specification.training.warm_start and self.base_model and tf.io.gfile.exists(self.base_model):
            warm_start = WarmStart(self.base_model, specification.features, specification.columns, tft_output)
        with _unshared(self._checkpoint()) as checkpoint:
            fitted = fit(specification, train, queries, checkpoint, self.model_run_dir, warm_start, distribution)
            export(fitted.model, specification, tft_output, self.serving_model_dir)
            if self.model_run_dir:
                with tf.io.gfile.GFile(os.path.join(self.model_run_dir, "training.json"), "w") as file:
                    json.dump(fitted.report.to_json() | {"tuned": self.tuned}, file, indent=2)
            if checkpoint and tf.io.gfile.exists(checkpoint):
                tf.io.gfile.rmtree(checkpoint)

    def _checkpoint(self) -> str | None:
        """A folder that the same fit finds again after a kill, and no other one."""
        if not self.custom_config.get("checkpoint_root"):
            return None
        identity = json.dumps(
            [self.custom_config, sorted(self.train_files), self.transform_graph_path, self.base_model,
             self.hyperparameters], sort_keys=True,
        )  # fmt: skip
        return os.path.join(self.custom_config["checkpoint_root"], hashlib.sha256(identity.encode()).hexdigest()[:16])


@contextlib.contextmanager
def _unshared(checkpoint: str | None) -> Iterator[str | None]:
    """The folder of checkpoints; None while another run fits the same model with it."""
    if checkpoint is None or "://" in checkpoint:
        yield checkpoint
        return
    with lock.exclusive(checkpoint, wait_seconds=0) as is_ours:
        yield checkpoint if is_ours else None
