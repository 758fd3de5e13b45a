"""The second stage: features that know no future, a model that is judged on queries it has not seen, the last rules."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from benchmarks.ranking import __main__ as benchmark
from benchmarks.ranking import last_stage
from benchmarks.ranking.features import DAY, features
from benchmarks.ranking.ranker import Ranker


@pytest.fixture
def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Candidates, queries and interactions of a world of 12 items; the queries are each user's last three."""
    rng = np.random.default_rng(5)
    rows = [
        {"user": f"u{user}", "item": f"i{item}", "timestamp": int(10 * DAY + time * DAY), "rating": float(stars)}
        for user in range(8)
        for item, time, stars in zip(
            rng.permutation(12)[:6], np.sort(rng.integers(0, 60, 6)), rng.integers(1, 6, 6), strict=True
        )
    ]
    interactions = pd.DataFrame(rows)
    queries, candidates = [], []
    for user, of_user in interactions.groupby("user"):
        own = of_user.to_dict("records")
        for number, asked in enumerate(range(3, 6)):
            key, seen, relevant = f"{user}/{number}", [row["item"] for row in own[:asked]], own[asked]
            queries.append({"query": key, "user": user, "time": relevant["timestamp"], "history": seen,
                            "relevant_items": [relevant["item"]]})  # fmt: skip
            for rank, item in enumerate((f"i{n}" for n in range(12) if f"i{n}" not in seen), 1):
                candidates.append({"query": key, "user": user, "time": relevant["timestamp"], "item": item,
                                   "rank": rank, "score": -float(rank), "label": int(item == relevant["item"]),
                                   "weight": 1.0, "query_age": 30.0, "query_history_age": 5.0,
                                   "item_genres": [f"g{int(item[1:]) % 3}"],
                                   "item_release_year": 1990.0 + int(item[1:])})  # fmt: skip
    return pd.DataFrame(candidates), pd.DataFrame(queries), interactions


def test_features_count_what_was_there_before_the_query(tables):
    candidates, queries, interactions = tables
    found = features(candidates, queries, interactions)
    stars = interactions.set_index(["user", "item"])["rating"]
    for place in range(0, len(candidates), 7):
        row, values = candidates.iloc[place], found.iloc[place].to_dict()
        earlier = interactions[interactions["timestamp"] < row["time"]]
        of_item = earlier[earlier["item"] == row["item"]]
        assert values["popularity"] == pytest.approx(np.log1p(len(of_item)))
        mean = (of_item["rating"].sum() + 10 * earlier["rating"].mean()) / (len(of_item) + 10) if len(earlier) else 0
        assert values["stars"] == pytest.approx(mean)
        if len(of_item):
            assert values["days_since_first"] == pytest.approx((row["time"] - of_item["timestamp"].min()) / DAY)
        else:
            assert np.isnan(values["days_since_first"])
        [query] = queries[queries["query"] == row["query"]].to_dict("records")
        history = query["history"]
        genre = row["item_genres"][0]
        assert values["genres"] == pytest.approx(np.mean([f"g{int(item[1:]) % 3}" == genre for item in history]))
        assert values["own_stars"] == pytest.approx(np.mean([stars[row["user"], item] for item in history]))
        people = [of_user for _, of_user in earlier.groupby("user")]
        took = [set(of_user["item"]) for of_user in people]
        counts = pd.Series([item for items in took for item in items], dtype=object).value_counts()
        alike = [
            sum({item, row["item"]} <= items for items in took)
            / np.sqrt((counts.get(item, 0) + 5) * (counts.get(row["item"], 0) + 5))
            for item in history
        ]
        assert values["alike"] == pytest.approx(np.mean(alike))
        followers = sum(
            item == row["item"] and history[-1] in of_user["item"].tolist()[max(0, place - 5) : place]
            for of_user in people
            for place, item in enumerate(of_user["item"])
        )
        assert values["followers_1"] == pytest.approx(followers / np.sqrt(len(of_item) + 20))


def test_features_depend_on_neither_labels_nor_the_future(tables):
    candidates, queries, interactions = tables
    before = features(candidates, queries, interactions)
    asked = queries.set_index("query")["time"]
    for key in (queries.sort_values("time")["query"].iloc[place] for place in (0, 12)):
        ours = candidates["query"] == key
        # All that happens from the query's second on is another world; its history, which is in it, stays.
        [query] = queries[queries["query"] == key].to_dict("records")
        own = (interactions["user"] == query["user"]) & interactions["item"].isin(query["history"])
        known = interactions[(interactions["timestamp"] < asked[key]) | own]
        rest = interactions.drop(known.index)
        later = rest.assign(item=rest["item"].to_numpy()[::-1], rating=6 - rest["rating"])
        swapped = candidates.assign(label=1 - candidates["label"])
        one = queries[queries["query"] == key].assign(relevant_items=[["i0"]])
        after = features(swapped, one, pd.concat([known, later], ignore_index=True))
        pd.testing.assert_frame_equal(before[ours], after[ours])


def test_a_model_corrects_the_retrieval_on_queries_that_it_has_not_seen():
    rng = np.random.default_rng(1)
    rows = []
    for query in range(150):
        told = rng.normal(size=12)
        label = np.arange(12) == np.argmax(told)
        rows += [{"user": f"u{query}", "query": f"u{query}/0", "item": f"i{n}", "rank": n + 1, "score": -0.1 * n,
                  "label": int(label[n]), "weight": 1.0, "told": told[n]} for n in range(12)]  # fmt: skip
    table = pd.DataFrame(rows)
    learned, judged = table.iloc[: 100 * 12], table.iloc[100 * 12 :].reset_index(drop=True)
    # Queries without a positive teach nothing.
    learned = pd.concat([learned.assign(query="none/" + learned["query"], label=0), learned], ignore_index=True)
    scores = Ranker(learned, learned[["told"]], rounds=30).scores(judged, judged[["told"]])
    relevant = {key: set(some["item"][some["label"] == 1]) for key, some in judged.groupby("query")}
    retrieved, ranked = (
        benchmark.ndcg(benchmark.rankings(judged, by), relevant) for by in (judged["score"].to_numpy(), scores)
    )
    assert ranked.mean() > retrieved.mean() + 0.1


def test_ndcg_counts_what_was_not_retrieved():
    relevant = {"a/0": {"x"}, "b/0": {"y", "z"}, "c/0": {"gone"}, "d/0": set()}
    values = benchmark.ndcg({"a/0": ["p", "x"], "b/0": ["y", "q", "z"]}, relevant)
    np.testing.assert_allclose(values, [1 / np.log2(3), 1.5 / (1 + 1 / np.log2(3)), 0])


def test_an_interval_allows_for_queries_of_one_user_that_are_alike():
    values = np.random.default_rng(3).normal(size=40)
    users = [f"u{n}" for n in range(40)]
    alone = benchmark.interval(values, users)
    half = scipy.stats.t.interval(0.95, 39, values.mean(), scipy.stats.sem(values))[1] - values.mean()
    assert alone == pytest.approx({"mean": values.mean(), "half_width": half})
    # The same query nine times tells no more than once.
    assert benchmark.interval(np.repeat(values, 9), np.repeat(users, 9).tolist()) == pytest.approx(alone)
    # Of users with different numbers of queries: nearly what the bootstrap over users finds.
    counts = np.random.default_rng(4).integers(1, 20, 40)
    rows = np.repeat(values, counts)
    drawn = np.random.default_rng(5).integers(0, 40, (4000, 40))
    means = (values * counts)[drawn].sum(1) / counts[drawn].sum(1)
    found = benchmark.interval(rows, np.repeat(users, counts).tolist())["half_width"]
    assert found == pytest.approx(1.96 * means.std(), rel=0.15)


def test_the_last_stage_lets_nothing_pass_that_a_rule_forbids():
    genres = {"a": ["x"], "b": ["x", "y"], "c": ["x"], "d": ["y"], "e": [], "f": ["y"]}
    assert last_stage.answer("abcdef", 4, values=genres, most=2) == ["a", "b", "d", "e"]
    assert last_stage.answer("abcdef", 3, seen={"a"}, in_stock={"a", "c", "f", "b"}) == ["b", "c", "f"]
    assert last_stage.answer("abcdef", 10, values=genres, most=1) == ["a", "d", "e"]
    assert last_stage.answer("ab", 5) == ["a", "b"]
