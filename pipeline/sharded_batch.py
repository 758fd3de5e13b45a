"""`twotower batch --shards`: the top K of every user on Beam, in files that hold a shard of the users each.

A user's shard is a hash of the id. What the tables have of a shard is brought together, and one worker asks the model
for it, as `twotower batch` without shards does for everybody. No process holds more than the shard that it works on.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from modules import beam_signatures, beam_tables
from modules.data import columns, user_tables
from modules.data.tables import Column, Part, TableError
from modules.data.user_tables import UserRows
from modules.errors import UserError
from modules.push_destination import newest_version
from pipeline import atomic, sharded_output
from pipeline.config import Config, absolute
from pipeline.recommender import Recommender
from pipeline.sharded_output import REPORT

# Lines of the file of users that go on together.
_LINES = 65_536
_LOADING = threading.Lock()


@dataclass(frozen=True)
class Question:
    """What every worker asks, and whom."""

    config: str
    """JSON of `Config`."""
    version: int
    """Of the model: a newer one may be pushed meanwhile."""
    now: int
    """Time of the requests, in seconds since 1970."""
    k: int
    shards: int
    users: str | None
    """A file with those who are asked for; None for everybody."""
    folder: str
    """Where the files go."""

    def shard(self, user: bytes) -> int:
        return sharded_output.shard_of(user, self.shards)

    def file(self, shard: int) -> str:
        return sharded_output.file(self.folder, shard, self.shards)


def _of_the_model(config: Config) -> str:
    """JSON of what workers have to know, who run in another folder; neither passwords nor services are of it."""
    output = config.output.model_copy(update={"push": absolute(config.output.push)})
    known = config.model_copy(update={"output": output})
    return known.model_dump_json(by_alias=True, exclude={"metadata", "beam", "kubeflow"})


def _recommender(config: str, version: int, now: int) -> Recommender:
    """The model, once in a process, whose threads share it; under Beam's in-process runner with who started it, too."""
    with _LOADING:
        return _load(config, version, now)


@functools.lru_cache(maxsize=1)
def _load(config: str, version: int, now: int) -> Recommender:
    return Recommender(Config.model_validate_json(config), now, version)


def write(config: Config, folder: str, shards: int, k: int, users: str | None, now: int | None) -> tuple[int, int]:
    """Writes the top k of every user as Parquet files, history left out.

    Args:
        config: The configuration that the model was made with; `beam` says where.
        folder: It appears whole or not at all, with `shards` files. Workers see it under the same path.
        shards: Parts that the users are cut into.
        k: At most `serving.k` of the model.
        users: A file with one user id per line, that workers see; None for every user of the tables.
        now: Time of the requests, in seconds since 1970; None for the time of the call.

    Returns:
        The number of users, and the version that was asked.

    Raises:
        UserError: Nothing has been pushed, Beam's runner cannot be reached, the folder has files or cannot be written,
            k is larger than the model's answers, or a table cannot be read.
    """
    folder = os.path.abspath(folder)
    sharded_output.check(config, folder, "--shards")
    if users is not None:
        for _ in user_tables.listed(users):
            pass
    asked_at = int(time.time()) if now is None else now
    version = int(newest_version(config.push_destination))
    settings = _of_the_model(config)
    try:
        model = _recommender(settings, version, asked_at)
        model.check_k(k)
        model.load()
        with atomic.new_folder(folder) as staging:
            users = users and os.path.abspath(users)
            question = Question(settings, version, asked_at, k, shards, users, staging)
            options = PipelineOptions(list(config.beam.arguments()))
            with beam_signatures.kept(), beam.Pipeline(options=options) as pipeline:
                _answer_everybody(pipeline, question, config, model.tables)
            count = sum(sharded_output.read_report(staging))
            sharded_output.keep_only([question.file(shard) for shard in range(shards)], staging)
    finally:
        _load.cache_clear()
    return count, version


def _answer_everybody(
    pipeline: beam.Pipeline, question: Question, config: Config, tables: user_tables.UserTables
) -> None:
    """The Beam pipeline: reads, brings together by shard, asks, writes."""
    # A shard without users has a file as well.
    together = {"shards": pipeline | "Shards" >> beam.Create([(shard, None) for shard in range(question.shards)])}
    reports = []
    for table, path in tables.paths.items():
        read = (
            pipeline
            | f"List[{table}]" >> beam_tables.Parts(table, path)
            | f"Read[{table}]"
            >> beam.ParDo(Read(question, tables.ids[table], tables.columns[table])).with_outputs(REPORT, main="rows")
        )
        together[table] = read.rows
        reports.append(read[REPORT])
    if question.users is not None:
        listed = (
            pipeline
            | "Users" >> beam.Create([question.users], reshuffle=False)
            | "List[users asked for]" >> beam.ParDo(_List(question)).with_outputs(REPORT, main="rows")
        )
        together["listed"] = listed.rows
        reports.append(listed[REPORT])
    problems = reports | "Problems" >> beam.Flatten()
    of_shards = together | "ByShard" >> beam.CoGroupByKey()
    answered = of_shards | "Answer" >> beam.ParDo(_Answer(question), beam.pvalue.AsList(problems))
    sharded_output.write_report([problems, answered], question.folder)


class Read(beam_tables.Read):
    """Yields (shard, (file, first row, what a batch has of the shard's users))."""

    def __init__(self, question: Question, user: str, wanted: list[Column | str]) -> None:
        self._question = question
        self._user = user
        self.columns = wanted

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        users = columns.ids(batch.column(self._user))
        shards = np.array([-1 if user is None else self._question.shard(user) for user in users], np.int64)
        order = np.argsort(shards, kind="stable")
        found, starts = np.unique(shards[order], return_index=True)
        for shard, rows in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            if shard >= 0:
                yield shard, (part.file, first_row, batch.take(pa.array(rows)))

    def unreadable(self, error: TableError) -> Any:
        return beam.pvalue.TaggedOutput(REPORT, (0, str(error)))


class _List(beam.DoFn):
    """The path of the file of users → (shard, (first line, the shard's users of some lines))."""

    def __init__(self, question: Question) -> None:
        self._question = question

    def process(self, path: str) -> Iterator[Any]:
        try:
            users = user_tables.listed(path)
            for number in itertools.count():
                by_shard: dict[int, list[str]] = {}
                for user in itertools.islice(users, _LINES):
                    by_shard.setdefault(self._question.shard(user.encode()), []).append(user)
                if not by_shard:
                    return
                for shard, some in by_shard.items():
                    yield shard, (number, some)
        except UserError as error:
            yield beam.pvalue.TaggedOutput(REPORT, (0, str(error)))


class _Answer(beam.DoFn):
    """(shard, its rows) → its file, and (number of its users, "" or what went wrong)."""

    def __init__(self, question: Question) -> None:
        self._question = question

    def setup(self) -> None:
        asked = self._question
        self._model = _recommender(asked.config, asked.version, asked.now)

    def process(self, element: tuple[int, dict[str, Iterable[Any]]], problems: list[Any]) -> Iterator[tuple[int, str]]:
        # Nothing will be kept: a table cannot be read, or whoever asked has gone.
        if problems or not os.path.isdir(self._question.folder):
            return
        shard, together = element
        users = None
        if self._question.users is not None:
            users = [user for _, some in sorted(together["listed"]) for user in some]
        known = UserRows(in_order(together["interactions"]), in_order(together.get("users", [])))
        try:
            requests = self._model.requests(users, known)
            yield self._model.write_batch(self._question.file(shard), self._question.k, requests), ""
        except UserError as error:
            yield 0, str(error)


def in_order(pieces: Iterable[tuple[int, int, pa.RecordBatch]]) -> list[pa.RecordBatch]:
    """What `Read` has yielded for a shard in whatever order, in that of the table, which settles equal times."""
    return [batch for *_, batch in sorted(pieces, key=lambda piece: piece[:2])]
