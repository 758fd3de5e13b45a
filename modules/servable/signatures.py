"""The servable as a module: query tower, catalogue and index behind the signatures that clients call.

Rows (positions in the catalogue) follow popularity, the most popular item first.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from modules.encodings.features import Features
from modules.preprocessing import requests_from_examples
from modules.retrieval.top_k import NO_ROW, TopK, best, variable, without
from modules.retrieval.vectors import parts
from modules.servable import catalogue as catalogues
from modules.servable import embedding as embeddings
from modules.servable import explanation, user_snapshot
from modules.servable import warmup as warmups
from modules.servable.catalogue import EmbeddedCatalogue
from modules.servable.contract import (
    CANDIDATE_EMBEDDING,
    EXCLUDE,
    FILTER_PREFIX,
    ITEM_ID,
    ITEM_IDS_FILE,
    QUERY_EMBEDDING,
    RECOMMEND_USER,
    SCORE,
    SERVABLE_PATH,
    ServableContract,
    custom_ops,
)
from modules.servable.embedding import Embedding
from modules.servable.filters import Filter
from modules.servable.known_users import KnownUsers
from modules.servable.lookup import line_numbers
from modules.servable.max_per_value import MaxPerValue
from modules.servable.user_snapshot import UserSnapshot
from modules.settings import Serving

HEAD_SHARE = 0.1
"""Share of the catalogue that counts as the popular head in `evaluate`."""

_FILTER_VALUES_FILE = "filter_values_{}.txt"
_USERS_FILE = "known_user_ids.txt"
# Neighbours are rescored by cosine among this multiple of k.
_SIMILAR_OVERFETCH = 5
# A vector of zeros is like nothing, and has a cosine of 0 with everything.
_NO_LENGTH = 1e-6


class ServableModule(tf.Module):
    """Everything that is served, evaluated and pushed.

    Args:
        embedding: The two towers.
        catalogue: Items in the order of popularity, as the index has them.
        index: Built over `catalogue.vectors`.
        features: Which query columns are in an example, and which is the history.
        serving: What an answer holds.
        evaluation_k: Items in an answer of `evaluate`.
        assets: An existing folder for the tables' files; it must live until the servable has been saved.
        users: What is known of users, rows of histories being those of `catalogue`; None for nothing.
    """

    def __init__(
        self,
        embedding: Embedding,
        catalogue: EmbeddedCatalogue,
        index: TopK,
        features: Features,
        serving: Serving,
        evaluation_k: int,
        assets: str,
        users: UserSnapshot | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.index = index
        self._features = features
        self._serving = serving
        self._evaluation_k = evaluation_k
        self._item_rows = line_numbers(os.path.join(assets, ITEM_IDS_FILE), catalogue.item_ids, default=NO_ROW)
        self._item_ids = _of_rows(catalogue.item_ids)
        self._returned = {column: _of_rows(catalogue.returned[column]) for column in serving.return_columns}
        self._filters = {
            column: Filter(catalogue.filterable[column], os.path.join(assets, _FILTER_VALUES_FILE.format(number)))
            for number, column in enumerate(serving.filter_columns)
        }
        self.users = users
        self._known_users = (
            None if users is None else KnownUsers(users, features, self._item_ids, os.path.join(assets, _USERS_FILE))
        )
        limits = [(self._filters[column].rows, most) for column, most in serving.max_per_value.items()]
        self._limited = MaxPerValue(index, limits) if limits else None
        # The columns of its answers and no others.
        self.catalogue = dataclasses.replace(
            catalogue,
            returned={column: catalogue.returned[column] for column in serving.return_columns},
            filterable={column: catalogue.filterable[column] for column in serving.filter_columns},
        )
        self.size = len(catalogue.item_ids)
        # Popularity, lift and the item-item model's axes say nothing of what makes items alike.
        layout = embedding.contract.layout
        alike = np.zeros(catalogue.vectors.shape[1], np.float32)
        alike[layout.similarity.start : layout.similarity.stop] = 1.0
        self._alike = tf.constant(alike)
        lengths = [np.linalg.norm(part * alike, axis=1) for _, part in parts(catalogue.vectors)]
        self._per_length = variable((1.0 / np.maximum(np.concatenate(lengths), _NO_LENGTH)).astype(np.float32))

    def signatures(self) -> dict[str, Any]:
        """Every signature by name, as traced functions: columnar, batch dimension free, padded with "" and −inf."""
        query = self.embedding.inputs(QUERY_EMBEDDING)
        exclude = {EXCLUDE: tf.TensorSpec([None, None], tf.string, name=EXCLUDE)}
        names = [FILTER_PREFIX + column for column in self._filters]
        filters = {name: tf.TensorSpec([None, None], tf.string, name=name) for name in names}
        functions: dict[str, tuple[Callable[..., dict[str, tf.Tensor]], dict[str, tf.TensorSpec]]] = {
            "serving_default": (self._recommend, query),
            "recommend_excluding": (self._recommend, {**query, **exclude}),
            "recommend_filtered": (self._recommend, {**query, **exclude, **filters}),
            "similar_items": (self._similar_items, {ITEM_ID: tf.TensorSpec([None], tf.string, name=ITEM_ID)}),
            QUERY_EMBEDDING: (self.embedding.signatures[QUERY_EMBEDDING], query),
            CANDIDATE_EMBEDDING: (self.embedding.candidate, self.embedding.inputs(CANDIDATE_EMBEDDING)),
            "evaluate": (self._evaluate, {"examples": tf.TensorSpec([None], tf.string, name="examples")}),
            **explanation.functions(self.embedding, self.index, self.rows, self._answer),
        }
        if self._known_users is not None:
            functions[RECOMMEND_USER] = (self._recommend_user, {**self._known_users.inputs(), **exclude, **filters})
        return {
            # Without AutoGraph, which has nothing to do here and takes most of a trace's time.
            name: tf.function(_with_keywords(function), autograph=False).get_concrete_function(**specs)
            for name, (function, specs) in functions.items()
        }

    def rows(self, item_ids: tf.Tensor) -> tf.Tensor:
        """Rows of item ids, int32 of the same shape; -1 for padding and those out of the catalogue."""
        return tf.cast(self._item_rows.lookup(item_ids), tf.int32)

    def _recommend_user(self, **requests: tf.Tensor) -> dict[str, tf.Tensor]:
        assert self._known_users is not None
        completed, rows = self._known_users.complete(requests)
        history = self._features.history
        seen = None if history is None else tf.concat([rows, self.rows(requests[history.column])], axis=1)
        rules = {n: value for n, value in requests.items() if n == EXCLUDE or n.startswith(FILTER_PREFIX)}
        return self._recommend(seen, **completed, **rules)

    def _recommend(self, seen: tf.Tensor | None = None, /, **requests: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answers requests; `seen` are the rows of the histories, for who knows them already."""
        exclude = requests.pop(EXCLUDE, None)
        filters = {column: requests.pop(FILTER_PREFIX + column, None) for column in self._filters}
        queries = self.embedding.query(**requests)
        kept_out = []
        history = self._features.history
        if history is not None and self._serving.exclude_history:
            kept_out.append(self.rows(requests[history.column]) if seen is None else seen)
        if exclude is not None:
            kept_out.append(self.rows(exclude))
        allowed = None
        for column, wanted in filters.items():
            if wanted is not None:
                has_one = self._filters[column].rows_with(wanted, self.size)
                allowed = has_one if allowed is None else allowed & has_one
        searched = self._limited or self.index
        scores, rows = searched.search(queries, self._serving.k, _side_by_side(kept_out, queries), allowed)
        return self._answer(scores, rows)

    def _similar_items(self, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
        """Neighbours by cosine, among the best by inner product: the latter alone favours popular items."""
        own = self.rows(item_id)[:, tf.newaxis]
        vectors = self.index.vectors(tf.maximum(own[:, 0], 0)) * self._alike
        # Scores are inner products, of which the lengths make the cosine: no neighbour's vector is looked up.
        scores, rows = self.index.search(vectors, min(_SIMILAR_OVERFETCH * self._serving.k, self.size), own)
        cosine = scores * tf.gather(self._per_length, tf.maximum(own, 0))
        cosine *= tf.gather(self._per_length, tf.maximum(rows, 0))
        rows = tf.where(own == NO_ROW, NO_ROW, rows)
        return self._answer(*best(cosine, rows, self._serving.k, own))

    def _evaluate(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Rankings for the Evaluator; items of the example's history count as seen where answers leave them out."""
        requests = requests_from_examples(examples, self._features.query)
        queries = self.embedding.query(**requests)
        batch, k = tf.shape(queries)[0], self._evaluation_k
        history = self._features.history
        seen = tf.zeros([batch, 0], tf.int32)
        if history is not None and self._serving.exclude_history:
            seen = self.rows(requests[history.column])
        # As many as an answer has, then the first of them: a search for fewer looks at less.
        answer = max(k, self._serving.k)
        found = self.index.search_both(queries, answer, seen)
        scores, rows, rows_with_seen = (each[:, :k] for each in found)
        # Rows are in the order of popularity, so the most popular unseen items are the first rows that are not seen.
        width = tf.minimum(k + tf.shape(seen)[1], self.size)
        is_seen = without(tf.zeros([batch, width]), tf.where(seen < width, seen, NO_ROW)) < 0
        unseen = tf.where(~is_seen)
        rows_of = tf.RaggedTensor.from_value_rowids(
            unseen[:, 1], unseen[:, 0], tf.cast(batch, tf.int64), validate=False
        )
        popular = tf.cast(rows_of.to_tensor(NO_ROW, shape=[None, k]), tf.int32)
        head = (rows != NO_ROW) & (rows < int(np.ceil(HEAD_SHARE * self.size)))
        return {
            "classes": self._ids(rows),
            "scores": scores,
            "classes_with_seen": self._ids(rows_with_seen),
            "popular": self._ids(popular),
            "head": tf.cast(head, tf.float32),
            "catalogue_size": tf.fill([batch], float(self.size)),
        }

    def _answer(self, scores: tf.Tensor, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        returned = {column: _at(values, rows) for column, values in self._returned.items()}
        return {ITEM_ID: self._ids(rows), SCORE: scores, **returned}

    def _ids(self, rows: tf.Tensor) -> tf.Tensor:
        return _at(self._item_ids, rows)


def save(
    servable: ServableModule, path: str, contract: ServableContract, warmup: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes a version folder as TF Serving reads it, with the files of its contract.

    Args:
        servable: What to save.
        path: The folder, local or remote.
        contract: What it says of itself; signatures, ops and the places of variables are filled in here.
        warmup: Signature → requests (name → tensor) that TF Serving replays when it loads the version.
    """
    signatures = servable.signatures()
    options = tf.saved_model.SaveOptions(namespace_whitelist=list(servable.index.namespaces))
    tf.saved_model.save(servable, path, signatures=signatures, options=options)
    variables = embeddings.checkpoint_keys(path, "embedding", "fitted")
    contract = contract.model_copy(
        update={
            "embedding": contract.embedding.model_copy(update={"variables": variables}),
            "signatures": {name: tuple(sorted(f.structured_input_signature[1])) for name, f in signatures.items()},
            "ops": custom_ops(path),
            "known_users": len(servable.users or ()),
        }
    )
    catalogues.write(path, servable.catalogue, servable.index.partitions)
    if servable.users is not None:
        user_snapshot.write(path, servable.users)
    warmups.write(path, contract.model, {name: warmup[name] for name in warmup if name in signatures})
    with tf.io.gfile.GFile(os.path.join(path, SERVABLE_PATH), "w") as file:
        file.write(contract.model_dump_json(indent=2))


def _with_keywords(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own for each signature, with the keyword arguments that tf.function names the inputs after."""
    return lambda **inputs: function(**inputs)


def _side_by_side(rows: Sequence[tf.Tensor], queries: tf.Tensor) -> tf.Tensor:
    """Rows [B, ...] of each kind in one tensor; [B, 0] of none."""
    if not rows:
        return tf.zeros([tf.shape(queries)[0], 0], tf.int32)
    return rows[0] if len(rows) == 1 else tf.concat(rows, axis=1)


def _of_rows(values: Sequence[str]) -> tf.Variable:
    """[1 + C] strings: what `NO_ROW` has, then what each row has."""
    return variable(np.array([b"", *(value.encode() for value in values)], object))


def _at(values: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    return tf.gather(values, rows - NO_ROW)
