"""The section `evaluation`: what the Evaluator measures and refuses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from modules.settings.base import MANY, Answers, Boundaries, ColumnName, Distinct, Settings, Share


class Slice(Settings):
    """One way to break the metrics down."""

    column: ColumnName
    """A column of users or interactions, or `activity`: the number of the user's training interactions."""
    boundaries: Boundaries | None = None
    """Turns a number into ranges, named like `18-24`."""

    @model_validator(mode="after")
    def _activity_has_boundaries(self) -> Slice:
        if self.column == "activity" and not self.boundaries:
            raise ValueError("the slice by activity needs boundaries")
        return self


class Evaluation(Settings):
    """What the Evaluator measures (modules/evaluation.py) and refuses (modules/gates.py)."""

    k: Distinct[Answers] = Field((10, 50, 100), min_length=1, max_length=100)
    history: Literal["train", "rolling"] = "train"
    """train: one query per user, whose history is what the splits before have of the user. rolling: one query per
    interaction, whose history is everything before it. Early stopping asks its queries in the same way."""
    slices: tuple[Slice, ...] = ()
    floors: dict[str, Share] = Field(default_factory=dict)
    """Metric name → least value that ships, for instance `ndcg@10: 0.05`."""
    beat_popularity: bool = True
    """Refuse a model whose NDCG at the smallest k is not above that of the most popular items."""
    max_regression: dict[str, Share] = Field(default_factory=lambda data: {f"ndcg@{min(data.get('k') or (10,))}": 0.1})
    """Metric name → share that a model may lose against the last pushed one, relative."""
    confidence: float | None = Field(None, ge=0.5, le=0.9999)
    """None: the gates above judge the figures as they are. A share such as 0.95: they judge intervals that hold the
    true figure so often. A model must then beat the most popular items by more than chance, and it is refused for a
    floor or a regression only where it is worse by more than chance. Figures are shown with their interval in both
    cases, at 0.95 where nothing is said here."""
    min_queries: int = Field(30, ge=2, le=MANY)
    """With `confidence`, fewer eval queries than these decide nothing: the model is refused as not judged. A slice that
    has fewer is shown as having too few queries, always."""

    @field_validator("slices")
    @classmethod
    def _each_column_once(cls, slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
        columns = [each.column for each in slices]
        twice = next((column for column in columns if columns.count(column) > 1), None)
        if twice is not None:
            raise ValueError(f"column {twice!r} is there twice; remove one")
        return slices


def metric_names(k: tuple[int, ...]) -> list[str]:
    """The metrics that the Evaluator computes, and that can have floors (modules/evaluation.py has the formulas)."""
    per_k = ("recall", "precision", "ndcg", "hit_rate", "recall_with_seen", "precision_with_seen",
             "coverage", "popular_share", "popular_ndcg", "popular_recall")  # fmt: skip
    return ["mrr", *(f"{name}@{at}" for at in sorted(k) for name in per_k)]
