"""The page's figures, drawn by Plotly.

Their backgrounds are transparent and the page's style sheet colours texts and lines (page.py), so that a figure follows
the reader's light or dark mode, and is light on paper. What is drawn has colours that both backgrounds take, those of
ColorBrewer's Dark2. Plotly reads tags and entities in texts, so every text from outside is escaped here.
"""

from __future__ import annotations

import datetime
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from components.run_report.answers import DECILES, ItemMap, Popularity
from modules.retrieval.tuning import IndexTuningReport, Trial, frontier

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#3d85c6")
_GREY = "#808080"
_MARKED = "#808080"
_CLEAR = "rgba(0,0,0,0)"
_TEXT = 60
_AXIS = {"automargin": True, "zeroline": False, "showgrid": True, "fixedrange": True}
_DAY = 86_400
_BARS = 60
_STEPS = {1: "day", 7: "week", 28: "four weeks", 91: "quarter", 365: "year"}


@dataclass(frozen=True)
class Series:
    """Figures with intervals, one for each label of a plot; None where there is none."""

    name: str
    values: Sequence[float | None]
    half_widths: Sequence[float | None]


def cut(text: str, length: int = _TEXT) -> str:
    """A text that does not burst a page."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _escaped(text: str, length: int = _TEXT) -> str:
    return html.escape(cut(text, length))


def _figure(traces: Sequence[Any], height: int, **layout: Any) -> go.Figure:
    # Half a second to import, and only a run that writes its page needs it.
    import plotly.graph_objects as go

    for name in ("xaxis", "yaxis"):
        layout[name] = {**_AXIS, **layout.get(name, {})}
    return go.Figure(
        traces,
        go.Layout(
            **{
                "template": "none",
                "height": height,
                "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
                "paper_bgcolor": _CLEAR,
                "plot_bgcolor": _CLEAR,
                "colorway": COLOURS,
                "font": {"family": "system-ui, sans-serif", "size": 12},
                # A finger that goes over a figure moves the page.
                "dragmode": False,
                "hoverlabel": {"align": "left"},
                "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemsizing": "constant"},
                **layout,
            }
        ),
    )


def days(interactions: Mapping[str, Mapping[int, int]]) -> tuple[go.Figure, str]:
    """Interactions over time by split, in at most `_BARS` bars; and what a bar stands for.

    Args:
        interactions: Split → day since 1970 → interactions; there must be some.
    """
    import plotly.graph_objects as go

    every = sorted({day for of_split in interactions.values() for day in of_split})
    first, span = every[0], every[-1] - every[0] + 1
    step = next((each for each in _STEPS if span <= each * _BARS), -(-span // _BARS))
    # The epoch was a Thursday; weeks begin on Mondays.
    first -= (first - 4) % 7 if step == 7 else 0
    bars = (every[-1] - first) // step + 1
    starts = [_date(first + step * bar) for bar in range(bars)]
    traces = []
    for split, of_split in interactions.items():
        places = (np.fromiter(of_split.keys(), np.int64, len(of_split)) - first) // step
        counts = np.bincount(places, np.fromiter(of_split.values(), float, len(of_split)), minlength=bars)
        traces.append(
            go.Bar(
                name=split, x=starts, y=counts.astype(int).tolist(), offset=0, width=step * _DAY * 1000,
                hovertemplate="from %{x|%Y-%m-%d}: %{y:,} " + split + "<extra></extra>",
            )
        )  # fmt: skip
    axes = {"xaxis": {"type": "date", "showgrid": False}, "yaxis": {"title": {"text": "interactions"}}}
    figure = _figure(traces, 300, barmode="stack", **axes)
    return figure, _STEPS.get(step, f"{step} days")


def _date(day: int) -> str:
    # Plotly's own dates; those of other calendars' years are left to it.
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(days=day)).date().isoformat()


def training(history: Sequence[Mapping[str, Any]], best: int) -> go.Figure:
    """Loss above, validation metrics below, by epoch; a line at the chosen epoch."""
    import plotly.graph_objects as go

    epochs = list(range(1, len(history) + 1))
    traces = [_line("training loss", epochs, [epoch["loss"] for epoch in history], "y")]
    for name, words in (("ndcg", "NDCG on validation"), ("recall", "recall on validation")):
        values = [epoch[name] for epoch in history]
        if any(value == value for value in values):
            traces.append(_line(words, epochs, values, "y2"))
    traces.append(
        go.Scatter(
            name="chosen epoch", x=[best, best], y=[0, 1], yaxis="y3", mode="lines", hoverinfo="skip",
            line={"color": _MARKED, "dash": "dot", "width": 1.5},
        )
    )  # fmt: skip
    return _figure(
        traces,
        380,
        xaxis={"title": {"text": "epoch"}, "tickformat": "d", "anchor": "y2", "range": [0.5, len(history) + 0.5]},
        yaxis={"domain": [0.58, 1], "title": {"text": "loss"}},
        yaxis2={**_AXIS, "domain": [0, 0.48], "title": {"text": "metric"}},
        yaxis3={"domain": [0, 1], "overlaying": "y", "visible": False, "range": [0, 1], "fixedrange": True},
    )  # fmt: skip


def _line(name: str, x: Sequence[Any], y: Sequence[Any], axis: str) -> Any:
    import plotly.graph_objects as go

    known = [None if value != value else value for value in y]
    return go.Scatter(
        name=name, x=x, y=known, yaxis=axis, mode="lines+markers", marker={"size": 5}, line={"width": 1.5},
        hovertemplate="epoch %{x}: %{y:.4f}<extra>" + name + "</extra>",
    )  # fmt: skip


def intervals(labels: Sequence[str], series: Sequence[Series], title: str) -> go.Figure:
    """One line for each label, on it a dot with its interval for each series."""
    import plotly.graph_objects as go

    shown = [_escaped(label, 28) for label in labels]
    traces = []
    for number, each in enumerate(series):
        traces.append(
            go.Scatter(
                name=_escaped(each.name), x=each.values, y=shown, mode="markers",
                marker={"size": 8, "symbol": ("circle", "diamond", "square")[number % 3]},
                error_x={"array": [half or 0 for half in each.half_widths], "thickness": 1.5, "width": 3},
                customdata=[f" ± {half:.4f}" if half else "" for half in each.half_widths],
                hovertemplate="%{y}: %{x:.4f}%{customdata}<extra>" + _escaped(each.name) + "</extra>",
            )
        )  # fmt: skip
    return _figure(
        traces,
        110 + 24 * len(labels),
        xaxis={"title": {"text": title}, "rangemode": "tozero"},
        yaxis={"type": "category", "autorange": "reversed", "categoryarray": shown, "dtick": 1},
    )  # fmt: skip


def index(report: IndexTuningReport) -> go.Figure:
    """Every trial as a dot (x recall, y single-query latency on a log scale), each layer's frontier as a line."""
    import plotly.graph_objects as go

    kinds: dict[str, list[Trial]] = {}
    for trial in report.tried:
        kinds.setdefault(f"{trial.layer}/{trial.strategy}", []).append(trial)
    traces = []
    for number, (name, trials) in enumerate(kinds.items()):
        colour = COLOURS[number % len(COLOURS)]
        best = frontier(trials)
        traces.append(
            go.Scatter(
                name=name, legendgroup=name, x=[t.recall for t in trials], y=[t.latency_ms.single.p50 for t in trials],
                mode="markers", marker={"size": 8, "color": colour}, text=[setting(t) for t in trials],
                hovertemplate="%{text}<br>recall %{x:.4f}, %{y:.3f} ms<extra></extra>",
            )
        )  # fmt: skip
        traces.append(
            go.Scatter(
                legendgroup=name, showlegend=False, hoverinfo="skip", mode="lines",
                line={"color": colour, "width": 1.5},
                x=[t.recall for t in best], y=[t.latency_ms.single.p50 for t in best],
            )
        )  # fmt: skip
    chosen = next((t for t in report.tried if setting(t) == setting(report.chosen)), report.chosen)
    latencies = [trial.latency_ms.single.p50 for trial in report.tried]
    low, high = min(latencies) / 1.5, max(latencies) * 1.5
    least = min(report.recall_target, *(trial.recall for trial in report.tried))
    margin = 0.05 * (1.001 - least)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    traces += [
        go.Scatter(
            name="chosen", x=[chosen.recall], y=[chosen.latency_ms.single.p50], mode="markers", hoverinfo="skip",
            marker={"size": 16, "symbol": "circle-open", "color": _MARKED, "line": {"width": 2}},
        ),
        go.Scatter(
            name=f"target {report.recall_target:g}", x=[report.recall_target] * 2, mode="lines", hoverinfo="skip",
            y=[low, high], line={"color": _MARKED, "dash": "dash", "width": 1.5},
        ),
    ]  # fmt: skip
    return _figure(
        traces,
        380,
        xaxis={
            "title": {"text": f"recall@{report.recall_k} on validation queries"}, "range": [least - margin, 1 + margin]
        },
        yaxis={
            "title": {"text": "milliseconds, p50"}, "type": "log", "range": [math.log10(low), math.log10(high)],
            "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks],
        },
    )  # fmt: skip


def setting(trial: Trial) -> str:
    """What was tried, in words."""
    words = [f"{trial.layer}/{trial.strategy}"]
    if trial.partitions is not None:
        words.append(f"{trial.partitions_to_search} of {trial.partitions} partitions")
    if trial.spherical:
        words.append("of directions")
    if trial.reorder is not None:
        words.append(f"reorder {trial.reorder}")
    return ", ".join(words)


def items(shown: ItemMap) -> go.Figure:
    """Items as dots, coloured by the rarest of their values among the most frequent ones; hover shows the title."""
    import plotly.graph_objects as go

    counts: dict[str, int] = {}
    for values in shown.categories:
        for value in set(values):
            counts[value] = counts.get(value, 0) + 1
    named = sorted(counts, key=lambda value: (-counts[value], value))[: len(COLOURS)]
    of_item = [
        min((value for value in values if value in named), key=lambda value: counts[value], default="")
        for values in shown.categories
    ]
    other = "other" if named else "items"
    sizes = 5 + 9 * np.sqrt(shown.popularity / max(float(shown.popularity.max(initial=0)), 1.0))
    traces = []
    for value, colour in [("", _GREY if named else COLOURS[0]), *zip(named, COLOURS, strict=False)]:
        rows = [row for row, own in enumerate(of_item) if own == value]
        if not rows:
            continue
        said = [", ".join(shown.categories[row]) for row in rows]
        traces.append(
            go.Scatter(
                name=_escaped(value, 24) or other,
                x=_rounded(shown.x[rows]), y=_rounded(shown.y[rows]), mode="markers",
                marker={"size": _rounded(sizes[rows], 1), "color": colour, "opacity": 0.75, "line": {"width": 0}},
                text=[_escaped(shown.titles[row]) + (f"<br>{_escaped(words)}" if words else "")
                      for row, words in zip(rows, said, strict=True)],
                customdata=shown.popularity[rows].astype(int).tolist(),
                hovertemplate="%{text}<br>%{customdata:,} interactions<extra></extra>",
            )
        )  # fmt: skip
    hidden = {"showticklabels": False, "showgrid": False, "fixedrange": False}
    below = {"orientation": "h", "x": 0, "y": 0, "yanchor": "top", "itemsizing": "constant"}
    return _figure(traces, 620, xaxis=hidden, yaxis={**hidden, "scaleanchor": "x"}, legend=below)


def _rounded(values: np.ndarray, digits: int = 4) -> list[float]:
    return np.round(values.astype(float), digits).tolist()


def popularity(shares: Popularity) -> go.Figure:
    """For each tenth of the catalogue its share of interactions, of recommendations, and of what was chosen."""
    import plotly.graph_objects as go

    x = [str(decile) for decile in range(1, DECILES + 1)]
    series = (("training interactions", shares.interactions, _GREY),
              ("recommendations", shares.recommendations, COLOURS[0]),
              ("chosen next", shares.chosen, COLOURS[1]))  # fmt: skip
    traces = [
        go.Bar(
            name=name, x=x, y=[None if value != value else round(float(value), 5) for value in values],
            marker={"color": colour},
            hovertemplate="tenth %{x}: %{y:.1%} of the " + name + "<extra></extra>",
        )
        for name, values, colour in series
    ]  # fmt: skip
    return _figure(
        traces,
        320,
        barmode="group",
        xaxis={"type": "category", "title": {"text": "tenth of the catalogue, 1 the most popular"}, "showgrid": False},
        yaxis={"tickformat": ".0%"},
    )
