"""Filters against plain Python."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.servable.filters import Filter

_VALUES = st.sampled_from(["Action", "Comédie", "a|b", "", "x"])


@given(
    rows=st.lists(st.lists(_VALUES, max_size=3), min_size=1, max_size=8),
    wanted=st.lists(st.lists(st.sampled_from(["Action", "Comédie", "a|b", "", "nothing"]), min_size=2, max_size=2),
                    min_size=1, max_size=4),
)  # fmt: skip
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_row_is_let_through_when_it_has_one_of_the_values(rows, wanted, tmp_path_factory):
    built = Filter(rows, str(tmp_path_factory.mktemp("filter") / "values.txt"))
    expected = [
        [not any(of_request) or any(v in of_row for v in of_request if v) for of_row in rows] for of_request in wanted
    ]
    np.testing.assert_array_equal(built.rows_with(tf.constant(wanted), len(rows)), expected)
