"""SASRec (Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018) as RecTools has it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.quality.metrics import DEPTH
from benchmarks.quality.systems.base import Data, Queries, Score, Settings

_POINTS = (1, 2, 3, *range(5, 121, 5))
"""Epochs after which a fit is judged: where the order of a history says little, the first ones are the best."""


class SASRec:
    """Trained with the softmax over the whole catalogue."""

    space = tuple(
        {"n_factors": d, "n_blocks": b, "n_heads": 1, "dropout_rate": p, "lr": lr, "session_max_len": n}
        for d, b, p, lr, n in (
            (64, 2, 0.3, 1e-3, 100),
            (128, 2, 0.5, 1e-3, 100),
            (64, 1, 0.3, 2e-3, 50),
            (64, 2, 0.5, 1e-3, 200),
            (128, 1, 0.5, 1e-3, 50),
            (256, 2, 0.5, 5e-4, 100),
        )
    )
    patience = 3

    def fit(self, data: Data, settings: Settings, seed: int) -> Iterator[tuple[Settings, Score]]:
        import torch
        from pytorch_lightning import seed_everything
        from rectools.models import SASRecModel

        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        # Two systems are measured side by side, and threads that wait for each other would hold both up.
        torch.set_num_threads(1)
        seed_everything(seed)
        given = {key: value for key, value in settings.items() if key != "epochs"}
        model = SASRecModel(**given, loss="softmax", batch_size=32, deterministic=True, lightning_module_type=_module())
        dataset = _dataset(data.user, data.item)
        points = [settings["epochs"]] if "epochs" in settings else _POINTS
        done = 0
        for epochs in points:
            model.fit_partial(dataset, min_epochs=epochs - done, max_epochs=epochs - done)
            done = epochs
            yield {**given, "epochs": epochs}, _score(model, data)


def _module() -> type:
    """RecTools' training with the same loss over the places that hold an item, not the padding: half the time."""
    from rectools.models.nn.transformers.lightning import TransformerLightningModule
    from torch.nn.functional import cross_entropy

    class Module(TransformerLightningModule):
        @classmethod
        def _calc_softmax_loss(cls, logits, y, w):  # type: ignore[no-untyped-def]
            return cross_entropy(logits[y != 0], y[y != 0])

    return Module


def _dataset(user: np.ndarray, item: np.ndarray) -> object:
    """Rows in time order, as RecTools wants them: their times are their places."""
    from rectools.dataset import Dataset

    times = pd.to_datetime(np.arange(len(user)), unit="s")
    return Dataset.construct(pd.DataFrame({"user_id": user, "item_id": item, "weight": 1.0, "datetime": times}))


def _score(model: object, data: Data) -> Score:
    known = np.unique(data.item)

    def score(queries: Queries) -> np.ndarray:
        # What the model does not rank (people without a history too) is ranked by popularity, below what it does.
        scores = np.broadcast_to(data.popularity - 1e9, (len(queries.user), len(data.items))).copy()
        histories = [np.asarray(h)[np.isin(h, known)] for h in queries.history]
        asked = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        if len(asked):
            ranked = model.recommend(  # type: ignore[attr-defined]
                users=np.unique(asked), dataset=_dataset(asked, np.concatenate(histories)), k=DEPTH, filter_viewed=True
            )
            scores[ranked["user_id"], ranked["item_id"]] = ranked["score"]
        return scores

    return score
