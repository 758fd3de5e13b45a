"""Item-item models: a history times a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import scipy.sparse as sp

from benchmarks.quality.systems.base import Data, Queries, Score, Settings


class Ease:
    """EASE in closed form (Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019)."""

    space: tuple[Settings, ...] = tuple({"lambda": at} for at in (50, 100, 200, 300, 500, 800, 1200, 2000))
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        yield settings, by_history(ease(data.matrix, settings["lambda"]), settings.get("recency", 0.0))


class RecencyEase(Ease):
    """The same matrix, asked with a history whose newer items weigh more."""

    space = tuple({"lambda": at, "recency": r} for at, r in product((100, 300, 800), (0.25, 0.5, 0.75, 1.0, 1.25)))


class ItemKnn:
    """Nearest neighbours of items by BM25-weighted co-occurrence."""

    space = tuple({"neighbours": k, "k1": k1, "b": b}
                  for k, k1, b in product((100, 200, 400, 800), (1.2, 100.0), (0.5, 0.8)))  # fmt: skip
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        from implicit.nearest_neighbours import BM25Recommender

        model = BM25Recommender(K=settings["neighbours"], K1=settings["k1"], B=settings["b"], num_threads=1)
        model.fit(data.matrix, show_progress=False)
        yield settings, by_history(model.similarity)


class ContentKnn:
    """Cosine between an item's TF-IDF vector and the mean of the history's."""

    space = tuple({"recency": r, "min_items": n} for r, n in product((0.0, 0.5, 1.0), (1, 2, 5)))
    """`min_items`: tokens of fewer items are left out."""
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        vectors = tf_idf(data.content, settings["min_items"])

        def score(queries: Queries) -> np.ndarray:
            profile = queries.weights(len(data.items), settings["recency"]) @ vectors
            # A row's length changes no ranking of that row.
            return (profile @ vectors.T).toarray()

        yield settings, score


def ease(matrix: sp.csr_matrix, regularization: float) -> np.ndarray:
    """B [I, I] that minimises ‖X − X B‖² + λ ‖B‖² with a zero diagonal: B = −P / diag(P), P = (Xᵀ X + λ I)⁻¹."""
    gram = (matrix.T @ matrix).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularization
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def by_history(weights: np.ndarray | sp.csr_matrix, recency: float = 0.0) -> Score:
    """Scores = the history's weights [Q, I] times an item-item matrix [I, I]."""

    def score(queries: Queries) -> np.ndarray:
        scores = queries.weights(weights.shape[0], recency) @ weights
        return scores.toarray() if sp.issparse(scores) else np.asarray(scores)

    return score


def tf_idf(content: object, min_items: int) -> sp.csr_matrix:
    """[items, tokens], rows of length 1 (or 0 for an item without tokens)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=list, min_df=min_items, sublinear_tf=True).fit_transform(content)
