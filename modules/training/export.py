"""Writes the fitted towers as the embedding model, preprocessing inside, with its contract beside it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from modules.data.examples import LABEL
from modules.encodings.history import newest_first
from modules.encodings.items import frequency
from modules.encodings.values import present
from modules.preprocessing import Preprocessor
from modules.servable import embedding
from modules.servable.contract import CANDIDATE_EMBEDDING, CANDIDATES, EXPLAIN_EMBEDDING, QUERY_EMBEDDING
from modules.towers.explanation import explain
from modules.towers.served import ServedQueryTower
from modules.towers.two_tower import TwoTower
from modules.training.dataset import Specification
from modules.training.warm_start import fitted_variables


def export(model: TwoTower, specification: Specification, tft_output: tft.TFTransformOutput, directory: str) -> None:
    """Writes the embedding model with its signatures.

    - `query_embedding`: the query's columns → `embedding` [B, D] float32
    - `explain_embedding`: these and `candidates` [B, n, D] float32 vectors → what their scores are made of
      (`modules/towers/explanation.py`)
    - `candidate_embedding`: the candidate's columns and the item id → `embedding` [B, D] float32 and `popularity` [B]
      float32, the item's interactions in training
    """
    # A few requests are cheaper gathered than as rows of the whole vocabulary.
    model.query_tower.dense_history = False
    model.query_tower.is_exported = model.candidate_tower.is_exported = True
    features, columns = specification.features, specification.columns
    transform = tf.saved_model.load(tft_output.transform_savedmodel_dir)
    query = Preprocessor(transform, features.query)
    candidate = Preprocessor(transform, features.candidate, columns.item)
    encoded_query = tf.function(query.__call__, autograph=False)
    served = ServedQueryTower(model.query_tower) if model.query_tower.encoder is None else None
    module = tf.Module()
    module.query_preprocessor, module.candidate_preprocessor = query, candidate
    # Variables alone: of a Keras layer would be saved, and traced for it, calls that nobody makes.
    module.towers = [*model.query_tower.variables, *model.candidate_tower.variables]
    if served is not None:
        module.served = served.kernel
    module.popularity = tf.Variable(np.append(np.float32(0), frequency(tft_output)), trainable=False)

    def query_embedding(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        if served is None:
            return {"embedding": model.query_tower(encoded_query(requests))}
        return {"embedding": served(*query.flat(requests))}

    def explain_embedding(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        candidates, history = requests.pop(CANDIDATES), None
        if features.history is not None:
            items = tf.RaggedTensor.from_sparse(present(requests[features.history.column]))
            history = newest_first(items, features.history.max_length)
        return explain(model.query_tower, encoded_query(requests), history, candidates)

    def candidate_embedding(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = candidate(requests)
        popularity = tf.gather(module.popularity, encoded[LABEL])
        return {"embedding": model.candidate_tower(encoded), "popularity": popularity}

    candidates = tf.TensorSpec([None, None, model.layout.width], tf.float32, name=CANDIDATES)
    functions = {
        QUERY_EMBEDDING: (query_embedding, query.signature()),
        EXPLAIN_EMBEDDING: (explain_embedding, {**query.signature(), CANDIDATES: candidates}),
        CANDIDATE_EMBEDDING: (candidate_embedding, candidate.signature()),
    }
    signatures = {
        name: tf.function(function, autograph=False).get_concrete_function(**specs)
        for name, (function, specs) in functions.items()
    }
    fitted = fitted_variables(features, columns, model)
    embedding.save(module, signatures, directory, features, model.layout, fitted)
