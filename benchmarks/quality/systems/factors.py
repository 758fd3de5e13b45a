"""Matrix factorisations by their own libraries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from benchmarks.quality.systems.base import Data, Queries, Score, Settings


class Als:
    """Weighted matrix factorisation (Hu, Koren and Volinsky, ICDM 2008); the query's factors come from its history."""

    space = tuple({"factors": f, "regularization": r, "alpha": a, "iterations": 15}
                  for a, f, r in product((2.0, 8.0), (24, 40, 64), (5.0, 20.0, 50.0)))  # fmt: skip
    patience = 1

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        from implicit.als import AlternatingLeastSquares

        model = AlternatingLeastSquares(**settings, use_gpu=False, random_state=seed, num_threads=1)
        model.fit(data.matrix, show_progress=False)

        def score(queries: Queries) -> np.ndarray:
            factors = model.recalculate_user(np.arange(len(queries.user)), queries.weights(len(data.items)))
            return factors @ model.item_factors.T

        yield settings, score


class Bpr:
    """Bayesian personalised ranking (Rendle et al., UAI 2009)."""

    space = tuple({"factors": f, "learning_rate": lr, "regularization": r}
                  for f, lr, r in product((64, 128), (0.01, 0.03), (0.01, 0.03)))  # fmt: skip
    patience = 2

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        from implicit.bpr import BayesianPersonalizedRanking

        given = {key: value for key, value in settings.items() if key != "iterations"}
        for iterations in [settings["iterations"]] if "iterations" in settings else (50, 100, 200, 400):
            # The library cannot go on with a fit.
            model = BayesianPersonalizedRanking(
                **given, iterations=iterations, use_gpu=False, random_state=seed, num_threads=1
            )
            model.fit(data.matrix, show_progress=False)
            yield {**given, "iterations": iterations}, by_user(data, model.user_factors, model.item_factors.T)


class LightFm:
    """Factors by the WARP loss (Weston, Bengio and Usunier, IJCAI 2011), ids only."""

    space = tuple({"no_components": d, "learning_rate": lr} for lr, d in product((0.03, 0.05), (96, 48)))
    patience = 3

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        from lightfm import LightFM

        given = {key: value for key, value in settings.items() if key != "epochs"}
        model = LightFM(**given, loss="warp", random_state=seed)
        points = [settings["epochs"]] if "epochs" in settings else range(5, 61, 5)
        done = 0
        for epochs in points:
            # One thread: with more, a seed does not give the same model twice.
            model.fit_partial(data.matrix, epochs=epochs - done, num_threads=1)
            done = epochs
            items = np.vstack([model.item_embeddings.T, model.item_biases])
            users = np.hstack([model.user_embeddings, np.ones((len(data.users), 1), np.float32)])
            yield {**given, "epochs": epochs}, by_user(data, users, items)


def by_user(data: Data, users: np.ndarray, items: np.ndarray) -> Score:
    """Scores = users [U, D] times items [D, I]; who is not in train gets the most popular items."""
    users, items = np.array(users), np.array(items)

    def score(queries: Queries) -> np.ndarray:
        return np.where((queries.user >= 0)[:, None], users[queries.user] @ items, data.popularity)

    return score
