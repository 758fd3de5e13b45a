"""`twotower init`: what it decides for tables whose answer is known, and that the file it writes is right for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
import yaml
from e2e_runs import Outcome, twotower

from modules.data.profiles import Profile, words
from pipeline.config import load
from pipeline.proposal import encodings

DAY = 86_400
START = 1_600_000_000


def init(folder: Path, *arguments: str, **tables: dict[str, list[Any]]) -> Outcome:
    """Writes tables as Parquet and asks for a configuration."""
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    paths = [a for name in tables for a in (f"--{name}", str(folder / f"{name}.parquet"))]
    return twotower("init", *paths, "--output", str(folder / "my.yaml"), *arguments)


def encoded(answer: dict[str, Any]) -> dict[str, str]:
    """Column → encoding, of both towers."""
    features = answer["features"]["query"] + answer["features"]["candidate"]
    return {each.get("column", each["encoding"]): each["encoding"] for each in features}


def shop(users: int = 6, each: int = 5) -> dict[str, dict[str, list[Any]]]:
    """Orders of a shop, under names of its own; nobody buys a thing twice."""
    rows = [(u, (u + n) % 8, n) for u in range(users) for n in range(each)]
    return {
        "interactions": {
            "customer": [f"c{u}" for u, _, _ in rows],
            "sku": [f"s{i}" for _, i, _ in rows],
            "ordered_at": [START + n * DAY + u for u, _, n in rows],
        },
        "items": {"sku": [f"s{i}" for i in range(8)], "name": [f"thing number {i}" for i in range(8)]},
        "users": {"customer": [f"c{u}" for u in range(users)], "vip": [u % 2 == 0 for u in range(users)]},
    }


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_small_world_is_described_as_a_person_would(tmp_path: Path, suffix: str):
    (world.write_parquet if suffix == "parquet" else world.write_csv)(tmp_path)
    paths = [a for name in ("interactions", "items", "users") for a in (f"--{name}", f"{tmp_path}/{name}.{suffix}")]
    outcome = twotower("init", *paths, "--output", str(tmp_path / "my.yaml"), "--name", "small-world")
    assert outcome.code == 0, outcome.errors
    answer = outcome.answer
    roles = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "item_id": "item_id", "user_id": "user_id",
             "title": "title", "weight": None, "has_times": True}  # fmt: skip
    assert answer["roles"] == roles
    assert encoded(answer) == {
        "history": "history", "history_age": "history_age", "timestamp": "timestamp", "age": "bucketized",
        "gender": "vocabulary", "occupation": "vocabulary", "item_id": "vocabulary", "title": "text",
        "genres": "vocabulary", "price": "bucketized",
    }  # fmt: skip
    left_out = answer["left_out"]["interactions"]
    assert "14.0 interactions for each user" in left_out["user_id"] and "after it" in left_out["rating"]
    assert answer["check"]["errors"] == 0
    config = load(str(tmp_path / "my.yaml"))
    assert config.serving.k == 80 and config.evaluation.k == (10, 50), "there are 80 films"
    assert config.serving.exclude_history and config.serving.filter_columns == ("genres",)
    # Comments are for people; without them the file says what --json says.
    assert yaml.safe_load((tmp_path / "my.yaml").read_text()) == answer["configuration"]
    assert twotower("check", "--config", str(tmp_path / "my.yaml")).code == 0


def test_every_choice_has_its_reason_in_the_file(tmp_path: Path):
    tables = shop(60)
    # The tenth of the time that is the latest has a tenth of the users.
    tables["interactions"]["ordered_at"] = [START + (n // 5) * 30 * DAY + n % 5 for n in range(300)]
    outcome = init(tmp_path, **tables)
    text = (tmp_path / "my.yaml").read_text()
    for choice in outcome.answer["features"]["query"] + outcome.answer["features"]["candidate"]:
        assert choice["reason"] in text
    assert all(reason.split(":")[0] in text for reason in outcome.answer["reasons"].values())
    for columns in outcome.answer["left_out"].values():
        assert all(column in text for column in columns)
    assert outcome.answer["unsure"] and all(f"# - {doubt[:60]}" in text for doubt in outcome.answer["unsure"])


NAMED = {"user": "customer", "item": "sku", "timestamp": "ordered_at"}


@pytest.mark.parametrize("names", [
    {"customer": "CustomerID", "sku": "ProductId", "ordered_at": "event_time"},
    {"customer": "visitorid", "sku": "itemid", "ordered_at": "ts"},
    {"customer": "person", "sku": "parent_asin", "ordered_at": "date"},
    # Names that say nothing: the values decide.
    {"customer": "a", "sku": "b", "ordered_at": "c"},
])  # fmt: skip
def test_roles_are_found_by_name_or_by_what_tables_have_in_common(tmp_path: Path, names: dict[str, str]):
    tables = {t: {names.get(c, c): v for c, v in columns.items()} for t, columns in shop().items()}
    outcome = init(tmp_path, **tables)
    assert outcome.code == 0, outcome.errors
    assert {role: outcome.answer["roles"][role] for role in NAMED} == {role: names[c] for role, c in NAMED.items()}
    by_values = any("because of its values" in doubt for doubt in outcome.answer["unsure"])
    assert by_values == (names["sku"] == "b")


def test_ids_may_be_called_and_written_differently_in_two_tables(tmp_path: Path):
    tables = shop()
    tables["interactions"]["sku"] = [int(sku[1:]) for sku in tables["interactions"]["sku"]]
    tables["items"] = {"id": [f"{i}" for i in range(8)], "name": tables["items"]["name"]}
    roles = init(tmp_path, **tables).answer["roles"]
    assert (roles["item"], roles["item_id"]) == ("sku", "id")


def changed(table: str, column: str, values: list[Any] | None, *, name: str | None = None) -> Any:
    tables = shop()
    old = tables[table].pop(column)
    if values is not None or name is not None:
        tables[table][name or column] = values if values is not None else old
    return tables


N = 30
UNCLEAR = {
    "two columns could be the item": (
        {**changed("interactions", "sku", None), "items": {"x": list(range(8)), "y": list(range(8))}}
        | {"interactions": {"p": [n % 8 for n in range(N)], "q": [(n + 1) % 8 for n in range(N)],
                            "customer": shop()["interactions"]["customer"], "time": [START + n for n in range(N)]}},
        ["--items", "--item and --item-id", "'p' with 'x'"],
    ),
    "no ids in common": (changed("items", "sku", [f"other{i}" for i in range(8)]), ["--items", "the same ids?"]),
    "no time": (changed("interactions", "ordered_at", None), ["--interactions", "--timestamp", "'customer', 'sku'"]),
    "milliseconds": (
        changed("interactions", "ordered_at", [START * 1000 + n for n in range(N)]), ["'ordered_at'", "by 1000"],
    ),
    "two times": (
        changed("interactions", "customer", [START + n for n in range(N)], name="paid_at"), ["'ordered_at', 'paid_at'"],
    ),
    "no rows": (shop() | {"items": {"sku": pa.array([], pa.string())}}, ["--items", "no rows"]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_cannot_be_decided_is_one_line_with_the_option(tmp_path: Path, case: str):
    tables, said = UNCLEAR[case]
    outcome = init(tmp_path, **tables)
    assert outcome.code == 2 and outcome.errors.count("\n") == 1 and "Traceback" not in outcome.errors
    assert all(word in outcome.errors for word in said), outcome.errors
    assert not (tmp_path / "my.yaml").exists()


def test_options_decide_what_is_unclear_and_must_name_a_column(tmp_path: Path):
    tables, _ = UNCLEAR["two columns could be the item"]
    outcome = init(tmp_path, "--item", "q", "--item-id", "y", **tables)
    assert (outcome.answer["roles"]["item"], outcome.answer["roles"]["item_id"]) == ("q", "y")
    outcome = init(tmp_path, "--force", "--item", "nosuch", **tables)
    assert outcome.code == 2 and "--item nosuch" in outcome.errors and "'p'" in outcome.errors


def test_a_file_is_not_overwritten_without_force(tmp_path: Path):
    (tmp_path / "my.yaml").write_text("mine")
    outcome = init(tmp_path, **shop())
    assert outcome.code == 2 and "--force" in outcome.errors
    assert (tmp_path / "my.yaml").read_text() == "mine"
    assert init(tmp_path, "--force", **shop()).code == 0
    assert load(str(tmp_path / "my.yaml")).tables.interactions.user == "customer"


def test_columns_that_cannot_be_features_are_left_out_with_the_loaders_words(tmp_path: Path):
    tables = shop()
    tables["items"] |= {"Größe in cm": [n * 1.5 for n in range(8)], "vip": ["x", "y"] * 4, "parts": [{"a": 1}] * 8}
    left_out = init(tmp_path, **tables).answer["left_out"]["items"]
    assert "letters from a to z" in left_out["Größe in cm"]
    assert "described twice" in left_out["vip"], "the users table has the name already"
    assert "struct" in left_out["parts"]


def test_a_music_service_repeats_and_its_answers_may(tmp_path: Path):
    songs = {"user_id": [], "track_id": [], "time": []}
    for user in range(4):
        for n in range(10):
            songs["user_id"].append(user)
            songs["track_id"].append(n % 3)
            songs["time"].append(START + n * DAY + user)
    outcome = init(tmp_path, interactions=songs, items={"track_id": list(range(5)), "title": list("abcde")})
    assert outcome.answer["configuration"]["serving"]["exclude_history"] is False
    # Of ten plays of three tracks seven repeat one.
    assert "70.0% of the interactions repeat" in outcome.answer["reasons"]["serving.exclude_history"]
    assert outcome.answer["check"]["errors"] == 0


@pytest.mark.parametrize(("users", "order", "strategy"), [(600, False, "temporal"), (6, False, "temporal"),
                                                         (600, True, "leave_last_out")])  # fmt: skip
def test_the_split_is_temporal_where_there_are_times(tmp_path: Path, users: int, order: bool, strategy: str):
    tables = shop(users)
    if order:
        tables["interactions"]["ordered_at"] = [n % 5 for n in range(5 * users)]
    outcome = init(tmp_path, **tables)
    assert outcome.answer["configuration"]["split"]["strategy"] == strategy, outcome.answer["reasons"]["split"]
    assert ("history_age" in encoded(outcome.answer)) is not order
    assert outcome.answer["check"]["errors"] == 0


def test_few_users_in_the_last_weeks_are_judged_by_their_last_item(tmp_path: Path):
    """As MovieLens-100K: everybody rates on one day, and the last tenth of the time has a tenth of the users."""
    tables = shop(60)
    times = [START + (n // 5) * 30 * DAY + n % 5 for n in range(300)]
    tables["interactions"]["ordered_at"] = times
    outcome = init(tmp_path, **tables)
    assert outcome.answer["configuration"]["split"]["strategy"] == "leave_last_out"
    assert "temporal split leaves 6 users to judge by, this one 60" in outcome.answer["reasons"]["split"]


COLUMNS: dict[str, tuple[list[Any], dict[str, Any] | str]] = {
    "empty": ([None] * 40, "every cell is empty"),
    "constant": (["x"] * 40, "one value"),
    "mostly_empty": ([None] * 98 + ["x", "y"], "98% of the cells"),
    "colour": (["red", "blue", "green", None] * 10, {"encoding": "vocabulary"}),
    "genres": (["a|b", "b", "c|a", "b|c|a"] * 10, {"encoding": "vocabulary", "separator": "|", "max_values": 3}),
    "tags": ([["a", "b"], ["c"]] * 20, {"encoding": "vocabulary", "multivalued": True, "max_values": 2}),
    "title": ([f"The film, part {n}" for n in range(40)], {"encoding": "text", "max_tokens": 4}),
    "serial": ([f"x{n}" for n in range(40)], "value of its own"),
    "zip_code": ([f"0{n:04}" for n in range(8)] * 5, {"encoding": "vocabulary"}),
    "category_id": ([n * 37 for n in range(15)] * 4, {"encoding": "vocabulary"}),
    "is_new": ([True, False] * 20, {"encoding": "vocabulary"}),
    "year": ([1960 + n % 40 for n in range(80)], {"encoding": "bucketized", "buckets": 10}),
    "price": ([1.0 * 1.5 ** (n % 20) for n in range(80)], {"encoding": "log1p"}),
    "rating_text": ([str(n % 5) for n in range(40)], {"encoding": "vocabulary"}),
    "released": ([f"2020-01-{1 + n % 28:02}" for n in range(40)], {"encoding": "timestamp"}),
    "updated": ([START + n * DAY for n in range(40)], {"encoding": "timestamp"}),
    "cover": ([f"https://x.example/{n}.jpg" for n in range(40)], "addresses"),
    "json": (["['a', 'b']", "['c']"] * 20, "separator"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_encoded_by_what_it_holds(name: str):
    values, expected = COLUMNS[name]
    profile = Profile("items", name)
    for batch in np.array_split(np.arange(len(values)), 3):
        profile.add(pa.array([values[n] for n in batch]))
    choice = encodings.choose(profile)
    if isinstance(expected, str):
        assert choice.fields is None and expected in choice.reason, choice
    else:
        assert choice.fields == {"column": name, **expected}, choice


def test_what_is_known_of_an_interaction_only_later_is_no_feature():
    device, stars = Profile("interactions", "device"), Profile("interactions", "stars")
    device.add(pa.array(["app", "web"] * 10))
    stars.add(pa.array([1, 2] * 10))
    assert encodings.choose_context(device).fields == {"column": "device", "encoding": "vocabulary"}
    assert encodings.choose_context(stars).fields is None


def test_names_are_read_as_words():
    assert [words(name) for name in ("userId", "USER_ID", "user id", "ordered_at", "größe:1")] == [
        ["user", "id"], ["user", "id"], ["user", "id"], ["ordered", "at"], ["größe", "1"],
    ]  # fmt: skip
