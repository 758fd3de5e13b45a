"""Several replicas beside one device: the same losses and weights, whatever the negatives, and by row as well."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny_towers
from distributed_fits import CASES
from local_workers import tf_configs

from modules.errors import UserError
from modules.settings import Training
from modules.towers.share import WHOLE, Share
from modules.training.distribution import Distribution

PROGRAM = Path(__file__).parents[2] / "distributed_fits.py"
# Gradients of both kinds meet in it: whole ones, and rows of tables.
OF_WORKERS = ("sampled by row",)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, np.ndarray]]:
    """Case and how → what `distributed_fits` writes."""
    folder = tmp_path_factory.mktemp("fits")
    processes = [(None, CASES), *((config, OF_WORKERS) for config in tf_configs(2))]
    command = [sys.executable, str(PROGRAM), str(folder), json.dumps(processes)]
    log = folder / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True) as process:
        try:
            code = process.wait(400)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, log.read_text()[-4000:]
    return lambda case, how: dict(np.load(folder / f"{case}-{how}.npz"))


def check_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """But for the order of a sum: steps of 0.02 and 24 of them, so that another scale or seed is seen at once."""
    assert one.keys() == other.keys()
    for name, expected in one.items():
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(other[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], expected, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_replicas_learn_what_one_device_learns(outcomes, case):
    one = outcomes(case, "one")
    assert len(one["by_row"]) == (3 if case.endswith("by row") else 0)
    assert np.ptp(one["loss"]) > 0.1, "nothing was learned"
    check_equal(one, outcomes(case, "two"))


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_WORKERS)
def test_two_workers_learn_what_one_process_learns(outcomes, case):
    one, chief, other = (outcomes(case, how) for how in ("one", "worker0", "worker1"))
    check_equal(one, chief)
    for name, expected in chief.items():
        np.testing.assert_array_equal(other[name], expected, err_msg=name)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_shares_are_all_rows_once(rows, replicas):
    values = tf.reshape(tf.range(2 * rows), [rows, 2])
    shares = [Share(number, replicas) for number in range(replicas)]
    cut = [share.cut(values) for share in shares]
    np.testing.assert_array_equal(tf.concat(cut, axis=0), values)
    assert [len(part) for part in cut] == [int(share.size(tf.constant(rows))) for share in shares]
    assert max(len(part) for part in cut) - min(len(part) for part in cut) <= 1
    for share, part in zip(shares, cut, strict=True):
        turned = share.own_first(values)
        np.testing.assert_array_equal(turned[: len(part)], part)
        assert sorted(turned.numpy().tolist()) == values.numpy().tolist()


@pytest.mark.parametrize("negatives", ["catalogue", "sampled", "in_batch"])
@pytest.mark.parametrize("replicas", [2, 5])
def test_the_losses_of_all_shares_are_the_loss_of_the_batch(negatives, replicas):
    model = tiny_towers.PLAIN.model_copy(update={"query_feature_dropout": 0.5})
    towers = tiny_towers.towers(model, negatives=negatives, sampled_negatives=4)
    batch = tiny_towers.batch()
    whole, gradients = loss_and_gradients(towers, batch, WHOLE)
    parts = [loss_and_gradients(towers, batch, Share(number, replicas)) for number in range(replicas)]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, rtol=1e-5)
    for name, expected in gradients.items():
        total = sum(of_part[name] for _, of_part in parts)
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def loss_and_gradients(towers, batch, share):
    with tf.GradientTape() as tape:
        loss = towers.compute_loss(batch._replace(share=share), training=True)
    gradients = tape.gradient(loss, towers.trainable_variables)
    named = {
        v.name: tf.convert_to_tensor(g).numpy() for v, g in zip(towers.trainable_variables, gradients, strict=True)
    }
    return float(loss), named


def test_one_device_is_a_fit_of_its_own(caplog):
    """Under `mirrored` too: no GPU is here, and one logical CPU device."""
    with caplog.at_level("INFO", "twotower.progress"):
        replicas = Distribution.within_process(Training(distribution="mirrored"))
    assert replicas.is_chief and replicas.share() == WHOLE
    assert "there is one device" in caplog.text


class Three(Distribution):
    """Replicas that nothing is computed with."""

    replicas = 3


def test_a_batch_that_leaves_a_replica_without_a_row_is_refused():
    with pytest.raises(UserError) as refusal:
        Three().check_batch(Training(batch_size=2, distribution="mirrored"))
    assert str(refusal.value).startswith("training.batch_size: 2 rows cannot be shared by the 3 replicas")
    Three().check_batch(Training(batch_size=3, distribution="mirrored"))
