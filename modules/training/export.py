"""Writes the fitted towers as the embedding model, preprocessing inside, with its contract beside it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from modules.data.examples import LABEL
from modules.encodings.items import frequency
from modules.preprocessing import Preprocessor
from modules.servable import embedding
from modules.servable.contract import CANDIDATE_EMBEDDING, QUERY_EMBEDDING
from modules.towers.two_tower import TwoTower
from modules.training.dataset import Specification
from modules.training.warm_start import fitted_variables


def export(model: TwoTower, specification: Specification, tft_output: tft.TFTransformOutput, directory: str) -> None:
    """Writes the embedding model with two signatures.

    - `query_embedding`: the query's columns → `embedding` [B, D] float32
    - `candidate_embedding`: the candidate's columns and the item id → `embedding` [B, D] float32 and `popularity` [B]
      float32, the item's interactions in training
    """
    # A few requests are cheaper gathered than as rows of the whole vocabulary.
    model.query_tower.dense_history = False
    features, columns = specification.features, specification.columns
    query = Preprocessor(tft_output, features.query)
    candidate = Preprocessor(tft_output, features.candidate, columns.item)
    module = tf.Module()
    module.query_preprocessor, module.candidate_preprocessor = query, candidate
    module.query_tower, module.candidate_tower = model.query_tower, model.candidate_tower
    module.popularity = tf.Variable(np.append(np.float32(0), frequency(tft_output)), trainable=False)

    def query_embedding(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": model.query_tower(query(requests))}

    def candidate_embedding(**requests: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = candidate(requests)
        popularity = tf.gather(module.popularity, encoded[LABEL])
        return {"embedding": model.candidate_tower(encoded), "popularity": popularity}

    signatures = {
        QUERY_EMBEDDING: tf.function(query_embedding, autograph=False).get_concrete_function(**query.signature()),
        CANDIDATE_EMBEDDING: tf.function(candidate_embedding, autograph=False).get_concrete_function(
            **candidate.signature()
        ),
    }
    fitted = fitted_variables(features, columns, model)
    embedding.save(module, signatures, directory, features, model.layout, fitted)
