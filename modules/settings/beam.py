"""The section `beam`: which runner the Beam stages run on, and what of it a person has to say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from modules.settings.base import Line, Settings
from modules.settings.renamed import BEAM_OPTIONS

_RUNNERS = {
    "direct": "DirectRunner",
    # FlinkRunner and SparkRunner differ from it by starting a Java job server themselves when they are given none.
    "portable": "PortableRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}
_JOB_SERVICE = ("portable", "flink", "spark")
# Beam's default of five minutes is said to be for answers of the job service alone, and ends longer jobs as well.
_JOB_SECONDS = 24 * 3600
# A worker imports TFX and TensorFlow for half a minute; without this Flink and Spark start one for each stage of a job.
_KEEP_WORKERS_MILLISECONDS = 10 * 60 * 1000


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or "/" in text or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError(f"{text!r} is no address; give host:port, as in localhost:8099")
    return text


Address = Annotated[Line, AfterValidator(_address)]
"""host:port."""


class Beam(Settings):
    """Each runner takes the fields that it needs and refuses those of the others (docs/scale.md)."""

    runner: Literal["direct", "portable", "flink", "spark", "dataflow"] = "direct"
    """`direct`: here. `portable`: a job service of Beam's own. `flink`, `spark`: Beam's job server in front of such a
    cluster. `dataflow`: Google's."""
    workers: int | None = Field(None, ge=1, le=10_000)
    """direct: processes on this machine, by default the pipeline's own. portable: nothing to be said, Beam's own job
    service asks for one worker. flink: the parallelism, by default the cluster's. spark: worker processes on each node,
    by default one. dataflow: machines at most, by default as many as it likes."""
    job_endpoint: Address | None = None
    """portable, flink, spark: where the job service listens."""
    worker_pool: Address | None = None
    """portable, flink, spark: where the runner asks for Python workers (pipeline/beam_worker.py). Flink and Spark ask
    from each of their nodes, so that localhost is the pool beside each."""
    worker_image: Line | None = None
    """Instead of a pool, and for dataflow: the image of kubeflow/Dockerfile's target beam-worker."""
    project: Line | None = None
    """dataflow: Google Cloud's project."""
    region: Line | None = None
    """dataflow: where, for instance europe-west1."""
    temp_location: Line | None = None
    """dataflow: a folder on gs://."""
    options: tuple[Line, ...] = ()
    """More options of the runner, as on Beam's command line; they come last."""

    @field_validator("options")
    @classmethod
    def _not_a_field(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        said = []
        for option in options:
            name, _, value = option.partition("=")
            if not name.startswith("--"):
                raise ValueError(f"{option!r} is no option; write --name=value")
            if name in BEAM_OPTIONS:
                ours = next((f": {ours}" for ours, of_beam in _RUNNERS.items() if of_beam == value), "")
                said.append(f"{option} is now {BEAM_OPTIONS[name]}{ours}")
        if said:
            raise ValueError(f"{', '.join(said)}; give those beside `options`, and remove them from it")
        return options

    @model_validator(mode="after")
    def _complete(self) -> Beam:
        needed: tuple[str, ...] = ()
        allowed: tuple[str, ...] = ()
        if self.runner in _JOB_SERVICE:
            needed, allowed = ("job_endpoint",), ("worker_pool", "worker_image")
            if (self.worker_pool is None) == (self.worker_image is None):
                raise ValueError(f"{self.runner} needs worker_pool or worker_image; name one of them (docs/scale.md)")
        elif self.runner == "dataflow":
            needed = ("project", "region", "temp_location", "worker_image")
        for field in ("job_endpoint", "worker_pool", "worker_image", "project", "region", "temp_location"):
            given = getattr(self, field) is not None
            if field in needed and not given:
                raise ValueError(f"{field} is missing, which {self.runner} needs; name it (docs/scale.md)")
            if given and field not in (*needed, *allowed):
                raise ValueError(f"{field} is nothing for the runner {self.runner}; remove it, or set runner")
        if self.runner == "portable" and self.workers not in (None, 1):
            raise ValueError(f"workers: Beam's own job service asks for one worker, not {self.workers}; remove it")
        if self.temp_location is not None and not self.temp_location.startswith("gs://"):
            raise ValueError(f"temp_location: Dataflow cannot write to {self.temp_location}; give a gs:// path")
        return self

    @property
    def remote(self) -> bool:
        """Whether workers are elsewhere: what they read and write must be where they see it."""
        return self.runner != "direct"

    def arguments(self) -> tuple[str, ...]:
        """The options of Beam's command line."""
        own: tuple[str, ...]
        if self.runner == "direct":
            own = self._direct()
        elif self.runner == "dataflow":
            own = (
                f"--project={self.project}",
                f"--region={self.region}",
                f"--temp_location={self.temp_location}",
                *self._count("--max_num_workers"),
            )
        else:
            own = (
                f"--job_endpoint={self.job_endpoint}",
                f"--job_server_timeout={_JOB_SECONDS}",
                *self._environment(),
                *self._cluster(),
            )
        # Without a name for an image, TFX would build a package of itself, for remote workers, in every stage that uses
        # Beam: seconds and 50 MB each time. Workers have it, and all of this project, installed.
        image = f"--sdk_container_image={self.worker_image or 'unused'}"
        # Beam's workers import what a stage needs when they meet it. TFX has to come first: it supplies a module that
        # TFDV 1.16 looks for in tfx-bsl, which no longer has it.
        return (f"--runner={_RUNNERS[self.runner]}", *own, "--beam_plugins=tfx", image, *self.options)

    def _direct(self) -> tuple[str, ...]:
        if self.workers in (None, 1):
            # Said, because newer versions of Beam may otherwise look for another local runner on the network.
            return ("--direct_running_mode=in_memory",)
        return ("--direct_running_mode=multi_processing", f"--direct_num_workers={self.workers}")

    def _environment(self) -> tuple[str, ...]:
        if self.worker_pool is not None:
            return ("--environment_type=EXTERNAL", f"--environment_config={self.worker_pool}")
        return ("--environment_type=DOCKER", f"--environment_config={self.worker_image}")

    def _cluster(self) -> tuple[str, ...]:
        if self.runner == "portable":
            return ()
        kept = f"--environment_cache_millis={_KEEP_WORKERS_MILLISECONDS}"
        if self.runner == "flink":
            return (*self._count("--parallelism"), kept)
        return (*self._count("--sdk_worker_parallelism"), kept)

    def _count(self, option: str) -> tuple[str, ...]:
        return () if self.workers is None else (f"{option}={self.workers}",)
