"""`twotower batch --for-ranker`: what a ranking model is trained on, from a split of a run and the servable it pushed.

The queries are the examples that the run has written, and what is asked is its own servable, as it answers requests. So
it is known which queries the fit has seen. Beam brings the queries of a shard together, and one worker writes them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from tfx.dsl.io import fileio

from modules.data.examples import CATALOGUE, EVAL, VALIDATION
from modules.encodings.features import Columns
from modules.errors import UserError
from modules.preprocessing import requests_from_examples
from modules.servable.contract import EXPLAIN, ITEM_ID, SCORE, ServableContract, load, read_servable
from pipeline import atomic, sharded_output, summary
from pipeline.config import Config, absolute
from pipeline.ranker_rows import CANDIDATES, QUERIES, Answers, Catalogue, Counts, Layout, Query, Rows, count
from pipeline.recommender import BATCH, check_k
from pipeline.runs import Run, read_json, read_run, read_runs

Split = Literal["validation", "eval"]

_CHOSEN_BY = (
    "validation has chosen the epochs and the blend weights of this model, so that it retrieves a little better there "
    "than on eval"
)
_LOADING = threading.Lock()
_LOADED: dict[tuple[str, str], _Model] = {}


@dataclass(frozen=True)
class Wanted:
    """What is asked for."""

    split: Split
    k: int
    negatives: int | None = None
    """How many candidates of a query that are not relevant are kept, at most; None for all."""
    inject_missed: bool = False
    """Whether relevant items that were not retrieved have a row all the same."""
    shards: int = 1


@dataclass(frozen=True)
class Outcome:
    """What was written."""

    run: str
    version: int
    counts: Counts
    seconds: float
    note: str
    """What is to be known of the rows, "" for nothing."""

    @property
    def recall(self) -> float | None:
        """Of the retrieval at K: the mean over the queries that have a relevant item; None without any."""
        counts = self.counts
        return counts.recall / counts.with_relevant if counts.with_relevant else None


@dataclass(frozen=True)
class Task:
    """What every worker does."""

    wanted: Wanted
    servable: str
    examples: str
    """The folder with the run's splits."""
    layout: Layout
    excludes_history: bool

    def file(self, folder: str, table: str, shard: int) -> str:
        """The file of a table's shard below a folder."""
        return sharded_output.file(os.path.join(folder, table), shard, self.wanted.shards)

    def pattern(self, split: str) -> str:
        """The files of a split."""
        return os.path.join(self.examples, f"Split-{split}", "*")


def write(config: Config, folder: str, wanted: Wanted, run_id: str | None = None) -> Outcome:
    """Writes the two tables of `ranker_rows`, each a folder with a file for each shard.

    Args:
        config: Says where the runs are, and where Beam's workers.
        folder: It appears whole or not at all. Workers see it under the same path.
        wanted: What is asked for.
        run_id: Whose split and servable; None for the last run's.

    Raises:
        UserError: The run has pushed nothing, its model was fitted on the split, k is larger than the model's answers,
            Beam's runner cannot be reached, or the folder has files or cannot be written.
    """
    started = time.monotonic()
    folder = os.path.abspath(folder)
    sharded_output.check(config, folder, "--for-ranker")
    run = _last(config) if run_id is None else read_run(config, run_id)
    note = _check_unseen(run, wanted.split)
    task = task_of(config, run, wanted)
    counts = carry_out(config, task, folder)
    return Outcome(run.id, _version(task.servable), counts, round(time.monotonic() - started, 2), note)


def task_of(config: Config, run: Run, wanted: Wanted) -> Task:
    """What workers have to do for a run's split.

    Raises:
        UserError: The run has pushed nothing, or k is larger than the model's answers.
    """
    servable, examples = _servable(run), _examples(run)
    contract, version = read_servable(servable), _version(servable)
    check_k(wanted.k, contract.k, version)
    if wanted.inject_missed and EXPLAIN not in contract.signatures:
        raise UserError(
            f"--inject-missed: version {version} was made before models gave scores of any item; run the pipeline again"
        )
    facts = {"run": run.id, "model_version": version, **asdict(wanted)}
    task = Task(wanted, servable, examples, _layout(config, contract, facts), contract.exclude_history)
    for split in (wanted.split, CATALOGUE):
        if not fileio.glob(task.pattern(split)):
            raise UserError(f"{task.pattern(split)}: the examples of run {run.id} are gone; run the pipeline again")
    return task


def carry_out(config: Config, task: Task, folder: str) -> Counts:
    """Writes the two tables; arguments and errors as `write` has them."""
    try:
        with atomic.new_folder(folder) as staging:
            for table in (CANDIDATES, QUERIES):
                os.mkdir(os.path.join(staging, table))
            with beam.Pipeline(options=PipelineOptions(list(config.beam.arguments()))) as pipeline:
                _write_all(pipeline, task, staging)
            counts = Counts()
            for of_shard in sharded_output.read_report(staging):
                counts.add(of_shard)
            shards = range(task.wanted.shards)
            files = [task.file(staging, table, shard) for table in (CANDIDATES, QUERIES) for shard in shards]
            sharded_output.keep_only(files, staging)
    finally:
        _LOADED.clear()
    return counts


def _last(config: Config) -> Run:
    runs = read_runs(config, last=1)
    if not runs:
        raise UserError("nothing has run yet; start with `twotower run`")
    return runs[0]


def _check_unseen(run: Run, split: Split) -> str:
    """Refuses a split that the run's model was fitted on; a note where it has chosen something of the model."""
    if split == EVAL:
        return ""
    trainer = run.stage("Trainer")
    training = read_json(trainer.output("model_run") if trainer else None, "training.json")
    # What a run before this was written down does not say has to be feared.
    if training.get("saw_validation", True):
        raise UserError(
            f"--split {VALIDATION}: the model of run {run.id} was fitted on these queries' relevant items, so that its "
            f"scores give them away; take --split {EVAL}, or set training.refit=false and run again"
        )
    return _CHOSEN_BY


def _servable(run: Run) -> str:
    """Where the version is that a run has pushed."""
    folder, deleted = summary.pushed(run)
    if folder is None:
        raise UserError(
            f"run {run.id} has pushed nothing, and a ranking model is for the candidates of what is served; "
            "name one that has with --run (`twotower runs` lists them)"
        )
    if deleted:
        raise UserError(f"{folder}, which run {run.id} has pushed, is deleted or damaged; run the pipeline again")
    return absolute(folder)


def _examples(run: Run) -> str:
    stage = run.stage("InteractionExampleGen")
    artifact = stage.output("examples") if stage else None
    if artifact is None:
        raise UserError(f"run {run.id} has no examples; run the pipeline again")
    return artifact.uri


def _version(servable: str) -> int:
    return int(os.path.basename(servable))


def _layout(config: Config, contract: ServableContract, facts: dict[str, Any]) -> Layout:
    names = config.tables.interactions
    return Layout(
        contract.embedding.features,
        Columns(user=names.user, item=names.item, timestamp=names.timestamp),
        tuple(dict.fromkeys((*contract.return_columns, *contract.filter_columns))),
        facts,
    )


def _write_all(pipeline: beam.Pipeline, task: Task, folder: str) -> None:
    """The Beam pipeline: reads, brings together by shard, asks, writes."""
    shards = task.wanted.shards
    queries = (
        pipeline
        | "ReadQueries" >> beam.io.ReadFromTFRecord(task.pattern(task.wanted.split))
        | "ShardOf" >> beam.Map(_keyed, task.layout.names, shards)
    )
    written = (
        # A shard without queries has files as well.
        {"shards": pipeline | "Shards" >> beam.Create([(shard, None) for shard in range(shards)]), "queries": queries}
        | "ByShard" >> beam.CoGroupByKey()
        | "Write" >> beam.ParDo(_Write(task, folder))
    )
    sharded_output.write_report([written], folder)


def _keyed(serialized: bytes, names: Columns, shards: int) -> tuple[int, tuple[bytes, int, bytes]]:
    """(shard, what queries are sorted by: the user, the time, and of equal times the example itself)."""
    features = tf.train.Example.FromString(serialized).features.feature
    [user], [asked] = features[names.user].bytes_list.value, features[names.timestamp].int64_list.value
    return sharded_output.shard_of(user, shards), (user, asked, serialized)


class _Model:
    """The servable and its catalogue's columns, once in a process."""

    def __init__(self, task: Task) -> None:
        self._features = task.layout.features.query
        self._servable = load(task.servable)
        files = sorted(fileio.glob(task.pattern(CATALOGUE)))
        items = tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator()
        self.catalogue = Catalogue(list(items), task.layout)

    def answers(self, serialized: Sequence[bytes], k: int) -> Answers:
        """What is retrieved for the queries of some examples, of which the query's own columns are read alone."""
        outputs = self._servable.signatures["serving_default"](**self._requests(serialized))
        return Answers(*(outputs[name].numpy()[:, :k] for name in (ITEM_ID, SCORE)))

    def scores(self, serialized: Sequence[bytes], items: Sequence[Sequence[str]]) -> np.ndarray:
        """[B, M] the scores of some items of each query; −∞ for padding and what is not in the catalogue."""
        width = max(map(len, items))
        asked = tf.constant([[*row, *[""] * (width - len(row))] for row in items], tf.string)
        return self._servable.signatures[EXPLAIN](**self._requests(serialized), **{EXPLAIN: asked})[SCORE].numpy()

    def _requests(self, serialized: Sequence[bytes]) -> dict[str, tf.Tensor]:
        return requests_from_examples(tf.constant(list(serialized), tf.string), self._features)


def _model(task: Task) -> _Model:
    """The model of a task, which the threads of a process share."""
    with _LOADING:
        key = task.servable, task.examples
        if key not in _LOADED:
            _LOADED.clear()
            _LOADED[key] = _Model(task)
        return _LOADED[key]


class _Write(beam.DoFn):
    """(shard, its queries) → its files, and (its counts, "")."""

    def __init__(self, task: Task, folder: str) -> None:
        self._task, self._folder = task, folder

    def setup(self) -> None:
        self._model = _model(self._task)

    def process(self, element: tuple[int, dict[str, Iterable[Any]]]) -> Iterator[tuple[dict[str, float], str]]:
        shard, together = element
        # Nothing will be kept: whoever asked has gone.
        if not os.path.isdir(self._folder):
            return
        try:
            yield vars(self._written(shard, [serialized for *_, serialized in sorted(together["queries"])])), ""
        except UserError as error:
            yield {}, str(error)

    def _written(self, shard: int, examples: Sequence[bytes]) -> Counts:
        task, counts = self._task, Counts()
        rows = Rows(task.layout, self._model.catalogue, task.excludes_history, task.wanted.negatives)
        with (
            atomic.new_file(task.file(self._folder, CANDIDATES, shard)) as candidates_file,
            atomic.new_file(task.file(self._folder, QUERIES, shard)) as queries_file,
            pq.ParquetWriter(candidates_file, task.layout.candidates_schema(), compression="zstd") as candidates,
            pq.ParquetWriter(queries_file, task.layout.queries_schema(), compression="zstd") as asked,
        ):
            for start in range(0, len(examples), BATCH):
                batch = examples[start : start + BATCH]
                queries, columns = rows.queries(batch, self._model.answers(batch, task.wanted.k))
                injected = self._inject(batch, queries) if task.wanted.inject_missed else 0
                for writer, table in zip((candidates, asked), rows.tables(queries, columns), strict=True):
                    writer.write_table(table)
                counts.add(vars(count(queries, injected)))
        return counts

    def _inject(self, batch: Sequence[bytes], queries: Sequence[Query]) -> int:
        """Adds the relevant items that were not retrieved; how many have been added."""
        short = [place for place, query in enumerate(queries) if query.missed]
        if not short:
            return 0
        scores = self._model.scores([batch[place] for place in short], [queries[place].missed for place in short])
        before = sum(len(query.items) for query in queries)
        for place, of_query in zip(short, scores, strict=True):
            queries[place].inject(of_query[: len(queries[place].missed)])
        return sum(len(query.items) for query in queries) - before
