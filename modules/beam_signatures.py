"""Signatures of the methods of Beam's DoFns, each found out once.

Beam looks at every method of every DoFn each time that it must know whether the DoFn is stateful, several times for
each step of a pipeline. Transform's pipeline has two thousand steps however few rows there are, and a third of its time
went into `inspect.signature`.
"""

from __future__ import annotations

import contextlib
import inspect
import types
import weakref
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """While it is entered, pipelines are built and run with what is known already."""
    from apache_beam.transforms import core

    find = core.get_signature
    of_functions: weakref.WeakKeyDictionary[Any, inspect.Signature] = weakref.WeakKeyDictionary()
    # Without the first argument, whatever object it is.
    of_methods: weakref.WeakKeyDictionary[Any, inspect.Signature] = weakref.WeakKeyDictionary()

    def get_signature(function: Any) -> inspect.Signature:
        known, own = of_functions, function
        if isinstance(function, types.MethodType):
            known, own = of_methods, function.__func__
        if not isinstance(own, types.FunctionType):
            return find(function)
        signature = known.get(own)
        if signature is None:
            signature = known[own] = find(function)
        return signature

    core.get_signature = get_signature
    try:
        yield
    finally:
        core.get_signature = find
