"""The page to try a model, clicked through in Chromium: it shows what the server answers to the same request."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
from browser import page
from e2e_runs import Small, twotower
from servers import http_request

from benchmarks.serving import marked_versions
from serving.client import RestClient, padded
from serving.development_server.server import Options, Server
from serving.page.bounds import Bounds

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.slow

MODEL = "small-world"
OLD, NEW = 1, 2
# The titles of the newer version; as markup it would run.
MARK = "<img src=x onerror=alert(1)> "
NOW = world.START + 86400 * 400
SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Served:
    """A server with two versions, the newer one of which has dangerous titles."""

    url: str
    clients: dict[int, RestClient]
    base_path: Path

    def items(self, inputs: dict[str, Any], signature: str = "", version: int = NEW) -> list[str]:
        """Ids of the first items of an answer; inputs that are not given are missing."""
        client = self.clients[version]
        nothing = {"user_id": "", "age": float("nan"), "gender": "", "timestamp": -1, "history_age": float("nan")}
        lists = {name: padded([[]]) for name in ("history", "exclude", "filter_genres")}
        given = {name: padded([value]) if isinstance(value, list) else [value] for name, value in inputs.items()}
        signature = signature or "recommend_filtered"
        all_inputs = {name: [value] for name, value in nothing.items()} | lists | given
        return client.predict(all_inputs, signature)["item_id"][0].tolist()[:SHOWN]


@pytest.fixture(scope="module")
def served(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base_path = tmp_path_factory.mktemp("page") / MODEL
    shutil.copytree(small.outcome.answer["pushed"], base_path / str(OLD))
    marked_versions.push(base_path / str(OLD), base_path / str(NEW), MARK)
    file = base_path / str(NEW) / "assets.extra" / "catalogue.parquet"
    table = pq.read_table(file)
    marked = pa.array([{"title": MARK + row["title"]} for row in table["returned"].to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("returned"), "returned", marked), file)
    config = base_path.parent / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "{MODEL}" base_path: "{base_path}" model_platform: "tensorflow" '
        "model_version_policy { latest { num_versions: 2 } } } }"
    )
    with Server(Options(model_config_file=str(config), grpc_port=0, rest_port=0)) as server:
        clients = {number: RestClient(server.rest_address, MODEL, version=number) for number in (OLD, NEW)}
        yield Served(f"http://{server.rest_address}/", clients, base_path)


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page once it has its first answer, asking as of `NOW`."""
    with page(browser, **options) as shown:
        shown.goto(url)
        shown.wait_for_selector("#lists li")
        shown.evaluate("document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
        with answered(shown):
            shown.fill("#feature-timestamp", str(NOW))
        yield shown


@contextmanager
def answered(shown: Page) -> Iterator[None]:
    """Waits until what is done in the block has its answer in the page."""
    shown.evaluate("document.getElementById('status').textContent = ''")
    yield
    shown.wait_for_selector("#status:not(:empty)")


def listed(shown: Page, column: int = 0) -> list[str]:
    """Ids of the items in a list of recommendations."""
    texts = shown.locator(f"#lists > section:nth-child({column + 1}) .item .detail").all_text_contents()
    return [text.partition(" · ")[0] for text in texts]


def history_of(user: int) -> tuple[list[str], int]:
    """The newest twelve items, and when the last one was."""
    rows = [row for row in world.interactions() if row["user_id"] == user]
    return [str(row["item_id"]) for row in rows][-12:], rows[-1]["timestamp"]


def known_user(served: Served) -> str:
    return pq.read_table(served.base_path / str(NEW) / "assets.extra" / "users.parquet")["user_id"][3].as_py()


TITLES = {str(row["item_id"]): MARK + row["title"] for row in world.items()}


def pick(shown: Page, user: str) -> None:
    with answered(shown):
        shown.fill("#user", user)
        shown.press("#user", "Enter")


def test_a_user_that_is_picked_gets_the_answer_of_recommend_user_and_sees_the_history(served: Served, browser: Browser):
    user = known_user(served)
    history, newest = history_of(int(user))
    with opened(browser, served.url) as shown:
        pick(shown, user)
        assert listed(shown) == served.items({"user_id": user, "timestamp": NOW}, "recommend_user")
        assert re.fullmatch(rf"recommend_user, version {NEW}, \d+ ms", shown.text_content("#status") or "")
        assert shown.locator("#history .title").all_text_contents() == [TITLES[item] for item in reversed(history)]

        # Without the third newest the request says everything itself, the age of the history included.
        with answered(shown):
            shown.locator("#history li").nth(2).get_by_role("button", name="Remove").click()
        del history[-3]
        without = {"user_id": user, "timestamp": NOW, "history": history, "history_age": float(NOW - newest)}
        assert listed(shown) == served.items(without, "recommend_user")
        with answered(shown):
            shown.locator("#history li").nth(1).get_by_role("button", name="to newer").click()
        history[-2:] = reversed(history[-2:])
        assert listed(shown) == served.items(without, "recommend_user")

        with answered(shown):
            shown.click("#history-clear")
        features = {"user_id": user, "timestamp": NOW, "age": 16.0 + (int(user) - 1) % 50}
        features["gender"] = "FM"[(int(user) - 1) % 2]
        assert listed(shown) == served.items(features)
        with answered(shown):
            shown.click("#nobody")
        assert listed(shown) == served.items({"timestamp": NOW}) and shown.input_value("#user") == ""
        pick(shown, "none such")
        assert "No user none such is known" in (shown.text_content("#user-hint") or "")
        assert listed(shown) == served.items({"timestamp": NOW})


def test_items_are_found_by_title_and_rules_are_set_with_the_keyboard_alone(served: Served, browser: Browser):
    request: dict[str, Any] = {"timestamp": NOW, "history": ["3"]}
    with opened(browser, served.url) as shown:
        shown.focus("#history-add")
        shown.keyboard.type("film DRÁMA 3")
        options = shown.locator("#history-add-options [role=option]")
        found = {text.split(" film ")[0].removeprefix(MARK) for text in options.all_text_contents()}
        assert found == {"Drama"} and options.count() > 1
        with answered(shown):
            # By its id it comes first.
            shown.fill("#history-add", "3")
            shown.keyboard.press("ArrowDown")
            shown.keyboard.press("Enter")
        assert shown.locator("#history .title").all_text_contents() == [TITLES["3"]]
        assert listed(shown) == served.items(request)

        shown.focus("#filter-genres")
        with answered(shown):
            shown.keyboard.type("wa")
            shown.keyboard.press("Enter")
        request["filter_genres"] = ["War"]
        found_items = served.items(request)
        assert listed(shown) == found_items and "(10 of " in (shown.text_content("#lists h2") or "")
        with answered(shown):
            shown.get_by_role("button", name=f"Leave out {TITLES[found_items[1]]}").focus()
            shown.keyboard.press("Enter")
        request["exclude"] = [found_items[1]]
        assert listed(shown) == served.items(request)
        assert shown.evaluate("document.activeElement.id") == "answers", "the button is gone, the focus near by"
        with answered(shown):
            shown.fill("#feature-gender", "F")
        with answered(shown):
            shown.fill("#feature-age", "61.5")
        assert listed(shown) == served.items({**request, "gender": "F", "age": 61.5})

        # Every control says what it is.
        unnamed = """[...document.querySelectorAll("input, select, button, [tabindex='0']")].filter((node) =>
            !node.labels?.length && !node.textContent.trim() && !node.ariaLabel).map((node) => node.outerHTML)"""
        assert shown.evaluate(unnamed) == []


def test_reasons_are_those_of_explain(served: Served, browser: Browser):
    user = known_user(served)
    history, newest = history_of(int(user))
    with opened(browser, served.url) as shown:
        pick(shown, user)
        item = listed(shown)[0]
        inputs = {
            "user_id": [user], "timestamp": [NOW], "history": [history], "history_age": [float(NOW - newest)],
            "age": [16.0 + (int(user) - 1) % 50], "gender": ["FM"[(int(user) - 1) % 2]], "explain": [[item]],
        }  # fmt: skip
        answer = served.clients[NEW].predict(inputs, "explain")
        first = shown.locator("#lists .reasons").first.locator("p")
        parts = dict(zip(answer["part"][0], answer["part_score"][0, 0], strict=True))
        expected = {name: f"{score:+.2f}".replace("-", "−") for name, score in parts.items() if abs(score) >= 0.005}
        words = [text.rpartition("\xa0") for text in first.nth(0).locator("span:not(.lead)").all_text_contents()]
        assert {name: score for name, _, score in words} == expected
        because = [text.rpartition("\xa0")[0] for text in first.nth(1).locator("span:not(.lead)").all_text_contents()]
        titles = zip(answer["reason_title"][0, 0], answer["reason_score"][0, 0], strict=True)
        assert because == [title for title, score in titles if score >= 0.005] and because
        score = shown.locator("#lists .score").first.text_content()
        assert score == f"{answer['score'][0, 0]:.3f}".replace("-", "−")


def test_a_click_on_an_item_shows_similar_ones(served: Served, browser: Browser):
    with opened(browser, served.url) as shown:
        item = listed(shown)[2]
        shown.locator("#lists button.title").nth(2).click()
        shown.wait_for_selector("#similar-list li")
        similar = served.clients[NEW].predict({"item_id": [item]}, "similar_items")["title"][0].tolist()
        assert shown.text_content("#similar-title") == f"Similar to {TITLES[item]}"
        assert shown.locator("#similar-list .title").all_text_contents() == similar[:20]
        shown.keyboard.press("Escape")
        assert not shown.locator("#similar").is_visible()


def test_two_versions_stand_side_by_side_on_a_phone_below_each_other(served: Served, browser: Browser):
    plain = {item: title.removeprefix(MARK) for item, title in TITLES.items()}
    for width in (1280, 400):
        with opened(browser, served.url, width=width) as shown:
            with answered(shown):
                shown.select_option("#beside", str(OLD))
            assert shown.locator("#lists h2").all_text_contents() == [
                f"Version {NEW} (10 of 20)", f"Version {OLD} (10 of 20)"
            ]  # fmt: skip
            for column, (version, titles) in enumerate(((NEW, TITLES), (OLD, plain))):
                expected = served.items({"timestamp": NOW}, version=version)
                section = shown.locator(f"#lists > section:nth-child({column + 1})")
                assert listed(shown, column) == expected
                assert section.locator("button.title").all_text_contents() == [titles[item] for item in expected]
            tops = [
                box["y"]
                for box in (section.bounding_box() for section in shown.locator("#lists > section").all())
                if box
            ]
            assert (tops[0] == tops[1]) == (width == 1280)
            pick(shown, known_user(served))
            assert shown.evaluate("document.documentElement.scrollWidth") == width, "nothing to scroll sideways"


def test_no_title_becomes_markup_and_nobody_else_is_asked(served: Served, browser: Browser):
    with opened(browser, served.url, expected="Content Security Policy") as shown:
        shown.on("dialog", lambda dialog: pytest.fail(dialog.message))
        pick(shown, known_user(served))
        shown.click("#history-add")
        shown.keyboard.type("film")
        shown.locator("#lists button.title").first.click()
        shown.wait_for_selector("#similar-list li")
        assert shown.locator("img").count() == 0
        assert (shown.text_content("#lists button.title") or "").startswith(MARK)
        # What would run in the page, and whom it would tell, were there a hole.
        ran = """async () => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const asked = await fetch("http://127.0.0.1:1/").then(() => "asked", (error) => error.name);
            return [window.ran ?? false, asked];
        }"""
        refused: list[str] = []
        shown.on("console", lambda message: refused.append(message.text))
        assert shown.evaluate(ran) == [False, "TypeError"]
        assert any("connect-src" in text for text in refused) and any("script-src" in text for text in refused)


def test_what_is_typed_at_once_is_asked_once_and_an_old_answer_never_replaces_a_newer_one(
    served: Served, browser: Browser
):
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        held.append(route)
        if len(held) > 1:
            route.continue_()

    with opened(browser, served.url) as shown:
        shown.uncheck("#reasons")
        shown.wait_for_selector(".reasons", state="detached")
        shown.route(re.compile(":predict$"), hold_the_first)
        type_age = """(texts) => { const field = document.getElementById("feature-age");
            for (const text of texts) { field.value = text; field.dispatchEvent(new Event("input")); } }"""
        with shown.expect_request(re.compile(":predict$")) as first:
            shown.evaluate(type_age, ["1", "16", "16.", "16.5"])
        assert json.loads(first.value.post_data.replace("NaN", "null"))["inputs"]["age"] == [16.5]
        with answered(shown):
            shown.fill("#feature-age", "64")
        assert len(held) == 2
        newer = served.items({"timestamp": NOW, "age": 64.0})
        assert listed(shown) == newer
        old = {"item_id": [["1"]], "score": [[1.0]], "title": [["too late"]]}
        held[0].fulfill(json={"outputs": old})
        shown.wait_for_timeout(100)
        assert listed(shown) == newer


def test_it_needs_no_more_than_tf_serving_has_and_says_when_the_server_is_gone(
    small: Small, browser: Browser, tmp_path: Path
):
    base_path = tmp_path / MODEL
    shutil.copytree(small.outcome.answer["pushed"], base_path / "7")
    options = Options(MODEL, str(base_path), grpc_port=0, rest_port=0, page=None, enable_cors_support=True)
    file = tmp_path / "try.html"
    with Server(options) as server:
        assert http_request(server.rest_address, "GET", "/")[0] == 404
        address = f"http://{server.rest_address}"
        outcome = twotower(
            "page", "--output", str(file), "--server", address, "--model-name", MODEL,
            "--model-base-path", str(base_path), "--items", "5", "--users", "0",
        )  # fmt: skip
        assert outcome.code == 0 and outcome.answer["version"] == "7" and outcome.answer["items"] == 5, outcome.errors
        users = pq.read_table(base_path / "7" / "assets.extra" / "users.parquet")["user_id"].to_pylist()
        client = RestClient(server.rest_address, MODEL)
        asked: set[tuple[str, str]] = set()
        with page(browser, width=400, expected="Failed to load resource") as shown:
            shown.on("request", lambda request: asked.add((request.method, request.url)))
            shown.goto(file.as_uri())
            shown.wait_for_selector("#lists li")
            assert "titles of 5 of 80 items" in (shown.text_content("#notes") or "")
            shown.evaluate("document.querySelector('#features-section').open = true")
            with answered(shown):
                shown.fill("#feature-timestamp", "2021-10-18 12:26:40")
            pick(shown, users[0])
            answer = client.recommend_user([users[0]], {"timestamp": [NOW]})
            assert listed(shown) == answer["item_id"][0].tolist()[:SHOWN]
            with answered(shown):
                shown.fill("#history-add", "77")
                shown.press("#history-add", "Enter")
            answer = client.recommend_user([users[0]], {"timestamp": [NOW], "history": [["77"]]})
            assert listed(shown) == answer["item_id"][0].tolist()[:SHOWN]

            shown.fill("#feature-age", "old")
            shown.wait_for_selector("#error:not([hidden])")
            assert (shown.text_content("#error span") or "") == "age: “old” is not a number"
            assert shown.get_attribute("#feature-age", "aria-invalid") == "true"
            with answered(shown):
                shown.fill("#feature-age", "")
            assert not shown.locator("#error").is_visible()
            model = f"{address}/v1/models/{MODEL}"
            assert asked == {
                ("GET", file.as_uri()), ("GET", model), ("GET", f"{model}/versions/7/metadata"),
                ("POST", f"{model}/versions/7:predict"),
            }  # fmt: skip

            before = listed(shown)
            server.stop()
            gone = (
                f"No answer from {server.rest_address}: is it running, and may it be asked by other origins "
                "(--rest_api_enable_cors_support)?"
            )
            failures: list[str | None] = []
            shown.on("requestfailed", lambda request: failures.append(request.failure))
            again = shown.get_by_role("button", name="Try again")
            for number, ask in enumerate((lambda: shown.fill("#feature-age", "30"), again.click), start=1):
                with answered(shown):
                    ask()
                assert shown.text_content("#error span") == gone and again.is_visible()
                assert failures == ["net::ERR_CONNECTION_REFUSED"] * number
            assert listed(shown) == before and shown.evaluate("document.documentElement.scrollWidth") == 400


def held_in(content: bytes) -> dict[str, Any]:
    """What a page knows before it asks."""
    (data,) = re.findall(rb'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    return json.loads(data)


def test_a_page_holds_the_most_popular_titles_and_the_newest_users_and_what_their_histories_need(
    served: Served, tmp_path: Path
):
    file, folder = tmp_path / "f.html", served.base_path / str(NEW) / "assets.extra"
    arguments = ("--model-name", MODEL, "--model-base-path", str(served.base_path), "--output", str(file))
    assert twotower("page", *arguments, "--items", "7", "--users", "2").code == 0
    held = held_in(file.read_bytes())
    catalogue = pq.read_table(folder / "catalogue.parquet").to_pylist()
    users = pq.read_table(folder / "users.parquet").to_pylist()[:2]
    rows = sorted({*range(7), *(row for user in users for row in user["history"])})
    assert held["items"]["id"] == [catalogue[row]["item_id"] for row in rows]
    assert held["items"]["title"] == [catalogue[row]["returned"]["title"] for row in rows]
    genres = [[held["filters"]["genres"][number] for number in numbers] for numbers in held["items"]["genres"]]
    assert genres == [catalogue[row]["filterable"]["genres"] for row in rows]
    assert sorted(held["filters"]["genres"]) == sorted(world.TASTES), "of the whole catalogue"
    assert held["users"]["id"] == [user["user_id"] for user in users]
    histories = [[held["items"]["id"][place] for place in history] for history in held["users"]["history"]]
    assert histories == [[catalogue[row]["item_id"] for row in user["history"]] for user in users]
    assert held["users"]["features"]["age"] == [user["features"]["age"] for user in users]
    assert b"<img" not in file.read_bytes(), "no text of a table can end the element that holds it"


def test_the_server_has_pages_and_lets_other_origins_ask_only_where_it_is_told_to(served: Served, tmp_path: Path):
    address = served.url.split("/")[2]
    origin = {"Origin": "http://elsewhere"}
    status, content, headers = http_request(address, "GET", "/?model=small-world", headers=origin)
    assert status == 200 and held_in(content)["version"] == str(NEW)
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    status, content, _ = http_request(address, "GET", "/?model=other")
    assert status == 404 and "Servable not found" in json.loads(content)["error"]
    path = f"/v1/models/{MODEL}"
    assert "access-control-allow-origin" not in http_request(address, "GET", path, headers=origin)[2]
    assert http_request(address, "OPTIONS", f"{path}:predict")[0] == 400
    assert http_request(address, "OPTIONS", f"{path}:predict", headers=origin)[0] == 200

    (tmp_path / "empty").mkdir()
    options = Options(MODEL, str(tmp_path / "empty"), grpc_port=0, rest_port=0, page=Bounds(), enable_cors_support=True)
    with Server(options) as server:
        for method, where in (("GET", path), ("OPTIONS", f"{path}:predict"), ("POST", f"{path}:predict")):
            headers = http_request(server.rest_address, method, where, headers=origin)[2]
            assert headers["access-control-allow-origin"] == "*"
        status, content, headers = http_request(server.rest_address, "GET", "/", headers=origin)
        assert status == 404 and "access-control-allow-origin" not in headers, "histories are for its own origin"


def test_a_mistake_is_one_line(served: Served, tmp_path: Path):
    (tmp_path / "others" / "1").mkdir(parents=True)
    given = ("--model-name", MODEL, "--model-base-path", str(served.base_path))
    output = ("--output", str(tmp_path / "f.html"))
    broken = tmp_path / "broken"
    shutil.copytree(served.base_path / str(OLD) / "assets.extra", broken / "3" / "assets.extra")
    (broken / "3" / "assets.extra" / "catalogue.parquet").write_bytes(b"nonsense")
    for arguments, words in (
        ((*given, "--output", str(tmp_path / "none" / "f.html")), "cannot be written: No such file"),
        ((*given, *output, "--server", "localhost:8501"), "--server localhost:8501: expected http://HOST:PORT"),
        ((*given, *output, "--server", "http://h; script-src *"), "expected http://HOST:PORT"),
        (("--model-name", MODEL, "--model-base-path", str(tmp_path / "none"), *output), "has no version; push a model"),
        (("--model-name", MODEL, "--model-base-path", str(tmp_path / "others"), *output), "versions of this pipeline"),
        (("--model-name", MODEL, "--model-base-path", str(broken), *output), "no page can be made of the files"),
    ):
        outcome = twotower("page", *arguments)
        assert outcome.code == 2 and words in outcome.errors, outcome.errors
        assert outcome.errors.count("\n") == 1
    assert not list(tmp_path.glob("f.html*"))
