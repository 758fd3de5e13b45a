"""SavedModels of one number, for tests of what a server does around a model."""

from __future__ import annotations

import json
from pathlib import Path

import tensorflow as tf


class _Tiny(tf.Module):
    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = tf.Variable(version, dtype=tf.int64)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.float32, name="x"), tf.TensorSpec([None], tf.string, name="s")]
    )
    def everything(self, x: tf.Tensor, s: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "version": tf.fill([tf.size(x)], self.version),
            "x": x,
            "double": tf.cast(x, tf.float64) / 3,
            "positive": x > 0,
            "text": s,
            "raw_bytes": s,
        }

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="n")])
    def total(self, n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": n + self.version}


def push(base_path: Path, version: int, description: object = None) -> Path:
    """Saves version n under a base path, its folder renamed into place; it answers n in `version`.

    Args:
        base_path: The model's folder.
        version: Its number.
        description: Content of assets.extra/servable.json, if any.
    """
    staging = base_path / f".staging-{version}"
    model = _Tiny(version)
    tf.saved_model.save(model, str(staging), {"serving_default": model.everything, "total": model.total})
    if description is not None:
        (staging / "assets.extra").mkdir()
        (staging / "assets.extra" / "servable.json").write_text(json.dumps(description))
    return staging.rename(base_path / str(version))
