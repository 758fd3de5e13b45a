"""The stock Pusher, with an executor that pushes atomically and stamps what it pushes."""

from __future__ import annotations

from tfx import types
from tfx.components.pusher import component as stock
from tfx.dsl.components.base import executor_spec
from tfx.proto import pusher_pb2

from components.pusher import executor


class Pusher(stock.Pusher):
    """Pushes a blessed model to `<push_destination>/<version>`, where TF Serving finds it.

    Outputs:
      - `pushed_model`: PushedModel with a copy of the model. Custom properties: `pushed` (1 or 0), and when pushed
        `pushed_destination` (the version's folder) and `pushed_version`.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        push_destination: pusher_pb2.PushDestination,
        pipeline_stamp: str,
        model_blessing: types.BaseChannel | None = None,
        infra_blessing: types.BaseChannel | None = None,
    ):
        """Construct a Pusher.

        Args:
            model: The servable, a Model.
            push_destination: Its base_directory is the model's folder, local or remote, whose children are versions.
            pipeline_stamp: Fingerprint of the configuration, data and code that made the model; the BaselineResolver
                reads it from the pushed version (modules/push_destination.py).
            model_blessing: The Evaluator's blessing.
            infra_blessing: The ServableValidator's blessing.
        """
        super().__init__(
            model=model,
            model_blessing=model_blessing,
            infra_blessing=infra_blessing,
            push_destination=push_destination,
            custom_config={executor.PIPELINE_STAMP_KEY: pipeline_stamp},
        )
