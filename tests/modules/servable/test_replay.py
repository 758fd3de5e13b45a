"""The replay of warm-up requests finds what is wrong with an answer; one broken index for each fault."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from known_towers import SERVING, save_servable

from modules.retrieval.brute_force import BruteForce
from modules.retrieval.top_k import NO_ROW
from modules.servable import replay
from modules.servable.contract import SERVABLE_PATH
from modules.settings import Serving

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


def test_limits_are_looked_after(known_world, known_embedding, tmp_path):
    limited = Serving.model_validate(SERVING.model_dump() | {"max_per_value": {"genres": 2}})
    path = save_servable(known_world, known_embedding, tmp_path / "1", limited)
    assert replay.replay(str(path))["failures"] == []
    written = json.loads((path / SERVABLE_PATH).read_text())

    def failures_where_it_claims(most: int) -> list[str]:
        (path / SERVABLE_PATH).write_text(json.dumps(written | {"max_per_value": {"genres": most}}))
        return replay.replay(str(path))["failures"]

    assert "serving_default: 2 items with genres 'Comedy' come back, 1 at most may" in failures_where_it_claims(1)
    short = r"serving_default: \d items come back, 20 exist"
    assert any(re.fullmatch(short, failure) for failure in failures_where_it_claims(4))


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


def _explanation():
    """A request and a right answer of `explain`: two items, one of them not in the catalogue."""
    inputs = {"user_id": np.array([b"u1"], object), "history": np.array([[b"i3", b""]], object),
              "explain": np.array([[b"i7", b"nothing"]], object)}  # fmt: skip
    outputs = {
        "item_id": np.array([[b"i7", b""]], object),
        "title": np.array([[b"Title 7", b""]], object),
        "score": np.array([[3.0, -np.inf]], np.float32),
        "part": np.array([[b"history", b"bias", b"age"]], object),
        "part_exact": np.array([[True, True, False]]),
        "part_score": np.array([[[2.0, 1.0, 0.5], [0.0, 0.0, 0.0]]], np.float32),
        "reason_item_id": np.array([[[b"i3", b""], [b"", b""]]], object),
        "reason_title": np.array([[[b"Title 3", b""], [b"", b""]]], object),
        "reason_score": np.array([[[2.0, -np.inf], [-np.inf, -np.inf]]], np.float32),
        "reason_exact": np.array([True]),
    }
    return inputs, outputs


@pytest.mark.parametrize(
    ("output", "value", "words"),
    [
        ("score", np.array([[3.0, -np.inf]], np.float32), None),
        ("score", np.array([[3.1, -np.inf]], np.float32), "do not add up"),
        ("part_exact", np.array([[True, True, True]]), "do not add up"),
        ("part_score", np.full((1, 2, 3), np.nan, np.float32), "do not add up"),
        ("reason_item_id", np.array([[[b"i4", b""], [b"", b""]]], object), "no item of the history"),
        ("part", np.array([[b"history", b"bias"]], object), "part_exact is bool [1, 3], expected bool [1, 2]"),
        ("reason_exact", np.array([[True]]), "reason_exact is bool [1, 1]"),
    ],
)
def test_an_explanation_that_is_none_is_refused_in_words(output, value, words):
    contract = {"k": 20, "return_columns": ["title"], "history_column": "history"}
    inputs, outputs = _explanation()
    outputs[output] = value
    found = replay.faults("explain", inputs, outputs, contract, {b"i3", b"i7"})
    assert (found == []) if words is None else any(words in fault for fault in found), found
