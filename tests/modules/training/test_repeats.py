"""Fitting where coming back is right: the model recommends again what is in the history, and not just anything."""

from __future__ import annotations

from dataclasses import replace

import checkerboard
import numpy as np
import pytest
import tensorflow as tf
from checkerboard import HISTORY_ONLY, changed, queries, rounds, specification

from modules.training.loop import fit

SPEC = replace(specification(HISTORY_ONLY), repeats=True)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("learned", {"model.item_item_rank": 0, "training.objective": "next_item"}),
        ("item-item", {"training.epochs": 1, "training.learning_rate": 1e-6}),
        pytest.param("masked", {"model.item_item_rank": 0}, marks=pytest.mark.slow),
        pytest.param(
            "transformer",
            {"model.item_item_rank": 0, "model.history_encoder": "transformer", "model.encoder_width": 16,
             "model.encoder_blocks": 1, "model.encoder_dropout": 0.1, "training.epochs": 10},
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_each_part_of_the_model_recommends_what_somebody_comes_back_to(part, changes):
    of = rounds()
    spec = changed(SPEC, refit=False).with_settings(changes)
    asked = queries(spec, of)
    # Three of 41 items would be one in fourteen by chance. Everybody asks, and most ask for what they had before.
    assert len(asked) == len(of) and not asked.seen.any()
    result = fit(spec, of, asked)
    scores = result.model.query_vectors({key: tf.constant(values) for key, values in asked.features.items()}).numpy()
    scores = scores @ result.model.candidate_vectors(tf.constant(spec.catalogue.labels, tf.int32)).numpy().T
    top = spec.catalogue.labels[np.argsort(-scores, axis=1)[:, :3]]
    found = np.mean([np.isin(own, history).sum() / len(set(history) - {0})
                     for own, history in zip(top, asked.features["history"], strict=True)])  # fmt: skip
    assert found > 0.5, part
    # Without repeats hardly anybody has something to ask for that is new.
    new = checkerboard.queries(replace(spec, repeats=False), of)
    assert len(new) < len(asked) / 5
