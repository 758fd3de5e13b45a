"""The synthetic data set: drawn from the law that it says, the same bytes for a seed, refused where it cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from modules.errors import UserError
from pipeline.datasets import synthetic
from pipeline.datasets.synthetic import Law


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write(300, 400, 6_000, 7, str(folder))
    return folder


def _interactions(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of users and items, and seconds, in the order of the shards."""
    table = pq.read_table(sorted(folder.glob("interactions-*.parquet")))
    user, item = (np.array([int(t[1:]) for t in table[name].to_pylist()]) for name in ("user_id", "item_id"))
    return user, item, table["timestamp"].to_numpy()


def test_a_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    synthetic.write(300, 400, 6_000, 7, str(tmp_path / "again"))
    synthetic.write(300, 400, 6_000, 8, str(tmp_path / "other"))
    assert _files(tmp_path / "again") == _files(folder)
    assert not set(_files(tmp_path / "other").values()) & set(_files(folder).values())


def test_an_earlier_draw_is_replaced_whole(tmp_path):
    assert synthetic.write(300, 400, 6_000, 7, str(tmp_path), rows_in_shard=1_000).shards == 6
    assert synthetic.write(300, 400, 3_000, 7, str(tmp_path), rows_in_shard=1_000).shards == 3
    user, _, _ = _interactions(tmp_path)
    assert len(user) == 3_000


def test_shards_hold_every_user_once_and_as_many_rows_as_asked_for(folder, tmp_path):
    synthetic.write(300, 400, 6_000, 7, str(tmp_path), rows_in_shard=1_000)
    user, _, _ = _interactions(tmp_path)
    whole, _, _ = _interactions(folder)
    assert np.array_equal(np.bincount(user), np.bincount(whole))
    assert len(user) == 6_000 and np.bincount(user).min() >= 3
    assert np.all(np.diff(user) >= 0)


def test_nobody_has_an_item_twice_or_before_its_release_or_comes_before_joining(folder):
    user, item, seconds = _interactions(folder)
    law = Law.load(str(folder))
    assert len(np.unique(user * 1_000 + item)) == len(user)
    period = synthetic.period_of(seconds)
    assert np.all(law.released[item] <= period)
    assert np.all(law.joined[user] <= period)
    assert np.all(np.diff(seconds)[np.diff(user) == 0] >= 0)


def test_draws_follow_the_probabilities_that_the_law_says():
    law = Law.draw(users=3, items=100, seed=3)
    for user, period in ((0, 0), (1, 9), (2, 19)):
        number = 200_000
        rng = np.random.default_rng(5)
        drawn = law.sample(np.full(number, user), np.full(number, period), rng)
        share = np.bincount(drawn, minlength=100) / number
        expected = law.probabilities(np.array([user]), period)[0]
        assert expected.sum() == pytest.approx(1, abs=1e-5)
        error = np.sqrt(expected * (1 - expected) / number)
        assert np.all(np.abs(share - expected) <= 5 * error + 1e-6)


def test_popularity_is_long_tailed_and_tastes_tell_users_apart(folder):
    _, item, _ = _interactions(folder)
    counts = np.sort(np.bincount(item, minlength=400))[::-1]
    assert counts[:40].sum() > len(item) / 3  # a tenth of the items
    law = Law.load(str(folder))
    likely = law.probabilities(np.arange(100), 19)
    popular = likely.mean(axis=0)
    top, top_of_all = np.sort(likely, axis=1)[:, -20:].sum(axis=1).mean(), popular[np.argsort(popular)[-20:]].sum()
    assert top > 1.5 * top_of_all


@pytest.mark.parametrize(
    ("users", "items", "interactions", "words"),
    [(300, 400, 800, "fewer than 3 for each"), (300, 40, 6_000, "too few for 20")],
)
def test_numbers_that_do_not_fit_are_refused(users, items, interactions, words, tmp_path):
    with pytest.raises(UserError, match=words):
        synthetic.write(users, items, interactions, 1, str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --output"):
        synthetic.write(300, 400, 6_000, 1, str(tmp_path / "file" / "data"))
