"""The state of a fit after each epoch, so that a killed one goes on to the very same weights."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import tensorflow as tf

from modules.training.report import Epoch

_PROGRESS = logging.getLogger("twotower.progress")
# Where a checkpoint has `Checkpoints._state`.
_STATE = "state/.ATTRIBUTES/VARIABLE_VALUE"


class Checkpoints:
    """The newest state of a fit, in a folder.

    Args:
        folder: None keeps nothing.
        kept: What is written after each epoch and read again, by name.
    """

    def __init__(self, folder: str | None, **kept: Any) -> None:
        self._state = tf.Variable("", dtype=tf.string, trainable=False)
        self._kept = tf.train.Checkpoint(state=self._state, **kept)
        self._layout = _layout(self._kept)
        self._manager = tf.train.CheckpointManager(self._kept, folder, max_to_keep=1) if folder else None

    def save(self, epochs: Sequence[Epoch]) -> None:
        """Writes the state after these epochs."""
        if self._manager is not None:
            self._state.assign(json.dumps({"layout": self._layout, "epochs": [asdict(epoch) for epoch in epochs]}))
            self._manager.save(len(epochs) - 1)

    def restore(self) -> list[Epoch]:
        """Reads the newest state; its epochs, none where there is no state or one of another layout."""
        newest = self._manager.latest_checkpoint if self._manager is not None else None
        if not newest:
            return []
        # Read before anything is restored: of a checkpoint that fits in part, weights would be taken.
        state = json.loads(tf.train.load_checkpoint(newest).get_tensor(_STATE))
        if not isinstance(state, dict) or state["layout"] != self._layout:
            _PROGRESS.info("training begins anew: the checkpoint of the killed one was written by other code")
            return []
        self._kept.restore(newest)
        return [Epoch(**epoch) for epoch in state["epochs"]]


def _layout(kept: tf.train.Checkpoint) -> str:
    """Hash of what a checkpoint holds: where each variable is, its dtype and shape, and what is kept of an epoch."""
    view = tf.train.TrackableView(kept)
    variables, found, seen = [], [("", kept)], {id(kept)}
    for path, node in found:
        for name, child in sorted(view.children(node).items()):
            if id(child) not in seen:
                seen.add(id(child))
                found.append((f"{path}/{name}", child))
        if isinstance(node, tf.Variable):
            variables.append([path, node.dtype.name, node.shape.as_list()])
    content = [sorted(field.name for field in fields(Epoch)), variables]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
