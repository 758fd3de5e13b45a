"""TensorFlow Recommenders' basic retrieval tutorial: embeddings of ids, 32 wide, in-batch softmax, Adagrad 0.1."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.quality.systems.base import Data, Queries, Score, Settings

_BATCH = 8192


class Tutorial:
    """As it is printed: three epochs."""

    space: Sequence[Settings] = ({"epochs": 3},)
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        import tensorflow as tf
        import tensorflow_recommenders as tfrs
        import tf_keras

        tf_keras.utils.set_random_seed(seed)

        class Model(tfrs.Model):
            def __init__(self) -> None:
                super().__init__()
                # Row 0 of the users is for those that train does not know, as StringLookup would have it.
                self.query = tf_keras.layers.Embedding(len(data.users) + 1, 32)
                self.candidate = tf_keras.layers.Embedding(len(data.items) + 1, 32)
                self.task = tfrs.tasks.Retrieval()

            def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
                return self.task(self.query(features["user"]), self.candidate(features["item"]))

        model = Model()
        model.compile(optimizer=tf_keras.optimizers.Adagrad(0.1))
        rows = tf.data.Dataset.from_tensor_slices({"user": data.user + 1, "item": data.item})
        batches = rows.shuffle(len(data.user), seed=seed, reshuffle_each_iteration=True).batch(_BATCH)
        only = settings.get("epochs")
        for epoch in range(1, (only or 60) + 1):
            model.fit(batches, epochs=1, verbose=0)
            if only in (None, epoch):
                users, items = model.query.get_weights()[0], model.candidate.get_weights()[0][: len(data.items)]
                yield {"epochs": epoch}, _score(users, items)


class Best(Tutorial):
    """As many epochs as the validation part says."""

    space = ({},)
    patience = 8


def _score(users: np.ndarray, items: np.ndarray) -> Score:
    def score(queries: Queries) -> np.ndarray:
        return users[queries.user + 1] @ items.T

    return score
