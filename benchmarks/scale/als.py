"""implicit's ALS on the tables of one size, in the peers' environment.

Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008. A query's factors come from
its history, as in production. Of few settings the best on the validation queries is fitted again on all that is before
the queries of eval.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale.queries import Asked, measure

_FACTORS, _ITERATIONS = 64, 15
_SPACE = tuple(product((2.0, 8.0), (5.0, 50.0)))


def main() -> None:
    """Prints recall and seconds of the folder that is named: train.npz, validation.npz and eval.npz."""
    folder = Path(sys.argv[1])
    with np.load(folder / "train.npz") as arrays:
        users, items, held_out, count = (arrays[key] for key in ("users", "items", "held_out", "count"))
    validation, asked = Asked.load(folder / "validation.npz"), Asked.load(folder / "eval.npz")

    def on_validation(settings: tuple[float, float]) -> float:
        _, score = _fit(users[~held_out], items[~held_out], count, *settings)
        return measure(validation, score).recall

    alpha, ridge = max(_SPACE, key=on_validation)
    seconds, score = _fit(users, items, count, alpha, ridge)
    print(json.dumps({
        **measure(asked, score)._asdict(), "seconds": seconds, "alpha": alpha, "regularization": ridge,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }))  # fmt: skip


def _fit(users: np.ndarray, items: np.ndarray, count: np.ndarray, alpha: float, ridge: float) -> tuple[float, Any]:
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    shape = tuple(count)
    matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape)
    started = time.monotonic()
    model = AlternatingLeastSquares(
        _FACTORS, regularization=ridge, alpha=alpha, iterations=_ITERATIONS, use_gpu=False, random_state=1
    )
    model.fit(matrix, show_progress=False)
    seconds = time.monotonic() - started

    def score(asked: Asked, some: np.ndarray) -> np.ndarray:
        histories = [asked.history_of(query) for query in some]
        rows = np.repeat(np.arange(len(some)), [len(history) for history in histories])
        taken = np.concatenate(histories)
        factors = model.recalculate_user(
            np.arange(len(some)), csr_matrix((np.ones(len(taken), np.float32), (rows, taken)), (len(some), shape[1]))
        )
        return factors @ model.item_factors.T

    return seconds, score


if __name__ == "__main__":
    main()
