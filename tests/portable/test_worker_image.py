"""The worker image as Flink's and Spark's nodes start it: Beam's `boot`, built from its source, in the clean prefix."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import beam_processes
import canonical
import pytest
from e2e_runs import Small

from modules.settings import Beam
from pipeline import config, runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("go") is None, reason="builds a Go program"),
]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of Beam's containers, in the version of Beam here."""
    folder = tmp_path_factory.mktemp("boot")
    (version,) = re.findall(
        r"^apache-beam==(\S+) ", (beam_processes.ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    (folder / "go.mod").write_text("module boot\n")
    package = "github.com/apache/beam/sdks/v2/python/container"
    for command in (["go", "get", f"{package}@v{version}"], ["go", "build", "-o", "boot", package]):
        made = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env={**os.environ, "GOFLAGS": "-mod=mod"}
        )
        assert made.returncode == 0, made.stderr
    return folder / "boot"


def test_boot_starts_workers_that_have_everything(image: Path, boot: Path, small: Small, tmp_path: Path):
    from tfx.components.statistics_gen import executor
    from tfx.types import standard_artifacts

    # What `boot --worker_pool` starts, at a port that is free and with itself where it is.
    pool = ["python", "-m", "apache_beam.runners.worker.worker_pool_main", f"--container_executable={boot}"]
    stage = runs.read_runs(config.load(small.config_path), last=1)[0].stage("StatisticsGen")
    assert stage is not None
    (made,) = stage.inputs
    examples, statistics = standard_artifacts.Examples(), standard_artifacts.ExampleStatistics()
    examples.uri, statistics.uri = made.uri, str(tmp_path / "statistics")
    examples.split_names = made.properties["split_names"]
    environment = beam_processes.image_environment(image)
    assert environment["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT"] == "1"
    pool[0] = str(image / "bin" / "python")
    with beam_processes.running([*pool, "--service_port"], tmp_path / "elsewhere", environment) as services:
        beam = Beam(runner="portable", job_endpoint=services.job_endpoint, worker_pool=services.worker_pool)
        context = executor.Executor.Context(
            beam_pipeline_args=list(beam.arguments()), tmp_dir=str(tmp_path / "tmp"), unique_id="1"
        )
        executor.Executor(context).Do(
            {"examples": [examples]},
            {"statistics": [statistics]},
            {"stats_options_json": None, "exclude_splits": "[]"},
        )
        assert services.jobs() == ["DONE"]
    whole = canonical.statistics(stage.outputs[0].uri)
    found = canonical.statistics(statistics.uri)
    # The run has left out what nobody asks for; here everything is counted.
    assert whole.items() <= found.items() and len(whole) > 10
