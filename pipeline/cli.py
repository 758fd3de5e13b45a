"""The command line, `twotower`: finds the commands, and turns what goes wrong into a line and an exit code."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, shell_complete

from modules.errors import UserError
from modules.nearest import meant
from pipeline import local_runner, terminal
from pipeline.config import Config, load

# Each has its commands in a folder `commands`; nothing else of kubeflow and serving is known here.
_PACKAGES = ("pipeline", "serving", "kubeflow")
# click's mark of a paragraph that is not wrapped.
_AS_IT_IS = "\b"
# Set by what `docs/runs.md` has a shell read: the request for its completion, or for the script that asks for one.
_COMPLETE = "_TWOTOWER_COMPLETE"


class _Commands(click.Group):
    """The commands that are found, each imported when it is asked for: some need libraries that take seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_modules())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _modules().get(cmd_name)
        if module is None:
            return None
        return with_examples(getattr(importlib.import_module(module), cmd_name.replace("-", "_")))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own shows what each command is for, which takes an import of all of them.
        names = [CompletionItem(name) for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in _modules():
            raise click.UsageError(f"No such command {name!r}{meant(name, _modules())}", ctx)
        return super().resolve_command(ctx, args)


def with_examples(command: click.Command) -> click.Command:
    """Lays out a command's `epilog`, which is examples, one a line; and those of the commands below it."""
    if command.epilog and not command.epilog.startswith(_AS_IT_IS):
        lines = [line.strip() for line in command.epilog.strip().splitlines()]
        command.epilog = "\n".join([_AS_IT_IS, "Examples:", *(f"  {line}" for line in lines)])
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        with_examples(below)
    return command


@functools.cache
def _modules() -> dict[str, str]:
    """Command → its module: the files of a `commands` folder that define a command of their own name."""
    commands = {}
    for package in _PACKAGES:
        spec = importlib.util.find_spec(f"{package}.commands")
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in Path(folder).glob("*.py"):
                if f"\ndef {path.stem}(" in path.read_text(encoding="utf-8"):
                    commands[path.stem.replace("_", "-")] = f"{package}.commands.{path.stem}"
    return commands


class Project:
    """What commands of other folders may ask of the pipeline."""

    def load(self, path: str | None, overrides: Sequence[str]) -> Config:
        """The configuration of a file, by default that of `twotower run`."""
        from pipeline.commands.options import DEFAULT_CONFIG

        return load(path or DEFAULT_CONFIG, tuple(overrides))

    def say(self, text: str) -> None:
        """Writes a line for a person, at once."""
        terminal.say(text, flush=True)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "obj": Project()},
    epilog="""
    twotower data movielens-100k
    twotower run
    twotower recommend --user 42
    """,
)
def twotower() -> None:
    """Run the pipeline, ask the pushed model, look at what ran."""


with_examples(twotower)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Exit code 0: done; 1: a gate refused, or a stage crashed; 2: a mistake in what was asked, or something a person can
    mend; 130 and 143: ended by Ctrl-C or by SIGTERM.
    """
    if arguments is None and (asked := os.environ.get(_COMPLETE)):
        return shell_complete(twotower, {}, "twotower", _COMPLETE, asked)
    local_runner.quiet_libraries()
    terminal.never_fail_to_write()
    given = sys.argv[1:] if arguments is None else arguments
    ending = Ending()
    try:
        # Not `twotower.main`, which would take an interruption's words away.
        with ending, twotower.make_context("twotower", [_text(argument) for argument in given]) as context:
            return twotower.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "twotower"
        return _refuse(f"{error.format_message()}; `{where} --help` says what there is", given)
    except click.ClickException as error:
        # What commands of other folders raise, which have no type in common with the pipeline's.
        return _refuse(error.format_message(), given)
    except UserError as error:
        return _refuse(str(error), given)
    except BrokenPipeError:
        # The reader of our output has gone (`twotower recommend … | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interruption:
        terminal.complain(str(interruption) or "interrupted")
        if arguments is None:
            # The threads of a stage that was left in the middle would hold this process until they are through.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ending.code)
        return ending.code


def _refuse(words: str, given: Sequence[str]) -> int:
    if "--json" in given:
        print(json.dumps({"error": words}))
    terminal.complain(words)
    return 2


class Ending:
    """While it is entered, SIGTERM ends a command as Ctrl-C does: what is half done is cleaned up behind it.

    A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.code = 128 + signal.SIGINT
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        # Signals come to the main thread, and nobody else can handle them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Who was started to ignore a signal, in the background of a script, goes on ignoring it.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._end)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: Any) -> None:
        for handled in self._before:
            signal.signal(handled, signal.SIG_DFL)
        self.code = 128 + number
        raise KeyboardInterrupt


def _text(argument: str) -> str:
    """An argument that can be a file's name, a table's id and a line of output: Unicode without NUL."""
    if "\0" in argument:
        raise UserError(f"argument {argument!r}: has a NUL character; leave it out")
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UserError(f"argument {argument!r}: is not UTF-8; write it so, or rename the file") from None
    return argument


if __name__ == "__main__":
    sys.exit(main())
