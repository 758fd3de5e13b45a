"""A whole run of the compiled small world, each step a process of its own."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from e2e_runs import Small, twotower

from kubeflow import conformance, runner
from pipeline.config import load

ROOT = "minio://mlpipeline/v2/artifacts"


@dataclass(frozen=True)
class OnCluster:
    """A finished run of the compiled small world."""

    folder: Path
    config_path: str
    parameters: dict[str, Any]
    start: Callable[..., Any]
    """What starts a step's process."""
    outcomes: dict[str, conformance.Outcome]

    def compiled(self, *overrides: str) -> conformance.Compiled:
        path = str(self.folder / "pipeline.yaml")
        runner.compile_pipeline(load(self.config_path, overrides), path)
        return conformance.load(path)

    def versions(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "pushed" / "small-world").iterdir() if p.name.isdigit())

    def cluster(self, compiled: conformance.Compiled, **changes: Any) -> conformance.Cluster:
        """Where the run was, with its parameters, or elsewhere."""
        same = {"folder": self.folder / "cluster", "parameters": self.parameters, "start": self.start}
        return conformance.Cluster(compiled, **same | changes)


def run_on_cluster(small: Small, folder: Path, start: Callable[..., Any] = subprocess.Popen) -> OnCluster:
    """Compiles what `small` has run, and runs it in an empty folder.

    Args:
        small: The local run.
        folder: For everything.
        start: What starts a step's process; see `conformance.Cluster`.
    """
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
    run = OnCluster(folder, str(config_path), parameters, start, {})
    return dataclasses.replace(run, outcomes=run.cluster(run.compiled()).run())
