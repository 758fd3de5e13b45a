"""The second stage: features that know no future, a model that is judged by users it has not seen, the last rules."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.ranking import __main__ as benchmark
from benchmarks.ranking import last_stage, ranker
from benchmarks.ranking.features import DAY, features


@pytest.fixture
def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Candidates, queries, interactions and users of a world of 12 items."""
    rng = np.random.default_rng(5)
    rows = [
        {"user": f"u{user}", "item": f"i{item}", "timestamp": int(10 * DAY + time * DAY)}
        for user in range(8)
        for item, time in zip(rng.permutation(12)[:6], np.sort(rng.integers(0, 300, 6)), strict=True)
    ]
    interactions = pd.DataFrame(rows)
    queries, candidates = [], []
    for user, of_user in interactions.groupby("user"):
        *history, last = of_user.to_dict("records")
        seen = [row["item"] for row in history]
        queries.append({"query": f"{user}/0", "user": user, "time": last["timestamp"], "history": seen,
                        "relevant_items": [last["item"]]})  # fmt: skip
        for rank, item in enumerate((f"i{n}" for n in range(12) if f"i{n}" not in seen), 1):
            candidates.append({"query": f"{user}/0", "user": user, "time": last["timestamp"], "item": item,
                               "rank": rank, "score": -float(rank), "label": int(item == last["item"]), "weight": 1.0,
                               "query_age": 30.0, "query_gender": "F", "query_history_age": 5.0,
                               "item_genres": [f"g{int(item[1:]) % 3}"], "item_release_year": 1990.0})  # fmt: skip
    users = pd.DataFrame([{"user": f"u{n}", "gender": "FM"[n % 2], "age": 20 + n} for n in range(8)])
    return pd.DataFrame(candidates), pd.DataFrame(queries), interactions, users


def test_features_count_what_was_there_before_the_query(tables):
    candidates, queries, interactions, users = tables
    found = features(candidates, queries, interactions, users)
    for (_, row), values in zip(candidates.iterrows(), found.to_dict("records"), strict=True):
        earlier = interactions[(interactions["timestamp"] < row["time"]) & (interactions["user"] != row["user"])]
        of_item = earlier[earlier["item"] == row["item"]]
        assert values["popularity"] == pytest.approx(np.log1p(len(of_item)))
        month = of_item["timestamp"] >= row["time"] - 30 * DAY
        assert values["recent_month"] == pytest.approx(np.log1p(month.sum()))
        if len(of_item):
            first = (row["time"] - of_item["timestamp"].min()) / DAY
            assert values["days_since_first"] == pytest.approx(first)
        else:
            assert np.isnan(values["days_since_first"])
        [query] = queries[queries["query"] == row["query"]].to_dict("records")
        genre = row["item_genres"][0]
        share = np.mean([f"g{int(item[1:]) % 3}" == genre for item in query["history"]])
        assert values["genres"] == pytest.approx(share)
        newest, followers = query["history"][-1], 0
        for _, of_user in earlier.groupby("user"):
            items = of_user["item"].tolist()
            followers += sum(
                item == row["item"] and newest in items[max(0, place - 5) : place] for place, item in enumerate(items)
            )
        assert values["followers_1"] == pytest.approx(np.log1p(followers))


def test_features_depend_on_neither_labels_nor_the_future(tables):
    candidates, queries, interactions, users = tables
    first = queries.sort_values("time").iloc[0]
    rows = candidates[candidates["query"] == first["query"]]
    one = queries[queries["query"] == first["query"]]
    before = features(rows, one, interactions, users)
    others = [user for user in users["user"] if user != first["user"]]
    later = pd.DataFrame({"user": others[0], "item": [f"i{n}" for n in range(12)], "timestamp": first["time"]})
    own = pd.DataFrame({"user": first["user"], "item": rows["item"], "timestamp": first["time"] - 1})
    swapped = rows.assign(label=1 - rows["label"])
    one = one.assign(relevant_items=[["i0"]])
    after = features(swapped, one, pd.concat([interactions, later, own], ignore_index=True), users)
    pd.testing.assert_frame_equal(before, after)


def test_a_model_corrects_the_retrieval_for_users_that_it_has_not_seen():
    rng = np.random.default_rng(1)
    rows = []
    for query in range(150):
        told = rng.normal(size=12)
        label = np.arange(12) == np.argmax(told)
        rows += [{"user": f"u{query}", "query": f"u{query}/0", "item": f"i{n}", "rank": n + 1, "score": -0.1 * n,
                  "label": int(label[n]), "weight": 1.0, "told": told[n]} for n in range(12)]  # fmt: skip
    table = pd.DataFrame(rows)
    scores = ranker.held_out_scores(table, table[["told"]], rounds=20)
    relevant = {key: set(some["item"][some["label"] == 1]) for key, some in table.groupby("query")}
    user_of = {key: key.removesuffix("/0") for key in relevant}
    retrieved, ranked = (
        benchmark.ndcg(benchmark.rankings(table, by), relevant, user_of) for by in (table["score"].to_numpy(), scores)
    )
    assert ranked.mean() > retrieved.mean() + 0.1
    # A user's own queries have no part in the model that ranks them.
    held_out = ranker.fold_of(table["user"].tolist()) == 0
    changed = table.assign(label=np.where(held_out, 1 - table["label"], table["label"]))
    np.testing.assert_array_equal(
        ranker.held_out_scores(changed, table[["told"]], rounds=20)[held_out], scores[held_out]
    )


def test_ndcg_counts_what_was_not_retrieved():
    relevant = {"a/0": {"x"}, "b/0": {"y", "z"}, "c/0": {"gone"}, "d/0": set()}
    user_of = {"a/0": "a", "b/0": "b", "c/0": "b", "d/0": "b"}
    values = benchmark.ndcg({"a/0": ["p", "x"], "b/0": ["y", "q", "z"]}, relevant, user_of)
    ideal = 1 + 1 / np.log2(3)
    np.testing.assert_allclose(values, [1 / np.log2(3), (1.5 / ideal + 0) / 2])


def test_the_last_stage_lets_nothing_pass_that_a_rule_forbids():
    genres = {"a": ["x"], "b": ["x", "y"], "c": ["x"], "d": ["y"], "e": [], "f": ["y"]}
    assert last_stage.answer("abcdef", 4, values=genres, most=2) == ["a", "b", "d", "e"]
    assert last_stage.answer("abcdef", 3, seen={"a"}, in_stock={"a", "c", "f", "b"}) == ["b", "c", "f"]
    assert last_stage.answer("abcdef", 10, values=genres, most=1) == ["a", "d", "e"]
    assert last_stage.answer("ab", 5) == ["a", "b"]
