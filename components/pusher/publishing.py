"""How a version gets into a push destination: made in a staging folder beside it, then numbered and renamed.

The Pusher and `twotower update-index` both publish this way. Imports no TFX, which takes longer to load than an update
to make.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

from components.baseline_resolver import versions
from modules import lock, manifest
from modules.errors import UserError

_PROGRESS = logging.getLogger("twotower.progress")

# Not a number, so TF Serving passes it over; says whose it is and since when, so that the next push knows whether
# anybody still works in it.
_STAGING = ".staging-{host}-{process}-{seconds}-{unique}"
_STAGING_PATTERN = re.compile(r"\.staging-(?P<host>.*)-(?P<process>\d+)-(?P<seconds>\d+)-[0-9a-f]+")
# Whether a process of another host lives, nobody can ask; but no push takes this long.
_ABANDONED_AFTER_SECONDS = 24 * 3600
# An update holds the lock while it works, which takes minutes for the largest catalogues.
_WAIT_SECONDS = 1800.0


@contextlib.contextmanager
def exclusive(push_destination: str, wait_seconds: float = _WAIT_SECONDS) -> Iterator[None]:
    """Keeps everybody else from publishing to a local destination, from a look at its newest version to the next one.

    An object store has no locks (modules/lock.py).

    Args:
        push_destination: The folder with the versions; made when it is not there.
        wait_seconds: How long to wait for whoever has the lock.

    Raises:
        UserError: The folder cannot be used, or is still locked after this time.
    """
    if versions.is_remote(push_destination):
        yield
        return
    _make_folder(push_destination)

    def say() -> None:
        _PROGRESS.info("waiting: another twotower is publishing to %s", push_destination)

    with lock.exclusive(push_destination, wait_seconds, say) as is_ours:
        if not is_ours:
            raise UserError(
                f"push destination {push_destination}: another twotower has been publishing here for "
                f"{wait_seconds:.0f} s; wait for it or end it, and try again"
            )
        yield


@contextlib.contextmanager
def staging(push_destination: str) -> Iterator[str]:
    """A folder of the destination to make a version in, removed at the end; what killed pushes left is removed too.

    Raises:
        UserError: The destination cannot be written.
    """
    name = _STAGING.format(
        host=socket.gethostname(), process=os.getpid(), seconds=int(time.time()), unique=uuid.uuid4().hex[:8]
    )
    folder = os.path.join(push_destination, name)
    _make_folder(folder, of=push_destination)
    try:
        _remove_abandoned(push_destination)
        yield folder
    finally:
        _remove(folder)


def publish(staged: str, push_destination: str, version: int | None = None) -> str:
    """Makes a staged model the newest version, which is there whole or not at all; call it while `exclusive`.

    Args:
        staged: The model's folder, on the destination's file system.
        push_destination: The folder with the versions.
        version: By default `next_version`.

    Returns:
        The version's folder name.
    """
    if not versions.is_remote(push_destination):
        manifest.write(os.path.join(staged, versions.MANIFEST), manifest.of(staged))
    while True:
        name = str(next_version(push_destination) if version is None else version)
        target = os.path.join(push_destination, name)
        if versions.is_remote(push_destination):
            from tfx.utils import io_utils

            # An object store cannot rename a folder. TF Serving waits for saved_model.pb, so it comes last.
            io_utils.copy_dir(staged, target, deny_regex_patterns=[r"saved_model\.pb"])
            io_utils.copy_file(os.path.join(staged, "saved_model.pb"), os.path.join(target, "saved_model.pb"))
            return name
        try:
            os.rename(staged, target)
            return name
        except OSError as error:
            if version is not None or error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Without a lock, another push can take the number meanwhile.


def next_version(push_destination: str) -> int:
    """The time, as is usual, but always above every version there is: a clock can be set back."""
    return max(int(time.time()), *(taken + 1 for taken in versions.versions(push_destination)), 0)


def _make_folder(folder: str, of: str = "") -> None:
    try:
        if versions.is_remote(folder):
            _gfile().makedirs(folder)
        else:
            os.makedirs(folder, exist_ok=True)
    except Exception as error:
        # OSError, or TensorFlow's own for its file systems.
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
        raise UserError(
            f"push destination {of or folder}: {reason}; choose a folder that can be written with output.push"
        ) from None


def _remove_abandoned(base: str) -> None:
    names = _gfile().listdir(base) if versions.is_remote(base) else os.listdir(base)
    for name in names:
        match = _STAGING_PATTERN.fullmatch(name.rstrip("/"))
        if not match:
            continue
        if match["host"] == socket.gethostname():
            abandoned = not _is_alive(int(match["process"]))
        else:
            abandoned = time.time() - int(match["seconds"]) > _ABANDONED_AFTER_SECONDS
        if abandoned:
            _remove(os.path.join(base, match.group()))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(folder: str) -> None:
    if not versions.is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif _gfile().exists(folder):
        _gfile().rmtree(folder)


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile
