"""The section `training`: how the towers are fitted."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from modules.settings.base import Answers, Distinct, Seed, Settings, Share

# Where a step asks for all places of each sequence, it has thousands of rows.
_ALL_PLACES_LIMIT = 5_000


class Training(Settings):
    """How the towers are fitted (modules/training)."""

    seed: Seed = 42
    deterministic: bool = True
    """Same seed, same data, same weights. Without it TensorFlow may add in any order."""
    epochs: int = Field(25, ge=1, le=100_000)
    """At most; early stopping usually ends before."""
    epoch_steps: int = Field(500, ge=1, le=1_000_000_000)
    """Steps after which an epoch ends at the latest: validation looks at what large data give before all of it was
    read."""
    cache_interactions: int = Field(10_000_000, ge=1, le=1_000_000_000)
    """Interactions of the train split that are kept in memory, at most. A larger split is streamed from its files in
    every epoch, in chunks of whole users: half of the limit is trained on while the other half is read."""
    batch_size: int = Field(256, ge=2, le=1_000_000)
    learning_rate: float = Field(1.5e-3, gt=0, le=1_000)
    weight_decay: float = Field(5.0, ge=0, le=1e6)
    """Decoupled (AdamW), multiplied by the learning rate at each step where up to `decay_steps` go through all data."""
    encoder_weight_decay: float = Field(0.0, ge=0, le=1e6)
    """The same with a transformer over the history, which `model.encoder_dropout` regularises."""
    decay_steps: int = Field(64, ge=1, le=1_000_000_000)
    """More steps through all data decay weights as much as so many would: what little they say of a rare item would
    be forgotten on the way."""
    objective: Literal["masked_items", "next_item"] = "masked_items"
    """masked_items: a random part of a user's whole history (`model.mask_rate`) is to be found from the rest.
    next_item: each interaction's item is to be found from the history before it; so it is always without a history
    feature. A transformer over the history (`model.history_encoder`) asks for the next item in any case, at all places
    of a sequence at once."""
    locality: float = Field(0.5, ge=0, le=1_000)
    """Under masked_items the item d places away from a random one weighs (1 + d) ** −locality, as a target and as part
    of the query; 0 treats the whole history alike."""
    user_exponent: float = Field(0.5, ge=0, le=1)
    """A user with n interactions counts n ** user_exponent: 1 treats interactions alike, 0 users. The smaller, the
    fewer steps an epoch has."""
    recent_windows: Distinct[Share] = Field((0.2, 0.1, 0.05), min_length=1, max_length=16)
    """Shares of the training period, by interactions, the latest ones, that can be recent for the popularity lift. The
    first is taken unless validation is surely better with another."""
    lift_prior: float = Field(0.2, ge=0, le=1_000)
    """How far the lift of an item is drawn to none, as a share of the recent interactions."""
    negatives: Literal["auto", "catalogue", "sampled", "in_batch"] = "auto"
    """Softmax over the whole catalogue, over a sample of it that a batch shares, or over the batch's own items; the
    latter two with logQ correction. auto decides between the first two by `catalogue_limit`."""
    catalogue_limit: int = Field(20_000, ge=1, le=10_000_000)
    """`negatives: auto` takes the whole catalogue up to this many items; up to 5,000 at most with a transformer over
    the history, whose steps have several rows for each user. A step over all of 10,000, 20,000 and 50,000 took 127,
    239 and 1,079 ms where one over a sample took 24 to 38 (docs/benchmarks.md)."""
    sampled_negatives: int = Field(2_048, ge=1, le=10_000_000)
    """Negatives that a batch shares, beside its own items: half of them drawn uniformly, half by popularity."""
    sampled_targets: int = Field(16, ge=1, le=1_000_000)
    """Hidden items of a user that count in one step of the sampled softmax, at most; with a transformer over the
    history, places of a sequence that a step asks for, under any softmax but in_batch, which asks for one."""
    temperature: float = Field(1.0, ge=1e-6, le=1e6)
    averaging: float = Field(0.98, ge=0, le=0.999_999)
    """Validated and exported is the moving average of the weights over about 1 / (1 − averaging) steps; 0: the last."""
    patience: int = Field(8, ge=1, le=100_000)
    """Epochs without a gain on validation before training stops. A gain is more than chance: better than the last one
    by three quarters of the difference's standard error. The best epoch of all is kept."""
    patience_steps: int = Field(1_500, ge=1, le=1_000_000_000)
    """Steps without one, to the end of an epoch: it stops as well."""
    warm_start: bool = False
    """Starts from the weights of the last pushed model where there is one: what both know keeps its rows, what is new
    starts as in a first fit."""
    refit: bool = True
    """After early stopping has found the number of epochs, fit again on train and validation together."""
    refit_steps: int = Field(4_000, ge=0, le=1_000_000_000)
    """A refit of more steps than this does not begin anew: it goes on from the weights that were found, for a quarter
    of their epochs."""
    distribution: Literal["none", "mirrored", "multi_worker"] = "none"
    """none: one device. mirrored: all GPUs of the machine share each batch. multi_worker: the machines that TF_CONFIG
    names do (docs/scale.md). The update is that of one device, up to the order of sums."""
    worker_wait: int = Field(300, ge=1, le=604_800)
    """Seconds that the Trainer waits under multi_worker for the other workers to be there."""
    metric: Literal["ndcg", "recall"] = "ndcg"
    """What validation chooses by, over the full catalogue, items of the history excluded as in answers: the number of
    epochs, the blend weights, the recent window, the item-item model, the history's encoder, and the Tuner's trial.
    ndcg is for answers that are shown in their order, recall for candidates that a ranking stage orders anew."""
    metric_k: Answers = 10
    """The same at so many answers. For candidates as many as the ranking stage takes."""

    @property
    def criterion(self) -> str:
        """`metric` and `metric_k` in one word, such as ndcg@10."""
        return f"{self.metric}@{self.metric_k}"

    def weight_decay_of(self, steps: float, all_places: bool = False) -> float:
        """The weight decay at each step where so many go through all data.

        Args:
            steps: Through all data.
            all_places: Whether a step asks for many places of each sequence, as with a transformer.
        """
        weight_decay = self.encoder_weight_decay if all_places else self.weight_decay
        return weight_decay * min(1.0, self.decay_steps / steps)

    def steps_of_epoch(self, steps: float) -> float:
        """Steps of an epoch where so many go through all data."""
        return min(steps, self.epoch_steps)

    def patience_of(self, steps: float) -> int:
        """Epochs of `patience` and `patience_steps` where so many steps go through all data."""
        return min(self.patience, math.ceil(self.patience_steps / self.steps_of_epoch(steps)))

    def refits_anew(self, epochs: int, steps: float) -> bool:
        """Whether a refit of so many epochs begins anew, where so many steps go through all data."""
        return epochs * self.steps_of_epoch(steps) <= self.refit_steps

    def negatives_of(self, items: int, all_places: bool = False) -> Literal["catalogue", "sampled", "in_batch"]:
        """What `negatives` comes to.

        Args:
            items: Of the catalogue.
            all_places: Whether a step asks for many places of each sequence: it has that many more rows.
        """
        if self.negatives != "auto":
            return self.negatives
        limit = min(self.catalogue_limit, _ALL_PLACES_LIMIT) if all_places else self.catalogue_limit
        return "catalogue" if items <= limit else "sampled"
