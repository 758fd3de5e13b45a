"""The world with new items, and the rankings under one bonus after the other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality import new_items


def test_new_items_have_no_row_from_before_they_came_and_others_keep_theirs() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"item": rng.choice([f"i{n}" for n in range(100)], 20_000)})
    split, new = new_items.split(table, 7)
    rows = table.loc[split.index].assign(split=split)
    before = {name: set(rows[rows["split"] == name]["item"]) for name in ("train", "validation", "eval")}
    assert len(new) == 10 and set(new) == before["eval"] - before["train"] - before["validation"]
    assert len(before["validation"] - before["train"]) == 10
    of_eval = rows[rows["split"] == "eval"]
    assert len(of_eval) == pytest.approx(2_000, rel=0.1) and of_eval["item"].isin(new).mean() == pytest.approx(
        0.1, abs=0.02
    )
    assert (rows["split"] == "train").sum() == pytest.approx(0.8 * 0.8 * 20_000, rel=0.05)


def test_known_and_new_items_are_judged_in_the_same_rankings() -> None:
    item_ids = np.array(["k1", "k2", *(f"other{n}" for n in range(9)), "n"], object)
    scores = np.linspace(1.2, 0.1, 12, dtype=np.float32)[np.newaxis].repeat(2, axis=0)
    # The second user has seen the first item, and wants known ones only.
    scores[1, 0] = -np.inf
    relevant = {"a": {"k1", "n"}, "b": {"k2"}}
    table = new_items.curve(scores, ["a", "b"], item_ids, relevant, {"n"}, offset=1.0)
    # The new one is last of all.
    assert table["0"]["known"] == 1.0 and table["0"]["new"] == 0.0 and table["0"]["shown"] == 0.0
    at_2 = table["2"]
    assert at_2["new"] == 1.0 and at_2["known"] == pytest.approx(1 / np.log2(3)) and at_2["shown"] == 0.1
    assert at_2["all"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert table["0, not calibrated"] == table["0"]
    calibrated = new_items.curve(scores + 2 * (item_ids == "n"), ["a", "b"], item_ids, relevant, {"n"}, offset=2.0)
    assert calibrated["0, not calibrated"] == table["0"] and calibrated["0"] == at_2
