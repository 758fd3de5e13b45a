"""InteractionExampleGen as a node of the pipeline."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.interaction_example_gen import executor
from modules.data import tables as table_files
from modules.features import Features
from modules.settings import Evaluation, Serving
from modules.tables import Split, Tables


class InteractionExampleGenSpec(ComponentSpec):
    """Parameters are JSON of the settings that decide the examples, and stamps of what TFX's cache key does not see."""

    PARAMETERS = {
        executor.TABLES_KEY: ExecutionParameter(type=str),
        executor.SPLIT_KEY: ExecutionParameter(type=str),
        executor.WANTED_KEY: ExecutionParameter(type=str),
        # Hash of the tables' content (`tables.fingerprint`): other data under the same path is another execution.
        executor.FINGERPRINT_KEY: ExecutionParameter(type=str),
        # Hash of this component's code, for the same reason.
        executor.CODE_KEY: ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {executor.EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples)}


class InteractionExampleGen(base_beam_component.BaseBeamComponent):
    """Joins interactions, items and users, and splits them: sequences of users, queries with what was known when asked.

    The output `examples` has the splits `train` (sequences), `validation` and `eval` (queries) and `catalogue` (items);
    modules/data/examples.py says what is in them.
    """

    SPEC_CLASS = InteractionExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        tables: Tables,
        split: Split,
        features: Features,
        evaluation: Evaluation,
        serving: Serving,
        fingerprint: str,
        code: str,
    ) -> None:
        """Describes one execution.

        Args:
            tables: Where the tables are, and what their columns are called.
            split: How interactions become train, validation and eval.
            features: Which columns.
            evaluation: What a query's history is, and the slices.
            serving: Further columns of the catalogue.
            fingerprint: `tables.fingerprint(tables)`; part of the cache key only.
            code: Hash of the component's code; part of the cache key only.
        """
        super().__init__(
            spec=InteractionExampleGenSpec(
                **{
                    executor.TABLES_KEY: tables.model_dump_json(),
                    executor.SPLIT_KEY: split.model_dump_json(),
                    executor.WANTED_KEY: table_files.wanted(tables, features, evaluation, serving).model_dump_json(),
                    executor.FINGERPRINT_KEY: fingerprint,
                    executor.CODE_KEY: code,
                    executor.EXAMPLES_KEY: types.Channel(type=standard_artifacts.Examples),
                }
            )
        )
