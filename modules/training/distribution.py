"""The replicas that share a fit (`training.distribution`): TensorFlow's strategies, and what a chief says to others."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from modules.errors import UserError
from modules.settings import Training
from modules.towers.share import WHOLE, Share
from modules.training.cluster import Cluster

_PROGRESS = logging.getLogger("twotower.progress")


class Distribution:
    """Replicas that take the same steps, each with its share of a batch's rows.

    Every replica has all variables and all data. In a step each cuts the same global batch, computes the losses of its
    own rows, and the gradients are added up: the update is that of a single device but for the order of a sum.

    Args:
        strategy: Of TensorFlow; None where there is one replica alone.
        cluster: The processes that take part; None where this is the only one.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None, cluster: Cluster | None = None) -> None:
        self._strategy, self._cluster = strategy, cluster
        self._send = tf.function(self._from_first_replica, autograph=False, reduce_retracing=True)

    @classmethod
    def within_process(cls, training: Training) -> Distribution:
        """The replicas of this process: under `mirrored` its GPUs, or where it has none its logical CPU devices.

        Raises:
            UserError: There are more of them than rows in a batch.
        """
        if training.distribution != "mirrored":
            return cls()
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) == 1:
            _PROGRESS.info("training.distribution: mirrored: there is one device, %s", devices[0].name)
            return cls()
        mirrored = cls(_mirrored(tuple(device.name for device in devices)))
        mirrored.check_batch(training)
        return mirrored

    @classmethod
    def of_cluster(cls, cluster: Cluster) -> Distribution:
        """The replicas of all workers; blocks until all of them have come this far.

        Raises:
            RuntimeError: TensorFlow has computed something in this process before.
        """
        return cls(tf.distribute.MultiWorkerMirroredStrategy(), cluster)

    @property
    def is_chief(self) -> bool:
        """Whether this process validates and writes: it is the only one, or the first."""
        return self._cluster is None or self._cluster.is_chief

    @property
    def replicas(self) -> int:
        """In all processes together."""
        return 1 if self._strategy is None else self._strategy.num_replicas_in_sync

    @property
    def spans_processes(self) -> bool:
        """Whether other processes take part."""
        return self._cluster is not None

    def check_batch(self, training: Training) -> None:
        """Refuses a batch in which not every replica has a row.

        Raises:
            UserError: There are more replicas than rows.
        """
        if training.batch_size < self.replicas:
            raise UserError(
                f"training.batch_size: {training.batch_size} rows cannot be shared by the {self.replicas} replicas of "
                f"training.distribution: {training.distribution}; give {self.replicas} or more"
            )

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Within it variables are made for every replica, and steps are run."""
        return contextlib.nullcontext() if self._strategy is None else self._strategy.scope()

    def run(self, step: Callable[..., tf.Tensor], *arguments: Any) -> tf.Tensor:
        """Σ over replicas of what `step`, which each of them runs, returns; to be called in graph, within `scope`."""
        if self._strategy is None:
            return step(*arguments)
        total = self._strategy.run(lambda *given: _sum(step(*given)), arguments)
        # Each replica has the sum.
        return self._strategy.experimental_local_results(total)[0]

    def share(self) -> Share:
        """Which rows are this replica's, within `run`."""
        if self._strategy is None:
            return WHOLE
        context = tf.distribute.get_replica_context()
        return Share(context.replica_id_in_sync_group, context.num_replicas_in_sync)

    def from_chief(self, values: Any) -> np.ndarray:
        """Numbers as the chief has them; every worker calls this at the same point, with values of the same shape.

        Sent as float64, which holds every float32, and whole numbers up to 2⁵³.
        """
        values = np.asarray(values)
        if self._cluster is None:
            return values
        assert self._strategy is not None
        with self._strategy.scope():
            return self._send(tf.constant(values.astype(np.float64))).numpy().astype(values.dtype)

    def text_from_chief(self, text: str) -> str:
        """A text as the chief has it; for the others whatever text they give."""
        content = np.frombuffer(text.encode(), np.uint8)
        length = int(self.from_chief(len(content)))
        return self.from_chief(content if self.is_chief else np.zeros(length, np.uint8)).tobytes().decode()

    def _from_first_replica(self, values: tf.Tensor) -> tf.Tensor:
        assert self._strategy is not None

        def of_replica() -> tf.Tensor:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            # NaN times 0 would be NaN.
            return _sum(tf.where(tf.equal(number, 0), values, tf.zeros_like(values)))

        return self._strategy.experimental_local_results(self._strategy.run(of_replica))[0]


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """One for all fits of a process: a second one counts its collective operations from where the first one did."""
    return tf.distribute.MirroredStrategy(list(devices))


def _sum(value: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
