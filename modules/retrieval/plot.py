"""The frontier of recall and latency that the tuning saw, as an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from modules.retrieval.tuning import IndexTuningReport, Trial, frontier

PLOT_FILE = "frontier.svg"

_WIDTH, _HEIGHT = 820, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 210, 50, 60
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d4f9e", "#8a6d1d")


def svg(report: IndexTuningReport) -> str:
    """Every trial as a dot (x recall, y single-query latency on a log scale), each layer's frontier as a line."""
    latencies = [trial.latency_ms.single.p50 for trial in report.tried]
    low, high = math.floor(math.log10(min(latencies))), math.ceil(math.log10(max(latencies)))
    high = max(high, low + 1)
    least = min(report.recall_target, *(trial.recall for trial in report.tried))
    left = max(0.0, math.floor(least * 10 - 0.5) / 10)

    def x(recall: float) -> float:
        return _LEFT + (recall - left) / (1 - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(milliseconds: float) -> float:
        return _HEIGHT - _BOTTOM - (math.log10(milliseconds) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#222">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 24, f"{report.catalogue_size:,} items × {report.dimension}: recall and latency of one query", 15),
    ]
    for step in range(11):
        recall = left + (1 - left) * step / 10
        parts += [_line(x(recall), bottom, x(recall), _TOP, "#e4e4e4")]
        parts += [_text(x(recall), bottom + 18, f"{recall:.2f}", anchor="middle")]
    for milliseconds in (first * 10.0**exponent for exponent in range(low, high + 1) for first in (1, 2, 5)):
        if milliseconds <= 10.0**high:
            parts += [_line(_LEFT, y(milliseconds), right, y(milliseconds), "#e4e4e4")]
            parts += [_text(_LEFT - 8, y(milliseconds) + 4, f"{milliseconds:g}", anchor="end")]
    parts += [
        _line(_LEFT, bottom, right, bottom, "#222"),
        _line(_LEFT, bottom, _LEFT, _TOP, "#222"),
        _text((_LEFT + right) / 2, _HEIGHT - 16, f"recall@{report.recall_k} on validation queries", anchor="middle"),
        _text(_LEFT, _TOP - 10, "milliseconds, p50", anchor="middle"),
        _line(x(report.recall_target), bottom, x(report.recall_target), _TOP, "#999", dashed=True),
        _text(x(report.recall_target) - 4, _TOP + 12, "target", anchor="end"),
    ]
    kinds: dict[str, list[Trial]] = {}
    for trial in report.tried:
        kinds.setdefault(f"{trial.layer}/{trial.strategy}", []).append(trial)
    for number, (name, trials) in enumerate(kinds.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += [_dot(x(t.recall), y(t.latency_ms.single.p50), 3, colour, _setting(t)) for t in trials]
        best: Sequence[Trial] = frontier(trials)
        points = " ".join(f"{x(t.recall):.1f},{y(t.latency_ms.single.p50):.1f}" for t in best)
        parts += [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>']
        parts += [
            _dot(right + 20, _TOP + 20 * number, 4, colour, name),
            _text(right + 32, _TOP + 20 * number + 4, name),
        ]
    chosen = next(t for t in report.tried if _setting(t) == _setting(report.chosen))
    parts += [
        f'<circle cx="{x(chosen.recall):.1f}" cy="{y(chosen.latency_ms.single.p50):.1f}" r="8" fill="none" '
        'stroke="#222" stroke-width="1.5"/>',
        _text(right + 14, _TOP + 20 * len(kinds) + 14, "○ chosen:"),
    ]
    for number, line in enumerate(_setting(chosen).split(", ")):
        parts += [_text(right + 14, _TOP + 20 * len(kinds) + 32 + 16 * number, line)]
    return "\n".join([*parts, "</svg>"])


def _setting(trial: Trial) -> str:
    words = [f"{trial.layer}/{trial.strategy}"]
    if trial.partitions is not None:
        words.append(f"{trial.partitions_to_search} of {trial.partitions} partitions")
    if trial.spherical:
        words.append("of directions")
    if trial.reorder is not None:
        words.append(f"reorder {trial.reorder}")
    return ", ".join(words)


def _text(x: float, y: float, text: str, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'


def _dot(x: float, y: float, radius: int, colour: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"><title>{escape(title)}</title></circle>'
