"""Exact search keeps what every layer promises."""

from index_conformance import IndexLayerConformance

from modules.retrieval.brute_force import BruteForce


class TestBruteForce(IndexLayerConformance):
    exact = True
    smallest = 1

    def build(self, vectors, parameters):
        return BruteForce(vectors)
