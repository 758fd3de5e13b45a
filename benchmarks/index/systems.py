"""What is compared. Each system imports its library when it is built: no process needs all of them."""

from __future__ import annotations

import abc
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Effort = tuple[int, ...]
Efforts = Iterator[Sequence[Effort]]
"""Groups of rising cost; within a group efforts rise as well, and the first that is good enough ends it."""


class System(abc.ABC):
    """An index over vectors [C, D] that answers k best rows by inner product."""

    in_bench_environment = False
    """Whether its library is installed beside the pipeline or among the benchmarks' peers."""

    def __init__(
        self, vectors: np.ndarray, k: int, threads: int, partitions: int | None = None, spherical: bool = False
    ) -> None:
        """Builds it.

        Args:
            vectors: [C, D].
            k: Number of rows that a search answers.
            threads: Of a search.
            partitions: Leaves of ScaNN's tree, in all systems that search one; None chooses by the number of vectors.
            spherical: Whether ScaNN's partitions are of directions.
        """
        self.size, self.dimension = vectors.shape
        self.k = k
        self.threads = threads
        self.partitions = min(partitions or round(2 * self.size**0.5), self.size)
        self.spherical = spherical
        self.build(vectors)

    @abc.abstractmethod
    def build(self, vectors: np.ndarray) -> None:
        """With all processors there are."""

    @abc.abstractmethod
    def efforts(self) -> Efforts: ...

    @abc.abstractmethod
    def search(self, queries: np.ndarray, effort: Effort) -> np.ndarray:
        """Rows [B, k], best first."""

    @abc.abstractmethod
    def bytes(self) -> int:
        """Memory of what is searched."""


class _TensorFlow(System):
    """A layer of this project in a traced function, as a servable has it."""

    def _trace(self, index: Any) -> None:
        import tensorflow as tf

        from modules.retrieval.top_k import SearchParameters

        self._index = index
        number = tf.TensorSpec([], tf.int32)
        signature = [tf.TensorSpec([None, self.dimension]), tf.TensorSpec([None, None], tf.int32), number, number]
        self._search = tf.function(
            lambda q, e, leaves, reorder: index.search(q, self.k, e, parameters=SearchParameters(leaves, reorder))[1],
            input_signature=signature,
            autograph=False,
        ).get_concrete_function()
        self._nothing = {size: tf.zeros([size, 0], tf.int32) for size in (1, 64)}

    def search(self, queries: np.ndarray, effort: Effort) -> np.ndarray:
        import tensorflow as tf

        nothing = self._nothing.get(len(queries))
        nothing = tf.zeros([len(queries), 0], tf.int32) if nothing is None else nothing
        leaves, reorder = effort or (1, 1)
        return self._search(tf.constant(queries), nothing, tf.constant(leaves), tf.constant(reorder)).numpy()

    def bytes(self) -> int:
        return sum(v.dtype.size * int(np.prod(v.shape)) for v in self._index.variables if v.dtype.size)


class BruteForce(_TensorFlow):
    def build(self, vectors: np.ndarray) -> None:
        from modules.retrieval import brute_force

        self._trace(brute_force.BruteForce(vectors))

    def efforts(self) -> Efforts:
        yield [(1, 1)]


def _tree_efforts(leaves: int, k: int, factors: Sequence[float] = (1, 2, 4, 8, 16)) -> Efforts:
    searched = max(2, leaves // 512)
    while searched < leaves:
        yield [(searched, round(factor * k)) for factor in factors]
        searched = math.ceil(2**0.5 * searched)
    yield [(leaves, round(factors[-1] * k))]


class Stock(_TensorFlow):
    def build(self, vectors: np.ndarray) -> None:
        from modules.retrieval.scann import train_partitions
        from modules.retrieval.tree import Tree

        trained = train_partitions(vectors, partitions=self.partitions, spherical=self.spherical)
        self._trace(Tree(vectors, trained))

    def efforts(self) -> Efforts:
        factors = (1, 1.4, 2, 2.8, 4, 5.6, 8, 16, 32, 64)
        return _tree_efforts(self.partitions, self.k, factors)


class ScannOp(_TensorFlow):
    def build(self, vectors: np.ndarray) -> None:
        from modules.retrieval.scann import Scann, train_scann
        from modules.retrieval.top_k import SearchParameters

        trained = train_scann(vectors, "tree", partitions=self.partitions, spherical=self.spherical)
        self._trace(Scann(trained, SearchParameters()))

    def efforts(self) -> Efforts:
        return _tree_efforts(self.partitions, self.k)


class ScannPybind(System):
    def build(self, vectors: np.ndarray) -> None:
        from scann.scann_ops.py import scann_ops_pybind

        from modules.retrieval.scann_settings import hashing_settings, tree_settings

        builder = scann_ops_pybind.builder(vectors, self.k, "dot_product")
        builder = builder.tree(**tree_settings(len(vectors), self.partitions), spherical=self.spherical)
        self._searcher = builder.score_ah(**hashing_settings(2)).reorder(self.k).build()

    def efforts(self) -> Efforts:
        return _tree_efforts(self.partitions, self.k)

    def search(self, queries: np.ndarray, effort: Effort) -> np.ndarray:
        leaves, reorder = effort
        if len(queries) == 1:
            return self._searcher.search(queries[0], self.k, reorder, leaves)[0][np.newaxis]
        parallel = self._searcher.search_batched_parallel if self.threads > 1 else self._searcher.search_batched
        return parallel(queries, self.k, reorder, leaves)[0]

    def bytes(self) -> int:
        return self.size * self.dimension * 4 + self.size * -(-self.dimension // 4)


class ScannCore(ScannPybind):
    """The same search as a library of its own, without TensorFlow, under the same names."""

    in_bench_environment = True


class FaissIvfPq(System):
    """IVF with 4-bit product codes scanned in registers, as ScaNN's, and exact refinement."""

    in_bench_environment = True

    def build(self, vectors: np.ndarray) -> None:
        import faiss

        faiss.omp_set_num_threads(os.cpu_count() or 1)
        leaves, blocks = self.partitions, self.dimension // 2
        self._index = faiss.index_factory(
            self.dimension, f"IVF{leaves},PQ{blocks}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT
        )
        # Faiss warns of fewer than 39 for each partition.
        sample = np.random.default_rng(0).permutation(len(vectors))[: 40 * leaves]
        self._index.train(vectors[sample])
        self._index.add(vectors)
        faiss.omp_set_num_threads(self.threads)

    def efforts(self) -> Efforts:
        return _tree_efforts(self.partitions, self.k)

    def search(self, queries: np.ndarray, effort: Effort) -> np.ndarray:
        import faiss

        leaves, reorder = effort
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=reorder / self.k, base_index_params=faiss.SearchParametersIVF(nprobe=leaves)
        )
        return self._index.search(queries, self.k, params=parameters)[1]

    def bytes(self) -> int:
        import faiss

        return len(faiss.serialize_index(self._index))


_GRAPH_DEGREE = 32
_BUILD_EFFORT = 200


def _graph_efforts(k: int) -> Efforts:
    for factor in (1, 2, 4, 8, 16, 32):
        yield [(factor * k,)]


class FaissHnsw(System):
    in_bench_environment = True

    def build(self, vectors: np.ndarray) -> None:
        import faiss

        faiss.omp_set_num_threads(os.cpu_count() or 1)
        self._index = faiss.IndexHNSWFlat(self.dimension, _GRAPH_DEGREE // 2, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = _BUILD_EFFORT
        self._index.add(vectors)
        faiss.omp_set_num_threads(self.threads)

    def efforts(self) -> Efforts:
        return _graph_efforts(self.k)

    def search(self, queries: np.ndarray, effort: Effort) -> np.ndarray:
        import faiss

        return self._index.search(queries, self.k, params=faiss.SearchParametersHNSW(efSearch=effort[0]))[1]

    def bytes(self) -> int:
        import faiss

        return len(faiss.serialize_index(self._index))


class Hnswlib(System):
    in_bench_environment = True

    def build(self, vectors: np.ndarray) -> None:
        import hnswlib

        self._index = hnswlib.Index("ip", self.dimension)
        self._index.init_index(len(vectors), ef_construction=_BUILD_EFFORT, M=_GRAPH_DEGREE // 2)
        self._index.add_items(vectors, num_threads=os.cpu_count() or 1)

    def efforts(self) -> Efforts:
        return _graph_efforts(self.k)

    def search(self, queries: np.ndarray, effort: Effort) -> np.ndarray:
        self._index.set_ef(effort[0])
        return self._index.knn_query(queries, self.k, num_threads=self.threads)[0]

    def bytes(self) -> int:
        return int(self._index.index_file_size())


class Usearch(System):
    in_bench_environment = True

    def build(self, vectors: np.ndarray) -> None:
        from usearch.index import Index

        self._index = Index(
            ndim=self.dimension, metric="ip", dtype="f32", connectivity=_GRAPH_DEGREE // 2,
            expansion_add=_BUILD_EFFORT,
        )  # fmt: skip
        self._index.add(np.arange(len(vectors)), vectors, threads=os.cpu_count() or 1)

    def efforts(self) -> Efforts:
        return _graph_efforts(self.k)

    def search(self, queries: np.ndarray, effort: Effort) -> np.ndarray:
        self._index.expansion_search = effort[0]
        matches = self._index.search(queries, self.k, threads=self.threads)
        return np.asarray(matches.keys).reshape(len(queries), -1)

    def bytes(self) -> int:
        return int(self._index.memory_usage)


SYSTEMS: dict[str, type[System]] = {
    "tensorflow": BruteForce,
    "stock": Stock,
    "scann_op": ScannOp,
    "scann_pybind": ScannPybind,
    "scann_core": ScannCore,
    "faiss_ivfpq": FaissIvfPq,
    "faiss_hnsw": FaissHnsw,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
}
