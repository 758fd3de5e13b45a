"""What every section of the YAML is made of: the base of the settings, and the types of their fields."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LAST_SECOND = 253_402_300_799
"""The end of the year 9999: what is above is not a time in seconds."""
FLOAT32_MAX = 3.4e38
"""TensorFlow computes in float32, where what is above is infinite."""


class Settings(BaseModel):
    """Base of everything that is read from the YAML file.

    Immutable; unknown keys, NaN and infinite numbers are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Item = TypeVar("_Item", bound=Hashable)
# Rows and counts at most, and numbers in one embedding table: 4 GB in a servable, about eight times that in a fit.
MANY = 100_000_000
TABLE_NUMBERS = 2**30


def _printable(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError(f"{text[:40]!r} has a character that cannot be printed, such as a line break; remove it")
    return text


def _distinct(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is there twice; remove one")
    return values


def _rising(boundaries: tuple[float, ...]) -> tuple[float, ...]:
    if list(boundaries) != sorted(set(boundaries)):
        raise ValueError("boundaries must rise strictly")
    return boundaries


Line = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
"""What has to be said if it is said at all: a path, a host, the name of something elsewhere."""
ColumnName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
"""A table's column; where it becomes the input of a signature too, `names.check` asks more of it."""
Distinct = Annotated[tuple[_Item, ...], AfterValidator(_distinct)]
"""A list in which nothing is twice."""
Boundaries = Annotated[
    tuple[Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)], ...], Field(min_length=1), AfterValidator(_rising)
]
"""Where one range of a number ends and the next begins, rising."""
Seed = Annotated[int, Field(ge=0, le=2_000_000_000)]
"""TensorFlow's seeds are int32, and the Trainer adds a thousand for each epoch."""
Width = Annotated[int, Field(ge=1, le=16_384)]
"""Of an embedding or a layer."""
Answers = Annotated[int, Field(ge=1, le=100_000)]
"""How many items a ranking has."""
Share = Annotated[float, Field(ge=0, le=1)]
