"""Runs the stock Evaluator with the baseline, or without it when there is none that can be compared with."""

from __future__ import annotations

import json
import math
import os

import tensorflow as tf
from absl import logging
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import executor as stock
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils, path_utils, proto_utils

from components.baseline_resolver.executor import VERSION_PROPERTY
from components.evaluator import summary
from components.signature import Artifacts, Properties
from modules import evaluation
from modules.servable import contract

# Queries that a baseline must answer before it is compared with.
_TRIAL_SIZE = 8


class Executor(stock.Executor):
    """Executor of the Evaluator."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Evaluates as the stock executor does, then writes the summary.

        Args:
            input_dict: As for the stock executor; `baseline_model` may be an artifact without a model.
            output_dict: As for the stock executor.
            exec_properties: As for the stock executor; eval_config is that of modules/evaluation.py.
        """
        self.RegisterOps(_servable(input_dict[keys.MODEL_KEY]))
        version, note = "", "no baseline"
        if input_dict.get(keys.BASELINE_MODEL_KEY):
            note = self.WhyNotComparable(input_dict, exec_properties)
            version = _version(input_dict[keys.BASELINE_MODEL_KEY])
        if note:
            logging.info("Evaluating without a baseline: %s.", note)
            version = ""
            input_dict = {key: artifacts for key, artifacts in input_dict.items() if key != keys.BASELINE_MODEL_KEY}
        super().Do(input_dict, output_dict, exec_properties)

        uri = artifact_utils.get_single_uri(output_dict[keys.EVALUATION_KEY])
        outcome = summary.Summary(
            metrics=_without_nan(evaluation.read_metrics(uri)),
            baseline_metrics=_without_nan(evaluation.read_metrics(uri, baseline=True)),
            failures=evaluation.validation_failures(uri),
            baseline_version=version,
            baseline_note=note,
        )
        io_utils.write_string_file(os.path.join(uri, summary.FILE_NAME), outcome.to_json())

    def RegisterOps(self, path: str) -> None:
        """Makes the custom ops of a model known here, and in Beam's workers, which load it by themselves."""
        ops = contract.custom_ops(path)
        contract.register(ops)
        # A module of the name is imported by a worker before anything else.
        plugins = [f"--beam_plugins={module}" for module in contract.registering(ops)]
        self._beam_pipeline_args += [plugin for plugin in plugins if plugin not in self._beam_pipeline_args]

    def WhyNotComparable(self, input_dict: Artifacts, exec_properties: Properties) -> str:
        """Why the baseline cannot be compared with, in words; "" when it can.

        A pushed model may be older than the present features or signatures. It is tried on a few of the very queries,
        because TFMA would meet its failure inside Beam and end the run.
        """
        path = _servable(input_dict[keys.BASELINE_MODEL_KEY])
        if not fileio.exists(os.path.join(path, "saved_model.pb")):
            return "nothing has been pushed yet"
        pushed = f"version {_version(input_dict[keys.BASELINE_MODEL_KEY])} in the push destination"
        try:
            self.RegisterOps(path)
            model = tf.saved_model.load(path)
            if evaluation.SIGNATURE not in model.signatures:
                return f"{pushed} has no `{evaluation.SIGNATURE}` signature"
            answer = model.signatures[evaluation.SIGNATURE](tf.constant(_some_queries(input_dict), tf.string))
        except Exception as error:  # whatever keeps an old model from answering must not keep a new one from its gates
            return f"{pushed} does not answer today's queries: {str(error).strip().splitlines()[0]}"
        missing = [name for name in evaluation.OUTPUTS if name not in answer]
        if missing:
            return f"{pushed} does not answer `{missing[0]}`"
        asked, answered = _largest_k(exec_properties), answer["classes"].shape[1]
        if answered < asked:
            return f"{pushed} answers {answered} items, and {asked} are evaluated"
        return ""


def _servable(artifacts: list[types.Artifact]) -> str:
    return path_utils.serving_model_path(artifact_utils.get_single_uri(artifacts))


def _version(artifacts: list[types.Artifact]) -> str:
    return artifact_utils.get_single_instance(artifacts).get_string_custom_property(VERSION_PROPERTY)


def _some_queries(input_dict: Artifacts) -> list[bytes]:
    """The first serialized examples of the eval split."""
    [uri] = artifact_utils.get_split_uris(input_dict[keys.EXAMPLES_KEY], "eval")
    files = fileio.glob(io_utils.all_files_pattern(uri))
    return list(tf.data.TFRecordDataset(files, compression_type="GZIP").take(_TRIAL_SIZE).as_numpy_iterator())


def _largest_k(exec_properties: Properties) -> int:
    config = config_pb2.EvalConfig()
    proto_utils.json_to_proto(exec_properties[keys.EVAL_CONFIG_KEY], config)
    return max(k for spec in config.metrics_specs for metric in spec.metrics for k in json.loads(metric.config)["k"])


def _without_nan(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no NaN."""
    return {
        name: {metric: None if math.isnan(value) else value for metric, value in of_slice.items()}
        for name, of_slice in metrics.items()
    }
