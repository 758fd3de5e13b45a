"""Compiled runs on both of the open-source backend's metadata stores, each step started by its own command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster_runs import OnCluster, run_on_cluster
from e2e_runs import Small

from components.evaluator import summary


@pytest.fixture(scope="module")
def on_cluster(small: Small, tmp_path_factory: pytest.TempPathFactory) -> OnCluster:
    return run_on_cluster(small, tmp_path_factory.mktemp("kubeflow"))


def test_a_backend_with_its_own_metadata_and_a_trainer_that_is_evicted_make_the_same_model(
    on_cluster: OnCluster, tmp_path: Path
):
    # After the release of kubeflow/pipelines#13986; and the first Trainer dies as soon as it has kept an epoch.
    parameters = {**on_cluster.parameters, "push_to": str(on_cluster.folder / "native" / "small-world")}
    cluster = on_cluster.cluster(
        on_cluster.compiled(),
        folder=tmp_path / "cluster",
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
