"""What can be set anew for every run of the compiled pipeline, and what the paths in its settings may be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kubeflow import transport
from modules.errors import UserError
from modules.settings import Training
from pipeline.config import Config, absolute

FIRST_STAGE = "InteractionExampleGen"
"""The stage that every other one waits for, the look at the baseline apart: it checks the parameters of a run."""


@dataclass(frozen=True)
class Opened:
    """A path in the settings, and the stages that open it."""

    key: str
    path: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Parameter:
    """One runtime parameter of the compiled pipeline."""

    name: str
    default: str | int
    key: str
    """The key of the configuration that it replaces."""
    targets: dict[str, tuple[str, ...]]
    """Stage → its parameter, and keys inside of that parameter's JSON."""
    volumes: tuple[str, ...] = ()
    """For a path: where the volumes are mounted that all its stages see."""

    @property
    def rule(self) -> dict[str, Any]:
        """What `checked` holds a value against, as JSON can carry it."""
        return {"setting": self.key} if isinstance(self.default, int) else {"volumes": list(self.volumes)}


def with_absolute_paths(config: Config) -> Config:
    """The configuration with its paths as the cluster has them.

    Relative ones are of this folder, in a container as well: whether a volume is there, `check_path` decides.
    """
    tables, kubeflow = config.tables, config.kubeflow

    def place(path: str) -> str:
        return absolute(
            path if kubeflow.tables is None else f"{kubeflow.tables.rstrip('/')}/{os.path.basename(path.rstrip('/'))}"
        )

    changed = {
        name: table.model_copy(update={"path": place(table.path)})
        for name, table in (("interactions", tables.interactions), ("items", tables.items), ("users", tables.users))
        if table is not None
    }
    checkpoints = kubeflow.checkpoints and absolute(kubeflow.checkpoints)
    push = absolute(kubeflow.push or config.output.push)
    return config.model_copy(
        update={
            "tables": tables.model_copy(update=changed),
            # The paths have been moved: once is enough.
            "kubeflow": kubeflow.model_copy(update={"tables": None, "push": push, "checkpoints": checkpoints}),
        }
    )


def push_destination(config: Config) -> str:
    """The model's folder on the cluster, whose children are versions."""
    return f"{config.kubeflow.push}/{config.name}"


def opened(config: Config) -> Iterator[Opened]:
    """Every path that a stage opens beside its artifacts.

    Args:
        config: With the cluster's paths.
    """
    tables, kubeflow = config.tables, config.kubeflow
    readers = _readers(config)
    yield Opened("tables.interactions.path", tables.interactions.path, readers)
    yield Opened("tables.items.path", tables.items.path, readers)
    if tables.users is not None:
        yield Opened("tables.users.path", tables.users.path, readers)
    yield Opened("kubeflow.push", push_destination(config), ("BaselineResolver", "Pusher"))
    if kubeflow.checkpoints is not None:
        yield Opened("kubeflow.checkpoints", kubeflow.checkpoints, ("Trainer",))
    schema = config.data_schema.path
    if schema is not None and not travels(schema, config):
        yield Opened("schema.path", schema, ("ImportSchemaGen",))


def _readers(config: Config) -> tuple[str, ...]:
    """The stages that read the tables: the first one, and the one that puts known users into the servable."""
    return (FIRST_STAGE, "ScannIndexBuilder") if config.serving.known_users else (FIRST_STAGE,)


def travels(schema: str, config: Config) -> bool:
    """Whether a schema is a file of this machine, and not one that only the cluster has."""
    paths = [volume.path for volume in config.kubeflow.volumes]
    return "://" not in schema and (os.path.exists(schema) or not any(_is_below(schema, path) for path in paths))


def mounted(config: Config, stage: str) -> list[int]:
    """Which of `kubeflow.volumes` a stage mounts: those that it opens something on.

    A pod that mounts a volume of one node runs on that node; the stages that compute need none.
    """
    paths = [one.path for one in opened(config) if stage in one.stages]
    volumes = enumerate(config.kubeflow.volumes)
    return [number for number, volume in volumes if any(_is_below(path, volume.path) for path in paths)]


def parameters(config: Config) -> list[Parameter]:
    """What can be set anew for every run.

    Args:
        config: With the cluster's paths.
    """
    tables = config.tables
    paths = {"interactions": tables.interactions.path, "items": tables.items.path}
    if tables.users is not None:
        paths["users"] = tables.users.path
    volumes = _volumes(config, FIRST_STAGE)
    of_tables = [
        Parameter(name, path, f"tables.{name}.path", dict.fromkeys(_readers(config), ("tables", name, "path")), volumes)
        for name, path in paths.items()
    ]
    return [
        *of_tables,
        Parameter("epochs", config.training.epochs, "training.epochs",
                  {"Trainer": ("custom_config", "training", "epochs")}),
        Parameter("push_to", push_destination(config), "<kubeflow.push>/<name>",
                  {"BaselineResolver": ("push_destination",),
                   "Pusher": ("push_destination", "filesystem", "base_directory")}, _volumes(config, "Pusher")),
    ]  # fmt: skip


def _volumes(config: Config, stage: str) -> tuple[str, ...]:
    return tuple(config.kubeflow.volumes[number].path for number in mounted(config, stage))


def checked(what: str, rule: Mapping[str, Any], value: Any) -> Any:
    """A runtime parameter's value, as the setting that it replaces would be checked.

    Args:
        what: The parameter, in words.
        rule: `Parameter.rule`.
        value: From a command line or the user interface; numbers may have come as floating point.

    Raises:
        UserError: The setting cannot have this value.
    """
    if "volumes" in rule:
        check_path(what, str(value), rule["volumes"])
        return value
    section, _, field = rule["setting"].partition(".")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        {"training": Training}[section].model_validate({field: value}, strict=True)
    except ValidationError:
        raise UserError(f"{what}={value}: expected a whole number above 0") from None
    return value


def check_path(key: str, path: str, volumes: Sequence[str]) -> None:
    """Refuses what a container could not open.

    Args:
        key: Whose value it is.
        path: The path.
        volumes: Where volumes are mounted in the stages that open it.

    Raises:
        UserError: One line, with the fix.
    """
    if transport.is_changed(path):
        raise UserError(f"{key}: {path} holds `$$`, `$(` or braces, which Kubernetes and Argo replace; rename it")
    if path.startswith("gs://") or any(_is_below(path, volume) for volume in volumes):
        return
    places = "give a gs:// path, or one below a volume of kubeflow.volumes"
    if volumes:
        places += f" ({', '.join(volumes)})"
    what = "cannot be opened by TensorFlow" if "://" in path else "is where no container sees it"
    raise UserError(f"{key}: {path} {what}; {places}")


def _is_below(path: str, folder: str) -> bool:
    return "://" not in path and os.path.normpath(path).startswith(os.path.normpath(folder).rstrip("/") + "/")
