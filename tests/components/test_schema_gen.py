"""From InteractionExampleGen's examples through StatisticsGen to SchemaGen and ExampleValidator, all of them real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tfx.components  # noqa: F401  it stands in for a module that TFDV misses, so it comes first
import world

# isort: split
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.types import artifact_utils, standard_artifacts
from tfx.types import standard_component_specs as keys
from tfx.utils import io_utils

from components.example_validator import executor as example_validator
from components.example_validator.component import ExampleValidator
from components.interaction_example_gen import executor as example_gen
from components.interaction_example_gen.component import InteractionExampleGen
from components.schema_gen import executor
from components.schema_gen.component import SchemaGen
from modules import schema as schemas
from modules.data import tables
from modules.encodings.features import Columns
from modules.errors import UserError
from pipeline.config import Config, load

BEAM_ARGS = ["--runner=DirectRunner", "--direct_running_mode=in_memory", "--sdk_container_image=unused"]
SHIPPED = Path(__file__).parents[2] / "configs" / "movielens-100k.yaml"


def columns(config: Config) -> Columns:
    names = config.tables.interactions
    return Columns(user=names.user, item=names.item, timestamp=names.timestamp)


def statistics_of(config: Config, folder: Path) -> types.Artifact:
    """What the first two stages of the pipeline write for a configuration."""
    component = InteractionExampleGen(
        tables=config.tables, split=config.split, features=config.features, evaluation=config.evaluation,
        serving=config.serving, fingerprint=tables.fingerprint(config.tables), code="",
    )  # fmt: skip
    examples, statistics = standard_artifacts.Examples(), standard_artifacts.ExampleStatistics()
    examples.uri, statistics.uri = str(folder / "examples"), str(folder / "statistics")
    context = example_gen.Executor.Context(beam_pipeline_args=list(BEAM_ARGS))
    example_gen.Executor(context).Do({}, {"examples": [examples]}, dict(component.exec_properties))
    options = tfdv.StatsOptions(feature_allowlist=schemas.described(config.features, columns(config)))
    statistics_gen.Executor(context).Do(
        {keys.EXAMPLES_KEY: [examples]},
        {keys.STATISTICS_KEY: [statistics]},
        {keys.STATS_OPTIONS_JSON_KEY: options.to_json(), keys.EXCLUDE_SPLITS_KEY: "null"},
    )
    return statistics


def channel(artifact: types.Artifact) -> Any:
    return types.Channel(type=type(artifact))


def inferred(statistics: types.Artifact, config: Config, folder: Path) -> schema_pb2.Schema:
    component = SchemaGen(channel(statistics), config.features.encodings, columns(config), "")
    schema = standard_artifacts.Schema()
    schema.uri = str(folder / "schema")
    executor.Executor().Do({"statistics": [statistics]}, {"schema": [schema]}, dict(component.exec_properties))
    return io_utils.SchemaReader().read(str(folder / "schema" / "schema.pbtxt"))


def validate(statistics: types.Artifact, schema: schema_pb2.Schema, config: Config, folder: Path) -> types.Artifact:
    artifact, anomalies = standard_artifacts.Schema(), standard_artifacts.ExampleAnomalies()
    artifact.uri, anomalies.uri = str(folder / "validated" / "schema"), str(folder / "validated" / "anomalies")
    io_utils.write_pbtxt_file(f"{artifact.uri}/schema.pbtxt", schema)
    component = ExampleValidator(
        channel(statistics), channel(artifact), features=config.features.encodings, columns=columns(config)
    )
    example_validator.Executor().Do(
        {"statistics": [statistics], "schema": [artifact]}, {"anomalies": [anomalies]}, dict(component.exec_properties)
    )
    return anomalies


def small(folder: Path, change: Callable[[dict[str, Any]], None] = lambda row: None, **settings: Any) -> Config:
    """The small world with columns of the interactions' own, each row changed."""
    world.write_parquet(folder)
    rows = [{**row, "device": "tv", "paid": 1.5, "tags": ["a", "b"]} for row in world.interactions()]
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "interactions.parquet")
    tree: Any = world.config(folder)
    query = [
        *tree["features"]["query"],
        {"column": "device", "encoding": "vocabulary"},
        {"column": "paid", "encoding": "normalized"},
        {"column": "tags", "encoding": "hash", "buckets": 8, "multivalued": True},
    ]
    return load(world.write_config(folder, features={**tree["features"], "query": query}, **settings))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, types.Artifact, schema_pb2.Schema, Path]:
    folder = tmp_path_factory.mktemp("made")
    config = small(folder)
    statistics = statistics_of(config, folder)
    return config, statistics, inferred(statistics, config, folder), folder


@pytest.mark.slow
def test_the_schema_has_every_feature_of_every_split_once(made: Any) -> None:
    config, _, schema, _ = made
    lists = {"item_id", "timestamp", "interaction_weight", "is_validation", "device", "paid", "tags"}
    query = {"user_id", "age", "gender", "timestamp", "history", "history_age", "relevant_items", "device", "paid"}
    query |= {"tags"}
    candidate = {"item_id", "title", "genres", "price"}
    names = [feature.name for feature in schema.feature]
    assert sorted(names) == sorted({f"sequence_{name}" for name in lists} | query | candidate)
    assert not any(feature.lifecycle_stage == schema_pb2.DEPRECATED for feature in schema.feature)
    assert not any(feature.HasField("shape") for feature in schema.feature)
    assert schemas.mismatches(schema, config.features, columns(config)) == []


@pytest.mark.slow
def test_each_split_is_expected_to_hold_what_the_contract_says(made: Any) -> None:
    config, _, schema, _ = made
    of = {
        split: {feature.name for feature in schemas.of_split(schema, split, config.features, columns(config)).feature}
        for split in ("train", "validation", "eval", "catalogue")
    }
    user = {"user_id", "age", "gender"}
    assert of["train"] == user | {feature.name for feature in schema.feature if feature.name.startswith("sequence_")}
    assert of["validation"] == of["eval"]
    assert of["eval"] == user | {"timestamp", "device", "paid", "tags", "history", "history_age", "relevant_items"}
    assert of["catalogue"] == {"item_id", "title", "genres", "price"}


@pytest.mark.slow
def test_data_pass_the_schema_that_was_inferred_from_them(made: Any) -> None:
    config, statistics, schema, folder = made
    anomalies = validate(statistics, schema, config, folder)
    assert artifact_utils.decode_split_names(anomalies.split_names) == ["train", "validation", "eval", "catalogue"]
    blessed = anomalies.get_json_value_custom_property("blessed")
    assert blessed == dict.fromkeys(["train", "validation", "eval", "catalogue"], 1)


@pytest.mark.slow
def test_every_split_is_held_to_its_part_of_a_curated_schema(made: Any) -> None:
    """An item in the catalogue, an interaction in a sequence, a query."""
    config, statistics, schema, folder = made
    curated = schema_pb2.Schema()
    curated.CopyFrom(schema)
    for name in ("price", "sequence_paid", "history_age"):
        tfdv.get_feature(curated, name).float_domain.CopyFrom(schema_pb2.FloatDomain(min=0, max=1))
    with pytest.raises(UserError) as refused:
        validate(statistics, curated, config, folder)
    for clause in (
        "anomalies in train: sequence_paid: expected at most 1; got 1.5",
        "anomalies in catalogue: price: expected at most 1; got",
        "anomalies in validation, eval: history_age: expected at most 1; got",
    ):
        assert clause in str(refused.value) or clause.replace("validation, ", "") in str(refused.value), clause


@pytest.mark.slow
def test_what_a_split_happens_to_lack_is_not_required_of_it(tmp_path: Path) -> None:
    """Eval's users have no attributes, its interactions no device, validation has values that nobody else has."""

    def change(row: dict[str, Any]) -> None:
        late = row["timestamp"] > 1_600_000_000 + 86400 * 280
        row["part"] = "eval" if row["user_id"] > 120 else "validation" if late else "train"
        row["device"] = {"eval": None, "validation": "watch", "train": "tv"}[row["part"]]

    config = small(tmp_path, change, split={"strategy": "column", "column": "part"})
    users = [{**row, **({"gender": None} if row["user_id"] > 120 else {})} for row in world.users()]
    pq.write_table(pa.Table.from_pylist(users), tmp_path / "users.parquet")
    statistics = statistics_of(config, tmp_path)
    schema = inferred(statistics, config, tmp_path)
    # Users above 120 have nothing but eval interactions: nobody knows them when they ask.
    assert tfdv.get_feature(schema, "history").type == schema_pb2.BYTES
    validate(statistics, schema, config, tmp_path)


@pytest.mark.slow
def test_the_shipped_schema_fits_movielens_100k(tmp_path: Path) -> None:
    from pipeline.datasets import movielens_100k

    try:
        movielens_100k.prepare(str(tmp_path), sources=("recbole",))
    except UserError as error:
        pytest.skip(str(error))
    paths = [f"tables.{name}.path={tmp_path / name}.parquet" for name in ("interactions", "items", "users")]
    config = load(str(SHIPPED), paths)
    schema = tfdv.load_schema_text(str(SHIPPED.parent / "movielens-100k.schema.pbtxt"))
    validate(statistics_of(config, tmp_path), schema, config, tmp_path)
