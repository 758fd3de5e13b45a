"""The two towers and their training loss: a query vector, a candidate vector, and nothing but their inner product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from modules.features import Bucketized, Columns, Feature, Features, Hash, History, Text, Timestamp, Vocabulary
from modules.settings import Model, Training

COMPLETION, NEXT = 0, 1
"""What a training row asks of a history: what else belongs to it, or what comes after it."""

# Above this many items a history is gathered item by item; below, it is one row of a [B, V] matrix, multiplied with the
# embedding table, which is several times faster than the scattered gradient of a gather.
_DENSE_HISTORY_ITEMS = 20_000
# Decay keeps embeddings short; without this factor (its initial value) their mean could not move the logits enough.
_HISTORY_SCALE = 10.0
_MASKED = np.float32(-1e9)


class TwoTower(tfrs.Model):
    """Query tower, candidate tower and the loss that fits them.

    Args:
        features: What each tower reads.
        columns: Names of the user, item and timestamp columns.
        model: Sizes and dropout.
        training: Negatives, temperature, mix of objectives.
        cardinalities: Rows of the embedding table of each feature that has ids, by column.
        item_rows: Rows of the item table: 1 + V + out-of-vocabulary buckets.
        catalogue: Transformed candidate features of every vocabulary item, [V + 1, ...] by label; row 0 is unused.
        is_candidate: [V + 1] bool, which of them can be an answer.
        frequency: [V + 1] training interactions by label.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        features: Features,
        columns: Columns,
        model: Model,
        training: Training,
        cardinalities: Mapping[str, int],
        item_rows: int,
        catalogue: Mapping[str, np.ndarray],
        is_candidate: np.ndarray,
        frequency: np.ndarray,
        seed: int = 0,
    ) -> None:
        # Names are given throughout: Keras would number them on within a process, and gradients of shared variables are
        # summed in the order of names, so that a second fit would differ in the last digit.
        super().__init__(name="two_tower")
        items = len(is_candidate) - 1
        self._settings = model
        self._training = training
        self._history = features.history
        self._full_softmax = training.negatives == "catalogue" or (
            training.negatives == "auto" and items <= training.catalogue_limit
        )
        item_ids = None
        if any(isinstance(f, History) or is_item_id(f, columns) for f in (*features.query, *features.candidate)):
            item_ids = tf_keras.layers.Embedding(
                item_rows,
                model.dimension if model.normalize else model.dimension - 1,
                embeddings_initializer=tf_keras.initializers.RandomNormal(stddev=0.01, seed=seed),
                name="item_ids",
            )
            item_ids.build(None)
        dense = self._full_softmax and items <= _DENSE_HISTORY_ITEMS
        self.query_tower = QueryTower(features.query, model, cardinalities, item_ids, dense, seed + 1)
        self.candidate_tower = CandidateTower(
            features.candidate, columns, model, cardinalities, item_ids, item_rows, frequency, seed + 2
        )
        self._catalogue = {key: tf.constant(values) for key, values in catalogue.items()}
        self._is_candidate = tf.constant(is_candidate)
        self._sampling = tf.constant(_scaled_probability(frequency))
        self._task = tfrs.tasks.Retrieval(
            loss=tf_keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
            temperature=training.temperature,
            remove_accidental_hits=True,
            name="retrieval",
        )
        # Every variable exists from here on, so that a checkpoint can be restored before the first step.
        self.candidate_vectors(tf.constant([0]))
        self.query_vectors({key: tf.zeros(shape, kind) for key, (shape, kind) in query_inputs(features.query).items()})

    def candidate_vectors(self, labels: tf.Tensor, hide_ids: tf.Tensor | None = None) -> tf.Tensor:
        """Vectors of vocabulary items by label, [N] → [N, D]."""
        encoded = {key: tf.gather(values, labels) for key, values in self._catalogue.items()}
        return self.candidate_tower(encoded | {"label": labels}, hide_ids)

    def query_vectors(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Vectors of transformed queries under the recency that serves, [B, D]."""
        return self.query_tower(inputs)

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Softmax cross-entropy of what a row hides, averaged over the batch.

        A row owns the set S = its item and its history. The row's item (NEXT) or a random part of S (COMPLETION) is
        hidden and becomes the target; the query sees the rest of S or less, and the rest of S counts neither as a
        target nor as a negative. Nothing in S is later than the row.

        Args:
            inputs: Transformed query features [B, ...], `label` [B] (above 0), `interaction_weight` [B],
                `reading` [B] int32 (COMPLETION or NEXT) and `seed` [2] int32.
            training: Whether features and ids are dropped.

        Returns:
            Scalar loss.
        """
        labels = tf.cast(inputs["label"], tf.int32)
        reading, seed = inputs["reading"], inputs["seed"]
        query = {key: inputs[key] for key in query_inputs(self.query_tower.features)}
        if self._history is None:
            owned = labels[:, tf.newaxis]
            hidden = tf.ones_like(owned, tf.bool)
        else:
            history = tf.cast(inputs[self._history.column], tf.int32)
            owned, hidden, visible = hide(labels, history, reading, self._settings.dropout if training else 0.0, seed)
            query[self._history.column] = visible
        queries = self.query_tower(query, 0.0, self._settings.id_dropout if training else 0.0, seed + 7)
        if self._full_softmax:
            losses = self._catalogue_losses(queries, owned, hidden, seed if training else None)
        else:
            losses = self._in_batch_losses(queries, owned, hidden, seed if training else None)
        weights = inputs["interaction_weight"]
        return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))

    def _catalogue_losses(
        self, queries: tf.Tensor, owned: tf.Tensor, hidden: tf.Tensor, seed: tf.Tensor | None
    ) -> tf.Tensor:
        items = int(self._is_candidate.shape[0])
        hide_ids = None
        if seed is not None and self._settings.item_id_dropout:
            hide_ids = tf.random.stateless_uniform([items - 1], seed + 11) < self._settings.item_id_dropout
        candidates = self.candidate_vectors(tf.range(1, items), hide_ids)
        logits = tf.matmul(queries, candidates, transpose_b=True) / self._training.temperature
        return masked_softmax_loss(logits, owned, hidden, self._is_candidate)

    def _in_batch_losses(
        self, queries: tf.Tensor, owned: tf.Tensor, hidden: tf.Tensor, seed: tf.Tensor | None
    ) -> tf.Tensor:
        # One target a row: a random one of its hidden items.
        noise = tf.random.stateless_uniform(tf.shape(owned), (tf.constant([0, 0]) if seed is None else seed) + 13)
        position = tf.argmax(tf.where(hidden, noise, -1.0), axis=1, output_type=tf.int32)
        targets = tf.gather(owned, position, batch_dims=1)
        hide_ids = None
        if seed is not None and self._settings.item_id_dropout:
            hide_ids = tf.random.stateless_uniform(tf.shape(targets), seed + 11) < self._settings.item_id_dropout
        # A batch mate is no negative for a row that owns it already.
        mates = tf.reduce_any(owned[:, :, tf.newaxis] == targets[tf.newaxis, tf.newaxis, :], axis=1)
        score_mask = ~mates | tf.eye(tf.size(targets), dtype=tf.bool)
        losses = self._task(
            queries,
            self.candidate_vectors(targets, hide_ids),
            candidate_sampling_probability=tf.gather(self._sampling, targets),
            candidate_ids=targets,
            score_mask=score_mask,
            compute_metrics=False,
            compute_batch_metrics=False,
        )
        return losses * tf.cast(tf.gather(self._is_candidate, targets), tf.float32)


def hide(
    labels: tf.Tensor, history: tf.Tensor, reading: tf.Tensor, dropout: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Splits what each row owns into targets and what the query may see.

    NEXT hides the row's item; COMPLETION a random part of all, of expected share `dropout`, at least one item.
    COMPLETION rows own each item once (trainer.whole_histories).

    Args:
        labels: [B] the row's item, above 0.
        history: [B, H] items before it, newest first, padded with 0.
        reading: [B] COMPLETION or NEXT.
        dropout: Share that a COMPLETION row hides; NEXT rows do not see this share of their history either.
        seed: [2].

    Returns:
        owned [B, H + 1] (label, then history), hidden [B, H + 1] bool (the targets), visible [B, H + 1] (what the query
        sees: as owned, with everything hidden, dropped or equal to a target set to 0).
    """
    owned = tf.concat([labels[:, tf.newaxis], history], axis=1)
    is_first = tf.one_hot(tf.zeros_like(labels), tf.shape(owned)[1], on_value=True, off_value=False, dtype=tf.bool)
    drawn = tf.random.stateless_uniform(tf.shape(owned), seed)
    chosen = (drawn < dropout) & (owned > 0)
    is_completion = (reading == COMPLETION)[:, tf.newaxis]
    hidden = tf.where(is_completion & tf.reduce_any(chosen, axis=1, keepdims=True), chosen, is_first)
    # Who took up an item again must not see the earlier time.
    again = (owned == owned[:, :1]) & hidden[:, :1]
    visible = tf.where(hidden | again | chosen, 0, owned)
    return owned, hidden, visible


def masked_softmax_loss(logits: tf.Tensor, owned: tf.Tensor, hidden: tf.Tensor, is_candidate: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of the hidden items against every candidate that the row does not own.

    −Σ_{t hidden} log softmax(logits over hidden ∪ not owned)[t] / (number of hidden candidates); 0 for a row whose
    hidden items are no candidates.

    Args:
        logits: [B, V] of the items 1 … V.
        owned: [B, S] item indices, 0 is padding, above V is out of vocabulary.
        hidden: [B, S] bool.
        is_candidate: [V + 1] bool; others take no part.

    Returns:
        [B] losses.
    """
    items = tf.shape(logits)[1]
    owned = tf.cast(owned, tf.int32)
    targets = _many_hot(owned, tf.cast(hidden, tf.float32), items)
    visible = _many_hot(owned, tf.cast(~hidden, tf.float32), items)
    candidates = is_candidate[tf.newaxis, 1:]
    is_target = (targets > 0) & candidates
    logits = tf.where(candidates & ((visible <= 0) | is_target), logits, _MASKED)
    targets = tf.cast(is_target, tf.float32)
    count = tf.reduce_sum(targets, axis=1)
    positive = tf.reduce_sum(tf.where(is_target, logits, 0.0), axis=1)
    return tf.math.divide_no_nan(count * tf.reduce_logsumexp(logits, axis=1) - positive, count)


class QueryTower(tf_keras.layers.Layer):
    """Weighted mean of the history's item embeddings, plus one term for each other feature, plus a constant.

    The history is learned from flat, as a bag: which items go together does not depend on their order. How much the
    newest items count is one number, `recency`, that validation chooses: 0 where any of the user's further items is
    asked for, more where the very next one is.

    Missing values contribute nothing. Without `normalize` the last dimension is the constant 1, which meets the
    candidate's bias.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        model: Model,
        cardinalities: Mapping[str, int],
        item_ids: tf_keras.layers.Embedding | None,
        dense_history: bool,
        seed: int,
    ) -> None:
        super().__init__(name="query_tower")
        self.features = tuple(features)
        self._history = next((f for f in features if isinstance(f, History)), None)
        self._item_ids = item_ids
        self.dense_history = dense_history
        self._normalize = model.normalize
        self._width = model.dimension if model.normalize else model.dimension - 1
        others = [f for f in features if not isinstance(f, History)]
        self._terms = FeatureTerms(others, self._width, cardinalities, seed)
        self._layers = _residual(model.query_layers, self._width, seed)
        self.constant = self.add_weight(name="constant", shape=[self._width], initializer="zeros")
        self.recency = self.add_weight(name="recency", shape=[], initializer="zeros", trainable=False)
        if self._history is not None:
            self.history_scale = self.add_weight(
                name="history_scale", shape=[], initializer=tf_keras.initializers.Constant(_HISTORY_SCALE)
            )

    def call(
        self,
        inputs: dict[str, tf.Tensor],
        recency: float | None = None,
        dropout: float = 0.0,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """[B, D] query vectors.

        Args:
            inputs: Transformed query features.
            recency: The history's p-th newest item (p from 0) weighs (1 + p) ** −recency; by default as `self.recency`.
            dropout: Share of the features, but for the history, that a row does not see.
            seed: [2], for the dropout.
        """
        rows = tf.shape(next(iter(inputs.values())))[0]
        vectors = self.constant + self._terms(inputs, rows, dropout, seed)
        if self._history is not None:
            vectors += self._pool(inputs[self._history.column], self.recency if recency is None else recency)
        for layer in self._layers:
            vectors = layer(vectors)
        return _finish(vectors, None if self._normalize else tf.ones([rows, 1]))

    def _pool(self, history: tf.Tensor, recency: tf.Tensor | float) -> tf.Tensor:
        assert self._item_ids is not None
        history = tf.cast(history, tf.int32)
        present = tf.cast(history > 0, tf.float32)
        # Rank from the newest among the items that are there: hidden ones leave no gap, as at serving.
        rank = tf.cumsum(present, axis=1, exclusive=True)
        weights = present * tf.pow(1.0 + rank, -recency)
        weights = self.history_scale * tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))
        if self.dense_history:
            table = self._item_ids.embeddings
            return tf.matmul(_many_hot(history, weights, tf.shape(table)[0] - 1), table[1:])
        return tf.einsum("bh,bhd->bd", weights, self._item_ids(history))


class CandidateTower(tf_keras.layers.Layer):
    """The item's own embedding plus one term for each content feature; the last dimension is the item's bias."""

    def __init__(
        self,
        features: Sequence[Feature],
        columns: Columns,
        model: Model,
        cardinalities: Mapping[str, int],
        item_ids: tf_keras.layers.Embedding | None,
        item_rows: int,
        frequency: np.ndarray,
        seed: int,
    ) -> None:
        super().__init__(name="candidate_tower")
        self._normalize = model.normalize
        width = model.dimension if model.normalize else model.dimension - 1
        self._id = next((f for f in features if is_item_id(f, columns)), None)
        self._item_ids = item_ids
        self._terms = FeatureTerms([f for f in features if f is not self._id], width, cardinalities, seed)
        self._layers = _residual(model.candidate_layers, width, seed)
        if not model.normalize and self._id is not None:
            known = len(frequency)
            bias = np.zeros(item_rows, np.float32)
            bias[1:known] = np.log((frequency[1:] + 1.0) / np.mean(frequency[1:] + 1.0))
            # Items without an interaction start among the rarest, and learn from `item_id_dropout`.
            bias[known:] = bias[1:known].min(initial=0.0)
            self.bias = self.add_weight(
                name="item_bias", shape=bias.shape, initializer=tf_keras.initializers.Constant(bias)
            )

    def call(self, inputs: dict[str, tf.Tensor], hide_ids: tf.Tensor | None = None) -> tf.Tensor:
        """[B, D] candidate vectors of transformed candidate features; `hide_ids` [B] bool makes an item unknown."""
        rows = tf.shape(next(iter(inputs.values())))[0]
        vectors = self._terms(inputs, rows)
        bias = tf.zeros([rows, 1])
        if self._id is not None:
            assert self._item_ids is not None
            ids = tf.cast(inputs[self._id.column], tf.int32)
            if hide_ids is not None:
                ids = tf.where(hide_ids, tf.shape(self._item_ids.embeddings)[0] - 1, ids)
            vectors += self._item_ids(ids) * tf.cast(ids > 0, tf.float32)[:, tf.newaxis]
            if not self._normalize:
                bias = tf.gather(self.bias, ids)[:, tf.newaxis]
        for layer in self._layers:
            vectors = layer(vectors)
        return _finish(vectors, None if self._normalize else bias)


class FeatureTerms(tf_keras.layers.Layer):
    """Σ over features of (embedding or number) · matrix: [B, width]; a missing value adds nothing."""

    def __init__(self, features: Sequence[Feature], width: int, cardinalities: Mapping[str, int], seed: int) -> None:
        super().__init__(name="terms")
        self._features = tuple(features)
        self._width = width
        self._embeddings: dict[str, Any] = {}
        self._projections: dict[str, Any] = {}
        for number, feature in enumerate(features):
            draw = seed + 101 * (number + 1)
            if isinstance(feature, (Vocabulary, Hash, Text, Bucketized, Timestamp)):
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

    def call(
        self, inputs: dict[str, tf.Tensor], rows: tf.Tensor, dropout: float = 0.0, seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        total = tf.zeros([rows, self._width])
        for number, feature in enumerate(self._features):
            term = self._projections[feature.column](self._encode(feature, inputs))
            if dropout and seed is not None:
                kept = tf.random.stateless_uniform([rows, 1], seed + 17 * (number + 1)) >= dropout
                term *= tf.cast(kept, tf.float32)
            total += term
        return total

    def _encode(self, feature: Feature, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        column = feature.column
        if isinstance(feature, Timestamp):
            bucket = self._mean_embedding(column, inputs[f"{column}_bucket"])
            return tf.concat([bucket, inputs[f"{column}_cyclic"]], axis=1)
        if column in self._embeddings:
            return self._mean_embedding(column, inputs[column])
        return inputs[column][:, tf.newaxis]

    def _mean_embedding(self, column: str, ids: tf.Tensor) -> tf.Tensor:
        """Mean of the embeddings of the ids above 0: [B] or [B, M] → [B, dimension]."""
        ids = ids[:, tf.newaxis] if ids.shape.rank == 1 else ids
        present = tf.cast(ids > 0, tf.float32)
        total = tf.einsum("bm,bmd->bd", present, self._embeddings[column](ids))
        return tf.math.divide_no_nan(total, tf.reduce_sum(present, axis=1, keepdims=True))


class _Residual(tf_keras.layers.Layer):
    """x + dense layers(x): starts near the linear tower, whose shared item space the layers then bend."""

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
        self._out = tf_keras.layers.Dense(width, kernel_initializer="zeros", name="out")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        hidden = x
        for layer in self._hidden:
            hidden = layer(hidden)
        return x + self._out(hidden)


def _residual(sizes: Sequence[int], width: int, seed: int) -> list[_Residual]:
    return [_Residual(sizes, width, seed)] if sizes else []


def _finish(vectors: tf.Tensor, last: tf.Tensor | None) -> tf.Tensor:
    return tf.math.l2_normalize(vectors, axis=1) if last is None else tf.concat([vectors, last], axis=1)


def is_item_id(feature: Feature, columns: Columns) -> bool:
    return isinstance(feature, Vocabulary) and feature.column == columns.item


def _many_hot(ids: tf.Tensor, weights: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """[B, S] ids and weights → [B, items] sums of weights, column v − 1 for id v; other ids are left out."""
    rows = tf.shape(ids)[0]
    keep = (ids > 0) & (ids <= items)
    flat = tf.range(rows)[:, tf.newaxis] * items + ids - 1
    # Negative segments are dropped.
    flat = tf.where(keep, flat, -1)
    total = tf.math.unsorted_segment_sum(tf.reshape(weights, [-1]), tf.reshape(flat, [-1]), rows * items)
    return tf.reshape(total, [rows, items])


def _scaled_probability(frequency: np.ndarray) -> np.ndarray:
    """Sampling probability of each item up to a factor, which the softmax does not feel.

    The largest is 1, because TFRS clips what it gets at 1e-6, which the true probabilities of a long tail fall below.
    """
    return np.maximum(frequency, 0.5).astype(np.float32) / max(float(frequency.max(initial=0.0)), 1.0)


def query_inputs(features: Sequence[Feature]) -> dict[str, tuple[list[int], tf.DType]]:
    """Keys of transformed features, with the shape of a batch of one and the dtype."""
    inputs: dict[str, tuple[list[int], tf.DType]] = {}
    for feature in features:
        if isinstance(feature, Timestamp):
            inputs[f"{feature.column}_bucket"] = ([1], tf.int64)
            inputs[f"{feature.column}_cyclic"] = ([1, 4], tf.float32)
        elif isinstance(feature, History):
            inputs[feature.column] = ([1, feature.max_length], tf.int64)
        elif isinstance(feature, Text):
            inputs[feature.column] = ([1, feature.max_tokens], tf.int64)
        elif isinstance(feature, (Vocabulary, Hash)):
            inputs[feature.column] = ([1, feature.max_values] if feature.is_multivalued else [1], tf.int64)
        else:
            inputs[feature.column] = ([1], tf.int64 if isinstance(feature, Bucketized) else tf.float32)
    return inputs
