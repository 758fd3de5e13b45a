"""Vectors from content against a dense solution, and against what was planted."""

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from modules.cold_start import ContentMap, ridge_regression
from modules.encodings.features import Features

FEATURES = Features.model_validate(
    {
        "query": [{"column": "age", "encoding": "normalized"}],
        "candidate": [
            {"column": "genres", "encoding": "vocabulary", "multivalued": True, "max_values": 3},
            {"column": "title", "encoding": "text", "max_tokens": 4},
            {"column": "price", "encoding": "normalized"},
            {"column": "added", "encoding": "timestamp", "buckets": 3},
        ],
    }
).candidate
CARDINALITIES = {"genres": 7, "title": 9, "added": 4}


def content(items: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "genres": rng.integers(0, 7, (items, 3)) * (rng.random((items, 3)) < 0.7),
        "title": rng.integers(0, 9, (items, 4)),
        "price": rng.normal(size=items).astype(np.float32),
        "added_bucket": rng.integers(0, 4, items),
        "added_cyclic": rng.normal(size=(items, 4)).astype(np.float32),
    }


@pytest.mark.parametrize("ridge", [0.1, 10.0])
def test_ridge_regression_against_the_normal_equations(ridge):
    rng = np.random.default_rng(1)
    x = scipy.sparse.random(60, 15, 0.3, random_state=2).tocsr()
    y = rng.normal(size=(60, 4)) + 3.0
    centred = x.toarray() - x.toarray().mean(axis=0)
    expected = np.linalg.solve(centred.T @ centred + ridge * np.eye(15), centred.T @ (y - y.mean(axis=0)))
    weights, intercept = ridge_regression(x, y, ridge)
    np.testing.assert_allclose(weights, expected, atol=1e-4)
    np.testing.assert_allclose(x.toarray().mean(axis=0) @ weights + intercept, y.mean(axis=0), rtol=1e-5)


def test_the_layer_multiplies_what_the_regression_was_given():
    layer, inputs = ContentMap(FEATURES, CARDINALITIES, np.zeros(5)), content(30)
    layer.fit(inputs, np.random.default_rng(3).normal(size=(30, 5)).astype(np.float32))
    intercept, *tables = (variable.numpy() for variable in layer.variables)
    rows = np.concatenate(tables)
    expected = layer.design(inputs) @ rows + intercept
    got = layer({key: tf.constant(values) for key, values in inputs.items()})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # n values of a feature count 1 / √n each.
    alone = {key: np.zeros((1, *values.shape[1:]), values.dtype) for key, values in inputs.items()}
    alone["genres"] = np.array([[2, 5, 6]])
    expected = np.zeros(len(rows))
    expected[[2, 5, 6]] = 3**-0.5
    np.testing.assert_allclose(layer.design(alone).toarray()[0], expected)


def test_a_value_of_several_hash_functions_counts_as_much_as_one_of_a_single_function():
    features = Features.model_validate(
        {
            "query": [{"column": "age", "encoding": "normalized"}],
            "candidate": [
                {"column": "maker", "encoding": "hash", "buckets": 4, "functions": 2},
                {
                    "column": "tags",
                    "encoding": "hash",
                    "buckets": 4,
                    "functions": 2,
                    "multivalued": True,
                    "max_values": 3,
                },
            ],
        }
    ).candidate
    layer = ContentMap(features, {"maker": 9, "tags": 9}, np.zeros(5))
    # Two tags of three, which share their bucket of the second function.
    inputs = {"maker": np.array([[2, 7], [0, 0]]), "tags": np.array([[1, 8, 3, 8, 0, 0], [0] * 6])}
    expected = np.zeros((2, 18))
    expected[0, [2, 7]] = 2**-0.5
    expected[0, [9 + 1, 9 + 3]], expected[0, 9 + 8] = 0.5, 1.0
    np.testing.assert_allclose(layer.design(inputs).toarray(), expected)
    rng = np.random.default_rng(2)
    for table in layer.variables:
        table.assign(rng.normal(size=table.shape))
    intercept, *tables = (variable.numpy() for variable in layer.variables)
    got = layer({key: tf.constant(values) for key, values in inputs.items()})
    np.testing.assert_allclose(got, expected @ np.concatenate(tables) + intercept, rtol=1e-5)


def test_what_content_says_is_found_for_items_that_were_not_there():
    truth, rng = ContentMap(FEATURES, CARDINALITIES, np.full(6, 0.5)), np.random.default_rng(4)
    for table in truth.variables[1:]:
        table.assign(rng.normal(size=table.shape))
    known, new = content(4000, 5), content(50, 6)
    vectors = truth({key: tf.constant(values) for key, values in known.items()}).numpy()
    layer = ContentMap(FEATURES, CARDINALITIES, np.zeros(6))
    layer.fit(known, vectors + rng.normal(0, 0.1, vectors.shape))
    inputs = {key: tf.constant(values) for key, values in new.items()}
    # The penalty pulls a little towards the mean.
    assert np.abs(layer(inputs) - truth(inputs)).mean() < 0.05 < truth(inputs).numpy().std() / 20


def test_without_content_a_cold_start_item_is_the_mean_of_the_others():
    layer = ContentMap([], {}, np.zeros(3))
    vectors = np.random.default_rng(7).normal(size=(9, 3)).astype(np.float32)
    layer.fit({}, vectors)
    np.testing.assert_allclose(layer({"label": tf.constant([0, 0])})[0], vectors.mean(axis=0), rtol=1e-6)
