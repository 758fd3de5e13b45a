"""The settings of what modules and components do, as pydantic models that import nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from modules.features import Settings


class Model(Settings):
    """The two towers (modules/two_tower.py)."""

    dimension: int = Field(256, ge=2)
    """Width of query and candidate vectors, and of the item id's embedding (instead of its feature's `dimension`)."""
    query_layers: tuple[int, ...] = ()
    """Hidden sizes of the dense layers on top of the query tower; empty for a linear tower."""
    candidate_layers: tuple[int, ...] = ()
    """Hidden sizes of the dense layers on top of the candidate tower."""
    normalize: bool = False
    """L2-normalise both vectors (cosine instead of inner product); then a temperature below 1 is needed."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Share of a history that is hidden in each training step; where a whole history is completed, it is the target."""
    id_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of the other query features that are hidden in each training step, so that unknown users work."""
    item_id_dropout: float = Field(0.02, ge=0, lt=1)
    """Share of the items whose id is hidden in each training step, so that unknown items work by their content."""


class Training(Settings):
    """How the towers are fitted (modules/trainer.py)."""

    seed: int = 42
    epochs: int = Field(40, ge=1)
    """At most; early stopping usually ends before."""
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(5.0, ge=0)
    """Decoupled (AdamW), multiplied by the learning rate at each step."""
    completion: float = Field(1.0, ge=0, le=1)
    """Share of training that completes users' whole histories with their items in hiding; the rest predicts each
    interaction's item from the history before it. Without a history feature all of it is the latter."""
    user_exponent: float = Field(0.5, ge=0, le=1)
    """A user with n interactions counts n ** user_exponent: 1 treats interactions alike, 0 users. The smaller, the
    fewer steps an epoch has."""
    negatives: Literal["auto", "catalogue", "in_batch"] = "auto"
    """Softmax over the whole catalogue, or over the batch with logQ correction; auto decides by `catalogue_limit`."""
    catalogue_limit: int = Field(50_000, ge=1)
    """`negatives: auto` takes the whole catalogue up to this many items."""
    temperature: float = Field(1.0, gt=0)
    patience: int = Field(6, ge=1)
    """Epochs without a better validation metric before training stops."""
    refit: bool = True
    """After early stopping has found the number of epochs, fit again on train and validation together."""
    metric_k: int = Field(10, ge=1)
    """Early stopping watches NDCG at this k over the full catalogue, items of the history excluded."""


class Index(Settings):
    """The retrieval index (modules/retrieval.py, components/scann_index_builder)."""

    layer: Literal["stock", "scann", "brute_force"] = "stock"
    """`stock` and `brute_force` run on the unmodified tensorflow/serving image, `scann` needs one with its ops."""
    strategy: Literal["auto", "exact", "quantized", "tree"] = "auto"
    """auto is ScaNN's own rule: exact below 20,000 items, quantised scoring to 100,000, a partition tree above."""
    recall_target: float = Field(0.95, gt=0, le=1)
    """Share of the exact top k that the index must find, on real queries."""
    recall_k: int = Field(10, ge=1)
    partitions: int | None = Field(None, ge=1)
    """Number of leaves; by default the square root of the catalogue's size."""
    partitions_to_search: int | None = Field(None, ge=1)
    """By default the fewest that reach the recall target on validation queries."""
    reorder: int | None = Field(None, ge=1)
    """Candidates rescored exactly, by default as many as the recall target needs."""
    dimensions_per_block: int = Field(2, ge=1)
    """Dimensions that share one code of the asymmetric hash."""
    seed: int = 42


class Serving(Settings):
    """What a request gets back (modules/servable.py)."""

    k: int = Field(100, ge=1)
    """Number of items in an answer."""
    exclude_history: bool = True
    """Never recommend an item of the request's own history."""
    return_columns: tuple[str, ...] = ()
    """Columns of the items table that come back beside each item, for instance its title."""
    filter_columns: tuple[str, ...] = ()
    """String columns of the items table that `recommend_filtered` can require values of."""
    latency_p99_ms: float | None = Field(None, gt=0)
    """The ServableValidator refuses a servable whose single requests take longer; None measures without a limit."""


class Slice(Settings):
    """One way to break the metrics down."""

    column: str
    """A column of users or interactions, or `activity`: the number of the user's training interactions."""
    boundaries: tuple[float, ...] | None = None
    """Turns a number into ranges, named like `18-24`."""

    @model_validator(mode="after")
    def _activity_has_boundaries(self) -> Slice:
        if self.column == "activity" and not self.boundaries:
            raise ValueError("the slice by activity needs boundaries")
        return self


class Evaluation(Settings):
    """What the Evaluator measures and refuses (modules/evaluation.py)."""

    k: tuple[int, ...] = Field((10, 50, 100), min_length=1)
    history: Literal["train", "rolling"] = "train"
    """train: one query per user, its history ends with the training period. rolling: one query per interaction, its
    history holds everything before it."""
    slices: tuple[Slice, ...] = ()
    floors: dict[str, float] = Field(default_factory=dict)
    """Metric name → least value that ships, for instance `ndcg@10: 0.05`."""
    beat_popularity: bool = True
    """Refuse a model whose NDCG at the smallest k is not above that of the most popular items."""
    max_regression: dict[str, float] = Field(default_factory=lambda data: {f"ndcg@{min(data.get('k') or (10,))}": 0.1})
    """Metric name → share that a model may lose against the last pushed one, relative."""


def metric_names(k: tuple[int, ...]) -> list[str]:
    """The metrics that the Evaluator computes, and that can have floors (modules/evaluation.py has the formulas)."""
    per_k = ("recall", "precision", "ndcg", "hit_rate", "recall_with_seen", "precision_with_seen",
             "coverage", "popular_share", "popular_ndcg", "popular_recall")  # fmt: skip
    return ["mrr", *(f"{name}@{at}" for at in sorted(k) for name in per_k)]
