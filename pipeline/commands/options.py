"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from modules.errors import UserError
from pipeline import completion, terminal
from pipeline.config import Config, load

DEFAULT_CONFIG = "configs/movielens-100k.yaml"


@dataclass(frozen=True)
class Common:
    """What every command of a data set is told."""

    json: bool
    path: str
    overrides: tuple[str, ...]

    def load(self) -> Config:
        """The configuration.

        Raises:
            UserError: It has a mistake.
        """
        return load(self.path, self.overrides)

    def answer(self, data: Any, *lines: str) -> None:
        """Writes an answer: the data as JSON, or else lines for a person."""
        if self.json:
            print(json.dumps(data))
            return
        for line in lines:
            terminal.say(line)


def configured(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command `--config`, `--set` and `--json`, as its first argument `common`."""

    @click.option("--config", "path", default=DEFAULT_CONFIG, show_default=True, help="configuration file",
                  shell_complete=completion.files)  # fmt: skip
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", shell_complete=completion.overrides,
                  help="replace a key of the configuration, for instance training.epochs=3")  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="machine-readable output")
    @functools.wraps(command)
    def wrapped(path: str, overrides: tuple[str, ...], as_json: bool, **others: Any) -> int:
        return command(Common(as_json, path, overrides), **others)

    return wrapped


class LocalFile(click.ParamType):
    """A file or folder of this machine that is to be written."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value or "://" in value:
            self.fail(f"{value!r} is no file of this machine; write one here, then copy it", param, ctx)
        return value


class Count(click.ParamType):
    """A number of things, at least one."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if not text.isdecimal() or len(text) > 18 or not int(text):
            self.fail(f"{text!r} is not a whole number from 1", param, ctx)
        return int(text)


def pairs(texts: Sequence[str], option: str) -> dict[str, list[str]]:
    """`column=value` texts as column → the values given for it, in their order.

    Raises:
        UserError: One has no `=`.
    """
    by_column: dict[str, list[str]] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"{option} {text!r}: expected column=value")
        by_column.setdefault(key, []).append(value)
    return by_column


def single(texts: Sequence[str], option: str) -> dict[str, str]:
    """Name → its one value.

    Raises:
        UserError: A name is given twice.
    """
    by_name = pairs(texts, option)
    for name, values in by_name.items():
        if len(values) > 1:
            raise UserError(f"{option} {name} is given {len(values)} times; keep one")
    return {name: value for name, (value,) in by_name.items()}


def listed(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
