"""The table: printed, as Markdown, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.quality.judge import Row
from benchmarks.quality.metrics import NAMES
from benchmarks.quality.systems import SYSTEMS

_COLUMNS = ("system", *NAMES, "tuned / fit, s", "settings")
_SLICED = ("ndcg@10", "coverage@10", "novelty@10", "popular@10")


def render(rows: Sequence[Row], failures: Mapping[tuple[str, str], str], console: Console) -> None:
    """Prints one block a protocol, the best NDCG first."""
    for protocol, ranked in _by_protocol(rows).items():
        table = Table(title=_title(protocol, ranked), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column in ("system", "settings") else "right")
        for row in ranked:
            table.add_row(*_cells(row))
        console.print(table)
        if lines := _slice_lines(ranked):
            table = Table(title="by length of the history", title_justify="left", box=box.SIMPLE_HEAD)
            for number, column in enumerate(_slice_columns(ranked)):
                table.add_column(column, justify="right" if number else "left")
            for line in lines:
                table.add_row(*line)
            console.print(table)
    for (protocol, system), message in failures.items():
        console.print(f"{SYSTEMS[system].title} on {protocol} failed: {message}", markup=False)


def write(folder: Path, rows: Sequence[Row], failures: Mapping[tuple[str, str], str], about: Mapping[str, Any]) -> None:
    """Writes results.json and results.md."""
    lines = ["# Recommendation quality", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    for protocol, ranked in _by_protocol(rows).items():
        lines += [f"## {_title(protocol, ranked)}", "", _line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
        lines += [*(_line(_cells(row)) for row in ranked), ""]
        if sliced := _slice_lines(ranked):
            columns = _slice_columns(ranked)
            lines += ["By length of the history:", "", _line(columns), _line(["---"] * len(columns))]
            lines += [*(_line(line) for line in sliced), ""]
    lines += [
        f"- {SYSTEMS[system].title} on {protocol} failed: {text}" for (protocol, system), text in failures.items()
    ]
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tree = {
        "about": dict(about), "rows": [asdict(row) for row in rows],
        "failures": [{"protocol": p, "system": s, "error": text} for (p, s), text in failures.items()],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(tree, indent=1), encoding="utf-8")


def _by_protocol(rows: Sequence[Row]) -> dict[str, list[Row]]:
    by_protocol: dict[str, list[Row]] = {}
    for row in rows:
        by_protocol.setdefault(row.protocol, []).append(row)
    return {key: sorted(of_one, key=lambda row: -row.mean["ndcg@10"]) for key, of_one in by_protocol.items()}


def _title(protocol: str, rows: Sequence[Row]) -> str:
    return f"{protocol}: {rows[0].queries:,} users"


def _cells(row: Row) -> list[str]:
    values = []
    for name in NAMES:
        deviation = "" if row.deviation is None else f" ±{_text(name, row.deviation[name])}"
        values.append(f"{_text(name, row.mean[name])}{deviation}")
    settings = ", ".join(f"{key} {value}" for key, value in row.settings.items())
    return [SYSTEMS[row.system].title, *values, f"{row.tune_seconds:.0f} / {row.fit_seconds:.0f}", settings]


def _slice_columns(rows: Sequence[Row]) -> list[str]:
    return ["system", *(f"{words}: {' / '.join(_SLICED)}" for words in rows[0].slices)]


def _slice_lines(rows: Sequence[Row]) -> list[list[str]]:
    """One line a system: the sliced metrics in one cell a slice."""
    if not rows[0].slices:
        return []
    return [
        [SYSTEMS[row.system].title, *(" / ".join(_text(m, part[m]) for m in _SLICED) for part in row.slices.values())]
        for row in rows
    ]


def _text(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric.startswith("novelty") else f"{value:.4f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
