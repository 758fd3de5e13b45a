"""ScaNN's own ops keep what every layer promises; what ScaNN learns is repeatable and even."""

import numpy as np
import pytest
from index_conformance import DIMENSION, IndexLayerConformance, clustered

from modules.retrieval import scann_settings
from modules.retrieval.scann import Scann, train_partitions, train_scann

# The layers of stock ops, which are built from what ScaNN learns, keep the same promises in test-fast.
pytestmark = pytest.mark.slow


class _Scann(IndexLayerConformance):
    namespaces = ("Scann",)
    strategy = "tree"

    def build(self, vectors, parameters):
        return Scann(train_scann(vectors, self.strategy), parameters)


class TestScannExact(_Scann):
    strategy = "exact"
    exact = True
    smallest = 1


class TestScannQuantized(_Scann):
    strategy = "quantized"


class TestScannTree(_Scann):
    strategy = "tree"


def test_training_twice_gives_the_same_partitions():
    vectors = clustered(5000)
    first, second = (train_scann(vectors, "tree", seed=3).partitions for _ in range(2))
    np.testing.assert_array_equal(first.of_row, second.of_row)
    assert train_scann(vectors, "quantized").partitions is None


@pytest.mark.parametrize("spherical", [False, True])
def test_partitions_alone_are_those_of_the_tree_with_codes(spherical):
    vectors = clustered(3000)
    trained = train_scann(vectors, "tree", partitions=40, spherical=spherical).partitions
    alone = train_partitions(vectors, partitions=40, spherical=spherical)
    np.testing.assert_array_equal(alone.centroids, trained.centroids)
    np.testing.assert_array_equal(alone.of_row, trained.of_row)


def test_partitions_learned_from_a_sample_take_all_vectors_by_nearest_centre(monkeypatch):
    monkeypatch.setattr(scann_settings, "_LEAST_SAMPLE", 500)
    monkeypatch.setattr(scann_settings, "_SAMPLE_PER_PARTITION", 8)
    vectors = clustered(4000)
    partitions, again = (train_partitions(vectors, partitions=50) for _ in range(2))
    assert len(partitions.centroids) == 50
    distances = ((vectors[:, None] - partitions.centroids[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(partitions.of_row, distances.argmin(axis=1))
    np.testing.assert_array_equal(partitions.of_row, again.of_row)
    every = train_scann(vectors, "tree", partitions=50).partitions
    error = np.sum((vectors - every.centroids[every.of_row]) ** 2)
    assert distances.min(axis=1).sum() < 1.2 * error, "about as near as the centres that all vectors were assigned by"


def test_spherical_partitions_are_of_directions():
    """Vectors along few directions, of very different lengths: by direction one partition holds all that is best."""
    generator = np.random.default_rng(5)
    directions = generator.normal(size=(20, DIMENSION))
    vectors = directions[generator.integers(20, size=4000)] + generator.normal(0, 0.05, (4000, DIMENSION))
    vectors = (vectors * generator.uniform(0.1, 10, (4000, 1))).astype(np.float32)
    partitions = train_scann(vectors, "tree", partitions=20, spherical=True).partitions
    np.testing.assert_allclose(np.linalg.norm(partitions.centroids, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(partitions.of_row, np.argmax(vectors @ partitions.centroids.T, axis=1))
    again = partitions.with_rows(np.arange(1000), vectors[1000:])
    np.testing.assert_array_equal(again.of_row, partitions.of_row)


@pytest.mark.slow
def test_partitions_of_a_catalogue_larger_than_the_training_sample_are_even():
    """A least size of partitions that the sample cannot fill left many empty, and a query had to search them all."""
    centres = np.random.default_rng(3).normal(size=(1000, 8))
    generator = np.random.default_rng(4)
    vectors = centres[generator.integers(1000, size=250_000)] + generator.normal(0, 0.3, (250_000, 8))
    partitions = train_scann(vectors.astype(np.float32), "tree", partitions=1000).partitions
    sizes = np.bincount(partitions.of_row, minlength=1000)
    assert np.mean(sizes < 25) < 0.01 and np.percentile(sizes, 99) < 4 * 250
