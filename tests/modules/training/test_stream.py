"""A train split that is read in chunks: the same users, windows and counts as in memory, and a fit that goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from checkerboard import HISTORY_ONLY, changed, queries, random_sequences, sequences, specification
from killed_fits import die_after
from transformed_files import on_disk

from modules.errors import UserError
from modules.training import stream, totals
from modules.training.chunk import Chunk
from modules.training.dataset import Sequences, queries_of
from modules.training.loop import fit
from modules.training.stream import Stream
from modules.training.totals import Totals
from modules.training.training_data import TrainingData

SPEC = specification()
# 60 users of nine interactions, in chunks of seven users.
LIMIT = 2 * 65


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    train = on_disk(tmp_path_factory.mktemp("split"), sequences(), SPEC, LIMIT)
    assert isinstance(train, Stream)
    return train


def of_users(chunks):
    """Hash → what is known of each user, who must be there once."""
    found = {}
    for chunk in chunks:
        for number, user in enumerate(chunk.user.tolist()):
            assert user not in found
            own = chunk.users(np.array([number]))
            columns = [*own.features.values(), *own.context.values(), own.items, own.times, own.weights]
            found[user] = [values.tolist() for values in columns]
    return found


def test_what_is_within_the_limit_is_in_memory_and_more_is_streamed(tmp_path):
    whole = sequences()
    count = len(whole.items)
    within = on_disk(tmp_path / "within", whole, SPEC, count)
    assert isinstance(within, Sequences)
    np.testing.assert_array_equal(within.items, whole.items)
    beyond = on_disk(tmp_path / "beyond", whole, SPEC, count - 1)
    assert isinstance(beyond, Stream)
    assert sorted(beyond.counts) == sorted(whole.counts) and beyond.users.tolist() == [20, 20, 20]


def test_chunks_have_every_user_once_and_no_more_than_half_of_the_limit(streamed):
    chunks = list(streamed.chunks())
    assert len(chunks) == 9 and all(len(chunk.items) <= LIMIT // 2 for chunk in chunks)
    assert of_users(chunks) == of_users([sequences()])
    left = of_users(streamed.without_validation().chunks())
    assert left == of_users([sequences().without_validation()])


def test_a_user_with_more_than_a_chunk_holds_is_a_chunk():
    users = random_sequences(3, users=8)
    pieces = [users.users(np.arange(4)), users.users(np.arange(4, 8))]
    chunks = list(stream.chunked(iter(pieces), 2))
    assert of_users(chunks) == of_users([users])
    assert all(len(chunk.items) <= 2 or len(chunk) == 1 for chunk in chunks)


@pytest.mark.parametrize("shards", [1, 9])
@pytest.mark.parametrize("users", [13, 60])
def test_a_pass_of_epochs_reads_each_user_once_in_another_order_each_time(shards, users, tmp_path):
    train = on_disk(tmp_path, sequences(), SPEC, LIMIT, shards)
    seen, epoch, passes = [], 0, []
    while len(passes) < 2:
        part = train.part(users, 42, epoch)
        read = [user for chunk in train.chunks_of(part) for user in chunk.user.tolist()]
        assert len(read) == pytest.approx(part.share * 60, abs=len(part.files))
        assert train.part(users, 42, epoch) == part
        seen += read
        epoch += 1
        if len(seen) == 60:
            assert sorted(seen) == sorted(sequences().user.tolist())
            passes.append(seen)
            seen = []
    # Everything is read in every epoch where that many users are wanted.
    assert epoch == 2 if users >= 60 else epoch > 4
    # One file that is read whole has one order; then it is the chunks that are shuffled.
    assert (passes[0] == passes[1]) == (shards == 1 and users >= 60)


def check_equal(one: Totals, other: Totals):
    np.testing.assert_array_equal(np.sort(one.counts), np.sort(other.counts))
    np.testing.assert_array_equal(one.frequency, other.frequency)
    np.testing.assert_allclose(one.first_share, other.first_share)
    for window, recent in one.recent.items():
        np.testing.assert_array_equal(recent, other.recent[window])
    rows = [sorted(map(tuple, np.split(t.item_item.values, np.cumsum(t.item_item.lengths)))) for t in (one, other)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_counted_of_chunks_is_what_is_counted_in_memory(seed):
    users = random_sequences(seed, users=40)
    # At equal times it is the order of the users that decides, which is another one in a stream.
    users = replace(users, times=np.random.default_rng(seed).permutation(len(users.items)))
    spec = replace(SPEC, catalogue=replace(SPEC.catalogue, is_candidate=np.arange(42) > 1))
    order = np.random.default_rng(seed).permutation(len(users))

    def chunks():
        shuffled = users.users(order)
        return (Chunk.of(spec, chunk) for chunk in stream.chunked(iter([shuffled]), 20))

    size, windows = len(spec.catalogue.is_candidate), (0.3, 0.1)
    of_chunks = Totals.of(chunks, size, windows, seed)
    check_equal(Totals.of(lambda: iter([Chunk.of(spec, users)]), size, windows, seed), of_chunks)
    trainable = users.items > 1
    np.testing.assert_array_equal(of_chunks.frequency, np.bincount(users.items[trainable], minlength=size))
    newest = np.argsort(users.times[trainable])[-round(0.3 * np.count_nonzero(trainable)) :]
    np.testing.assert_array_equal(of_chunks.recent[0.3], np.bincount(users.items[trainable][newest], minlength=size))


def test_a_sample_of_the_users_is_drawn_across_the_chunks(monkeypatch):
    monkeypatch.setattr(totals, "_ITEM_ITEM_INTERACTIONS", 90)
    monkeypatch.setattr(totals, "_COLD_START_USERS", 12)
    users = sequences()

    def chunks():
        return (Chunk.of(SPEC, chunk) for chunk in stream.chunked(iter([users]), 65))

    drawn = Totals.of(chunks, 42, (0.2,), 0)
    # A set has the seven newest items.
    assert len(drawn.item_item.lengths) == 12 and set(drawn.item_item.lengths) == {7}
    assert len(drawn.beginners) == 12 and len(set(drawn.beginners.user // 63)) > 3
    first = users.offsets[:-1][np.searchsorted(users.user, drawn.beginners.user)]
    np.testing.assert_array_equal(drawn.beginners.items, users.items[first])
    np.testing.assert_array_equal(drawn.beginners.context["time_cyclic"], users.context["time_cyclic"][first])


def windows_of(data: TrainingData, epoch: int) -> Counter:
    """(user, newest item) of the windows of an epoch: an item occurs once for a user."""
    found: Counter = Counter()
    for step in data.epoch(epoch):
        owner = tf.gather(step.tensors.owner, step.ends)
        user = tf.gather(step.tensors.of_users["user"], owner).numpy().tolist()
        found.update(zip(user, tf.gather(step.tensors.items, step.ends).numpy().tolist(), strict=True))
    return found


@pytest.mark.parametrize(
    ("objective", "encoder", "exponent"),
    [("masked_items", "mean", 0.0), ("masked_items", "mean", 1.0), ("next_item", "mean", 1.0)],
)
def test_an_epoch_of_chunks_has_the_windows_of_an_epoch_in_memory(streamed, objective, encoder, exponent):
    spec = changed(SPEC, objective=objective, user_exponent=exponent, batch_size=16)
    spec = spec.with_settings({"model.history_encoder": encoder})
    in_memory, in_chunks = TrainingData(spec, sequences()), TrainingData(spec, streamed)
    assert in_chunks.steps == pytest.approx(in_memory.steps)
    orders = []
    for epoch in range(2):
        assert windows_of(in_memory, epoch) == windows_of(in_chunks, epoch)
        orders.append([step.ends.numpy().tolist() for step in in_chunks.epoch(epoch)])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("encoder", ["mean", "transformer"])
def test_users_come_up_equally_often_in_an_epoch_of_chunks(streamed, encoder):
    spec = changed(SPEC, user_exponent=0.5, batch_size=16).with_settings({"model.history_encoder": encoder})
    data = TrainingData(spec, streamed.without_validation())
    for epoch in range(3):
        of_users = Counter()
        for (user, _), count in windows_of(data, epoch).items():
            of_users[user] += count
        # √8 each.
        assert len(of_users) == 60 and set(of_users.values()) == {2, 3}


@pytest.mark.parametrize("objective", ["masked_items", "next_item"])
def test_an_epoch_that_ends_early_reads_as_many_users_as_it_has_rows(streamed, objective):
    spec = changed(SPEC, objective=objective, user_exponent=1.0, batch_size=5, epoch_steps=4)
    # Chunks of many batches: the last one of each is short.
    data = TrainingData(spec, replace(streamed, limit=400))
    drawn = [windows_of(data, epoch) for epoch in range(12)]
    assert np.mean([found.total() for found in drawn]) == pytest.approx(20, abs=2)
    assert max(found.total() for found in drawn) <= 20
    users = Counter(user for found in drawn for user, _ in found.elements())
    assert len(users) == 60 and max(users.values()) <= 12
    if objective == "masked_items":
        # Three epochs make a pass.
        assert all(len({user for user, _ in found}) >= 10 for found in drawn)


def test_steps_are_cut_the_same_way_again(streamed):
    spec = changed(SPEC, batch_size=16, epoch_steps=7)
    one, again = (list(TrainingData(spec, streamed).epoch(3)) for _ in range(2))
    assert len(one) == len(again) > 3
    for a, b in zip(one, again, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)
    assert [int(step.seed[1]) for step in one] == [100 * number for number in range(len(one))]


def test_the_latest_are_held_out_of_a_stream_as_in_memory(streamed):
    held_out = stream.latest_held_out(streamed, 0.3)
    expected = stream.latest_held_out(sequences(), 0.3)
    assert of_users(held_out.without_validation().chunks()) == of_users([expected.without_validation()])
    for mode in ("train", "rolling"):
        asked, in_memory = stream.held_out_queries(SPEC, held_out, mode), queries_of(SPEC, expected, mode)
        assert len(asked) == len(in_memory) > 0
        by_user = [
            sorted(zip(some.features["user"].tolist(), some.relevant.tolist(), some.seen.tolist(), strict=True))
            for some in (asked, in_memory)
        ]
        assert by_user[0] == by_user[1]


def test_nothing_trainable_in_a_stream_is_refused(streamed):
    spec = replace(SPEC, catalogue=replace(SPEC.catalogue, is_candidate=np.zeros(42, bool)))
    with pytest.raises(UserError, match="nothing in the train split"):
        fit(spec, streamed, None)


@pytest.fixture(scope="module")
def history_only(tmp_path_factory):
    spec = changed(specification(HISTORY_ONLY), epochs=6)
    whole = sequences(HISTORY_ONLY)
    train = on_disk(tmp_path_factory.mktemp("history"), whole, spec, LIMIT)
    assert isinstance(train, Stream)
    return spec.with_settings({"model.item_item_rank": 0}), whole, train


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"epoch_steps": 2, "epochs": 24, "patience_steps": 100}])
def test_a_fit_from_chunks_learns_what_a_fit_in_memory_learns(history_only, changes):
    spec, whole, train = history_only
    spec = changed(spec, **({"epochs": 12} | changes))
    asked = queries(spec, whole)
    in_memory, in_chunks = (fit(spec, some, asked).report for some in (whole, train))
    assert in_chunks.ndcg > 0.9 * in_memory.ndcg
    # By chance a tenth of the items would be right.
    assert in_chunks.ndcg > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("epoch_steps", [3, 500])
def test_a_fit_from_chunks_that_died_goes_on_and_ends_with_the_same_weights(
    history_only, tmp_path, monkeypatch, epoch_steps
):
    spec, whole, train = history_only
    spec, asked = changed(spec, epoch_steps=epoch_steps, patience=1000), queries(spec, whole)
    undisturbed = fit(spec, train, asked, str(tmp_path / "whole"))
    die_after(3, lambda: fit(spec, train, asked, str(tmp_path / "killed")), monkeypatch)
    resumed = fit(spec, train, asked, str(tmp_path / "killed"))
    assert resumed.report.resumed_from_epoch == 4
    assert [e.loss for e in resumed.report.history] == [e.loss for e in undisturbed.report.history]
    for a, b in zip(resumed.model.variables, undisturbed.model.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
