"""What a fit gives: the model, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from modules.towers.two_tower import TwoTower
from modules.training.calibration import Calibration


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; validation figures are NaN without validation queries."""

    loss: float
    ndcg: float
    recall: float
    factorized_top_k: float
    gained: bool
    """Whether it was better, beyond chance, than the last epoch that gained (`training.patience`)."""
    seconds: float

    def of(self, metric: str) -> float:
        """NDCG or recall by its name, `training.metric`."""
        return getattr(self, metric)


@dataclass(frozen=True)
class Report:
    """How a fit went; of two phases, how the search went that chose for the refit."""

    epochs: int
    """The best number of them."""
    resumed_from_epoch: int
    seconds: float
    history: tuple[Epoch, ...]
    calibration: Calibration
    warm_started: tuple[str, ...]
    """Names of the variables that began as the last pushed model has them."""
    ndcg: float
    """On the validation queries, in the end; NaN without them."""
    recall: float
    criterion: str
    """The metric that validation chose by, such as ndcg@10."""
    saw_validation: bool = False
    """Whether the weights were fitted on the validation interactions too: scores of those queries are too good then."""
    encoders: Mapping[str, float] = field(default_factory=dict)
    """The same metric by history encoder, where validation chose between several; the best is that of the fit."""

    def of(self, metric: str) -> float:
        """NDCG or recall by its name, `training.metric`."""
        return getattr(self, metric)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Fit:
    """A fitted model and how it came to be."""

    model: TwoTower
    report: Report
