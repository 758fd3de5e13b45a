"""A fit that dies after an epoch's checkpoint, as a killed process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf


class Killed(BaseException):
    """Whoever called has died."""


def die_after(epoch: int, fit: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls `fit`, which ends when the checkpoint of that epoch, counted from 0, is whole."""
    save = tf.train.CheckpointManager.save

    def die(self: Any, number: int, *args: Any, **kwargs: Any) -> None:
        save(self, number, *args, **kwargs)
        if number == epoch:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tf.train.CheckpointManager, "save", die)
        fit()
