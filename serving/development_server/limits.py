"""How large a request may be: what a person can set, and the flags that set it. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

_EXCLUDE, _EXPLAIN, _FILTER_PREFIX = "exclude", "explain", "filter_"
"""Inputs with limits of their own, as the pipeline's servables name them."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, held against its shapes before anything is allocated.

    A tensor of a few bytes may have any shape: one value stands for all of them. TF Serving has no such bounds.
    """

    max_message_bytes: int = dataclasses.field(default=16 * 2**20, metadata={"help": "bytes of a request"})
    max_batch: int = dataclasses.field(default=1024, metadata={"help": "rows of a request"})
    max_width: int = dataclasses.field(
        default=10_000, metadata={"help": "values of a list in one row, for instance of a history"}
    )
    max_exclusions: int = dataclasses.field(default=100_000, metadata={"help": "excluded items in one row"})
    max_filter_values: int = dataclasses.field(
        # Each stands for all the items that have it.
        default=4096,
        metadata={"help": "values of a filter, all rows together"},
    )
    max_explained: int = dataclasses.field(
        # Each stands for a vector.
        default=4096,
        metadata={"help": "items to explain, all rows together"},
    )
    max_values: int = dataclasses.field(
        default=2**18, metadata={"help": "values of a request, rows times widths, all inputs together"}
    )

    def width(self, name: str) -> tuple[int, str]:
        """How many values a row of an input may have, and the flag that says so."""
        if name == _EXCLUDE:
            return self.max_exclusions, flag("max_exclusions")
        return self.max_width, flag("max_width")

    def size(self, name: str) -> tuple[int, str]:
        """How many values an input may have in all its rows, and the flag that says so."""
        if name.startswith(_FILTER_PREFIX):
            return self.max_filter_values, flag("max_filter_values")
        if name == _EXPLAIN:
            return self.max_explained, flag("max_explained")
        return self.max_values, flag("max_values")


def flag(field: str) -> str:
    """The command line's name of a limit."""
    return f"--{field.replace('_', '-')}"


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a click command an option for each limit: what is larger is refused before it takes memory."""
    for field in reversed(dataclasses.fields(Limits)):
        # gRPC's size of a message is an int32.
        command = click.option(
            flag(field.name), type=click.IntRange(1, 2**31 - 1), default=field.default, show_default=True, metavar="N",
            help=field.metadata["help"],
        )(command)  # fmt: skip
    return command
