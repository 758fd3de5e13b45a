"""What is taken of users from the tables, and what becomes of it, beside a plain count over the rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.data.tables import Column
from modules.data.user_tables import UserTables
from modules.encodings.features import Columns, Features
from modules.errors import UserError
from modules.servable import user_snapshot
from modules.servable.user_snapshot import Taken, UserSnapshot, take, updated
from modules.settings import Interactions, Items, Tables, Users

COLUMNS = Columns(user="user_id", item="item_id", timestamp="timestamp")
LENGTH = 3
FEATURES = Features.model_validate(
    {
        "query": [
            {"encoding": "vocabulary", "column": "gender"},
            {"encoding": "vocabulary", "column": "tags", "multivalued": True},
            {"encoding": "history", "max_length": LENGTH},
        ],
        "candidate": [{"encoding": "vocabulary", "column": "item_id"}],
    }
)
ATTRIBUTES = [Column(name="gender", source="gender"), Column(name="tags", source="tags", multivalued=True)]
CATALOGUE = ["c", "a", "b", "d"]

Row = tuple[str, str, int]


def tables(folder: Path, rows: list[Row], users: list[dict[str, Any]] = ()) -> UserTables:  # type: ignore[assignment]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    kinds = (pa.string(), pa.string(), pa.int64())
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, kinds, strict=True)]
    pq.write_table(pa.table(arrays, ["user_id", "item_id", "timestamp"]), folder / "interactions.parquet")
    schema = pa.schema([("user_id", pa.string()), ("gender", pa.string()), ("tags", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pylist(list(users), schema), folder / "users.parquet")
    described = Tables(
        interactions=Interactions(path=str(folder / "interactions.parquet")),
        items=Items(path="none"),
        users=Users(path=str(folder / "users.parquet")),
    )
    return UserTables(described, ATTRIBUTES)


def taken(folder: Path, rows: list[Row], users: list[dict[str, Any]] = (), count: int = 100) -> Taken:  # type: ignore[assignment]
    return take(tables(folder, rows, users), ATTRIBUTES, CATALOGUE, FEATURES, COLUMNS, count)


def added(
    old: UserSnapshot, folder: Path, rows: list[Row], users: list[dict[str, Any]] = (), count: int = 100
) -> Taken:  # type: ignore[assignment]
    known = tables(folder, rows, users)
    return updated(old, known, known.everything(), CATALOGUE, FEATURES, count, "--interactions")


def known(snapshot: UserSnapshot, catalogue: list[str] = CATALOGUE) -> dict[str, tuple[list[str], int | None]]:
    return {
        row["user_id"]: ([catalogue[i] for i in row["history"]], row["newest"]) for row in snapshot.table.to_pylist()
    }


def expected(rows: list[Row], count: int = 100) -> dict[str, tuple[list[str], int]]:
    """The newest users with their newest items, by sorting."""
    of_user: dict[str, list[tuple[int, str]]] = {}
    for user, item, time in rows:
        if item in CATALOGUE:
            of_user.setdefault(user, []).append((time, item))
    for pairs in of_user.values():
        pairs.sort(key=lambda pair: pair[0])
    newest = sorted(of_user, key=lambda user: -of_user[user][-1][0])[:count]
    return {user: ([item for _, item in of_user[user]][-LENGTH:], of_user[user][-1][0]) for user in newest}


some_rows = st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcd?"), st.integers(0, 9)), max_size=30)
hypothesis = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(some_rows, st.integers(1, 5))
@hypothesis
def test_the_newest_items_of_the_users_with_the_newest_interactions_are_taken(
    tmp_path: Path, rows: list[Row], count: int
) -> None:
    if all(item == "?" for _, item, _ in rows):
        with pytest.raises(UserError, match="no user is known"):
            taken(tmp_path, rows, count=count)
        return
    found = taken(tmp_path, rows, count=count)
    assert known(found.users) == expected(rows, count)
    assert list(known(found.users)) == list(expected(rows, count)), "the newest first"
    assert (found.interactions, found.unknown) == (
        sum(item != "?" for _, item, _ in rows),
        sum(item == "?" for _, item, _ in rows),
    )


@given(some_rows, st.integers(0, 30), st.integers(0, 30))
@hypothesis
def test_an_update_gives_what_all_rows_at_once_would_give_and_twice_is_as_once(
    tmp_path: Path, rows: list[Row], cut: int, overlap: int
) -> None:
    """As long as no row of the update is older than what is known of its user; those known already may come again."""
    # Each time once, in order: no two interactions could be exchanged.
    rows = [(user, item, time) for time, (user, item, _) in enumerate(rows)]
    first, later = [("u", "a", -1), *rows[:cut]], rows[max(0, cut - overlap) :]
    old = taken(tmp_path, first).users
    found = added(old, tmp_path, later)
    assert known(found.users) == expected([("u", "a", -1), *rows])
    again = added(found.users, tmp_path, later)
    assert known(again.users) == known(found.users) and again.interactions == 0
    assert found.interactions == sum(item != "?" for _, item, _ in rows[cut:])


def test_of_what_is_as_late_as_the_newest_only_other_items_are_news(tmp_path: Path) -> None:
    old = taken(tmp_path, [("u", "a", 1), ("u", "b", 5)]).users
    found = added(old, tmp_path, [("u", "b", 5), ("u", "c", 5), ("u", "d", 4)])
    assert known(found.users) == {"u": (["a", "b", "c"], 5)} and found.interactions == 1


def test_features_are_kept_completed_and_replaced(tmp_path: Path) -> None:
    """Users without interactions come last, while there is room."""
    users = [
        {"user_id": "v", "gender": "F", "tags": ["x", "y"]},
        {"user_id": "idle", "gender": None, "tags": ["z"]},
        {"user_id": "w", "gender": "M", "tags": None},
    ]
    rows = [("u", "a", 1), ("v", "b", 2), ("w", "c", 3)]
    old = taken(tmp_path, rows, users).users
    assert old.user_ids == ["w", "v", "u", "idle"] and old.feature_columns == ("gender", "tags") and old.newest == 3
    assert old.feature("gender").to_pylist() == ["M", "F", None, None]
    assert old.feature("tags").to_pylist() == [None, ["x", "y"], None, ["z"]]
    assert taken(tmp_path, rows, users, count=2).users.user_ids == ["w", "v"]

    found = added(old, tmp_path, [("u", "d", 9)], [{"user_id": "v", "gender": "D", "tags": None}]).users
    assert found.user_ids == ["u", "w", "v", "idle"]
    assert found.feature("gender").to_pylist() == [None, "M", "D", None]
    assert found.feature("tags").to_pylist() == [None, None, ["x", "y"], ["z"]], "what is not said is as it was"
    assert known(found) == {"u": (["a", "d"], 9), "w": (["c"], 3), "v": (["b"], 2), "idle": ([], None)}


def test_another_catalogue_keeps_what_it_has_of_each_history(tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = [(f"u{chance.randrange(20)}", chance.choice(CATALOGUE), time) for time in range(60)] + [("only", "b", 60)]
    old = taken(tmp_path, rows).users
    new = ["new", "d", "a", "newer", "c"]
    moved = old.with_catalogue(CATALOGUE, new)
    before, after = known(old), known(moved, new)
    assert after == {user: ([i for i in items if i != "b"], newest) for user, (items, newest) in before.items()}
    assert after["only"] == ([], 60)


def test_the_file_says_all_of_it(tmp_path: Path) -> None:
    snapshot = taken(tmp_path, [("u", "a", 1), ("é", "b", 2)], [{"user_id": "u", "gender": "F", "tags": ["x"]}]).users
    user_snapshot.write(str(tmp_path), snapshot)
    again = user_snapshot.read(str(tmp_path))
    assert again.table.equals(snapshot.table) and again.columns == COLUMNS
    (tmp_path / user_snapshot.USERS_PATH).unlink()
    with pytest.raises(UserError, match=r"users\.parquet cannot be read"):
        user_snapshot.read(str(tmp_path))


def test_an_id_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tables\.interactions: user id 'a\\nb' has a line break; correct it, or set"):
        taken(tmp_path, [("a\nb", "a", 1)])
