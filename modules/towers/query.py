"""A query's vector, and the few numbers that weigh its parts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import tensorflow as tf
import tf_keras

from modules.encodings.base import Encoding, total_of_ids
from modules.item_item import Factors
from modules.settings import Model
from modules.towers.history_encoder import HistoryEncoder, Places
from modules.towers.layout import VectorLayout
from modules.towers.masking import many_hot
from modules.towers.share import WHOLE, Share
from modules.towers.terms import FeatureTerms, Residual, finish, fixed, history_age_of, history_of, learned_width

# Weight decay keeps embeddings short; without this factor (its initial value, it is learned) their mean over a history
# could not move the logits enough.
_HISTORY_SCALE = 10.0


@dataclass(frozen=True)
class BlendWeights:
    """How much the parts of a query's vector count.

    Which items go together is learned; how that answers a request depends on what is asked for, any of the user's
    further items or the very next one, in an old catalogue or a new one. So validation chooses these
    (training/calibration.py). The defaults stand where there is no validation.
    """

    recency: float = 0.0
    """The history's p-th newest item (p from 0) weighs (1 + p) ** −recency in the learned part."""
    item_item_recency: float = 0.0
    """The same in the item-item part."""
    item_item: float = 0.5
    """Weight of the item-item part, whose scores have a standard deviation of 1."""
    lift: float = 0.0
    """Weight of the recent popularity lift for a query with a history."""
    cold_start_lift: float = 0.0
    """The same for a cold-start query; at 1 it gets what is popular now, as far as the lift is concerned."""

    @classmethod
    def default(cls, model: Model, has_age: bool) -> BlendWeights:
        """What validation starts from.

        Args:
            model: Without `popularity_lift` the lift counts nothing.
            has_age: Whether requests tell the history's age. Then the lift is for those who come back after a long
                time, and starts where those want it; else most queries are in-session and are better without.
        """
        if not model.popularity_lift:
            return cls()
        # Near to what is popular now: started from nothing, coordinate ascent stopped short of it (commit 63b6ed2).
        return cls(lift=2.0 if has_age else 0.0, cold_start_lift=0.75)


class QueryTower(tf_keras.layers.Layer):
    """A query's vector, laid out by `VectorLayout`.

    The learned part is a weighted mean of the history's item embeddings (or what a `history_encoder` makes of them), or
    a vector of its own for a cold-start query, plus one term for each other feature, plus a constant. The item-item
    part is a weighted sum of the history's rows of a fixed table. Missing values add nothing.

    Who is in-session wants what goes with the last items; who comes back after an inactivity gap wants what is new.
    Where requests tell the history's age, `recency` counts for the first only and `lift` for the second, each as far as
    somebody is one or the other.

    Args:
        features: What it reads.
        model: Sizes.
        cardinalities: Rows of the embedding table of each feature that has ids, by column.
        item_ids: Embeddings of the items, shared with the candidate tower; None where nothing reads them.
        dense_history: Whether a history is a row of a [B, V] matrix, which is multiplied with the table, or gathered.
            Once exported it is gathered, from what is read of a table: rows gathered from a variable itself make
            TensorFlow copy it whole each time that it is read from then on, as `ServedQueryTower` does.
        factors: Of the item-item model, if there is one.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        features: Sequence[Encoding],
        model: Model,
        cardinalities: Mapping[str, int],
        item_ids: tf_keras.layers.Embedding | None,
        dense_history: bool,
        factors: Factors | None,
        seed: int,
    ) -> None:
        super().__init__(name="query_tower")
        self.features = tuple(features)
        self.layout = VectorLayout.of(model, 0 if factors is None else factors.rank)
        self.dense_history = dense_history
        self.is_exported = False
        self.history = history_of(features)
        self.age = history_age_of(features)
        self._item_ids = item_ids
        self._normalize = model.normalize
        self._gap = model.inactivity_gap
        self._has_lift = model.popularity_lift
        self._width = learned_width(model.dimension, model.normalize)
        others = [f for f in features if not f.of_history]
        self.terms = FeatureTerms(others, self._width, cardinalities, seed)
        self.residual = Residual(model.query_layers, self._width, seed)
        self.constant = self.add_weight(name="constant", shape=[self._width], initializer="zeros")
        self.encoder: HistoryEncoder | None = None
        if self.history is not None:
            self.cold_start = self.add_weight(
                name="cold_start", shape=[self._width], initializer="zeros", trainable=False
            )
        if self.history is not None and model.history_encoder == "transformer":
            self.encoder = HistoryEncoder(self._width, model, self.history.max_length, seed + 7)
        elif self.history is not None:
            self.history_scale = self.add_weight(
                name="history_scale", shape=[], initializer=tf_keras.initializers.Constant(_HISTORY_SCALE)
            )
        self._item_item = None if factors is None else fixed(factors.history, "item_item_history")
        start = asdict(BlendWeights.default(model, self.age is not None))
        self._blend = {name: fixed(value, f"blend_{name}") for name, value in start.items()}

    @property
    def blend_variables(self) -> list[tf.Variable]:
        """Where the blend weights are kept."""
        return list(self._blend.values())

    @property
    def weights_in_use(self) -> tuple[str, ...]:
        """Names of the blend weights that have an effect on this tower, whatever their values."""
        has_history, has_item_item = self.history is not None, self._item_item is not None
        effect = {
            "lift": self._has_lift,
            "cold_start_lift": self._has_lift and has_history,
            "recency": has_history and self.encoder is None,
            "item_item_recency": has_item_item,
            "item_item": has_item_item,
        }
        return tuple(name for name, has_effect in effect.items() if has_effect)

    @property
    def blend(self) -> BlendWeights:
        """The weights that `call` uses, and that are exported."""
        # What was chosen as 0.2 is 0.2, although a variable has it in float32.
        return BlendWeights(**{name: round(float(value.numpy()), 6) for name, value in self._blend.items()})

    @blend.setter
    def blend(self, weights: BlendWeights) -> None:
        for field in fields(weights):
            self._blend[field.name].assign(getattr(weights, field.name))

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[B, D] query vectors of transformed query features."""
        weights = self._blend
        parts = [self.learned(inputs, weights["recency"])]
        if self._item_item is not None:
            parts.append(weights["item_item"] * self.item_item(inputs, weights["item_item_recency"]))
        lift = self.lift(inputs, weights["lift"], weights["cold_start_lift"])
        parts.append(lift)
        if self.layout.discount.size:
            parts.append(tf.ones_like(lift))
        return tf.concat(parts, axis=1)

    def learned(
        self,
        inputs: Mapping[str, tf.Tensor],
        recency: tf.Tensor | float,
        dropout: float = 0.0,
        seed: tf.Tensor | None = None,
        closeness: tf.Tensor | None = None,
        share: Share = WHOLE,
        places: Places | None = None,
    ) -> tf.Tensor:
        """The learned part, [b, dimension].

        Args:
            inputs: Transformed query features, [B, ...].
            recency: See `BlendWeights`; the less of it, the longer somebody has been inactive.
            dropout: Probability with which a feature of a row, but for the history, is hidden.
            seed: [2], for the dropout.
            closeness: [B, H] factors of the history's weights.
            share: The rows b that are asked for.
            places: Where the rows' histories are places of sequences, which the encoder reads at once.
        """
        rows = tf.shape(next(iter(inputs.values())))[0]
        vectors = self.constant + self.terms(inputs, rows, dropout, seed, share)
        if self.history is not None:
            history = share.cut(tf.cast(inputs[self.history.column], tf.int32))
            vectors += tf.cast(_is_empty(history), tf.float32) * self.cold_start
        if self.encoder is not None:
            if places is None:
                vectors += self.encoder(history, self.item_table)
            else:
                at_places = self.encoder.at_places(places, self.item_table, None if seed is None else seed + 3)
                vectors += share.cut(at_places)
        elif self.history is not None:
            weights = self._weights_of_mean(inputs, recency, closeness, share)
            vectors += self.history_scale * self._sum(self.item_table, history, weights)
        return finish(self.residual(vectors), None if self._normalize else tf.ones([share.size(rows), 1]))

    def item_item(self, inputs: Mapping[str, tf.Tensor], recency: tf.Tensor | float) -> tf.Tensor:
        """The item-item part before its weight, [B, R]; `recency` as in `BlendWeights`."""
        assert self._item_item is not None and self.history is not None
        history = tf.cast(inputs[self.history.column], tf.int32)
        return self._sum(self.factors, history, _by_rank(history, recency))

    def lift(
        self, inputs: Mapping[str, tf.Tensor], weight: tf.Tensor | float, cold_start_weight: tf.Tensor | float
    ) -> tf.Tensor:
        """[B, 1]: what meets the candidates' recent popularity lift."""
        lift = tf.fill([tf.shape(next(iter(inputs.values())))[0], 1], weight)
        if self.age is not None:
            lift *= self.inactivity(inputs)
        if self.history is not None:
            lift = tf.where(_is_empty(inputs[self.history.column]), cold_start_weight, lift)
        return lift

    def inactivity(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[B, 1] from 0, in-session, to 1, inactive for long: age / (age + `model.inactivity_gap`)."""
        assert self.age is not None
        age = inputs[self.age.column][:, tf.newaxis]
        return age / (age + self._gap)

    def summands(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What a query's vector is the sum of: [B, D] vectors by name, of transformed query features.

        The learned part is `constant`, `cold_start`, the history (by its column) and each other feature that has a term
        (by its column); or it is `learned`, whole, where layers bend it. `bias` meets the candidate's own. The other
        names are those of `VectorLayout`. A length to which `model.normalize` brings the sum divides each summand.
        """
        layout, weights = self.layout, self._blend
        if self.residual.is_identity:
            terms = self._terms_of_learned(inputs)
            if self._normalize:
                length = tf.norm(tf.add_n(list(terms.values())), axis=1, keepdims=True)
                terms = {name: tf.math.divide_no_nan(term, length) for name, term in terms.items()}
        else:
            terms = {"learned": self.learned(inputs, weights["recency"])[:, : self._width]}
        parts = {name: _placed(term, 0, layout.width) for name, term in terms.items()}
        lift = self.lift(inputs, weights["lift"], weights["cold_start_lift"])
        if not self._normalize:
            parts["bias"] = _placed(tf.ones_like(lift), self._width, layout.width)
        if self._item_item is not None:
            item_item = weights["item_item"] * self.item_item(inputs, weights["item_item_recency"])
            parts["item_item"] = _placed(item_item, layout.item_item.start, layout.width)
        parts["lift"] = _placed(lift, layout.lift.start, layout.width)
        if layout.discount.size:
            parts["discount"] = _placed(tf.ones_like(lift), layout.discount.start, layout.width)
        return parts

    def summands_of_history(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[B, H, D] by place of a history: what the summands of the history and of the item-item part are the sum of.

        Only where `is_sum_of_items`.
        """
        assert self.history is not None and self.is_sum_of_items
        history, blend = tf.cast(inputs[self.history.column], tf.int32), self._blend
        weights = self.history_scale * self._weights_of_mean(inputs, blend["recency"])
        if self._normalize:
            length = tf.norm(tf.add_n(list(self._terms_of_learned(inputs).values())), axis=1, keepdims=True)
            weights = tf.math.divide_no_nan(weights, length)
        of_places = weights[:, :, tf.newaxis] * tf.gather(self.item_table, history)
        places = _placed(of_places, 0, self.layout.width)
        if self._item_item is not None:
            weights = blend["item_item"] * _by_rank(history, blend["item_item_recency"])
            of_places = weights[:, :, tf.newaxis] * tf.gather(self.factors, history)
            places += _placed(of_places, self.layout.item_item.start, self.layout.width)
        return places

    @property
    def is_sum_of_features(self) -> bool:
        """Whether each query feature adds a summand of its own: no layers bend what they add up to."""
        return self.residual.is_identity

    @property
    def is_sum_of_items(self) -> bool:
        """Whether each item of a history adds a summand of its own."""
        return self.is_sum_of_features and self.encoder is None

    @property
    def item_table(self) -> tf.Tensor:
        """[V, width] embeddings of the items."""
        assert self._item_ids is not None
        return self._item_ids.embeddings.read_value() if self.is_exported else self._item_ids.embeddings

    @property
    def factors(self) -> tf.Tensor | None:
        """[V, R]: what the items of a history add to the item-item part; None without such a part."""
        if self._item_item is None:
            return None
        return self._item_item.read_value() if self.is_exported else self._item_item

    def _terms_of_learned(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """[B, width] each: what is added up before `finish`, under the weights that serve."""
        rows = tf.shape(next(iter(inputs.values())))[0]
        terms = {"constant": tf.tile(self.constant[tf.newaxis], [rows, 1]), **self.terms.each(inputs)}
        if self.history is None:
            return terms
        history, table = tf.cast(inputs[self.history.column], tf.int32), self.item_table
        terms["cold_start"] = tf.cast(_is_empty(history), tf.float32) * self.cold_start
        if self.encoder is not None:
            return terms | {self.history.column: self.encoder(history, table)}
        weights = self._weights_of_mean(inputs, self._blend["recency"])
        return terms | {self.history.column: self.history_scale * self._sum(table, history, weights)}

    def _weights_of_mean(
        self,
        inputs: Mapping[str, tf.Tensor],
        recency: tf.Tensor | float,
        closeness: tf.Tensor | None = None,
        share: Share = WHOLE,
    ) -> tf.Tensor:
        """[b, H] weights of a history's items in their mean; arguments as `learned` has them."""
        assert self.history is not None
        history = share.cut(tf.cast(inputs[self.history.column], tf.int32))
        if self.age is not None and not _is_zero(recency):
            recency = recency * (1.0 - share.cut(self.inactivity(inputs)))
        weights = _by_rank(history, recency) * (1.0 if closeness is None else share.cut(closeness))
        return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))

    def _sum(self, table: tf.Tensor, history: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Σ weights · rows of a table, [B, width]; weights [B, H] are 0 at padding."""
        if self.dense_history:
            # Row 0 gets the padding's weights, which are 0: cut off, its gradient would be a copy of the whole table.
            return tf.matmul(many_hot(history + 1, weights, tf.shape(table)[0]), table)
        return total_of_ids(history, functools.partial(tf.gather, table), weights)


def _is_empty(history: tf.Tensor) -> tf.Tensor:
    """[B, 1] bool, for histories [B, H]."""
    return tf.reduce_all(history == 0, axis=1, keepdims=True)


def _placed(vectors: tf.Tensor, start: int, width: int) -> tf.Tensor:
    """[..., n] → [..., width]: zeros but for the dimensions from `start` on."""
    around = [[0, 0]] * (vectors.shape.rank - 1)
    return tf.pad(vectors, [*around, [start, width - start - int(vectors.shape[-1])]])


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
