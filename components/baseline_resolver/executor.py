"""Brings the newest pushed version into the run's artifacts."""

from __future__ import annotations

import os

from absl import logging
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import path_utils

from components.signature import Artifacts, Properties
from modules import push_destination

PUSH_DESTINATION_KEY = "push_destination"
PIPELINE_STAMP_KEY = "pipeline_stamp"
BASELINE_VERSION_KEY = "baseline_version"
BASELINE_KEY = "baseline"
PRESENT_PROPERTY = "present"
VERSION_PROPERTY = "version"
"""Custom property of the baseline artifact: which version it holds."""


class Executor(base_executor.BaseExecutor):
    """Executor of the BaselineResolver."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Resolves the baseline.

        Args:
            input_dict: Empty.
            output_dict: `baseline`: the Model artifact.
            exec_properties: The component's parameters.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        baseline = artifact_utils.get_single_instance(output_dict[BASELINE_KEY])
        destination = exec_properties[PUSH_DESTINATION_KEY]
        version = exec_properties.get(BASELINE_VERSION_KEY) or ""
        # A version can be deleted between the pipeline's construction and its run.
        if not version or not push_destination.is_complete(os.path.join(destination, version)):
            version = push_destination.latest_version(destination, exec_properties[PIPELINE_STAMP_KEY])

        baseline.set_int_custom_property(PRESENT_PROPERTY, int(bool(version)))
        baseline.set_string_custom_property(VERSION_PROPERTY, version)
        if version:
            source = os.path.join(destination, version)
            logging.info("The baseline is %s.", source)
            # The artifact holds the model itself, so that lineage outlives the version in the push destination.
            push_destination.bring(source, path_utils.serving_model_dir(baseline.uri))
        else:
            logging.info("Nothing to compare with has been pushed to %s.", destination)
