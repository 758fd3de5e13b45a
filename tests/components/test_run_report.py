"""The page of a run: figures against brute force, answers against numpy, and texts that are only texts."""

from __future__ import annotations

import dataclasses
import datetime
import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import page as opened
from known_towers import SERVING, World, save_servable

from components.evaluator.summary import Summary
from components.run_report import answers, figures, sections
from components.run_report.answers import DECILES, ItemMap
from components.run_report.page import Code, Facts, Figure, Heading, Section, Table, Text, render
from components.run_report.sections import Run
from modules.retrieval.tuning import IndexTuningReport

HOSTILE = "<img src=x onerror=alert(1)>"


def trial(recall: float, milliseconds: float, reorder: int, layer: str = "stock") -> dict[str, Any]:
    percentiles = {"p50": milliseconds, "p99": 2 * milliseconds}
    return {
        "layer": layer, "strategy": "quantized", "partitions": None, "partitions_to_search": None, "reorder": reorder,
        "recall": recall, "latency_ms": {"single": percentiles, "batch_64": percentiles}, "bytes": 9,
        "build_seconds": 1.0,
    }  # fmt: skip


TRIED = [trial(0.7, 1, 10), trial(0.6, 2, 20), trial(0.96, 4, 40), trial(1.0, 9, 1, "brute_force")]
INDEX = IndexTuningReport(
    catalogue_size=150, dimension=8, k=20, recall_k=10, recall_target=0.95, target_met=True,
    queries={"validation": 30, "eval": 30}, chosen=TRIED[2], measured=TRIED[2:], tried=TRIED,
)  # fmt: skip


@pytest.fixture(scope="module")
def servable(known_world: World, known_embedding: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_servable(known_world, known_embedding, tmp_path_factory.mktemp("served") / "1", SERVING)


def ranked(world: World, user: int) -> list[str]:
    """Every item that is not in the history, best first, by numpy."""
    catalogue = world.catalogue()
    scores = catalogue.vectors @ world.query(world.users[user], world.histories[user])
    ids = [catalogue.item_ids[row] for row in np.argsort(-scores, kind="stable")]
    return [item for item in ids if item not in world.histories[user]]


def test_answers_are_what_numpy_recommends(known_world: World, servable: Path):
    world, k = known_world, 10
    users = list(range(len(world.users)))
    found = answers.ask(str(servable), [world.query_example(user) for user in users], k, "user_id", "title")

    lengths = [asked.history_length for asked in found.users]
    assert lengths == sorted(lengths) and lengths[0] < 3 and lengths[-1] > 8, "short, middling and long histories"
    for asked in found.users:
        user = world.users.index(asked.user)
        best = ranked(world, user)
        assert [each.item.item_id for each in asked.recommended] == best[:5]
        titles = {item: world.titles[world.items.index(item)] for item in world.items}
        assert all(each.item.title == titles[each.item.item_id] for each in asked.recommended)
        assert [item.item_id for item in asked.history] == world.histories[user][::-1][:8]
        [(then, rank)] = asked.chosen_next
        assert then.item_id == "i0" and rank == (best.index("i0") + 1 if "i0" in best[:10] else None)
        assert all(each.chosen_next == (each.item.item_id == "i0") for each in asked.recommended)
        for each in asked.recommended:
            vector = world.item_vectors[world.items.index(each.item.item_id)]
            exact = vector @ world.query(asked.user, world.histories[user])
            assert each.score == pytest.approx(exact, rel=1e-4)
            assert sum(part.score for part in each.explanation.parts if part.exact) == pytest.approx(exact, rel=1e-3)

    rows = {item: row for row, item in enumerate(world.catalogue().item_ids)}
    counts, interactions = np.zeros(DECILES), np.zeros(DECILES)
    for user in users:
        for item in ranked(world, user)[:k]:
            counts[rows[item] * DECILES // len(rows)] += 1
    for row, popularity in enumerate(world.catalogue().popularity):
        interactions[row * DECILES // len(rows)] += popularity
    np.testing.assert_allclose(found.popularity.recommendations, counts / counts.sum(), atol=1e-9)
    np.testing.assert_allclose(found.popularity.interactions, interactions / interactions.sum(), rtol=1e-6)
    assert found.popularity.chosen.tolist() == [1.0] + [0.0] * 9, "everybody chose the most popular item"


def test_the_map_is_the_first_two_principal_components(
    known_world: World, servable: Path, monkeypatch: pytest.MonkeyPatch
):
    found = answers.item_map(str(servable), "title")
    catalogue = known_world.catalogue()
    unit = catalogue.vectors / np.linalg.norm(catalogue.vectors, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.x), np.abs(centred @ directions[0]), atol=1e-4)
    np.testing.assert_allclose(np.abs(found.y), np.abs(centred @ directions[1]), atol=1e-4)
    assert found.explained == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum(), abs=1e-4)
    assert found.titles == tuple(catalogue.returned["title"]) and found.category == "genres"
    assert [list(values) for values in found.categories] == catalogue.filterable["genres"]

    monkeypatch.setattr(answers, "MAPPED", 40)
    sample = answers.item_map(str(servable), "title")
    places = [catalogue.returned["title"].index(title) for title in sample.titles]
    assert len(places) == 40 and places == sorted(places) and (places[0], places[-1]) == (0, 149), (
        "popular and rare ones"
    )


@pytest.mark.parametrize("span", [1, 60, 61, 700, 9_000, 60_000])
def test_every_interaction_is_in_the_bar_of_its_day(span: int):
    generator = np.random.default_rng(span)
    days = {name: dict.fromkeys((10_000 + generator.integers(0, span, 50)).tolist(), 3) for name in ("train", "eval")}
    figure, _ = figures.days(days)
    starts = [datetime.date.fromisoformat(start).toordinal() - 719_163 for start in figure.data[0].x]
    assert len(starts) <= 61
    for trace in figure.data:
        wanted = [sum(count for day, count in days[trace.name].items() if start <= day < end)
                  for start, end in zip(starts, [*starts[1:], 10**6], strict=True)]  # fmt: skip
        assert list(trace.y) == wanted and sum(wanted) == sum(days[trace.name].values())


def test_the_frontier_has_every_trial_and_marks_the_chosen_one():
    traces = {trace.name: trace for trace in figures.index(INDEX).data if trace.name}
    dots = [(x, y) for trace in traces.values() if trace.legendgroup for x, y in zip(trace.x, trace.y, strict=True)]
    assert sorted(dots) == sorted((t.recall, t.latency_ms.single.p50) for t in INDEX.tried)
    assert (traces["chosen"].x, traces["chosen"].y) == ((0.96,), (4.0,))
    lines = [trace for trace in figures.index(INDEX).data if trace.mode == "lines" and trace.legendgroup]
    assert [tuple(line.x) for line in lines] == [(0.7, 0.96), (1.0,)], "what another trial beats is on no line"


def some_items(titles: list[str], categories: list[tuple[str, ...]]) -> ItemMap:
    places = np.arange(len(titles), dtype=float)
    return ItemMap(places, places**2 % 5, tuple(titles), tuple(categories), places, "kind", len(titles), 0.5)


def test_each_item_is_on_the_map_once_with_the_rarest_of_its_values():
    generator = np.random.default_rng(0)
    names = [f"g{number}" for number in range(12)]
    weights = np.arange(12, 0, -1) / 78
    own = [tuple(generator.choice(names, generator.integers(0, 4), replace=False, p=weights)) for _ in range(300)]
    figure = figures.items(some_items([f"film {number}" for number in range(300)], own))
    counts = {name: sum(name in values for values in own) for name in names}
    named = sorted(names, key=lambda name: -counts[name])[: len(figures.COLOURS)]
    found = {}
    for trace in figure.data:
        found |= {text.partition("<br>")[0]: trace.name for text in trace.text}
    assert len(found) == 300 == sum(len(trace.x) for trace in figure.data)
    for number, values in enumerate(own):
        rarest = min((counts[value] for value in values if value in named), default=None)
        name = found[f"film {number}"]
        assert name == "other" if rarest is None else (name in values and counts[name] == rarest)


class Outline(html.parser.HTMLParser):
    """Headings in order, tables without headers, addresses, and the names of all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]


def hostile_run() -> Run:
    """A run in which every text that comes from outside is an attack on the page."""
    overall = {"queries": 50.0, "ndcg@10": 0.2, "recall@10": 0.3, "popular_ndcg@10": 0.1, "popular_recall@10": 0.2}
    item = answers.Item(HOSTILE, HOSTILE)
    asked = answers.Asked(HOSTILE, {HOSTILE: HOSTILE}, 0, (item,), 1, ((item, 3),),
                          (answers.Recommended(item, 1.0, None, True),))  # fmt: skip
    tenth = np.full(DECILES, 0.1)
    return Run(
        name="shop",
        run_id="1",
        written=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        versions={},
        configuration={"tables": {"items": HOSTILE}},
        counts={"interactions": 12},
        days={"train": {10_000: 3}, "eval": {10_001: 1}},
        warnings=[f"{HOSTILE}: {HOSTILE}"],
        training={"history": [{"loss": 2.0, "ndcg": 0.1, "recall": float("nan")}], "epochs": 1, "criterion": "ndcg@10"},
        evaluation=Summary(
            metrics={
                "overall": overall,
                f"name={HOSTILE}": overall | {"ndcg@10": None},
                "name=few": overall | {"queries": 2},
            },
            baseline_metrics={}, failures=[HOSTILE], baseline_version="", baseline_note=HOSTILE, confidence=0.95,
            half_widths={"overall": {"ndcg@10": 0.05}}, baseline_differences={}, baseline_difference_half_widths={},
        ),
        min_queries=30,
        index=INDEX,
        validator={"failures": [], "latency_ms": None},
        pushed_version="",
        answers=answers.Answers((asked,), answers.Popularity(tenth, tenth, np.full(DECILES, np.nan), 50, 10)),
        item_map=some_items([HOSTILE, "b"], [(HOSTILE,), ("b",)]),
    )  # fmt: skip


def test_texts_are_texts_and_the_page_asks_for_nothing(tmp_path: Path, browser: Any):
    run = hostile_run()
    text = render(run.title, run.verdict, False, sections.sections(run))
    outline = Outline(text)
    assert "img" not in outline.tags and HOSTILE not in text
    assert {address for address in outline.addresses if not address.startswith("#")} == {"data:,"}
    assert outline.headings[0] == 1 and max(np.diff(outline.headings)) == 1, "no level is left out"
    assert outline.tags.count("table") == outline.tags.count("caption") == outline.tags.count("thead")
    assert outline.tags.count("figure") == outline.tags.count("figcaption") > 5
    assert "Nothing was pushed: Evaluator refused the model" in text

    path = tmp_path / "page.html"
    path.write_text(text)
    with opened(browser) as page:
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]")
        assert "img" not in page.evaluate("[...document.querySelectorAll('*')].map(each => each.localName)")
        # Plotly reads tags in the texts it is given: the title that it shows must be the one that was meant.
        plot = page.locator("#map ~ figure .plot")
        plot.scroll_into_view_if_needed()
        page.evaluate(
            "Plotly.Fx.hover(document.querySelector('#map ~ figure .plot'), [{curveNumber: 0, pointNumber: 0}])"
        )
        assert HOSTILE in plot.locator(".hoverlayer").text_content()
        assert figures.cut(HOSTILE, 24) in plot.locator(".legend").text_content()
        assert not said and asked == [path.as_uri()]


def test_what_was_not_measured_is_said_and_not_drawn():
    run = hostile_run()
    nothing = dataclasses.replace(run.evaluation, metrics={"overall": {"queries": 0.0}}, failures=["too few"])
    bare = dataclasses.replace(
        run, evaluation=nothing, days={}, warnings=[], training={}, answers=None, item_map=None,
        not_asked="It did not answer.",
    )  # fmt: skip
    by_name = {section.name: section.blocks for section in sections.sections(bare)}
    assert by_name["recommendations"] == by_name["popularity"] == by_name["map"] == [Text("It did not answer.")]
    assert "nothing was measured" in by_name["quality"][0].text
    assert "no anomalies" in by_name["data"][-1].text
    assert not any(isinstance(block, Figure) for name in ("quality", "data", "training") for block in by_name[name])


def test_a_large_catalogue_with_many_slices_makes_a_bounded_page():
    run = hostile_run()
    long = "x" * 5_000
    metrics = {f"shop={number} {long}": dict(run.evaluation.metrics["overall"]) for number in range(500)}
    metrics["overall"] = run.evaluation.metrics["overall"]
    large = dataclasses.replace(
        run,
        evaluation=dataclasses.replace(run.evaluation, metrics=metrics),
        item_map=some_items([long] * answers.MAPPED, [(long, "b")] * answers.MAPPED),
    )
    small = render(run.title, run.verdict, False, sections.sections(run))
    page = render(large.title, large.verdict, False, sections.sections(large))
    assert len(page) - len(small) < 1_000_000
    assert len(page) < 3_500_000


def test_blocks_of_every_kind_are_drawn():
    blocks = [Text("a & b"), Heading("h"), Facts([("n", "v")]), Table("c", ("x", "y"), [("1", "2")]), Code("s", "t")]
    text = render("t", "v", True, [Section("s", "S", blocks)])
    assert "<p>a &amp; b</p>" in text and "<dt>n</dt><dd>v</dd>" in text
    assert re.search(r'<th scope="col">y</th>.*<th scope="row">1</th>\s*<td data-column="y">2</td>', text, re.DOTALL)
    assert "<summary>s</summary>" in text and "<pre>t</pre>" in text and "<h3>h</h3>" in text
