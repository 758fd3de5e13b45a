"""What the Evaluator found, as JSON that is read without TFMA: the commands that show it start in a second."""

from __future__ import annotations

import dataclasses
import json
import os

FILE_NAME = "summary.json"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of an evaluation."""

    metrics: dict[str, dict[str, float | None]]
    """By slice (`overall` first) and metric; None where no query of the slice counts."""
    baseline_metrics: dict[str, dict[str, float | None]]
    """Of the model that was compared with; empty when there was none."""
    failures: list[str]
    """One sentence for every gate that was not passed; empty for a blessed model."""
    baseline_version: str
    """Which pushed version was compared with; "" for none."""
    baseline_note: str
    """Why there was no comparison; "" when there was."""
    confidence: float
    """Of the intervals, whose halves follow."""
    half_widths: dict[str, dict[str, float | None]]
    """Of `metrics` that have an interval, by slice and metric; None where there are fewer than two queries."""
    baseline_differences: dict[str, dict[str, float | None]]
    """By slice and metric: the mean over queries of the model's value less the baseline's; empty without a baseline."""
    baseline_difference_half_widths: dict[str, dict[str, float | None]]
    """Of `baseline_differences`, as `half_widths`."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)


def read(evaluation_uri: str) -> Summary:
    """Reads the summary of a ModelEvaluation artifact.

    Raises:
        FileNotFoundError: The artifact has none.
    """
    path = os.path.join(evaluation_uri, FILE_NAME)
    if "://" in path:
        from tfx.dsl.io import fileio as files  # a remote root needs TensorFlow's file systems

        with files.open(path) as file:
            return Summary(**json.loads(file.read()))
    with open(path, encoding="utf-8") as file:
        return Summary(**json.load(file))
