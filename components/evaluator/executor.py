"""Evaluates the servable as the stock Evaluator does, with or without the baseline, and writes the blessing.

The stock executor leaves to Beam how many queries are asked at once. Beam decides by how long batches take, and on a
busy machine it stays at one query: then nearly all of the time is spent around the servable.
"""

from __future__ import annotations

import math
import os

import apache_beam as beam
import tensorflow as tf
import tensorflow_model_analysis as tfma
from absl import logging
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import constants
from tfx.components.util import tfxio_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils, json_utils, path_utils, proto_utils

from components.baseline_resolver.executor import VERSION_PROPERTY
from components.evaluator import summary
from components.signature import Artifacts, Properties
from modules import evaluation, gates
from modules.data.examples import EVAL
from modules.servable import contract

# Queries that a baseline must answer before it is compared with.
_TRIAL_SIZE = 8
# Queries asked at once. With more, the scores of all items take more memory; with fewer, each query takes longer.
_BATCH = 256


class Executor(base_beam_executor.BaseBeamExecutor):
    """Executor of the Evaluator."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Evaluates, blesses, and writes the summary.

        Args:
            input_dict: As for the stock executor; `baseline_model` may be an artifact without a model.
            output_dict: As for the stock executor.
            exec_properties: As for the stock executor; eval_config is that of modules/gates.py.
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
        uri = artifact_utils.get_single_uri(output_dict[keys.EVALUATION_KEY])
        self.Evaluate(input_dict, uri, exec_properties)
        self.Bless(input_dict, uri, artifact_utils.get_single_instance(output_dict[keys.BLESSING_KEY]), exec_properties)

        results = evaluation.read(uri)
        outcome = summary.Summary(
            metrics=_without_nan(results.metrics),
            baseline_metrics=_without_nan(results.baseline_metrics),
            failures=gates.validation_failures(uri),
            baseline_version=version,
            baseline_note=note,
            confidence=evaluation.settings_of(_eval_config(exec_properties))["confidence"],
            half_widths=_without_nan(results.half_widths),
            baseline_differences=_without_nan(results.differences),
            baseline_difference_half_widths=_without_nan(results.difference_half_widths),
        )
        io_utils.write_string_file(os.path.join(uri, summary.FILE_NAME), outcome.to_json())

    def Evaluate(self, input_dict: Artifacts, uri: str, exec_properties: Properties) -> None:
        """Runs TFMA on the queries of the eval split, and writes its files to the folder `uri`."""
        config = gates.resolved(_eval_config(exec_properties), has_baseline=keys.BASELINE_MODEL_KEY in input_dict)
        models = [
            tfma.default_eval_shared_model(
                _servable(input_dict[keys.BASELINE_MODEL_KEY if spec.is_baseline else keys.MODEL_KEY]),
                model_name=spec.name,
                eval_config=config,
            )
            for spec in config.model_specs
        ]
        one_or_both = models[0] if len(models) == 1 else models
        files = tfxio_utils.get_tfxio_factory_from_artifact(
            input_dict[keys.EXAMPLES_KEY], ["Evaluator"], raw_record_column_name=tfma.ARROW_INPUT_COLUMN
        )
        with self._make_beam_pipeline() as pipeline:
            _ = (
                [
                    pipeline | f"Read[{split}][{number}]" >> files(io_utils.all_files_pattern(part)).BeamSource(_BATCH)
                    for split in json_utils.loads(exec_properties[keys.EXAMPLE_SPLITS_KEY]) or [EVAL]
                    for number, part in enumerate(artifact_utils.get_split_uris(input_dict[keys.EXAMPLES_KEY], split))
                ]
                | beam.Flatten()
                | tfma.ExtractEvaluateAndWriteResults(
                    eval_shared_model=one_or_both,
                    eval_config=config,
                    extractors=evaluation.extractors(config, one_or_both),
                    output_path=uri,
                )
            )

    def Bless(self, input_dict: Artifacts, uri: str, blessing: types.Artifact, exec_properties: Properties) -> None:
        """Writes the blessing, or that there is none, with the properties by which TFX knows a blessed model again."""
        model = artifact_utils.get_single_instance(input_dict[keys.MODEL_KEY])
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri)
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
        if keys.BASELINE_MODEL_KEY in input_dict:
            baseline = artifact_utils.get_single_instance(input_dict[keys.BASELINE_MODEL_KEY])
            blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.uri)
            blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, baseline.id)
        if "current_component_id" in exec_properties:
            blessing.set_string_custom_property("component_id", exec_properties["current_component_id"])
        blessed = tfma.load_validation_result(uri).validation_ok
        io_utils.write_string_file(
            os.path.join(blessing.uri, constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME), ""
        )
        blessing.set_int_custom_property(
            constants.ARTIFACT_PROPERTY_BLESSED_KEY,
            constants.BLESSED_VALUE if blessed else constants.NOT_BLESSED_VALUE,
        )

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


def _eval_config(exec_properties: Properties) -> config_pb2.EvalConfig:
    config = config_pb2.EvalConfig()
    proto_utils.json_to_proto(exec_properties[keys.EVAL_CONFIG_KEY], config)
    return config


def _largest_k(exec_properties: Properties) -> int:
    return max(evaluation.settings_of(_eval_config(exec_properties))["k"])


def _without_nan(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no NaN."""
    return {
        name: {metric: None if math.isnan(value) else value for metric, value in of_slice.items()}
        for name, of_slice in metrics.items()
    }
