"""The embedded catalogue: what cannot be served is refused; its files hold all of it."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from known_towers import DIMENSION, FEATURES, World

from modules.errors import UserError
from modules.retrieval import vectors
from modules.retrieval.top_k import Partitions
from modules.servable import catalogue as catalogues
from modules.servable.catalogue import CATALOGUE_PATH, PARTITIONS_PATH, EmbeddedCatalogue, check
from modules.settings import Serving

_SERVING = Serving(k=20, return_columns=("title", "genres"), filter_columns=("genres",))
_ITEMS = 300


@pytest.fixture(scope="module")
def world():
    return World(_ITEMS)


def _assert_equal(one: EmbeddedCatalogue, other: EmbeddedCatalogue) -> None:
    assert list(one.item_ids) == list(other.item_ids)
    np.testing.assert_array_equal(one.vectors, other.vectors)
    np.testing.assert_array_equal(one.popularity, other.popularity)
    assert one.vectors.dtype == one.popularity.dtype == np.float32
    assert (one.returned, one.filterable) == (other.returned, other.filterable)


def test_rows_follow_popularity_and_then_the_id(world):
    catalogue = world.catalogue()
    numbers = [world.items.index(item) for item in catalogue.item_ids]
    keys = [(-world.popularity[n], world.items[n]) for n in numbers]
    assert keys == sorted(keys) and sorted(numbers) == list(range(_ITEMS))
    np.testing.assert_array_equal(catalogue.vectors, world.item_vectors[numbers])
    assert catalogue.returned["title"] == [world.titles[n] for n in numbers]


def test_rows_can_be_left_out_and_others_follow(world):
    catalogue = world.catalogue()
    changed = catalogue.only([5, 2]).followed_by(catalogue.only([0]))
    _assert_equal(changed, catalogue.only([5, 2, 0]))


@pytest.mark.parametrize("with_partitions", [False, True])
def test_the_files_hold_the_catalogue_and_its_partitions_to_the_last_bit(world, with_partitions, tmp_path):
    catalogue = world.catalogue()
    partitions = None
    if with_partitions:
        generator = np.random.default_rng(0)
        centroids = generator.normal(size=(7, DIMENSION)).astype(np.float32)
        partitions = Partitions(centroids, generator.integers(7, size=_ITEMS).astype(np.int32))
    catalogues.write(str(tmp_path), catalogue, partitions)
    again, their_partitions = catalogues.read(str(tmp_path))
    _assert_equal(again, catalogue)
    assert catalogues.size(str(tmp_path)) == _ITEMS
    assert (tmp_path / PARTITIONS_PATH).exists() == with_partitions
    if partitions is None:
        assert their_partitions is None
    else:
        np.testing.assert_array_equal(their_partitions.centroids, partitions.centroids)
        np.testing.assert_array_equal(their_partitions.of_row, partitions.of_row)


def test_a_catalogue_whose_vectors_are_in_a_file_is_written_part_by_part(world, monkeypatch, tmp_path):
    monkeypatch.setattr(vectors, "_PART_BYTES", 64 * DIMENSION * 4)
    catalogue = world.catalogue()
    file = vectors.VectorFile(str(tmp_path / "vectors"), *catalogue.vectors.shape)
    file.write(np.arange(_ITEMS), catalogue.vectors)
    catalogues.write(str(tmp_path), replace(catalogue, vectors=file), None)
    _assert_equal(catalogues.read(str(tmp_path))[0], catalogue)
    groups = pq.ParquetFile(tmp_path / CATALOGUE_PATH).metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [64, 64, 64, 64, 44]
    broken = catalogue.vectors[200:201] * np.nan
    file.write(np.array([200]), broken)
    assert catalogue.item_ids[200] in _refusal(world, vectors=file)


def test_anybody_can_read_the_catalogue_with_parquet_alone(world, tmp_path):
    catalogue = world.catalogue()
    catalogues.write(str(tmp_path), catalogue, None)
    rows = pq.read_table(tmp_path / CATALOGUE_PATH).to_pylist()
    assert [row["row"] for row in rows] == list(range(_ITEMS))
    assert rows[7] == {
        "row": 7,
        "item_id": catalogue.item_ids[7],
        "vector": catalogue.vectors[7].tolist(),
        "popularity": catalogue.popularity[7],
        "returned": {name: values[7] for name, values in catalogue.returned.items()},
        "filterable": {name: values[7] for name, values in catalogue.filterable.items()},
    }


def test_a_catalogue_without_further_columns_is_written_and_read(world, tmp_path):
    catalogue = replace(world.catalogue(), returned={}, filterable={})
    catalogues.write(str(tmp_path), catalogue, None)
    _assert_equal(catalogues.read(str(tmp_path))[0], catalogue)


def test_a_file_that_is_missing_or_torn_is_named_in_one_line(world, tmp_path):
    for content in (None, b"PAR1 torn"):
        if content is not None:
            (tmp_path / "assets.extra").mkdir()
            (tmp_path / CATALOGUE_PATH).write_bytes(content)
        with pytest.raises(UserError, match=r"catalogue\.parquet cannot be read .*; run the pipeline again") as error:
            catalogues.read(str(tmp_path))
        assert "\n" not in str(error.value)


def _refusal(world, serving=_SERVING, features=FEATURES, **changes):
    with pytest.raises(UserError) as error:
        check(replace(world.catalogue(), **changes), features, serving)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_served_is_refused_in_words(world):
    small = World(7)
    assert "serving.k is 20 but the catalogue has 7 items" in _refusal(small)
    assert "the catalogue is empty" in _refusal(small, item_ids=[])
    assert "'i1' is twice" in _refusal(world, item_ids=["i1"] * _ITEMS)
    assert "line break" in _refusal(world, item_ids=["a\nb", *world.items[1:]])
    broken = world.catalogue().vectors.copy()
    broken[3] = np.nan
    message = _refusal(world, vectors=broken)
    assert world.catalogue().item_ids[3] in message and "not finite (1 of 300 items)" in message
    assert "no item has a value in 'genres'" in _refusal(world, filterable={"genres": [[]] * _ITEMS})
    assert "line break" in _refusal(world, filterable={"genres": [["a\nb"]] * _ITEMS})
    assert "'score'" in _refusal(world, serving=Serving(k=5, return_columns=("score",)))
    named = FEATURES.model_copy(update={"query": (FEATURES.query[0].model_copy(update={"column": "exclude"}),)})
    assert "'exclude'" in _refusal(world, features=named)
