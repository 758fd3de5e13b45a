"""The versions in a push destination: folders with a number for a name, as TF Serving reads them.

Imports nothing heavy: pipeline.py asks for the baseline before it knows whether any component will run.
"""

from __future__ import annotations

import os

from modules import manifest
from modules.errors import UserError

STAMP = os.path.join("assets.extra", "pipeline_stamp")
"""In each pushed version: fingerprint of what made it (configuration, data, code). TF Serving ignores the folder."""
MANIFEST = os.path.join("assets.extra", "manifest.json")
"""In each version of a local folder: its other files, by which damage is found (modules/manifest.py)."""
VERSION_PROPERTY = "version"
"""Custom property of the baseline artifact: which version it holds."""

_SAVED_MODEL = "saved_model.pb"


def versions(push_destination: str) -> list[int]:
    """Every version number that is taken, rising; whether the model in it is whole or not. Empty without the folder."""
    return sorted(int(name) for name in _names(push_destination) if name.isascii() and name.isdigit())


def latest_version(push_destination: str, excluding_stamp: str = "") -> str:
    """The newest version that can be loaded.

    Args:
        push_destination: The model's folder, local or remote.
        excluding_stamp: Versions with this stamp do not count: a run is never compared with its own model, so that the
            same run a second time finds the same baseline.

    Returns:
        Its folder name, "" when there is none.
    """
    for version in reversed(versions(push_destination)):
        folder = os.path.join(push_destination, str(version))
        if not is_complete(folder):
            continue
        if not excluding_stamp or read_stamp(folder) != excluding_stamp:
            return str(version)
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
        found = damage(folder)
        if found:
            raise UserError(
                f"version {version} in {push_destination} is damaged: {found}; delete its folder, "
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
    return "" if is_remote(folder) else manifest.damage(folder, os.path.join(folder, MANIFEST))


def read_stamp(folder: str) -> str:
    """The stamp of a version, "" when it has none."""
    path = os.path.join(folder, STAMP)
    if is_remote(folder):
        if not _gfile().exists(path):
            return ""
        with _gfile().GFile(path) as file:
            return file.read()
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def is_remote(path: str) -> bool:
    """Whether a path needs TensorFlow's file systems (`gs://…`)."""
    return "://" in path


def _names(folder: str) -> list[str]:
    if is_remote(folder):
        if not _gfile().isdir(folder):
            return []
        return [name.rstrip("/") for name in _gfile().listdir(folder)]
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _gfile():  # type: ignore[no-untyped-def]
    import tensorflow as tf

    return tf.io.gfile
