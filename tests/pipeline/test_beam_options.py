"""What each runner is told: known to Beam's own parser, and complete for its validator."""

from __future__ import annotations

from typing import Any

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners import create_runner
from apache_beam.transforms.environments import DockerEnvironment, Environment, ExternalEnvironment

from modules.settings import Beam

POOL = {"job_endpoint": "jobs:8099", "worker_pool": "localhost:50000"}
IMAGE = {"job_endpoint": "jobs:8099", "worker_image": "registry.example/beam:1"}
GOOGLE = {
    "project": "shop-1234",
    "region": "europe-west1",
    "temp_location": "gs://bucket/tmp",
    "worker_image": "registry.example/beam:1",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "direct": {},
    "direct, two processes": {"workers": 2},
    "portable": {"runner": "portable", **POOL},
    "flink": {"runner": "flink", "workers": 8, **POOL},
    "flink, by image": {"runner": "flink", **IMAGE},
    "spark": {"runner": "spark", "workers": 2, **IMAGE},
    "dataflow": {"runner": "dataflow", "workers": 20, **GOOGLE},
}
RUNNERS = {
    "direct": "SwitchingDirectRunner",
    "portable": "PortableRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}


def parsed(settings: dict[str, Any]) -> PipelineOptions:
    return PipelineOptions(list(Beam(**settings).arguments()))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_beam_knows_every_option_and_misses_none(settings: dict[str, Any]):
    options = parsed(settings)
    known = options.get_all_options()
    for argument in Beam(**settings).arguments():
        assert argument.removeprefix("--").partition("=")[0] in known, argument
    runner = create_runner(known["runner"])
    assert type(runner).__name__ == RUNNERS[settings.get("runner", "direct")]
    # Of Dataflow's it asks Google, for minutes where nobody is signed in.
    if "project" not in settings:
        assert PipelineOptionsValidator(options, runner).validate() == []
    # TFX packs itself up, for every stage, unless it is told of an image.
    assert options.view_as(WorkerOptions).sdk_container_image == settings.get("worker_image", "unused")
    assert options.view_as(SetupOptions).beam_plugins == ["tfx"]


@pytest.mark.parametrize("name", ["portable", "flink", "flink, by image", "spark"])
def test_a_job_service_gets_a_day_and_the_workers_environment(name: str):
    settings = SETTINGS[name]
    options = parsed(settings).view_as(PortableOptions)
    assert (options.job_endpoint, options.job_server_timeout) == ("jobs:8099", 86400)
    environment = Environment.from_options(options)
    if "worker_pool" in settings:
        assert isinstance(environment, ExternalEnvironment) and environment.url == settings["worker_pool"]
    else:
        assert isinstance(environment, DockerEnvironment) and environment.container_image == settings["worker_image"]


def test_workers_are_counted_as_each_runner_counts_them():
    def count(name: str, kind: type[PipelineOptions], option: str) -> Any:
        return getattr(parsed(SETTINGS[name]).view_as(kind), option)

    assert count("direct", DirectOptions, "direct_running_mode") == "in_memory"
    assert count("direct, two processes", DirectOptions, "direct_running_mode") == "multi_processing"
    assert count("direct, two processes", DirectOptions, "direct_num_workers") == 2
    assert count("flink", FlinkRunnerOptions, "parallelism") == 8
    assert count("flink, by image", FlinkRunnerOptions, "parallelism") == -1
    assert int(count("spark", PortableOptions, "sdk_worker_parallelism")) == 2
    assert count("dataflow", WorkerOptions, "max_num_workers") == 20
    assert count("dataflow", GoogleCloudOptions, "region") == "europe-west1"


def test_options_of_ones_own_come_last():
    mine = Beam(runner="flink", options=("--environment_cache_millis=0", "--experiments=mine"), **POOL)
    options = PipelineOptions(list(mine.arguments()))
    assert mine.arguments()[-2:] == mine.options
    assert options.view_as(PortableOptions).environment_cache_millis == "0"
    assert options.view_as(DebugOptions).experiments == ["mine"]
