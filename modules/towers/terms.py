"""What features other than the history add to a tower: one term each, as its encoding says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from modules.encodings.base import Embedded, Encoded, Encoding
from modules.encodings.base import term as term_of
from modules.encodings.features import Columns
from modules.encodings.history import History
from modules.encodings.history_age import HistoryAge
from modules.encodings.vocabulary import Vocabulary
from modules.towers.share import WHOLE, Share


def encoded_keys(features: Sequence[Encoding]) -> dict[str, Encoded]:
    """Keys of transformed features, as a tower takes them."""
    return {key: encoded for feature in features for key, encoded in feature.encoded.items()}


def is_item_id(feature: Encoding, columns: Columns) -> bool:
    """Whether it is the candidate's own id, whose embeddings the history shares."""
    return isinstance(feature, Vocabulary) and feature.column == columns.item


def has_item_table(features: Sequence[Encoding], columns: Columns) -> bool:
    """Whether any of these features reads the embeddings of the items."""
    return any(isinstance(feature, History) or is_item_id(feature, columns) for feature in features)


def history_of(features: Sequence[Encoding]) -> History | None:
    return next((feature for feature in features if isinstance(feature, History)), None)


def history_age_of(features: Sequence[Encoding]) -> HistoryAge | None:
    return next((feature for feature in features if isinstance(feature, HistoryAge)), None)


class FeatureTerms(tf_keras.layers.Layer):
    """Σ over features of (embedding or number) · matrix: [B, width]; a missing value adds nothing."""

    def __init__(self, features: Sequence[Encoding], width: int, cardinalities: Mapping[str, int], seed: int) -> None:
        super().__init__(name="terms")
        self._features = tuple(features)
        self._width = width
        self._embeddings: dict[str, Any] = {}
        self._projections: dict[str, Any] = {}
        for number, feature in enumerate(features):
            draw = seed + 101 * (number + 1)
            if isinstance(feature, Embedded):
                self._embeddings[feature.column] = tf_keras.layers.Embedding(
                    cardinalities[feature.column],
                    feature.dimension,
                    embeddings_initializer=tf_keras.initializers.RandomNormal(stddev=0.05, seed=draw),
                    name=f"embedding_{number}",
                )
            self._projections[feature.column] = tf_keras.layers.Dense(
                width,
                use_bias=False,
                kernel_initializer=tf_keras.initializers.GlorotUniform(seed=draw + 1),
                name=f"projection_{number}",
            )

    @property
    def tables(self) -> list[tf.Variable]:
        """The embedding tables, one for each feature that has ids."""
        return [embedding.embeddings for embedding in self._embeddings.values()]

    def call(
        self,
        inputs: Mapping[str, tf.Tensor],
        rows: tf.Tensor,
        dropout: float = 0.0,
        seed: tf.Tensor | None = None,
        share: Share = WHOLE,
    ) -> tf.Tensor:
        """[b, width] of transformed features.

        Args:
            inputs: By encoded key, [B, ...].
            rows: B; there may be no feature to see it from.
            dropout: Probability with which a feature of a row is hidden.
            seed: [2] int32, for the dropout.
            share: The rows b that are asked for.
        """
        inputs = {key: share.cut(values) for key, values in inputs.items()}
        total = tf.zeros([share.size(rows), self._width])
        for number, feature in enumerate(self._features):
            term = self._term(feature, inputs)
            if dropout and seed is not None:
                kept = tf.random.stateless_uniform([rows, 1], seed + 17 * (number + 1)) >= dropout
                term *= tf.cast(share.cut(kept), tf.float32)
            total += term
        return total

    def each(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """[B, width] of each feature, by column: what `call` adds up where nothing is hidden."""
        return {feature.column: self._term(feature, inputs) for feature in self._features}

    @property
    def width(self) -> int:
        """Of the vectors."""
        return self._width

    @property
    def kernel(self) -> np.ndarray:
        """[N, width]: the projections of all features, one below the other."""
        kernels = [self._projections[feature.column].kernel.numpy() for feature in self._features]
        return np.concatenate([np.zeros([0, self._width], np.float32), *kernels])

    def clear_missing(self) -> None:
        """Sets the rows of tables that stand for missing values to 0; `call` never reads them."""
        for table in self.tables:
            table.scatter_update(tf.IndexedSlices(tf.zeros([1, table.shape[1]]), [0]))

    def numbers(self, inputs: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """What is to be multiplied with `kernel`, [B, ...] each and N side by side, after `clear_missing`."""
        embeddings = self._embeddings
        return [term_of(f, inputs, embeddings.get(f.column), missing_is_zero=True) for f in self._features]

    def _term(self, feature: Encoding, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return self._projections[feature.column](term_of(feature, inputs, self._embeddings.get(feature.column)))


class Residual(tf_keras.layers.Layer):
    """x + dense layers(x): starts as the linear tower, whose shared item space the layers then bend.

    Without any size it is the identity.
    """

    def __init__(self, sizes: Sequence[int], width: int, seed: int) -> None:
        super().__init__(name="residual")
        self._hidden = [
            tf_keras.layers.Dense(
                size,
                activation="relu",
                kernel_initializer=tf_keras.initializers.HeUniform(seed=seed + 31 * i),
                name=f"hidden_{i}",
            )
            for i, size in enumerate(sizes)
        ]
        self._out = tf_keras.layers.Dense(width, kernel_initializer="zeros", name="out") if sizes else None

    @property
    def is_identity(self) -> bool:
        return self._out is None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        if self._out is None:
            return x
        hidden = x
        for layer in self._hidden:
            hidden = layer(hidden)
        return x + self._out(hidden)


def learned_width(dimension: int, normalize: bool) -> int:
    """Width of a tower's learned part before `finish`: a bias takes the last of its dimensions."""
    return dimension if normalize else dimension - 1


def finish(vectors: tf.Tensor, last: tf.Tensor | None) -> tf.Tensor:
    """The learned part whole: of length 1, or with its last dimension [B, 1] where there is one."""
    return tf.math.l2_normalize(vectors, axis=1) if last is None else tf.concat([vectors, last], axis=1)


def fixed(values: Any, name: str) -> tf.Variable:
    """A float32 table that no gradient touches."""
    return tf.Variable(values, trainable=False, name=name, dtype=tf.float32)
