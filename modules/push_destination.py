"""The push destination: which versions it has, whose they are, and how a new one gets there.

Versions are folders with a number for a name, as TF Serving reads them. A new one is made in a staging folder beside
them, then numbered and renamed: it is there whole or not at all. Pusher, BaselineResolver, `twotower update-index` and
every command that asks a model come here.

Imports nothing heavy: pipeline.py asks for the baseline before it knows whether any component will run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

from modules import lock, manifest
from modules.errors import UserError

_PROGRESS = logging.getLogger("twotower.progress")

STAMP_PATH = os.path.join("assets.extra", "pipeline_stamp")
"""In each pushed version: fingerprint of what made it (configuration, data, code). TF Serving ignores the folder."""
MANIFEST_PATH = os.path.join("assets.extra", "manifest.json")
"""In each version of a local folder: its other files, by which damage is found (modules/manifest.py)."""

UPDATE_PATH = os.path.join("assets.extra", "update.json")
"""In a version that was made by an update: what was updated (modules/servable/new_version.py)."""
ROLLBACK_PATH = os.path.join("assets.extra", "rollback.json")
"""In a version that was made by a rollback: which version it is a copy of (modules/rollback.py)."""

_SAVED_MODEL = "saved_model.pb"
# Not a number, so TF Serving passes it over; says whose it is and since when, so that the next push knows whether
# anybody still works in it.
_STAGING = ".staging-{host}-{process}-{seconds}-{unique}"
_STAGING_PATTERN = re.compile(r"\.staging-(?P<host>.*)-(?P<process>\d+)-(?P<seconds>\d+)-[0-9a-f]+")
# Whether a process of another host lives, nobody can ask; but no push takes this long.
_ABANDONED_AFTER_SECONDS = 24 * 3600
# An update holds the lock while it works, which takes minutes for the largest catalogues.
_WAIT_SECONDS = 1800.0


def versions(push_destination: str) -> list[int]:
    """Every version number that is taken, rising; whether the model in it is whole or not. Empty without the folder."""
    return sorted(int(name) for name in _names(push_destination) if name.isascii() and name.isdigit())


def in_force(push_destination: str) -> Iterator[str]:
    """The versions that count, newest first: those that a rollback took back do not, as if they had not been pushed.

    A version that was made by a rollback stands for the one that it is a copy of, which is given in its place as long
    as that one is whole. What comes next is older than the copied one.

    Args:
        push_destination: The model's folder, local or remote.

    Yields:
        Folder names of versions that can be loaded.
    """
    below: int | None = None
    for version in reversed(versions(push_destination)):
        if below is not None and version >= below:
            continue
        folder = os.path.join(push_destination, str(version))
        if not is_complete(folder):
            continue
        original = copy_of(folder)
        if original is None:
            yield str(version)
            continue
        below = original
        standing_in = is_complete(os.path.join(push_destination, str(original)))
        yield str(original if standing_in else version)


def is_taken_back(folder: str) -> bool:
    """Whether a rollback has gone back to before a version that is there."""
    base, _, version = folder.rpartition("/")
    return is_complete(folder) and version not in in_force(base)


def copy_of(folder: str) -> int | None:
    """The version that a rollback made this version from; None when no rollback made it."""
    try:
        return int(json.loads(read_text(folder, ROLLBACK_PATH))["copy_of"])
    except (ValueError, LookupError, TypeError):
        return None


def latest_version(push_destination: str, excluding_stamp: str = "") -> str:
    """The newest version that is in force.

    Args:
        push_destination: The model's folder, local or remote.
        excluding_stamp: Versions with this stamp do not count: a run is never compared with its own model, so that the
            same run a second time finds the same baseline.

    Returns:
        Its folder name, "" when there is none.
    """
    for version in in_force(push_destination):
        if not excluding_stamp or read_stamp(os.path.join(push_destination, version)) != excluding_stamp:
            return version
    return ""


def newest_version(push_destination: str) -> str:
    """The newest version, for who asks the model that is served.

    Returns:
        Its folder name.

    Raises:
        UserError: Nothing has been pushed, or the newest version is damaged: an older one would answer something else.
    """
    for version in reversed(versions(push_destination)):
        folder = os.path.join(push_destination, str(version))
        what = damage(folder)
        if what:
            raise UserError(
                f"version {version} in {push_destination} is damaged: {what}; delete its folder, "
                "`twotower run` then pushes the model again"
            )
        if is_complete(folder):
            return str(version)
    raise UserError(f"no model in {push_destination}: nothing has been pushed yet; start with `twotower run`")


def standing(folder: str, stamp: str) -> str:
    """Where a model that was pushed is now.

    Args:
        folder: The version's folder that it was pushed to.
        stamp: Its stamp, "" when it is not known.

    Returns:
        That folder while the version is there and whole, else the newest later one that was made from it by an update;
        "" when there is neither.
    """
    if is_complete(folder):
        return folder
    base, _, version = folder.rpartition("/")
    for later in reversed(versions(base)):
        candidate = os.path.join(base, str(later))
        if stamp and version.isdecimal() and later > int(version) and read_stamp(candidate) == stamp:
            return candidate if is_complete(candidate) else ""
    return ""


def is_complete(folder: str) -> bool:
    """Whether a version's folder holds a whole model: saved_model.pb is what appears last, and nothing is damaged."""
    path = os.path.join(folder, _SAVED_MODEL)
    there = _gfile().exists(path) if is_remote(folder) else os.path.isfile(path)
    return there and not damage(folder)


def damage(folder: str) -> str:
    """What is wrong with a version that was whole when it was pushed, in words; "" for nothing that is known."""
    return "" if is_remote(folder) else manifest.damage(folder, os.path.join(folder, MANIFEST_PATH))


def read_stamp(folder: str) -> str:
    """The stamp of a version, "" when it has none."""
    return read_text(folder, STAMP_PATH)


def read_text(folder: str, name: str) -> str:
    """A file that lies beside the model of a version, "" when it is not there."""
    path = os.path.join(folder, name)
    if is_remote(folder):
        if not _gfile().exists(path):
            return ""
        with _gfile().GFile(path) as file:
            return file.read()
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeError):
        return ""


def bring(source: str, target: str) -> None:
    """Copies a version's folder, local or remote, to a folder that is not there yet, or empty.

    A pushed version never changes, so a second name for its files is as good as a copy, and costs no space.
    """
    if is_remote(source) or is_remote(target):
        from tfx.utils import io_utils

        io_utils.copy_dir(source, target)
    else:
        shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def write_text(folder: str, name: str, text: str) -> None:
    """Writes a file beside the model of a version that is staged; a file that `bring` linked keeps its own text."""
    path = os.path.join(folder, name)
    if is_remote(folder):
        _gfile().makedirs(os.path.dirname(path))
        with _gfile().GFile(path, "w") as file:
            file.write(text)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


def withdraw(push_destination: str, version: int) -> None:
    """Removes a version of a local folder; call it while `exclusive`.

    It is gone for a server at once, whole: a version with half of its files would be a damaged one.
    """
    with staging(push_destination) as folder:
        os.rename(os.path.join(push_destination, str(version)), os.path.join(folder, str(version)))


def is_remote(path: str) -> bool:
    """Whether a path needs TensorFlow's file systems (`gs://…`)."""
    return "://" in path


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
    if is_remote(push_destination):
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
    if not is_remote(push_destination):
        path = os.path.join(staged, MANIFEST_PATH)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of the version that this one is a copy of
        manifest.write(path, manifest.of(staged))
    while True:
        name = str(next_version(push_destination) if version is None else version)
        target = os.path.join(push_destination, name)
        if is_remote(push_destination):
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
    return max(int(time.time()), *(taken + 1 for taken in versions(push_destination)), 0)


def _make_folder(folder: str, of: str = "") -> None:
    try:
        if is_remote(folder):
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
    names = _gfile().listdir(base) if is_remote(base) else os.listdir(base)
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
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif _gfile().exists(folder):
        _gfile().rmtree(folder)


def _names(folder: str) -> list[str]:
    if is_remote(folder):
        if not _gfile().isdir(folder):
            return []
        return [name.rstrip("/") for name in _gfile().listdir(folder)]
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile
