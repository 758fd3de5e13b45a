"""A fit whose process is killed: the next one goes on after its last whole epoch, and exports the same weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from checkerboard import TRAINING
from transformed_world import EVERYTHING, make_world

from modules import trainer

pytestmark = pytest.mark.slow

KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from transformed_world import EVERYTHING, World
from modules.settings import Training
from modules import trainer
world = World(Path({folder!r}), EVERYTHING)
trainer.run_fn(world.fn_args(Path({output!r}), training=Training.model_validate_json({training!r})))
"""


def test_a_killed_fit_goes_on_and_ends_with_the_same_weights(tmp_path: Path):
    world = make_world(EVERYTHING)
    # Long enough to be killed in the middle; patience 1000 keeps early stopping out of it.
    training = TRAINING.model_copy(update={"epochs": 14, "patience": 1000})
    script = KILLED.format(
        tests=str(Path(__file__).parents[1]), folder=str(world.folder), output=str(tmp_path / "killed"),
        training=training.model_dump_json(),
    )  # fmt: skip
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed/checkpoints").rglob("ckpt-[3-9].index")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/serving").exists()
    trainer.run_fn(world.fn_args(tmp_path / "killed", training=training))
    trainer.run_fn(world.fn_args(tmp_path / "whole", training=training))
    reports = [json.loads((tmp_path / name / "run/training.json").read_text()) for name in ("killed", "whole")]
    assert reports[0]["resumed_from_epoch"] >= 3
    assert reports[1]["resumed_from_epoch"] == 0
    assert [e["loss"] for e in reports[0]["history"]] == [e["loss"] for e in reports[1]["history"]]
    readers = [
        tf.train.load_checkpoint(str(tmp_path / name / "serving/variables/variables")) for name in ("killed", "whole")
    ]
    names = [name for name in readers[0].get_variable_to_shape_map() if "_CHECKPOINTABLE_OBJECT_GRAPH" not in name]
    assert len(names) > 10
    for name in names:
        np.testing.assert_array_equal(*(reader.get_tensor(name) for reader in readers), err_msg=name)
