"""Cells to tf.Examples and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data import examples

text = st.binary(min_size=1, max_size=4).filter(lambda value: b"\x1f" not in value)
cells_of = {
    ("string", False): st.lists(st.one_of(st.none(), text), max_size=6),
    ("string", True): st.lists(st.one_of(st.none(), st.lists(text, min_size=1, max_size=3)), max_size=6),
    ("float32", False): st.lists(st.one_of(st.none(), st.floats(-9, 9, width=32)), max_size=6),
    ("int64", False): st.lists(st.one_of(st.none(), st.integers(0, 2**40)), max_size=6),
}


@given(st.sampled_from(sorted(cells_of)).flatmap(lambda key: st.tuples(st.just(key), cells_of[key])))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_cell_is_what_it_was_before_it_became_an_element(case: tuple[tuple[Any, bool], list[Any]]) -> None:
    (kind, multivalued), cells = case
    elements = examples.aligned(cells, kind)
    assert len(elements) == len(cells)
    assert [examples.cell(element, multivalued) for element in elements] == cells


def test_elements_of_missing_cells_keep_their_place() -> None:
    assert examples.aligned([None, [b"a", b"b"], b"c"], "string").tolist() == [b"", b"a\x1fb", b"c"]
    np.testing.assert_array_equal(examples.aligned([None, 2.5], "float32"), np.float32([np.nan, 2.5]))
    assert examples.aligned([None, 7], "int64").tolist() == [-1, 7]


def test_an_example_is_the_union_of_its_features() -> None:
    lists = {
        "texts": np.array([b"a", b"", b"c"], object), "numbers": np.float32([1.5, np.nan]), "times": np.array([1, -1]),
    }  # fmt: skip
    one = examples.features([("id", b"x"), ("none", None), ("empty", []), ("blank", b""), ("no_list", np.array([]))])
    two = examples.features([("age", 2.0), ("seconds", 3), ("several", [b"p", b"q"]), ("long", b"l" * 300)])
    example = tf.train.Example.FromString(examples.example(one, two, examples.features(lists.items())))
    found = dict(example.features.feature.items())
    assert sorted(found) == ["age", "id", "long", "numbers", "seconds", "several", "texts", "times"]
    assert list(found["texts"].bytes_list.value) == [b"a", b"", b"c"]
    np.testing.assert_array_equal(found["numbers"].float_list.value, [1.5, np.nan])
    assert list(found["times"].int64_list.value) == [1, -1]
    assert (found["id"].bytes_list.value[0], found["age"].float_list.value[0]) == (b"x", 2.0)
    assert (found["seconds"].int64_list.value[0], list(found["several"].bytes_list.value)) == (3, [b"p", b"q"])


def test_the_same_cells_give_the_same_bytes() -> None:
    cells = {f"key{n}": float(n) for n in range(20)}
    assert examples.features(cells.items()) == examples.features(reversed(cells.items()))
