"""The section `training`: how the towers are fitted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modules.settings.base import Answers, Seed, Settings


class Training(Settings):
    """How the towers are fitted (modules/trainer.py)."""

    seed: Seed = 42
    epochs: int = Field(25, ge=1, le=100_000)
    """At most; early stopping usually ends before."""
    batch_size: int = Field(256, ge=2, le=1_000_000)
    learning_rate: float = Field(1.5e-3, gt=0, le=1_000)
    weight_decay: float = Field(5.0, ge=0, le=1e6)
    """Decoupled (AdamW), multiplied by the learning rate at each step."""
    completion: float = Field(1.0, ge=0, le=1)
    """Share of training that completes users' whole histories with their items in hiding; the rest predicts each
    interaction's item from the history before it. Without a history feature all of it is the latter."""
    locality: float = Field(0.5, ge=0, le=1_000)
    """In completing a history the item d places away from a random one weighs (1 + d) ** −locality, as a target and as
    part of the query; 0 treats the whole history alike."""
    user_exponent: float = Field(0.5, ge=0, le=1)
    """A user with n interactions counts n ** user_exponent: 1 treats interactions alike, 0 users. The smaller, the
    fewer steps an epoch has."""
    negatives: Literal["auto", "catalogue", "in_batch"] = "auto"
    """Softmax over the whole catalogue, or over the batch with logQ correction; auto decides by `catalogue_limit`."""
    catalogue_limit: int = Field(50_000, ge=1, le=10_000_000)
    """`negatives: auto` takes the whole catalogue up to this many items."""
    temperature: float = Field(1.0, ge=1e-6, le=1e6)
    averaging: float = Field(0.98, ge=0, le=0.999_999)
    """Validated and exported is the moving average of the weights over about 1 / (1 − averaging) steps; 0: the last."""
    patience: int = Field(8, ge=1, le=100_000)
    """Epochs without a better validation metric before training stops."""
    warm_start: bool = False
    """Starts from the weights of the last pushed model where there is one: what both know keeps its rows, what is new
    starts as in a first fit."""
    refit: bool = True
    """After early stopping has found the number of epochs, fit again on train and validation together."""
    metric_k: Answers = 10
    """Early stopping watches NDCG at this k over the full catalogue, items of the history excluded."""
