"""Runs the pipeline on this machine with TFX's LocalDagRunner, and shows a person what happens."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import logging
import os
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from rich.text import Text

from modules import beam_signatures, full_disk, lock, manifest, push_destination
from modules.errors import UserError
from pipeline import terminal
from pipeline.terminal import styled

if TYPE_CHECKING:
    from pipeline.lineage_events import LineageEvents

PROGRESS = logging.getLogger("twotower.progress")
"""Modules and components say here how far they are: one short line each."""

PEAK_MEMORY_PROPERTY = "peak_memory_bytes"
"""Of an execution: the most that the process needed while its stage ran."""
CONFIGURATION_PROPERTY = "configuration"
"""Of a run's context: the whole configuration, as JSON."""
# Removing files takes seconds.
_CLEANED_WITHIN_SECONDS = 300.0


def quiet_libraries() -> None:
    """Settings that must hold before TensorFlow is imported: Keras 2, the same sums everywhere, and no messages."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # oneDNN adds in another order on another processor; with the same seed the model is to be the same.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # ML Metadata's client of PostgreSQL announces each connection, and says what it then raises.
    os.environ.setdefault("GLOG_minloglevel", "3")
    warnings.filterwarnings("ignore")


def new_log(root: str) -> str:
    """A file for what the libraries of one command write."""
    # Two commands can start in the same second.
    return os.path.join(root, "logs", time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}.log"))


@contextlib.contextmanager
def running(root: str) -> Iterator[None]:
    """Keeps `twotower clean` from an output root while runs work in it; several may.

    Raises:
        UserError: It is being cleaned, and for long.
        OSError: The folder cannot be made.
    """
    with lock.shared(root, _CLEANED_WITHIN_SECONDS) as is_ours:
        if not is_ours:
            raise UserError(f"{root}: `twotower clean` has been at work here for long; wait for it, and try again")
        yield


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
            # A log on a full disk must not keep the person's terminal from them.
            for output in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    output.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


class Progress(logging.Handler):
    """Which stage runs, how far it is and how long it took: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, stages: int, stream: TextIO) -> None:
        super().__init__(logging.INFO)
        self.console = terminal.console(stream)
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
            mark = {"done": ("✓", "green"), "cached": ("↺", "cyan")}.get(outcome["state"], ("✗", "red"))
            note = "cached" if outcome["state"] == "cached" else f"{seconds:6.1f} s"
            failed = "" if outcome["state"] in ("done", "cached") else f"  {outcome['state']}"
            self.console.print(styled(mark, f" {self._done:>2}/{self._stages} {name:<22} {note}{failed}"))

    def note(self, message: str) -> None:
        """A line that stays."""
        self.console.print(f"        {message}")

    def emit(self, record: logging.LogRecord) -> None:
        """One line of a stage's own progress; a warning stays."""
        if self._status and record.levelno < logging.WARNING:
            self._status.update(self._line(record.getMessage()))
        else:
            self.note(record.getMessage())

    def _line(self, message: str = "") -> Text:
        # rich takes a status that is a `str` for markup.
        return styled(f"{self._done + 1:>2}/{self._stages} {self._name}  {message}")


class PeakMemory(threading.Thread):
    """The largest resident set of this process and its children, sampled twice a second, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.of_stages: dict[str, int] = {}
        """While each stage ran, with what the process still held of those before it."""
        self.stage = ""
        """The stage that runs or has run last; "" before the first."""
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
            if stage := self.stage:
                self.of_stages[stage] = max(self.of_stages.get(stage, 0), total)

    def stop(self) -> None:
        self._stop_event.set()
        self.join()


def keep_peak_memory(execution: Any, peak: int) -> None:
    """Notes a stage's peak memory, in bytes, in what the metadata store has of its execution."""
    # An int_value has 32 bits in PostgreSQL and MySQL.
    execution.custom_properties[PEAK_MEMORY_PROPERTY].double_value = peak


def run(
    pipeline: object,
    stream: TextIO,
    check_beam: Callable[[], None] = lambda: None,
    memory: PeakMemory | None = None,
    configuration: str = "",
    lineage: LineageEvents | None = None,
) -> str:
    """Runs a TFX pipeline stage by stage, with progress.

    What a stage made is re-used as long as it is as it was made: what has been damaged or removed since is marked as
    deleted in the metadata store, and its stage executes again. A pushed version belongs to what the Pusher made.

    Args:
        pipeline: What `create_pipeline` returns.
        stream: Where progress goes.
        check_beam: Called before each stage that uses Beam; raises a UserError when its runner cannot be reached.
        memory: Is told which stage runs; what it has seen of a stage stays in the metadata store.
        configuration: As JSON, to be kept there with the run.
        lineage: Is told which stage runs, and tells others.

    Returns:
        The run's id in the metadata store.

    Raises:
        Exception: What a stage raised; the stage is marked as failed in the metadata store, and the next run resumes
            behind the last finished stage.
        UserError: A stage failed, and one of its inputs is damaged; or what `check_beam` raised.
        KeyboardInterrupt: It was interrupted; the stage is marked as failed, too.
    """
    # TFX is imported here and not above: the commands that only read a run need none of it.
    from ml_metadata.proto import metadata_store_pb2
    from tfx.dsl.compiler import compiler, constants
    from tfx.orchestration import metadata
    from tfx.orchestration.local import local_dag_runner, runner_utils
    from tfx.orchestration.portable import cache_utils, launcher, outputs_utils, runtime_parameter_utils
    from tfx.proto.orchestration import executable_spec_pb2

    states = metadata_store_pb2.Execution

    def set_aside(store: Any, artifact: Any) -> None:
        """The cache passes over what is not live, and takes the outcome of an earlier execution or none."""
        (stored,) = store.get_artifacts_by_id([artifact.id])
        stored.state = metadata_store_pb2.Artifact.DELETED
        store.put_artifacts([stored])

    class Launcher(launcher.Launcher):
        """TFX's launcher, which also knows what each file of a stage's inputs and outputs was when it was made."""

        def _run_executor(self, execution_info):  # type: ignore[no-untyped-def]
            try:
                # A runner that has gone since the last stage: Beam would wait for it, a day long.
                if isinstance(self._executor_spec, executable_spec_pb2.BeamExecutableSpec):
                    check_beam()
                return super()._run_executor(execution_info)
            except KeyboardInterrupt:
                outputs_utils.remove_output_dirs(execution_info.output_dict)
                raise
            except Exception as error:
                # Nothing is wrong with the inputs then, and reading all of them takes long.
                if full_disk.refusal(error) is not None:
                    raise
                for artifacts in execution_info.input_dict.values():
                    for artifact in artifacts:
                        damage = _damage(artifact, thorough=True)
                        if damage:
                            with self._mlmd_connection as m:
                                set_aside(m.store, artifact)
                            raise UserError(f"{damage}; run again, and the stage that made it executes again") from None
                raise

        def _publish_successful_execution(self, execution_id, contexts, output_dict, executor_output):  # type: ignore[no-untyped-def]
            try:
                for artifacts in output_dict.values():
                    for artifact in artifacts:
                        if os.path.isdir(artifact.uri):
                            manifest.write(_manifest_of(artifact.uri), manifest.of(artifact.uri))
            except OSError:
                outputs_utils.remove_output_dirs(output_dict)
                self._publish_failed_execution(execution_id, contexts)
                raise
            super()._publish_successful_execution(execution_id, contexts, output_dict, executor_output)

    def intact_outputs(metadata_handle: Any, cache_context: Any) -> Any:
        """In place of TFX's look into the cache, which is content with a folder of the right name."""
        while True:
            outputs = cached_outputs(metadata_handle=metadata_handle, cache_context=cache_context)
            damaged = [(a, d) for artifacts in (outputs or {}).values() for a in artifacts if (d := _damage(a))]
            if not damaged:
                return outputs
            for artifact, damage in damaged:
                progress.note(f"{damage}: made again")
                set_aside(metadata_handle.store, artifact)

    class Runner(local_dag_runner.LocalDagRunner):
        """LocalDagRunner's own loop, with a word before and after each stage and an end at the first that fails."""

        def run_with_ir(self, pipeline, run_options=None):  # type: ignore[no-untyped-def]
            runtime_parameter_utils.substitute_runtime_parameter(
                pipeline, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
            )
            deployment = runner_utils.extract_local_deployment_config(pipeline)
            connection = getattr(
                deployment.metadata_connection_config,
                deployment.metadata_connection_config.WhichOneof("connection_config"),
            )
            for number, node in enumerate(pipeline.nodes):
                node_id = node.pipeline_node.node_info.id
                if memory is not None:
                    memory.stage = node_id
                told = lineage.stage(node_id) if lineage else contextlib.nullcontext()
                with told, progress.stage(node_id) as outcome:
                    try:
                        info = Launcher(
                            pipeline_node=node.pipeline_node,
                            mlmd_connection=metadata.Metadata(connection),
                            pipeline_info=pipeline.pipeline_info,
                            pipeline_runtime_spec=pipeline.runtime_spec,
                            executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
                            custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
                        ).launch()
                    except KeyboardInterrupt:
                        outcome["state"] = "interrupted"
                        self._mark_as_failed(connection)
                        raise KeyboardInterrupt(
                            f"interrupted in {node_id}; what was finished stays, and `twotower run` goes on from there"
                        ) from None
                    except Exception as error:
                        refused = full_disk.refusal(error)
                        if refused is None or isinstance(error, UserError):
                            raise
                        with contextlib.suppress(Exception):  # the store may be on the same disk
                            self._mark_as_failed(connection)
                        folder = os.path.join(pipeline.runtime_spec.pipeline_root.field_value.string_value, node_id)
                        words = full_disk.in_words(refused, folder, "choose another disk with output.root")
                        raise UserError(f"{node_id}: {words}") from error
                    with metadata.Metadata(connection) as store:
                        (execution,) = store.store.get_executions_by_id([info.execution_id])
                        peak = memory.of_stages.get(node_id) if memory is not None else None
                        if peak is not None and execution.last_known_state == states.COMPLETE:
                            keep_peak_memory(execution, peak)
                            store.store.put_executions([execution])
                        if configuration and number == 0:
                            # TFX has made the context for the first stage.
                            context = store.store.get_context_by_type_and_name("pipeline_run", run_id)
                            context.custom_properties[CONFIGURATION_PROPERTY].string_value = configuration
                            store.store.put_contexts([context])
                    if execution.last_known_state == states.CACHED:
                        outcome["state"] = "cached"
                    elif execution.last_known_state == states.COMPLETE:
                        outcome["state"] = "done"
                        _give_back_memory()
                    else:
                        # The launcher marks a stage whose inputs cannot be resolved as failed, and says nothing.
                        raise RuntimeError(f"{node_id} could not start: its inputs were not found")

        def _mark_as_failed(self, connection):  # type: ignore[no-untyped-def]
            """The launcher does so for most exceptions, and an interruption is none."""
            with metadata.Metadata(connection) as store:
                context = store.store.get_context_by_type_and_name("pipeline_run", run_id)
                executions = store.store.get_executions_by_context(context.id) if context else []
                left = [e for e in executions if e.last_known_state in (states.NEW, states.RUNNING)]
                for execution in left:
                    execution.last_known_state = states.FAILED
                store.store.put_executions(left)

    # Two runs can start in the same millisecond.
    run_id = f"{datetime.datetime.now().isoformat(timespec='milliseconds')}-{uuid.uuid4().hex[:6]}"
    compiled = compiler.Compiler().compile(pipeline)
    progress = Progress(len(compiled.nodes), stream)
    cached_outputs = cache_utils.get_cached_outputs
    PROGRESS.addHandler(progress)
    PROGRESS.setLevel(logging.INFO)
    cache_utils.get_cached_outputs = intact_outputs
    try:
        telling = lineage.run(run_id) if lineage else contextlib.nullcontext()
        with telling, _libraries_uncollected(), beam_signatures.kept():
            Runner().run_with_ir(compiled)
    finally:
        cache_utils.get_cached_outputs = cached_outputs
        PROGRESS.removeHandler(progress)
    return run_id


@contextlib.contextmanager
def _libraries_uncollected() -> Iterator[None]:
    """Leaves what is there already out of garbage collection: a full one takes half a second over the libraries alone.

    There is one after each stage, and several in a fit.
    """
    frozen_before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()


def _give_back_memory() -> None:
    """Gives what a stage has left unused back to the system.

    The stages are one process: C's allocator would keep it, and it would stand in the peaks of the stages after it.
    """
    gc.collect()
    # glibc's own; another C library has no such function.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _damage(artifact: Any, *, thorough: bool = False) -> str:
    """What of an artifact is not as it was made, in words; "" when nothing is known to be wrong."""
    damage = manifest.damage(artifact.uri, _manifest_of(artifact.uri), thorough=thorough)
    if damage or not artifact.get_int_custom_property("pushed"):
        return damage
    version = artifact.get_string_custom_property("pushed_destination")
    if push_destination.standing(version, artifact.get_string_custom_property("pipeline_stamp")):
        return ""
    return push_destination.damage(version) or f"{version} is no longer there"


def _manifest_of(uri: str) -> str:
    """Beside the artifact and not in it, where stages look for what is theirs."""
    return f"{uri.rstrip('/')}.manifest.json"
