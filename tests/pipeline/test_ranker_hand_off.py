"""Which split a ranking model may be trained on, and the parts of its rows that no servable is needed for."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest

from modules.data import examples
from modules.encodings.features import Columns, Features
from modules.errors import UserError
from pipeline.ranker_hand_off import _check_unseen
from pipeline.ranker_rows import Answers, Catalogue, Layout, Query, Rows, count, sample
from pipeline.runs import Artifact, Run, Stage

FEATURES = Features.model_validate({
    "query": [{"column": "age", "encoding": "normalized"}, {"encoding": "history"}],
    "candidate": [{"column": "item", "encoding": "vocabulary"},
                  {"column": "tags", "encoding": "vocabulary", "multivalued": True}],
})  # fmt: skip
LAYOUT = Layout(FEATURES, Columns(user="user", item="item", timestamp="at"), ("tags", "title"))


def run_that(saw_validation: bool | None, folder: Path) -> Run:
    (folder / "training.json").write_text(
        json.dumps({} if saw_validation is None else {"saw_validation": saw_validation})
    )
    trainer = Stage("Trainer", "done", 1.0, (), (Artifact(1, "model_run", "ModelRun", str(folder), {}),))
    return Run("2026-01-01", datetime.datetime(2026, 1, 1), (trainer,))


@pytest.mark.parametrize("saw", [True, None])
def test_a_split_that_the_model_was_fitted_on_is_refused(tmp_path: Path, saw: bool | None):
    run = run_that(saw, tmp_path)
    with pytest.raises(UserError, match=r"fitted on these queries' relevant items.*training\.refit=false"):
        _check_unseen(run, "validation")
    assert _check_unseen(run, "eval") == ""


def test_a_split_that_has_chosen_of_the_model_is_told(tmp_path: Path):
    run = run_that(False, tmp_path)
    assert "a little better" in _check_unseen(run, "validation") and _check_unseen(run, "eval") == ""


def test_the_kept_candidates_stand_for_all_of_them():
    rng = np.random.default_rng(3)
    values, hits = rng.normal(size=40), np.isin(np.arange(40), (2, 31))
    sums = []
    for query in range(3000):
        kept, weight = sample(f"user/{query}", hits, 6)
        assert set(kept) >= {2, 31} and len(kept) == 8 and (np.diff(kept) > 0).all()
        np.testing.assert_allclose(weight, np.where(hits[kept], 1.0, 38 / 6))
        sums.append((values[kept] * weight).sum())
    assert np.mean(sums) == pytest.approx(values.sum(), abs=4 * np.std(sums) / np.sqrt(len(sums)))
    again, _ = sample("user/7", hits, 6)
    np.testing.assert_array_equal(again, sample("user/7", hits, 6)[0])
    for most in (None, 38, 100):
        kept, weight = sample("user/7", hits, most)
        assert len(kept) == 40 and (weight == 1).all()


def serialized(**cells: object) -> bytes:
    return examples.example(examples.features(cells.items()))


def test_odd_examples_become_rows_with_nulls():
    catalogue = Catalogue(
        [serialized(item=b"a", tags=[b"x", b"y"], title=[b"A"]), serialized(item=b"b", title=[b"B"])], LAYOUT
    )
    rows = Rows(LAYOUT, catalogue, excludes_history=True, negatives=None)
    asked = [
        serialized(user=b"u", at=5, age=3.5, history=[b"c"], relevant_items=[b"a", b"c", b"z"]),
        serialized(user=b"u", at=9, relevant_items=[b"c"], history=[b"c"]),
        serialized(user=b"v", at=1, relevant_items=[b"b"]),
    ]
    ids = np.array([[b"a", b"b"], [b"new", b""], [b"", b""]], object)
    scores = np.array([[2, 1], [3, -np.inf], [-np.inf, -np.inf]], np.float32)
    queries, columns = rows.queries(asked, Answers(ids, scores))
    candidates, of_queries = rows.tables(queries, columns)
    assert candidates.schema.equals(LAYOUT.candidates_schema(), check_metadata=True)
    looked_at = ["query", "time", "item", "rank", "query_age", "item_tags", "item_title", "label"]
    assert candidates.select(looked_at).to_pylist() == [
        {"query": "u/0", "time": 5, "item": "a", "rank": 1, "query_age": 3.5, "item_tags": ["x", "y"],
         "item_title": ["A"], "label": 1},
        {"query": "u/0", "time": 5, "item": "b", "rank": 2, "query_age": 3.5, "item_tags": None,
         "item_title": ["B"], "label": 0},
        # An item that an update has added since the run: nothing is known of it.
        {"query": "u/1", "time": 9, "item": "new", "rank": 1, "query_age": None, "item_tags": None,
         "item_title": None, "label": 0},
    ]  # fmt: skip
    assert of_queries.to_pylist() == [
        {"query": "u/0", "user": "u", "time": 5, "history": ["c"], "relevant_items": ["a", "z"]},
        {"query": "u/1", "user": "u", "time": 9, "history": ["c"], "relevant_items": []},
        {"query": "v/0", "user": "v", "time": 1, "history": [], "relevant_items": ["b"]},
    ]
    counted = count(queries, injected=0)
    # The second query asks for what an answer never holds, and counts for no recall.
    assert (counted.queries, counted.rows, counted.positives, counted.missed) == (3, 3, 1, 2)
    assert (counted.recall, counted.with_relevant) == (0.5, 2)


def test_only_items_with_a_score_are_injected():
    query = Query("u/0", ["a", "b"], np.array([2, 1], np.float32), ["b", "gone", "far"], None)
    query.inject(np.array([-np.inf, 0.25], np.float32))
    assert query.items == ["a", "b", "far"] and query.rank == [1, 2, None]
    assert query.score.tolist() == [2, 1, 0.25] and query.label.tolist() == [0, 1, 1]
