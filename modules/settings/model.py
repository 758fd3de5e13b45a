"""The section `model`: the two towers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from modules.settings.base import Distinct, Settings, Width


class Model(Settings):
    """The two towers (modules/towers)."""

    dimension: int = Field(256, ge=2, le=16_384)
    """Width of query and candidate vectors, and of the item id's embedding (instead of its feature's `dimension`)."""
    query_layers: tuple[Width, ...] = Field((), max_length=32)
    """Hidden sizes of the dense layers on top of the query tower; empty for a linear tower."""
    candidate_layers: tuple[Width, ...] = Field((), max_length=32)
    """Hidden sizes of the dense layers on top of the candidate tower."""
    history_encoder: Literal["auto", "mean", "transformer"] = "mean"
    """mean: the history's item embeddings, averaged. transformer: self-attention, for which the order of the items
    counts (towers/history_encoder.py). auto fits both and takes the one that is better on validation."""
    encoder_blocks: int = Field(2, ge=1, le=16)
    """Blocks of the transformer."""
    encoder_width: int = Field(128, ge=2, le=4_096)
    """Width of its blocks."""
    encoder_heads: int = Field(2, ge=1, le=64)
    """Heads of its attention; a divisor of `encoder_width`."""
    encoder_dropout: float = Field(0.5, ge=0, lt=1)
    """Share of its numbers that are dropped in each training step."""
    normalize: bool = False
    """L2-normalise both vectors (cosine instead of inner product); then a temperature below 1 is needed."""
    mask_rate: float = Field(0.3, ge=0, lt=1)
    """Share of a history that is hidden in each training step; under `objective: masked_items` it is the target."""
    query_feature_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of the other query features that are hidden in each training step, so that users without them work."""
    item_item_rank: int = Field(256, ge=0, le=16_384)
    """Dimensions of the low-rank item-item model that follow the learned ones (modules/item_item.py); 0 leaves it out.
    It needs a history."""
    item_item_items: int = Field(5_000, ge=2, le=50_000)
    """The item-item model in closed form covers this many of the most frequent items: its cost grows with their cube.
    Where there are more, validation may choose the spectral one, which covers all."""
    item_item_decay: float = Field(0.85, ge=0, le=1_000)
    """In the item-item model's transitions the n-th item before or behind a place weighs n ** −item_item_decay."""
    item_item_ridges: Distinct[float] = Field((100.0, 300.0, 1000.0), min_length=1, max_length=16)
    """Ridges of the closed form that validation chooses from, rising; without validation the middle one is
    taken."""
    popularity_lift: bool = True
    """Lets validation choose how much counts what is more popular now than in the long run."""
    inactivity_gap: float = Field(86_400.0, gt=0, le=1e10)
    """Seconds of inactivity after which a user counts half as coming back, half as in-session (`history_age`)."""
    diversity: float = Field(0.0, ge=0, le=1)
    """Trades accuracy for less popular items: this times the logarithm of an item's frequency is taken off its score. 0
    ranks by what is likely, 1 takes the prior of popularity off whole."""
    exploration: float = Field(0.0, ge=0, le=20)
    """Trades accuracy for new items: log-odds, times `training.temperature` added to the score of an item without
    training interactions. At 1 they are e times as likely as the model believes (training/calibration.py). It takes no
    part in the fit."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Model:
        if self.encoder_width % self.encoder_heads:
            raise ValueError(
                f"encoder_heads: {self.encoder_heads} does not divide encoder_width, which is {self.encoder_width}"
            )
        return self

    @model_validator(mode="after")
    def _exploration_has_a_bias(self) -> Model:
        if self.exploration and self.normalize:
            raise ValueError(
                "exploration: vectors of length 1 have no bias for it; turn normalize off, or leave it at 0"
            )
        return self
