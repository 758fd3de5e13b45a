"""The configuration: one YAML file per data set, checked whole before anything runs."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from modules import settings
from modules.errors import UserError
from modules.features import Features, Settings
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


class Schema(Settings):
    path: str | None = None
    """A curated schema.pbtxt; without one the schema is inferred from the training data of each run."""


class Output(Settings):
    root: str = "runs"
    """Artifacts and, by default, the metadata store."""
    push: str = "served"
    """The model is pushed to <push>/<name>/<version>."""


class Metadata(Settings):
    """The ML Metadata store: SQLite under the output root, or a server."""

    kind: Literal["sqlite", "mysql", "postgresql"] = "sqlite"
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password_env: str | None = None
    """Name of the environment variable that holds the password."""

    @model_validator(mode="after")
    def _complete(self) -> Metadata:
        if self.kind != "sqlite" and not (self.host and self.database and self.user):
            raise ValueError(f"{self.kind} needs host, database and user")
        return self


class Beam(Settings):
    options: tuple[str, ...] = (
        "--runner=DirectRunner",
        "--direct_running_mode=in_memory",
        # Nothing runs in a container here. Without a name for one, TFX would build a package of itself, for remote
        # workers, in every stage that uses Beam: seconds and 50 MB each time.
        "--sdk_container_image=unused",
    )
    """Options of the Beam runner, as on its command line."""


class Resources(Settings):
    """What the container of one stage asks of a cluster."""

    image: str | None = None
    """Instead of kubeflow.image, for instance the one with CUDA's libraries."""
    cpu: float | None = Field(None, gt=0)
    """Cores."""
    memory: float | None = Field(None, gt=0)
    """Gigabytes, 10⁹ bytes."""
    accelerator: str | None = None
    """The resource's name in the cluster, for instance nvidia.com/gpu; on Vertex AI a type such as NVIDIA_TESLA_T4."""
    accelerators: int = Field(1, ge=1)
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: tuple[str, ...] = ()
    """Keys of taints that do not keep the stage away, whatever their value and effect."""


class Volume(Settings):
    """A persistent volume that every stage sees."""

    claim: str
    path: str = Field(pattern="^/")
    """Where it is mounted; tables and the push destination may be below."""


class Secret(Settings):
    """A secret of the cluster, named and never copied."""

    name: str
    env: dict[str, str] = Field(min_length=1)
    """Environment variable → key of the secret."""


class Kubeflow(Settings):
    """Running the same pipeline on Kubeflow Pipelines or Vertex AI (kubeflow/README.md)."""

    image: str | None = None
    """The image of kubeflow/Dockerfile, as the cluster pulls it."""
    pipeline_root: str | None = None
    """Where the cluster keeps artifacts: minio://, s3:// or gs://."""
    spec: Literal["2.1", "2.0"] = "2.1"
    """Version of the pipeline spec: 2.1 for Kubeflow Pipelines and Vertex AI, 2.0 for Vertex AI alone."""
    push: str | None = None
    """Instead of output.push: the model goes to <push>/<name>/<version>, on gs:// or on a volume."""
    beam: Beam = Beam()
    """Instead of `beam`. A runner with remote workers needs a gs:// root and the worker image."""
    resources: dict[str, Resources] = Field(default_factory=dict)
    """By stage, for instance Trainer; `default` is for those that are not named."""
    volumes: tuple[Volume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    image_pull_secret: str | None = None
    host: str | None = None
    """The API that `twotower kubeflow submit` talks to; without one the in-cluster service or a kubeconfig's proxy."""
    namespace: str = "kubeflow"
    experiment: str | None = None
    """By default the configuration's name."""
    service_account: str | None = None
    """What runs execute as; by default the installation's own."""

    @field_validator("spec", mode="before")
    @classmethod
    def _version(cls, spec: Any) -> Any:
        # YAML reads 2.1 as a number.
        return str(spec) if isinstance(spec, float) else spec


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
        names = settings.metric_names(evaluation.k)
        for key, metrics in (("floors", evaluation.floors), ("max_regression", evaluation.max_regression)):
            for metric in metrics:
                if metric not in names:
                    raise ValueError(f"{key}: unknown metric {metric!r}; known are {', '.join(names)}")
        return evaluation

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.serving.k < max(self.evaluation.k):
            raise ValueError(
                f"serving.k is {self.serving.k} but evaluation.k asks for {max(self.evaluation.k)}; raise serving.k"
            )
        return self


def absolute(path: str) -> str:
    """Local paths as absolute ones: stages may run in another working directory."""
    return path if "://" in path else os.path.abspath(path)


def load(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads and checks a configuration.

    Args:
        path: A YAML file.
        overrides: `key.path=value` pairs that replace keys of the file; values are read as YAML.

    Raises:
        UserError: The file cannot be read, a key is unknown or has the wrong type; the message has the path of the key.
    """
    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f"configuration {path}: {error.strerror}; give an existing file with --config") from None
    except yaml.YAMLError as error:
        raise UserError(f"configuration {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"configuration {path}: expected keys and values at the top, such as `name: my-data`")
    for override in overrides:
        _override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"configuration {path}: {_in_words(error)}") from None


def _override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override!r}: expected key.path=value, for instance training.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: {text!r} is not a YAML value") from None
    *parents, last = re.split(r"\.", key)
    node: Any = tree
    for parent in parents:
        node = _child(node, parent, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    elif isinstance(node, dict):
        # Another split strategy has other keys: what the file says of the old one does not belong to the new one.
        if key == "split.strategy" and node.get("strategy") != value:
            node.clear()
        node[last] = value
    else:
        raise UserError(f"--set {override!r}: {key.rpartition('.')[0]} is a single value and has no keys")


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, override)]
    if not isinstance(node, dict):
        raise UserError(f"--set {override!r}: there are no keys below a single value")
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _position(node: list[Any], key: str, override: str) -> int:
    """A list's element by its number, or by its `column` (features.query.age.dimension=8)."""
    for position, element in enumerate(node):
        if isinstance(element, dict) and element.get("column") == key:
            return position
    if key.isdigit() and int(key) < len(node):
        return int(key)
    raise UserError(f"--set {override!r}: the list has no element {key!r}")


def _in_words(error: ValidationError) -> str:
    """One line for all mistakes: the path of each key, and what was expected there."""
    mistakes = []
    for mistake in error.errors(include_url=False):
        path = ".".join(str(part) for part in mistake["loc"]) or "the file"
        if mistake["type"] == "extra_forbidden" and path in settings.RENAMED:
            words = f"is now {settings.RENAMED[path]}; rename it"
        elif mistake["type"] == "extra_forbidden":
            words = "unknown key; remove it or correct its name"
        elif mistake["type"] == "missing":
            words = "is missing"
        else:
            words = mistake["msg"].removeprefix("Value error, ")
            if not isinstance(mistake["input"], (dict, list)) and mistake["type"] != "value_error":
                words += f", not {mistake['input']!r}"
        mistakes.append(f"{path}: {words}")
    return "; ".join(mistakes)
