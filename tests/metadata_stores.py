"""Metadata stores that hold what TFX would have written, without a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_metadata
from ml_metadata.proto import metadata_store_pb2 as mlmd

PIPELINE = "small-world"


def opened(path: Path) -> ml_metadata.MetadataStore:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = mlmd.SqliteMetadataSourceConfig(filename_uri=str(path), connection_mode=3)
    return ml_metadata.MetadataStore(mlmd.ConnectionConfig(sqlite=source))


def began(path: Path, *run_ids: str) -> None:
    """Runs in a metadata store, as TFX registers them."""
    written = Written(path)
    for run_id in run_ids:
        written.run(run_id)


@dataclass
class Made:
    """What a stage of a run did."""

    stage: str
    outputs: Mapping[str, int | str]
    """Key → a number of an artifact that is there already, or the text of a file in a new one."""
    inputs: Sequence[int] = ()
    state: int = mlmd.Execution.COMPLETE
    properties: Mapping[str, str] = field(default_factory=dict)
    """Of its outputs."""
    parameters: Mapping[str, str] = field(default_factory=dict)


class Written:
    """A store, and the folder of artifacts beside it."""

    def __init__(self, path: Path) -> None:
        self.store = opened(path)
        self.root = path.parent
        types = {
            name: self.store.put_context_type(mlmd.ContextType(name=name))
            for name in ("pipeline", "pipeline_run", "node")
        }
        self._types = types
        known = self.store.get_context_by_type_and_name("pipeline", PIPELINE)
        self._pipeline = (
            known.id if known else self.store.put_contexts([mlmd.Context(type_id=types["pipeline"], name=PIPELINE)])[0]
        )
        self._execution_type = self.store.put_execution_type(mlmd.ExecutionType(name="stage"))
        self._artifact_type = self.store.put_artifact_type(mlmd.ArtifactType(name="Thing"))

    def run(self, run_id: str, *made: Made, configuration: str = "") -> list[dict[str, int]]:
        """A run; the numbers of each stage's outputs, by key."""
        context = mlmd.Context(type_id=self._types["pipeline_run"], name=run_id)
        if configuration:
            context.custom_properties["configuration"].string_value = configuration
        (run,) = self.store.put_contexts([context])
        self.store.put_parent_contexts([mlmd.ParentContext(child_id=run, parent_id=self._pipeline)])
        return [self._stage(run, each) for each in made]

    def _stage(self, run: int, made: Made) -> dict[str, int]:
        execution = mlmd.Execution(type_id=self._execution_type, last_known_state=made.state)
        for key, value in made.parameters.items():
            execution.custom_properties[key].string_value = value
        (number,) = self.store.put_executions([execution])
        name = f"{PIPELINE}.{made.stage}"
        node = self.store.get_context_by_type_and_name("node", name)
        (node_id,) = (
            [node.id] if node else self.store.put_contexts([mlmd.Context(type_id=self._types["node"], name=name)])
        )
        self.store.put_attributions_and_associations(
            [], [mlmd.Association(context_id=each, execution_id=number) for each in (run, node_id)]
        )
        outputs = {}
        for key, content in made.outputs.items():
            outputs[key] = content if isinstance(content, int) else self._artifact(made, key, number, content)
        events = [self._event(number, "in", each, mlmd.Event.INPUT) for each in made.inputs]
        events += [self._event(number, key, each, mlmd.Event.OUTPUT) for key, each in outputs.items()]
        self.store.put_events(events)
        return outputs

    def _artifact(self, made: Made, key: str, number: int, content: str) -> int:
        folder = self.root / made.stage / key / str(number)
        folder.mkdir(parents=True)
        (folder / "data").write_text(content)
        Path(f"{folder}.manifest.json").write_text("{}")
        artifact = mlmd.Artifact(type_id=self._artifact_type, uri=os.fspath(folder), state=mlmd.Artifact.LIVE)
        for name, value in made.properties.items():
            artifact.custom_properties[name].string_value = value
        return self.store.put_artifacts([artifact])[0]

    @staticmethod
    def _event(execution: int, key: str, artifact: int, kind: int) -> mlmd.Event:
        path = mlmd.Event.Path(steps=[mlmd.Event.Path.Step(key=key), mlmd.Event.Path.Step(index=0)])
        return mlmd.Event(execution_id=execution, artifact_id=artifact, type=kind, path=path)
