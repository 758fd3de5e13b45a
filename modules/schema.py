"""Whether a data schema fits the feature specification."""

from __future__ import annotations

from tensorflow_metadata.proto.v0 import schema_pb2

from modules.features import Features, dtype

_TYPES = {"string": schema_pb2.BYTES, "float32": schema_pb2.FLOAT, "int64": schema_pb2.INT}


def mismatches(schema: schema_pb2.Schema, features: Features) -> list[str]:
    """What keeps the schema from describing the configured features, one clause each; empty when it does."""
    known = {feature.name: feature.type for feature in schema.feature}
    result = []
    for feature in (*features.query, *features.candidate):
        expected = _TYPES[dtype(feature)]
        type_name = schema_pb2.FeatureType.Name(expected)
        if feature.column not in known:
            result.append(f"{feature.column}: expected {type_name} for its encoding {feature.encoding}; is not there")
        elif known[feature.column] != expected:
            actual = schema_pb2.FeatureType.Name(known[feature.column])
            result.append(f"{feature.column}: expected {type_name} for its encoding {feature.encoding}; is {actual}")
    return result
