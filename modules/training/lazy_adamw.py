"""AdamW (Loshchilov & Hutter, ICLR 2019) whose step costs as much as the rows that it touches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

# Rows that `settle` brings up to date at once: what lies between for a whole table would be several times the table.
SETTLED_ROWS = 65_536


class LazyAdamW(tf_keras.optimizers.AdamW):
    """AdamW that changes only the touched rows of some tables, and keeps their moving averages likewise.

    A row's moments and weight decay catch up with the steps that it missed when it is touched next, and so does the
    moving average of its weights. What is lost is the momentum of those steps: as long as every row is touched in every
    step, this is AdamW with `tf.train.ExponentialMovingAverage`. Other variables are updated as AdamW does.

    Args:
        learning_rate: A number.
        weight_decay: Decoupled, multiplied by the learning rate in each step.
        averaging: Decay of the moving average; as in `tf.train.ExponentialMovingAverage` with `num_updates`, at most
            (1 + n) / (10 + n) in step n.
        no_decay: Parts of names of the variables without weight decay.
    """

    def __init__(
        self, learning_rate: float, weight_decay: float, averaging: float, no_decay: Sequence[str] = ()
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        self.exclude_from_weight_decay(var_names=list(no_decay))
        self._averaging = averaging
        self._lazy: dict[Any, tuple[tf.Variable, tf.Variable]] = {}

    def build_lazy(self, variables: Sequence[tf.Variable], tables: Sequence[tf.Variable]) -> None:
        """Makes the state.

        Args:
            variables: All that are trained.
            tables: Those of them, [rows, …], whose gradients are `tf.IndexedSlices` and which are updated by row.
        """
        self.build(variables)
        for table in tables:
            average = self.add_variable_from_reference(table, "average", initial_value=table)
            touched = tf.Variable(tf.zeros(table.shape[:1], tf.int32), trainable=False, name="touched")
            self._variables.append(touched)
            self._lazy[self._var_key(table)] = (average, touched)

    def average(self, table: tf.Variable) -> tf.Variable:
        """The moving average of a table, as of its rows' last touch; see `settle`."""
        return self._lazy[self._var_key(table)][0]

    def settle(self, tables: Sequence[tf.Variable]) -> None:
        """Lets every row of these tables catch up with the steps that it missed: decay, moments and average."""
        # Not in a graph: TensorFlow keeps that of a method, and with it the tables that it reads, after the optimizer.
        for table in tables:
            for start in range(0, table.shape[0], SETTLED_ROWS):
                self._settle(table, tf.range(start, min(start + SETTLED_ROWS, table.shape[0])))

    def _settle(self, table: tf.Variable, rows: tf.Tensor) -> None:
        # Gathered and scattered, as a step does: to read such a variable whole is to copy it.
        average, touched = self._lazy[self._var_key(table)]
        m, v = self._moments(table)
        step, weights = tf.cast(self.iterations, tf.int32), tf.gather(table, rows)
        missed = self._missed(step - tf.gather(touched, rows), weights)
        averages = self._with_missed(tf.gather(average, rows), weights, self._decay(table), missed)
        for state, values in (
            (average, averages),
            (table, weights * self._decay(table) ** missed),
            (m, tf.gather(m, rows) * self.beta_1**missed),
            (v, tf.gather(v, rows) * self.beta_2**missed),
            (touched, tf.fill(tf.shape(rows), step)),
        ):
            state.scatter_update(tf.IndexedSlices(values, rows))

    def _apply_weight_decay(self, variables: Sequence[tf.Variable]) -> None:
        super()._apply_weight_decay([v for v in variables if self._var_key(v) not in self._lazy])

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """One step of one variable; a table's gradient has each of its rows once."""
        if self._var_key(variable) not in self._lazy:
            super().update_step(gradient, variable)
            return
        average, touched = self._lazy[self._var_key(variable)]
        m, v = self._moments(variable)
        rows, gradients = gradient.indices, gradient.values
        step = tf.cast(self.iterations + 1, tf.int32)
        missed = self._missed(step - 1 - tf.gather(touched, rows), gradients)
        weights = tf.gather(variable, rows)
        averages = self._with_missed(tf.gather(average, rows), weights, self._decay(variable), missed)
        elapsed = missed + 1.0
        first = tf.gather(m, rows) * self.beta_1**elapsed + gradients * (1 - self.beta_1)
        second = tf.gather(v, rows) * self.beta_2**elapsed + gradients**2 * (1 - self.beta_2)
        count = tf.cast(step, tf.float32)
        correction = tf.sqrt(1 - self.beta_2**count) / (1 - self.beta_1**count)
        weights *= self._decay(variable) ** elapsed
        weights -= self.learning_rate * correction * first / (tf.sqrt(second) + self.epsilon)
        decay = self._average_decay()
        for state, values in (
            (variable, weights),
            (m, first),
            (v, second),
            (average, decay * averages + (1 - decay) * weights),
            (touched, tf.fill(tf.shape(rows), step)),
        ):
            state.scatter_update(tf.IndexedSlices(values, rows))

    def _moments(self, variable: tf.Variable) -> tuple[tf.Variable, tf.Variable]:
        number = self._index_dict[self._var_key(variable)]
        return self._momentums[number], self._velocities[number]

    def _decay(self, variable: tf.Variable) -> tf.Tensor:
        """Factor of the weights in a step."""
        return 1.0 - self.learning_rate * self.weight_decay * float(self._use_weight_decay(variable))

    def _average_decay(self) -> tf.Tensor:
        # With the number of steps the first ones, which move fast, are forgotten sooner.
        count = tf.cast(self.iterations + 1, tf.float32)
        return tf.minimum(self._averaging, (1.0 + count) / (10.0 + count))

    def _with_missed(self, average: tf.Tensor, weights: tf.Tensor, kept: tf.Tensor, missed: tf.Tensor) -> tf.Tensor:
        """Averages of rows after the steps that they missed, in which their weights only decayed.

        The j-th of n missed steps adds (1 − d) dⁿ⁻ʲ cʲ w, with d of the average and c of the weights: a geometric sum.

        Args:
            average: Before them.
            weights: Before them.
            kept: c.
            missed: n of each row.
        """
        d = self._average_decay()
        # Where the two are equal each step adds the same.
        same = tf.abs(kept - d) < 1e-6
        total = tf.where(same, missed * kept**missed, kept * (kept**missed - d**missed) / tf.where(same, 1.0, kept - d))
        return d**missed * average + (1 - d) * total * weights

    @staticmethod
    def _missed(steps: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """[rows] as float32 [rows, 1, …], to be multiplied with rows."""
        return tf.reshape(tf.cast(steps, tf.float32), [-1] + [1] * (len(like.shape) - 1))
