"""Configurations for a cluster whose volume is the folder of the small world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import world

from pipeline.config import Config, load

IMAGE = "registry.example:5000/recommenders/twotower:1.0"
ROOT = "minio://mlpipeline/v2/artifacts"


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The section `kubeflow` for the small world, whose folder is the cluster's volume."""
    return {
        "image": IMAGE,
        "pipeline_root": ROOT,
        "push": str(folder / "pushed"),
        "volumes": [{"claim": "twotower", "path": str(folder)}],
        **changes,
    }


def config(folder: Path, overrides: list[str] | None = None, **changes: Any) -> Config:
    return load(world.write_config(folder, kubeflow=settings(folder, **changes)), overrides or [])
