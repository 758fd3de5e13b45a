"""Reads what the stages of a run left, asks the servable, and writes the page."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from typing import Any

import tensorflow as tf
from absl import logging
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator import executor as stock_validator
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components import records
from components.evaluator import summary
from components.interaction_example_gen.executor import DAYS_FILE
from components.run_report import answers, page, sections
from components.run_report.sections import Run
from components.servable_validator.executor import VALIDATION_FILE
from components.signature import Artifacts, Properties
from modules.data.examples import EVAL
from modules.errors import UserError
from modules.retrieval import tuning
from modules.servable import contract

EXAMPLES_KEY, ANOMALIES_KEY, MODEL_RUN_KEY, SERVABLE_KEY = "examples", "anomalies", "model_run", "servable"
INDEX_REPORT_KEY, EVALUATION_KEY, INFRA_BLESSING_KEY = "index_report", "evaluation", "infra_blessing"
PUSHED_MODEL_KEY, PAGE_KEY = "pushed_model", "page"
CONFIGURATION_KEY, USER_KEY, TITLE_KEY = "configuration", "user", "title"
MIN_QUERIES_KEY, CODE_KEY = "min_queries", "code"

PAGE_FILE = "report.html"
# What the Trainer writes beside its logs (modules/training/job.py).
_TRAINING_FILE = "training.json"
_VERSIONS = ("twotower", "tfx", "tensorflow", "tensorflow-recommenders", "tensorflow-model-analysis", "scann",
             "apache-beam", "ml-metadata")  # fmt: skip


class Executor(base_executor.BaseExecutor):
    """Executor of RunReport."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Writes the page.

        Args:
            input_dict: What the stages before made, by the keys above.
            output_dict: `page`.
            exec_properties: JSON of the configuration; columns of users and titles, "" for none; `min_queries`.
        """
        uri = {key: artifact_utils.get_single_uri(artifacts) for key, artifacts in input_dict.items()}
        servable = path_utils.serving_model_path(uri[SERVABLE_KEY])
        evaluation = summary.read(uri[EVALUATION_KEY])
        examples = artifact_utils.get_single_instance(input_dict[EXAMPLES_KEY])
        pushed = artifact_utils.get_single_instance(input_dict[PUSHED_MODEL_KEY])
        asked, item_map, not_asked = self.Ask(servable, input_dict[EXAMPLES_KEY], evaluation, exec_properties)
        run = Run(
            name=contract.read_servable(servable).model,
            run_id=(self._context.pipeline_run_id if self._context else None) or "",
            written=datetime.datetime.now().astimezone(),
            versions=_versions(),
            configuration=json.loads(exec_properties[CONFIGURATION_KEY]),
            counts=_counts(examples),
            days=_days(uri[EXAMPLES_KEY]),
            warnings=_warnings(input_dict[ANOMALIES_KEY]),
            training=_json(os.path.join(uri[MODEL_RUN_KEY], _TRAINING_FILE)),
            evaluation=evaluation,
            min_queries=exec_properties[MIN_QUERIES_KEY],
            index=tuning.IndexTuningReport(**_json(os.path.join(uri[INDEX_REPORT_KEY], tuning.REPORT_FILE))),
            validator=_json(os.path.join(uri[INFRA_BLESSING_KEY], VALIDATION_FILE)),
            pushed_version=pushed.get_string_custom_property("pushed_version"),
            answers=asked,
            item_map=item_map,
            not_asked=not_asked,
        )  # fmt: skip
        path = os.path.join(artifact_utils.get_single_uri(output_dict[PAGE_KEY]), PAGE_FILE)
        passed = bool(run.pushed_version)
        io_utils.write_string_file(path, page.render(run.title, run.verdict, passed, sections.sections(run)))
        logging.info("The run's page is %s.", path)

    def Ask(
        self, servable: str, examples: list[types.Artifact], evaluation: summary.Summary, exec_properties: Properties
    ) -> tuple[answers.Answers | None, answers.ItemMap | None, str]:
        """Recommendations, their popularity and the map; or why there are none."""
        user, title = exec_properties[USER_KEY], exec_properties[TITLE_KEY] or None
        ks = [int(name.partition("@")[2]) for name in evaluation.metrics.get("overall", {}) if "@" in name]
        try:
            sample = records.sample(examples, EVAL)
            asked = answers.ask(servable, sample, min(ks, default=10), user, title)
            return asked, answers.item_map(servable, title), ""
        except (UserError, tf.errors.OpError) as error:
            # A servable that a gate has refused need not answer, and the rest of the page says why it was refused.
            return None, None, f"The servable did not answer: {str(error).splitlines()[0][:300]}."


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VERSIONS}}


def _counts(examples: types.Artifact) -> dict[str, int]:
    properties = examples.mlmd_artifact.custom_properties
    # As a cluster keeps them, numbers are floating point.
    return {
        name: int(getattr(value, value.WhichOneof("value")))
        for name, value in sorted(properties.items())
        if value.WhichOneof("value") in ("int_value", "double_value")
    }


def _days(uri: str) -> dict[str, dict[int, int]]:
    tree = _json(os.path.join(uri, DAYS_FILE))
    return {split: {int(day): count for day, count in of_split.items()} for split, of_split in tree.items()}


def _warnings(anomalies: list[types.Artifact]) -> list[str]:
    """What the ExampleValidator let pass: an anomaly that is none would have ended the run."""
    [artifact] = anomalies
    found: dict[str, str] = {}
    for split in artifact_utils.decode_split_names(artifact.split_names):
        path = os.path.join(artifact_utils.get_split_uri(anomalies, split), stock_validator.DEFAULT_FILE_NAME)
        with fileio.open(path, "rb") as file:
            anomaly = anomalies_pb2.Anomalies.FromString(file.read())
        for key, info in sorted(anomaly.anomaly_info.items()):
            found.setdefault(f"{'.'.join(info.path.step) or key}: {info.description}", split)
    return [f"{words} ({split})" for words, split in found.items()]


def _json(path: str) -> Any:
    with fileio.open(path, "r") as file:
        return json.load(file)
