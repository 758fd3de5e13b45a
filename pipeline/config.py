"""The configuration: one YAML file per data set, checked whole before anything runs."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from modules import names, settings
from modules.errors import UserError
from modules.features import Features, Line, Settings
from modules.tables import (
    ColumnSplit,
    Interactions,
    Items,
    LeaveLastOutSplit,
    RandomSplit,
    Split,
    Tables,
    TemporalSplit,
    Users,
)
from pipeline import config_file
from pipeline.config_file import shown

__all__ = [
    "Beam",
    "ColumnSplit",
    "Config",
    "Interactions",
    "Items",
    "Kubeflow",
    "LeaveLastOutSplit",
    "Metadata",
    "Output",
    "RandomSplit",
    "Resources",
    "Schema",
    "Secret",
    "Split",
    "Tables",
    "TemporalSplit",
    "Users",
    "Volume",
    "absolute",
    "load",
]


# So many are named in one line.
_MISTAKES = 5
_NUMBER = re.compile(r"[-+]?[0-9.]+")
# By the type of pydantic's error, where its words are of Python's types.
_SHAPES = {"tuple_type": "expected a list"} | dict.fromkeys(
    ("model_type", "model_attributes_type", "dict_type"), "expected keys and values"
)


class Schema(Settings):
    path: Line | None = None
    """A curated schema.pbtxt; without one the schema is inferred from the training data of each run."""


class Output(Settings):
    root: Line = "runs"
    """Artifacts and, by default, the metadata store."""
    push: Line = "served"
    """The model is pushed to <push>/<name>/<version>."""


class Metadata(Settings):
    """The ML Metadata store: SQLite under the output root, or a server."""

    kind: Literal["sqlite", "mysql", "postgresql"] = "sqlite"
    host: Line | None = None
    port: int | None = Field(None, ge=1, le=65_535)
    database: Line | None = None
    user: Line | None = None
    password_env: Line | None = None
    """Name of the environment variable that holds the password."""

    @model_validator(mode="after")
    def _complete(self) -> Metadata:
        if self.kind != "sqlite" and not (self.host and self.database and self.user):
            raise ValueError(f"{self.kind} needs host, database and user")
        return self


class Beam(Settings):
    options: tuple[Line, ...] = (
        "--runner=DirectRunner",
        "--direct_running_mode=in_memory",
        # Nothing runs in a container here. Without a name for one, TFX would build a package of itself, for remote
        # workers, in every stage that uses Beam: seconds and 50 MB each time.
        "--sdk_container_image=unused",
    )
    """Options of the Beam runner, as on its command line."""


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
    """Running the same pipeline on Kubeflow Pipelines or Vertex AI (kubeflow/README.md)."""

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
    pipeline root where stages open it themselves (kubeflow/README.md), else nowhere."""
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


class Config(Settings):
    """Everything that a data set needs."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,127}$")
    """Name of the pipeline and of the served model."""
    tables: Tables
    split: Split = TemporalSplit()
    features: Features
    data_schema: Schema = Field(Schema(), alias="schema")
    model: settings.Model = settings.Model()
    training: settings.Training = settings.Training()
    tuner: settings.Tuner = settings.Tuner()
    index: settings.Index = settings.Index()
    serving: settings.Serving = settings.Serving()
    evaluation: settings.Evaluation = settings.Evaluation()
    output: Output = Output()
    metadata: Metadata = Metadata()
    beam: Beam = Beam()
    kubeflow: Kubeflow = Kubeflow()

    @property
    def root(self) -> str:
        """Where artifacts, logs and by default the metadata store are."""
        return absolute(f"{self.output.root}/{self.name}")

    @property
    def push_destination(self) -> str:
        """The folder with one numbered folder per pushed version: the `base_path` that TF Serving watches."""
        return absolute(f"{self.output.push}/{self.name}")

    @field_validator("evaluation")
    @classmethod
    def _known_metrics(cls, evaluation: settings.Evaluation) -> settings.Evaluation:
        known = settings.metric_names(evaluation.k)
        for key, metrics in (("floors", evaluation.floors), ("max_regression", evaluation.max_regression)):
            for metric in metrics:
                if metric not in known:
                    raise ValueError(f"{key}: unknown metric {metric!r}; known are {', '.join(known)}")
        return evaluation

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.serving.k < max(self.evaluation.k):
            raise ValueError(
                f"serving.k: {self.serving.k}, but evaluation.k asks for {max(self.evaluation.k)}; raise serving.k"
            )
        if isinstance(self.split, ColumnSplit):
            interactions = self.tables.interactions
            for role in ("user", "item", "timestamp", "weight"):
                if self.split.column == getattr(interactions, role):
                    raise ValueError(f"split.column: {self.split.column!r} is tables.interactions.{role} already; "
                                     "name the column that says train, validation or eval")  # fmt: skip
        names.check(self.tables, self.features, self.serving, self.evaluation)
        return self


def absolute(path: str) -> str:
    """Local paths as absolute ones: stages may run in another working directory."""
    return path if "://" in path else os.path.abspath(path)


def load(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads and checks a configuration.

    Args:
        path: A YAML file.
        overrides: `key.path=value` pairs that replace keys of the file (`config_file.replace`).

    Raises:
        UserError: The file cannot be read, a key is unknown or has the wrong type; the message has the path of the key.
    """
    tree = config_file.read(path)
    for override in overrides:
        config_file.replace(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"configuration {shown(path, 1000)}: {_in_words(error)}") from None


def _in_words(error: ValidationError) -> str:
    """One line for all mistakes: the path of each key, and what was expected there."""
    mistakes = []
    for mistake in error.errors(include_url=False):
        if mistake["type"] == "default_factory_not_called":
            # A default that follows from another key, which is named already.
            continue
        path = ".".join(shown(str(part), 60) for part in mistake["loc"])
        if mistake["type"] == "extra_forbidden":
            words = "unknown key; remove it or correct its name"
        elif mistake["type"] == "missing":
            words = "is missing"
        else:
            words = _SHAPES.get(mistake["type"]) or shown(mistake["msg"].removeprefix("Value error, "), 500)
            if not isinstance(mistake["input"], (dict, list)) and mistake["type"] != "value_error":
                words += f", not {_as_written(mistake['input'])}"
        # A check of the whole names the key by itself.
        mistakes.append(f"{path}: {words}" if path else words)
    more = len(mistakes) - _MISTAKES
    return "; ".join(mistakes[:_MISTAKES] + ([f"and {more} more"] if more > 0 else []))


def _as_written(value: Any) -> str:
    """A number bare, other texts in quotes."""
    text = "null" if value is None else shown(str(value), 60)
    return text if value is None or _NUMBER.fullmatch(text) else repr(text)
