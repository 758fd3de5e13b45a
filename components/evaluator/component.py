"""The stock Evaluator, with an executor that copes with there being no comparable baseline."""

from __future__ import annotations

from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import component as stock
from tfx.dsl.components.base import executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types import standard_component_specs as keys
from tfx.utils import json_utils

from components.evaluator import executor

_CODE_KEY = "code"


class EvaluatorSpec(keys.EvaluatorSpec):
    """The stock interface and the code's fingerprint."""

    PARAMETERS = {
        **keys.EvaluatorSpec.PARAMETERS,
        _CODE_KEY: component_spec.ExecutionParameter(type=str, optional=True),
    }


class Evaluator(stock.Evaluator):
    """Evaluates the servable with TFMA, and blesses it.

    Outputs:
      - `evaluation`: ModelEvaluation, TFMA's files and a summary of them in JSON (components/evaluator/summary.py).
      - `blessing`: ModelBlessing.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        eval_config: config_pb2.EvalConfig,
        baseline_model: types.BaseChannel | None = None,
        example_splits: list[str] | None = None,
        code: str = "",
    ):
        """Construct an Evaluator.

        Args:
            examples: Examples.
            model: The servable, a Model.
            eval_config: modules.gates.eval_config.
            baseline_model: The BaselineResolver's output, whether or not there is a model in it.
            example_splits: What to evaluate on, by default `eval`.
            code: Fingerprint of the metrics' code, which TFX's cache does not see.
        """
        # Past the stock constructor, which knows only its own parameters.
        super(stock.Evaluator, self).__init__(
            spec=EvaluatorSpec(
                examples=examples,
                model=model,
                baseline_model=baseline_model,
                eval_config=eval_config,
                example_splits=json_utils.dumps(example_splits),
                fairness_indicator_thresholds=json_utils.dumps(None),
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
                code=code,
            )
        )
