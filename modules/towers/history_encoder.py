"""`model.history_encoder: transformer`: a history becomes a vector that knows the order of its items.

SASRec (Kang & McAuley, ICDM 2018): blocks of causal self-attention and a feed-forward layer, so that one pass gives the
vector after every place of a sequence and training asks for the next item at all of them. The normalisation comes
before each layer (Xiong et al., ICML 2020). Instead of embeddings of places, each head has a bias for every distance
between two of them (Shaw et al., NAACL 2018): a history needs no beginning, and its window may move.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from modules.settings import Model

_MASKED = -1e9
# Width of the feed-forward layer, in widths of the encoder.
_FEED_FORWARD = 2
# Where the layers of a block begin: near to the identity.
_SMALL = 0.01


class Places(NamedTuple):
    """Places of sequences that are asked at once."""

    history: tf.Tensor
    """[B, S] int32 item ids, newest first, padded with 0 at the end."""
    row: tf.Tensor
    """[N] int32, the sequence of each query."""
    place: tf.Tensor
    """[N] int32: a query's history is what its sequence has from here on."""


class HistoryEncoder(tf_keras.layers.Layer):
    """Histories [B, S], newest first → vectors [B, width]; an empty history has a vector of zeros.

    Args:
        width: Of the vectors and of the items' embeddings.
        model: `encoder_blocks`, `encoder_width`, `encoder_heads` and `encoder_dropout`.
        places: S, at most.
        seed: Of the initial weights.
    """

    def __init__(self, width: int, model: Model, places: int, seed: int) -> None:
        super().__init__(name="history_encoder")
        size = model.encoder_width
        self._dropout = model.encoder_dropout
        self._item_scale = math.sqrt(size)
        self._into = _matrix(self, "into", width, size, seed)
        self._out = _matrix(self, "out", size, width, seed + 1)
        self._scale, self._shift = _constant(self, "scale", [size], 1.0), _constant(self, "shift", [size])
        self._blocks = [
            _Block(number, size, model.encoder_heads, places, seed + 10 * (number + 1))
            for number in range(model.encoder_blocks)
        ]

    def call(self, history: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """[B, width] of whole histories.

        Args:
            history: [B, S] int32 item ids, newest first, padded with 0 at the end.
            items: The table of the items' embeddings.
        """
        history = _trimmed(history)
        encoded = self._encode(history, items, newest=True)[:, 0]
        return encoded * tf.cast(history[:, :1] > 0, tf.float32)

    def at_places(self, places: Places, items: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """[N, width] of the histories from some places on.

        Args:
            places: Which.
            items: The table of the items' embeddings.
            seed: [2] int32 of the dropout; None: nothing is dropped.
        """
        encoded = self._encode(_trimmed(places.history), items, newest=False, seed=seed)
        return tf.gather_nd(encoded, tf.stack([places.row, places.place], axis=1))

    def _encode(self, history: tf.Tensor, items: tf.Tensor, newest: bool, seed: tf.Tensor | None = None) -> tf.Tensor:
        """[B, S, width], or [B, 1, width] of the newest place."""
        present = history > 0
        x = tf.gather(items, history) * tf.cast(present, tf.float32)[:, :, tf.newaxis]
        x = _dropped(self._item_scale * _dense(x, self._into), self._dropout, seed)
        place = tf.range(tf.shape(history)[1])
        distance = place[tf.newaxis] - place[:, tf.newaxis]
        # A place sees itself and what is older; itself also where it is padding, so that there is something to see.
        sees = (distance >= 0) & present[:, tf.newaxis, :] | (distance == 0)
        for number, block in enumerate(self._blocks):
            # Of the last block only what is asked for.
            asked = 1 if newest and number == len(self._blocks) - 1 else tf.shape(history)[1]
            draw = None if seed is None else seed + 100 * (number + 1)
            x = block(x, distance[:asked], sees[:, :asked], self._dropout, draw)
        return _dense(_normalized(x, self._scale, self._shift), self._out)


class _Block(tf_keras.layers.Layer):
    """Attention, then a feed-forward layer; each adds to what it reads."""

    def __init__(self, number: int, size: int, heads: int, places: int, seed: int) -> None:
        super().__init__(name=f"block_{number}")
        self._heads = heads
        wide = _FEED_FORWARD * size
        self._scale, self._shift = _constant(self, "scale", [size], 1.0), _constant(self, "shift", [size])
        self._projection = _matrix(self, "projection", size, 3 * size, seed)
        self._distance = _constant(self, "distance", [heads, places])
        self._together = _matrix(self, "together", size, size, seed + 1, _SMALL)
        self._wide_scale = _constant(self, "wide_scale", [size], 1.0)
        self._wide_shift = _constant(self, "wide_shift", [size])
        self._widen, self._widen_shift = _matrix(self, "widen", size, wide, seed + 2), _constant(self, "widen", [wide])
        self._narrow = _matrix(self, "narrow", wide, size, seed + 3, _SMALL)
        self._narrow_shift = _constant(self, "narrow", [size])

    def call(
        self, x: tf.Tensor, distance: tf.Tensor, sees: tf.Tensor, dropout: float, seed: tf.Tensor | None
    ) -> tf.Tensor:
        """[B, Q, size] of the first Q places.

        Args:
            x: [B, S, size].
            distance: [Q, S] how much older a place is.
            sees: [B, Q, S] bool.
            dropout: Share of the numbers that are dropped.
            seed: [2] int32 of the dropout; None: nothing is dropped.
        """
        rows, places, size = tf.shape(x)[0], tf.shape(x)[1], x.shape[2]
        asked, head = tf.shape(distance)[0], size // self._heads
        draws = [None] * 3 if seed is None else [seed + 10 * n for n in range(3)]
        projected = _dense(_normalized(x, self._scale, self._shift), self._projection)
        projected = tf.reshape(projected, [rows, places, 3, self._heads, head])
        query, key, value = tf.unstack(tf.transpose(projected, [2, 0, 3, 1, 4]))
        logits = tf.matmul(query[:, :, :asked], key, transpose_b=True) / math.sqrt(head)
        logits += tf.gather(self._distance, tf.maximum(distance, 0), axis=1)
        attention = tf.nn.softmax(tf.where(sees[:, tf.newaxis], logits, _MASKED))
        heads = tf.transpose(tf.matmul(_dropped(attention, dropout, draws[0]), value), [0, 2, 1, 3])
        together = _dense(tf.reshape(heads, [rows, asked, size]), self._together)
        x = x[:, :asked] + _dropped(together, dropout, draws[1])
        hidden = _dense(_normalized(x, self._wide_scale, self._wide_shift), self._widen)
        narrow = _dense(tf.nn.gelu(hidden + self._widen_shift), self._narrow) + self._narrow_shift
        return x + _dropped(narrow, dropout, draws[2])


def _matrix(
    layer: tf_keras.layers.Layer, name: str, rows: int, columns: int, seed: int, stddev: float | None = None
) -> tf.Variable:
    initial = tf_keras.initializers.RandomNormal(stddev=stddev or rows**-0.5, seed=seed)
    return layer.add_weight(name=f"{layer.name}_{name}", shape=[rows, columns], initializer=initial)


def _constant(layer: tf_keras.layers.Layer, name: str, shape: list[int], value: float = 0.0) -> tf.Variable:
    # With "constant" in its name weight decay leaves it alone (`NO_DECAY` in training/loop.py).
    initial = tf_keras.initializers.Constant(value)
    return layer.add_weight(name=f"{layer.name}_constant_{name}", shape=shape, initializer=initial)


def _dense(x: tf.Tensor, kernel: tf.Variable) -> tf.Tensor:
    """[B, S, n] times a matrix [n, m]."""
    flat = tf.matmul(tf.reshape(x, [-1, kernel.shape[0]]), kernel)
    shape = tf.shape(x)
    return tf.reshape(flat, [shape[0], shape[1], kernel.shape[1]])


def _normalized(x: tf.Tensor, scale: tf.Variable, shift: tf.Variable) -> tf.Tensor:
    """Layer normalisation (Ba et al. 2016) of the last dimension."""
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, shift, scale, 1e-6)


def _dropped(x: tf.Tensor, share: float, seed: tf.Tensor | None) -> tf.Tensor:
    return tf.nn.experimental.stateless_dropout(x, share, seed) if share and seed is not None else x


def _trimmed(history: tf.Tensor) -> tf.Tensor:
    """[B, S] → [B, longest, at least 1]: there is no work on what is padding everywhere."""
    ends = tf.where(history > 0, tf.range(1, tf.shape(history)[1] + 1), 1)
    return history[:, : tf.maximum(tf.reduce_max(ends), 1)]
