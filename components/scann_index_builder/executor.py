"""Embeds the catalogue on Beam, has the index built and tuned, and writes the servable and the IndexReport."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from absl import logging
from apache_beam.io.filesystems import FileSystems
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components import records
from components.signature import Artifacts, Properties
from modules.data import tables
from modules.data.examples import CATALOGUE, EVAL, VALIDATION
from modules.data.user_tables import UserTables
from modules.encodings.features import Columns, Features
from modules.preprocessing import requests_from_examples
from modules.retrieval import tuning
from modules.retrieval.tuning import QuerySample
from modules.retrieval.vectors import VectorFile
from modules.servable import signatures, user_snapshot, warmup
from modules.servable.catalogue import EmbeddedCatalogue, by_popularity, check, joined, values, vector_column
from modules.servable.contract import ServableContract, read_embedding
from modules.servable.embedding import Embedding, candidate_requests
from modules.servable.signatures import ServableModule
from modules.servable.user_snapshot import UserSnapshot
from modules.settings import Evaluation, Index, Serving, Tables, TemporalSplit

MODEL_KEY, EXAMPLES_KEY = "model", "examples"
SERVABLE_KEY, REPORT_KEY = "servable", "report"
FEATURES_KEY, COLUMNS_KEY, INDEX_KEY = "features", "columns", "index"
SERVING_KEY, EVALUATION_KEY, NAME_KEY, CODE_KEY = "serving", "evaluation", "name", "code"
TABLES_KEY = "tables"

_BATCH = 512
# Vectors that are read at once.
_ROWS = 8192
_VECTOR, _RETURN, _FILTER = "vector", "return:", "filter:"


@dataclass(frozen=True)
class _Settings:
    features: Features
    columns: Columns
    index: Index
    serving: Serving
    evaluation: Evaluation
    tables: Tables | None
    """What known users are taken from; None where none are wanted."""

    @classmethod
    def of(cls, exec_properties: Properties) -> _Settings:
        return cls(
            Features.model_validate_json(exec_properties[FEATURES_KEY]),
            Columns.model_validate_json(exec_properties[COLUMNS_KEY]),
            Index.model_validate_json(exec_properties[INDEX_KEY]),
            Serving.model_validate_json(exec_properties[SERVING_KEY]),
            Evaluation.model_validate_json(exec_properties[EVALUATION_KEY]),
            Tables.model_validate_json(exec_properties[TABLES_KEY]) if exec_properties[TABLES_KEY] else None,
        )


class Executor(base_beam_executor.BaseBeamExecutor):
    """Executor of ScannIndexBuilder."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Builds the servable.

        Args:
            input_dict: `model` (the Trainer's export) and `examples` (splits catalogue, validation and eval).
            output_dict: `servable` (SavedModel under Format-Serving) and `report` (`tuning.IndexTuningReport` as JSON).
            exec_properties: JSON of the settings, the model's name, and a stamp of the code.

        Raises:
            UserError: The catalogue cannot be served (`catalogue.check`), a split has no examples, the model was
                exported under another contract, or the tables of known users cannot be read.
        """
        settings = _Settings.of(exec_properties)
        model_path = path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict[MODEL_KEY]))
        examples = input_dict[EXAMPLES_KEY]
        local = tempfile.TemporaryDirectory()
        try:
            catalogue = self.EmbedCatalogue(examples, model_path, settings, os.path.join(local.name, "vectors"))
            check(catalogue, settings.features, settings.serving)
            embedding = _load(model_path)
            sampled = {split: records.sample(examples, split) for split in (VALIDATION, EVAL)}
            queries = {split: _queries(embedding, r, catalogue, settings) for split, r in sampled.items()}
            index, parameters, report = tuning.build_index(
                catalogue.vectors, queries[VALIDATION], queries[EVAL], settings.index, settings.serving.k
            )
            contract = ServableContract(
                model=exec_properties[NAME_KEY],
                k=settings.serving.k,
                evaluation_k=max(settings.evaluation.k),
                layer=report.chosen.layer,
                strategy=report.chosen.strategy,
                partitions_to_search=parameters.partitions_to_search,
                reorder=parameters.reorder,
                catalogue_size=len(catalogue.item_ids),
                dimension=report.dimension,
                query_columns=tuple(f.column for f in settings.features.query),
                history_column=settings.features.history.column if settings.features.history else None,
                exclude_history=settings.serving.exclude_history,
                return_columns=settings.serving.return_columns,
                filter_columns=settings.serving.filter_columns,
                max_per_value=settings.serving.max_per_value,
                embedding=embedding.contract,
            )
            items = records.sample(examples, CATALOGUE, at_most=32)
            requests = warmup.requests(
                catalogue, settings.features, settings.serving, settings.columns.item, sampled[EVAL], items
            )
            users = self.TakeUsers(catalogue.item_ids, settings)
            if users is not None:
                requests = warmup.with_users(requests, users, settings.features)
            path = path_utils.serving_model_dir(artifact_utils.get_single_uri(output_dict[SERVABLE_KEY]))
            evaluation_k = max(settings.evaluation.k)
            servable = ServableModule(
                embedding, catalogue, index, settings.features, settings.serving, evaluation_k, local.name, users
            )
            signatures.save(servable, path, contract, requests)
        finally:
            local.cleanup()
            # Runs of a whole pipeline share one process.
            _load.cache_clear()
        report_artifact = artifact_utils.get_single_instance(output_dict[REPORT_KEY])
        io_utils.write_string_file(
            os.path.join(report_artifact.uri, tuning.REPORT_FILE), report.model_dump_json(indent=2)
        )
        report_artifact.set_float_custom_property("recall", report.chosen.recall)
        report_artifact.set_int_custom_property("target_met", int(report.target_met))
        logging.info("Servable of %d items written to %s.", report.catalogue_size, path)

    def TakeUsers(self, item_ids: Sequence[str], settings: _Settings) -> UserSnapshot | None:
        """What the tables know of users, eval interactions included: this is what will be asked for. None if unwanted.

        The Evaluator does not look at it.
        """
        if settings.tables is None:
            return None
        wanted = tables.wanted(settings.tables, settings.features, settings.evaluation, settings.serving)
        attributes = tables.plan(settings.tables, TemporalSplit(), wanted).users
        taken = user_snapshot.take(
            UserTables(settings.tables, attributes), attributes, item_ids, settings.features, settings.columns,
            settings.serving.known_users,
        )  # fmt: skip
        logging.info(
            "%d users known by %d interactions; %d with items that the catalogue lacks left out.",
            len(taken.users), taken.interactions, taken.unknown,
        )  # fmt: skip
        return taken.users

    def EmbedCatalogue(
        self, examples: list[types.Artifact], model_path: str, settings: _Settings, vectors_path: str
    ) -> EmbeddedCatalogue:
        """Every item of the catalogue split, in the order of popularity, with its vector in a local file."""
        folder = os.path.join(self._get_tmp_dir(), "embedded_catalogue")
        dimension = read_embedding(model_path).layout.width
        embed = _Embed(model_path, dimension, settings.features, settings.columns.item, settings.serving)
        [uri] = artifact_utils.get_split_uris(examples, CATALOGUE)
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Read" >> beam.io.ReadFromTFRecord(io_utils.all_files_pattern(uri))
                | "Batch" >> beam.BatchElements(min_batch_size=_BATCH, max_batch_size=2 * _BATCH)
                | "Embed" >> beam.ParDo(embed)
                | "Write" >> beam.io.WriteToParquetBatched(os.path.join(folder, "items"), schema=embed.schema())
            )
        try:
            return _read_catalogue(folder, settings.serving, vectors_path)
        finally:
            if fileio.exists(folder):
                fileio.rmtree(folder)


class _Embed(beam.DoFn):
    """Batches of serialized catalogue examples → tables with ids, vectors, popularity and the columns of an answer."""

    def __init__(self, model_path: str, dimension: int, features: Features, item_column: str, serving: Serving) -> None:
        self._model_path = model_path
        self._dimension = dimension
        self._features = features
        self._item_column = item_column
        self._serving = serving

    def setup(self) -> None:
        self._embedding = _load(self._model_path)

    def schema(self) -> pa.Schema:
        vector = pa.list_(pa.float32(), self._dimension)
        return pa.schema(
            [("item_id", pa.string()), (_VECTOR, vector), ("popularity", pa.float32())]
            + [(_RETURN + column, pa.string()) for column in self._serving.return_columns]
            + [(_FILTER + column, pa.list_(pa.string())) for column in self._serving.filter_columns]
        )

    def process(self, batch: list[bytes]) -> Iterator[pa.Table]:
        requests = candidate_requests(tf.constant(batch, tf.string), self._features, self._item_column)
        embedded = self._embedding.candidate(**requests)
        examples = [tf.train.Example.FromString(record) for record in batch]
        columns: list[Any] = [
            [joined(values(example, self._item_column)) for example in examples],
            vector_column(embedded["embedding"].numpy()),
            embedded["popularity"].numpy(),
        ]
        columns += [[joined(values(e, c)) for e in examples] for c in self._serving.return_columns]
        columns += [[values(e, c) for e in examples] for c in self._serving.filter_columns]
        schema = self.schema()
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, schema, strict=True)
        ]
        yield pa.Table.from_arrays(arrays, schema=schema)


@functools.lru_cache(maxsize=1)
def _load(model_path: str) -> Embedding:
    """The embedding model, once per process: Beam's in-process runner and the rest of the executor share it."""
    contract = read_embedding(model_path)
    return Embedding(tf.saved_model.load(model_path), contract)


def _read_catalogue(folder: str, serving: Serving, vectors_path: str) -> EmbeddedCatalogue:
    """What `_Embed` wrote, in the order of popularity; the vectors go from file to file, some at a time."""
    paths = sorted(fileio.glob(os.path.join(folder, "items*")))
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(pq.ParquetFile(FileSystems.open(path))) for path in paths]
        if not sum(file.metadata.num_rows for file in files):
            return EmbeddedCatalogue([], np.zeros((0, 0), np.float32), np.zeros(0, np.float32), {}, {})
        others = [name for name in files[0].schema_arrow.names if name != _VECTOR]
        table = pa.concat_tables([file.read(others) for file in files])
        order = by_popularity(table["item_id"], table["popularity"])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        vectors = VectorFile(vectors_path, len(order), files[0].schema_arrow.field(_VECTOR).type.list_size)
        start = 0
        for batch in itertools.chain.from_iterable(file.iter_batches(_ROWS, columns=[_VECTOR]) for file in files):
            some = batch.column(0).flatten().to_numpy().reshape(len(batch), -1)
            vectors.write(place[start : start + len(some)], some)
            start += len(some)

    def ordered(column: str) -> list[Any]:
        values = table[column].to_pylist()
        return [values[row] for row in order]

    return EmbeddedCatalogue(
        ordered("item_id"),
        vectors,
        table["popularity"].to_numpy()[order],
        {column: ordered(_RETURN + column) for column in serving.return_columns},
        {column: ordered(_FILTER + column) for column in serving.filter_columns},
    )


def _queries(
    embedding: Embedding, records: Sequence[bytes], catalogue: EmbeddedCatalogue, settings: _Settings
) -> QuerySample:
    """Query vectors of examples, and the rows of what each has seen."""
    history = settings.features.history
    vectors: list[np.ndarray] = []
    seen_items: list[set[bytes]] = []
    for start in range(0, len(records), _BATCH):
        examples = tf.constant(list(records[start : start + _BATCH]), tf.string)
        requests = requests_from_examples(examples, settings.features.query)
        vectors.append(embedding.query(**requests).numpy())
        if history is not None and settings.serving.exclude_history:
            seen_items += map(set, requests[history.column].numpy())
        else:
            seen_items += [set()] * len(vectors[-1])
    known = set().union(*seen_items)
    rows = {key: row for row, item_id in enumerate(catalogue.item_ids) if (key := item_id.encode()) in known}
    seen = [list({rows[item] for item in of_query if item in rows}) for of_query in seen_items]
    excluded = np.full((len(seen), max(map(len, seen))), -1, np.int32)
    for number, of_query in enumerate(seen):
        excluded[number, : len(of_query)] = of_query
    return QuerySample(np.concatenate(vectors), excluded)
