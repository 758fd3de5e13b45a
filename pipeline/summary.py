"""The end of a run in one table: data, quality beside most-popular, index, gates, what was pushed, the costs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from components.evaluator import summary as evaluation_summary
from modules import push_destination
from modules.data.examples import EVAL, TRAIN, VALIDATION
from pipeline.config import Config
from pipeline.local_runner import PeakMemory
from pipeline.runs import Run, read_json
from pipeline.terminal import styled

PROTOCOLS = {
    "temporal": "temporal split: the latest interactions are judged",
    "random": "random split: flattering, for comparison with papers",
    "leave_last_out": "leave-last-out: each user's last item is judged",
    "column": "the data set's own split",
}

REPORTS = {
    ("Evaluator", "evaluation"): evaluation_summary.FILE_NAME,
    ("ScannIndexBuilder", "report"): "report.json",
    ("Trainer", "model_run"): "training.json",
    ("Tuner", "tuner_results"): "tuner_results.json",
    ("RunReport", "page"): "report.html",
}
"""By stage and output: the file with what a person is told of it. It stays when the rest is cleaned away."""


def summarize(
    config: Config, run: Run, *, seconds: float | None = None, memory: PeakMemory | None = None
) -> dict[str, Any]:
    """Everything a person or a script wants to know of a run, as plain data.

    Args:
        config: Of the run.
        run: The run.
        seconds: What the whole of it took, where this process ran it.
        memory: What it needed meanwhile.
    """
    of_stages = memory.of_stages if memory else {}
    examples = _output(run, "InteractionExampleGen", "examples")
    evaluation = _report(run, "Evaluator", "evaluation")
    report = _report(run, "ScannIndexBuilder", "report")
    training = _report(run, "Trainer", "model_run")
    trials = _report(run, "Tuner", "tuner_results", list)
    infra = _output(run, "ServableValidator", "blessing")
    folder, deleted = pushed(run)
    gates = {}
    if evaluation:
        gates["Evaluator"] = {"blessed": not evaluation["failures"], "reasons": evaluation["failures"]}
    if infra is not None:
        blessed = infra.properties.get("blessing_status") == "INFRA_BLESSED"
        reasons = [r for r in str(infra.properties.get("reasons", "")).split("\n") if r]
        gates["ServableValidator"] = {"blessed": blessed, "reasons": reasons}
    metrics = evaluation.get("metrics", {})
    least = config.evaluation.min_queries
    return {
        "run": run.id,
        "state": run.state,
        "protocol": PROTOCOLS[config.split.strategy],
        "seen_items": "left out" if config.serving.exclude_history else "ranked, too",
        "data": {k: v for k, v in (examples.properties if examples else {}).items() if isinstance(v, int)},
        "tuner": trials,
        "training": training,
        "metrics": metrics,
        # The figures of `metrics` plus and minus these; what a run before there were any has written has none.
        "half_widths": evaluation.get("half_widths", {}),
        "confidence": evaluation.get("confidence"),
        "min_queries": least,
        "too_few_queries": [name for name, of_slice in metrics.items() if (of_slice.get("queries") or 0) < least],
        "baseline": {
            "version": evaluation.get("baseline_version", ""),
            "note": evaluation.get("baseline_note", ""),
            "metrics": evaluation.get("baseline_metrics", {}).get("overall", {}),
            "differences": evaluation.get("baseline_differences", {}),
            "difference_half_widths": evaluation.get("baseline_difference_half_widths", {}),
        },
        "index": report,
        "gates": gates,
        "pushed": folder,
        "deleted": deleted,
        "taken_back": folder is not None and not deleted and push_destination.is_taken_back(folder),
        "report": page(run),
        "stages": [
            {
                "name": s.name,
                "state": s.state,
                "seconds": round(s.seconds, 2),
                "peak_memory_bytes": of_stages.get(s.name, s.peak_memory_bytes),
            }
            for s in run.stages
        ],
        "seconds": seconds,
        "peak_memory_bytes": memory.bytes if memory else None,
    }


def page(run: Run) -> str | None:
    """The file of a run's page (components/run_report), if the run came so far."""
    artifact = _output(run, "RunReport", "page")
    return os.path.join(artifact.uri, REPORTS["RunReport", "page"]) if artifact else None


def pushed(run: Run) -> tuple[str | None, bool]:
    """The version's folder, None when nothing was pushed; and whether it has been deleted or damaged since."""
    artifact = _output(run, "Pusher", "pushed_model")
    if artifact is None or not artifact.properties.get("pushed"):
        return None, False
    folder = str(artifact.properties["pushed_destination"])
    standing = push_destination.standing(folder, str(artifact.properties.get("pipeline_stamp", "")))
    return standing or folder, not standing


def _report(run: Run, name: str, key: str, kind: type = dict) -> Any:
    return read_json(_output(run, name, key), REPORTS[name, key], kind)


def _output(run: Run, name: str, key: str) -> Any:
    stage = run.stage(name)
    return stage.output(key) if stage else None


def render(summary: dict[str, Any], console: Console) -> None:
    """Prints what `summarize` gave."""
    table = Table(
        title=f"run {summary['run']}", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    data = summary["data"]
    if data:
        table.add_row("data", _counts(data))
    seen = summary["seen_items"]
    table.add_row("protocol", f"{summary['protocol']}; the whole catalogue is ranked, seen items are {seen}")
    if summary["tuner"]:
        best, *_ = sorted(summary["tuner"], key=lambda trial: -trial["score"])
        values = ", ".join(f"{key} {value:g}" for key, value in best.items() if key not in ("trial_id", "score"))
        table.add_row("tuner", f"best of {len(summary['tuner'])} trials ({best['score']:.4f} on validation): {values}")
    training = summary["training"]
    if training.get("epochs"):
        start = ", from the last pushed weights" if training.get("warm_started") else ""
        # What a run before there was a choice has written does not say it.
        criterion = training.get("criterion", "NDCG").replace("ndcg", "NDCG")
        words = f"{training['epochs']} epochs by {criterion} on validation, {training.get('seconds', 0):.0f} s{start}"
        table.add_row("training", words)
        if encoders := training.get("encoders"):
            tried = ", ".join(f"{name} {value:.4f}" for name, value in encoders.items())
            table.add_row("history encoder", f"{max(encoders, key=encoders.get)}, by {criterion}: {tried}")
    index = summary["index"]
    if index:
        table.add_row("index", _index(index))
    for gate, verdict in summary["gates"].items():
        reasons = "; ".join(verdict["reasons"])
        table.add_row(
            gate, styled(("blessed", "green")) if verdict["blessed"] else styled(("refused", "red"), f": {reasons}")
        )
    if summary["pushed"]:
        since = "; deleted or damaged since" if summary["deleted"] else ""
        since = "; taken back by a rollback since" if summary["taken_back"] else since
        table.add_row("pushed", styled(_short(summary["pushed"]), (since, "red")))
    elif summary["gates"]:
        table.add_row("pushed", styled(("nothing", "red"), "; what was served before stays"))
    if summary["report"]:
        table.add_row("report", f"{_short(summary['report'])}; `twotower report --open` shows it")
    slices = [name for name in summary["metrics"] if name != "overall"]
    if slices:
        table.add_row("slices", _count_of_slices(summary, slices))
    stages = [s for s in summary["stages"] if s["state"] != "cached"]
    cached = len(summary["stages"]) - len(stages)
    words = ", ".join(f"{s['name']} {s['seconds']:.1f}" for s in stages)
    table.add_row("seconds", words + (f"{'; ' if words else ''}{cached} stages cached" if cached else ""))
    if summary["seconds"] is not None:
        largest = max(stages, key=lambda stage: stage["peak_memory_bytes"] or 0, default=None)
        where = f" in {largest['name']}" if largest and largest["peak_memory_bytes"] else ""
        words = f"{summary['seconds']:.1f} s, peak memory {summary['peak_memory_bytes'] / 1e9:.2f} GB{where}"
        table.add_row("in all", words)
    console.print()
    console.print(table)
    if summary["metrics"].get("overall"):
        console.print()
        console.print(_quality(summary))


def _short(folder: str) -> str:
    """A folder as seen from here; an address stays as it is."""
    return folder if push_destination.is_remote(folder) else os.path.relpath(folder)


def _counts(data: dict[str, int]) -> str:
    parts = [f"{data[k]:,} {k}" for k in ("interactions", "users", "items") if k in data]
    splits = [f"{data[f'interactions_{s}']:,} {s}" for s in (TRAIN, VALIDATION, EVAL) if f"interactions_{s}" in data]
    lost = [f"{v:,} {k.replace('_', ' ')}" for k, v in data.items() if v and re.search("not_in_table|dropped|cut", k)]
    return ", ".join(parts) + (f" → {' + '.join(splits)}" if splits else "") + "".join(f"; {words}" for words in lost)


def _index(index: dict[str, Any]) -> str:
    chosen = index["chosen"]
    name = f"{chosen['layer']}/{chosen['strategy']}"
    latency = chosen["latency_ms"]["single"]
    return (
        f"{name}, recall@{index['recall_k']} {chosen['recall']:.3f} (target {index['recall_target']}), "
        f"one query {latency['p50']:.2f} ms p50, {latency['p99']:.2f} ms p99"
    )


def _count_of_slices(summary: dict[str, Any], slices: Sequence[str]) -> str:
    few = len(set(summary["too_few_queries"]) & set(slices))
    words = f"; {few} with fewer than {summary['min_queries']} queries" if few else ""
    return f"{len(slices)}{words}; `twotower runs {summary['run']}` shows them"


SHOWN = (
    ("ndcg", "NDCG"),
    ("popular_ndcg", "  most popular"),
    ("ndcg_lift", "  above most popular"),
    ("recall", "recall"),
    ("popular_recall", "  most popular"),
    ("recall_lift", "  above most popular"),
    ("precision", "precision"),
    ("recall_with_seen", "recall, seen items ranked too"),
    ("coverage", "share of the catalogue shown"),
    ("popular_share", "share of popular items"),
)
# Below these rows stands the difference to the last pushed model, of this metric.
_COMPARED = {"ndcg_lift": "ndcg", "recall_lift": "recall"}
_ABOVE_LAST = "  above the last pushed"


def _quality(summary: dict[str, Any]) -> Table:
    overall, half_widths = summary["metrics"]["overall"], summary["half_widths"].get("overall", {})
    baseline = summary["baseline"]
    differences = baseline["differences"].get("overall", {})
    of_differences = baseline["difference_half_widths"].get("overall", {})
    table = Table(title=_title("quality on eval", summary), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("metric")
    ks = sorted({int(name.partition("@")[2]) for name in overall if "@" in name})
    for k in ks:
        table.add_column(f" @{k}")
    for name, words in SHOWN:
        table.add_row(words, *(_figure(overall, half_widths, f"{name}@{k}") for k in ks))
        if differences and name in _COMPARED:
            compared = [f"{_COMPARED[name]}@{k}" for k in ks]
            table.add_row(_ABOVE_LAST, *(_figure(differences, of_differences, each, "+") for each in compared))
    return table


def _title(text: str, summary: dict[str, Any]) -> str:
    queries = summary["metrics"]["overall"].get("queries")
    counted = f", {queries:,.0f} queries" if queries else ""
    confidence = summary["confidence"]
    return f"{text}{counted}" + (f"; ± at {100 * confidence:g}% confidence" if confidence else "")


def _figure(
    figures: Mapping[str, float | None], half_widths: Mapping[str, float | None], name: str, sign: str = " "
) -> str:
    """A figure with ± where it has an interval; a place is kept for the sign, so that digits stand below each other."""
    value, half = figures.get(name), half_widths.get(name)
    if value is None:
        return ""
    sign = "+" if "_lift" in name else sign
    return f"{value:{sign}.4f}" + ("" if half is None else f" ±{half:.4f}")


def render_slices(summary: dict[str, Any], console: Console) -> None:
    """NDCG at the smallest k in each slice, and what it is above."""
    metrics, baseline = summary["metrics"], summary["baseline"]
    slices = [name for name in metrics if name != "overall"]
    if not slices:
        return
    k = min(int(name.partition("@")[2]) for name in metrics["overall"] if "@" in name)
    table = Table(title=_title("quality by slice", summary), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("slice")
    table.add_column("queries", justify="right")
    columns = [f" NDCG@{k}", " above most popular", *([" above the last pushed"] if baseline["differences"] else [])]
    for name in columns:
        # Headings take two lines, so that 100 columns hold all three.
        table.add_column(name, max_width=len("+0.0911 ±0.0184"))
    few = summary["too_few_queries"]
    for name in slices:
        figures, half_widths = metrics[name], summary["half_widths"].get(name, {})
        cells = [_figure(figures, half_widths, metric) for metric in (f"ndcg@{k}", f"ndcg_lift@{k}")]
        if baseline["differences"]:
            differences, of_differences = (
                baseline[key].get(name, {}) for key in ("differences", "difference_half_widths")
            )
            cells.append(_figure(differences, of_differences, f"ndcg@{k}", "+"))
        queries = f"{figures.get('queries') or 0:,.0f}"
        table.add_row(name, styled(("too few: ", "yellow"), queries) if name in few else queries, *cells)
    console.print()
    console.print(table)


def render_runs(runs: Sequence[Run], outcomes: Sequence[dict[str, Any]], console: Console) -> None:
    """One line per run: when, how it ended, what it measured, what it pushed."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "state", "stages", "quality", "index recall", "pushed"):
        table.add_column(name)
    for run, outcome in zip(runs, outcomes, strict=True):
        overall, half_widths = (outcome[key].get("overall", {}) for key in ("metrics", "half_widths"))
        ndcg = next((name for name in overall if name.startswith("ndcg@")), "")
        best = f"{ndcg}{_figure(overall, half_widths, ndcg)}"
        executed = sum(s.state != "cached" for s in run.stages)
        recall = outcome["index"].get("chosen", {}).get("recall")
        refused = [gate for gate, verdict in outcome["gates"].items() if not verdict["blessed"]]
        version = os.path.basename(outcome["pushed"]) if outcome["pushed"] else ""
        version += " (deleted)" if outcome["deleted"] else " (taken back)" if outcome["taken_back"] else ""
        table.add_row(
            run.id,
            run.state,
            f"{executed} run, {len(run.stages) - executed} cached",
            best,
            "" if recall is None else f"{recall:.3f}",
            version or (f"refused by {' and '.join(refused)}" if refused else ""),
        )
    console.print(table)


def render_lineage(run: Run, console: Console) -> None:
    """What each stage of a run read, and who had made it."""
    table = Table(title="lineage", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("stage", "state", "read", "made by"):
        table.add_column(name)
    made_by = {artifact.id: stage.name for stage in run.stages for artifact in stage.outputs}
    for stage in run.stages:
        reads = [f"{a.key} #{a.id}" for a in stage.inputs] or [""]
        makers = [made_by.get(a.id, "an earlier run") for a in stage.inputs] or [""]
        table.add_row(stage.name, stage.state, ", ".join(reads), ", ".join(dict.fromkeys(makers)))
    console.print()
    console.print(table)
