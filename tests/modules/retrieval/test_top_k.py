"""What all layers share: which strategy fits a catalogue, and the k best of candidates that may come back."""

import numpy as np
import pytest

from modules.retrieval.stock import stock
from modules.retrieval.top_k import NO_ROW, best, resolve_strategy


def test_strategy_follows_the_size_of_the_catalogue():
    sizes = (99, 19_999, 20_000, 99_999, 100_000)
    assert [resolve_strategy("auto", size) for size in sizes] == ["exact", "exact", "quantized", "quantized", "tree"]
    assert resolve_strategy("tree", 99) == "exact", "too small to train on"
    assert resolve_strategy("tree", 100) == "tree"


def test_the_best_are_those_that_are_neither_excluded_nor_disallowed():
    scores = np.array([[0.5, 0.9, 0.7, 0.8]], np.float32)
    rows = np.array([[4, 1, 2, NO_ROW]], np.int32)
    allowed = np.array([[True, True, True, True, False]])
    for excluded, permitted, expected in (
        ([[-1]], None, [1, 2, 4]),
        ([[1]], None, [2, 4, NO_ROW]),
        ([[1, 2, -1]], allowed, [NO_ROW] * 3),
        ([[]], allowed, [1, 2, NO_ROW]),
    ):
        found, at = best(scores, rows, 3, np.array(excluded, np.int32), permitted)
        assert at.numpy()[0].tolist() == expected
        assert np.isneginf(found.numpy()[0]).tolist() == [row == NO_ROW for row in expected]


def test_a_tree_without_partitions_is_a_mistake():
    with pytest.raises(ValueError, match="a tree needs partitions"):
        stock(np.zeros((200, 4), np.float32), "tree")
