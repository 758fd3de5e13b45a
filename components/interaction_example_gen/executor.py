"""InteractionExampleGen on Beam: tables in, tf.Examples in four splits out, or one line that says what is wrong.

One file, because its steps are one Beam pipeline, which is read from top to bottom.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from pydantic import TypeAdapter
from tfx.components.example_gen import write_split
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs

from components.signature import Artifacts, Properties
from modules import beam_tables, full_disk
from modules.data import columns, examples, histories, report, tables
from modules.data.examples import (
    CATALOGUE,
    HELD_OUT,
    RELEVANT,
    SEQUENCE_PREFIX,
    SLICE_PREFIX,
    TRAIN,
    VALIDATION,
    WEIGHT,
    Value,
)
from modules.data.histories import SPLITS, Cutoffs, Interactions
from modules.data.parsed_rows import InteractionRows, ItemRows, UserRows
from modules.data.report import Entry, Report
from modules.data.tables import Part, Plan, Wanted
from modules.data.time_histogram import TimeHistogram
from modules.errors import UserError
from modules.settings import Split, Tables, TemporalSplit

EXAMPLES_KEY = standard_component_specs.EXAMPLES_KEY
TABLES_KEY = "tables"
SPLIT_KEY = "split"
WANTED_KEY = "wanted"
FINGERPRINT_KEY = "fingerprint"
CODE_KEY = "code"
DAYS_FILE = "interactions_by_day.json"
"""Beside the splits: split → day, in days since 1970 (UTC) → interactions."""

# So many users' times are collected before they are counted together.
_PIECES = 1024
_DAY = 86_400
# Of tables for each file that is written: a file is one worker's to read, in this and in the next stages.
_SHARD_BYTES = 128 * 2**20
_REPORT = "report"


class Executor(base_beam_executor.BaseBeamExecutor):
    """Writes the output artifact `examples`; counts become its custom properties."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: Properties) -> None:
        """Runs the Beam pipeline.

        Args:
            input_dict: Unused.
            output_dict: `examples`, one Examples artifact.
            exec_properties: JSON of `Tables`, of a `Split` and of `Wanted`.

        Raises:
            UserError: The tables, or the place to write to, do not allow it. Nothing is left in the artifact's folder,
                as after any other error.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        artifact = artifact_utils.get_single_instance(output_dict[EXAMPLES_KEY])
        settings = Tables.model_validate_json(exec_properties[TABLES_KEY])
        split: Split = TypeAdapter(Split).validate_json(exec_properties[SPLIT_KEY])
        wanted = Wanted.model_validate_json(exec_properties[WANTED_KEY])

        plan = tables.plan(settings, split, wanted)
        report_file = os.path.join(artifact.uri, _REPORT)
        try:
            _check_writable(artifact.uri)
            with self._make_beam_pipeline() as pipeline:
                _generate(pipeline, settings, split, wanted, plan, artifact.uri)
            with fileio.open(report_file, "r") as file:
                found = Report(json.load(file))
            found.raise_problems(settings, split)
        except Exception:
            _empty(artifact.uri)
            raise
        fileio.remove(report_file)
        _write_json(found.days, os.path.join(artifact.uri, DAYS_FILE))

        artifact.split_names = artifact_utils.encode_split_names([*SPLITS, CATALOGUE])
        examples_utils.set_payload_format(artifact, example_gen_pb2.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(artifact, write_split.to_file_format_str(example_gen_pb2.FORMAT_TFRECORDS_GZIP))
        for name, count in found.counts.items():
            artifact.set_int_custom_property(name, count)


def _generate(pipeline: beam.Pipeline, settings: Tables, split: Split, wanted: Wanted, plan: Plan, uri: str) -> None:
    """The Beam pipeline: reads, joins by user, splits, looks back, writes."""
    items = (
        pipeline
        | "ListItems" >> beam_tables.Parts("items", settings.items.path)
        | "ReadItems" >> beam.ParDo(_ReadItems(settings, plan)).with_outputs(_REPORT, main="rows")
    )
    # One row per item: its id, by which interactions are known, and the catalogue's example.
    unique_items = (
        items.rows
        | "GroupItems" >> beam.GroupByKey()
        | "UniqueItems" >> beam.ParDo(_UniqueItems(settings)).with_outputs(_REPORT, CATALOGUE, main="rows")
    )
    # The catalogue's ids must fit into a worker's memory, as the whole of it has to in the server's.
    catalogue = beam.pvalue.AsDict(unique_items.rows)

    interactions = (
        pipeline
        | "ListInteractions" >> beam_tables.Parts("interactions", settings.interactions.path)
        | "ReadInteractions" >> beam.ParDo(_ReadInteractions(settings, split, plan)).with_outputs(_REPORT, main="rows")
    )
    reports = [items[_REPORT], unique_items[_REPORT], interactions[_REPORT]]
    if settings.users is None:
        users = pipeline | "NoUsers" >> beam.Create([], reshuffle=False)
    else:
        read_users = (
            pipeline
            | "ListUsers" >> beam_tables.Parts("users", settings.users.path)
            | "ReadUsers" >> beam.ParDo(_ReadUsers(settings, plan)).with_outputs(_REPORT, main="rows")
        )
        users = read_users.rows
        reports.append(read_users[_REPORT])
    joined = (
        {"interactions": interactions.rows, "users": users}
        | "GroupByUser" >> beam.CoGroupByKey()
        | "Join" >> beam.ParDo(_Join(settings), catalogue).with_outputs(_REPORT, main="rows")
    )

    of_users = joined.rows | "Examples" >> beam.ParDo(
        _Examples(settings, split, wanted, plan), _cutoffs(pipeline, joined.rows, split)
    ).with_outputs(_REPORT, *SPLITS)
    reports += [joined[_REPORT], of_users[_REPORT]]

    # Counted from the tables: a runner with small bundles would make a thousand files of a small table, and one with
    # large bundles a single file of a large one.
    shards = _shards(settings)
    for name in (*SPLITS, CATALOGUE):
        (
            (unique_items if name == CATALOGUE else of_users)[name]
            | f"Write[{name}]"
            >> beam.io.WriteToTFRecord(
                os.path.join(uri, f"Split-{name}", write_split.DEFAULT_TF_RECORD_FILE_NAME),
                file_name_suffix=".gz",
                num_shards=shards[name],
            )
        )
    _ = (
        reports
        | "AllReports" >> beam.Flatten()
        | "AddUp" >> beam.CombinePerKey(report.add_up)
        | "OneReport" >> beam.combiners.ToList()
        | "WriteReport" >> beam.Map(_write_json, os.path.join(uri, _REPORT))
    )


def _shards(settings: Tables) -> dict[str, int]:
    """Files of each split."""
    users = 0 if settings.users is None else tables.total_bytes("users", settings.users.path)
    of_users = users + tables.total_bytes("interactions", settings.interactions.path)
    of_items = tables.total_bytes("items", settings.items.path)
    return dict.fromkeys(SPLITS, 1 + of_users // _SHARD_BYTES) | {CATALOGUE: 1 + of_items // _SHARD_BYTES}


class _Read(beam_tables.Read):
    """Base of what reads a table: a bad cell or file becomes a report instead of a stack trace."""

    def unreadable(self, error: tables.TableError) -> Any:
        return _told(report.unreadable(error))


def _encoded(cells: dict[str, Sequence[Value]], rows: int) -> list[bytes]:
    """Serialized features of each row, [N]."""
    by_row = zip(*cells.values(), strict=True) if cells else [()] * rows
    return [examples.features(zip(cells, row, strict=True)) for row in by_row]


class _ReadItems(_Read):
    """Yields (item id, its features and the columns of an answer, serialized)."""

    def __init__(self, settings: Tables, plan: Plan) -> None:
        self._rows = ItemRows(settings, plan)
        self.columns = self._rows.columns

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        ids, cells, entries = self._rows.parse(part, first_row, batch)
        yield from map(_told, entries)
        for item, encoded in zip(ids, _encoded({self._rows.key: ids, **cells}, len(ids)), strict=True):
            if item is not None:
                yield item, encoded


class _ReadUsers(_Read):
    """Yields (user id, (the user's features, the user's slices)), serialized."""

    def __init__(self, settings: Tables, plan: Plan) -> None:
        self._rows = UserRows(settings, plan)
        self.columns = self._rows.columns

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        ids, cells, entries = self._rows.parse(part, first_row, batch)
        yield from map(_told, entries)
        slices = {key: cells.pop(key) for key in [SLICE_PREFIX + s.column for s in self._rows.slices]}
        for user, *about in zip(ids, _encoded(cells, len(ids)), _encoded(slices, len(ids)), strict=True):
            if user is not None:
                yield user, tuple(about)


class _ReadInteractions(_Read):
    """Yields (user id, `Interactions`): what a batch has of one user."""

    def __init__(self, settings: Tables, split: Split, plan: Plan) -> None:
        self._rows = InteractionRows(settings, split, plan)
        self.columns = self._rows.columns

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        users, interactions, entries = self._rows.parse(part, first_row, batch)
        yield from map(_told, entries)
        yield from histories.by_user(users, interactions)


class _UniqueItems(beam.DoFn):
    """(item id, its rows) → (item id, None), and to the catalogue its example."""

    def __init__(self, settings: Tables) -> None:
        self._id = settings.items.id

    def process(self, element: tuple[bytes, Iterable[bytes]]) -> Iterator[Any]:
        item, rows = element
        features, *others = rows
        if others:
            yield _told(report.duplicate("items", self._id, item))
        yield item, None
        yield beam.pvalue.TaggedOutput(CATALOGUE, examples.example(features))
        yield _count("items")
        yield _count(f"examples_{CATALOGUE}")


class _Join(beam.DoFn):
    """(user id, interactions and attributes) → (user id, attributes, interactions in time order)."""

    def __init__(self, settings: Tables) -> None:
        self._settings = settings

    def process(self, element: tuple[bytes, dict[str, Iterable[Any]]], catalogue: dict[bytes, None]) -> Iterator[Any]:
        user, joined = element
        settings = self._settings
        attributes, pieces = list(joined["users"]), list(joined["interactions"])
        if len(attributes) > 1:
            assert settings.users is not None
            yield _told(report.duplicate("users", settings.users.id, user))
        if not pieces:
            return
        interactions = histories.in_time_order(pieces)

        known = np.fromiter((item in catalogue for item in interactions.item), bool, len(interactions))
        yield from map(_told, report.without_item(settings, interactions.item[~known]))
        if settings.items_not_in_table != "keep" and not known.all():
            interactions = interactions.take(known)
        if settings.users is not None and not attributes:
            strangers = np.full(len(known), user, object)
            yield from map(_told, report.without_user(settings, strangers, len(interactions)))
            if settings.users_not_in_table != "keep":
                return
        if len(interactions):
            yield _count("users")
            yield user, attributes[0] if attributes else None, interactions


class _Examples(beam.DoFn):
    """(user id, attributes, interactions) → serialized examples, tagged with their split."""

    def __init__(self, settings: Tables, split: Split, wanted: Wanted, plan: Plan) -> None:
        self._names, self._max_sequence = settings.interactions, settings.max_sequence
        self._split = split
        self._wanted = wanted
        self._context = [column.name for column in plan.interactions]
        self._lists = {column.name for column in plan.interactions if column.multivalued}
        self._lists |= {SLICE_PREFIX + s.column for s in plan.interaction_slices}
        self._activity = [(SLICE_PREFIX + s.column, s.boundaries or ()) for s in plan.activity_slices]
        # A user who is not in the users table is in the slice "unknown".
        self._unknown = examples.features((SLICE_PREFIX + s.column, columns.UNKNOWN) for s in plan.user_slices)
        self.start_bundle()

    def start_bundle(self) -> None:
        self._days: Counter[tuple[str, int]] = Counter()
        self._pieces: list[tuple[np.ndarray, np.ndarray]] = []

    def finish_bundle(self) -> Iterator[Any]:
        self._count_days()
        for (split, day), number in self._days.items():
            of_bundle = GlobalWindows.windowed_value(report.day(split, day, number))
            yield beam.pvalue.TaggedOutput(_REPORT, of_bundle)

    def _count_days(self) -> None:
        """Counts the collected times by split and day."""
        if not self._pieces:
            return
        codes, days = (np.concatenate(parts) for parts in zip(*self._pieces, strict=True))
        self._pieces = []
        for code, split in enumerate(SPLITS):
            for day, number in zip(*np.unique(days[codes == code], return_counts=True), strict=True):
                self._days[split, int(day)] += int(number)

    def process(
        self,
        element: tuple[bytes, tuple[bytes, bytes] | None, Interactions],
        cutoffs: Cutoffs | None,
    ) -> Iterator[Any]:
        user, attributes, interactions = element
        about, slices = attributes or (b"", self._unknown)
        about += examples.features([(self._names.user, user)])
        codes = histories.assign(user, interactions, self._split, cutoffs)
        yield from map(_told, report.of_user(interactions, codes, self._max_sequence))
        self._pieces.append((codes, interactions.timestamp // _DAY))
        if len(self._pieces) == _PIECES:
            self._count_days()

        places = histories.sequence(codes)
        active = float(len(places))
        slices += examples.features((key, columns.ranges(boundaries)(active)) for key, boundaries in self._activity)
        if len(places):
            newest = histories.sequence(codes, self._max_sequence)
            yield from _written(TRAIN, [examples.example(about, self._sequence(interactions, codes, newest))])
        for name in SPLITS[1:]:
            asked = histories.queries(
                interactions.timestamp, interactions.item, codes, SPLITS.index(name), self._wanted.evaluation_history
            )
            own = (self._query(interactions, query) for query in asked)
            yield from _written(name, (examples.example(about, slices, of_query) for of_query in own))

    def _sequence(self, interactions: Interactions, codes: np.ndarray, places: np.ndarray) -> bytes:
        """Aligned lists of what belongs to each interaction."""
        of = interactions.take(places)
        lists = {
            self._names.item: of.item,
            self._names.timestamp: of.timestamp,
            WEIGHT: of.weight,
            HELD_OUT: (codes[places] == SPLITS.index(VALIDATION)).astype(np.int64),
            **{name: of.context[name] for name in self._context},
        }
        return examples.features((SEQUENCE_PREFIX + key, values) for key, values in lists.items())

    def _query(self, interactions: Interactions, query: histories.Query) -> bytes:
        """What was known when it was asked, and what it asks for."""
        wanted, at = self._wanted, query.position
        own: list[tuple[str, Value | Sequence[bytes]]] = [
            (self._names.timestamp, query.asked),
            (RELEVANT, interactions.item[query.relevant].tolist()),
            *((key, examples.cell(values[at], key in self._lists)) for key, values in interactions.context.items()),
        ]
        if wanted.history is not None:
            own.append((wanted.history, interactions.item[query.history].tolist()))
        if wanted.history_age is not None and query.age is not None:
            own.append((wanted.history_age, float(query.age)))
        return examples.features(own)


def _written(split: str, serialized: Iterable[bytes]) -> Iterator[Any]:
    count = 0
    for example in serialized:
        yield beam.pvalue.TaggedOutput(split, example)
        count += 1
    yield _count(f"examples_{split}", count)


class _CountTimes(beam.CombineFn):
    """Counts interactions by time."""

    def create_accumulator(self) -> list[TimeHistogram]:
        return []

    def add_input(self, accumulator: list[TimeHistogram], element: tuple[bytes, bytes, Interactions]) -> Any:
        times = element[2].timestamp
        # One user's times, as they come: `compact` sorts those of many users at once.
        accumulator.append(TimeHistogram(0, times, np.ones(len(times), np.int64)))
        return accumulator if len(accumulator) < _PIECES else self.compact(accumulator)

    def merge_accumulators(self, accumulators: Iterable[list[TimeHistogram]]) -> list[TimeHistogram]:
        return self.compact([histogram for accumulator in accumulators for histogram in accumulator])

    def compact(self, accumulator: list[TimeHistogram]) -> list[TimeHistogram]:
        return [TimeHistogram.total(accumulator)] if accumulator else []

    def extract_output(self, accumulator: list[TimeHistogram]) -> tuple[np.ndarray, np.ndarray] | None:
        """(Times in seconds, rising; interactions at each); None without interactions."""
        if not accumulator:
            return None
        whole = TimeHistogram.total(accumulator)
        return whole.steps << whole.shift, whole.counts


def _cutoffs(pipeline: beam.Pipeline, joined: beam.PCollection, split: Split) -> Any:
    """The temporal split's cut-offs as an argument of a ParDo; None for other strategies."""
    if not isinstance(split, TemporalSplit):
        return None
    if split.validation_from is not None and split.eval_from is not None:
        return split.validation_from, split.eval_from
    return beam.pvalue.AsSingleton(
        joined | "CountTimes" >> beam.CombineGlobally(_CountTimes()) | "Cutoffs" >> beam.Map(_fraction_cutoffs, split)
    )


def _fraction_cutoffs(histogram: tuple[np.ndarray, np.ndarray] | None, split: TemporalSplit) -> Cutoffs | None:
    return None if histogram is None else histories.fraction_cutoffs(*histogram, split)


def _told(entry: Entry) -> beam.pvalue.TaggedOutput:
    return beam.pvalue.TaggedOutput(_REPORT, entry)


def _count(name: str, count: int = 1) -> beam.pvalue.TaggedOutput:
    return _told(report.count(name, count))


def _write_json(tree: Any, path: str) -> None:
    with fileio.open(path, "w") as file:
        json.dump(tree, file)


def _check_writable(uri: str) -> None:
    probe = os.path.join(uri, _REPORT)
    try:
        fileio.makedirs(uri)
        _write_json([], probe)
    except Exception as error:
        if full_disk.refusal(error) is not None:
            raise
        raise UserError(
            f"cannot write to {uri}: {' '.join(str(error).split())}; set output.root to a folder that can be written"
        ) from None


def _empty(uri: str) -> None:
    """Removes whatever a failed run wrote."""
    names: Collection[str] = fileio.listdir(uri) if fileio.isdir(uri) else ()
    for name in names:
        path = os.path.join(uri, name)
        if fileio.isdir(path):
            fileio.rmtree(path)
        else:
            fileio.remove(path)
