"""The section `model`: the two towers."""

from __future__ import annotations

from pydantic import Field

from modules.settings.base import Settings, Width


class Model(Settings):
    """The two towers (modules/two_tower.py)."""

    dimension: int = Field(256, ge=2, le=16_384)
    """Width of query and candidate vectors, and of the item id's embedding (instead of its feature's `dimension`)."""
    query_layers: tuple[Width, ...] = Field((), max_length=32)
    """Hidden sizes of the dense layers on top of the query tower; empty for a linear tower."""
    candidate_layers: tuple[Width, ...] = Field((), max_length=32)
    """Hidden sizes of the dense layers on top of the candidate tower."""
    normalize: bool = False
    """L2-normalise both vectors (cosine instead of inner product); then a temperature below 1 is needed."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Share of a history that is hidden in each training step; where a whole history is completed, it is the target."""
    id_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of the other query features that are hidden in each training step, so that unknown users work."""
    linear_rank: int = Field(256, ge=0, le=16_384)
    """Dimensions of the closed-form item-to-item part that follow the learned ones (modules/linear.py); 0 leaves it
    out. It needs a history."""
    linear_items: int = Field(5_000, ge=2, le=50_000)
    """The closed-form part covers this many of the most frequent items: its cost grows with their cube."""
    trend: bool = True
    """Lets validation choose how much counts what is taken up more now than in the long run."""
    diversity: float = Field(0.0, ge=0, le=1)
    """Trades accuracy for less popular items: this times the logarithm of an item's frequency is taken off its score. 0
    ranks by what is likely, 1 takes the prior of popularity off whole."""
