"""What a data schema must say of the examples: which splits a feature is in, and what type its encoding needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensorflow_metadata.proto.v0 import schema_pb2

from modules.data.examples import CATALOGUE, EVAL, HELD_OUT, RELEVANT, SEQUENCE_PREFIX, TRAIN, VALIDATION, WEIGHT
from modules.encodings.features import Columns, Features
from modules.errors import UserError

TYPES = {"string": schema_pb2.BYTES, "float32": schema_pb2.FLOAT, "int64": schema_pb2.INT}
"""By `features.dtype`."""


def described(features: Features, columns: Columns) -> list[str]:
    """Keys of the examples that statistics and schema are about, sorted.

    What the pipeline itself adds for the Evaluator, the slices, is none of their business.
    """
    query = {columns.user, columns.timestamp, *(feature.column for feature in features.query)}
    # Which of the query's features are of the interactions table, only the tables know.
    of_interaction = {columns.item, WEIGHT, HELD_OUT, *query}
    candidate = {columns.item, *(feature.column for feature in features.candidate)}
    return sorted({RELEVANT} | query | candidate | {SEQUENCE_PREFIX + key for key in of_interaction})


def of_split(schema: schema_pb2.Schema, split: str, features: Features, columns: Columns) -> schema_pb2.Schema:
    """The part of a schema that the examples of a split must fit.

    A feature that the pipeline does not know belongs to every split.
    """
    candidate = {columns.item, *(feature.column for feature in features.candidate)}
    asked = {columns.timestamp, RELEVANT, *(feature.column for feature in features.query if feature.of_history)}
    # What is a list of the sequence and not the item is of the interaction, and of the query that asks for it.
    lists = {known.name.removeprefix(SEQUENCE_PREFIX) for known in schema.feature if _is_list(known)}
    asked |= lists - candidate
    user = {columns.user, *(feature.column for feature in features.query)} - asked

    def belongs(known: schema_pb2.Feature) -> bool:
        if _is_list(known):
            return split == TRAIN
        if known.name in candidate:
            return split == CATALOGUE
        if known.name in asked:
            return split in (VALIDATION, EVAL)
        return split != CATALOGUE or known.name not in user

    return divided(schema, belongs)[0]


def divided(
    schema: schema_pb2.Schema, chosen: Callable[[schema_pb2.Feature], bool]
) -> tuple[schema_pb2.Schema, Sequence[schema_pb2.Feature]]:
    """A schema of the chosen features alone, and the others."""
    part = schema_pb2.Schema()
    part.CopyFrom(schema)
    del part.feature[:]
    part.feature.extend(known for known in schema.feature if chosen(known))
    return part, [known for known in schema.feature if not chosen(known)]


def _is_list(known: schema_pb2.Feature) -> bool:
    return known.name.startswith(SEQUENCE_PREFIX)


def check(schema: schema_pb2.Schema, features: Features, columns: Columns) -> None:
    """Refuses a schema that does not describe the examples.

    Raises:
        UserError: All that is wrong with it.
    """
    wrong = mismatches(schema, features, columns)
    if wrong:
        raise UserError(f"schema: {'; '.join(wrong)}; correct the schema or the features")


def mismatches(schema: schema_pb2.Schema, features: Features, columns: Columns) -> list[str]:
    """What keeps the schema from describing the examples, one clause each; empty when it does."""
    known = {feature.name: feature.type for feature in schema.feature}
    result = []
    for key, type_, why in _expected(features, columns):
        name = schema_pb2.FeatureType.Name(type_)
        # A query feature has a list as well if it is the interactions' own.
        listed = SEQUENCE_PREFIX + key
        if key not in known:
            result.append(f"{key}: expected {name} {why}; is not there")
        elif known[key] != type_:
            result.append(f"{key}: expected {name} {why}; is {schema_pb2.FeatureType.Name(known[key])}")
        elif known.get(listed, type_) != type_:
            result.append(f"{listed}: expected {name} {why}; is {schema_pb2.FeatureType.Name(known[listed])}")
    return result


def _expected(features: Features, columns: Columns) -> list[tuple[str, int, str]]:
    """(Key, type, reason) of what a schema must have."""
    encoded = [
        (feature.column, TYPES[feature.dtype], f"for its encoding {feature.encoding}")
        for feature in (*features.query, *features.candidate)
    ]
    lists = {columns.item: "string", columns.timestamp: "int64", WEIGHT: "float32", HELD_OUT: "int64"}
    sequence = [(SEQUENCE_PREFIX + key, TYPES[kind], "in the users' sequences") for key, kind in lists.items()]
    return [*encoded, (RELEVANT, TYPES["string"], "of what queries ask for"), *sequence]
