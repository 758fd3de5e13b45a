"""Finds the model that a new one has to be compared with."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts

from components.baseline_resolver import executor


class BaselineResolverSpec(component_spec.ComponentSpec):
    """Interface of the BaselineResolver."""

    PARAMETERS = {
        executor.PUSH_DESTINATION_KEY: component_spec.ExecutionParameter(type=str),
        executor.PIPELINE_STAMP_KEY: component_spec.ExecutionParameter(type=str),
        executor.BASELINE_VERSION_KEY: component_spec.ExecutionParameter(type=str),
    }
    INPUTS: dict[str, component_spec.ChannelParameter] = {}
    OUTPUTS = {
        executor.BASELINE_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
    }


class BaselineResolver(base_component.BaseComponent):
    """Resolves the newest pushed version to a Model artifact.

    It stands where TFX would have a Resolver node, which needs the metadata store and a backend that knows it; this one
    looks into the push destination, and so works under every orchestrator.

    Outputs:
      - `baseline`: Model with the servable, or without anything when nothing comparable has been pushed yet (custom
        property `present` is 1 or 0, `version` the folder's name).
    """

    SPEC_CLASS = BaselineResolverSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, push_destination: str, pipeline_stamp: str, baseline_version: str = ""):
        """Construct a BaselineResolver.

        Args:
            push_destination: The model's folder, whose children are versions; the Pusher's `push_destination`.
            pipeline_stamp: Fingerprint of the present configuration, data and code. Versions with this stamp are not
                baselines: they are the same run's own earlier output.
            baseline_version: What `push_destination.latest_version` finds now. TFX's cache sees parameters, not
                folders: with this one the node runs again exactly when there is another baseline. "" looks when it
                runs.
        """
        baseline = types.Channel(type=standard_artifacts.Model)
        super().__init__(
            BaselineResolverSpec(
                **{
                    executor.PUSH_DESTINATION_KEY: push_destination,
                    executor.PIPELINE_STAMP_KEY: pipeline_stamp,
                    executor.BASELINE_VERSION_KEY: baseline_version,
                    executor.BASELINE_KEY: baseline,
                }
            )
        )
