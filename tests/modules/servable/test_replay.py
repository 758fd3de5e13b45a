"""The replay of warm-up requests finds what is wrong with an answer; one broken index for each fault."""

import pytest
import tensorflow as tf
from known_towers import SERVING, save_servable

from modules.retrieval.brute_force import BruteForce
from modules.retrieval.top_k import NO_ROW
from modules.servable import replay

pytestmark = pytest.mark.slow


def test_a_servable_that_keeps_its_contract_has_no_failures(known_world, known_embedding, tmp_path):
    result = replay.replay(str(save_servable(known_world, known_embedding, tmp_path / "1", SERVING)))
    assert result["failures"] == []
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]


class _Forgetful(BruteForce):
    """Returns excluded rows."""

    def search(self, queries, k, excluded, allowed=None):
        return super().search(queries, k, tf.fill(tf.shape(excluded), NO_ROW), allowed)


class _Repeating(BruteForce):
    """Returns the best row again in the last place."""

    def search(self, queries, k, excluded, allowed=None):
        scores, rows = super().search(queries, k, excluded, allowed)
        return scores, tf.concat([rows[:, :-1], rows[:, :1]], axis=1)


class _Reversed(BruteForce):
    """Returns the worst first."""

    def search(self, queries, k, excluded, allowed=None):
        scores, rows = super().search(queries, k, excluded, allowed)
        return scores[:, ::-1], rows[:, ::-1]


class _Lazy(BruteForce):
    """Returns fewer than exist."""

    def search(self, queries, k, excluded, allowed=None):
        scores, rows = super().search(queries, k, excluded, allowed)
        keep = tf.range(k) < k - 3
        return tf.where(keep, scores, -float("inf")), tf.where(keep, rows, NO_ROW)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (_Forgetful, "comes back although the request excludes it"),
        (_Repeating, "item_id has 1 items twice"),
        (_Reversed, "scores are not best first"),
        (_Lazy, "17 items come back, 20 exist"),
    ],
)
def test_wrong_answers_are_refused_in_words(layer, words, known_world, known_embedding, tmp_path):
    path = save_servable(known_world, known_embedding, tmp_path / "1", SERVING, layer(known_world.catalogue().vectors))
    failures = replay.replay(str(path))["failures"]
    assert any(words in failure for failure in failures), failures
