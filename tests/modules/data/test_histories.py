"""Point in time against plain lists: who sees what, and how old it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data import histories
from modules.data.histories import Interactions, Query
from modules.settings import ColumnSplit, LeaveLastOutSplit, RandomSplit, Split, TemporalSplit

TRAIN, VALIDATION, EVAL = range(3)

rows = st.lists(st.tuples(st.sampled_from("pqrs"), st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=25)
splits = st.sampled_from(
    [
        TemporalSplit(validation_from=3, eval_from=6),
        RandomSplit(validation=0.3, eval=0.3),
        LeaveLastOutSplit(),
        ColumnSplit(column="part"),
    ]
)
modes = st.sampled_from(["train", "rolling"])


def interactions(triples: list[tuple[str, int, int]], start: int = 0) -> Interactions:
    """The weight is the row's number."""
    return Interactions(
        timestamp=np.array([time for _, time, _ in triples], np.int64),
        order=np.arange(start, start + len(triples)),
        item=np.array([item.encode() for item, *_ in triples], object),
        weight=np.arange(start, start + len(triples)).astype(np.float32),
        split=np.array([code for *_, code in triples], np.int8),
        context={"device": np.array([f"d{start + n}".encode() for n in range(len(triples))], object)},
    )


@given(rows, st.integers(0, 25))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_pieces_become_one_in_the_order_of_time_and_equal_times_in_that_of_the_table(
    triples: list[tuple[str, int, int]], cut: int
) -> None:
    pieces = [interactions(triples[cut:], cut), interactions(triples[:cut])]
    whole = histories.in_time_order([piece for piece in pieces if len(piece)])
    order = sorted(range(len(triples)), key=lambda n: (triples[n][1], n))
    assert whole.weight.tolist() == order
    assert whole.item.tolist() == [triples[n][0].encode() for n in order]
    assert whole.split is not None and whole.split.tolist() == [triples[n][2] for n in order]
    assert whole.context["device"].tolist() == [f"d{n}".encode() for n in order]


def oracle(items: list[Any], times: list[int], codes: list[int], of: int, mode: str) -> list[tuple[Any, ...]]:
    """(position, asked, history, age, relevant), every definition spelled out."""
    found = []
    targets = [n for n, code in enumerate(codes) if code == of]
    if mode == "rolling":
        questions = [([n], [m for m in range(n) if codes[m] <= of]) for n in targets]
    else:
        questions = [(targets, [m for m, code in enumerate(codes) if code < of])] if targets else []
    for asked_for, known in questions:
        asked = max(times[n] for n in (asked_for[0], *known))
        age = asked - times[known[-1]] if known else None
        different = [n for n in asked_for if items[n] not in [items[m] for m in asked_for if m < n]]
        found.append((asked_for[0], asked, known, age, different))
    return found


def as_lists(query: Query) -> tuple[Any, ...]:
    return query.position, query.asked, query.history.tolist(), query.age, query.relevant.tolist()


@given(rows, modes, st.integers(0, 2), st.booleans())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_queries_equal_the_oracle_for_any_assignment_to_splits(
    triples: list[tuple[str, int, int]], mode: Any, of: int, numbered: bool
) -> None:
    """However the splits interleave in time; items are bytes in ExampleGen and numbers in the Tuner."""
    whole = histories.in_time_order([interactions(triples)])
    assert whole.split is not None
    items = whole.item
    if numbered:
        items = np.array([ord(item) for item in items.tolist()], np.int32)
    found = list(histories.queries(whole.timestamp, items, whole.split, of, mode))
    assert {query.split for query in found} <= {of}
    assert [as_lists(query) for query in found] == oracle(
        items.tolist(), whole.timestamp.tolist(), whole.split.tolist(), of, mode
    )


@given(rows, splits, modes)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_no_query_sees_its_future_and_no_sequence_an_eval_interaction(
    triples: list[tuple[str, int, int]], split: Split, mode: Any
) -> None:
    whole = histories.in_time_order([interactions(triples)])
    codes = histories.assign(b"user", whole, split, (3, 6) if isinstance(split, TemporalSplit) else None)
    assert not np.any(codes[histories.sequence(codes)] == EVAL)
    assert len(histories.sequence(codes)) == np.count_nonzero(codes != EVAL)
    for of in (VALIDATION, EVAL):
        for query in histories.queries(whole.timestamp, whole.item, codes, of, mode):
            assert np.all(whole.timestamp[query.history] <= query.asked)
            assert np.all(codes[query.history] <= of) and np.all(codes[query.relevant] == of)
            assert not set(query.history.tolist()) & set(query.relevant.tolist())
            if isinstance(split, LeaveLastOutSplit):
                assert np.all(query.history < query.position)
            assert query.age is None if not len(query.history) else query.age is not None and query.age >= 0


@given(st.lists(st.integers(0, 2), max_size=30), st.one_of(st.none(), st.integers(1, 12)))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_sequence_is_the_newest_of_train_and_validation(codes: list[int], max_length: int | None) -> None:
    of = [n for n, code in enumerate(codes) if code != EVAL]
    expected = of if max_length is None else of[-max_length:]
    assert histories.sequence(np.array(codes, np.int8), max_length).tolist() == expected


def test_an_age_is_never_negative_and_nobodys_without_a_history() -> None:
    assert (histories.age(10, 25), histories.age(25, 10), histories.age(None, 10)) == (15, 0, None)


@given(st.lists(st.lists(st.integers(0, 10**10), max_size=6).map(sorted), max_size=6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_ages_of_flat_sequences_are_those_of_each_place(sequences: list[list[int]]) -> None:
    """Empty sequences among them."""
    times = np.array([time for of in sequences for time in of], np.int64)
    starts = np.cumsum([0, *map(len, sequences)])[:-1]
    expected = [
        np.nan if (age := histories.age(of[n - 1] if n else None, time)) is None else np.float32(age)
        for of in sequences
        for n, time in enumerate(of)
    ]
    found = histories.ages(times, starts)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_many_users_interactions_come_apart_by_user_in_their_order(users: list[bytes]) -> None:
    whole = interactions([("p", n, 0) for n in range(len(users))])
    found = [(user, of.weight.tolist()) for user, of in histories.by_user(np.array(users, object), whole)]
    assert found == [(user, [n for n, u in enumerate(users) if u == user]) for user in dict.fromkeys(users)]


def at(times: np.ndarray) -> Interactions:
    return Interactions(times, times, np.full(len(times), b"i", object), np.ones(len(times), np.float32))


def test_the_random_split_draws_by_seed_user_and_row() -> None:
    whole = at(np.arange(5_000))
    draws = [
        histories.assign(user, whole, RandomSplit(seed=seed, validation=0.2, eval=0.1), None)
        for user, seed in ((b"a", 1), (b"b", 1), (b"a", 2))
    ]
    for codes in draws:
        np.testing.assert_allclose(np.bincount(codes) / 5_000, [0.7, 0.2, 0.1], atol=0.02)
    assert not (draws[0] == draws[1]).all() and not (draws[0] == draws[2]).all()
    twice = at(np.zeros(5_000, np.int64))
    assert set(histories.assign(b"a", twice, RandomSplit(), None)) == {0, 1, 2}


@given(
    times=st.lists(st.integers(0, 30), min_size=3, max_size=60).filter(lambda times: len(set(times)) > 2),
    shares=st.sampled_from([(0.1, 0.1), (0.3, 0.3), (0.05, 0.5), (0.45, 0.45)]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_fraction_cutoffs_are_the_nearest_and_leave_no_split_empty(
    times: list[int], shares: tuple[float, float]
) -> None:
    split = TemporalSplit(validation=shares[0], eval=shares[1])
    different, counts = np.unique(times, return_counts=True)
    found = histories.fraction_cutoffs(different, counts, split)
    before = {cut: sum(t < cut for t in times) for cut in different.tolist()}

    def nearest(candidates: list[int], share: float) -> int:
        return min(candidates, key=lambda cut: (abs(before[cut] - share * len(times)), cut))

    eval_from = nearest(different.tolist()[2:], 1 - split.eval)
    validation_from = nearest([t for t in different.tolist()[1:] if t < eval_from], 1 - split.eval - split.validation)
    # Two cut-offs can be equally near up to rounding.
    for cut, best, share in zip(found, (validation_from, eval_from), (1 - sum(shares), 1 - shares[1]), strict=True):
        if cut != best and found[1] == eval_from:
            target = share * len(times)
            assert abs(before[cut] - target) == pytest.approx(abs(before[best] - target))
    assert different[0] < found[0] < found[1] <= different[-1]
