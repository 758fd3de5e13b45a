"""The page of a run: what a person finds on it, by commands and in a browser without network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import world
from browser import page as opened
from e2e_runs import Small, twotower

from components.run_report.executor import PAGE_FILE
from pipeline import summary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the page of the run that pushed, whatever ran since."""
    path = tmp_path_factory.mktemp("page") / "deep" / "page.html"
    outcome = twotower("report", small.outcome.answer["run"], "--config", small.config_path, "--output", str(path))
    assert outcome.code == 0, outcome.errors
    assert outcome.answer == {"run": small.outcome.answer["run"], "page": str(path)}
    return path


def test_the_page_says_what_the_run_says(small: Small, path: Path):
    answer, text = small.outcome.answer, path.read_text(encoding="utf-8")
    assert f"Version {Path(answer['pushed']).name} was pushed" in text
    assert answer["run"] in text, "the run that made it"
    overall = answer["metrics"]["overall"]
    for metric in ("ndcg@5", "recall@20", "ndcg_lift@5", "coverage@20"):
        assert f"{overall[metric]:.4f}" in text, metric
    for name in answer["metrics"]:
        assert name == "overall" or f'<th scope="row">{name.replace("<", "&lt;")}</th>' in text
    assert f"{answer['data']['interactions']:,}" in text
    assert "learning_rate: 0.02" in text and "warm_start" not in text, "what is not at its default"
    assert path.parent.joinpath(path.name).stat().st_size < 3_500_000
    assert sorted(path.parent.iterdir()) == [path]


def test_the_artifact_is_what_every_way_leads_to(small: Small):
    page = small.outcome.answer["report"]
    assert Path(page).name == PAGE_FILE == summary.REPORTS["RunReport", "page"], "it stays when a run is cleaned away"
    found = twotower("report", small.outcome.answer["run"], "--config", small.config_path)
    assert (found.code, found.answer["page"]) == (0, page)


def test_users_on_the_page_have_the_histories_of_the_tables(path: Path):
    text = path.read_text(encoding="utf-8")
    users = [int(user) for user in re.findall(r"<h3>User (\d+)</h3>", text)]
    assert len(set(users)) == 5
    titles = {item["item_id"]: item["title"] for item in world.items()}
    parts = re.split(r"<h3>User \d+</h3>", text)[1:]
    for user, part in zip(users, parts, strict=True):
        seen = [titles[r["item_id"]] for r in world.interactions() if r["user_id"] == user]
        # Each user's last film is the question; the one before is held out for validation, and known by then.
        shown = re.search(r"<dt>had chosen, newest first</dt><dd>([^<]+)</dd>", part)[1].split("\n")
        assert shown[:8] == seen[-2::-1][:8]
        assert re.search(r"<dt>chose next</dt><dd>([^<]+) \((rank \d+|not in the ranking)\)</dd>", part)[1] == seen[-1]
        recommended = re.findall(r'<th scope="row">\d\. ([^<✓]+?)(?: ✓)?</th>', part.partition("</table>")[0])
        assert len(recommended) == 5 and not set(recommended) & set(seen[:-1])
        assert sum(title.startswith(world.TASTES[(user - 1) % 4]) for title in recommended) >= 3


def colours(page: Page) -> tuple[str, str]:
    """Of the background, and of a figure's texts."""
    return page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.plot text')).fill]"
    )


def test_a_person_finds_the_way_around_without_network(path: Path, browser: Browser):
    with opened(browser) as page:
        page.context.set_offline(True)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]")
        assert asked == [path.as_uri()]
        plots = page.locator(".plot")
        assert plots.count() == page.locator(".plot .main-svg:first-child").count() >= 7
        assert page.get_by_role("navigation").get_by_role("link").count() == page.locator("h2").count() == 9
        page.get_by_role("link", name="Training").click()
        assert page.evaluate("location.hash") == "#training"
        assert abs(page.locator("#training").bounding_box()["y"]) < 40
        # A click on a legend's entry hides what it stands for; a dot of the map has its title. Plotly's own layer for
        # the mouse lies over the dots.
        hidden = "document.querySelector('#training ~ figure .plot').data[0].visible"
        page.locator("#training ~ figure .legendtoggle").first.click()
        page.wait_for_function(f"{hidden} === 'legendonly'")
        page.locator("#map").scroll_into_view_if_needed()
        page.locator("#map ~ figure .point").first.hover(force=True)
        assert re.search(r"\w+ film \d+", page.locator("#map ~ figure .hoverlayer").text_content())
        light = colours(page)
        page.emulate_media(color_scheme="dark")
        dark = colours(page)
        assert light[0] == "rgb(255, 255, 255)" and dark[0] != light[0] and dark[1] != light[1]
        # On paper it is light, whatever the screen is, and nothing is cut off at its edge.
        page.emulate_media(media="print", color_scheme="dark")
        assert colours(page) == light
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_for_function("[...document.querySelectorAll('.plot')].every(each => each._fullLayout.width <= 680)")
        assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_it(path: Path, browser: Browser, dark: bool):
    with opened(browser, width=400, dark=dark) as page:
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        for plot in page.locator(".plot").all():
            box = plot.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 400
            assert plot.locator(".main-svg").first.bounding_box()["width"] <= 400


def test_what_keeps_a_page_from_being_shown_is_one_line(small: Small, tmp_path: Path):
    def refused(*arguments: str) -> str:
        outcome = twotower("report", "--config", small.config_path, *arguments)
        assert outcome.code == 2 and outcome.errors.count("\n") == 1, outcome.errors
        return outcome.errors

    assert "is a folder; name a file in it" in refused("--output", str(tmp_path))
    assert "cannot be written" in refused("--output", "/proc/nothing/page.html")
    assert "'gs://a/b.html' is no file of this machine" in refused("--output", "gs://a/b.html")
    assert "not in the metadata store" in refused("no-such-run")
    # A run that anomalies have stopped, in a copy of the store.
    shutil.copytree(small.folder / "runs", tmp_path / "runs")
    (tmp_path / "schema.pbtxt").write_text('feature { name: "user_id" type: INT }')
    elsewhere = ["--set", f"output.root={tmp_path / 'runs'}"]
    stopped = twotower(
        "run", "--config", small.config_path, *elsewhere, "--set", f"schema.path={tmp_path}/schema.pbtxt"
    )
    assert stopped.code == 2
    assert "has no page: it ended in ExampleValidator" in refused(*elsewhere)
