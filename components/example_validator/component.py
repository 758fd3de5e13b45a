"""The stock ExampleValidator, with an executor that stops the run at anomalies."""

from __future__ import annotations

from tfx import types
from tfx.components.example_validator import component as stock
from tfx.dsl.components.base import executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types import standard_component_specs as keys
from tfx.utils import json_utils

from components.example_validator import executor
from modules.encodings.features import Columns, Features

_CODE_KEY = "code"


class ExampleValidatorSpec(keys.ExampleValidatorSpec):
    """The stock interface, what the features say of the splits, and the code's fingerprint."""

    PARAMETERS = {
        **keys.ExampleValidatorSpec.PARAMETERS,
        executor.FEATURES_KEY: component_spec.ExecutionParameter(type=str),
        executor.COLUMNS_KEY: component_spec.ExecutionParameter(type=str),
        executor.K_KEY: component_spec.ExecutionParameter(type=int),
        _CODE_KEY: component_spec.ExecutionParameter(type=str, optional=True),
    }


class ExampleValidator(stock.ExampleValidator):
    """Validates the statistics of each split against its part of the schema, and the schema against the features.

    Outputs:
      - `anomalies`: ExampleAnomalies, without any: the component fails when there are some.
    """

    SPEC_CLASS = ExampleValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        features: Features,
        columns: Columns,
        exclude_splits: list[str] | None = None,
        k: int = 1,
        code: str = "",
    ):
        """Construct an ExampleValidator.

        Args:
            statistics: ExampleStatistics.
            schema: Schema.
            features: What the towers read; the schema must have all of it.
            columns: The columns of an interaction.
            k: Items in an answer; the catalogue must have as many. It is no parameter of InteractionExampleGen, which
                another k would execute again, and all training with it.
            exclude_splits: Splits that are not looked at.
            code: Fingerprint of the executor's code, which TFX's cache does not see.
        """
        parameters = {
            executor.FEATURES_KEY: features.model_dump_json(),
            executor.COLUMNS_KEY: columns.model_dump_json(),
        }
        # Past the stock constructor, which knows only its own parameters.
        super(stock.ExampleValidator, self).__init__(
            spec=ExampleValidatorSpec(
                statistics=statistics,
                schema=schema,
                exclude_splits=json_utils.dumps(exclude_splits or []),
                anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
                k=k,
                code=code,
                **parameters,
            )
        )
