"""What every index layer promises, against a numpy oracle: each layer's test file runs this class on its layer."""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import plain_tensorflow
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.retrieval.top_k import NO_ROW, SMALLEST_TRAINED, SearchParameters, TopK

DIMENSION = 12
NEITHER_MUCH_NOR_LITTLE = SearchParameters(partitions_to_search=2, reorder=20)
EVERYTHING = SearchParameters(partitions_to_search=10_000, reorder=10_000)


def clustered(size: int, seed: int = 0) -> np.ndarray:
    """[size, DIMENSION] in clusters, as embeddings are, and of different lengths, as popular items' are longer."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(1, size // 20), DIMENSION))
    vectors = centres[generator.integers(len(centres), size=size)] + generator.normal(0, 0.4, (size, DIMENSION))
    return (vectors * generator.uniform(0.5, 1.5, (size, 1))).astype(np.float32)


def oracle(vectors, queries, k, excluded, allowed) -> list[np.ndarray]:
    """The scores of the k best permitted rows of each query, best first; fewer where fewer exist."""
    expected = []
    for number, scores in enumerate(queries @ vectors.T):
        permitted = np.ones(len(vectors), bool) if allowed is None else allowed[number].copy()
        permitted[excluded[number][excluded[number] >= 0]] = False
        expected.append(np.sort(scores[permitted])[::-1][:k])
    return expected


def assert_promises(vectors, queries, k, excluded, allowed, scores, rows) -> list[np.ndarray]:
    """What holds of every answer, an approximate one too; returns the oracle's scores."""
    expected = oracle(vectors, queries, k, excluded, allowed)
    assert scores.shape == rows.shape == (len(queries), k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int32)
    for number, row in enumerate(rows):
        count = len(expected[number])
        assert np.all(row[:count] >= 0) and np.all(row[count:] == NO_ROW), "as many as exist, then padding"
        assert np.all(np.isneginf(scores[number, count:]))
        returned = row[:count]
        assert len(set(returned)) == count, "no row twice"
        assert not set(returned) & set(excluded[number]), "no excluded row"
        assert allowed is None or np.all(allowed[number][returned]), "no disallowed row"
        np.testing.assert_allclose(scores[number, :count], vectors[returned] @ queries[number], rtol=1e-4, atol=1e-4)
        assert np.all(np.diff(scores[number, :count]) <= 1e-5), "best first"
    return expected


def requests(size: int, generator: np.random.Generator):
    """All combinations of batch size, k, number of exclusions and kind of filter."""
    for batch, k, exclusions, share in itertools.product((1, 5), (1, 10, 60), (0, 3, 90), (None, 0.0, 0.01, 0.5)):
        queries = generator.normal(size=(batch, DIMENSION)).astype(np.float32)
        excluded = generator.integers(-1, size, size=(batch, exclusions)).astype(np.int32)
        allowed = None if share is None else generator.random((batch, size)) < share
        yield queries, k, excluded, allowed


class _Saved(tf.Module):
    """An index as a servable: everything it needs must be saved with it."""

    def __init__(self, index: TopK) -> None:
        super().__init__()
        self.index = index
        queries = tf.TensorSpec([None, DIMENSION], tf.float32)
        excluded = tf.TensorSpec([None, None], tf.int32)
        allowed = tf.TensorSpec([None, index.size], tf.bool)
        self.search = tf.function(
            lambda queries, excluded, allowed: index.search(queries, 20, excluded, allowed),
            input_signature=[queries, excluded, allowed],
        )


_FRESH = """
    import json, sys
    import tensorflow as tf

    folder, with_scann = sys.argv[1:]
    if with_scann == "True":
        from scann.scann_ops.py import scann_ops
    ask = json.load(open(f"{folder}/ask.json"))
    loaded = tf.saved_model.load(f"{folder}/index")
    graph = loaded.search.concrete_functions[0].graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    known = set(dir(tf.raw_ops)) | {function.signature.name for function in graph.library.function}
    _, rows = loaded.search(*(tf.constant(ask[key]) for key in ("queries", "excluded", "allowed")))
    answer = {
        "rows": rows.numpy().tolist(),
        "foreign": sorted({node.op for node in nodes} - known),
        "biggest_constant": max(node.ByteSize() for node in nodes if node.op == "Const"),
        "scann": any(name.startswith("scann") for name in sys.modules),
    }
    json.dump(answer, open(f"{folder}/answer.json", "w"))
"""


class IndexLayerConformance:
    """Subclass it as `Test…`, say what is built, and every promise is tested."""

    exact = False
    """Whether an answer is the best one at any search parameters."""
    smallest = SMALLEST_TRAINED
    """The smallest catalogue that can be built."""
    namespaces: tuple[str, ...] = ()
    """Of the custom ops that it needs."""

    def build(self, vectors: np.ndarray, parameters: SearchParameters) -> TopK:
        raise NotImplementedError

    @pytest.mark.parametrize("size", [1, 2, 37, SMALLEST_TRAINED, 700])
    def test_it_keeps_its_promises(self, size):
        if size < self.smallest:
            pytest.skip("smaller catalogues are searched exactly")
        vectors = clustered(size)
        index = self.build(vectors, NEITHER_MUCH_NOR_LITTLE)
        for queries, k, excluded, allowed in requests(size, np.random.default_rng(size)):
            scores, rows = (x.numpy() for x in index.search(queries, k, excluded, allowed))
            expected = assert_promises(vectors, queries, k, excluded, allowed, scores, rows)
            if self.exact:
                for number, best in enumerate(expected):
                    np.testing.assert_allclose(scores[number, : len(best)], best, rtol=1e-4, atol=1e-4)

    def test_it_is_exact_when_it_looks_at_everything(self):
        vectors = clustered(700)
        index = self.build(vectors, EVERYTHING)
        for queries, k, excluded, allowed in requests(700, np.random.default_rng(1)):
            scores, _ = index.search(queries, k, excluded, allowed)
            for number, best in enumerate(oracle(vectors, queries, k, excluded, allowed)):
                np.testing.assert_allclose(scores[number, : len(best)], best, rtol=1e-4, atol=1e-4)

    def test_looking_at_little_finds_most_of_the_best(self):
        vectors, queries = clustered(3000), clustered(3000, seed=9)[:100]
        index = self.build(vectors, SearchParameters(partitions_to_search=12, reorder=200))
        nothing = np.zeros((len(queries), 0), np.int32)
        scores, _ = index.search(queries, 10, nothing)
        kth = np.array([best[-1] for best in oracle(vectors, queries, 10, nothing, None)])
        assert np.mean(scores.numpy() >= kth[:, None] - 1e-4) > 0.9

    @given(size=st.sampled_from([100, 160, 333, 900]), seed=st.integers(0, 10_000), data=st.data())
    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def test_business_rules_hold_on_random_catalogues(self, size, seed, data):
        """Random catalogues, ties and duplicates among them; random filters, exclusions, k, batches and parameters."""
        generator = np.random.default_rng(seed)
        vectors = clustered(size, seed)
        vectors[generator.integers(size, size=size // 5)] = vectors[0]
        index = self.build(vectors, SearchParameters(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 200))))
        for _ in range(3):
            batch, k = data.draw(st.sampled_from([1, 2, 7, 8, 9, 20])), data.draw(st.integers(1, 90))
            queries = generator.normal(size=(batch, DIMENSION)).astype(np.float32)
            width = data.draw(st.sampled_from([0, 1, 40, 300]))
            excluded = generator.integers(-1, size, (batch, width)).astype(np.int32)
            allowed = None
            if data.draw(st.booleans()):
                # Each query has a filter of its own: of everything, of nothing, of 1 %, and between.
                shares = generator.choice([0, 0.01, 0.05, 0.07, 0.5, 1], size=(batch, 1))
                allowed = generator.random((batch, size)) < shares
            scores, rows = (x.numpy() for x in index.search(queries, k, excluded, allowed))
            expected = assert_promises(vectors, queries, k, excluded, allowed, scores, rows)
            for number, best in enumerate(expected):
                few = allowed is not None and allowed[number].sum() <= size / 16
                if few or self.exact:
                    np.testing.assert_allclose(scores[number, : len(best)], best, rtol=1e-4, atol=1e-4)

    def test_search_parameters_may_be_tensors(self):
        vectors, queries = clustered(2000), clustered(2000, seed=5)[:20]
        nothing = np.zeros((len(queries), 0), np.int32)
        index = self.build(vectors, SearchParameters(1, 10))
        search = tf.function(lambda p, r: index.search(queries, 10, nothing, parameters=SearchParameters(p, r))[0])
        for parameters in (SearchParameters(1, 10), SearchParameters(7, 60)):
            expected, _ = index.search(queries, 10, nothing, parameters=parameters)
            scores = search(tf.constant(parameters.partitions_to_search), tf.constant(parameters.reorder))
            np.testing.assert_allclose(scores, expected, rtol=1e-5)

    @pytest.mark.parametrize("exclusions", [0, 3, 650])
    def test_both_answers_are_those_of_two_searches(self, exclusions):
        generator = np.random.default_rng(4)
        index = self.build(clustered(700), NEITHER_MUCH_NOR_LITTLE)
        queries = generator.normal(size=(5, DIMENSION)).astype(np.float32)
        excluded = generator.integers(-1, 700, (5, exclusions)).astype(np.int32)
        scores, rows, with_excluded = index.search_both(queries, 60, excluded)
        expected_scores, expected_rows = index.search(queries, 60, excluded)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
        np.testing.assert_array_equal(with_excluded, index.search(queries, 60, excluded[:, :0])[1])

    def test_an_empty_batch_gets_an_empty_answer(self):
        index = self.build(clustered(200), NEITHER_MUCH_NOR_LITTLE)
        scores, rows = index.search(np.zeros((0, DIMENSION), np.float32), 3, np.zeros((0, 4), np.int32))
        assert (scores.shape, rows.shape) == ((0, 3), (0, 3))

    def test_vectors_of_rows_are_those_given(self):
        vectors, rows = clustered(300), np.array([299, 0, 17], np.int32)
        index = self.build(vectors, NEITHER_MUCH_NOR_LITTLE)
        np.testing.assert_array_equal(index.vectors(tf.constant(rows)), vectors[rows])

    @pytest.mark.slow
    def test_it_answers_in_a_fresh_process(self, tmp_path: Path):
        generator = np.random.default_rng(2)
        ask = {
            "queries": generator.normal(size=(4, DIMENSION)).tolist(),
            "excluded": generator.integers(-1, 600, (4, 7)).tolist(),
            "allowed": (generator.random((4, 600)) < 0.3).tolist(),
        }
        (tmp_path / "ask.json").write_text(json.dumps(ask))
        module = _Saved(self.build(clustered(600), NEITHER_MUCH_NOR_LITTLE))
        assert module.index.namespaces == self.namespaces
        options = tf.saved_model.SaveOptions(namespace_whitelist=list(self.namespaces))
        tf.saved_model.save(module, str(tmp_path / "index"), options=options)
        _, expected = module.search(*(tf.constant(ask[key]) for key in ("queries", "excluded", "allowed")))
        needs_scann = "Scann" in self.namespaces
        command = [sys.executable, "-c", textwrap.dedent(_FRESH), str(tmp_path), str(needs_scann)]
        plain_tensorflow.run(command, check=True)
        answer = json.loads((tmp_path / "answer.json").read_text())
        assert answer["rows"] == expected.numpy().tolist()
        assert answer["scann"] == bool(answer["foreign"]) == needs_scann, answer["foreign"]
        assert answer["biggest_constant"] < 1000, "the catalogue belongs into variables"
