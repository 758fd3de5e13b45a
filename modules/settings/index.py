"""The section `index`: the retrieval index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modules.settings.base import Answers, Seed, Settings


class Index(Settings):
    """The retrieval index (modules/retrieval.py, components/scann_index_builder)."""

    layer: Literal["stock", "scann", "brute_force"] = "stock"
    """`stock` and `brute_force` run on the unmodified tensorflow/serving image, `scann` needs one with its ops."""
    strategy: Literal["auto", "exact", "quantized", "tree"] = "auto"
    """auto is ScaNN's own rule: exact below 20,000 items, quantised scoring to 100,000, a partition tree above."""
    recall_target: float = Field(0.95, gt=0, le=1)
    """Share of the exact top k that the index must find, on real queries."""
    recall_k: Answers = 10
    """By default `training.metric_k`: as many as the model is chosen for. Of a hundred answers, an index for ten may
    leave out many."""
    partitions: int | None = Field(None, ge=1, le=10_000_000)
    """Number of leaves; by default the faster of the square root of the catalogue's size and four times that."""
    spherical: bool | None = None
    """Whether a partition holds vectors of one direction, whatever their length, instead of near ones; by default the
    faster of the two."""
    partitions_to_search: int | None = Field(None, ge=1, le=10_000_000)
    """By default, as `reorder`, from the fastest setting that reaches the recall target on validation queries."""
    reorder: int | None = Field(None, ge=1, le=10_000_000)
    """Candidates of the approximate pass that are scored again exactly. The stock layer's tree scores exactly at once:
    the members of the best cells, until there are so many, and of those that are nearly as good."""
    dimensions_per_block: int = Field(2, ge=1, le=16_384)
    """Dimensions that share one code of the asymmetric hash."""
    seed: Seed = 42
