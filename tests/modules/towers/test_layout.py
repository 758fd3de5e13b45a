"""Which columns of a vector mean what."""

import json

import numpy as np
import pytest
from tiny_towers import factors, query_inputs, towers

from modules.settings import Model
from modules.towers.layout import VectorLayout


@pytest.mark.parametrize("diversity", [0.0, 0.5])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
def test_the_slices_cover_a_vector_of_the_towers_without_a_gap(rank, normalize, diversity):
    model = Model(dimension=8, normalize=normalize, diversity=diversity)
    built = towers(model, factors=factors(rank) if rank else None)
    layout = built.layout
    slices = [layout.learned, layout.item_item, layout.lift, layout.discount]
    assert [d for part in slices for d in range(part.start, part.stop)] == list(range(layout.width))
    assert built.query_vectors(query_inputs()).shape[1] == built.candidate_vectors([1, 2]).shape[1] == layout.width
    assert layout.item_item.size == rank
    assert layout.similarity == (0, 8 if normalize else 7), "a bias makes no items alike"


def test_a_slice_takes_its_columns():
    layout = VectorLayout.of(Model(dimension=4, diversity=0.1), 2)
    vectors = np.arange(16).reshape(2, 8)
    np.testing.assert_array_equal(layout.item_item.of(vectors), [[4, 5], [12, 13]])
    np.testing.assert_array_equal(layout.lift.of(vectors), [[6], [14]])


def test_it_survives_json():
    layout = VectorLayout.of(Model(dimension=4), 2)
    assert VectorLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
