"""Every command shows examples, and the command line takes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from test_docs import find

from pipeline import cli


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, (*path, name))


COMMANDS = dict(walk(cli.twotower))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_examples_parse(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    head, title, *lines = (COMMANDS[path].epilog or "\b\n").split("\n")
    assert (head, title) == ("\b", "Examples:") and lines, f"twotower {' '.join(path)} has no epilog with an example"
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    for line in lines:
        assert f"\n  {line}\n" in shown, "not wrapped"
        words = shlex.split(line)
        assert words[: len(path) + 1] == ["twotower", *path]
        command, rest = find(words[1:])
        # Raises a UsageError for what does not parse.
        command.make_context(command.name, rest)


def test_a_wrong_example_would_be_found():
    command, rest = find(shlex.split("recommend --usr 42"))
    with pytest.raises(click.UsageError, match="--usr"):
        command.make_context(command.name, rest)
    with pytest.raises(AssertionError, match="there is no command recomend"):
        find(["recomend"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recomend"], "No such command 'recomend'; did you mean 'recommend'?"),
        (["data", "movielens"], "movielens-100k"),
        (["run", "--confg", "x"], "--config"),
        (["run", "--set", "training.epoch=3"], "training.epoch: unknown key; did you mean 'epochs'?"),
        (["run", "--set", "traning.epochs=3"], "traning: unknown key; did you mean 'training'?"),
        (["run", "--set", "features.query.agee.dimension=3"], "'agee'; did you mean 'age'?"),
        (["run", "--set", "features.query.age.boundary=[1]"], "boundary: unknown key; did you mean 'boundaries'?"),
        (["run", "--set", "xyz=3"], "xyz: unknown key; remove it or correct its name"),
    ],
)
def test_what_was_meant(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1
