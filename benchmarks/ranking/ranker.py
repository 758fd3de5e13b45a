"""The ranking model: trees of LightGBM that begin with the retrieval's scores and learn what to change in each list.

How many trees it has is chosen within the rows that it is trained on, by users whom a fold's model has not seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import lightgbm as lgb
import numpy as np
import pandas as pd

FOLDS = 3
_PATIENCE = 20
# LightGBM's loss takes 2^label − γ for how relevant a candidate is, γ random in [0, 1] (Bruch, "An alternative cross
# entropy loss for learning-to-rank", WWW 2021). With labels 0 and 1 all the candidates that were not taken outweigh
# the one that was; with 0 and 12 this is the softmax cross entropy.
_RELEVANT = 12
_SETTINGS = {
    "objective": "rank_xendcg",
    "metric": "ndcg",
    "eval_at": [10],
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_data_in_leaf": 200,
    "lambda_l2": 10.0,
    "feature_fraction": 0.5,
    "max_bin": 63,
    # More would wait for each other longer than they work, on tables of this size.
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class Ranker:
    """A model of some queries.

    Args:
        rows: The hand-off's candidates, a query's rows together: `user`, `query`, `score`, `label`, `weight`.
        features: [N, F].
        seed: Of the model.
        rounds: Trees, at most.
    """

    def __init__(self, rows: pd.DataFrame, features: pd.DataFrame, seed: int = 1, rounds: int = 150) -> None:
        # A query without a positive has no pair to learn from.
        told = (rows.groupby("query", sort=False)["label"].transform("max") > 0).to_numpy()
        rows, features = rows[told], features[told]
        settings = _SETTINGS | {"seed": seed}
        data = lgb.Dataset(
            features,
            _RELEVANT * rows["label"].to_numpy(),
            weight=rows["weight"].to_numpy(),
            group=rows.groupby("query", sort=False).size().to_numpy(),
            init_score=rows["score"].to_numpy(float),
            free_raw_data=False,
        )
        searched = lgb.cv(
            settings, data, rounds, folds=_inner(rows["user"].tolist()),
            callbacks=[lgb.early_stopping(_PATIENCE, verbose=False)],
        )  # fmt: skip
        of_rounds = np.asarray(searched["valid ndcg@10-mean"])
        self._booster = lgb.train(settings, data, int(np.argmax(of_rounds)) + 1)

    def scores(self, rows: pd.DataFrame, features: pd.DataFrame) -> np.ndarray:
        """[N] of other queries' candidates: the retrieval's score and what the trees add to it."""
        added = self._booster.predict(features, raw_score=True)
        return rows["score"].to_numpy(float) + np.asarray(added)

    def importance(self) -> pd.Series:
        """Each feature's share of the gain of all splits, the largest first."""
        gain = pd.Series(self._booster.feature_importance("gain"), self._booster.feature_name())
        return (gain / max(gain.sum(), 1e-9)).sort_values(ascending=False)


def _inner(users: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    folds = np.array([zlib.crc32(f"inner/{user}".encode()) % FOLDS for user in users])
    for fold in range(FOLDS):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
