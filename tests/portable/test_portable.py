"""Every Beam stage of a whole run in worker processes of their own: equal artifacts, and a worker that is killed.

The workers' Python is a clean prefix with what the worker image has, in another folder, with a bare environment. What
Flink, Spark and Dataflow have of their own is not here; the worker's side, the Fn API, is the same.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import beam_processes
import canonical
import pyarrow.parquet as pq
import pytest
import world
from beam_processes import Services
from e2e_runs import Outcome, Small, twotower, versions

from components.evaluator import summary
from pipeline import config, runs

pytestmark = pytest.mark.slow

BEAM_STAGES = {"InteractionExampleGen", "StatisticsGen", "Transform", "ScannIndexBuilder", "Evaluator"}
KILLED = "Transform"


@dataclass
class Killed:
    """How the run ended whose worker was killed, and what it left."""

    code: int
    errors: str
    states: dict[str, str]
    run_state: str
    versions: list[str]
    left_over: list[Path]


@dataclass
class Portable:
    """Two runs through the job service: one whose worker is killed, and the one after it."""

    folder: Path
    services: Services
    arguments: tuple[str, ...]
    jobs: list[str] = field(default_factory=list)
    killed: Killed | None = None
    outcome: Outcome | None = None

    def uri(self, stage: str, key: str) -> str:
        return uri(self.folder, stage, key)


def uri(folder: Path, stage: str, key: str) -> str:
    """An artifact of the last run."""
    found = runs.read_runs(config.load(str(folder / "config.yaml")), last=1)[0].stage(stage)
    assert found is not None
    artifact = found.output(key)
    assert artifact is not None
    return artifact.uri


@pytest.fixture(scope="module")
def services(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    pool = [str(image / "bin" / "python"), "-m", "pipeline.beam_worker", "--port"]
    with beam_processes.running(pool, tmp_path_factory.mktemp("beam") / "elsewhere") as services:
        yield services


@pytest.fixture(scope="module")
def portable(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Portable:
    folder = tmp_path_factory.mktemp("portable")
    world.write_parquet(folder)
    path = world.write_config(folder)
    run = Portable(folder, services, ("--config", path, "--set", services.settings()))
    run.killed = run_and_kill_a_worker(run)
    before = len(services.jobs())
    run.outcome = twotower("run", *run.arguments)
    run.jobs = services.jobs()[before:]
    return run


def run_and_kill_a_worker(run: Portable) -> Killed:
    """Starts a run, and kills the worker as soon as the stage has begun to write."""
    root = run.folder / "runs" / "small-world"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", *run.arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=run.folder,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        # Beam writes to a folder beside the files that will be.
        while not any(root.glob(f"{KILLED}/transformed_examples/*/*/beam-temp*")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (worker,) = run.services.workers()
        worker.kill()
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    last = runs.read_runs(config.load(run.arguments[1]), last=1)[0]
    return Killed(
        code=process.returncode,
        errors=errors,
        states={stage.name: stage.state for stage in last.stages},
        run_state=last.state,
        versions=versions(run.folder),
        left_over=list(canonical.left_over(root)),
    )


def test_a_killed_worker_ends_the_run_in_one_line_and_nothing_is_half_written(portable: Portable):
    killed = portable.killed
    assert killed is not None
    assert killed.code == 1
    *progress, reason, log = killed.errors.splitlines()
    assert reason.startswith("twotower: RuntimeError: ") and "Traceback" not in killed.errors, killed.errors
    assert log.startswith("twotower: everything the stages wrote is in ")
    assert all(line[:1] in "✓↺✗ " for line in progress), progress
    assert killed.states[KILLED] == "failed" and killed.run_state == "failed"
    assert {killed.states[name] for name in ("InteractionExampleGen", "StatisticsGen")} == {"done"}
    assert "Trainer" not in killed.states
    assert killed.versions == [] and killed.left_over == []
    assert "was ended by signal 9" in portable.services.log("pool")


def test_the_next_run_goes_on_from_there_and_pushes(portable: Portable):
    assert portable.outcome is not None and portable.outcome.code == 0, portable.outcome
    states = {stage.name: stage.state for stage in runs.read_runs(config.load(portable.arguments[1]), last=1)[0].stages}
    assert states["InteractionExampleGen"] == states["StatisticsGen"] == "cached"
    assert {states[name] for name in BEAM_STAGES - {"InteractionExampleGen", "StatisticsGen"}} == {"done"}
    assert len(versions(portable.folder)) == 1
    assert not list(canonical.left_over(portable.folder / "runs" / "small-world"))


def test_every_stage_of_beam_went_through_the_job_service(portable: Portable):
    jobs = portable.services.jobs()
    # The two stages before the one that failed, that one, and the three that were left.
    assert jobs.count("DONE") >= len(BEAM_STAGES) and jobs.count("FAILED") == 1
    assert set(jobs) == {"DONE", "FAILED"}
    assert len(portable.jobs) == jobs.count("DONE") - 2


def test_examples_are_the_same_split_by_split(portable: Portable, small: Small):
    for stage, key in (("InteractionExampleGen", "examples"), ("Transform", "transformed_examples")):
        one, other = (canonical.examples(uri(folder, stage, key)) for folder in (small.folder, portable.folder))
        assert one.keys() == other.keys() and all(sum(counts.values()) for counts in one.values())
        for split in one:
            assert one[split] == other[split], (stage, split)


def test_statistics_count_the_same_and_the_schema_is_the_same(portable: Portable, small: Small):
    one, other = (canonical.statistics(uri(f, "StatisticsGen", "statistics")) for f in (small.folder, portable.folder))
    assert one == other
    one, other = (canonical.files(Path(uri(f, "SchemaGen", "schema"))) for f in (small.folder, portable.folder))
    assert one == other


def test_vocabularies_are_the_same(portable: Portable, small: Small):
    one, other = (
        canonical.files(Path(uri(folder, "Transform", "transform_graph")) / "transform_fn" / "assets")
        for folder in (small.folder, portable.folder)
    )
    assert len(one) > 3 and one == other


def test_the_servable_has_the_same_variables_and_the_same_catalogue(portable: Portable, small: Small):
    one, other = (
        Path(uri(folder, "ScannIndexBuilder", "servable")) / "Format-Serving"
        for folder in (small.folder, portable.folder)
    )
    assert canonical.differing(canonical.variables(one), canonical.variables(other)) == []
    assert len(canonical.catalogue(one)) == world.ITEMS
    assert canonical.catalogue(one) == canonical.catalogue(other)


def test_the_evaluation_measures_the_same(portable: Portable, small: Small):
    one, other = (summary.read(uri(f, "Evaluator", "evaluation")) for f in (small.folder, portable.folder))
    assert one.metrics.keys() == other.metrics.keys() and one.failures == other.failures == []
    for of_slice, metrics in one.metrics.items():
        assert metrics.keys() == other.metrics[of_slice].keys()
        for name, value in metrics.items():
            # Workers add in an order of their own, which the last digit of a mean tells.
            expected = None if value is None else pytest.approx(value, rel=1e-9)
            assert other.metrics[of_slice][name] == expected, (of_slice, name)


def test_workers_know_the_ops_of_another_index_layer(portable: Portable):
    # ScaNN's ops are in a library that somebody has to import, in the worker that asks the servable.
    outcome = twotower("run", *portable.arguments, "--set", "index.layer=scann")
    assert outcome.code == 0, outcome.errors
    stage = runs.read_runs(config.load(portable.arguments[1]), last=1)[0].stage("Evaluator")
    assert stage is not None and stage.state == "done"


def test_shards_of_a_batch_are_the_file_of_this_machine(portable: Portable, tmp_path: Path):
    options = ["batch", *portable.arguments, "--k", "5", "--time", "1640000000", "--output"]
    for output, shards in (("top.parquet", []), ("top", ["--shards", "3"])):
        outcome = twotower(*options, str(tmp_path / output), *shards)
        assert outcome.code == 0 and outcome.answer["users"] == world.USERS, outcome.errors
    assert portable.services.jobs()[-1] == "DONE" and len(list((tmp_path / "top").iterdir())) == 3
    order = [("user_id", "ascending"), ("rank", "ascending")]
    one, other = (pq.read_table(tmp_path / output).sort_by(order) for output in ("top.parquet", "top"))
    assert one.drop_columns("score").equals(other.drop_columns("score"))
    assert other["score"].to_numpy() == pytest.approx(one["score"].to_numpy(), abs=1e-5)


def test_a_killed_worker_leaves_no_shards(portable: Portable, tmp_path: Path):
    command = [sys.executable, "-m", "pipeline.cli", "batch", *portable.arguments, "--k", "5", "--shards", "64"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "top")], stderr=subprocess.PIPE, text=True, cwd=portable.folder
    )
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("top.*.partial/part-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        for worker in portable.services.workers():
            worker.kill()
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    reason, log = errors.splitlines()
    assert process.returncode == 1 and reason.startswith("twotower: RuntimeError: "), errors
    assert log.startswith("twotower: everything the workers wrote is in ")
    assert not list(tmp_path.iterdir())


def test_workers_end_with_their_jobs(portable: Portable):
    deadline = time.monotonic() + 60
    while portable.services.workers():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_job_service_that_goes_in_the_middle_of_a_run_is_missed_by_the_next_stage_of_beam(portable: Portable):
    before = versions(portable.folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", *portable.arguments, "--set", "training.seed=7"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=portable.folder,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        # Now it trains, which takes seconds and needs no Beam.
        assert any(" Transform " in line for line in process.stderr)
        portable.services.service.kill()
        portable.services.service.wait(30)
        errors = process.stderr.read()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1] == (
        f"twotower: beam.job_endpoint: {portable.services.job_endpoint} cannot be reached (connection refused); start "
        "the job service there, or correct the address"
    )
    last = runs.read_runs(config.load(portable.arguments[1]), last=1)[0]
    states = {stage.name: stage.state for stage in last.stages}
    assert states["Trainer"] == "done" and states["ScannIndexBuilder"] == "failed" and last.state == "failed"
    assert versions(portable.folder) == before
    assert not list(canonical.left_over(portable.folder / "runs" / "small-world"))
