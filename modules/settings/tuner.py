"""The section `tuner`: the search for better settings."""

from __future__ import annotations

from pydantic import Field, ValidationError, model_validator

from modules.settings.base import Distinct, Settings
from modules.settings.model import Model
from modules.settings.renamed import RENAMED
from modules.settings.training import Training


class Tuner(Settings):
    """The search for better settings before the Trainer (modules/tuner.py)."""

    enabled: bool = False
    """The stock Tuner runs before the Trainer, which takes the values that it found."""
    trials: int = Field(12, ge=2, le=10_000)
    """Fits; the first one is of the configuration as it stands."""
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of the training period's interactions, the latest ones, that trials are judged by."""
    search: dict[str, Distinct[float]] = Field(
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
