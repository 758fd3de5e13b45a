"""Each stage in turn: its process is killed, then its disk is full; the run goes on every time, to the same model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import world
from e2e_runs import Outcome, Small, executed, twotower, versions
from faulty_runs import Starter

from modules.servable.contract import read_servable
from modules.servable.embedding import read_variables
from pipeline import config, runs

pytestmark = pytest.mark.slow

# BaselineResolver writes nothing as long as nothing has been pushed.
STAGES = ("InteractionExampleGen", "StatisticsGen", "SchemaGen", "ExampleValidator", "Transform", "Trainer",
          "ScannIndexBuilder", "Evaluator", "ServableValidator", "Pusher")  # fmt: skip
FULL = "No space left on device"
REMEDY = "make room, or choose another disk with output.root"


class Chain:
    """One output that every fault hits, and the process from which the runs are forked."""

    def __init__(self, folder: Path, starter: Starter) -> None:
        world.write_parquet(folder)
        self.folder, self.path = folder, world.write_config(folder)
        self.root = folder / "runs" / "small-world"
        self.starter = starter

    def states(self) -> dict[str, str]:
        """Stages of the last run that were not cached."""
        (last,) = runs.read_runs(config.load(self.path), last=1)
        return {stage.name: stage.state for stage in last.stages if stage.state != "cached"}

    def run_full(self, folder: Path, *arguments: str) -> Outcome:
        """A run that meets a full disk; it is refused in words."""
        if not self.starter.mounts:
            pytest.skip("a file system of one's own cannot be mounted here (unshare, user namespaces)")
        outcome = self.starter.run("run", "--config", self.path, *arguments, full=folder)
        assert outcome.code == 2 and "Traceback" not in outcome.errors, outcome.errors
        return outcome


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, starter: Starter) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain"), starter)


def faults() -> Iterator[tuple[str, str, str]]:
    """Stage, what happens in it, and the folder below the chain's that is full."""
    for stage in STAGES:
        yield stage, "killed", ""
        yield stage, "full", f"runs/small-world/{stage}"
        if stage == "Trainer":
            yield stage, "full", "runs/small-world/checkpoints"
        if stage == "Pusher":
            yield stage, "full", "served/small-world"


@pytest.mark.parametrize(("stage", "fault", "place"), [*faults()])
def test_a_fault_in_a_stage(chain: Chain, stage: str, fault: str, place: str):
    if fault == "killed":
        outcome = chain.starter.run("run", "--config", chain.path, dies_in=stage)
        assert outcome.code == -signal.SIGKILL, outcome.errors
    else:
        outcome = chain.run_full(chain.folder / place)
        if place.startswith("served"):
            words, remedy = (
                f"push to {chain.folder / place}: {FULL}; ",
                "make room, or choose another folder with output.push",
            )
        else:
            words, remedy = f"{stage}: cannot write to {chain.folder / place}", f": {FULL}; {REMEDY}"
        last = outcome.errors.splitlines()[-1]
        assert last.startswith(f"twotower: {words}") and last.endswith(remedy), outcome.errors
    states = chain.states()
    assert states.pop(stage) == ("unfinished" if fault == "killed" else "failed")
    # The stage before was the one that failed last time.
    assert set(states.values()) <= {"done"}, states
    assert set(states) <= {"BaselineResolver", STAGES[max(0, STAGES.index(stage) - 1)]}
    assert versions(chain.folder) == []
    outcome = twotower("recommend", "--config", chain.path, "--user", "1")
    assert outcome.code == 2 and "nothing has been pushed yet" in outcome.errors


def test_a_disk_that_is_full_from_the_beginning(chain: Chain):
    """Neither the log nor the metadata store can be written."""
    root = chain.folder / "elsewhere"
    last = chain.run_full(root, "--set", f"output.root={root}").errors.splitlines()[-1]
    assert last.startswith("twotower: ") and str(root) in last and "full" in last
    assert last.endswith("make room, or choose another disk with output.root")


def test_after_all_of_it_the_same_model_is_pushed(chain: Chain, small: Small):
    outcome = chain.starter.run("run", "--config", chain.path)
    assert outcome.code == 0, outcome.errors
    assert executed(chain.path) == {"Pusher", "RunReport"}
    (version,) = versions(chain.folder)
    destination = chain.folder / "served" / "small-world"
    assert [path.name for path in destination.iterdir()] == [version], "what the killed push left is cleaned up"
    pushed, whole = (variables(path) for path in (destination / version, Path(small.outcome.answer["pushed"])))
    assert pushed.keys() == whole.keys() and len(pushed) > 5
    for name in pushed:
        np.testing.assert_array_equal(pushed[name], whole[name], err_msg=name)


def variables(version: Path) -> dict[str, np.ndarray]:
    return read_variables(str(version), read_servable(str(version)).embedding)
