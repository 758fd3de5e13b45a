"""The drawn shop and the drawn music service follow their laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modules.errors import UserError
from pipeline.datasets import music, shop

SIZES = {shop: (150, 240, 6_000), music: (60, 120, 4_000)}


@pytest.fixture(scope="module", params=[shop, music], ids=["shop", "music"])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("drawn")
    return request.param, folder, request.param.write(*SIZES[request.param], 7, str(folder))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_seed_gives_the_same_bytes_and_another_seed_others(drawn, tmp_path):
    kind, folder, _ = drawn
    kind.write(*SIZES[kind], 7, str(tmp_path / "again"))
    kind.write(*SIZES[kind], 8, str(tmp_path / "other"))
    assert _files(tmp_path / "again") == _files(folder)
    assert not set(_files(tmp_path / "other").values()) & set(_files(folder).values())
    assert len(pd.read_parquet(folder / "interactions.parquet")) == SIZES[kind][2]


@pytest.mark.parametrize("kind", [shop, music], ids=["shop", "music"])
def test_numbers_that_do_not_fit_are_refused(kind, tmp_path):
    with pytest.raises(UserError, match="fewer than"):
        kind.write(300, 400, 1_000, 1, str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_sessions_stay_near_what_a_customer_comes_for_and_guests_come_once(tmp_path):
    outcome = shop.write(150, 240, 6_000, 7, str(tmp_path))
    events, law = pd.read_parquet(tmp_path / "interactions.parquet"), shop.Law.load(str(tmp_path))
    product = events["sku"].str[1:].astype(int).to_numpy()
    week = (events["timestamp"].to_numpy() - shop._START) // shop._WEEK
    assert (law.added[product] <= week).all()
    # The last minutes of a session may be in the week after.
    assert (week <= law.sold_out[product]).all()
    by_visitor = events.groupby("visitor_id")
    is_guest = events["visitor_id"].str.startswith("guest")
    assert events.loc[is_guest, "visitor_id"].nunique() <= outcome.guests
    length = (by_visitor["timestamp"].max() - by_visitor["timestamp"].min())[lambda s: s.index.str.startswith("guest")]
    assert length.max() < 3 * 3_600
    # Four in five events of customers are of what they have in mind, which they come with as often as the law says.
    customer = events.loc[~is_guest, "visitor_id"].str[1:].astype(int).to_numpy()
    wanted = law.taste[customer, law.subcategory[product[~is_guest]]].mean()
    assert wanted == pytest.approx(0.8 * (law.taste[customer] ** 2).sum(axis=1).mean(), abs=0.08)
    assert wanted > 4 / len(shop.SUBCATEGORIES)
    assert set(events.groupby("event")["weight"].first().items()) == set(shop.WEIGHTS.items())
    # A cart and a purchase follow a view of the same product.
    first = events.drop_duplicates(["visitor_id", "sku"])
    assert (first["event"] == "view").all()


def test_plays_follow_the_probabilities_that_the_law_says():
    law = music.Law.draw(users=3, items=60, seed=3)
    user, seconds = np.arange(3), np.array([1_700_000_000, 1_700_040_000, 1_700_900_000])
    nothing = law.probabilities(user, seconds, np.zeros((3, 60)))
    assert nothing.sum(axis=1) == pytest.approx(1)
    played = np.zeros((3, 60))
    played[:, [4, 9]] = [1.0, 0.5]
    likely = law.probabilities(user, seconds, played)
    times = law.of_time(seconds)
    for row in range(3):
        again = played[row] * times[row]
        expected = law.habit[row] * again / again.sum() + (1 - law.habit[row]) * nothing[row]
        np.testing.assert_allclose(likely[row], expected)
    # A genre has its hour; 1,700,000,000 was a Tuesday, 22:13 in UTC.
    hours = 1_699_920_000 + 3_600 * np.arange(24)
    np.testing.assert_array_equal(law.of_time(hours).argmax(axis=0), law.hour[law.genre[law.artist]])


def test_the_best_ranking_is_that_of_the_law_and_better_than_what_was_played_most(tmp_path):
    outcome = music.write(60, 120, 4_000, 7, str(tmp_path))
    law, plays = music.Law.load(str(tmp_path)), pd.read_parquet(tmp_path / "interactions.parquet")
    assert (plays.groupby("user_id")["timestamp"].diff().dropna() > 0).all()
    # By hand, with what each track counts worked out from the table.
    since = np.sort(plays["timestamp"])[-len(plays) // 10]
    gains, own, repeats = [], [], []
    for name, rows in plays.groupby("user_id"):
        played, often = np.zeros(120), np.zeros(120)
        for track, time, weight in zip(
            rows["item_id"].str[1:].astype(int), rows["timestamp"], rows["weight"], strict=True
        ):
            if time >= since:
                likely = law.probabilities(np.array([int(name[1:])]), np.array([time]), played[np.newaxis])[0]
                for scores, gained in ((likely, gains), (np.where(often > 0, often, -1), own)):
                    place = np.count_nonzero(scores > scores[track])
                    gained.append(1 / np.log2(place + 2) if place < 10 and scores[track] > 0 else 0.0)
                repeats.append(often[track] > 0)
            played *= music._MEMORY
            played[track] = max(played[track], weight)
            often[track] += 1
    figures = [np.mean(gains), np.mean(own), np.mean(repeats)]
    np.testing.assert_allclose([outcome.best_ndcg, outcome.own_ndcg, outcome.repeats], figures, atol=2e-3)
    assert outcome.best_ndcg > outcome.own_ndcg > 0.1
