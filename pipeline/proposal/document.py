"""The proposal as a YAML file with a comment beside each choice, and as JSON."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import yaml

from pipeline.config_file import shown
from pipeline.proposal.encodings import Choice
from pipeline.proposal.proposal import Proposal

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WIDTH = 118


def text(proposal: Proposal) -> str:
    """The file's content."""
    return "\n".join(_lines(proposal)) + "\n"


def _lines(proposal: Proposal) -> Iterator[str]:
    tree = proposal.tree
    yield "# Proposed by `twotower init` from a look at the tables. Each choice has its reason beside it."
    yield "# docs/own-data.md has every encoding and split; `twotower check` looks at the tables with this file."
    if proposal.unsure:
        yield "#"
        yield "# Not sure, please look:"
        for doubt in proposal.unsure:
            yield from _comment(f"- {doubt}", "# ")
    yield f"name: {_scalar(tree['name'])}"
    yield ""
    yield "tables:"
    for table, keys in tree["tables"].items():
        yield f"  {table}: {_flow(keys)}"
    yield ""
    yield from _comment(proposal.reasons["split"])
    yield f"split: {_flow(tree['split'])}"
    yield ""
    yield "features:"
    for tower in ("query", "candidate"):
        yield f"  {tower}:"
        for choice in proposal.choices[tower]:
            assert choice.fields is not None
            yield from _beside(f"    - {_flow(choice.fields)}", choice.reason)
    if proposal.left_out:
        yield ""
        yield "# Left out:"
        for table, choices in proposal.left_out.items():
            for choice in choices:
                yield from _comment(f"{table}.{shown(choice.column, 60)}: {choice.reason}", "#   ")
    for section in ("serving", "evaluation"):
        if tree.get(section):
            yield ""
            yield f"{section}:"
            for key, value in tree[section].items():
                yield from _beside(f"  {key}: {_flow(value)}", proposal.reasons.get(f"{section}.{key}", ""))


def _beside(line: str, reason: str) -> Iterator[str]:
    """A line with its comment behind it, or above it where both are too long."""
    reason = shown(reason, 1000)
    if reason and len(line) + len(reason) + 4 > _WIDTH:
        yield from _comment(reason, " " * (len(line) - len(line.lstrip())) + "# ")
        yield line
    else:
        yield f"{line}  # {reason}" if reason else line


def _comment(words: str, prefix: str = "# ") -> Iterator[str]:
    """Words as lines of comment."""
    line = prefix
    for word in shown(words, 1000).split():
        if len(line) + len(word) > _WIDTH and line != prefix:
            yield line.rstrip()
            line = f"{prefix}  "
        line += f"{word} "
    yield line.rstrip()


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """A text bare where no reader could take it for something else, else in double quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false"):
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**6).strip()


def as_json(proposal: Proposal) -> dict[str, Any]:
    """The decisions, for `--json`."""
    return {
        "configuration": proposal.tree,
        "roles": {key: value for key, value in dataclasses.asdict(proposal.roles).items() if key != "unsure"},
        "features": {tower: [_choice(c) for c in choices] for tower, choices in proposal.choices.items()},
        "left_out": {table: {c.column: c.reason for c in choices} for table, choices in proposal.left_out.items()},
        "reasons": proposal.reasons,
        "unsure": proposal.unsure,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {**(choice.fields or {}), "reason": choice.reason}
