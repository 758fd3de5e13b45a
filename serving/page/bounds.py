"""How much of a version goes into a page, and the flags that set it. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Bounds:
    """A page is a file for a browser; a catalogue may be larger than that."""

    items: int = dataclasses.field(
        default=20_000, metadata={"help": "items whose titles are in the page, the most popular ones"}
    )
    users: int = dataclasses.field(
        # Those with the newest interactions.
        default=1_000,
        metadata={"help": "known users whose histories are in the page; 0 for none"},
    )


def options(prefix: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a click command an option for each bound.

    Args:
        prefix: Of their names, where the command has others.
    """

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(Bounds)):
            command = click.option(
                f"--{prefix}{field.name}", type=click.IntRange(0, 10**6), default=field.default, show_default=True,
                metavar="N", help=field.metadata["help"],
            )(command)  # fmt: skip
        return command

    return decorated
