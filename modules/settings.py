"""The settings of what modules and components do, as pydantic models that import nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator

from modules.features import Settings

RENAMED = {
    "model.dropout": "model.mask_rate",
    "model.id_dropout": "model.query_feature_dropout",
    "model.linear_rank": "model.item_item_rank",
    "model.linear_items": "model.item_item_items",
    "model.trend": "model.popularity_lift",
    "training.completion": "training.objective (masked_items, which was 1, or next_item, which was 0)",
}
"""Keys of older configurations → what they are called now, for the message that refuses them."""


class Model(Settings):
    """The two towers (modules/towers)."""

    dimension: int = Field(256, ge=2)
    """Width of query and candidate vectors, and of the item id's embedding (instead of its feature's `dimension`)."""
    query_layers: tuple[int, ...] = ()
    """Hidden sizes of the dense layers on top of the query tower; empty for a linear tower."""
    candidate_layers: tuple[int, ...] = ()
    """Hidden sizes of the dense layers on top of the candidate tower."""
    normalize: bool = False
    """L2-normalise both vectors (cosine instead of inner product); then a temperature below 1 is needed."""
    mask_rate: float = Field(0.3, ge=0, lt=1)
    """Share of a history that is hidden in each training step; under `objective: masked_items` it is the target."""
    query_feature_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of the other query features that are hidden in each training step, so that users without them work."""
    item_item_rank: int = Field(256, ge=0)
    """Dimensions of the low-rank item-item model that follow the learned ones (modules/item_item.py); 0 leaves it out.
    It needs a history."""
    item_item_items: int = Field(5_000, ge=2)
    """The item-item model covers this many of the most frequent items: its cost grows with their cube."""
    item_item_decay: float = Field(0.85, ge=0)
    """In the item-item model's transitions the n-th item before or behind a place weighs n ** −item_item_decay."""
    item_item_ridges: tuple[float, ...] = Field((100.0, 300.0, 1000.0), min_length=1)
    """Ridges of the item-item model that validation chooses from, rising; without validation it is the middle one."""
    popularity_lift: bool = True
    """Lets validation choose how much counts what is more popular now than in the long run."""
    inactivity_gap: float = Field(86_400.0, gt=0)
    """Seconds of inactivity after which a user counts half as coming back, half as in-session (`history_age`)."""
    diversity: float = Field(0.0, ge=0, le=1)
    """Trades accuracy for less popular items: this times the logarithm of an item's frequency is taken off its score. 0
    ranks by what is likely, 1 takes the prior of popularity off whole."""


class Training(Settings):
    """How the towers are fitted (modules/training)."""

    seed: int = 42
    epochs: int = Field(25, ge=1)
    """At most; early stopping usually ends before."""
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(5.0, ge=0)
    """Decoupled (AdamW), multiplied by the learning rate at each step."""
    objective: Literal["masked_items", "next_item"] = "masked_items"
    """masked_items: a random part of a user's whole history (`model.mask_rate`) is to be found from the rest.
    next_item: each interaction's item is to be found from the history before it; so it always is without a history."""
    locality: float = Field(0.5, ge=0)
    """Under masked_items the item d places away from a random one weighs (1 + d) ** −locality, as a target and as part
    of the query; 0 treats the whole history alike."""
    user_exponent: float = Field(0.5, ge=0, le=1)
    """A user with n interactions counts n ** user_exponent: 1 treats interactions alike, 0 users. The smaller, the
    fewer steps an epoch has."""
    recent_windows: tuple[float, ...] = Field((0.2, 0.1, 0.05), min_length=1)
    """Shares of the training period, by interactions, the latest ones, that can be recent for the popularity lift. The
    first is taken unless validation is surely better with another."""
    lift_prior: float = Field(0.2, ge=0)
    """How far the lift of an item is drawn to none, as a share of the recent interactions."""
    negatives: Literal["auto", "catalogue", "in_batch"] = "auto"
    """Softmax over the whole catalogue, or over the batch with logQ correction; auto decides by `catalogue_limit`."""
    catalogue_limit: int = Field(50_000, ge=1)
    """`negatives: auto` takes the whole catalogue up to this many items."""
    temperature: float = Field(1.0, gt=0)
    averaging: float = Field(0.98, ge=0, lt=1)
    """Validated and exported is the moving average of the weights over about 1 / (1 − averaging) steps; 0: the last."""
    patience: int = Field(8, ge=1)
    """Epochs without a better validation metric before training stops."""
    warm_start: bool = False
    """Starts from the weights of the last pushed model where there is one: what both know keeps its rows, what is new
    starts as in a first fit."""
    refit: bool = True
    """After early stopping has found the number of epochs, fit again on train and validation together."""
    metric_k: int = Field(10, ge=1)
    """Early stopping watches NDCG at this k over the full catalogue, items of the history excluded."""


class Tuner(Settings):
    """The search for better settings before the Trainer (modules/tuner.py)."""

    enabled: bool = False
    """The stock Tuner runs before the Trainer, which takes the values that it found."""
    trials: int = Field(12, ge=2)
    """Fits; the first one is of the configuration as it stands."""
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of the training period's interactions, the latest ones, that trials are judged by."""
    search: dict[str, tuple[float, ...]] = Field(
        default={
            "training.learning_rate": (1e-3, 1.5e-3, 3e-3),
            "training.weight_decay": (2.0, 5.0, 10.0),
            "training.locality": (0.0, 0.5, 1.0),
            "training.user_exponent": (0.25, 0.5, 0.75),
            "model.mask_rate": (0.2, 0.3, 0.5),
            "model.query_feature_dropout": (0.1, 0.3, 0.6),
        }
    )
    """Key of `model` or `training` → values to try; the configured value is always among them."""

    @model_validator(mode="after")
    def _known_and_valid(self) -> Tuner:
        for name, values in self.search.items():
            section, _, key = name.partition(".")
            kinds: dict[str, type[Settings]] = {"model": Model, "training": Training}
            kind = kinds.get(section)
            if name in RENAMED:
                raise ValueError(f"search: {name} is now {RENAMED[name]}")
            if kind is None or key not in kind.model_fields:
                raise ValueError(f"search: {name!r} is no key of model or training")
            if not isinstance(getattr(kind(), key), (int, float)) or isinstance(getattr(kind(), key), bool):
                raise ValueError(f"search: {name} is not a number")
            if not values:
                raise ValueError(f"search: {name} has no values; give some or remove it")
            for value in values:
                try:
                    kind.model_validate({key: value})
                except ValidationError as error:
                    raise ValueError(f"search: {name}: {value:g}: {error.errors()[0]['msg']}") from None
        return self


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
    """Number of leaves; by default the faster of the square root of the catalogue's size and four times that."""
    spherical: bool | None = None
    """Whether a partition holds vectors of one direction, whatever their length, instead of near ones; by default the
    faster of the two."""
    partitions_to_search: int | None = Field(None, ge=1)
    """By default, as `reorder`, from the fastest setting that reaches the recall target on validation queries."""
    reorder: int | None = Field(None, ge=1)
    """Candidates of the approximate pass that are scored again exactly. The stock layer's tree scores exactly at once
    and takes no notice of it."""
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
    """train: one query per user, whose history is what the splits before have of the user. rolling: one query per
    interaction, whose history is everything before it. Early stopping asks its queries in the same way."""
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
