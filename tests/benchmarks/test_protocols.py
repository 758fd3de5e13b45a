"""What each cut holds out: nothing twice, nothing from the future, nothing of who or what is cold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import world

from benchmarks.quality.protocols import PROTOCOLS, TEST_SHARE, Carved, carve


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The small world in a mixed order, with repeated rows and many equal times."""
    rows = pd.DataFrame(world.interactions()).rename(columns={"user_id": "user", "item_id": "item"})
    rows = pd.concat([rows, rows.iloc[:50]]).astype({"user": str, "item": str})
    rows["timestamp"] = rows["timestamp"] // (86400 * 5) * 86400 * 5
    return rows.sample(frac=1, random_state=3).reset_index(drop=True)[["user", "item", "timestamp"]]


def cut(table: pd.DataFrame, protocol: str) -> Carved:
    return carve(table, protocol, 5, TEST_SHARE[protocol])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_row_is_in_two_parts_and_none_changes(table: pd.DataFrame, protocol: str) -> None:
    found = cut(table, protocol)
    assert not set(found.train.index) & set(found.test.index)
    assert not set(found.history.index) & set(found.test.index)
    assert len(found.test)
    for part in (found.train, found.test, found.history):
        pd.testing.assert_frame_equal(part, table.loc[part.index])
        assert part.index.is_monotonic_increasing
    if protocol == "cold-users":
        assert not set(found.train.index) & set(found.history.index)
    else:
        # All rows are used, and only what may be learned from is brought along.
        assert len(found.train) + len(found.test) == len(table)
        assert set(found.history.index) <= set(found.train.index)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_query_is_asked_when_its_history_is_over_and_wants_what_is_new(table: pd.DataFrame, protocol: str) -> None:
    found = cut(table, protocol)
    asked, relevant = found.queries(), found.relevant()
    assert set(asked["user"]) == set(found.test["user"])
    assert asked["user"].is_unique
    for user, time in zip(asked["user"], asked["timestamp"], strict=True):
        before, after = (part[part["user"] == user] for part in (found.history, found.test))
        assert time == max([after["timestamp"].min(), *before["timestamp"]])
        wanted = set(after["item"]) - set(before["item"])
        assert relevant.get(user, set()) == wanted


def test_random_is_a_permutation_of_the_rows(table: pd.DataFrame) -> None:
    found = cut(table, "random")
    order = np.random.default_rng(5).permutation(len(table))
    assert set(found.train.index) == set(order[: len(table) - round(0.2 * len(table))])
    again, other = (carve(table, "random", draw, 0.2).test.index for draw in (5, 6))
    assert list(again) == list(found.test.index)
    assert list(other) != list(again)


def test_leave_last_out_takes_the_last_of_each_user_equal_times_in_the_tables_order(table: pd.DataFrame) -> None:
    few = pd.DataFrame({"user": "few", "item": ["1", "2"], "timestamp": [1, 2]})
    table = pd.concat([table, few], ignore_index=True)
    found = cut(table, "leave-last-out")
    for user, rows in table.groupby("user"):
        last = max(rows.index, key=lambda row: (rows.at[row, "timestamp"], row))
        assert list(found.test.index[found.test["user"] == user]) == ([last] if user != "few" else [])


def test_temporal_holds_out_the_latest_and_keeps_equal_times_together(table: pd.DataFrame) -> None:
    found = cut(table, "temporal")
    assert found.train["timestamp"].max() < found.test["timestamp"].min()
    assert 0.05 < len(found.test) / len(table) < 0.2


def test_cold_users_are_not_in_train_and_are_asked_for_their_last_fifth(table: pd.DataFrame) -> None:
    found = cut(table, "cold-users")
    cold = set(found.test["user"])
    assert len(cold) == round(0.2 * table["user"].nunique())
    assert not cold & set(found.train["user"])
    for user in cold:
        before, after = (part[part["user"] == user] for part in (found.history, found.test))
        assert before["timestamp"].max() <= after["timestamp"].min()
        assert len(before) == int(np.ceil(0.8 * (len(before) + len(after))))


def test_cold_items_are_not_in_train(table: pd.DataFrame) -> None:
    found = cut(table, "cold-items")
    assert found.candidates is not None
    assert len(found.candidates) == round(0.1 * table["item"].nunique())
    assert set(found.test["item"]) == set(found.candidates)
    assert not set(found.candidates) & set(found.train["item"])
