"""What the page says, section by section."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from components.evaluator.summary import Summary
from components.run_report import figures
from components.run_report.answers import Answers, Asked, Item, ItemMap, Popularity, Recommended
from components.run_report.figures import Series, cut
from components.run_report.page import Block, Code, Facts, Figure, Heading, Section, Table, Text
from modules.retrieval.tuning import IndexTuningReport

_SLICES = 40
_REASONS = 3
_TABLE_METRICS = (
    ("ndcg", "NDCG"), ("recall", "recall"), ("precision", "precision"), ("hit_rate", "hit rate"),
    ("popular_ndcg", "NDCG, most popular"), ("ndcg_lift", "NDCG above most popular"),
    ("popular_recall", "recall, most popular"), ("recall_lift", "recall above most popular"),
    ("coverage", "share of the catalogue shown"), ("popular_share", "share of the most popular tenth"),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What of a run the page is made of."""

    name: str
    run_id: str
    """ "" where the orchestrator does not tell."""
    written: datetime.datetime
    versions: Mapping[str, str]
    configuration: Mapping[str, Any]
    """What is not left to the defaults."""
    counts: Mapping[str, int]
    """Custom properties of the examples."""
    days: Mapping[str, Mapping[int, int]]
    """Split → day since 1970 → interactions."""
    warnings: Sequence[str]
    """Anomalies that stopped nothing."""
    training: Mapping[str, Any]
    """The JSON of the Trainer's report."""
    evaluation: Summary
    min_queries: int
    index: IndexTuningReport
    validator: Mapping[str, Any]
    """The JSON of the ServableValidator: `failures`, `requests`, `latency_ms`."""
    pushed_version: str
    """ "" when nothing was pushed."""
    answers: Answers | None
    item_map: ItemMap | None
    not_asked: str = ""
    """Why there are no answers or no map."""

    @property
    def title(self) -> str:
        return f"{self.name}: {'pushed' if self.pushed_version else 'refused'}"

    @property
    def verdict(self) -> str:
        if self.pushed_version:
            return f"Version {self.pushed_version} was pushed: both gates have blessed it."
        gates = [name for name, reasons in self.gates().items() if reasons]
        who = " and ".join(gates) or "no gate"
        return f"Nothing was pushed: {who} refused the model. What was served before stays."

    def gates(self) -> dict[str, Sequence[str]]:
        """Gate → why it refuses."""
        return {"Evaluator": self.evaluation.failures, "ServableValidator": self.validator.get("failures", ())}


def sections(run: Run) -> list[Section]:
    """The whole page, what decides first."""
    return [
        Section("gates", "Gates", _gates(run)),
        Section("quality", "Quality", _quality(run)),
        Section("recommendations", "Recommendations", _recommendations(run)),
        Section("popularity", "Popularity", _popularity(run)),
        Section("map", "Map of the items", _map(run)),
        Section("training", "Training", _training(run)),
        Section("data", "Data", _data(run)),
        Section("index", "Index", _index(run)),
        Section("run", "What ran", _what_ran(run)),
    ]


def _gates(run: Run) -> list[Block]:
    rows = [
        (gate, "refused" if reasons else "blessed", "\n".join(reasons) or "nothing to object")
        for gate, reasons in run.gates().items()
    ]
    return [Table("What each gate says of the model", ("gate", "verdict", "in words"), rows, numbers=False)]


def _quality(run: Run) -> list[Block]:
    found = run.evaluation
    overall, halves = found.metrics.get("overall", {}), found.half_widths.get("overall", {})
    if not overall.get("queries"):
        return [Text("No eval query has a relevant item that its user had not seen before: nothing was measured.")]
    ks = sorted({int(name.partition("@")[2]) for name in overall if "@" in name})
    before = found.baseline_metrics.get("overall", {})
    differences = found.baseline_differences.get("overall", {})
    of_differences = found.baseline_difference_half_widths.get("overall", {})
    rows = []
    for metric, words in _TABLE_METRICS:
        rows.append((words, *(_figure(overall, halves, f"{metric}@{k}", "_lift" in metric) for k in ks)))
        if differences and metric in ("ndcg", "recall"):
            rows.append((f"{words} above the last pushed",
                         *(_figure(differences, of_differences, f"{metric}@{k}", True) for k in ks)))  # fmt: skip
    names = [f"{metric}@{k}" for metric in ("ndcg", "recall") for k in ks]
    series = [
        Series("this model", [overall.get(name) for name in names], [halves.get(name) for name in names]),
        Series("most popular", [overall.get(f"popular_{name}") for name in names],
               [halves.get(f"popular_{name}") for name in names]),
    ]  # fmt: skip
    if before:
        series.append(Series("last pushed", [before.get(name) for name in names], [None] * len(names)))
    compared = f"The last pushed model is version {found.baseline_version}."
    if not before:
        compared = f"There is no comparison with a pushed model: {found.baseline_note}."
    certain = f"{100 * found.confidence:g}%"
    blocks: list[Block] = [
        Figure(
            "NDCG and recall by length of the list",
            f"Further right is better; the bar is the {certain} interval, the chance in {overall['queries']:,.0f} "
            f"queries. {compared}",
            figures.intervals([name.replace("ndcg", "NDCG") for name in names], series, "mean over the eval queries"),
        ),
        Table(f"Quality on eval, ± at {certain} confidence", ("metric", *(f"@{k}" for k in ks)), rows),
    ]
    return blocks + _slices(run, ks[0])


def _slices(run: Run, k: int) -> list[Block]:
    found, metric = run.evaluation, f"ndcg@{k}"
    names = [name for name in found.metrics if name != "overall"]
    if not names:
        return []
    queries = {name: found.metrics[name].get("queries") or 0.0 for name in names}
    # Those with the most queries, in the Evaluator's order.
    largest = set(sorted(names, key=lambda name: -queries[name])[:_SLICES])
    shown = [name for name in names if name in largest]
    few = [name for name in shown if queries[name] < run.min_queries]
    plotted = [name for name in shown if name not in few]

    def series(words: str, of: str) -> Series:
        return Series(words, *([found_in.get(name, {}).get(of) for name in plotted]
                               for found_in in (found.metrics, found.half_widths)))  # fmt: skip

    left_out = f" {len(names) - len(shown)} smaller slices are left out." if len(names) > len(shown) else ""
    too_few = f" Slices with fewer than {run.min_queries} queries have no dot: chance would decide." if few else ""
    blocks: list[Block] = []
    if plotted:
        blocks.append(
            Figure(
                f"NDCG@{k} by slice",
                f"A slice whose bar ends left of the others is served worse than they are.{too_few}{left_out}",
                figures.intervals(
                    plotted, [series("this model", metric), series("most popular", f"popular_{metric}")], f"NDCG@{k}"
                ),
            )
        )
    rows = [
        (cut(name), f"{queries[name]:,.0f}{' (too few)' if name in few else ''}",
         *(_figure(found.metrics[name], found.half_widths.get(name, {}), each, "_lift" in each)
           for each in (metric, f"recall@{k}", f"ndcg_lift@{k}")))
        for name in shown
    ]  # fmt: skip
    header = ("slice", "queries", f"NDCG@{k}", f"recall@{k}", "NDCG above most popular")
    return [*blocks, Table("Quality by slice", header, rows)]


def _figure(
    figures: Mapping[str, float | None], halves: Mapping[str, float | None], name: str, signed: bool = False
) -> str:
    value, half = figures.get(name), halves.get(name)
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.4f}" + ("" if half is None else f" ±{half:.4f}")


def _recommendations(run: Run) -> list[Block]:
    if run.answers is None:
        return [Text(run.not_asked)]
    blocks: list[Block] = [
        Text(
            "Users of the eval split with short, middling and long histories: what they had chosen, what the servable "
            "recommends and why, and what they chose next. ✓ marks a recommendation that they chose next. Judge "
            "whether the list fits the history; one chosen item need not be in it."
        )
    ]
    for asked in run.answers.users:
        blocks += _user(asked)
    return blocks


def _user(asked: Asked) -> list[Block]:
    more = asked.history_length - len(asked.history)
    history = [_words(item) for item in asked.history] + ([f"and {more:,} more"] if more else [])
    following = [
        _words(item) + (f" (rank {rank})" if rank else " (not in the ranking)") for item, rank in asked.chosen_next
    ]
    facts = [*asked.attributes.items()]
    if asked.time is not None:
        facts.append(("asked", _moment(asked.time)))
    facts += [("had chosen, newest first", "\n".join(history) or "nothing"), ("chose next", "\n".join(following))]
    rows = [
        (f"{rank}. {_words(each.item)}{' ✓' if each.chosen_next else ''}", f"{each.score:.3f}", *_why(each))
        for rank, each in enumerate(asked.recommended, 1)
    ]
    who = cut(asked.user) or "without an id"
    return [
        Heading(f"User {who}"),
        Facts([(name, cut(text, 400)) for name, text in facts]),
        Table(f"Recommended to user {who}", ("item", "score", "because of", "parts of the score"), rows, numbers=False),
    ]


def _why(each: Recommended) -> tuple[str, str]:
    """Items of the history that speak for it; the largest of the parts that the score adds up to."""
    if each.explanation is None:
        return "not explained", ""
    reasons = [reason for reason in each.explanation.reasons if reason.score > 0][:_REASONS]
    words = "\n".join(f"{_words(Item(r.item_id, r.title))} {r.score:+.2f}" for r in reasons)
    exact = [(part.name, part.score) for part in each.explanation.parts if part.exact]
    shown, rest = exact[:_REASONS], exact[_REASONS:]
    if rest:
        shown.append((f"{len(rest)} more", sum(score for _, score in rest)))
    return words or "nothing of the history", "\n".join(f"{name} {score:+.2f}" for name, score in shown)


def _words(item: Item) -> str:
    return cut(item.title or item.item_id)


def _moment(seconds: int) -> str:
    # Not fromtimestamp, which knows no years before 1970 on some systems.
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return f"{epoch + datetime.timedelta(seconds=seconds):%Y-%m-%d %H:%M} UTC"


def _popularity(run: Run) -> list[Block]:
    if run.answers is None:
        return [Text(run.not_asked)]
    shares = run.answers.popularity
    overall = run.evaluation.metrics.get("overall", {})
    coverage = overall.get(f"coverage@{shares.k}")
    shown = f" All eval queries together are shown {coverage:.1%} of the catalogue." if coverage is not None else ""
    blocks: list[Block] = [
        Figure(
            "Popularity of what is recommended",
            "Where recommendations stand above what was chosen next, the model prefers that tenth of the catalogue "
            f"more than people do. {shares.k} recommendations to each of {shares.queries:,} eval queries.{shown}",
            figures.popularity(shares),
        ),
    ]
    return [*blocks, _shares(shares)]


def _shares(shares: Popularity) -> Table:
    def percent(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.1%}"

    rows = [
        (f"tenth {place}", *map(percent, values))
        for place, values in enumerate(zip(shares.interactions, shares.recommendations, shares.chosen, strict=True), 1)
    ]
    header = ("items by popularity", "training interactions", "recommendations", "chosen next")
    return Table("Shares by tenth of the catalogue, the most popular first", header, rows)


def _map(run: Run) -> list[Block]:
    shown = run.item_map
    if shown is None:
        return [Text(run.not_asked)]
    of = f"{len(shown.titles):,} of {shown.catalogue_size:,} items" if len(shown.titles) < shown.catalogue_size else (
        f"All {shown.catalogue_size:,} items")  # fmt: skip
    colour = (
        f" Colour is the rarest of an item's values of {shown.category!r} among those named." if shown.category else ""
    )
    return [
        Figure(
            "Items by their vectors",
            "Dots that lie together are alike to the model, so colours that form groups are a good sign. "
            f"{of}, by the first two principal components ({shown.explained:.0%} of the variance); large dots are "
            f"popular.{colour} Hover over or tap a dot for its title.",
            figures.items(shown),
            zooms=True,
        )
    ]


def _training(run: Run) -> list[Block]:
    history = run.training.get("history", [])
    criterion = str(run.training.get("criterion", "")).replace("ndcg", "NDCG")
    facts = [("epochs", f"{run.training.get('epochs', 0)} chosen of {len(history)}, by {criterion} on validation"),
             ("seconds", f"{run.training.get('seconds', 0):.0f}")]  # fmt: skip
    facts += [(f"{key}, tuned", f"{value:g}") for key, value in (run.training.get("tuned") or {}).items()]
    if warm := run.training.get("warm_started"):
        facts.append(("warm start", f"{len(warm)} variables from the last pushed model"))
    for name, value in (run.training.get("encoders") or {}).items():
        facts.append((f"history encoder {name}", f"{criterion} {value:.4f}"))
    blocks: list[Block] = [Facts(facts)]
    if history:
        blocks.insert(
            0,
            Figure(
                "Loss and validation by epoch",
                "The loss should fall and level off; where it falls on while the metrics below fall too, the model has "
                "begun to learn by heart.",
                figures.training(history, int(run.training.get("epochs", 0))),
            ),
        )
    return blocks


def _data(run: Run) -> list[Block]:
    blocks: list[Block] = []
    if any(run.days.values()):
        figure, step = figures.days(run.days)
        blocks.append(
            Figure(
                "Interactions over time",
                f"A bar is a {step}; a gap, or an end that breaks off, is data that is missing.",
                figure,
            )
        )
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in run.counts.items() if count]
    blocks.append(Table("Counted in the tables", ("what", "number"), rows))
    if run.warnings:
        rows = [(cut(name), cut(words, 300)) for name, _, words in (each.partition(": ") for each in run.warnings)]
        blocks.append(Table("Anomalies that stop nothing", ("feature", "what"), rows, numbers=False))
    else:
        blocks.append(Text("The data is what the schema says: no anomalies."))
    return blocks


def _index(run: Run) -> list[Block]:
    report = run.index
    rows = [
        (f"{figures.setting(each)}{', chosen' if each == report.chosen else ''}", f"{each.recall:.4f}",
         *(f"{value:.2f}" for latency in (each.latency_ms.single, each.latency_ms.batch_64)
           for value in (latency.p50, latency.p99)),
         f"{each.bytes / 1e6:,.1f}", f"{each.build_seconds:,.1f}")
        for each in report.measured
    ]  # fmt: skip
    header = ("setting", f"recall@{report.recall_k}",
              "one query, ms p50", "p99", "64 queries, ms p50", "p99", "MB", "seconds to build")  # fmt: skip
    blocks: list[Block] = [
        Figure(
            f"Recall and latency of one query: {report.catalogue_size:,} items × {report.dimension}",
            "Right and low is good: the circle is the fastest setting right of the dashed target.",
            figures.index(report),
        ),
        Table("The best setting of each layer, on eval queries", header, rows),
    ]
    if latency := run.validator.get("latency_ms"):
        words = ", ".join(f"{name} {value:.2f} ms" for name, value in latency.items())
        blocks.append(Text(f"Single requests to the whole servable, in a fresh process: {words}."))
    return blocks


def _what_ran(run: Run) -> list[Block]:
    facts = [("run", run.run_id)] if run.run_id else []
    facts.append(("page written", f"{run.written:%Y-%m-%d %H:%M:%S %Z}"))
    facts += run.versions.items()
    text = yaml.safe_dump(dict(run.configuration), sort_keys=False, allow_unicode=True, width=100)
    return [Facts(facts), Code("Configuration; what is not here is at its default", text)]
