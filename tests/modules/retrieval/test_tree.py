"""The tree of stock ops keeps what every layer promises; its partitions take other rows."""

import numpy as np
import pytest
from index_conformance import DIMENSION, IndexLayerConformance, clustered

from modules.retrieval.scann import Scann, train_partitions, train_scann
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


def cells_of(tree: Tree) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Partition, centre and rows of each cell that has some, from what the index holds."""
    count, dimension = tree.partitions.centroids.shape
    centres = tree._cell_centroids.numpy().reshape(count, -1, dimension)
    extents = tree._cells.numpy().reshape(count, -1, 3)
    rows = tree._rows.numpy()
    cells = []
    for partition, cell in np.ndindex(extents.shape[:2]):
        start, end, size = extents[partition, cell]
        members = rows[start:end].ravel()
        assert (members[:size] >= 0).all() and (members[size:] == NO_ROW).all(), (
            "padded at the end, by less than a block"
        )
        assert end - start == -(-size // rows.shape[1])
        if size:
            cells.append((partition, centres[partition, cell], members[:size]))
    return cells


def in_cells(size: int = 3000, partitions: int = 6) -> tuple[np.ndarray, Tree]:
    vectors = clustered(size)
    return vectors, Tree(vectors, train_partitions(vectors, partitions=partitions))


def test_each_row_is_in_one_cell_of_its_partition_with_its_vector():
    vectors, tree = in_cells()
    cells = cells_of(tree)
    assert len(cells) > 3 * len(tree.partitions.centroids)
    np.testing.assert_array_equal(np.sort(np.concatenate([rows for *_, rows in cells])), np.arange(len(vectors)))
    for partition, centre, rows in cells:
        assert (tree.partitions.of_row[rows] == partition).all()
        np.testing.assert_allclose(centre, vectors[rows].mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(tree.vectors(np.arange(len(vectors))), vectors)
    far = np.concatenate([vectors[rows] - centre for _, centre, rows in cells])
    np.testing.assert_allclose(tree._spread.numpy(), np.sqrt(np.mean(far**2)), rtol=1e-4)


def test_the_same_partitions_give_the_same_cells():
    vectors, tree = in_cells()
    np.testing.assert_array_equal(Tree(vectors, tree.partitions)._rows.numpy(), tree._rows.numpy())


@pytest.mark.parametrize("share", [None, 0.4])
def test_a_search_looks_at_the_best_cells_and_those_nearly_as_good(share):
    vectors, tree = in_cells()
    queries = clustered(3000, seed=5)[:40]
    allowed = None if share is None else np.random.default_rng(2).random((len(queries), len(vectors))) < share
    parameters = SearchParameters(partitions_to_search=3, reorder=150)
    nothing = np.zeros((len(queries), 0), np.int32)
    scores, _ = tree.search(queries, 20, nothing, allowed, parameters)
    looked_at = []
    for number, query in enumerate(queries):
        best = np.argsort(-(tree.partitions.centroids @ query))[:3]
        cells = sorted(((c @ query, rows) for p, c, rows in cells_of(tree) if p in best), key=lambda cell: -cell[0])
        wanted = 150 if allowed is None else 150 / allowed[number].mean()
        sizes = np.cumsum([len(rows) for _, rows in cells])
        last = cells[min(np.searchsorted(sizes, int(wanted)), len(cells) - 1)][0]
        margin = tree._spread.numpy() * np.linalg.norm(query)
        rows = np.concatenate([rows for score, rows in cells if score >= last - margin])
        looked_at.append(len(rows))
        if allowed is not None:
            rows = rows[allowed[number, rows]]
        expected = -np.sort(-(vectors[rows] @ query))[:20]
        np.testing.assert_allclose(scores[number], expected, rtol=1e-4, atol=1e-4)
    assert len(set(looked_at)) > 10, "some queries look at more than others"


def test_vectors_that_are_all_alike_are_one_cell_and_found():
    vectors = np.ones((500, DIMENSION), np.float32)
    tree = Tree(vectors, Partitions(vectors[:1], np.zeros(500, np.int32)))
    assert len(cells_of(tree)) == 1
    scores, rows = tree.search(vectors[:1], 10, np.arange(490, dtype=np.int32)[np.newaxis])
    np.testing.assert_allclose(scores, np.full((1, 10), DIMENSION), rtol=1e-6)
    assert set(rows.numpy()[0]) == set(range(490, 500))


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
