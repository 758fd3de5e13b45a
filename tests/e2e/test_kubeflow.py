"""Every compiled step, executed as the cluster would: the same model as the local run, and what stops or repeats it."""

from __future__ import annotations

import subprocess

import pytest
import world
from cluster_runs import ROOT, OnCluster, run_on_cluster
from e2e_runs import Small, twotower
from forked import Forked

from kubeflow import comparison

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_cluster(small: Small, tmp_path_factory: pytest.TempPathFactory) -> OnCluster:
    return run_on_cluster(small, tmp_path_factory.mktemp("kubeflow"), Forked)


def test_every_compiled_step_ends_well_by_its_own_command_line(on_cluster: OnCluster):
    failures = {name: o.error for name, o in on_cluster.outcomes.items() if o.state != "done"}
    assert not failures
    assert len(on_cluster.outcomes) == 12
    for outcome in on_cluster.outcomes.values():
        assert outcome.command[:3] == ("python", "-m", "kubeflow.entrypoint")
        # What the metadata store keeps are the store's own names, not the folders that the step worked in.
        assert all(artifact.uri.startswith(f"{ROOT}/small-world/") for artifact in outcome.artifacts.values())
        # Nor does anything that it says of them.
        assert "/pods/" not in str([artifact.metadata for artifact in outcome.artifacts.values()])
    blessing = on_cluster.outcomes["Evaluator"].artifacts["blessing"].metadata
    assert blessing["current_model"] == on_cluster.outcomes["ScannIndexBuilder"].artifacts["servable"].uri


def test_the_pushed_model_recommends_what_the_local_one_does(on_cluster: OnCluster, small: Small):
    [version] = on_cluster.versions()
    pushed = on_cluster.outcomes["Pusher"].artifacts["pushed_model"].metadata
    assert pushed["pushed_destination"] == str(on_cluster.folder / "pushed" / "small-world" / version)
    assert not (on_cluster.folder / "compiled-in").exists()
    paths = []
    small.serve_in(on_cluster.folder / "local")
    for name, push in (("local", on_cluster.folder / "local"), ("cluster", on_cluster.folder / "pushed")):
        paths.append(str(on_cluster.folder / f"{name}.parquet"))
        outcome = twotower(
            "batch", "--config", small.config_path, "--set", f"output.push={push}", "--k", "20", "--output", paths[-1],
            "--time", "1630000000",
        )  # fmt: skip
        assert outcome.code == 0, outcome.errors
    found = comparison.compare(*paths)
    assert found.users == world.USERS
    assert found.agree, str(found)


def test_a_run_again_executes_what_a_changed_setting_changes(on_cluster: OnCluster):
    outside = ("InteractionExampleGen", "BaselineResolver")
    finished = {name: o for name, o in on_cluster.outcomes.items() if name in outside}

    def run(*overrides: str) -> dict[str, str]:
        compiled = on_cluster.compiled(*overrides)
        outcomes = on_cluster.cluster(compiled).run(finished=finished)
        return {name: o.state for name, o in outcomes.items() if name not in outside}

    assert set(run().values()) == {"cached"}
    again = run("serving.latency_p99_ms=60000")
    assert {name for name, state in again.items() if state != "cached"} == {"ServableValidator", "Pusher", "RunReport"}
    assert set(again.values()) == {"cached", "done"}


def test_a_gate_that_refuses_leaves_the_push_undone(on_cluster: OnCluster):
    before = on_cluster.versions()
    below = ("Evaluator", "Pusher", "RunReport")
    upstream = {name: o for name, o in on_cluster.outcomes.items() if name not in below}
    compiled = on_cluster.compiled("evaluation.floors={ndcg@5: 0.99}")
    outcomes = on_cluster.cluster(compiled).run(finished=upstream)
    assert {o.state for o in outcomes.values()} == {"done"}
    assert outcomes["Evaluator"].artifacts["blessing"].metadata["blessed"] == 0
    assert outcomes["Pusher"].artifacts["pushed_model"].metadata["pushed"] == 0
    assert on_cluster.versions() == before


def test_a_step_that_fails_fails_the_task_and_skips_what_needs_it(on_cluster: OnCluster, small: Small):
    # A table that is not there, by a runtime parameter of the pipeline as it was compiled.
    done = {name: o for name, o in on_cluster.outcomes.items() if name in ("BaselineResolver", "ImportSchemaGen")}
    missing = str(small.folder / "missing.parquet")
    compiled = on_cluster.compiled("kubeflow.retries=0")
    # Its one step is started by its command line, in an interpreter that has imported nothing.
    cluster = on_cluster.cluster(
        compiled, folder=on_cluster.folder / "failing", parameters={"items": missing}, start=subprocess.Popen
    )
    outcomes = cluster.run(finished=done)
    failed = outcomes["InteractionExampleGen"]
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert f"tables.items.path: there is no file {missing}" in failed.error
    assert {o.state for name, o in outcomes.items() if name not in {*done, "InteractionExampleGen"}} == {"skipped"}
