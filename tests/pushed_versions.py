"""Version folders in a push destination that hold as much as looking at them takes."""

from __future__ import annotations

import os

from modules import push_destination


def write(path: str, content: str) -> None:
    """Writes a file, on any file system that TensorFlow knows."""
    if push_destination.is_remote(path):
        import tensorflow as tf

        tf.io.gfile.makedirs(os.path.dirname(path))
        with tf.io.gfile.GFile(path, "w") as remote:
            remote.write(content)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


def push(destination: str, version: str, stamp: str | None = None, whole: bool = True) -> None:
    """As if somebody had copied a version there."""
    folder = os.path.join(destination, version)
    write(os.path.join(folder, "variables", "variables.index"), version)
    if stamp is not None:
        write(os.path.join(folder, push_destination.STAMP_PATH), stamp)
    if whole:
        write(os.path.join(folder, "saved_model.pb"), f"model {version}")
