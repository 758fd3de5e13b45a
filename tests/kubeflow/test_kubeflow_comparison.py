"""Two files of recommendations, compared."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kubeflow import comparison


def write(path: Path, lists: dict[str, list[tuple[str, float]]]) -> str:
    rows = [{"user_id": u, "item_id": i, "score": s} for u, items in lists.items() for i, s in items]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_the_same_recommendations_agree_whatever_the_order_of_the_users(tmp_path: Path):
    one = write(tmp_path / "a", {"1": [("x", 2.0), ("y", 1.0)], "2": [("z", 1.0), ("y", 0.9)]})
    other = write(tmp_path / "b", {"2": [("z", 1.0), ("y", 0.9000001)], "1": [("x", 2.0), ("y", 1.0)]})
    found = comparison.compare(one, other)
    assert (found.users, found.same, found.overlap, found.agree) == (2, 2, 1.0, True)
    assert comparison.main([one, other]) == 0


def test_other_items_or_other_scores_do_not_agree(tmp_path: Path):
    one = write(tmp_path / "a", {"1": [("x", 2.0), ("y", 1.0)]})
    for lists in (
        {"1": [("x", 2.0), ("q", 1.0)]},
        {"1": [("x", 2.0), ("y", 1.1)]},
        {"1": [("y", 2.0), ("x", 1.0)]},
        {"1": [("x", 2.0)]},
        {"2": []},
    ):
        other = write(tmp_path / "b", {"9": [("x", 1.0)], **lists})
        assert not comparison.compare(one, other).agree
        assert comparison.main([one, other]) == 1
