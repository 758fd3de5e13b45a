"""The section `kubeflow`: the same pipeline on a cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modules.settings.base import Line, Settings
from modules.settings.beam import Beam


class Resources(Settings):
    """What the container of one stage asks of a cluster."""

    image: Line | None = None
    """Instead of kubeflow.image, for instance the one with CUDA's libraries."""
    cpu: float | None = Field(None, gt=0, le=100_000)
    """Cores."""
    memory: float | None = Field(None, gt=0, le=1_000_000)
    """Gigabytes, 10⁹ bytes."""
    accelerator: Line | None = None
    """The resource's name in the cluster, for instance nvidia.com/gpu; on Vertex AI a type such as NVIDIA_TESLA_T4."""
    accelerators: int = Field(1, ge=1, le=1_000)
    node_selector: dict[Line, str] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: tuple[Line, ...] = ()
    """Keys of taints that do not keep the stage away, whatever their value and effect."""


class Volume(Settings):
    """A persistent volume, mounted by the stages that read or write something on it."""

    claim: Line
    path: Line = Field(pattern="^/.")
    """Where it is mounted; tables, the push destination, checkpoints and a schema may be below."""


class Secret(Settings):
    """A secret of the cluster, named and never copied."""

    name: Line
    env: dict[Line, Line] = Field(min_length=1)
    """Environment variable → key of the secret."""


class Kubeflow(Settings):
    """Running the same pipeline on Kubeflow Pipelines or Vertex AI (docs/kubeflow.md)."""

    image: Line | None = None
    """The image of kubeflow/Dockerfile, as the cluster pulls it."""
    pipeline_root: Line | None = None
    """Where the cluster keeps artifacts: minio://, s3:// or gs://."""
    spec: Literal["2.1", "2.0"] = "2.1"
    """Version of the pipeline spec: 2.1 for Kubeflow Pipelines and Vertex AI, 2.0 for Vertex AI alone."""
    tables: Line | None = None
    """Instead of the folders of tables.*.path: where the files of the same names are, on gs:// or on a volume."""
    push: Line | None = None
    """Instead of output.push: the model goes to <push>/<name>/<version>, on gs:// or on a volume."""
    checkpoints: Line | None = None
    """Where a training that was killed finds its last epoch again, on gs:// or on a volume; by default below the
    pipeline root where stages open it themselves (docs/kubeflow.md), else nowhere."""
    retries: int = Field(2, ge=0, le=100)
    """How often a stage whose pod was evicted or failed is started again."""
    beam: Beam = Beam()
    """Instead of `beam`. A runner with remote workers needs a gs:// root and the worker image."""
    resources: dict[Line, Resources] = Field(default_factory=dict)
    """By stage, for instance Trainer; `default` is for those that are not named."""
    volumes: tuple[Volume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    image_pull_secret: Line | None = None
    host: Line | None = None
    """The API that `twotower kubeflow submit` talks to; without one the in-cluster service or a kubeconfig's proxy."""
    namespace: Line = "kubeflow"
    experiment: Line | None = None
    """By default the configuration's name."""
    service_account: Line | None = None
    """What runs execute as; by default the installation's own."""
