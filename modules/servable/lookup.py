"""Strings to numbers inside a SavedModel."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def line_numbers(file: str, keys: Sequence[str], default: int) -> tf.lookup.StaticHashTable:
    """String → position, from a file that is saved with the model: a server initialises the table by itself.

    Args:
        file: Where the keys are written, one a line; it must live until the model has been saved.
        keys: Without line breaks, each once.
        default: For other strings.
    """
    with open(file, "w", encoding="utf-8", newline="") as lines:
        lines.writelines(f"{key}\n" for key in keys)
    initializer = tf.lookup.TextFileInitializer(
        file, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    return tf.lookup.StaticHashTable(initializer, default)
