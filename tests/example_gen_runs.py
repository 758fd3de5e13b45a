"""Runs InteractionExampleGen's executor and reads what it wrote, for the tests of several files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tfx.types import artifact_utils, standard_artifacts

from components.interaction_example_gen import executor
from components.interaction_example_gen.component import InteractionExampleGen
from modules.data import tables
from modules.data.examples import CATALOGUE, EVAL, TRAIN, VALIDATION
from modules.encodings.features import Features
from modules.settings import (
    Evaluation,
    Serving,
    Split,
    Tables,
)

BEAM_ARGS = ["--runner=DirectRunner", "--direct_running_mode=in_memory", "--sdk_container_image=unused"]
Rows = list[dict[str, Any]]


@dataclass
class Output:
    artifact: standard_artifacts.Examples
    splits: dict[str, Rows]
    days: dict[str, dict[int, int]]

    def count(self, name: str) -> int:
        return self.artifact.get_int_custom_property(name)

    def queries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in (VALIDATION, EVAL):
            yield from ((name, row) for row in self.splits[name])

    def sequences(self) -> dict[str, list[dict[str, Any]]]:
        """By user, the interactions of the train example, each as a dict."""
        found = {}
        for example in self.splits[TRAIN]:
            lists = {k.removeprefix("sequence_"): v for k, v in example.items() if k.startswith("sequence_")}
            assert len({len(values) for values in lists.values()}) == 1, "lists are not aligned"
            (user,) = example["user_id"]
            assert user not in found
            found[user] = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
        return found


def run(
    settings: Tables,
    split: Split,
    features: dict[str, Any],
    evaluation: dict[str, Any],
    serving: dict[str, Any],
    uri: str,
    read: Sequence[str] = (TRAIN, VALIDATION, EVAL, CATALOGUE),
) -> Output:
    component = InteractionExampleGen(
        tables=settings,
        split=split,
        features=Features.model_validate(features),
        evaluation=Evaluation.model_validate(evaluation),
        serving=Serving.model_validate(serving),
        fingerprint=tables.fingerprint(settings),
        code="",
    )
    artifact = standard_artifacts.Examples()
    artifact.uri = uri
    context = executor.Executor.Context(beam_pipeline_args=list(BEAM_ARGS))
    executor.Executor(context).Do({}, {"examples": [artifact]}, dict(component.exec_properties))
    names = artifact_utils.decode_split_names(artifact.split_names)
    assert sorted(os.listdir(uri)) == sorted([executor.DAYS_FILE, *(f"Split-{name}" for name in names)])
    output = Output(artifact, {name: read_split(uri, name) for name in read}, read_days(uri))
    counted = {name: sum(of_split.values()) for name, of_split in output.days.items()}
    assert counted == {name: output.count(f"interactions_{name}") for name in (TRAIN, VALIDATION, EVAL)}
    return output


def read_days(uri: str) -> dict[str, dict[int, int]]:
    """Split → day since 1970 → interactions."""
    with open(os.path.join(uri, executor.DAYS_FILE), encoding="utf-8") as file:
        tree = json.load(file)
    return {name: {int(day): count for day, count in of_split.items()} for name, of_split in tree.items()}


def read_split(uri: str, name: str) -> Rows:
    """Examples as dicts: a list of strings, a number, or a list of whatever is in a sequence."""
    paths = tf.io.gfile.glob(os.path.join(uri, f"Split-{name}", "data_tfrecord-*.gz"))
    rows = []
    for record in tf.data.TFRecordDataset(paths, compression_type="GZIP").as_numpy_iterator():
        row: dict[str, Any] = {}
        for key, feature in tf.train.Example.FromString(record).features.feature.items():
            kind = feature.WhichOneof("kind")
            values = list(getattr(feature, kind).value)
            assert values, f"{key} is empty instead of absent"
            texts = [value.decode() for value in values] if kind == "bytes_list" else values
            row[key] = texts if kind == "bytes_list" or key.startswith("sequence_") else texts[0]
        rows.append(row)
    return rows
