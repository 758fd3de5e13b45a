"""Pushes through a staging folder, so that a version is either not there or whole."""

from __future__ import annotations

import json
import os

import tensorflow as tf
from absl import logging
from tfx.components.pusher import executor as stock
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils, proto_utils

from components.signature import Artifacts, Properties
from modules import full_disk, push_destination
from modules.errors import UserError

PIPELINE_STAMP_KEY = "pipeline_stamp"


class Executor(stock.Executor):
    """Executor of the Pusher."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Pushes the model if it is blessed.

        The stock executor does its whole work inside a staging folder of the destination; renaming what it made is the
        push.

        Args:
            input_dict: As for the stock executor.
            output_dict: As for the stock executor.
            exec_properties: As for the stock executor; custom_config has the stamp.

        Raises:
            UserError: The destination cannot be written.
        """
        pushed_model = artifact_utils.get_single_instance(output_dict[keys.PUSHED_MODEL_KEY])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed_model)
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[keys.PUSH_DESTINATION_KEY], destination)
        base = destination.filesystem.base_directory
        stamp = json.loads(exec_properties[keys.CUSTOM_CONFIG_KEY])[PIPELINE_STAMP_KEY]
        try:
            with push_destination.staging(base) as staging:
                destination.filesystem.base_directory = staging
                super().Do(
                    input_dict,
                    output_dict,
                    {**exec_properties, keys.PUSH_DESTINATION_KEY: proto_utils.proto_to_json(destination)},
                )
                [staged] = (os.path.join(staging, str(version)) for version in push_destination.versions(staging))
                io_utils.write_string_file(os.path.join(staged, push_destination.STAMP_PATH), stamp)
                # An update that is under way is pushed first: it changes the version before this one.
                with push_destination.exclusive(base):
                    version = push_destination.publish(staged, base)
        except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError, OSError) as error:
            refused = full_disk.refusal(error)
            # The stock executor also writes into the run's own folder.
            if refused is not None and refused.place and not refused.place.startswith(os.path.join(base, "")):
                raise
            reason = refused.reason if refused else getattr(error, "message", None) or getattr(error, "strerror", None)
            if reason is None:
                raise
            raise UserError(f"push to {base}: {reason}; make room, or choose another folder with output.push") from None
        self._MarkPushed(pushed_model, pushed_destination=os.path.join(base, version), pushed_version=version)
        # By this the next run knows a version that was made from this one.
        pushed_model.set_string_custom_property(PIPELINE_STAMP_KEY, stamp)
        logging.info("Version %s is at %s.", version, base)
