"""The two towers and their training loss: a query vector, a candidate vector, and nothing but their inner product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from modules.cold_start import fit_cold_start_query
from modules.encodings.features import Columns, Features
from modules.item_item import Factors
from modules.settings import Model, Training
from modules.towers.candidate import CandidateTower
from modules.towers.history_encoder import Places
from modules.towers.layout import VectorLayout
from modules.towers.losses import InBatchSoftmax, SampledSoftmax, draw_targets, masked_softmax_loss
from modules.towers.query import QueryTower
from modules.towers.share import WHOLE, Share
from modules.towers.terms import encoded_keys, has_item_table, learned_width

# Above this many items a history is gathered item by item; below, it is one row of a [B, V] matrix, multiplied with the
# embedding table, which is several times faster than the scattered gradient of a gather.
_DENSE_HISTORY_ITEMS = 20_000
# Tables of as many rows are updated by row where a step touches few of them: with 10,000 items and 256 dimensions a
# step takes 24 ms so, and 50 ms where they are updated whole.
ROWS_OF_LARGE = 10_000
# Items, at most, that the cold-start query is fitted to, the likeliest ones: others are not among its answers.
_LIKELY_ITEMS = 20_000


def asks_all_places(features: Features, model: Model) -> bool:
    """Whether a training row is a place of a sequence whose places are encoded at once."""
    return features.history is not None and model.history_encoder == "transformer"


class Batch(NamedTuple):
    """What a training step takes, as the input pipeline cuts it (training/dataset.py)."""

    query: Mapping[str, tf.Tensor]
    """Transformed query features [B, ...] by encoded key; of the history what is visible, [B, S]."""
    window: tf.Tensor
    """[B, S] int32 item ids: what the user interacted with up to a place, newest first (towers/masking.py)."""
    targets: tf.Tensor
    """[B, S] float32 weights of the hidden items, 0 for the others."""
    closeness: tf.Tensor
    """[B, S] float32 factors of the weights of the visible items."""
    weight: tf.Tensor
    """[B] float32 weights of the losses."""
    seed: tf.Tensor
    """[2] int32, of what is drawn in the step itself."""
    share: Share = WHOLE
    """The rows whose losses are asked for."""
    places: Places | None = None
    """Where the rows' histories are places of sequences, which the history's encoder reads at once."""


class TwoTower(tfrs.Model):
    """Query tower, candidate tower and the loss that fits them.

    A vector has up to three parts, and the inner product adds their scores: the part learned by gradient descent, the
    item-item model (modules/item_item.py), and one dimension for the recent popularity lift. Only the first is in the
    loss; how much the others count is chosen on validation queries (`BlendWeights`).

    Args:
        features: What each tower reads.
        columns: Names of the user, item and timestamp columns.
        model: Sizes and dropout.
        training: Negatives and temperature.
        cardinalities: Rows of the embedding table of each feature that has ids, by column.
        item_rows: Rows of the item table: 1 + V + out-of-vocabulary buckets.
        catalogue: Transformed candidate features of every vocabulary item, [V + 1, ...] by label; row 0 is unused.
        is_candidate: [V + 1] bool, which of them can be an answer.
        frequency: [V + 1] training interactions by label.
        factors: Of the item-item model, if there is one.
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
        factors: Factors | None = None,
        seed: int = 0,
    ) -> None:
        # Names are given throughout: Keras would number them on within a process, and gradients of shared variables are
        # summed in the order of names, so that a second fit would differ in the last digit.
        super().__init__(name="two_tower")
        items = len(is_candidate) - 1
        self._feature_dropout = model.query_feature_dropout
        self._temperature = training.temperature
        self._history = features.history
        self.negatives = training.negatives_of(items, asks_all_places(features, model))
        """`training.negatives` as it is for this catalogue."""
        item_ids = None
        if has_item_table((*features.query, *features.candidate), columns):
            item_ids = tf_keras.layers.Embedding(
                item_rows,
                learned_width(model.dimension, model.normalize),
                embeddings_initializer=tf_keras.initializers.RandomNormal(stddev=0.01, seed=seed),
                name="item_ids",
            )
            item_ids.build(None)
        dense = items <= _DENSE_HISTORY_ITEMS and self.negatives == "catalogue"
        self.query_tower = QueryTower(features.query, model, cardinalities, item_ids, dense, factors, seed + 1)
        self.candidate_tower = CandidateTower(
            features.candidate, columns, model, cardinalities, item_ids, frequency, factors, seed + 2
        )
        self._catalogue = {key: tf.constant(values) for key, values in catalogue.items()}
        self._is_candidate = tf.constant(is_candidate)
        self._in_batch = InBatchSoftmax(frequency, training.temperature)
        self._sampled = SampledSoftmax(
            frequency, is_candidate, training.sampled_negatives, training.sampled_targets, training.temperature
        )
        # Every variable exists from here on, so that a checkpoint can be restored before the first step.
        self.candidate_vectors(tf.constant([0]))
        self.query_vectors({k: tf.zeros([1, *e.shape], e.dtype) for k, e in encoded_keys(features.query).items()})

    @property
    def layout(self) -> VectorLayout:
        """Which dimensions of both vectors mean what."""
        return self.query_tower.layout

    @property
    def tables_by_row(self) -> list[tf.Variable]:
        """Large tables of which a training step reads only the rows of its batch."""
        tables = self.query_tower.terms.tables
        if self.negatives != "catalogue":
            tables += self.candidate_tower.terms.tables + self.candidate_tower.item_tables
        return [table for table in tables if table.shape[0] >= ROWS_OF_LARGE]

    def candidate_vectors(self, labels: tf.Tensor) -> tf.Tensor:
        """Vectors of vocabulary items by label, [N] → [N, D]."""
        return self.candidate_tower(self._encoded(labels))

    def learned_candidates(self, labels: tf.Tensor) -> tf.Tensor:
        """The learned part of the same, [N] → [N, dimension]."""
        return self.candidate_tower.learned(self._encoded(labels))

    def new_item_vectors(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors of items out of vocabulary by their transformed features [N, ...], [N, D]."""
        rows = tf.shape(next(iter(features.values())))[0]
        return self.candidate_tower(dict(features) | {"label": tf.zeros([rows], tf.int32)})

    def _encoded(self, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {key: tf.gather(values, labels) for key, values in self._catalogue.items()} | {"label": labels}

    def query_vectors(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors of transformed queries under the blend weights that serve, [B, D]."""
        return self.query_tower(inputs)

    def fit_cold_start_query(self, queries: Mapping[str, np.ndarray], share: np.ndarray) -> None:
        """Fits the vector that stands where a query has no history: items become as likely in answers as `share` says.

        Args:
            queries: Transformed query features [Q, ...] of some users; a history among them is not looked at.
            share: [V + 1] how likely items are, by label, up to a factor.
        """
        assert self._history is not None
        share = np.where(self._is_candidate, share, 0.0)
        likely = np.argsort(-share, kind="stable")[:_LIKELY_ITEMS]
        labels = np.sort(likely[share[likely] > 0])
        keys = encoded_keys(self.query_tower.features)
        inputs = {key: tf.constant(queries[key]) for key in keys if key != self._history.column}
        history = keys[self._history.column]
        # Where a query is its history alone, one stands for all.
        rows = len(next(iter(queries.values()))) if queries else 1
        inputs[self._history.column] = tf.zeros([rows, *history.shape], history.dtype)
        fit_cold_start_query(
            self.query_tower.cold_start,
            lambda: self.query_tower.learned(inputs, 0.0),
            self.learned_candidates(tf.constant(labels, tf.int32)),
            share[labels],
            self._temperature,
        )

    def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
        """Softmax cross-entropy of what the windows hide, averaged over the batch by weight.

        The query sees what is visible of its window, and the rest of the window counts neither as a target nor as a
        negative.

        Args:
            inputs: A batch.
            training: Whether features are dropped.

        Returns:
            Scalar loss; of a share its part of it, so that the parts of all shares add up to the loss of the batch.
        """
        queries = self.query_tower.learned(
            inputs.query, 0.0, self._feature_dropout, inputs.seed + 7 if training else None, inputs.closeness,
            inputs.share, inputs.places,
        )  # fmt: skip
        losses = {
            "catalogue": self._catalogue_losses,
            "sampled": self._sampled_losses,
            "in_batch": self._in_batch_losses,
        }
        of_rows = losses[self.negatives](queries, inputs)
        own = tf.reduce_sum(of_rows * inputs.share.cut(inputs.weight))
        return tf.math.divide_no_nan(own, tf.reduce_sum(inputs.weight))

    def _catalogue_losses(self, queries: tf.Tensor, batch: Batch) -> tf.Tensor:
        candidates = self.learned_candidates(tf.range(1, int(self._is_candidate.shape[0])))
        logits = tf.matmul(queries, candidates, transpose_b=True) / self._temperature
        window, targets = batch.share.cut(batch.window), batch.share.cut(batch.targets)
        return masked_softmax_loss(logits, window, targets, self._is_candidate)

    def _sampled_losses(self, queries: tf.Tensor, batch: Batch) -> tf.Tensor:
        return self._sampled(
            queries, self.learned_candidates, batch.window, batch.targets, batch.seed + 13, batch.share
        )

    def _in_batch_losses(self, queries: tf.Tensor, batch: Batch) -> tf.Tensor:
        # What is out of vocabulary has no label, and no target is other than a candidate.
        window = tf.where(batch.window < tf.size(self._is_candidate), batch.window, 0)
        can_be = tf.gather(self._is_candidate, window)
        positives = draw_targets(window, tf.where(can_be, batch.targets, 0.0), batch.seed + 13)
        positives, window = batch.share.own_first(positives), batch.share.cut(window)
        losses = self._in_batch(queries, self.learned_candidates(positives), positives, window)
        positives = positives[: tf.size(losses)]
        return losses * tf.cast(tf.gather(self._is_candidate, positives), tf.float32)
