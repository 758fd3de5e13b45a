"""The two examples of docs/examples.md, drawn small: a shop, and a music service where coming back is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from e2e_runs import Outcome, twotower

from modules import metrics
from modules.data import histories
from modules.settings import TemporalSplit
from pipeline.config import load
from pipeline.datasets import shop
from pipeline.recommender import Recommender

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Example:
    """A finished run of an example."""

    folder: Path
    options: tuple[str, ...]
    """Of every command."""
    outcome: Outcome
    drawn: dict[str, Any]

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def recommend(self, *arguments: str) -> list[str]:
        outcome = twotower("recommend", *self.options, *arguments)
        assert outcome.code == 0, outcome.errors
        return [item["item_id"] for item in outcome.answer["items"]]


def _run(name: str, folder: Path, size: tuple[int, int, int], *settings: str) -> Example:
    """Draws an example, and runs the configuration of configs/ with it and these settings beside."""
    numbers = zip(("--users", "--items", "--interactions"), map(str, size), strict=True)
    drawn = twotower("data", name, "--output", str(folder), *(word for pair in numbers for word in pair))
    assert drawn.code == 0, drawn.errors
    settings += tuple(f"tables.{table}.path={folder}/{table}.parquet" for table in ("interactions", "items", "users"))
    settings += (f"output.root={folder}/runs", f"output.push={folder}/served")
    # As far as the oracles need it.
    settings += ("training.refit=false", "model.dimension=32", "training.learning_rate=0.01", "serving.known_users=0")
    options = ("--config", f"configs/{name}.yaml", *(word for each in settings for word in ("--set", each)))
    outcome = twotower("run", *options)
    assert outcome.code == 0, outcome.errors
    return Example(folder, options, outcome, drawn.answer)


@pytest.fixture(scope="module")
def sold(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return _run("shop", tmp_path_factory.mktemp("shop"), (200, 300, 8_000), "training.epochs=4")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Example:
    settings = ("training.epochs=4", "model.item_item_ridges=[100]")
    return _run("music", tmp_path_factory.mktemp("music"), (120, 200, 8_000), *settings)


def test_a_shop_recommends_what_its_customers_come_for(sold: Example):
    law, items, events = shop.Law.load(str(sold.folder)), sold.table("items"), sold.table("interactions")
    recommender = Recommender(load("configs/shop.yaml", sold.options[3::2]), now=int(events["timestamp"].max()))
    # Who has come a few times, so that the taste can be known.
    counts = events[events["visitor_id"].str.startswith("c")].groupby("visitor_id").size()
    customers = [int(visitor[1:]) for visitor in counts[counts >= 15].index]
    asked = [recommender.request(f"c{customer}") for customer in customers]
    row = dict(zip(items["sku"], range(len(items)), strict=True))
    top = [[row[item.item_id] for item in answer[:10]] for answer in recommender.recommend(asked)]

    def wanted(customer: int, rows: list[int]) -> float:
        """How often the customer comes for what these are of, by the law, on average."""
        return float(law.taste[customer, law.subcategory[rows]].mean())

    ours = np.mean([wanted(customer, rows) for customer, rows in zip(customers, top, strict=True)])
    popular = [row[sku] for sku in events.groupby("sku").size().nlargest(10).index]
    assert len(customers) > 50 and ours > 2 * np.mean([wanted(customer, popular) for customer in customers])
    found = sold.outcome.answer["metrics"]
    assert found["overall"]["ndcg@10"] > 2 * found["overall"]["popular_ndcg@10"]
    # Guests are asked for, too, and are no worse off than a list of what is popular.
    assert found["club=unknown"]["ndcg@10"] > 2 * found["club=unknown"]["popular_ndcg@10"]


def test_a_shop_leaves_out_what_is_sold_out_and_too_much_of_a_category(sold: Example):
    items, events = sold.table("items").set_index("sku"), sold.table("interactions")
    newest = events.drop_duplicates("visitor_id", keep="last")["visitor_id"].iloc[-1]
    first = events.loc[events["visitor_id"] == newest, "sku"].tolist()
    answer = sold.recommend("--history", ",".join(first), "--k", "50")
    assert shop.SOLD_OUT in set(items["stock"][answer])
    assert max(Counter(items["category"][answer]).values()) == 20 and not set(answer) & set(first)
    filters = ("--filter", "stock=in stock", "--filter", "price_band=0-25,25-50")
    answer = sold.recommend("--history", ",".join(first), "--k", "50", *filters)
    assert len(answer) > 20 and max(Counter(items["category"][answer]).values()) <= 20
    assert set(items["stock"][answer]) == {shop.IN_STOCK} and items["price"][answer].max() < 50


def test_a_music_service_recommends_again_and_is_much_better_for_it(played: Example):
    """The Evaluator's figure by hand, over the very questions, and what it would be without repeats."""
    plays = played.table("interactions")
    times, counts = np.unique(plays["timestamp"], return_counts=True)
    since = histories.fraction_cutoffs(times, counts, TemporalSplit())[1]
    recommender = Recommender(load("configs/music.yaml", played.options[3::2]))
    asked, relevant, known = [], [], []
    for user, of_user in plays.groupby("user_id"):
        tracks = of_user["item_id"].tolist()
        for place, time in enumerate(of_user["timestamp"]):
            if time >= since:
                asked.append(recommender.request(str(user), history=tracks[:place], values={"timestamp": time}))
                relevant.append(tracks[place])
                known.append(set(tracks[:place]))
    rankings = [
        [item.item_id for item in answer]
        for start in range(0, len(asked), 256)
        for answer in recommender.recommend(asked[start : start + 256])
    ]

    def ndcg(rankings: list[list[str]]) -> float:
        found = zip(rankings, relevant, strict=True)
        hits = np.stack([metrics.hits(ranking, [track], 10) for ranking, track in found])
        return float(metrics.ndcg(hits, np.ones(len(hits), int)).mean())

    ours, overall = ndcg(rankings), played.outcome.answer["metrics"]["overall"]
    assert overall["queries"] == len(asked)
    assert overall["ndcg@10"] == pytest.approx(ours, abs=1e-3)
    new = [[track for track in ranking if track not in seen] for ranking, seen in zip(rankings, known, strict=True)]
    assert ours > 2 * ndcg(new), "without repeats it is no worse"
    share = np.mean([sum(track in seen for track in r[:5]) / 5 for r, seen in zip(rankings, known, strict=True)])
    assert share > 0.5 * played.drawn["repeats"]
    # The law is known: no ranking is better than its own.
    assert 0.6 * played.drawn["best_ndcg"] < ours < played.drawn["best_ndcg"]
    assert overall["popular_ndcg@10"] < 0.5 * ours


def test_every_way_to_ask_for_music_may_answer_with_the_history(played: Example, tmp_path: Path):
    plays, tracks = played.table("interactions"), played.table("items").set_index("item_id")
    user = plays.groupby("user_id").size().idxmax()
    own = plays.loc[plays["user_id"] == user, "item_id"]
    options = ("--user", str(user), "--feature", "timestamp=2024-03-01T20:00")
    answer = played.recommend(*options, "--k", "10")
    assert len(set(answer) & set(own)) >= 5
    genre = tracks["genre"][answer[0]]
    filtered = played.recommend(*options, "--k", "5", "--filter", f"genre={genre}")
    assert answer[0] in filtered and set(tracks["genre"][filtered]) == {genre}
    assert not set(played.recommend(*options, "--k", "10", "--exclude", ",".join(answer))) & set(answer)
    assert played.outcome.answer["gates"]["ServableValidator"]["blessed"]
    output = tmp_path / "top.parquet"
    when = ("--time", "2024-03-01T20:00")
    assert twotower("batch", *played.options, "--k", "10", *when, "--output", str(output)).code == 0
    rows = pd.read_parquet(output)
    assert rows.loc[rows["user_id"] == user, "item_id"].tolist() == answer
    explained = twotower("recommend", *played.options, *options, "--k", "1", "--explain").answer["items"][0]
    assert sum(part["score"] for part in explained["explanation"]["parts"]) == pytest.approx(
        explained["score"], abs=1e-3
    )
