"""At most m of a kind against a walk in plain Python, over every index layer."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.retrieval.brute_force import BruteForce
from modules.retrieval.quantized import Quantized
from modules.retrieval.scann import Scann, train_scann
from modules.retrieval.top_k import NO_ROW, SearchParameters, TopK
from modules.retrieval.tree import Tree
from modules.servable.filters import RowsOfValues
from modules.servable.max_per_value import MaxPerValue

_DIMENSION = 6


def _vectors(size: int, generator: np.random.Generator) -> np.ndarray:
    return generator.normal(size=(size, _DIMENSION)).astype(np.float32)


def _limited(index: TopK, columns: list[tuple[list[list[int]], int]]) -> MaxPerValue:
    """Over columns as (the values of each row, m)."""
    limits = []
    for values, most in columns:
        pairs = sorted({(value, row) for row, of_row in enumerate(values) for value in of_row})
        limits.append((RowsOfValues(*(np.array(each) for each in zip(*pairs, strict=True))), most))
    return MaxPerValue(index, limits)


def _kinds(columns, row: int) -> list[tuple[int, int]]:
    return [(number, value) for number, (values, _) in enumerate(columns) for value in set(values[row])]


def _may(columns, counts: Counter, row: int) -> bool:
    return all(counts[kind] < columns[kind[0]][1] for kind in _kinds(columns, row))


def _walk(scores: np.ndarray, permitted: np.ndarray, columns, k: int) -> list[int]:
    """The oracle: the items from the best on, each taken unless a value of it is full, until there are k."""
    counts: Counter = Counter()
    taken: list[int] = []
    for row in np.argsort(-scores):
        if len(taken) < k and permitted[row] and _may(columns, counts, row):
            counts.update(_kinds(columns, row))
            taken.append(int(row))
    return taken


def _permitted(size: int, excluded: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    permitted = np.ones(size, bool) if allowed is None else allowed.copy()
    permitted[excluded[excluded >= 0]] = False
    return permitted


def _columns(generator: np.random.Generator, size: int, count: int, most: list[int]):
    """Columns of few values and of many, of one value and of several; some rows have none, the last one has all."""
    columns = []
    for number in range(count):
        width = int(generator.choice([1, 4, 20, size]))
        values = [list(generator.integers(0, width, generator.integers(0, 4))) for _ in range(size - 1)]
        columns.append(([*values, list(range(width))], most[number]))
    return columns


def _request(generator: np.random.Generator, size: int, batch: int, share: float | None):
    queries = generator.normal(size=(batch, _DIMENSION)).astype(np.float32)
    excluded = generator.integers(-1, size, (batch, int(generator.choice([0, 1, 30])))).astype(np.int32)
    return queries, excluded, None if share is None else generator.random((batch, size)) < share


@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 2, 40, 260]),
    k=st.sampled_from([1, 3, 20, 300]),
    batch=st.sampled_from([0, 1, 5]),
    most=st.lists(st.sampled_from([1, 1, 2, 7, 500]), min_size=1, max_size=3),
    share=st.sampled_from([None, None, 0, 0.04, 0.3, 1]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_exact_index_answers_what_the_walk_takes(seed, size, k, batch, most, share):
    generator = np.random.default_rng(seed)
    vectors = _vectors(size, generator)
    columns = _columns(generator, size, len(most), most)
    queries, excluded, allowed = _request(generator, size, batch, share)
    scores, rows = _limited(BruteForce(vectors), columns).search(queries, k, excluded, allowed)
    assert scores.shape == rows.shape == (batch, k)
    for number, query in enumerate(queries):
        permitted = _permitted(size, excluded[number], None if allowed is None else allowed[number])
        expected = _walk(vectors @ query, permitted, columns, k)
        assert rows[number].numpy().tolist() == expected + [NO_ROW] * (k - len(expected))
        np.testing.assert_allclose(scores[number, : len(expected)], vectors[expected] @ query, rtol=1e-4, atol=1e-5)
        assert np.all(np.isneginf(scores[number, len(expected) :]))


def test_where_all_score_alike_the_first_rows_are_taken():
    values = [[row // 5] for row in range(400)]
    limited = _limited(BruteForce(np.ones((400, _DIMENSION), np.float32)), [(values, 2)])
    _, rows = limited.search(np.ones((3, _DIMENSION), np.float32), 10, np.zeros((3, 0), np.int32))
    assert rows.numpy().tolist() == 3 * [[0, 1, 5, 6, 10, 11, 15, 16, 20, 21]]


def test_what_one_kind_fills_to_any_depth_is_passed_by():
    """Each kind is ahead of the next one as a whole, so that a search among the next best finds one kind only."""
    size, kinds = 3000, 6
    vectors = np.zeros((size, _DIMENSION), np.float32)
    vectors[:, 0] = np.arange(size, 0, -1)
    values = [[row * kinds // size] for row in range(size)]
    limited = _limited(BruteForce(vectors), [(values, 3)])
    query = np.eye(1, _DIMENSION, dtype=np.float32)
    for k, expected in ((10, [0, 1, 2, 500, 501, 502, 1000, 1001, 1002, 1500]), (18, None), (30, None)):
        _, rows = limited.search(query, k, np.zeros((1, 0), np.int32))
        expected = expected or [kind * 500 + place for kind in range(kinds) for place in range(3)]
        assert rows[0].numpy().tolist() == expected + [NO_ROW] * (k - len(expected))


def _quantized(vectors: np.ndarray) -> TopK:
    return Quantized(vectors, SearchParameters(reorder=5))


def _tree(vectors: np.ndarray) -> TopK:
    partitions = train_scann(vectors, "tree", codes=False).partitions
    assert partitions is not None
    return Tree(vectors, partitions, SearchParameters(partitions_to_search=1))


def _scann(vectors: np.ndarray) -> TopK:
    return Scann(train_scann(vectors, "tree"), SearchParameters(partitions_to_search=1, reorder=5))


@pytest.mark.parametrize("build", [_quantized, _tree, _scann])
def test_an_approximate_index_keeps_the_limit_and_is_never_short(build):
    generator = np.random.default_rng(3)
    size = 600
    vectors = _vectors(size, generator)
    index = build(vectors)
    for share, most, k in ((None, [1], 30), (None, [4, 2], 60), (0.5, [1, 1], 20), (0.03, [2], 20), (0, [2], 5)):
        columns = _columns(generator, size, len(most), most)
        limited = _limited(index, columns)
        queries, excluded, allowed = _request(generator, size, 4, share)
        scores, rows = (each.numpy() for each in limited.search(queries, k, excluded, allowed))
        for number, query in enumerate(queries):
            permitted = _permitted(size, excluded[number], None if allowed is None else allowed[number])
            found = rows[number][rows[number] != NO_ROW]
            assert len(set(found)) == len(found) and permitted[found].all()
            np.testing.assert_allclose(scores[number, : len(found)], vectors[found] @ query, rtol=1e-4, atol=1e-4)
            assert np.all(np.diff(scores[number, : len(found)]) <= 1e-5), "best first"
            assert np.all(rows[number, len(found) :] == NO_ROW), "padding last"
            counts = Counter(kind for row in found for kind in _kinds(columns, row))
            assert all(count <= columns[kind[0]][1] for kind, count in counts.items())
            others = set(np.flatnonzero(permitted)) - set(found)
            assert len(found) == k or not any(_may(columns, counts, row) for row in others), "as many as may be"
