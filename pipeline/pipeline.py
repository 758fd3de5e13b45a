"""The pipeline, top to bottom: from tables to a gated model in the folder that TF Serving watches."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import Any

# TFX first: it supplies a module that TFDV 1.16 looks for in tfx-bsl, which no longer has it.
import tfx.components  # noqa: F401

# isort: split
import tensorflow_data_validation as tfdv
from ml_metadata.proto import metadata_store_pb2
from tfx.components import StatisticsGen, Trainer, Transform, Tuner
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base import base_node
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2

from components.baseline_resolver.component import BaselineResolver
from components.evaluator.component import Evaluator
from components.example_validator.component import ExampleValidator
from components.interaction_example_gen.component import InteractionExampleGen
from components.pusher.component import Pusher
from components.run_report.component import RunReport
from components.scann_index_builder.component import ScannIndexBuilder
from components.schema_gen.component import SchemaGen
from components.servable_validator.component import ServableValidator
from modules import schema as schemas
from modules.data.examples import CATALOGUE, EVAL, TRAIN, VALIDATION
from modules.data.tables import fingerprint as tables_fingerprint
from modules.encodings.features import Columns
from modules.gates import eval_config
from modules.push_destination import latest_version
from pipeline import runs
from pipeline.config import Config
from pipeline.fingerprint import code

# Sections that decide what a model is and whether it passes; the others say where the pipeline runs.
_TOLD = {"tables", "split", "features", "model", "training", "tuner", "index", "serving", "evaluation"}


@dataclass(frozen=True)
class Site:
    """Where a pipeline runs, and what is known of it beforehand: all that tells this machine from a cluster."""

    root: str
    push_destination: str
    beam_options: tuple[str, ...]
    schema_file: str | None
    """The curated schema as the stages can read it; None when there is none."""
    checkpoints: str = ""
    """Where a killed training finds its last epoch again; "" keeps none."""
    metadata: metadata_store_pb2.ConnectionConfig | None = None
    """The metadata store; a cluster has its own."""
    tables: str = ""
    """Fingerprint of the tables; "" where they are not looked at before the run."""
    stamp: str = ""
    """Fingerprint of data, code and configuration: the baseline is another one's. "" compares with whatever is newest,
    which is right for a pipeline that is compiled once and runs on every day's data."""
    baseline: str = ""
    """The pushed version to compare with; "" looks when it runs."""


def this_machine(config: Config) -> Site:
    """The site of `twotower run`: files are here and are looked at now."""
    stamp = _stamp(config)
    return Site(
        root=config.root,
        push_destination=config.push_destination,
        beam_options=config.beam.arguments(),
        schema_file=_staged_schema(config),
        checkpoints=os.path.join(config.root, "checkpoints"),
        metadata=runs.connection(config),
        tables=tables_fingerprint(config.tables),
        stamp=stamp,
        baseline=latest_version(config.push_destination, excluding_stamp=stamp),
    )


def create_pipeline(config: Config, site: Site | None = None) -> tfx_pipeline.Pipeline:
    """The whole pipeline for one configuration.

    What TFX's cache key cannot see (the content of the tables, the code behind an import path) reaches every stage that
    depends on it as a parameter, so that a change re-executes exactly those stages and those below them.

    Args:
        config: The configuration.
        site: Where it runs, by default on this machine.
    """
    site = site or this_machine(config)
    columns = Columns(
        user=config.tables.interactions.user,
        item=config.tables.interactions.item,
        timestamp=config.tables.interactions.timestamp,
    )

    # Tables → examples: joined, split; a sequence for each user, and queries with what was known when they are asked.
    example_gen = InteractionExampleGen(
        tables=config.tables,
        split=config.split,
        features=config.features,
        evaluation=config.evaluation,
        serving=config.serving,
        fingerprint=site.tables,
        code=code("components.interaction_example_gen.executor"),
    )
    examples = example_gen.outputs["examples"]

    # Statistics, schema, and a stop in words when the data are not what the schema says.
    described = schemas.described(config.features, columns)
    statistics_gen = StatisticsGen(examples=examples, stats_options=tfdv.StatsOptions(feature_allowlist=described))
    schema_gen = _schema_gen(config, columns, site, statistics_gen)
    schema = schema_gen.outputs["schema"]
    example_validator = ExampleValidator(
        statistics=statistics_gen.outputs["statistics"],
        schema=schema,
        features=config.features.encodings,
        columns=columns,
        k=config.serving.k,
        code=code("components.example_validator.executor"),
    )

    # Vocabularies and normalizers, learned on the sequences and the catalogue; the graph travels into the servable.
    transform = Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn="modules.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=[TRAIN, CATALOGUE], transform=[TRAIN, VALIDATION, CATALOGUE]),
        custom_config={
            "features": config.features.encodings.model_dump_json(),
            "columns": columns.model_dump_json(),
            "code": code("modules.preprocessing"),
        },
        disable_statistics=True,
        # The analyzer cache is for pipelines that read many spans again; here it would double the Beam graph.
        disable_analyzer_cache=True,
    )
    transform.add_upstream_node(example_validator)

    # The two towers, under the settings that the Tuner finds where it is enabled. A warm start goes on from the weights
    # of the last pushed model.
    baseline_resolver = BaselineResolver(
        push_destination=site.push_destination,
        pipeline_stamp=site.stamp,
        baseline_version=site.baseline,
    )
    fitting: dict[str, Any] = {
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "schema": schema,
        "train_args": trainer_pb2.TrainArgs(splits=[TRAIN]),
        "eval_args": trainer_pb2.EvalArgs(splits=[VALIDATION]),
    }
    custom_config = {
        "features": config.features.model_dump_json(),
        "columns": columns.model_dump_json(),
        "model": config.model.model_dump_json(),
        "training": config.training.model_dump_json(),
        "repeats": json.dumps(not config.serving.exclude_history),
    }
    tuner = None
    if config.tuner.enabled:
        tuner = Tuner(
            tuner_fn="modules.tuner.tuner_fn",
            **fitting,
            custom_config={
                **custom_config,
                "tuner": config.tuner.model_dump_json(),
                "history": config.evaluation.history,
                "code": code("modules.tuner"),
            },
        )
    trainer = Trainer(
        run_fn="modules.trainer.run_fn",
        **fitting,
        hyperparameters=tuner.outputs["best_hyperparameters"] if tuner else None,
        base_model=baseline_resolver.outputs["baseline"] if config.training.warm_start else None,
        custom_config={
            **custom_config,
            "checkpoint_root": site.checkpoints,
            "code": code("modules.trainer"),
        },
    )

    # The embedded catalogue, its index, known users: the one servable that is evaluated, validated, pushed and served.
    index_builder = ScannIndexBuilder(
        model=trainer.outputs["model"],
        examples=examples,
        features=config.features,
        columns=columns,
        index=config.index,
        serving=config.serving,
        evaluation=config.evaluation,
        name=config.name,
        tables=config.tables,
        code=code("components.scann_index_builder.executor"),
    )
    servable = index_builder.outputs["servable"]

    # The two gates.
    evaluator = Evaluator(
        examples=examples,
        model=servable,
        baseline_model=baseline_resolver.outputs["baseline"],
        example_splits=[EVAL],
        eval_config=eval_config(
            config.evaluation,
            config.features.history.column if config.features.history and config.serving.exclude_history else None,
        ),
        code=code("components.evaluator.executor", "modules.evaluation"),
    )
    servable_validator = ServableValidator(
        servable=servable,
        report=index_builder.outputs["report"],
        serving=config.serving,
        code=code("components.servable_validator.executor"),
    )

    pusher = Pusher(
        model=servable,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=servable_validator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=site.push_destination)
        ),
        pipeline_stamp=site.stamp,
    )

    # A page to judge the run by, of a refused model too.
    run_report = RunReport(
        examples=examples,
        anomalies=example_validator.outputs["anomalies"],
        model_run=trainer.outputs["model_run"],
        servable=servable,
        index_report=index_builder.outputs["report"],
        evaluation=evaluator.outputs["evaluation"],
        infra_blessing=servable_validator.outputs["blessing"],
        pushed_model=pusher.outputs["pushed_model"],
        configuration=config.model_dump_json(include=_TOLD, exclude_unset=True),
        user=columns.user,
        title=config.tables.items.title,
        min_queries=config.evaluation.min_queries,
        code=code("components.run_report.executor"),
    )

    return tfx_pipeline.Pipeline(
        pipeline_name=config.name,
        pipeline_root=site.root,
        components=[
            example_gen,
            statistics_gen,
            schema_gen,
            example_validator,
            transform,
            *([tuner] if tuner else []),
            trainer,
            index_builder,
            baseline_resolver,
            evaluator,
            servable_validator,
            pusher,
            run_report,
        ],
        enable_cache=True,
        metadata_connection_config=site.metadata,
        beam_pipeline_args=list(site.beam_options),
    )


def _schema_gen(config: Config, columns: Columns, site: Site, statistics_gen: StatisticsGen) -> base_node.BaseNode:
    """The curated schema if the configuration names one, else the schema of this run's data."""
    if site.schema_file is None:
        return SchemaGen(
            statistics=statistics_gen.outputs["statistics"],
            features=config.features.encodings,
            columns=columns,
            code=code("components.schema_gen.executor"),
        )
    return ImportSchemaGen(schema_file=site.schema_file)


def _staged_schema(config: Config) -> str | None:
    """A copy of the curated schema, if there is one, under a path that changes with its content.

    ImportSchemaGen's cache key holds the path alone.
    """
    if config.data_schema.path is None:
        return None
    with open(config.data_schema.path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()[:16]
    staged = os.path.join(config.root, "schemas", digest, "schema.pbtxt")
    if not os.path.exists(staged):
        os.makedirs(os.path.dirname(staged), exist_ok=True)
        shutil.copyfile(config.data_schema.path, staged + ".partial")
        os.replace(staged + ".partial", staged)
    return staged


def _stamp(config: Config) -> str:
    """Identifies what makes a servable: data, code, and the part of the configuration that it depends on."""
    what: dict[str, Any] = {
        "config": config.model_dump(
            mode="json", include={"tables", "split", "features", "model", "training", "tuner", "index", "serving"}
        ),
        "tables": tables_fingerprint(config.tables),
        "code": code("modules.trainer", "modules.tuner", "components.interaction_example_gen.executor",
                     "components.scann_index_builder.executor"),
    }  # fmt: skip
    # A limit on latency decides whether a servable is pushed, not what it is.
    del what["config"]["serving"]["latency_p99_ms"]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
