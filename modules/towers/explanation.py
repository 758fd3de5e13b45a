"""What a score is made of: its parts, and the items of the history that count the most in it.

A score is an inner product, and a query's vector is a sum (`QueryTower.summands`): what each summand scores adds up to
the score. Where layers or a transformer stand between a value and the vector, the value has no summand of its own. Then
it is left out, and told is by how much the score falls (leave-one-out, also called occlusion).
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from modules.encodings.history import History
from modules.towers.query import QueryTower
from modules.towers.terms import history_of

REASONS = 5
"""Items of the history that are named for each score."""
# Of a history that is no sum of its items, the newest ones are left out one by one: each is one more query.
_LEFT_OUT = 50

Inputs = Mapping[str, tf.Tensor]


def explain(
    tower: QueryTower, inputs: Inputs, history: tf.Tensor | None, candidates: tf.Tensor
) -> dict[str, tf.Tensor]:
    """What the scores of B queries with n candidates each are made of.

    Args:
        tower: Of the queries.
        inputs: Transformed query features, [B, ...].
        history: [B, H] ids of the items that the tower reads, as strings, newest first, padded with ""; None where
            it reads no history.
        candidates: [B, n, D] vectors.

    Returns:
        `part` [B, P] names, `part_exact` [B, P] bool and `part_score` [B, n, P]: those that are exact add up to the
        score; one that is not is what the score loses without this query feature. `reason_item_id` [B, n, R] and
        `reason_score` [B, n, R]: the items of the history that add the most, best first, padded with "" and −inf; an
        item that is there several times counts as one. `reason_exact` [B] bool: whether the scores of all items of the
        history add up to the parts of the history and of the item-item model, or say what the score loses without the
        item (of these the newest 50 are tried).
    """
    summands = tower.summands(inputs)
    vectors, names, exact = tf.stack(list(summands.values()), axis=1), list(summands), [True] * len(summands)
    rows = tf.shape(candidates)[0]
    if history is None:
        history = tf.fill([rows, 0], "")

    def of_query(row: tuple[Inputs, tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        features, items, of_parts, its_candidates = row
        one = {key: values[tf.newaxis] for key, values in features.items()}
        without, item_ids, of_items = _of_values(tower, one, items[items != ""])
        of_parts = tf.concat([of_parts, without], axis=0)
        scores = tf.matmul(its_candidates, of_items, transpose_b=True)
        return tf.matmul(its_candidates, of_parts, transpose_b=True), *_best(scores, item_ids)

    if not tower.is_sum_of_features:
        left_out = _left_out(tower)
        names, exact = names + left_out, exact + [False] * len(left_out)
    # One query after the other: a long history takes megabytes.
    part_score, reason_score, reason_item_id = tf.map_fn(
        of_query,
        (dict(inputs), history, vectors, candidates),
        fn_output_signature=(
            tf.TensorSpec([None, len(names)], tf.float32),
            tf.TensorSpec([None, REASONS], tf.float32),
            tf.TensorSpec([None, REASONS], tf.string),
        ),
        parallel_iterations=1,
    )
    return {
        "part": tf.tile(tf.constant([names]), [rows, 1]),
        "part_exact": tf.tile(tf.constant([exact]), [rows, 1]),
        "part_score": part_score,
        "reason_item_id": reason_item_id,
        "reason_score": reason_score,
        "reason_exact": tf.fill([rows], history_of(tower.features) is None or tower.is_sum_of_items),
    }


def _of_values(tower: QueryTower, one: Inputs, items: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What the values of one query [1, ...] add to its vector.

    Args:
        tower: Of the queries.
        one: The query.
        items: [L] of its history, newest first.

    Returns:
        [F, D] for the features of `_left_out`, [U] items, each once, and [U, D] for them.
    """
    feature = history_of(tower.features)
    item_ids, of_place = tf.unique(items)
    if tower.is_sum_of_items:
        width = tower.layout.width
        none = tf.zeros([0, width])
        if feature is None:
            return none, item_ids, none
        places = tower.summands_of_history(one)[0, : tf.size(items)]
        return none, item_ids, tf.math.unsorted_segment_sum(places, of_place, tf.size(item_ids))
    columns = [] if tower.is_sum_of_features else _left_out(tower)
    queries = [one, *(_without_feature(tower, one, column) for column in columns)]
    if feature is not None:
        item_ids = item_ids[:_LEFT_OUT]
        queries.append(_without_items(one, feature, of_place, tf.size(item_ids)))
    vectors = tower({key: tf.concat([query[key] for query in queries], axis=0) for key in one})
    lost = vectors[:1] - vectors[1:]
    return lost[: len(columns)], item_ids, lost[len(columns) :]


def _left_out(tower: QueryTower) -> list[str]:
    """Columns of the features that are left out one by one, where they are no summands."""
    return [feature.column for feature in tower.features if not isinstance(feature, History)]


def _without_feature(tower: QueryTower, one: Inputs, column: str) -> Inputs:
    """The query [1, ...] where a feature is missing: whatever the encoding, that is 0."""
    (keys,) = (feature.keys for feature in tower.features if feature.column == column)
    return {key: tf.zeros_like(values) if key in keys else values for key, values in one.items()}


def _without_items(one: Inputs, feature: History, of_place: tf.Tensor, count: tf.Tensor) -> Inputs:
    """[count, ...]: the query once without each of its first items, the others as close as if it had never been.

    Args:
        one: The query, [1, ...].
        feature: The history.
        of_place: [L] number of the item at each place.
        count: How many of the items.
    """
    queries = {key: tf.repeat(values, count, axis=0) for key, values in one.items()}
    places = tf.size(of_place)
    kept = of_place[tf.newaxis] != tf.range(count)[:, tf.newaxis]
    ids = tf.ragged.boolean_mask(queries[feature.column][:, :places], kept)
    return queries | {feature.column: ids.to_tensor(shape=[None, feature.max_length])}


def _best(scores: tf.Tensor, item_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The items [U] with the highest of the scores [n, U], padded to [n, REASONS]."""
    missing = tf.maximum(REASONS - tf.size(item_ids), 0)
    scores = tf.pad(scores, [[0, 0], [0, missing]], constant_values=float("-inf"))
    scores, columns = tf.math.top_k(scores, REASONS)
    return scores, tf.gather(tf.pad(item_ids, [[0, missing]], constant_values=""), columns)
