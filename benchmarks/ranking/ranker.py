"""The ranking model: LightGBM's LambdaRank, which begins with the order of the retrieval and learns what to change.

Every query is judged by a model that has seen no query of its user: users are dealt into folds, and each fold's queries
are ranked by a model of the other folds. How many trees those have is chosen within them, in the same way.
Burges, "From RankNet to LambdaRank to LambdaMART: An overview", 2010.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import lightgbm as lgb
import numpy as np
import pandas as pd

FOLDS = 5
_PATIENCE = 40
_SETTINGS = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "learning_rate": 0.03,
    "num_leaves": 8,
    "min_data_in_leaf": 100,
    "lambda_l2": 10.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "bagging_by_query": True,
    "lambdarank_truncation_level": 20,
    # More would wait for each other longer than they work, on tables of this size.
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def fold_of(users: Sequence[str], folds: int = FOLDS) -> np.ndarray:
    """[N] the fold of each user, by a hash of the id."""
    return np.array([zlib.crc32(f"fold/{user}".encode()) % folds for user in users])


def held_out_scores(rows: pd.DataFrame, features: pd.DataFrame, seed: int = 1, rounds: int = 400) -> np.ndarray:
    """[N] scores of all rows, each by a model that knows no query of the row's user.

    Args:
        rows: The hand-off's candidates, a query's rows together: `user`, `query`, `score`, `label`,
            `weight`, which is NaN where a row is judged but not trained on.
        features: [N, F].
        seed: Of the models.
        rounds: Trees of a model, at most.
    """
    folds = fold_of(rows["user"].tolist())
    scores = np.full(len(rows), np.nan)
    for fold in range(FOLDS):
        held_out = folds == fold
        learned = ~held_out & rows["weight"].notna().to_numpy()
        booster = fit(rows[learned], features[learned], seed, rounds)
        scores[held_out] = rows.loc[held_out, "score"].to_numpy() + booster.predict(features[held_out], raw_score=True)
    return scores


def fit(rows: pd.DataFrame, features: pd.DataFrame, seed: int, rounds: int) -> lgb.Booster:
    """A model of some queries; what it predicts is added to the retrieval's score."""
    settings = _SETTINGS | {"seed": seed}
    searched = lgb.cv(
        settings, _data(rows, features), rounds, folds=_inner(rows),
        callbacks=[lgb.early_stopping(_PATIENCE, verbose=False)],
    )  # fmt: skip
    best = int(np.argmax(np.asarray(searched["valid ndcg@10-mean"]))) + 1
    return lgb.train(settings, _data(rows, features), best)


def _data(rows: pd.DataFrame, features: pd.DataFrame) -> lgb.Dataset:
    return lgb.Dataset(
        features,
        rows["label"].to_numpy(),
        weight=rows["weight"].to_numpy(),
        group=rows.groupby("query", sort=False).size().to_numpy(),
        init_score=rows["score"].to_numpy(float),
        free_raw_data=False,
    )


def _inner(rows: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    folds = np.array([zlib.crc32(f"inner/{user}".encode()) % FOLDS for user in rows["user"]])
    for fold in range(FOLDS):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
