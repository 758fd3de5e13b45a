"""Every name that the pipeline gives to something, by the space where it must be alone; a name for two is refused.

Nothing here is a list of forbidden columns: an encoding says which keys it encodes to, a slice and a filter what they
are called, and a column what it is read as. Vocabulary files need no space of their own: `vocabulary_<column>` is
another name for another column, since what becomes a feature has a plain name.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass

from modules.data.examples import HELD_OUT, LABEL, RELEVANT, SEQUENCE_PREFIX, SLICE_PREFIX, TIME, USER, WEIGHT
from modules.encodings.features import Features
from modules.servable.contract import (
    CANDIDATES,
    EXAMPLES,
    EXCLUDE,
    EXPLAIN,
    EXPLANATION,
    FILTER_PREFIX,
    ITEM_ID,
    REASON_PREFIX,
    SCORE,
    USER_ID,
)
from modules.settings import Evaluation, Serving, Tables

IN_EXAMPLES, IN_ENCODED, IN_REQUESTS, IN_ANSWERS = (
    "the examples", "the transformed examples", "the inputs of the servable", "the outputs of the servable"
)  # fmt: skip
# TensorFlow makes an argument of a Python function of each input.
_INPUT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NO_ARGUMENTS = {*keyword.kwlist, "self"}


@dataclass(frozen=True)
class Name:
    """One thing that has a name."""

    space: str
    """Where no other thing may have it."""
    name: str
    holds: str
    """What lies under it, in words. The same thing may be asked for twice."""
    key: str = ""
    """Key of the configuration that gives it; "" for what the pipeline adds by itself."""


def check(tables: Tables, features: Features, serving: Serving, evaluation: Evaluation) -> None:
    """Refuses a configuration in which two things would have one name, or something a name that it cannot have.

    Raises:
        ValueError: One line that begins with the key.
    """
    taken: dict[tuple[str, str], Name] = {}
    for name in names(tables, features, serving, evaluation):
        if name.space == IN_REQUESTS and not (_INPUT.fullmatch(name.name) and name.name not in _NO_ARGUMENTS):
            raise ValueError(
                f"{name.key}: {name.name!r} would be an input of the servable, and TensorFlow takes only letters from "
                "a to z, digits and _ in their names, a letter first, and no word of Python's; rename the column"
            )
        # Inputs whose names differ in upper and lower case alone are one for TensorFlow.
        key = (name.space, name.name.lower() if name.space == IN_REQUESTS else name.name)
        other = taken.setdefault(key, name)
        if other.holds == name.holds and other.name == name.name:
            continue
        if not other.key:
            raise ValueError(
                f"{name.key}: {name.name!r}, {name.holds}, is a name that the pipeline uses itself in {name.space}; "
                "rename the column"
            )
        raise ValueError(
            f"{name.key}: {name.holds} would be {name.name!r} in {name.space}, as is {other.holds} ({other.key}); "
            "rename a column"
        )


def names(tables: Tables, features: Features, serving: Serving, evaluation: Evaluation) -> Iterator[Name]:
    """All names; the same one more than once where several keys ask for the same thing."""
    for key in (RELEVANT, WEIGHT, EXAMPLES):
        yield Name(IN_EXAMPLES, key, "the pipeline's")
    for key in (LABEL, USER, RELEVANT):
        yield Name(IN_ENCODED, key, "the pipeline's")
    for key in (tables.interactions.item, TIME, WEIGHT, HELD_OUT):
        yield Name(IN_ENCODED, SEQUENCE_PREFIX + key, "the pipeline's")
    for key in (WEIGHT, HELD_OUT, tables.interactions.item, tables.interactions.timestamp):
        yield Name(IN_EXAMPLES, SEQUENCE_PREFIX + key, f"the sequence of {key!r}")
    for key in (EXAMPLES, EXCLUDE, EXPLAIN, CANDIDATES):
        yield Name(IN_REQUESTS, key, "the pipeline's")
    for key in (ITEM_ID, SCORE, *EXPLANATION):
        yield Name(IN_ANSWERS, key, "the pipeline's")

    item = tables.interactions.item
    for role in ("user", "timestamp"):
        column = getattr(tables.interactions, role)
        yield Name(IN_EXAMPLES, column, f"column {column!r} of the query side", f"tables.interactions.{role}")
    for space in (IN_EXAMPLES, IN_REQUESTS):
        yield Name(space, item, "the item's id", "tables.interactions.item")
    if serving.known_users:
        # Who asks for a known user gives the id, and the time that the age of the history is counted to.
        user, time = tables.interactions.user, tables.interactions.timestamp
        yield Name(IN_REQUESTS, USER_ID, f"column {user!r} of the query side", "tables.interactions.user")
        if features.history_age is not None:
            yield Name(IN_REQUESTS, time, f"column {time!r} of the query side", "tables.interactions.timestamp")

    for side in ("query", "candidate"):
        for number, feature in enumerate(getattr(features, side)):
            key = f"features.{side}.{number}.column"
            column = feature.column
            if feature.of_history:
                holds = f"the {feature.encoding}"
            elif side == "candidate" and column == item:
                holds = "the item's id"
            else:
                holds = f"column {column!r} of the {side} side"
            for space in (IN_EXAMPLES, IN_REQUESTS):
                yield Name(space, column, holds, key)
            for encoded in feature.keys:
                yield Name(IN_ENCODED, encoded, f"the encoding of {column!r}", key)
            if side == "query" and not feature.of_history:
                # Of each interaction, where the interactions table has the column.
                yield Name(IN_EXAMPLES, SEQUENCE_PREFIX + column, f"the sequence of {column!r}", key)
                for encoded in feature.keys:
                    yield Name(IN_ENCODED, SEQUENCE_PREFIX + encoded, f"the sequence of {column!r}", key)

    shown = (
        ("serving.return_columns", serving.return_columns),
        ("serving.filter_columns", serving.filter_columns),
        ("tables.items.title", (tables.items.title,) if tables.items.title else ()),
    )
    for key, columns in shown:
        for column in columns:
            holds = "the item's id" if column == item else f"column {column!r} of the candidate side"
            yield Name(IN_EXAMPLES, column, holds, key)
    for column in serving.return_columns:
        yield Name(IN_ANSWERS, column, f"column {column!r}", "serving.return_columns")
        yield Name(IN_ANSWERS, REASON_PREFIX + column, f"column {column!r} of a reason", "serving.return_columns")
    for column in serving.filter_columns:
        yield Name(IN_REQUESTS, FILTER_PREFIX + column, f"the filter by {column!r}", "serving.filter_columns")
    for number, each in enumerate(evaluation.slices):
        yield Name(
            IN_EXAMPLES, SLICE_PREFIX + each.column, f"the slice by {each.column!r}", f"evaluation.slices.{number}"
        )
