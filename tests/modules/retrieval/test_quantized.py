"""The first pass over principal dimensions keeps what every layer promises."""

import numpy as np
from index_conformance import IndexLayerConformance

from modules.retrieval.quantized import Quantized
from modules.retrieval.top_k import SearchParameters


class TestQuantized(IndexLayerConformance):
    smallest = 1

    def build(self, vectors, parameters):
        return Quantized(vectors, parameters)


def test_a_first_pass_of_vectors_in_a_plane_loses_nothing():
    """Vectors that lie in two dimensions of twelve have two principal directions, and the k best need no reordering."""
    generator = np.random.default_rng(0)
    plane = np.linalg.qr(generator.normal(size=(12, 2)))[0]
    vectors = (generator.normal(size=(500, 2)) @ plane.T).astype(np.float32)
    queries = generator.normal(size=(20, 12)).astype(np.float32)
    index = Quantized(vectors, SearchParameters(reorder=1))
    _, rows = index.search(queries, 5, np.zeros((20, 0), np.int32))
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    np.testing.assert_array_equal(rows, expected)
