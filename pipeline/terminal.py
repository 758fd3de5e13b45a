"""What a person sees. Text of tables, models and errors meets the terminal here, and nowhere else."""

from __future__ import annotations

import io
import os
import sys
import traceback
import unicodedata
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

# A message begins with the thing and ends with the fix; of a thing that is longer than this the middle is left out.
_MESSAGE_BEGIN, _MESSAGE_END = 1400, 500
# Characters that act on a terminal or on the text around them instead of being seen: controls (escape sequences begin
# with one), directions and other format characters, halves of a surrogate pair, and separators of lines.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Except two format characters that scripts and emoji are written with; they join what is beside them and do no more.
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """A text as one line that is shown and never obeyed: a character that acts is written as its escape, `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _ACTING and c not in _JOINERS
        else c
        for c in text
    )  # fmt: skip


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text in which some parts, given with their style, are coloured; what looks like markup is data."""
    return Text.assemble(*(visible(p) if isinstance(p, str) else (visible(p[0]), p[1]) for p in parts))


class _Terminal(Console):
    """rich, without a meaning in any text: neither markup, nor emoji by name, nor characters that act."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Whatever rich shows of a `str` (a line, a table's cell or title) comes through here before it is measured.
        return super().render_str(visible(text), **options)


def console(stream: TextIO | None = None) -> Console:
    """The person's terminal, by default where answers go; a pipe or a file gets lines wide enough for a table."""
    if stream is not None:
        return _Terminal(file=stream, soft_wrap=True)
    return _Terminal(width=None if sys.stdout.isatty() else 120)


def say(text: str, *, flush: bool = False) -> None:
    """Writes a line of an answer."""
    print(visible(text), flush=flush)


def complain(text: str) -> None:
    """Writes what went wrong, one line."""
    line = visible(" ".join(text.split()))
    if len(line) > _MESSAGE_BEGIN + _MESSAGE_END:
        line = f"{line[:_MESSAGE_BEGIN]} … {line[-_MESSAGE_END:]}"
    print(f"twotower: {line}", file=sys.stderr)


def tell_failure(error: Exception, who: str, log: str | None) -> None:
    """Says what stages or workers died of.

    Args:
        error: What came of it: TFX and Beam wrap the reason many times.
        who: The stages, or the workers.
        log: The file of what they wrote, which gets all of it; None where the person has seen that.
    """
    complain(f"{type(error).__name__}: {_reason(error)}")
    if log is not None:
        with open(log, "a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
        complain(f"everything the {who} wrote is in {os.path.relpath(log)}")


def _reason(error: Exception) -> str:
    """In a line: of the traces that Beam's workers send along, the end."""
    said, trace, _ = str(error).partition("Traceback (most recent call last)")
    if trace:
        said += str(error).strip().splitlines()[-1]
    return " ".join(said.split())[:300]


def never_fail_to_write() -> None:
    """Characters that the terminal's encoding lacks are written as escapes too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
