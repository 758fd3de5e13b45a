"""The two towers and their training loss: a query vector, a candidate vector, and nothing but their inner product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from modules.encodings.base import Encoding
from modules.encodings.bucketized import Bucketized
from modules.encodings.features import Columns, Features
from modules.encodings.hash import Hash
from modules.encodings.history import History
from modules.encodings.history_age import HistoryAge
from modules.encodings.text import Text
from modules.encodings.timestamp import Timestamp
from modules.encodings.vocabulary import Vocabulary
from modules.linear import Factors
from modules.settings import Model, Training
from modules.unknown_items import ContentMap

COMPLETION, NEXT = 0, 1
"""What a training row asks of a history: what else belongs to it, or what comes after it."""

# Above this many items a history is gathered item by item; below, it is one row of a [B, V] matrix, multiplied with the
# embedding table, which is several times faster than the scattered gradient of a gather.
_DENSE_HISTORY_ITEMS = 20_000
# Decay keeps embeddings short; without this factor (its initial value) their mean could not move the logits enough.
_HISTORY_SCALE = 10.0
_MASKED = np.float32(-1e9)
# Known items, at most, that unknown ones are told from; more would say the same.
_ITEMS_TO_TELL_FROM = 20_000
# Items, at most, that a query without a history is fitted to, the likeliest ones: others are not among its answers.
_LIKELY_ITEMS = 20_000
# Keeps the vector of a missing history from growing without end.
_SHORT = 1e-4
LINEAR_GAIN = 0.5
"""Weight of the closed-form part where no validation chooses it; its scores have a standard deviation of 1."""
COLD_TREND_GAIN = 0.75
"""Weight of the trend for requests without a history, where no validation chooses it: near to what is popular now."""
AWAY_TREND_GAIN = 2.0
"""The same for those who come back after a long time, where the request tells how long (`HistoryAge`)."""
# Seconds after which somebody is as much away as in the middle of it: hours part two sittings, days two visits.
_AWAY = 86_400.0


class TwoTower(tfrs.Model):
    """Query tower, candidate tower and the loss that fits them.

    A vector has up to three parts, and the inner product adds their scores: the part learned by gradient descent, the
    closed-form part (modules/linear.py), and one dimension for the trend, what is taken up more now than in the long
    run. Only the first is in the loss; how much the others count is chosen on validation queries (`QueryTower`).

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
        linear: Factors of the closed-form part, if there is one.
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
        linear: Factors | None = None,
        seed: int = 0,
    ) -> None:
        # Names are given throughout: Keras would number them on within a process, and gradients of shared variables are
        # summed in the order of names, so that a second fit would differ in the last digit.
        super().__init__(name="two_tower")
        items = len(is_candidate) - 1
        self._settings = model
        self._training = training
        self._history = features.history
        self.full_softmax = training.negatives == "catalogue" or (
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
        dense = items <= _DENSE_HISTORY_ITEMS
        self.query_tower = QueryTower(features.query, model, cardinalities, item_ids, dense, linear, seed + 1)
        self.candidate_tower = CandidateTower(
            features.candidate, columns, model, cardinalities, item_ids, frequency, linear, seed + 2
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

    def candidate_vectors(self, labels: tf.Tensor) -> tf.Tensor:
        """Vectors of vocabulary items by label, [N] → [N, D]."""
        return self.candidate_tower(self._encoded(labels))

    def _encoded(self, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {key: tf.gather(values, labels) for key, values in self._catalogue.items()} | {"label": labels}

    def query_vectors(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Vectors of transformed queries under the recency that serves, [B, D]."""
        return self.query_tower(inputs)

    def learn_no_history(self, queries: Mapping[str, np.ndarray], share: np.ndarray) -> None:
        """Fits the vector that stands where a query has no history: items become as likely in answers as `share` says.

        Histories are completed from what is left of them, and what the biases and the other features learn beside a
        history is not what they would answer without one. Everything else stays as it is.

        Args:
            queries: Transformed query features [Q, ...] of some users; a history among them is not looked at.
            share: [V + 1] how likely items are, by label, up to a factor.
        """
        assert self._history is not None
        share = np.where(self._is_candidate, share, 0.0)
        likely = np.argsort(-share, kind="stable")[:_LIKELY_ITEMS]
        labels = np.sort(likely[share[likely] > 0])
        candidates = self.candidate_tower.learned(self._encoded(tf.constant(labels, tf.int32)))
        target = tf.constant(share[labels] / share[labels].sum(), tf.float32)
        inputs = {key: tf.constant(queries[key]) for key in query_inputs(self.query_tower.features)}
        inputs[self._history.column] = tf.zeros_like(inputs[self._history.column])
        vector = self.query_tower.no_history

        @tf.function(autograph=False)
        def loss_and_gradient(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            vector.assign(value)
            with tf.GradientTape() as tape:
                tape.watch(vector)
                vectors = self.query_tower.learned(inputs, 0.0)
                logits = tf.matmul(vectors, candidates, transpose_b=True) / self._training.temperature
                loss = -tf.reduce_mean(tf.linalg.matvec(tf.nn.log_softmax(logits), target))
                loss += _SHORT * tf.reduce_sum(vector**2)
            return loss, tape.gradient(loss, vector)

        def objective(value: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = loss_and_gradient(tf.constant(value, tf.float32))
            return float(loss), gradient.numpy().astype(np.float64)

        start = np.zeros(vector.shape[0])
        found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 50})
        vector.assign(found.x)

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Softmax cross-entropy of what a row hides, averaged over the batch.

        A row owns the set S = its item and its history. The row's item (NEXT) or a random part of S (COMPLETION) is
        hidden and becomes the target; the query sees the rest of S or less, and the rest of S counts neither as a
        target nor as a negative. Nothing in S is later than the row. In a COMPLETION, what lies near a random place of
        the history counts more, on both sides (`closeness`): tastes move, and what belongs together was taken up
        together.

        Args:
            inputs: Transformed query features [B, ...], `label` [B] (above 0), `interaction_weight` [B],
                `reading` [B] int32 (COMPLETION or NEXT) and `seed` [2] int32.
            training: Whether features and ids are dropped.

        Returns:
            Scalar loss.
        """
        labels = tf.cast(inputs["label"], tf.int32)
        reading, seed = inputs[READING], inputs[SEED]
        query = {key: inputs[key] for key in query_inputs(self.query_tower.features)}
        near = None
        if self._history is None:
            owned = labels[:, tf.newaxis]
            targets = tf.ones_like(owned, tf.float32)
        else:
            history = tf.cast(inputs[self._history.column], tf.int32)
            owned, hidden, visible = hide(labels, history, reading, self._settings.dropout if training else 0.0, seed)
            query[self._history.column] = visible
            near = closeness(owned, reading, self._training.locality, seed + 5)
            targets = near * tf.cast(hidden, tf.float32)
        queries = self.query_tower.learned(query, 0.0, self._settings.id_dropout if training else 0.0, seed + 7, near)
        if self.full_softmax:
            losses = self._catalogue_losses(queries, owned, targets)
        else:
            losses = self._in_batch_losses(queries, owned, targets, seed if training else tf.constant([0, 0]))
        weights = inputs["interaction_weight"]
        return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))

    def _catalogue_losses(self, queries: tf.Tensor, owned: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        candidates = self.candidate_tower.learned(self._encoded(tf.range(1, int(self._is_candidate.shape[0]))))
        logits = tf.matmul(queries, candidates, transpose_b=True) / self._training.temperature
        return masked_softmax_loss(logits, owned, targets, self._is_candidate)

    def _in_batch_losses(self, queries: tf.Tensor, owned: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        # One target a row: a random one of its hidden items, near ones more often (Gumbel-max).
        noise = tf.random.stateless_uniform(tf.shape(owned), seed + 13, 1e-9)
        drawn = tf.where(targets > 0, tf.math.log(targets) - tf.math.log(-tf.math.log(noise)), _MASKED)
        positives = tf.gather(owned, tf.argmax(drawn, axis=1, output_type=tf.int32), batch_dims=1)
        # A batch mate is no negative for a row that owns it already.
        mates = tf.reduce_any(owned[:, :, tf.newaxis] == positives[tf.newaxis, tf.newaxis, :], axis=1)
        score_mask = ~mates | tf.eye(tf.size(positives), dtype=tf.bool)
        losses = self._task(
            queries,
            self.candidate_tower.learned(self._encoded(positives)),
            candidate_sampling_probability=tf.gather(self._sampling, positives),
            candidate_ids=positives,
            score_mask=score_mask,
            compute_metrics=False,
            compute_batch_metrics=False,
        )
        return losses * tf.cast(tf.gather(self._is_candidate, positives), tf.float32)


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


def closeness(owned: tf.Tensor, reading: tf.Tensor, locality: float, seed: tf.Tensor) -> tf.Tensor:
    """[B, S] weights (1 + d) ** −locality, d being how many items lie between one and a random one of the row.

    1 everywhere in rows that are read as NEXT.

    Args:
        owned: [B, S] without gaps, padded with 0 at the end.
        reading: [B] COMPLETION or NEXT.
        locality: 0 makes all weights 1.
        seed: [2].
    """
    count = tf.reduce_sum(tf.cast(owned > 0, tf.float32), axis=1, keepdims=True)
    centre = tf.floor(tf.random.stateless_uniform(tf.shape(count), seed) * count)
    distance = tf.abs(tf.range(tf.cast(tf.shape(owned)[1], tf.float32))[tf.newaxis] - centre)
    return tf.where((reading == COMPLETION)[:, tf.newaxis], tf.pow(1.0 + distance, -locality), 1.0)


def masked_softmax_loss(logits: tf.Tensor, owned: tf.Tensor, targets: tf.Tensor, is_candidate: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of the hidden items against every candidate that the row does not own.

    −Σ_{t hidden} w_t · log softmax(logits over hidden ∪ not owned)[t] / Σ_t w_t over the hidden candidates; 0 for a row
    whose hidden items are no candidates.

    Args:
        logits: [B, V] of the items 1 … V.
        owned: [B, S] item indices, 0 is padding, above V is out of vocabulary.
        targets: [B, S] weights w of the hidden items, 0 for the visible ones.
        is_candidate: [V + 1] bool; others take no part.

    Returns:
        [B] losses.
    """
    items = tf.shape(logits)[1]
    owned = tf.cast(owned, tf.int32)
    visible = _many_hot(owned, tf.cast(targets <= 0, tf.float32), items)
    targets = tf.where(is_candidate[tf.newaxis, 1:], _many_hot(owned, targets, items), 0.0)
    is_target = targets > 0
    logits = tf.where(is_candidate[tf.newaxis, 1:] & ((visible <= 0) | is_target), logits, _MASKED)
    weight = tf.reduce_sum(targets, axis=1)
    positive = tf.reduce_sum(tf.where(is_target, logits * targets, 0.0), axis=1)
    return tf.math.divide_no_nan(weight * tf.reduce_logsumexp(logits, axis=1) - positive, weight)


class QueryTower(tf_keras.layers.Layer):
    """A query's vector.

    The learned part is a weighted mean of the history's item embeddings, or a vector of its own where there is no
    history, plus one term for each other feature, plus a constant; without `normalize` its last dimension is the
    constant 1, which meets the candidate's bias. The closed-form part is a weighted sum of the history's rows of a
    fixed table. Missing values contribute nothing.

    Which items go together is learned; a few numbers say how that answers a request, and validation chooses them,
    because they depend on what is asked for, any of the user's further items or the very next one, in an old world or a
    new one: `recency` and `linear_recency` (how much the newest items of the history count in either part),
    `linear_gain` (how much the closed-form part counts), `trend_gain` and `cold_trend_gain` (how much the trend counts
    for a request with a history and for one without).

    Who is in the middle of a sitting wants what goes with its last items, and who comes back after weeks what is new.
    Where requests tell the history's age, `recency` counts for the first only and `trend_gain` for the second, each
    as far as somebody is one or the other.
    """

    def __init__(
        self,
        features: Sequence[Encoding],
        model: Model,
        cardinalities: Mapping[str, int],
        item_ids: tf_keras.layers.Embedding | None,
        dense_history: bool,
        linear: Factors | None,
        seed: int,
    ) -> None:
        super().__init__(name="query_tower")
        self.features = tuple(features)
        self._history = next((f for f in features if isinstance(f, History)), None)
        self._age = next((f for f in features if isinstance(f, HistoryAge)), None)
        self._item_ids = item_ids
        self.dense_history = dense_history
        self._normalize = model.normalize
        self._has_discount = model.diversity > 0
        # How wide the learned and the closed-form part of a vector are.
        self.dimension = model.dimension
        self.linear_rank = 0 if linear is None else linear.history.shape[1]
        self._width = model.dimension if model.normalize else model.dimension - 1
        others = [f for f in features if not f.of_history]
        self._terms = FeatureTerms(others, self._width, cardinalities, seed)
        self._layers = _residual(model.query_layers, self._width, seed)
        self.constant = self.add_weight(name="constant", shape=[self._width], initializer="zeros")
        self.recency = self._chosen("recency", 0.0)
        self.trend_gain = self._chosen("trend_gain", AWAY_TREND_GAIN if model.trend and self._age else 0.0)
        if self._history is not None:
            self.cold_trend_gain = self._chosen("cold_trend_gain", COLD_TREND_GAIN if model.trend else 0.0)
            self.no_history = self.add_weight(
                name="no_history", shape=[self._width], initializer="zeros", trainable=False
            )
            self.history_scale = self.add_weight(
                name="history_scale", shape=[], initializer=tf_keras.initializers.Constant(_HISTORY_SCALE)
            )
        self._linear = None
        if linear is not None:
            self._linear = _fixed(linear.history, "linear_history")
            self.linear_recency = self._chosen("linear_recency", 0.0)
            self.linear_gain = self._chosen("linear_gain", LINEAR_GAIN)

    def _chosen(self, name: str, value: float) -> tf.Variable:
        initializer = tf_keras.initializers.Constant(value)
        return self.add_weight(name=name, shape=[], initializer=initializer, trainable=False)

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, D] query vectors of transformed query features."""
        linear = None if self._linear is None else self.linear(inputs, self.linear_recency)
        return self.blend(inputs, self.learned(inputs, self.recency), linear)

    def blend(self, inputs: dict[str, tf.Tensor], learned: tf.Tensor, linear: tf.Tensor | None) -> tf.Tensor:
        """[B, D] query vectors from their parts, each with its gain."""
        parts = [learned, *([] if linear is None else [self.linear_gain * linear]), self.others(inputs)]
        return tf.concat(parts, axis=1)

    def others(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, 1 or 2]: what meets the candidates' trend, and their discount where there is one."""
        trend = tf.fill([tf.shape(next(iter(inputs.values())))[0], 1], self.trend_gain)
        if self._age is not None:
            trend *= self._away(inputs)
        if self._history is not None:
            trend = tf.where(_is_empty(inputs[self._history.column]), self.cold_trend_gain, trend)
        return tf.concat([trend, tf.ones_like(trend)], axis=1) if self._has_discount else trend

    def _away(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, 1] from 0, in the middle of it, to 1, away for long."""
        assert self._age is not None
        age = inputs[self._age.column][:, tf.newaxis]
        return age / (age + _AWAY)

    def linear(self, inputs: dict[str, tf.Tensor], recency: tf.Tensor | float) -> tf.Tensor:
        """The closed-form part, [B, R]; the history's p-th newest item (p from 0) weighs (1 + p) ** −recency."""
        assert self._linear is not None and self._history is not None
        history = tf.cast(inputs[self._history.column], tf.int32)
        return self._sum(self._linear, history, _by_rank(history, recency))

    def learned(
        self,
        inputs: dict[str, tf.Tensor],
        recency: tf.Tensor | float,
        dropout: float = 0.0,
        seed: tf.Tensor | None = None,
        closeness: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The learned part, [B, dimension].

        Args:
            inputs: Transformed query features.
            recency: The history's p-th newest item (p from 0) weighs (1 + p) ** −recency; the less of it, the longer
                somebody is away.
            dropout: Share of the features, but for the history, that a row does not see.
            seed: [2], for the dropout.
            closeness: [B, H] factors of the history's weights.
        """
        rows = tf.shape(next(iter(inputs.values())))[0]
        vectors = self.constant + self._terms(inputs, rows, dropout, seed)
        if self._history is not None:
            assert self._item_ids is not None
            history = tf.cast(inputs[self._history.column], tf.int32)
            if self._age is not None and not _is_zero(recency):
                recency = recency * (1.0 - self._away(inputs))
            weights = _by_rank(history, recency) * (1.0 if closeness is None else closeness)
            weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))
            vectors += self.history_scale * self._sum(self._item_ids.embeddings, history, weights)
            vectors += tf.cast(_is_empty(history), tf.float32) * self.no_history
        for layer in self._layers:
            vectors = layer(vectors)
        return _finish(vectors, None if self._normalize else tf.ones([rows, 1]))

    def _sum(self, table: tf.Tensor, history: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Σ weights · rows of a table, [B, width]; weights [B, H] are 0 at padding."""
        if self.dense_history:
            return tf.matmul(_many_hot(history, weights, tf.shape(table)[0] - 1), table[1:])
        return tf.einsum("bh,bhd->bd", weights, tf.gather(table, history))


def _is_empty(history: tf.Tensor) -> tf.Tensor:
    """[B, 1] bool, for histories [B, H]."""
    return tf.reduce_all(history == 0, axis=1, keepdims=True)


def _is_zero(recency: tf.Tensor | float) -> bool:
    """Whether a constant: so in every step of a fit, where the powers would take time."""
    return isinstance(recency, float) and recency == 0.0


def _by_rank(history: tf.Tensor, recency: tf.Tensor | float) -> tf.Tensor:
    """[B, H] (1 + p) ** −recency for the p-th newest item, 0 at padding.

    p is the rank among the items that are there: hidden ones leave no gap, as at serving.
    """
    present = tf.cast(history > 0, tf.float32)
    if _is_zero(recency):
        return present
    return present * tf.pow(1.0 + tf.cumsum(present, axis=1, exclusive=True), -recency)


def _log_popularity(frequency: np.ndarray) -> np.ndarray:
    """[V + 1] log of each item's frequency over the mean; unknown items, row 0, are as rare as the rarest."""
    popularity = np.log((frequency + 1.0) / np.mean(frequency[1:] + 1.0))
    popularity[0] = popularity[1:].min(initial=0.0)
    return popularity.astype(np.float32)


def _fixed(values: np.ndarray, name: str) -> tf.Variable:
    return tf.Variable(values, trainable=False, name=name, dtype=tf.float32)


class CandidateTower(tf_keras.layers.Layer):
    """A candidate's vector: the learned part (the item's own embedding, one term for each content feature, and as last
    dimension the item's bias), the item's row of the closed-form part, its trend.

    An item without training interactions has none of these. It gets what `unknown` tells from its content: the vector
    that items with such content have.
    """

    def __init__(
        self,
        features: Sequence[Encoding],
        columns: Columns,
        model: Model,
        cardinalities: Mapping[str, int],
        item_ids: tf_keras.layers.Embedding | None,
        frequency: np.ndarray,
        linear: Factors | None,
        seed: int,
    ) -> None:
        super().__init__(name="candidate_tower")
        self._normalize = model.normalize
        self._dimension = model.dimension
        width = model.dimension if model.normalize else model.dimension - 1
        self._id = next((f for f in features if is_item_id(f, columns)), None)
        self._item_ids = item_ids
        self._terms = FeatureTerms([f for f in features if f is not self._id], width, cardinalities, seed)
        self._layers = _residual(model.candidate_layers, width, seed)
        if not model.normalize and self._id is not None:
            bias = _log_popularity(frequency)
            self.bias = self.add_weight(
                name="item_bias", shape=bias.shape, initializer=tf_keras.initializers.Constant(bias)
            )
        self._linear = None if linear is None else _fixed(linear.items, "linear_items")
        self.trend = _fixed(np.zeros(len(frequency), np.float32), "trend")
        self._discount = None
        if model.diversity:
            self._discount = _fixed(-model.diversity * _log_popularity(frequency), "popularity_discount")
        self._is_known = tf.Variable(frequency > 0, trainable=False, name="is_known")
        others = (0 if linear is None else linear.items.shape[1]) + 1 + bool(model.diversity)
        # Before the fit, and in its epochs, as rare as the rarest.
        rare = np.zeros(model.dimension + others, np.float32)
        rare[width : model.dimension] = _log_popularity(frequency)[0]
        content = [f for f in features if f is not self._id]
        self.unknown = ContentMap(content, cardinalities, rare)

    def call(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, D] candidate vectors of transformed candidate features and `label` (0 for an unknown item)."""
        learned = self.learned(inputs)
        others = [tf.gather(self.trend, inputs["label"])[:, tf.newaxis]]
        if self._linear is not None:
            others.insert(0, tf.gather(self._linear, inputs["label"]))
        if self._discount is not None:
            others.append(tf.gather(self._discount, inputs["label"])[:, tf.newaxis])
        told = self.unknown(inputs)
        told_learned = told[:, : self._dimension]
        if self._normalize:
            told_learned = tf.math.l2_normalize(told_learned, axis=1)
        if self._id is None:
            # Without an id of its own an item is learned by its content in the first place.
            told_learned = learned
        return tf.where(
            tf.gather(self._is_known, inputs["label"])[:, tf.newaxis],
            tf.concat([learned, *others], axis=1),
            tf.concat([told_learned, told[:, self._dimension :]], axis=1),
        )

    def learn_unknown(self, catalogue: Mapping[str, np.ndarray], is_candidate: np.ndarray, seed: int) -> None:
        """Fits `unknown` on the known candidates' vectors, as they are now.

        Args:
            catalogue: Transformed candidate features by label, [V + 1, ...].
            is_candidate: [V + 1] bool, which items have a row in it.
            seed: Of the draw of items, where there are more than are needed.
        """
        labels = np.flatnonzero(self._is_known.numpy() & is_candidate)
        if len(labels) > _ITEMS_TO_TELL_FROM:
            labels = np.sort(np.random.default_rng(seed).choice(labels, _ITEMS_TO_TELL_FROM, replace=False))
        features = {key: values[labels] for key, values in catalogue.items()}
        inputs = {key: tf.constant(values) for key, values in features.items()}
        vectors = self(inputs | {"label": tf.constant(labels, tf.int32)}).numpy()
        # What nobody has taken up yet has no trend.
        vectors[:, -1 - (self._discount is not None)] = 0.0
        self.unknown.fit(features, vectors)

    def learned(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """The learned part, [B, dimension]."""
        rows = tf.shape(next(iter(inputs.values())))[0]
        vectors = self._terms(inputs, rows)
        bias = tf.zeros([rows, 1])
        if self._id is not None:
            assert self._item_ids is not None
            ids = tf.cast(inputs[self._id.column], tf.int32)
            vectors += self._item_ids(ids) * tf.cast(ids > 0, tf.float32)[:, tf.newaxis]
            if not self._normalize:
                bias = tf.gather(self.bias, inputs["label"])[:, tf.newaxis]
        for layer in self._layers:
            vectors = layer(vectors)
        return _finish(vectors, None if self._normalize else bias)


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

    def _encode(self, feature: Encoding, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        column = feature.column
        if isinstance(feature, Timestamp):
            bucket = self._mean_embedding(column, inputs[feature.bucket_key])
            return tf.concat([bucket, inputs[feature.cyclic_key]], axis=1)
        (key,) = feature.keys
        if column in self._embeddings:
            return self._mean_embedding(column, inputs[key])
        return inputs[key][:, tf.newaxis]

    def _mean_embedding(self, column: str, ids: tf.Tensor) -> tf.Tensor:
        """Mean of the embeddings of the ids above 0: [B] or [B, M] → [B, dimension]."""
        ids = ids[:, tf.newaxis] if ids.shape.rank == 1 else ids
        present = tf.cast(ids > 0, tf.float32)
        total = tf.reduce_sum(present[:, :, tf.newaxis] * self._embeddings[column](ids), axis=1)
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


def is_item_id(feature: Encoding, columns: Columns) -> bool:
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


def query_inputs(features: Sequence[Encoding]) -> dict[str, tuple[list[int], tf.DType]]:
    """Keys of transformed features, with the shape of a batch of one and the dtype."""
    inputs: dict[str, tuple[list[int], tf.DType]] = {}
    for feature in features:
        specs: tuple[tuple[list[int], tf.DType], ...]
        if isinstance(feature, Timestamp):
            specs = (([1], tf.int64), ([1, 4], tf.float32))
        elif isinstance(feature, History):
            specs = (([1, feature.max_length], tf.int64),)
        elif isinstance(feature, Text):
            specs = (([1, feature.max_tokens], tf.int64),)
        elif isinstance(feature, (Vocabulary, Hash)):
            specs = (([1, feature.max_values] if feature.is_multivalued else [1], tf.int64),)
        else:
            specs = (([1], tf.int64 if isinstance(feature, Bucketized) else tf.float32),)
        inputs |= zip(feature.keys, specs, strict=True)
    return inputs
