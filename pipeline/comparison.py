"""What differs between two runs: configuration, data, code, stages, quality, slices and costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from components.evaluator import summary as evaluations
from components.evaluator.summary import Summary
from modules import intervals
from pipeline.runs import Run, Stage, read_json
from pipeline.summary import SHOWN
from pipeline.terminal import styled

_SLICES_SHOWN = 10
_ABSENT = "—"

PAIRED = "paired"
UNPAIRED = "unpaired"


@dataclass(frozen=True)
class Change:
    """One thing that both runs could have and that is not the same."""

    key: str
    old: Any
    new: Any
    """Of either, None where the run has none."""


@dataclass(frozen=True)
class Difference:
    """A metric of both runs."""

    metric: str
    old: float | None
    old_half_width: float | None
    new: float | None
    new_half_width: float | None
    difference: float | None
    """New less old."""
    half_width: float | None


@dataclass(frozen=True)
class SliceDifference(Difference):
    """A metric of both runs in one slice."""

    slice: str
    queries: float
    """Of the run that has fewer in it."""
    too_few: bool
    """Whether that is fewer than `evaluation.min_queries`."""


@dataclass(frozen=True)
class StageDifference:
    """A stage of both runs, or of one of them."""

    stage: str
    old_state: str | None
    new_state: str | None
    same_outputs: bool
    """Whether the artifacts are the very same: the later run took them from the cache."""
    old_seconds: float | None
    new_seconds: float | None
    old_peak_memory_bytes: int | None
    new_peak_memory_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """Everything that differs."""

    old: str
    new: str
    configuration: list[Change] | None
    """None when one of the runs did not keep its configuration."""
    data: list[Change]
    code: list[Change]
    """By stage: the fingerprint of its code."""
    stages: list[StageDifference]
    metrics: list[Difference]
    intervals: str
    """paired or unpaired: how the half widths of the differences came about."""
    note: str
    """In words, what to bear in mind of them; "" where there are no metrics."""
    confidence: float | None
    """Of the intervals; None when there are none, or each run has its own."""
    slices: list[SliceDifference]
    """By how much they changed, largest first; those with too few queries last."""


def compare(old: Run, new: Run, least_queries: int) -> Comparison:
    """Compares two runs.

    Args:
        old: One.
        new: The other one.
        least_queries: A slice with fewer says little.
    """
    figures, others = _evaluation(old), _evaluation(new)
    data = list(changes(_data(old), _data(new)))
    paired = _paired(old, figures, new, others)
    return Comparison(
        old=old.id,
        new=new.id,
        configuration=None
        if old.configuration is None or new.configuration is None
        else list(changes(_by_column(old.configuration), _by_column(new.configuration))),
        data=data,
        code=list(changes(_code(old), _code(new))),
        stages=[_stage(name, old.stage(name), new.stage(name)) for name in _names(old, new)],
        metrics=[
            Difference(**each) for each in _differences(figures, others, paired, "overall") if "@" in each["metric"]
        ],
        intervals=UNPAIRED if paired is None else PAIRED,
        note=_note(figures, others, paired, bool(data)),
        confidence=others.confidence if others.confidence == figures.confidence and others.confidence else None,
        slices=_slices(figures, others, paired, least_queries),
    )


def changes(old: Any, new: Any, prefix: str = "") -> Iterator[Change]:
    """Where two trees of mappings differ; a part that only one of them has is one change."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from changes(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif old != new:
        yield Change(prefix, old, new)


def _evaluation(run: Run) -> Summary:
    """What the Evaluator found; nothing where the run did not come so far, less where it is older than a figure."""
    stage = run.stage("Evaluator")
    found = read_json(stage.output("evaluation") if stage else None, evaluations.FILE_NAME)
    nothing = Summary({}, {}, [], "", "", 0.0, {}, {}, {})
    known = {field.name for field in dataclasses.fields(Summary)}
    return dataclasses.replace(nothing, **{name: value for name, value in found.items() if name in known})


def _by_column(tree: Any) -> Any:
    """Lists of features and slices as mappings, by their column, as `--set` names them."""
    if isinstance(tree, Mapping):
        return {key: _by_column(value) for key, value in tree.items()}
    if isinstance(tree, list) and tree and all(isinstance(each, Mapping) and "column" in each for each in tree):
        return {each["column"]: _by_column(each) for each in tree}
    return tree


def _data(run: Run) -> dict[str, Any]:
    stage = run.stage("InteractionExampleGen")
    examples = stage.output("examples") if stage else None
    if stage is None or examples is None:
        return {}
    counts = {key: value for key, value in examples.properties.items() if type(value) is int and key != "is_external"}
    return {"fingerprint of the tables": stage.parameters.get("fingerprint"), **counts}


def _code(run: Run) -> dict[str, Any]:
    found = {}
    for stage in run.stages:
        given = stage.parameters.get("custom_config")
        custom = json.loads(given) if isinstance(given, str) else None
        fingerprint = stage.parameters.get("code") or (custom.get("code") if isinstance(custom, dict) else None)
        if fingerprint is not None:
            found[stage.name] = fingerprint
    return found


def _names(old: Run, new: Run) -> list[str]:
    return list(dict.fromkeys(stage.name for stage in (*new.stages, *old.stages)))


def _stage(name: str, old: Stage | None, new: Stage | None) -> StageDifference:
    ids = [{artifact.id for artifact in stage.outputs} if stage else set() for stage in (old, new)]

    def cost(stage: Stage | None) -> tuple[float | None, int | None]:
        executed = stage is not None and stage.state != "cached"
        return (round(stage.seconds, 2), stage.peak_memory_bytes) if stage is not None and executed else (None, None)

    (old_seconds, old_memory), (new_seconds, new_memory) = cost(old), cost(new)
    return StageDifference(
        name, old.state if old else None, new.state if new else None, bool(ids[0]) and ids[0] == ids[1],
        old_seconds, new_seconds, old_memory, new_memory,
    )  # fmt: skip


@dataclass(frozen=True)
class _Paired:
    differences: Mapping[str, Mapping[str, float | None]]
    half_widths: Mapping[str, Mapping[str, float | None]]
    sign: int
    judge: str
    """The run whose Evaluator asked both."""


def _paired(old: Run, figures: Summary, new: Run, others: Summary) -> _Paired | None:
    """What an Evaluator found that was given the other run's very model as its baseline."""
    for judge, of_judge, other, sign in ((new, others, old, 1), (old, figures, new, -1)):
        stage = other.stage("Pusher")
        pushed = stage.output("pushed_model") if stage else None
        version = str(pushed.properties.get("pushed_version", "")) if pushed else ""
        if version and of_judge.baseline_version == version and of_judge.baseline_differences:
            return _Paired(
                of_judge.baseline_differences, of_judge.baseline_difference_half_widths, sign, judge.id
            )  # fmt: skip
    return None


def _differences(figures: Summary, others: Summary, paired: _Paired | None, name: str) -> Iterator[dict[str, Any]]:
    olds, news = figures.metrics.get(name, {}), others.metrics.get(name, {})
    old_halves, new_halves = figures.half_widths.get(name, {}), others.half_widths.get(name, {})
    for metric in dict.fromkeys((*olds, *news)):
        old, new = olds.get(metric), news.get(metric)
        half, other_half = old_halves.get(metric), new_halves.get(metric)
        difference = None if old is None or new is None else new - old
        between = None
        if paired is not None:
            found = paired.differences.get(name, {}).get(metric)
            if found is not None:
                difference, between = paired.sign * found, paired.half_widths.get(name, {}).get(metric)
        elif half is not None and other_half is not None and figures.confidence == others.confidence:
            between = intervals.of_difference(half, other_half)
        yield {
            "metric": metric, "old": old, "old_half_width": half, "new": new, "new_half_width": other_half,
            "difference": difference, "half_width": between,
        }  # fmt: skip


def _slices(figures: Summary, others: Summary, paired: _Paired | None, least: int) -> list[SliceDifference]:
    ks = [
        {int(metric.partition("@")[2]) for metric in each.metrics.get("overall", {}) if metric.startswith("ndcg@")}
        for each in (figures, others)
    ]
    if not ks[0] & ks[1]:
        return []
    wanted = f"ndcg@{min(ks[0] & ks[1])}"
    found = []
    for name in figures.metrics:
        if name == "overall" or name not in others.metrics:
            continue
        queries = min(each.metrics[name].get("queries") or 0 for each in (figures, others))
        for each in _differences(figures, others, paired, name):
            if each["metric"] == wanted and each["difference"] is not None:
                found.append(SliceDifference(**each, slice=name, queries=queries, too_few=queries < least))
    return sorted(found, key=lambda each: (each.too_few, -abs(each.difference or 0)))


def _note(figures: Summary, others: Summary, paired: _Paired | None, data_differ: bool) -> str:
    if not (figures.metrics and others.metrics):
        return ""
    if paired is not None:
        on = "; the two runs' own figures are of other queries" if data_differ else ""
        return f"the differences are paired, query by query: run {paired.judge} had the other one as its baseline{on}"
    if figures.confidence != others.confidence:
        return "the two runs' intervals have another confidence, so that the differences have none"
    if data_differ:
        return "the differences are unpaired, and of other data"
    return (
        "the differences are unpaired: what each query got is not kept, and neither run had the other one as its "
        "baseline; so their intervals are wider than those of the same queries need be"
    )


def render(comparison: Comparison, console: Console) -> None:
    """Prints a comparison."""
    console.print(f"old  {comparison.old}")
    console.print(f"new  {comparison.new}")
    if comparison.configuration is None:
        console.print()
        console.print("configuration: one of the runs did not keep it")
    else:
        _render_changes("configuration", comparison.configuration, console)
    _render_changes("data", comparison.data, console)
    _render_changes("code", comparison.code, console)
    _render_metrics(comparison, console)
    _render_slices(comparison, console)
    _render_stages(comparison, console)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    return table


def _render_changes(title: str, found: list[Change], console: Console) -> None:
    if not found:
        console.print()
        console.print(f"{title}: the same")
        return
    table = _table(title, "key", "old", "new")
    for change in found:
        table.add_row(change.key, _shown(change.old), _shown(change.new))
    console.print()
    console.print(table)


def _shown(value: Any) -> str:
    if value is None:
        return _ABSENT
    if type(value) is int:
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figure(value: float | None, half: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.4f}" + ("" if half is None else f" ±{half:.4f}")


def _render_metrics(comparison: Comparison, console: Console) -> None:
    console.print()
    if not comparison.note:
        console.print("quality: one of the runs was not evaluated")
        return
    at = f"; ± at {100 * comparison.confidence:g}% confidence" if comparison.confidence else ""
    table = _table(f"quality on eval{at}", "metric", "old", "new", "difference")
    of_metrics = {each.metric: each for each in comparison.metrics}
    for k in sorted({int(metric.partition("@")[2]) for metric in of_metrics}):
        for name, words in SHOWN:
            if each := of_metrics.get(f"{name}@{k}"):
                figures = _figure(each.old, each.old_half_width), _figure(each.new, each.new_half_width)
                label = f"{words} @{k}" if words == words.strip() else words
                table.add_row(label, *figures, _figure(each.difference, each.half_width, "+"))
    console.print(table)
    console.print(comparison.note)


def _render_slices(comparison: Comparison, console: Console) -> None:
    enough = [each for each in comparison.slices if not each.too_few]
    if not enough:
        return
    table = _table("slices that changed most", "slice", "queries", f"{enough[0].metric}, old", "new", "difference")
    for each in enough[:_SLICES_SHOWN]:
        table.add_row(
            each.slice, f"{each.queries:,.0f}", _figure(each.old, each.old_half_width),
            _figure(each.new, each.new_half_width), _figure(each.difference, each.half_width, "+"),
        )  # fmt: skip
    console.print()
    console.print(table)


def _render_stages(comparison: Comparison, console: Console) -> None:
    table = _table("stages", "stage", "old", "new", "seconds, old", "new", "peak GB, old", "new")
    for each in comparison.stages:
        same = ("same artifacts", "cyan") if each.same_outputs else (each.new_state or _ABSENT)
        seconds = [_ABSENT if value is None else f"{value:.1f}" for value in (each.old_seconds, each.new_seconds)]
        memory = [
            _ABSENT if value is None else f"{value / 1e9:.2f}"
            for value in (each.old_peak_memory_bytes, each.new_peak_memory_bytes)
        ]
        table.add_row(each.stage, each.old_state or _ABSENT, styled(same), *seconds, *memory)
    console.print()
    console.print(table)
