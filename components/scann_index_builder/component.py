"""ScannIndexBuilder as a node of the pipeline."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import artifact, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.scann_index_builder import executor
from modules.encodings.features import Columns, Features
from modules.settings import Evaluation, Index, Serving, Tables


class IndexReport(artifact.Artifact):
    """What was tried and chosen, recall, latency, size: `report.json` (modules/retrieval/tuning.py)."""

    TYPE_NAME = "twotower.IndexReport"


class ScannIndexBuilderSpec(ComponentSpec):
    """Parameters are JSON of the settings that decide the servable."""

    PARAMETERS = {
        executor.FEATURES_KEY: ExecutionParameter(type=str),
        executor.COLUMNS_KEY: ExecutionParameter(type=str),
        executor.INDEX_KEY: ExecutionParameter(type=str),
        executor.SERVING_KEY: ExecutionParameter(type=str),
        executor.EVALUATION_KEY: ExecutionParameter(type=str),
        executor.NAME_KEY: ExecutionParameter(type=str),
        # Where known users are taken from; "" where the servable knows none. Other tables are another `examples`.
        executor.TABLES_KEY: ExecutionParameter(type=str),
        # Hash of the code, which TFX's cache key does not see.
        executor.CODE_KEY: ExecutionParameter(type=str),
    }
    INPUTS = {
        executor.MODEL_KEY: ChannelParameter(type=standard_artifacts.Model),
        executor.EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {
        executor.SERVABLE_KEY: ChannelParameter(type=standard_artifacts.Model),
        executor.REPORT_KEY: ChannelParameter(type=IndexReport),
    }


class ScannIndexBuilder(base_beam_component.BaseBeamComponent):
    """Embeds the catalogue, builds and tunes the index, and writes the servable.

    The output `servable` is the one SavedModel that is evaluated, validated, pushed and served.
    """

    SPEC_CLASS = ScannIndexBuilderSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        examples: types.BaseChannel,
        features: Features,
        columns: Columns,
        index: Index,
        serving: Serving,
        evaluation: Evaluation,
        name: str,
        tables: Tables,
        code: str,
    ) -> None:
        """Describes one execution.

        Args:
            model: The Trainer's export, with the signatures `query_embedding` and `candidate_embedding`.
            examples: With the splits `catalogue` (what is indexed), `validation` (queries that the index is tuned on)
                and `eval` (queries that it is measured on).
            features: Which columns queries and candidates have.
            columns: Which of them is the item id.
            index: Layer, strategy and recall target.
            serving: What an answer holds, and how many users are known.
            evaluation: How many items the Evaluator looks at.
            name: The served model's name, which warm-up requests carry.
            tables: Where what is known of users is read, up to the end of the data; not opened where none are known.
            code: Hash of the component's code; part of the cache key only.
        """
        super().__init__(
            spec=ScannIndexBuilderSpec(
                **{
                    executor.MODEL_KEY: model,
                    executor.EXAMPLES_KEY: examples,
                    # Nothing that the servable does not depend on: sizes of embeddings, limits and floors.
                    executor.FEATURES_KEY: features.encodings.model_dump_json(),
                    executor.COLUMNS_KEY: columns.model_dump_json(),
                    executor.INDEX_KEY: index.model_dump_json(),
                    executor.SERVING_KEY: serving.model_dump_json(exclude={"latency_p99_ms"}),
                    executor.EVALUATION_KEY: evaluation.model_dump_json(include={"k"}),
                    executor.NAME_KEY: name,
                    executor.TABLES_KEY: tables.model_dump_json() if serving.known_users else "",
                    executor.CODE_KEY: code,
                    executor.SERVABLE_KEY: types.Channel(type=standard_artifacts.Model),
                    executor.REPORT_KEY: types.Channel(type=IndexReport),
                }
            )
        )
