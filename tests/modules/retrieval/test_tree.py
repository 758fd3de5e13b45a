"""The tree of stock ops keeps what every layer promises; its partitions take other rows."""

import numpy as np
from index_conformance import DIMENSION, IndexLayerConformance, clustered

from modules.retrieval.scann import Scann, train_scann
from modules.retrieval.top_k import NO_ROW, Partitions, SearchParameters
from modules.retrieval.tree import Tree


class TestTree(IndexLayerConformance):
    def build(self, vectors, parameters):
        return Tree(vectors, train_scann(vectors, "tree").partitions, parameters)


def test_it_searches_the_same_partitions_as_scann():
    vectors, queries = clustered(2000), clustered(2000, seed=5)[:50]
    trained = train_scann(vectors, "tree")
    parameters = SearchParameters(partitions_to_search=3, reorder=2000)
    nothing = np.zeros((len(queries), 0), np.int32)
    expected, _ = Scann(trained, parameters).search(queries, 10, nothing)
    scores, _ = Tree(vectors, trained.partitions, parameters).search(queries, 10, nothing)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_new_rows_go_to_the_nearest_centre_and_kept_ones_stay():
    generator = np.random.default_rng(1)
    partitions = Partitions(generator.normal(size=(7, DIMENSION)).astype(np.float32), np.arange(21, dtype=np.int32) % 7)
    new = generator.normal(size=(50, DIMENSION)).astype(np.float32)
    kept = np.array([20, 3, 4])
    changed = partitions.with_rows(kept, new)
    distance = np.linalg.norm(new[:, None] - partitions.centroids[None], axis=2)
    np.testing.assert_array_equal(changed.of_row, [6, 3, 4, *distance.argmin(axis=1)])
    assert changed.of_row.dtype == np.int32 and changed.centroids is partitions.centroids
    np.testing.assert_array_equal(partitions.with_rows(kept, new[:0]).of_row, [6, 3, 4])


def test_only_a_query_with_fewer_than_enough_is_searched_exactly():
    """Three rows in one partition, 100 in the other: a search of one of them finds all of its rows and no more."""
    vectors = np.concatenate([np.tile(np.eye(1, DIMENSION), (3, 1)), np.tile(-np.eye(1, DIMENSION), (100, 1))])
    centroids = np.concatenate([vectors[:1], vectors[-1:]]).astype(np.float32)
    tree = Tree(vectors.astype(np.float32), Partitions(centroids, np.repeat([0, 1], [3, 100]).astype(np.int32)))
    queries = np.array([vectors[0], vectors[-1]], np.float32)
    for enough, expected in ((None, [10, 10]), (4, [10, 10]), (3, [3, 10]), (1, [3, 10])):
        _, rows = tree.search(queries, 10, np.zeros((2, 0), np.int32), enough=enough)
        assert (rows.numpy() != NO_ROW).sum(axis=1).tolist() == expected
