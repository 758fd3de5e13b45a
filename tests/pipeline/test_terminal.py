"""Text of tables and models on a terminal: shown as it is, obeyed never."""

from __future__ import annotations

import contextlib
import io
import logging
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from pipeline import terminal
from pipeline.local_runner import PROGRESS, Progress

# What markup, terminals and editors give a meaning to, between ordinary text.
PARTS = ["[/b]", "[rec]", "[red]", "[", "]", "\\[", ":bomb:", "\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\r", "\n",
         "\t", "\x00", "\x7f", "\u202e", "\u2066", "\u200b", "\u2028", "\ud800", "\ufeff", "é", "👩\u200d🚀", "नि",
         "(2007)", "a"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


def shown(text: str) -> str:
    """A text in a cell of a table, in a line and in a title, as a terminal of colours gets them."""
    file = io.StringIO()
    console = terminal._Terminal(file=file, width=400, force_terminal=True, color_system=None)
    table = Table(title=text, box=None)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    console.print(text)
    console.print(terminal.styled(("x", "red"), text))
    return file.getvalue()


@given(TEXTS)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_whatever_is_in_a_text_is_seen_and_nothing_of_it_acts(text: str):
    visible = terminal.visible(text)
    assert visible == "".join(
        part if unicodedata.category(part) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or part == "\u200d"
        else part.encode("unicode_escape").decode() for part in text
    )  # fmt: skip
    output = shown(text)
    assert {c for c in output if unicodedata.category(c) in ("Cc", "Cf", "Cs")} <= {"\n", "\u200d"}
    # In the title, the head and the row of the table, in the line, and after the x.
    assert output.count(visible) >= 5 or not visible.strip()


@pytest.mark.parametrize("title", ["[/b] of [rec] (2007)", "[rec] (2007)", "tag [red]x[/red]", ":smile:"])
def test_what_looks_like_markup_is_data(title: str):
    assert terminal.visible(title) == title
    assert title in shown(title)


def test_progress_of_a_stage_is_data_too():
    file = io.StringIO()
    progress = Progress(3, file)
    PROGRESS.addHandler(progress)
    PROGRESS.setLevel(logging.INFO)
    try:
        with contextlib.suppress(ValueError), progress.stage("Trainer [/b]"):
            PROGRESS.info("vocabulary %s", "[/b]\x1b[2J")
            raise ValueError
    finally:
        PROGRESS.removeHandler(progress)
    assert "vocabulary [/b]\\x1b[2J" in file.getvalue() and "Trainer [/b]" in file.getvalue()
    assert "\x1b" not in file.getvalue()
    # The live line of a terminal, which rich would read as markup if it were a string.
    assert progress._line("[/b]\x1b").plain.endswith("[/b]\\x1b")


def test_a_complaint_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]):
    terminal.complain("no item 'x\n\x1b[31m" + "9" * 5000 + "; the fix")
    errors = capsys.readouterr().err
    assert errors.startswith("twotower: no item 'x \\x1b[31m999") and errors.count("\n") == 1 and len(errors) < 2100
    assert errors.endswith("9; the fix\n"), "the end is what to do"


def test_an_encoding_that_lacks_a_character_ends_in_an_escape(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    terminal.never_fail_to_write()
    terminal.say("3 users → é")
    import sys

    sys.stdout.flush()
    assert raw.getvalue() == b"3 users \\u2192 \xe9\n"
