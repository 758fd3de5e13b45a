"""ServableValidator as a node of the pipeline."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.scann_index_builder.component import IndexReport
from components.servable_validator import executor
from modules.settings import Serving


class ServableValidatorSpec(ComponentSpec):
    """Parameters are the limits, and a stamp of what TFX's cache key does not see."""

    PARAMETERS = {
        executor.LATENCY_KEY: ExecutionParameter(type=float, optional=True),
        executor.TIMEOUT_KEY: ExecutionParameter(type=int),
        executor.CODE_KEY: ExecutionParameter(type=str),
    }
    INPUTS = {
        executor.SERVABLE_KEY: ChannelParameter(type=standard_artifacts.Model),
        executor.REPORT_KEY: ChannelParameter(type=IndexReport),
    }
    OUTPUTS = {executor.BLESSING_KEY: ChannelParameter(type=standard_artifacts.InfraBlessing)}


class ServableValidator(base_component.BaseComponent):
    """Loads the servable in a fresh process, replays its warm-up requests and checks contract, recall and latency.

    Its `blessing` is what the stock InfraValidator would write, so that the stock Pusher understands it. A servable
    that fails is not blessed, and the reasons are on the artifact; the run goes on.
    """

    SPEC_CLASS = ServableValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        servable: types.BaseChannel,
        report: types.BaseChannel,
        serving: Serving,
        code: str,
        timeout_seconds: int = 300,
    ) -> None:
        """Describes one execution.

        Args:
            servable: ScannIndexBuilder's servable.
            report: ScannIndexBuilder's report.
            serving: Its `latency_p99_ms` is the limit for single requests.
            code: Hash of the component's code; part of the cache key only.
            timeout_seconds: A servable that needs longer to load and answer is not blessed.
        """
        parameters = {executor.TIMEOUT_KEY: timeout_seconds, executor.CODE_KEY: code}
        if serving.latency_p99_ms is not None:
            parameters[executor.LATENCY_KEY] = float(serving.latency_p99_ms)
        super().__init__(
            spec=ServableValidatorSpec(
                **{
                    executor.SERVABLE_KEY: servable,
                    executor.REPORT_KEY: report,
                    **parameters,
                    executor.BLESSING_KEY: types.Channel(type=standard_artifacts.InfraBlessing),
                }
            )
        )
