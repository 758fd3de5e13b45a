"""A candidate's vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from modules.cold_start import ContentMap
from modules.encodings.base import Encoding
from modules.encodings.features import Columns
from modules.item_item import Factors
from modules.popularity import log_popularity
from modules.settings import Model
from modules.towers.layout import VectorLayout
from modules.towers.terms import FeatureTerms, Residual, finish, fixed, is_item_id, learned_width

# Items, at most, that the content map is fitted on: its weights are few, and more items would say the same.
_ITEMS_WITH_CONTENT = 20_000


class CandidateTower(tf_keras.layers.Layer):
    """A candidate's vector, laid out by `VectorLayout`.

    The learned part is the item's own embedding, one term for each content feature, and the item's bias as last
    dimension; then the item's row of the item-item factors, and its recent popularity lift.

    A cold-start item, one without training interactions, has none of these. It gets the vector that the content map
    (modules/cold_start.py) gives it: what items with such content have. How likely new items are beside others is
    `new_item_offset`, which is added to the bias that it predicts; with `model.normalize` there is no bias, and so no
    offset.

    Args:
        features: What it reads.
        columns: Names of the user, item and timestamp columns.
        model: Sizes.
        cardinalities: Rows of the embedding table of each feature that has ids, by column.
        item_ids: Embeddings of the items, shared with the query tower; None where nothing reads them.
        frequency: [V + 1] training interactions by label.
        factors: Of the item-item model, if there is one.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        features: Sequence[Encoding],
        columns: Columns,
        model: Model,
        cardinalities: Mapping[str, int],
        item_ids: tf_keras.layers.Embedding | None,
        frequency: np.ndarray,
        factors: Factors | None,
        seed: int,
    ) -> None:
        super().__init__(name="candidate_tower")
        self.layout = VectorLayout.of(model, 0 if factors is None else factors.rank)
        self._normalize = model.normalize
        self.is_exported = False
        width = learned_width(model.dimension, model.normalize)
        self._id = next((f for f in features if is_item_id(f, columns)), None)
        self._item_ids = item_ids
        content = [f for f in features if f is not self._id]
        self.terms = FeatureTerms(content, width, cardinalities, seed)
        self._residual = Residual(model.candidate_layers, width, seed)
        popularity = log_popularity(frequency)
        if not model.normalize and self._id is not None:
            self.bias = self.add_weight(
                name="item_bias", shape=popularity.shape, initializer=tf_keras.initializers.Constant(popularity)
            )
        self._item_item = None if factors is None else fixed(factors.items, "item_item_items")
        self.lift = fixed(np.zeros(len(frequency), np.float32), "lift")
        self._discount = fixed(-model.diversity * popularity, "popularity_discount") if model.diversity else None
        self._has_interactions = tf.Variable(frequency > 0, trainable=False, name="has_interactions")
        self.new_item_offset = fixed(0.0, "new_item_offset")
        # Before the content map is fitted, and in the epochs, a cold-start item is as rare as the rarest.
        rare = np.zeros(self.layout.width, np.float32)
        rare[width : model.dimension] = popularity[0]
        self.content = ContentMap(content, cardinalities, rare)

    @property
    def has_interactions(self) -> np.ndarray:
        """[V + 1] bool by label: False for a cold-start item."""
        return self._has_interactions.numpy()

    @property
    def item_tables(self) -> list[tf.Variable]:
        """What is learned of each item: its embedding, which the query tower shares, and its bias."""
        tables = [] if self._item_ids is None else [self._item_ids.embeddings]
        return [*tables, self.bias] if self._id is not None and not self._normalize else tables

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[B, D] candidate vectors of transformed candidate features and `label` (0 outside of the vocabulary)."""
        label = inputs["label"]
        learned = self.learned(inputs)
        others = [] if self._item_item is None else [tf.gather(self._item_item, label)]
        others.append(tf.gather(self.lift, label)[:, tf.newaxis])
        if self._discount is not None:
            others.append(tf.gather(self._discount, label)[:, tf.newaxis])
        from_content = self.content(inputs)
        learned_of_content = self.layout.learned.of(from_content)
        if self._normalize:
            learned_of_content = tf.math.l2_normalize(learned_of_content, axis=1)
        if self._id is None:
            # Without an id of its own an item is learned by its content in the first place.
            learned_of_content = learned
        new = tf.concat([learned_of_content, from_content[:, self.layout.learned.stop :]], axis=1)
        if not self._normalize:
            new += self.new_item_offset * tf.one_hot(self.layout.learned.stop - 1, self.layout.width)
        has_interactions = tf.gather(self._has_interactions, label)[:, tf.newaxis]
        return tf.where(has_interactions, tf.concat([learned, *others], axis=1), new)

    def learned(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The learned part, [B, dimension]."""
        rows = tf.shape(next(iter(inputs.values())))[0]
        vectors = self.terms(inputs, rows)
        bias = tf.zeros([rows, 1])
        if self._id is not None:
            assert self._item_ids is not None
            ids = tf.cast(inputs[self._id.column], tf.int32)
            # See `QueryTower`.
            table = self._item_ids.embeddings
            rows = tf.gather(table.read_value(), ids) if self.is_exported else self._item_ids(ids)
            vectors += rows * tf.cast(ids > 0, tf.float32)[:, tf.newaxis]
            if not self._normalize:
                bias = tf.gather(self.bias, inputs["label"])[:, tf.newaxis]
        return finish(self._residual(vectors), None if self._normalize else bias)

    def fit_content(self, catalogue: Mapping[str, np.ndarray], is_candidate: np.ndarray, seed: int) -> None:
        """Fits the content map on the vectors, as they are now, of the candidates that have interactions.

        Args:
            catalogue: Transformed candidate features by label, [V + 1, ...].
            is_candidate: [V + 1] bool, which items have a row in it.
            seed: Of the draw of items, where there are more than are needed.
        """
        labels = np.flatnonzero(self.has_interactions & is_candidate)
        if len(labels) > _ITEMS_WITH_CONTENT:
            labels = np.sort(np.random.default_rng(seed).choice(labels, _ITEMS_WITH_CONTENT, replace=False))
        features = {key: values[labels] for key, values in catalogue.items()}
        inputs = {key: tf.constant(values) for key, values in features.items()}
        vectors = self(inputs | {"label": tf.constant(labels, tf.int32)}).numpy()
        # What nobody has interacted with yet has no lift.
        self.layout.lift.of(vectors)[:] = 0.0
        self.content.fit(features, vectors)
