"""The index layers against a numpy oracle, and saved and loaded in a fresh process."""

import itertools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules import retrieval
from modules.retrieval import NO_ROW, BruteForce, Effort, Scann, Tree

_DIMENSION = 12
_SMALL_EFFORT = Effort(partitions_to_search=2, reorder=20)
_FULL_EFFORT = Effort(partitions_to_search=10_000, reorder=10_000)


def _vectors(size, seed=0):
    """Clustered, as embeddings are, and of different lengths, as popular items' are longer."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(1, size // 20), _DIMENSION))
    vectors = centres[generator.integers(len(centres), size=size)] + generator.normal(0, 0.4, (size, _DIMENSION))
    return (vectors * generator.uniform(0.5, 1.5, (size, 1))).astype(np.float32)


def _index(layer, strategy, vectors, effort=_SMALL_EFFORT):
    if layer == "brute_force":
        return BruteForce(vectors)
    if layer == "scann":
        return Scann(retrieval.train_scann(vectors, strategy), effort)
    trained = retrieval.train_scann(vectors, strategy) if strategy == "tree" else None
    return retrieval.stock(vectors, strategy, effort, trained)


def _oracle(vectors, queries, k, excluded, allowed):
    """The scores of the k best permitted rows of each query, best first: a list of arrays of at most k."""
    expected = []
    for number, scores in enumerate(queries @ vectors.T):
        permitted = np.ones(len(vectors), bool) if allowed is None else allowed[number].copy()
        permitted[excluded[number][excluded[number] >= 0]] = False
        expected.append(np.sort(scores[permitted])[::-1][:k])
    return expected


def _check_promises(vectors, queries, k, excluded, allowed, scores, rows):
    """What every layer promises of every answer, approximate ones too."""
    expected = _oracle(vectors, queries, k, excluded, allowed)
    assert scores.shape == rows.shape == (len(queries), k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int32)
    for number, row in enumerate(rows):
        count = len(expected[number])
        assert np.all(row[:count] >= 0) and np.all(row[count:] == NO_ROW), "as many as exist, then padding"
        assert np.all(np.isneginf(scores[number, count:]))
        found = row[:count]
        assert len(set(found)) == count, "no row twice"
        assert not set(found) & set(excluded[number]), "no excluded row"
        assert allowed is None or np.all(allowed[number][found]), "no disallowed row"
        np.testing.assert_allclose(scores[number, :count], vectors[found] @ queries[number], rtol=1e-4, atol=1e-4)
        assert np.all(np.diff(scores[number, :count]) <= 1e-5), "best first"
    return expected


def _requests(size, generator):
    """All combinations of batch size, k, number of exclusions and kind of filter."""
    for batch, k, exclusions, share in itertools.product((1, 5), (1, 10, 60), (0, 3, 90), (None, 0.0, 0.01, 0.5)):
        queries = generator.normal(size=(batch, _DIMENSION)).astype(np.float32)
        excluded = generator.integers(-1, size, size=(batch, exclusions)).astype(np.int32)
        allowed = None if share is None else generator.random((batch, size)) < share
        yield queries, k, excluded, allowed


_EXACT = [("brute_force", "exact"), ("scann", "exact"), ("stock", "exact")]
_APPROXIMATE = [("scann", "quantized"), ("scann", "tree"), ("stock", "quantized"), ("stock", "tree")]


@pytest.mark.parametrize("size", [1, 2, 37, 400])
@pytest.mark.parametrize(("layer", "strategy"), _EXACT)
def test_exact_layers_equal_the_oracle(layer, strategy, size):
    vectors = _vectors(size)
    index = _index(layer, strategy, vectors)
    for queries, k, excluded, allowed in _requests(size, np.random.default_rng(size)):
        scores, rows = (x.numpy() for x in index.search(queries, k, excluded, allowed))
        expected = _check_promises(vectors, queries, k, excluded, allowed, scores, rows)
        for number, best in enumerate(expected):
            np.testing.assert_allclose(scores[number, : len(best)], best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [retrieval.SMALLEST_TRAINED, 700])
@pytest.mark.parametrize(("layer", "strategy"), _APPROXIMATE)
def test_approximate_layers_keep_their_promises(layer, strategy, size):
    vectors = _vectors(size)
    index = _index(layer, strategy, vectors)
    for queries, k, excluded, allowed in _requests(size, np.random.default_rng(size)):
        scores, rows = (x.numpy() for x in index.search(queries, k, excluded, allowed))
        _check_promises(vectors, queries, k, excluded, allowed, scores, rows)


@pytest.mark.parametrize(("layer", "strategy"), _APPROXIMATE)
def test_approximate_layers_are_exact_at_full_effort(layer, strategy):
    vectors = _vectors(700)
    index = _index(layer, strategy, vectors, _FULL_EFFORT)
    for queries, k, excluded, allowed in _requests(700, np.random.default_rng(1)):
        scores, _ = index.search(queries, k, excluded, allowed)
        for number, best in enumerate(_oracle(vectors, queries, k, excluded, allowed)):
            np.testing.assert_allclose(scores[number, : len(best)], best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "strategy"), _APPROXIMATE)
def test_little_effort_finds_most_of_the_best(layer, strategy):
    vectors, queries = _vectors(3000), _vectors(3000, seed=9)[:100]
    index = _index(layer, strategy, vectors, Effort(partitions_to_search=12, reorder=200))
    nothing = np.zeros((len(queries), 0), np.int32)
    scores, _ = index.search(queries, 10, nothing)
    kth = np.array([best[-1] for best in _oracle(vectors, queries, 10, nothing, None)])
    assert np.mean(scores.numpy() >= kth[:, None] - 1e-4) > 0.9


_SIZES = st.sampled_from([100, 160, 333, 900])


@given(size=_SIZES, seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("layer", ["brute_force", "scann", "stock"])
def test_business_rules_hold_on_random_catalogues(layer, size, seed, data):
    """Random catalogues, ties and duplicates among them; random filters, exclusions, k, batch sizes and efforts."""
    generator = np.random.default_rng(seed)
    vectors = _vectors(size, seed)
    vectors[generator.integers(size, size=size // 5)] = vectors[0]
    strategy = data.draw(st.sampled_from(["exact", "quantized", "tree"]))
    effort = Effort(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 200)))
    index = _index(layer, strategy, vectors, effort)
    for _ in range(3):
        batch, k = data.draw(st.sampled_from([1, 2, 7, 8, 9, 20])), data.draw(st.integers(1, 90))
        queries = generator.normal(size=(batch, _DIMENSION)).astype(np.float32)
        excluded = generator.integers(-1, size, (batch, data.draw(st.sampled_from([0, 1, 40, 300])))).astype(np.int32)
        allowed = None
        if data.draw(st.booleans()):
            # Each query has a filter of its own: of everything, of nothing, of 1 %, and between.
            shares = generator.choice([0, 0.01, 0.05, 0.07, 0.5, 1], size=(batch, 1))
            allowed = generator.random((batch, size)) < shares
        scores, rows = (x.numpy() for x in index.search(queries, k, excluded, allowed))
        expected = _check_promises(vectors, queries, k, excluded, allowed, scores, rows)
        for number, best in enumerate(expected):
            few = allowed is not None and allowed[number].sum() <= size / 16
            if few or layer == "brute_force" or strategy == "exact":
                np.testing.assert_allclose(scores[number, : len(best)], best, rtol=1e-4, atol=1e-4)


def test_an_effort_may_be_tensors():
    vectors, queries = _vectors(2000), _vectors(2000, seed=5)[:20]
    nothing = np.zeros((len(queries), 0), np.int32)
    for layer, strategy in _APPROXIMATE:
        index = _index(layer, strategy, vectors, Effort(1, 10))
        search = tf.function(lambda p, r, index=index: index.search(queries, 10, nothing, effort=Effort(p, r))[0])
        for effort in (Effort(1, 10), Effort(7, 60)):
            expected, _ = index.search(queries, 10, nothing, effort=effort)
            found = search(tf.constant(effort.partitions_to_search), tf.constant(effort.reorder))
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{layer} {strategy}")


def test_an_empty_batch_gets_an_empty_answer():
    vectors = _vectors(200)
    for layer, strategy in _EXACT + _APPROXIMATE:
        nothing = np.zeros((0, 4), np.int32)
        scores, rows = _index(layer, strategy, vectors).search(np.zeros((0, _DIMENSION), np.float32), 3, nothing)
        assert (scores.shape, rows.shape) == ((0, 3), (0, 3)), (layer, strategy)


def test_vectors_of_rows_are_those_given():
    vectors = _vectors(300)
    rows = np.array([299, 0, 17], np.int32)
    for layer, strategy in _EXACT + _APPROXIMATE:
        found = _index(layer, strategy, vectors).vectors(tf.constant(rows))
        np.testing.assert_array_equal(found, vectors[rows], err_msg=f"{layer} {strategy}")


def test_stock_searches_the_same_partitions_as_scann():
    vectors, queries = _vectors(2000), _vectors(2000, seed=5)[:50]
    trained = retrieval.train_scann(vectors, "tree")
    effort = Effort(partitions_to_search=3, reorder=2000)
    nothing = np.zeros((len(queries), 0), np.int32)
    scann, _ = Scann(trained, effort).search(queries, 10, nothing)
    stock, _ = Tree(vectors, trained, effort).search(queries, 10, nothing)
    np.testing.assert_allclose(stock, scann, rtol=1e-4, atol=1e-4)


def test_training_twice_gives_the_same_partitions():
    vectors = _vectors(5000)
    first, second = (retrieval.train_scann(vectors, "tree", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.partition_of, second.partition_of)


def test_spherical_partitions_are_of_directions():
    """Vectors along few directions, of very different lengths: by direction one partition holds all that is best."""
    generator = np.random.default_rng(5)
    directions = generator.normal(size=(20, _DIMENSION))
    vectors = directions[generator.integers(20, size=4000)] + generator.normal(0, 0.05, (4000, _DIMENSION))
    vectors = (vectors * generator.uniform(0.1, 10, (4000, 1))).astype(np.float32)
    trained = retrieval.train_scann(vectors, "tree", partitions=20, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(trained.centroids, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(trained.partition_of, np.argmax(vectors @ trained.centroids.T, axis=1))
    again = trained.with_rows(np.arange(1000), vectors[1000:])
    np.testing.assert_array_equal(again.partition_of, trained.partition_of)


@pytest.mark.slow
def test_partitions_of_a_catalogue_larger_than_the_training_sample_are_even():
    """A least size of partitions that the sample cannot fill left many empty, and a query had to search them all."""
    centres = np.random.default_rng(3).normal(size=(1000, 8))
    generator = np.random.default_rng(4)
    vectors = centres[generator.integers(1000, size=250_000)] + generator.normal(0, 0.3, (250_000, 8))
    trained = retrieval.train_scann(vectors.astype(np.float32), "tree", partitions=1000)
    sizes = np.bincount(trained.partition_of, minlength=1000)
    assert np.mean(sizes < 25) < 0.01 and np.percentile(sizes, 99) < 4 * 250


def test_strategy_follows_the_size_of_the_catalogue():
    sizes = (99, 19_999, 20_000, 99_999, 100_000)
    assert [retrieval.resolve_strategy("auto", size) for size in sizes] == [
        "exact", "exact", "quantized", "quantized", "tree"
    ]  # fmt: skip
    assert retrieval.resolve_strategy("tree", 99) == "exact", "too small to train on"
    assert retrieval.resolve_strategy("tree", 100) == "tree"


class _Search(tf.Module):
    """An index as a servable: everything it needs must be saved with it."""

    def __init__(self, index):
        super().__init__()
        self.index = index
        queries = tf.TensorSpec([None, _DIMENSION], tf.float32)
        excluded = tf.TensorSpec([None, None], tf.int32)
        allowed = tf.TensorSpec([None, index.size], tf.bool)
        self.search = tf.function(
            lambda queries, excluded, allowed: index.search(queries, 20, excluded, allowed),
            input_signature=[queries, excluded, allowed],
        )


_FRESH = """
    import json, sys
    import numpy as np
    import tensorflow as tf

    folder, with_scann, *names = sys.argv[1:]
    if with_scann == "True":
        from scann.scann_ops.py import scann_ops
    ask = json.load(open(f"{folder}/ask.json"))
    answers = {}
    for name in names:
        loaded = tf.saved_model.load(f"{folder}/{name}")
        graph = loaded.search.concrete_functions[0].graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        known = set(dir(tf.raw_ops)) | {function.signature.name for function in graph.library.function}
        _, rows = loaded.search(*(tf.constant(ask[key]) for key in ("queries", "excluded", "allowed")))
        answers[name] = {
            "rows": rows.numpy().tolist(),
            "foreign": sorted({node.op for node in nodes} - known),
            "biggest_constant": max(node.ByteSize() for node in nodes if node.op == "Const"),
        }
    answers["scann"] = any(name.startswith("scann") for name in sys.modules)
    json.dump(answers, open(f"{folder}/answers.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_scann", [False, True])
def test_saved_and_loaded_in_a_fresh_process(with_scann, tmp_path: Path):
    vectors = _vectors(600)
    generator = np.random.default_rng(2)
    ask = {
        "queries": generator.normal(size=(4, _DIMENSION)).tolist(),
        "excluded": generator.integers(-1, 600, (4, 7)).tolist(),
        "allowed": (generator.random((4, 600)) < 0.3).tolist(),
    }
    (tmp_path / "ask.json").write_text(json.dumps(ask))
    expected = {}
    for layer, strategy in _EXACT + _APPROXIMATE:
        if (layer == "scann") == with_scann:
            module = _Search(_index(layer, strategy, vectors))
            name = f"{layer}-{strategy}"
            options = tf.saved_model.SaveOptions(namespace_whitelist=list(module.index.namespaces))
            tf.saved_model.save(module, str(tmp_path / name), options=options)
            _, expected[name] = module.search(*(tf.constant(ask[key]) for key in ("queries", "excluded", "allowed")))
    command = [sys.executable, "-c", textwrap.dedent(_FRESH), str(tmp_path), str(with_scann), *expected]
    subprocess.run(command, check=True, capture_output=True)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["scann"] == with_scann
    for name, rows in expected.items():
        assert answers[name]["rows"] == rows.numpy().tolist(), name
        assert bool(answers[name]["foreign"]) == with_scann, answers[name]["foreign"]
        assert answers[name]["biggest_constant"] < 1000, "the catalogue belongs into variables"
