"""SchemaGen as a node of the pipeline."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types import standard_component_specs as keys

from components.schema_gen import executor
from modules.features import Columns, Features


class SchemaGenSpec(component_spec.ComponentSpec):
    """The stock interface, with what the features say of the splits in place of its parameters."""

    PARAMETERS = {
        executor.FEATURES_KEY: component_spec.ExecutionParameter(type=str),
        executor.COLUMNS_KEY: component_spec.ExecutionParameter(type=str),
        executor.CODE_KEY: component_spec.ExecutionParameter(type=str),
    }
    INPUTS = keys.SchemaGenSpec.INPUTS
    OUTPUTS = keys.SchemaGenSpec.OUTPUTS


class SchemaGen(base_component.BaseComponent):
    """Infers one schema from the statistics of all splits.

    The stock component takes every split for a sample of the same examples: what one split lacks becomes deprecated.

    Outputs:
      - `schema`: Schema.
    """

    SPEC_CLASS = SchemaGenSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, statistics: types.BaseChannel, features: Features, columns: Columns, code: str) -> None:
        """Describes one execution.

        Args:
            statistics: ExampleStatistics of all splits.
            features: What the towers read.
            columns: The columns of an interaction.
            code: Fingerprint of the executor's code, which TFX's cache does not see.
        """
        super().__init__(
            spec=SchemaGenSpec(
                **{
                    keys.STATISTICS_KEY: statistics,
                    keys.SCHEMA_KEY: types.Channel(type=standard_artifacts.Schema),
                    executor.FEATURES_KEY: features.model_dump_json(),
                    executor.COLUMNS_KEY: columns.model_dump_json(),
                    executor.CODE_KEY: code,
                }
            )
        )
