"""Reading transformed examples as they lie on disk, and what is taken from sequences."""

from __future__ import annotations

from dataclasses import replace

import checkerboard
import numpy as np
import pytest
from checkerboard import random_sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from transformed_files import write, write_graph

from modules.data.examples import CATALOGUE, TRAIN, VALIDATION
from modules.training import dataset, stream
from modules.training.transformed import Lists

SPEC = checkerboard.specification()


@pytest.fixture
def output(tmp_path):
    return write_graph(tmp_path)


def train_example(user: int, items: list[int], held_out: int = 0) -> dict:
    count = len(items)
    return {
        "user": user, "age": user / 2, "user_hash": (1000 - user) * 2**40, "sequence_item": items,
        "sequence_interaction_time": 100 + 10 * np.arange(count),
        "sequence_interaction_weight": np.linspace(1.0, 2.0, count),
        "sequence_is_validation": [0] * (count - held_out) + [1] * held_out,
        "sequence_time_bucket": 1 + np.arange(count),
        "sequence_time_cyclic": np.arange(4.0 * count),
    }  # fmt: skip


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_sequences_are_read_in_the_order_of_the_users_hashes(order, tmp_path, output):
    examples = [train_example(1, [2, 1, 3], 1), train_example(2, [1]), train_example(3, [3, 2])]
    files = write(tmp_path, TRAIN, [examples[number] for number in order])
    read = stream.read_train([files], SPEC, output)
    np.testing.assert_array_equal(read.user, np.array([997, 998, 999]) * 2**40)
    np.testing.assert_array_equal(read.offsets, [0, 2, 3, 6])
    np.testing.assert_array_equal(read.items, [3, 2, 1, 2, 1, 3])
    np.testing.assert_array_equal(read.times, [100, 110, 100, 100, 110, 120])
    np.testing.assert_array_equal(read.is_validation, [False, False, False, False, False, True])
    np.testing.assert_allclose(read.weights, [1.0, 2.0, 1.0, 1.0, 1.5, 2.0])
    np.testing.assert_array_equal(read.features["user"], [3, 2, 1])
    np.testing.assert_array_equal(read.context["time_bucket"], [1, 2, 1, 1, 2, 3])
    # Four numbers each, one row after the other.
    np.testing.assert_array_equal(read.context["time_cyclic"][3:], np.arange(12.0).reshape(3, 4))
    assert set(read.features) == {"user", "age"} and set(read.context) == {"time_bucket", "time_cyclic"}


def query_example(user: int, history: list[int], relevant: list[int]) -> dict:
    return {"user": user, "user_hash": user, "history": history, "history_age": 5.0, "relevant_items": relevant}


def test_with_repeats_what_was_seen_is_asked_for_as_well(tmp_path, output):
    examples = [query_example(4, [8, 20, 8], [20, 21, 8]), query_example(1, [3], [3])]
    spec = replace(SPEC, repeats=True)
    queries = dataset.read_queries([write(tmp_path, VALIDATION, examples)], spec, output)
    rows = {int(user): row for row, user in enumerate(queries.features["user"])}
    assert set(queries.relevant[rows[4]]) == {8, 20, 21} and set(queries.relevant[rows[1]]) - {0} == {3}
    assert not queries.seen.any()
    # The tower reads every time, newest first.
    np.testing.assert_array_equal(queries.features["history"][rows[4]][:4], [8, 20, 8, 0])


def test_queries_are_read_as_the_evaluator_counts_them(tmp_path, output):
    history = list(range(1, 9))
    examples = [
        query_example(4, history, [20, 21, 8]),
        # Asks for what it has seen, and for what is out of vocabulary.
        query_example(1, [3], [3]),
        query_example(2, [3], [0]),
        query_example(3, [], [5]),
    ]
    queries = dataset.read_queries([write(tmp_path, VALIDATION, examples)], SPEC, output)
    by_user = {int(user): row for row, user in enumerate(queries.features["user"])}
    assert set(by_user) == {3, 4}
    row = by_user[4]
    # The tower reads the newest six, newest first; everything is seen.
    np.testing.assert_array_equal(queries.features["history"][row], history[::-1][:6])
    np.testing.assert_array_equal(np.sort(queries.seen[row]), history)
    np.testing.assert_array_equal(queries.relevant[row], [20, 21])
    assert queries.features["history_age"][row] == 5.0
    assert not queries.features["history"][by_user[3]].any() and not queries.seen[by_user[3]].any()


def test_nothing_to_ask_is_no_queries(tmp_path, output):
    files = write(tmp_path, VALIDATION, [query_example(2, [3], [3])])
    assert dataset.read_queries([files], SPEC, output) is None
    assert dataset.read_queries([], SPEC, output) is None


def test_the_order_of_queries_in_the_files_does_not_matter(tmp_path, output):
    # Rolling: one user asks several times.
    examples = [query_example(u, list(range(1, n + 1)), [30]) for u in (5, 3) for n in range(1, 5)]
    read = []
    for number, order in enumerate((range(8), [5, 2, 7, 0, 3, 1, 6, 4])):
        files = write(tmp_path / str(number), VALIDATION, [examples[place] for place in order])
        read.append(dataset.read_queries([files], SPEC, output))
    for key, values in read[0].features.items():
        np.testing.assert_array_equal(values, read[1].features[key])
    np.testing.assert_array_equal(read[0].seen, read[1].seen)


def test_the_catalogue_is_laid_out_by_label(tmp_path, output):
    examples = [
        {"item": 2, "genres": [3, 0], "label": 2},
        {"item": 4, "genres": [1, 1], "label": 0},
        {"item": 1, "genres": [2, 5], "label": 1},
    ]
    table = dataset.read_catalogue([write(tmp_path, CATALOGUE, examples)], SPEC.features, output)
    np.testing.assert_array_equal(table.is_candidate, [False, True, True])
    np.testing.assert_array_equal(table.features["genres"][1:], [[2, 5], [3, 0]])
    np.testing.assert_array_equal(table.labels, [1, 2])
    np.testing.assert_array_equal(table.label_of(np.array([0, 1, 2, 3])), [0, 1, 2, 0])


def test_items_out_of_vocabulary_are_kept_where_they_are_new_in_any_order_of_the_files(tmp_path, output, monkeypatch):
    known = [{"item": 1, "genres": [2, 5], "label": 1}]
    new = [{"item": 4, "genres": [genre, 1], "label": 0} for genre in (3, 1, 2)]
    tables = []
    for number, rows in enumerate(([*known, *new], [*new[::-1], *known])):
        files = [write(tmp_path / str(number), CATALOGUE, rows)]
        tables.append(dataset.read_catalogue(files, SPEC.features, output, is_whole=True))
        capped = dataset.read_catalogue(files, SPEC.features, output)
        assert not capped.out_of_vocabulary and not capped.tells_new_items and tables[-1].tells_new_items
    for table in tables:
        assert sorted(table.out_of_vocabulary["genres"].tolist()) == [[1, 1], [2, 1], [3, 1]]
        np.testing.assert_array_equal(table.out_of_vocabulary["genres"], tables[0].out_of_vocabulary["genres"])
        assert table.of_each == 1.0
        np.testing.assert_array_equal(table.labels, [1])
    monkeypatch.setattr(dataset, "_NEW_ITEMS", 2)
    drawn = dataset.read_catalogue(files, SPEC.features, output, is_whole=True)
    assert len(drawn.out_of_vocabulary["genres"]) == 2 and drawn.of_each == 1.5


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 10_000))
def test_a_set_has_each_item_at_its_newest_place(seed):
    sequences = random_sequences(seed)
    sets = sequences.distinct()
    for user in range(len(sequences)):
        own = sequences.items[sequences.offsets[user] : sequences.offsets[user + 1]].tolist()
        newest_first = list(dict.fromkeys(own[::-1]))
        actual = sets.items[sets.offsets[user] : sets.offsets[user + 1]]
        np.testing.assert_array_equal(actual, newest_first[::-1])


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 10_000))
def test_places_are_taken_with_all_that_belongs_to_them(seed):
    sequences = random_sequences(seed)
    kept = np.random.default_rng(seed).random(len(sequences.items)) < 0.5
    some = sequences.take(kept)
    np.testing.assert_array_equal(some.items, sequences.items[kept])
    np.testing.assert_array_equal(some.context["time_cyclic"], sequences.context["time_cyclic"][kept])
    np.testing.assert_array_equal(some.user[some.owner], sequences.user[sequences.owner[kept]])
    assert (some.counts > 0).all()
    whole = sequences.users(np.array([3, 0]))
    expected = [sequences.items[sequences.offsets[u] : sequences.offsets[u + 1]] for u in (3, 0)]
    np.testing.assert_array_equal(whole.items, np.concatenate(expected))


@pytest.mark.parametrize("mode", ["train", "rolling"])
def test_held_out_places_are_asked_for_as_the_evaluation_asks(mode):
    # Nine interactions each, the seventh and the ninth of them held out.
    sequences = checkerboard.sequences()
    place = np.tile(np.arange(9), len(sequences))
    queries = dataset.queries_of(SPEC, replace(sequences, is_validation=np.isin(place, (6, 8))), mode)
    assert len(queries) == len(sequences) * (1 if mode == "train" else 2)
    for row, user in enumerate(queries.features["user"] - 1):
        own = sequences.items[sequences.offsets[user] : sequences.offsets[user + 1]]
        seen, relevant = set(queries.seen[row]) - {0}, set(queries.relevant[row]) - {0}
        if mode == "train":
            assert seen == set(own) - {own[6], own[8]} and relevant == {own[6], own[8]}
            # The newest of the history is later than the first that is asked for.
            assert queries.features["history_age"][row] == 0.0
        else:
            asked = 6 if relevant == {own[6]} else 8
            assert relevant == {own[asked]} and seen == set(own[:asked])
            assert queries.features["history_age"][row] == checkerboard.STEP
        newest_first = [item for item in own[::-1] if item in seen][:6]
        np.testing.assert_array_equal(queries.features["history"][row], newest_first)


def test_lists_are_padded_and_taken():
    lists = Lists(np.array([5, 6, 7, 8]), np.array([2, 0, 2]))
    np.testing.assert_array_equal(lists.padded(), [[5, 6], [0, 0], [7, 8]])
    taken = lists.take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.values, [7, 8, 5, 6])
    assert lists.take(np.array([1])).padded().shape == (1, 1)


def test_fewer_queries_are_ranked_the_larger_the_catalogue_but_some_hundreds_always():
    def most(items: int) -> int:
        return dataset.most_queries(dataset.CandidateTable({}, np.arange(items + 1) > 0))

    limits = [most(items) for items in (1, 1_000, 10_000, 50_000, 1_000_000)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] == limits[1] == 10_000 and limits[-1] == 250
    # In between, the number of scores is bounded.
    assert all(most(items) * items <= 2**24 for items in (2_000, 10_000, 50_000))
