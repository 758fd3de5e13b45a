"""Runs the pipeline on this machine with TFX's LocalDagRunner, and shows a person what happens."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator
from typing import TextIO

from rich.console import Console

PROGRESS = logging.getLogger("twotower.progress")
"""Modules and components say here how far they are: one short line each."""


def quiet_libraries() -> None:
    """Settings that must hold before TensorFlow is imported: Keras 2, the same sums everywhere, and no messages."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # oneDNN adds in another order on another processor; with the same seed the model is to be the same.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore")


@contextlib.contextmanager
def captured_output(log_path: str | None) -> Iterator[TextIO]:
    """Sends everything that libraries write, C++ included, to a log file; yields the person's own terminal.

    Args:
        log_path: Where to; None leaves the output alone.
    """
    if log_path is None:
        yield sys.stderr
        return
    os.makedirs(os.path.dirname(log_path), exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    # The descriptors are swapped, not the Python streams: TensorFlow's C++ part writes to the descriptors.
    with open(log_path, "a", encoding="utf-8") as log, os.fdopen(os.dup(2), "w", encoding="utf-8") as terminal:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


class Progress(logging.Handler):
    """Which stage runs, how far it is and how long it took: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, stages: int, stream: TextIO) -> None:
        super().__init__(logging.INFO)
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self._stages = stages
        self._done = 0
        self._status = self.console.status("") if self.console.is_terminal else None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, str]]:
        """Shows one stage; the caller puts its `state` into the yielded dictionary."""
        self._name, self._started = name, time.monotonic()
        outcome = {"state": "failed"}
        if self._status:
            self._status.update(self._line())
            self._status.start()
        try:
            yield outcome
        finally:
            if self._status:
                self._status.stop()
            self._done += 1
            seconds = time.monotonic() - self._started
            mark = {"done": "[green]✓[/]", "cached": "[cyan]↺[/]"}.get(outcome["state"], "[red]✗[/]")
            note = "cached" if outcome["state"] == "cached" else f"{seconds:6.1f} s"
            failed = "" if outcome["state"] in ("done", "cached") else f"  {outcome['state']}"
            self.console.print(f"{mark} {self._done:>2}/{self._stages} {name:<22} {note}{failed}")

    def emit(self, record: logging.LogRecord) -> None:
        """One line of a stage's own progress."""
        if self._status:
            self._status.update(self._line(record.getMessage()))
        else:
            self.console.print(f"        {record.getMessage()}", markup=False)

    def _line(self, message: str = "") -> str:
        return f"{self._done + 1:>2}/{self._stages} {self._name}  {message}"


class PeakMemory(threading.Thread):
    """The largest resident set of this process and its children, sampled twice a second, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._stop_event = threading.Event()

    def run(self) -> None:
        import psutil

        process = psutil.Process()
        while not self._stop_event.wait(0.5):
            total = 0
            for member in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += member.memory_info().rss
            self.bytes = max(self.bytes, total)

    def stop(self) -> int:
        self._stop_event.set()
        self.join()
        return self.bytes


def run(pipeline: object, stream: TextIO, uncached: Collection[str] = ()) -> str:
    """Runs a TFX pipeline stage by stage, with progress.

    Args:
        pipeline: What `create_pipeline` returns.
        stream: Where progress goes.
        uncached: Stages that execute whatever the metadata store remembers of them.

    Returns:
        The run's id in the metadata store.

    Raises:
        Exception: What a stage raised; the stage is marked as failed in the metadata store, and the next run resumes
            behind the last finished stage.
    """
    # TFX is imported here and not above: the commands that only read a run need none of it.
    from ml_metadata.proto import metadata_store_pb2
    from tfx.dsl.compiler import compiler, constants
    from tfx.orchestration import metadata
    from tfx.orchestration.local import local_dag_runner, runner_utils
    from tfx.orchestration.portable import launcher, runtime_parameter_utils

    class Runner(local_dag_runner.LocalDagRunner):
        """LocalDagRunner's own loop, with a word before and after each stage and an end at the first that fails."""

        def run_with_ir(self, pipeline, run_options=None):  # type: ignore[no-untyped-def]
            run_id = datetime.datetime.now().isoformat(timespec="milliseconds")
            runtime_parameter_utils.substitute_runtime_parameter(
                pipeline, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
            )
            deployment = runner_utils.extract_local_deployment_config(pipeline)
            connection = getattr(
                deployment.metadata_connection_config,
                deployment.metadata_connection_config.WhichOneof("connection_config"),
            )
            progress = Progress(len(pipeline.nodes), stream)
            PROGRESS.addHandler(progress)
            PROGRESS.setLevel(logging.INFO)
            try:
                for node in pipeline.nodes:
                    node_id = node.pipeline_node.node_info.id
                    if node_id in uncached:
                        node.pipeline_node.execution_options.caching_options.enable_cache = False
                    with progress.stage(node_id) as outcome:
                        info = launcher.Launcher(
                            pipeline_node=node.pipeline_node,
                            mlmd_connection=metadata.Metadata(connection),
                            pipeline_info=pipeline.pipeline_info,
                            pipeline_runtime_spec=pipeline.runtime_spec,
                            executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
                            custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
                        ).launch()
                        with metadata.Metadata(connection) as store:
                            (execution,) = store.store.get_executions_by_id([info.execution_id])
                        states = metadata_store_pb2.Execution
                        if execution.last_known_state == states.CACHED:
                            outcome["state"] = "cached"
                        elif execution.last_known_state == states.COMPLETE:
                            outcome["state"] = "done"
                        else:
                            # The launcher marks a stage whose inputs cannot be resolved as failed, and says nothing.
                            raise RuntimeError(f"{node_id} could not start: its inputs were not found")
            finally:
                PROGRESS.removeHandler(progress)
            return run_id

    runner = Runner()
    return runner.run_with_ir(compiler.Compiler().compile(pipeline))
