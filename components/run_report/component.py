"""RunReport as a node of the pipeline."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import artifact, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.run_report import executor
from components.scann_index_builder.component import IndexReport


class ReportPage(artifact.Artifact):
    """`report.html`, a page that needs no other file."""

    TYPE_NAME = "twotower.ReportPage"


class RunReportSpec(ComponentSpec):
    """Parameters are what the page says of the configuration, and a stamp of what TFX's cache key does not see."""

    PARAMETERS = {
        executor.CONFIGURATION_KEY: ExecutionParameter(type=str),
        executor.USER_KEY: ExecutionParameter(type=str),
        executor.TITLE_KEY: ExecutionParameter(type=str),
        executor.MIN_QUERIES_KEY: ExecutionParameter(type=int),
        executor.CODE_KEY: ExecutionParameter(type=str),
    }
    INPUTS = {
        executor.EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples),
        executor.ANOMALIES_KEY: ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        executor.MODEL_RUN_KEY: ChannelParameter(type=standard_artifacts.ModelRun),
        executor.SERVABLE_KEY: ChannelParameter(type=standard_artifacts.Model),
        executor.INDEX_REPORT_KEY: ChannelParameter(type=IndexReport),
        executor.EVALUATION_KEY: ChannelParameter(type=standard_artifacts.ModelEvaluation),
        executor.INFRA_BLESSING_KEY: ChannelParameter(type=standard_artifacts.InfraBlessing),
        executor.PUSHED_MODEL_KEY: ChannelParameter(type=standard_artifacts.PushedModel),
    }
    OUTPUTS = {executor.PAGE_KEY: ChannelParameter(type=ReportPage)}


class RunReport(base_component.BaseComponent):
    """Writes the page of a run: data, training, quality, gates, index, and what the servable recommends to whom.

    It comes after the Pusher, so that it can say what was pushed and keeps nothing from being pushed. A gate that
    refuses ends no run, and so the page is there for a refused model as well.
    """

    SPEC_CLASS = RunReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        anomalies: types.BaseChannel,
        model_run: types.BaseChannel,
        servable: types.BaseChannel,
        index_report: types.BaseChannel,
        evaluation: types.BaseChannel,
        infra_blessing: types.BaseChannel,
        pushed_model: types.BaseChannel,
        configuration: str,
        user: str,
        title: str | None,
        min_queries: int,
        code: str,
    ) -> None:
        """Describes one execution.

        Args:
            examples: InteractionExampleGen's examples.
            anomalies: The ExampleValidator's anomalies.
            model_run: What the Trainer says of its fit.
            servable: ScannIndexBuilder's servable, which is asked for recommendations.
            index_report: ScannIndexBuilder's report.
            evaluation: The Evaluator's evaluation.
            infra_blessing: The ServableValidator's blessing.
            pushed_model: What the Pusher pushed, or that it did not.
            configuration: What the configuration says that is not left to the defaults, as JSON.
            user: Column of the user's id.
            title: Column of the items' titles, where there is one.
            min_queries: `evaluation.min_queries`; slices with fewer are marked.
            code: Hash of the component's code; part of the cache key only.
        """
        super().__init__(
            spec=RunReportSpec(
                **{
                    executor.EXAMPLES_KEY: examples,
                    executor.ANOMALIES_KEY: anomalies,
                    executor.MODEL_RUN_KEY: model_run,
                    executor.SERVABLE_KEY: servable,
                    executor.INDEX_REPORT_KEY: index_report,
                    executor.EVALUATION_KEY: evaluation,
                    executor.INFRA_BLESSING_KEY: infra_blessing,
                    executor.PUSHED_MODEL_KEY: pushed_model,
                    executor.CONFIGURATION_KEY: configuration,
                    executor.USER_KEY: user,
                    executor.TITLE_KEY: title or "",
                    executor.MIN_QUERIES_KEY: min_queries,
                    executor.CODE_KEY: code,
                    executor.PAGE_KEY: types.Channel(type=ReportPage),
                }
            )
        )
