"""The section `split`: how interactions become train, validation and eval."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, model_validator

from modules.settings.base import LAST_SECOND, ColumnName, Seed, Settings


class _FractionSplit(Settings):
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of the training period that early stopping watches."""
    eval: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_train(self) -> _FractionSplit:
        if self.validation + self.eval >= 1:
            raise ValueError("validation and eval leave nothing to train on")
        return self


class TemporalSplit(_FractionSplit):
    """The latest interactions are eval, those before them validation."""

    strategy: Literal["temporal"] = "temporal"
    validation_from: int | None = Field(None, ge=0, le=LAST_SECOND)
    """Cut-off time in seconds since 1970, instead of the fraction."""
    eval_from: int | None = Field(None, ge=0, le=LAST_SECOND)

    @model_validator(mode="after")
    def _both(self) -> TemporalSplit:
        if (self.validation_from is None) != (self.eval_from is None):
            raise ValueError("give both validation_from and eval_from, or neither")
        if self.validation_from is not None and self.eval_from is not None and self.validation_from >= self.eval_from:
            raise ValueError("validation_from must be before eval_from")
        return self


class RandomSplit(_FractionSplit):
    """By a hash of user, item and time: flattering, but the protocol of many papers."""

    strategy: Literal["random"] = "random"
    seed: Seed = 42


class LeaveLastOutSplit(Settings):
    """Each user's last interaction is eval, the one before it validation."""

    strategy: Literal["leave_last_out"] = "leave_last_out"


class ColumnSplit(Settings):
    """The user's own split: a column of the interactions with the values train, validation and eval."""

    strategy: Literal["column"] = "column"
    column: ColumnName


Split = Annotated[
    Union[TemporalSplit, RandomSplit, LeaveLastOutSplit, ColumnSplit],
    Field(discriminator="strategy"),
]
