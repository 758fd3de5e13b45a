"""The ExampleValidator on real statistics and schemas: what the person reads when the data is not as agreed."""

import os

import numpy as np
import pandas as pd
import pytest
import tfx.components  # noqa: F401  it stands in for a module that TFDV misses, so it comes first

# isort: split
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.types import artifact_utils, standard_artifacts
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils, json_utils

from components.example_validator import executor
from components.example_validator.component import ExampleValidator
from modules import schema as schemas
from modules.encodings.bucketized import Bucketized
from modules.encodings.features import Columns, Features
from modules.encodings.hash import Hash
from modules.encodings.history import History
from modules.encodings.normalized import Normalized
from modules.encodings.timestamp import Timestamp
from modules.encodings.vocabulary import Vocabulary
from modules.errors import UserError

ROWS = 200
COLUMNS = Columns(user="user_id", item="item_id", timestamp="timestamp")
FEATURES = Features(
    query=(
        Vocabulary(column="gender"),
        Normalized(column="age"),
        Timestamp(column="timestamp"),
    ),
    candidate=(Vocabulary(column="item_id"),),
)


def table():
    """Statistics of queries are made from it, and what other splits have of the same columns."""
    return pd.DataFrame(
        {
            "user_id": [f"user {i}" for i in range(ROWS)],
            "gender": ["F", "M"] * (ROWS // 2),
            "age": np.arange(ROWS, dtype=np.float32) % 60 + 18,
            "timestamp": np.arange(ROWS) + 1_600_000_000,
            "relevant_items": [f"item {i}" for i in range(ROWS)],
        }
    )


def sequences():
    """Train's; one interaction is enough for a list."""
    lists = {"item_id": "item", "timestamp": 1_600_000_000, "interaction_weight": np.float32(1), "is_validation": 0}
    return (
        table()
        .drop(columns=["timestamp", "relevant_items"])
        .assign(**{f"sequence_{key}": value for key, value in lists.items()})
    )


def items():
    return pd.DataFrame({"item_id": [f"item {i}" for i in range(ROWS)]})


@pytest.fixture(scope="session")
def agreed():
    """The schema that a person has curated."""
    schema = schema_pb2.Schema()
    for frame in (sequences(), table()[["timestamp", "relevant_items"]], items()):
        part = tfdv.infer_schema(tfdv.generate_statistics_from_dataframe(frame))
        schema.feature.extend(part.feature)
        schema.string_domain.extend(part.string_domain)
    tfdv.get_feature(schema, "age").float_domain.CopyFrom(schema_pb2.FloatDomain(min=0, max=120, disallow_nan=True))
    tfdv.set_domain(schema, "timestamp", schema_pb2.IntDomain(min=0, max=4102444800))
    return schema


@pytest.fixture
def validate(tmp_path, agreed):
    """Runs the executor over the tables of some splits; returns the anomalies artifact."""

    def run(splits, schema=None, features=FEATURES, exclude=(), k=1):
        statistics, schemas_, anomalies = (
            standard_artifacts.ExampleStatistics(),
            standard_artifacts.Schema(),
            standard_artifacts.ExampleAnomalies(),
        )
        for artifact, name in ((statistics, "statistics"), (schemas_, "schema"), (anomalies, "anomalies")):
            artifact.uri = str(tmp_path / name)
        statistics.split_names = artifact_utils.encode_split_names(list(splits))
        for split, frame in splits.items():
            made = tfdv.generate_statistics_from_dataframe(frame)
            folder = artifact_utils.get_split_uri([statistics], split)
            os.makedirs(folder)
            io_utils.write_bytes_file(os.path.join(folder, "FeatureStats.pb"), made.SerializeToString())
        io_utils.write_pbtxt_file(os.path.join(schemas_.uri, "schema.pbtxt"), schema or agreed)
        executor.Executor().Do(
            {keys.STATISTICS_KEY: [statistics], keys.SCHEMA_KEY: [schemas_]},
            {keys.ANOMALIES_KEY: [anomalies]},
            {
                keys.EXCLUDE_SPLITS_KEY: json_utils.dumps(list(exclude)),
                executor.FEATURES_KEY: features.model_dump_json(),
                executor.COLUMNS_KEY: COLUMNS.model_dump_json(),
                executor.K_KEY: k,
            },
        )
        return anomalies

    return run


def refusal(validate, *arguments, **named):
    with pytest.raises(UserError) as error:
        validate(*arguments, **named)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_data_as_agreed_passes(validate):
    anomalies = validate({"train": sequences(), "eval": table(), "catalogue": items()})
    assert artifact_utils.decode_split_names(anomalies.split_names) == ["train", "eval", "catalogue"]
    assert anomalies.get_json_value_custom_property("blessed") == {"train": 1, "eval": 1, "catalogue": 1}


def spoiled(**columns):
    return table().assign(**columns)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            spoiled(gender=["F", "M"] * 98 + ["X", "X", "X", "other, or none"]),
            'gender: expected one of F, M; got "X" (about 1 % of values), "other, or none" (less than 1 % of values)',
        ),
        (spoiled(age=np.float32([-3] + [30] * 199)), "age: expected at least 0; got -3"),
        (spoiled(age=np.float32([30] * 199 + [400.5])), "age: expected at most 120; got 400.5"),
        (spoiled(age=["thirty"] * ROWS), 'age: expected numbers; got text such as "thirty"'),
        (spoiled(timestamp=[-5] + [1_600_000_000] * 199), "timestamp: expected at least 0; got -5"),
        (
            spoiled(timestamp=[2**33] + [1_600_000_000] * 199),
            "timestamp: expected at most 4102444800; got 8589934592",
        ),
        (spoiled(age=np.arange(ROWS) % 60), "age: expected numbers with decimals; got whole numbers"),
        (spoiled(timestamp=["noon"] * ROWS), 'timestamp: expected whole numbers; got text such as "noon"'),
        (spoiled(gender=["F"] * 150 + [None] * 50), "gender: expected in every example; is in 75 %"),
        (table().drop(columns="gender"), "gender: expected in the data; is in no example"),
        (spoiled(mood=["good"] * ROWS), "mood: not expected, the schema does not have it; got a column"),
    ],
    ids=["value", "low", "high", "text", "early", "late", "whole", "type", "sparse", "gone", "new"],
)
def test_an_anomaly_stops_the_run_in_words(validate, bad, words):
    message = refusal(validate, {"train": sequences(), "eval": bad})
    assert message == f"anomalies in eval: {words}; correct the tables or the schema"


def test_all_anomalies_come_in_one_line_grouped_by_split(validate):
    bad = spoiled(gender=["X"] * ROWS)
    worse = bad.assign(age=np.float32([-3] * ROWS))
    message = refusal(validate, {"train": sequences(), "validation": bad, "eval": worse})
    assert message == (
        'anomalies in validation, eval: gender: expected one of F, M; got "X" (about 100 % of values). '
        "anomalies in eval: age: expected at least 0; got -3; correct the tables or the schema"
    )


def test_an_empty_split_is_an_anomaly(validate):
    assert refusal(validate, {"train": sequences(), "eval": table()[:0]}) == (
        "anomalies in eval: no examples; correct the tables or the schema"
    )


def test_a_long_list_of_allowed_values_is_cut(validate, agreed):
    schema = schema_pb2.Schema()
    schema.CopyFrom(agreed)
    tfdv.set_domain(schema, "gender", schema_pb2.StringDomain(name="many", value=[f"v{i}" for i in range(30)]))
    message = refusal(validate, {"train": sequences()}, schema=schema)
    assert "gender: expected one of v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, … (30 values); got " in message


def test_excluded_splits_are_not_looked_at(validate):
    validate({"train": sequences(), "catalogue": table()}, exclude=["catalogue"])


def test_a_feature_in_a_split_where_it_does_not_belong_is_an_anomaly(validate):
    message = refusal(
        validate, {"train": sequences().assign(timestamp=1_600_000_000), "catalogue": items().assign(gender="F")}
    )
    unexpected = "not expected, the schema does not have it; got a column"
    assert message == (
        f"anomalies in train: timestamp: {unexpected}. anomalies in catalogue: gender: {unexpected}; "
        "correct the tables or the schema"
    )


def test_a_feature_that_only_the_schema_knows_is_missed_in_every_split(validate, agreed):
    schema = schema_pb2.Schema()
    schema.CopyFrom(agreed)
    schema.feature.add(name="mood", type=schema_pb2.BYTES).presence.min_count = 1
    assert refusal(validate, {"train": sequences(), "eval": table(), "catalogue": items()}, schema=schema) == (
        "anomalies in train, eval, catalogue: mood: expected in the data; is in no example; "
        "correct the tables or the schema"
    )


def test_an_answer_may_be_as_long_as_the_catalogue(validate):
    validate({"train": sequences(), "eval": table(), "catalogue": items()}, k=ROWS)


def test_a_catalogue_of_one_item_less_than_k_is_too_small(validate):
    splits = {"train": sequences(), "eval": table(), "catalogue": items()}
    assert refusal(validate, splits, k=ROWS + 1) == (
        "serving.k is 201 but the catalogue has 200 items; set it, and evaluation.k, to 200 or less"
    )


def test_a_schema_that_lacks_a_feature_or_has_it_as_something_else(validate):
    features = Features(
        query=(Vocabulary(column="age"), Normalized(column="income"), History()),
        candidate=(Vocabulary(column="item_id"),),
    )
    assert refusal(validate, {"train": sequences()}, features=features) == (
        "schema: age: expected BYTES for its encoding vocabulary; is FLOAT; "
        "income: expected FLOAT for its encoding normalized; is not there; "
        "history: expected BYTES for its encoding history; is not there; correct the schema or the features"
    )


def test_the_schema_of_an_older_pipeline_is_refused_in_words(validate, agreed):
    """Which had a row for each interaction."""
    schema = schema_pb2.Schema()
    schema.CopyFrom(agreed)
    kept = [feature for feature in schema.feature if not feature.name.startswith("sequence_")]
    del schema.feature[:]
    schema.feature.extend(kept)
    assert refusal(validate, {"train": sequences()}, schema=schema) == (
        "schema: sequence_item_id: expected BYTES in the users' sequences; is not there; "
        "sequence_timestamp: expected INT in the users' sequences; is not there; "
        "sequence_interaction_weight: expected FLOAT in the users' sequences; is not there; "
        "sequence_is_validation: expected INT in the users' sequences; is not there; correct the schema or the features"
    )


@pytest.mark.parametrize(
    ("feature", "kind"),
    [
        (Vocabulary(column="a"), schema_pb2.BYTES),
        (Hash(column="a", buckets=4), schema_pb2.BYTES),
        (Normalized(column="a"), schema_pb2.FLOAT),
        (Bucketized(column="a", buckets=4), schema_pb2.FLOAT),
        (Timestamp(column="a"), schema_pb2.INT),
    ],
)
def test_the_type_that_an_encoding_needs(agreed, feature, kind):
    """In a query, and in the sequences where it is the interactions' own."""
    features = Features(query=(feature,), candidate=(Vocabulary(column="item_id"),))
    for other in (schema_pb2.BYTES, schema_pb2.FLOAT, schema_pb2.INT):
        for types_of in ({"a": other}, {"a": kind, "sequence_a": other}):
            schema = schema_pb2.Schema()
            schema.CopyFrom(agreed)
            schema.feature.extend(schema_pb2.Feature(name=name, type=type_) for name, type_ in types_of.items())
            assert bool(schemas.mismatches(schema, features, COLUMNS)) == (other != kind)


def test_the_component_carries_features_and_code_as_parameters():
    component = ExampleValidator(
        statistics=types.Channel(type=standard_artifacts.ExampleStatistics),
        schema=types.Channel(type=standard_artifacts.Schema),
        features=FEATURES,
        columns=COLUMNS,
        exclude_splits=["catalogue"],
        code="abc",
    )
    assert Features.model_validate_json(component.exec_properties["features"]) == FEATURES
    assert Columns.model_validate_json(component.exec_properties["columns"]) == COLUMNS
    assert component.exec_properties["code"] == "abc"
    assert json_utils.loads(component.exec_properties["exclude_splits"]) == ["catalogue"]
    assert component.executor_spec.executor_class is executor.Executor
