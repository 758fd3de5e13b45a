"""The signature `explain`: what the scores of items are made of, and the items of the history that speak for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from modules.retrieval.top_k import NO_ROW, TopK
from modules.servable.contract import (
    CANDIDATES,
    EXPLAIN,
    EXPLAIN_EMBEDDING,
    ITEM_ID,
    QUERY_EMBEDDING,
    REASON_PREFIX,
    SCORE,
)
from modules.servable.embedding import Embedding

Function = Callable[..., dict[str, tf.Tensor]]


def functions(
    embedding: Embedding,
    index: TopK,
    rows: Callable[[tf.Tensor], tf.Tensor],
    answer: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
) -> Mapping[str, tuple[Function, dict[str, tf.TensorSpec]]]:
    """The signatures that explain, with what they take; none where the embedding model cannot.

    Args:
        embedding: The two towers.
        index: With the candidates' vectors.
        rows: Item ids → their rows.
        answer: Scores and rows [...] → the outputs of an answer, as all signatures have them.
    """
    if EXPLAIN_EMBEDDING not in embedding.signatures:
        return {}

    def explain(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        asked = rows(requests.pop(EXPLAIN))
        candidates = index.vectors(tf.maximum(asked, 0))
        explained = dict(embedding.signatures[EXPLAIN_EMBEDDING](**requests, **{CANDIDATES: candidates}))
        is_there = asked != NO_ROW
        scores = tf.linalg.matvec(candidates, embedding.query(**requests))
        # An item that is not in the catalogue has no score, and nothing that it is made of.
        explained["part_score"] = tf.where(is_there[..., tf.newaxis], explained["part_score"], 0.0)
        reason_ids, reason_scores = (explained.pop(REASON_PREFIX + name) for name in (ITEM_ID, SCORE))
        reason_ids = tf.where(is_there[..., tf.newaxis], reason_ids, "")
        # The history's items go by the ids of the request: some may have left the catalogue.
        reasons = answer(tf.where(reason_ids == "", float("-inf"), reason_scores), rows(reason_ids)) | {
            ITEM_ID: reason_ids
        }
        return {
            **answer(tf.where(is_there, scores, float("-inf")), asked),
            **explained,
            **{REASON_PREFIX + name: values for name, values in reasons.items()},
        }

    asked = tf.TensorSpec([None, None], tf.string, name=EXPLAIN)
    return {
        EXPLAIN: (explain, {**embedding.inputs(QUERY_EMBEDDING), EXPLAIN: asked}),
        EXPLAIN_EMBEDDING: (embedding.signatures[EXPLAIN_EMBEDDING], embedding.inputs(EXPLAIN_EMBEDDING)),
    }
