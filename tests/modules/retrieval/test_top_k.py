"""What all layers share: which strategy fits a catalogue, and the k best of candidates that may come back."""

import numpy as np
import pytest
import tensorflow as tf
from index_conformance import DIMENSION, clustered

from modules.retrieval import top_k
from modules.retrieval.stock import stock
from modules.retrieval.top_k import NO_ROW, Partitions, SearchParameters, best, resolve_strategy


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


@pytest.mark.parametrize("strategy", ["exact", "quantized", "tree"])
def test_a_large_catalogue_is_asked_for_few_queries_at_a_time_with_the_same_answers(strategy, monkeypatch):
    vectors, generator = clustered(300), np.random.default_rng(0)
    partitions = Partitions(clustered(6), np.arange(300, dtype=np.int32) % 6)
    # One partition, of which a filter leaves few: the tree falls back to looking at everything.
    index = stock(vectors, strategy, SearchParameters(partitions_to_search=1, reorder=300), partitions)
    specs = [
        tf.TensorSpec([None, DIMENSION]),
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None, 300], tf.bool),
    ]

    def traced(scores_at_once):
        monkeypatch.setattr(top_k, "_SCORES_AT_ONCE", scores_at_once)
        search = tf.function(
            lambda q, e, a: (*index.search(q, 60, e, a), *index.search_both(q, 60, e)), autograph=False
        )
        return search.get_concrete_function(*specs)

    whole, sliced = traced(2**24), traced(3 * 300)
    for batch in (0, 1, 3, 7):
        queries = generator.normal(size=(batch, DIMENSION)).astype(np.float32)
        excluded = generator.integers(-1, 300, size=(batch, 4)).astype(np.int32)
        allowed = generator.random((batch, 300)) < 0.3
        request = tf.constant(queries), tf.constant(excluded), tf.constant(allowed)
        for expected, answer in zip(whole(*request), sliced(*request), strict=True):
            assert expected.shape == answer.shape == (batch, 60)
            np.testing.assert_allclose(answer, expected, rtol=1e-5)
