"""Hashed categories with one hash function and with several: their ids, and what they share."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from modules.encodings.base import term
from modules.encodings.hash import Hash
from modules.encodings.items import ItemIds
from modules.encodings.values import present

BUCKETS = 16
USERS = [f"user {number}" for number in range(2000)]


def encode(feature, values):
    (ids,) = feature.encode(feature.read(present(tf.constant(values))), None, ItemIds("item"))
    return ids.numpy()


def feature(functions=1, **fields):
    return Hash(column="user", buckets=BUCKETS, functions=functions, **fields)


def terms(of, values):
    """[N, dimension] terms under a table of random rows."""
    rows = np.random.default_rng(1).normal(size=(of.cardinality(None, ItemIds("item")), 4)).astype(np.float32)
    inputs = {"user": tf.constant(encode(of, values))}
    return term(of, inputs, lambda ids: tf.gather(rows, ids)).numpy(), rows


def shared(ids):
    """[N, N] how many ids two values have in common, place by place; a value with itself counts nothing."""
    alike = (ids[:, np.newaxis] == ids[np.newaxis]).sum(axis=2)
    np.fill_diagonal(alike, 0)
    return alike


def test_one_function_is_the_hash_that_always_was():
    values = ["", *USERS]
    expected = np.append(0, tf.strings.to_hash_bucket_fast(USERS, BUCKETS).numpy() + 1)
    plain = Hash.model_validate({"column": "user", "buckets": BUCKETS})
    for one in (plain, feature(1)):
        ids = encode(one, values)
        assert ids.shape == (len(values),) and ids.dtype == np.int64
        np.testing.assert_array_equal(ids, expected)
        assert one.encoded["user"].shape == () and one.cardinality(None, ItemIds("item")) == 1 + BUCKETS
        assert one.rows_mean == "hash"


def test_each_function_has_ids_of_its_own():
    ids = encode(feature(3), ["", *USERS])
    assert ids.shape == (1 + len(USERS), 3) and not ids[0].any()
    np.testing.assert_array_equal(ids[1:, 0], encode(feature(1), USERS))
    for function in (1, 2):
        key = [int.from_bytes(b"twotower"), function]
        hashed = tf.strings.to_hash_bucket_strong(USERS, BUCKETS, key=key).numpy()
        np.testing.assert_array_equal(ids[1:, function], 1 + function * BUCKETS + hashed)
    for function in range(3):
        own = np.arange(1 + function * BUCKETS, 1 + (function + 1) * BUCKETS)
        np.testing.assert_array_equal(np.unique(ids[1:, function]), own)
    assert feature(3).cardinality(None, ItemIds("item")) == ids.max() + 1


def test_a_pushed_models_rows_stand_where_these_ids_say():
    expected = [[2, 23, 42], [9, 24, 34], [5, 22, 43]]
    np.testing.assert_array_equal(encode(feature(3), ["196", "größe", "user 7"]), expected)


def test_the_ids_of_a_list_stand_value_by_value():
    of_lists = feature(2, separator="|", max_values=3)
    ids = encode(of_lists, ["user 1 | user 2", "", "user 3|user 4|user 5|user 6"])
    single = encode(feature(2), USERS[:7])
    assert of_lists.encoded["user"].shape == ids.shape[1:] == (6,)
    np.testing.assert_array_equal(ids, [[*single[1], *single[2], 0, 0], [0] * 6, single[3:6].ravel()])


@pytest.mark.parametrize(("functions", "expected"), [(1, 1 / BUCKETS), (2, BUCKETS**-2)])
def test_functions_collide_independently_of_each_other(functions, expected):
    ids = encode(feature(functions), USERS).reshape(len(USERS), functions)
    pairs = len(USERS) * (len(USERS) - 1)
    assert (shared(ids) == functions).sum() / pairs == pytest.approx(expected, rel=0.1)


def test_values_that_collide_in_one_function_differ_and_those_that_collide_in_all_do_not():
    two = feature(2)
    found, rows = terms(two, USERS)
    ids = encode(two, USERS)
    np.testing.assert_allclose(found, rows[ids].mean(axis=1), rtol=1e-6)
    one, other = np.argwhere(shared(ids) == 1).T
    assert len(one) > 1000 and (np.abs(found[one] - found[other]).max(axis=1) > 1e-3).all()
    one, other = np.argwhere(shared(ids) == 2).T
    assert len(one) > 100
    np.testing.assert_array_equal(found[one], found[other])
    alone, _ = terms(feature(1), USERS)
    one, other = np.argwhere(shared(encode(feature(1), USERS)[:, np.newaxis]) == 1).T
    np.testing.assert_array_equal(alone[one], alone[other])


def test_a_list_is_the_mean_of_its_values_and_a_missing_value_is_nothing():
    found, _ = terms(feature(2, separator="|", max_values=3), ["user 1|user 2", ""])
    single, _ = terms(feature(2), USERS[:3])
    np.testing.assert_allclose(found[0], (single[1] + single[2]) / 2, rtol=1e-5)
    assert not found[1].any()


def test_the_gradient_of_a_table_is_of_the_rows_that_a_batch_reads():
    two = feature(2)
    table = tf_keras.layers.Embedding(two.cardinality(None, ItemIds("item")), 4)
    ids = encode(two, USERS[:5])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(term(two, {"user": tf.constant(ids)}, table))
    gradient = tape.gradient(total, table.embeddings)
    assert isinstance(gradient, tf.IndexedSlices)
    assert set(gradient.indices.numpy()) == set(ids.ravel())
