"""What functions of a loaded SavedModel read, so that it can be saved again without the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def resources(loaded: Any, functions: Iterable[Any]) -> list[Any]:
    """The variables and tables that functions read; what is saved with the functions must track them.

    Args:
        loaded: A SavedModel as `tf.saved_model.load` returns it.
        functions: Concrete functions of it, or parts of such.
    """
    read = {id(tensor) for function in functions for tensor in function.captured_inputs}
    return [node for node in tf.train.TrackableView(loaded).descendants() if id(_handle(node)) in read]


def _handle(node: Any) -> Any:
    """The tensor by which a function captures a variable or a table; None for other objects."""
    return getattr(node, "handle", getattr(node, "resource_handle", None))
