"""Decides whether a servable may be pushed: a fresh process tries it, recall and latency are held to their limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

from absl import logging
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.signature import Artifacts, Properties
from modules.errors import UserError
from modules.retrieval import tuning
from modules.servable import catalogue, contract, replay

SERVABLE_KEY, REPORT_KEY, BLESSING_KEY = "servable", "report", "blessing"
LATENCY_KEY, TIMEOUT_KEY, CODE_KEY = "latency_p99_ms", "timeout_seconds", "code"

# What the stock InfraValidator writes and the stock Pusher reads.
_BLESSED_KEY = "blessed"
_STATUS_KEY = "blessing_status"
_BLESSED_FILE, _NOT_BLESSED_FILE = "INFRA_BLESSED", "INFRA_NOT_BLESSED"
REASONS_KEY = "reasons"
"""Custom property: why the servable is not blessed, one reason a line; empty when it is."""
VALIDATION_FILE = "validation.json"
"""In the blessing's folder: reasons, replayed requests, latency."""


class Executor(base_executor.BaseExecutor):
    """Executor of ServableValidator."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Blesses the servable, or says why not.

        Args:
            input_dict: `servable` and `report`, as ScannIndexBuilder wrote them.
            output_dict: `blessing`.
            exec_properties: Limits.
        """
        path = path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict[SERVABLE_KEY]))
        report = self.ReadReport(artifact_utils.get_single_uri(input_dict[REPORT_KEY]))
        reasons = self.CheckContract(path) + self.CheckRecall(report)
        result = self.Replay(path, exec_properties[TIMEOUT_KEY])
        reasons += result["failures"] + self.CheckLatency(result["latency_ms"], exec_properties.get(LATENCY_KEY))

        blessing = artifact_utils.get_single_instance(output_dict[BLESSING_KEY])
        status = _NOT_BLESSED_FILE if reasons else _BLESSED_FILE
        io_utils.write_string_file(os.path.join(blessing.uri, status), "")
        io_utils.write_string_file(
            os.path.join(blessing.uri, VALIDATION_FILE), json.dumps({**result, "failures": reasons}, indent=2)
        )
        blessing.set_int_custom_property(_BLESSED_KEY, int(not reasons))
        blessing.set_string_custom_property(_STATUS_KEY, status)
        blessing.set_string_custom_property(REASONS_KEY, "\n".join(reasons))
        for name, value in (result["latency_ms"] or {}).items():
            blessing.set_float_custom_property(f"latency_{name}_ms", value)
        logging.info("Servable %s: %s", path, "; ".join(reasons) or "blessed")

    def ReadReport(self, uri: str) -> tuning.IndexTuningReport:
        with fileio.open(os.path.join(uri, tuning.REPORT_FILE)) as file:
            return tuning.IndexTuningReport.model_validate_json(file.read())

    def CheckContract(self, path: str) -> list[str]:
        """The servable says what it is under the contract of this code, and its catalogue is beside it."""
        try:
            claimed, there = contract.read_servable(path).catalogue_size, catalogue.size(path)
        except UserError as error:
            return [str(error)]
        if there != claimed:
            return [f"{contract.SERVABLE_PATH} says {claimed} items, {catalogue.CATALOGUE_PATH} has {there}"]
        return []

    def CheckRecall(self, report: tuning.IndexTuningReport) -> list[str]:
        if report.target_met:
            return []
        chosen, target = report.chosen, report.recall_target
        reached = f"recall@{report.recall_k} of {chosen.layer}/{chosen.strategy} is {chosen.recall:.4f} on eval queries"
        if chosen.recall >= target:
            return [f"{reached}, but index.recall_target {target} was not reached on validation queries"]
        return [f"{reached}, {target - chosen.recall:.4f} below index.recall_target {target}"]

    def Replay(self, path: str, timeout_seconds: int) -> dict[str, Any]:
        """What `replay.replay` finds, in a process of its own; a crash or a hang is a failure, too."""
        with tempfile.TemporaryDirectory() as folder:
            result = os.path.join(folder, "result.json")
            # -P keeps this folder and the project out of the process's import path.
            command = [sys.executable, "-P", replay.__file__, path, result]
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TF_CPP_MIN_LOG_LEVEL": "2"}
            try:
                done = subprocess.run(
                    command, timeout=timeout_seconds, env=environment, capture_output=True, text=True, errors="replace"
                )
            except subprocess.TimeoutExpired:
                return _failed(f"did not load and answer within {timeout_seconds} s")
            if done.returncode or not os.path.exists(result):
                return _failed(_last_words(done.returncode, done.stderr))
            with open(result, encoding="utf-8") as file:
                return json.load(file)

    def CheckLatency(self, latency_ms: dict[str, float] | None, limit: float | None) -> list[str]:
        if limit is None or latency_ms is None or latency_ms["p99"] <= limit:
            return []
        return [
            f"latency p99 of single requests is {latency_ms['p99']:.2f} ms, "
            f"{latency_ms['p99'] - limit:.2f} ms above serving.latency_p99_ms {limit}"
        ]


def _failed(reason: str) -> dict[str, Any]:
    return {"failures": [reason], "requests": 0, "latency_ms": None}


def _last_words(returncode: int, stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    how = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
    return f"crashed the process that loaded it ({how}): {lines[-1][:300] if lines else 'no message'}"
