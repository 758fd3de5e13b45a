"""Pushes through a staging folder, so that a version is either not there or whole."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
import uuid
from typing import Any

import tensorflow as tf
from absl import logging
from tfx import types
from tfx.components.pusher import executor as stock
from tfx.dsl.io import fileio
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils, proto_utils

from components.baseline_resolver import versions
from modules.errors import UserError

PIPELINE_STAMP_KEY = "pipeline_stamp"

# Not a number, so TF Serving passes it over; says whose it is and since when, so that the next push knows whether
# anybody still works in it.
_STAGING = ".staging-{host}-{process}-{seconds}-{unique}"
_STAGING_PATTERN = re.compile(r"\.staging-(?P<host>.*)-(?P<process>\d+)-(?P<seconds>\d+)-[0-9a-f]+")
# Whether a process of another host lives, nobody can ask; but no push takes this long.
_ABANDONED_AFTER_SECONDS = 24 * 3600


class Executor(stock.Executor):
    """Executor of the Pusher."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
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
        staging = _create_staging(base)
        try:
            _remove_abandoned(base)
            destination.filesystem.base_directory = staging
            super().Do(
                input_dict,
                output_dict,
                {**exec_properties, keys.PUSH_DESTINATION_KEY: proto_utils.proto_to_json(destination)},
            )
            [staged] = (os.path.join(staging, str(version)) for version in versions.versions(staging))
            stamp = json.loads(exec_properties[keys.CUSTOM_CONFIG_KEY])[PIPELINE_STAMP_KEY]
            io_utils.write_string_file(os.path.join(staged, versions.STAMP), stamp)
            version = _publish(staged, base)
            self._MarkPushed(pushed_model, pushed_destination=os.path.join(base, version), pushed_version=version)
        except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError) as error:
            raise UserError(
                f"push to {base}: {error.message}; make room, or choose another folder with output.push"
            ) from None
        finally:
            _remove(staging)
        logging.info("Version %s is at %s.", version, base)


def _create_staging(base: str) -> str:
    name = _STAGING.format(
        host=socket.gethostname(), process=os.getpid(), seconds=int(time.time()), unique=uuid.uuid4().hex[:8]
    )
    staging = os.path.join(base, name)
    try:
        if versions.is_remote(base):
            fileio.makedirs(staging)
        else:
            os.makedirs(staging)
    except (OSError, tf.errors.OpError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        raise UserError(
            f"push destination {base}: {reason}; choose a folder that can be written with output.push"
        ) from None
    return staging


def _publish(staged: str, base: str) -> str:
    """Gives a staged model its version: the time, as is usual, but always above every version there is."""
    while True:
        version = str(max(int(time.time()), *(taken + 1 for taken in versions.versions(base)), 0))
        target = os.path.join(base, version)
        if versions.is_remote(base):
            # An object store cannot rename a folder. TF Serving waits for saved_model.pb, so it comes last.
            io_utils.copy_dir(staged, target, deny_regex_patterns=[r"saved_model\.pb"])
            io_utils.copy_file(os.path.join(staged, "saved_model.pb"), os.path.join(target, "saved_model.pb"))
            return version
        try:
            os.rename(staged, target)
            return version
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Another push took the number meanwhile.


def _remove_abandoned(base: str) -> None:
    """Removes what killed pushes left behind."""
    for name in fileio.listdir(base):
        match = _STAGING_PATTERN.fullmatch(name.rstrip("/"))
        if not match:
            continue
        folder = os.path.join(base, match.group())
        if match["host"] == socket.gethostname():
            abandoned = not _is_alive(int(match["process"]))
        else:
            abandoned = time.time() - int(match["seconds"]) > _ABANDONED_AFTER_SECONDS
        if abandoned:
            logging.info("Removing %s, left by a push that was killed.", folder)
            _remove(folder)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(folder: str) -> None:
    if versions.is_remote(folder):
        if fileio.exists(folder):
            fileio.rmtree(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
