"""Every compiled step, executed as the cluster would: the same model as the local run, and what stops or repeats it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import world
import yaml
from e2e_runs import Small, twotower

from components.evaluator import summary
from kubeflow import comparison, conformance, runner
from pipeline.config import load

pytestmark = pytest.mark.slow

ROOT = "minio://mlpipeline/v2/artifacts"


@dataclass(frozen=True)
class OnCluster:
    """A finished run of the compiled small world."""

    folder: Path
    config_path: str
    parameters: dict[str, Any]
    outcomes: dict[str, conformance.Outcome]

    def compiled(self, *overrides: str) -> conformance.Compiled:
        path = str(self.folder / "pipeline.yaml")
        runner.compile_pipeline(load(self.config_path, overrides), path)
        return conformance.load(path)

    def versions(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "pushed" / "small-world").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def on_cluster(small: Small, tmp_path_factory: pytest.TempPathFactory) -> OnCluster:
    folder = tmp_path_factory.mktemp("kubeflow")
    # The schema that the local run inferred: the same examples, one step less in the row, and a file that travels.
    schema = folder / "schema.pbtxt"
    assert twotower("schema", "--config", small.config_path, "--output", str(schema)).code == 0
    tree = yaml.safe_load(Path(small.config_path).read_text())
    tree["schema"] = {"path": str(schema)}
    # What the run's own parameters replace; with these values left the models would differ, and be elsewhere.
    parameters = {"epochs": tree["training"]["epochs"], "push_to": str(folder / "pushed" / "small-world")}
    tree["training"]["epochs"] = 1
    tree["kubeflow"] = {
        "image": "registry.example/twotower:1",
        "pipeline_root": ROOT,
        "push": str(folder / "compiled-in"),
        "checkpoints": str(folder / "checkpoints"),
        # The cluster's volumes: the tables, and the push destination.
        "volumes": [{"claim": "twotower", "path": str(small.folder)}, {"claim": "models", "path": str(folder)}],
    }
    config_path = folder / "config.yaml"
    config_path.write_text(yaml.safe_dump(tree))
    run = OnCluster(folder, str(config_path), parameters, {})
    cluster = conformance.Cluster(run.compiled(), folder / "cluster", parameters=parameters)
    return dataclasses.replace(run, outcomes=cluster.run())


def test_every_compiled_step_ends_well_by_its_own_command_line(on_cluster: OnCluster):
    failures = {name: o.error for name, o in on_cluster.outcomes.items() if o.state != "done"}
    assert not failures
    assert len(on_cluster.outcomes) == 11
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


def test_a_backend_with_its_own_metadata_and_a_trainer_that_is_evicted_make_the_same_model(
    on_cluster: OnCluster, tmp_path: Path
):
    # After the release of kubeflow/pipelines#13986; and the first Trainer dies as soon as it has kept an epoch.
    parameters = {**on_cluster.parameters, "push_to": str(on_cluster.folder / "native" / "small-world")}
    cluster = conformance.Cluster(
        on_cluster.compiled(),
        tmp_path / "cluster",
        backend="native",
        parameters=parameters,
        evictions={"Trainer": str(on_cluster.folder / "checkpoints" / "*" / "search" / "checkpoint")},
    )
    outcomes = cluster.run()
    assert {name: o.error for name, o in outcomes.items() if o.state != "done"} == {}
    assert {name for name, o in outcomes.items() if o.attempts != 1} == {"Trainer"}
    assert outcomes["Trainer"].attempts == 2
    # It went on where it was, and nothing is left of it.
    report = json.loads((cluster._stored(outcomes["Trainer"].artifacts["model_run"].uri) / "training.json").read_text())
    assert report["resumed_from_epoch"] >= 1
    assert not list((on_cluster.folder / "checkpoints").iterdir())
    logs = outcomes["Trainer"].artifacts["executor-logs"].uri
    assert logs.endswith("/executor-logs-1") and cluster._stored(logs).is_file()
    evaluations = [o["Evaluator"].artifacts["evaluation"].uri for o in (on_cluster.outcomes, outcomes)]
    folders = [on_cluster.folder / "cluster" / "store", tmp_path / "cluster" / "store"]
    summaries = [
        summary.read(str(folder / uri.replace("://", "/"))) for folder, uri in zip(folders, evaluations, strict=True)
    ]
    # Beam adds in an order of its own, which the last digit of a mean tells.
    assert summaries[0].metrics.keys() == summaries[1].metrics.keys()
    for name, metrics in summaries[0].metrics.items():
        other = summaries[1].metrics[name]
        assert metrics.keys() == other.keys()
        for key, value in metrics.items():
            assert value == (None if other[key] is None else pytest.approx(other[key], rel=1e-9)), (name, key)


def test_a_run_again_executes_what_a_changed_setting_changes(on_cluster: OnCluster):
    outside = ("InteractionExampleGen", "BaselineResolver")
    finished = {name: o for name, o in on_cluster.outcomes.items() if name in outside}

    def run(*overrides: str) -> dict[str, str]:
        compiled = on_cluster.compiled(*overrides)
        cluster = conformance.Cluster(compiled, on_cluster.folder / "cluster", parameters=on_cluster.parameters)
        return {name: o.state for name, o in cluster.run(finished=finished).items() if name not in outside}

    assert set(run().values()) == {"cached"}
    again = run("serving.latency_p99_ms=60000")
    assert {name for name, state in again.items() if state != "cached"} == {"ServableValidator", "Pusher"}
    assert set(again.values()) == {"cached", "done"}


def test_a_gate_that_refuses_leaves_the_push_undone(on_cluster: OnCluster):
    before = on_cluster.versions()
    upstream = {name: o for name, o in on_cluster.outcomes.items() if name not in ("Evaluator", "Pusher")}
    compiled = on_cluster.compiled("evaluation.floors={ndcg@5: 0.99}")
    cluster = conformance.Cluster(compiled, on_cluster.folder / "cluster", parameters=on_cluster.parameters)
    outcomes = cluster.run(finished=upstream)
    assert {o.state for o in outcomes.values()} == {"done"}
    assert outcomes["Evaluator"].artifacts["blessing"].metadata["blessed"] == 0
    assert outcomes["Pusher"].artifacts["pushed_model"].metadata["pushed"] == 0
    assert on_cluster.versions() == before


def test_a_step_that_fails_fails_the_task_and_skips_what_needs_it(on_cluster: OnCluster, small: Small):
    # A table that is not there, by a runtime parameter of the pipeline as it was compiled.
    done = {name: o for name, o in on_cluster.outcomes.items() if name in ("BaselineResolver", "ImportSchemaGen")}
    missing = str(small.folder / "missing.parquet")
    compiled = on_cluster.compiled("kubeflow.retries=0")
    cluster = conformance.Cluster(compiled, on_cluster.folder / "failing", parameters={"items": missing})
    outcomes = cluster.run(finished=done)
    failed = outcomes["InteractionExampleGen"]
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert f"tables.items.path: there is no file {missing}" in failed.error
    assert {o.state for name, o in outcomes.items() if name not in {*done, "InteractionExampleGen"}} == {"skipped"}
