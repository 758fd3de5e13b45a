"""InteractionExampleGen on Beam: tables in, tf.Examples in four splits out, or one line that says what is wrong.

One file, because its steps are one Beam pipeline, which is read from top to bottom.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import TypeAdapter
from tfx.components.example_gen import write_split
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs

from components.signature import Artifacts, Properties
from modules import beam_tables, full_disk
from modules.data import columns, examples, histories, tables
from modules.data.columns import Fault
from modules.data.examples import (
    CATALOGUE,
    HELD_OUT,
    RELEVANT,
    SEQUENCE_PREFIX,
    SLICE_PREFIX,
    TRAIN,
    VALIDATION,
    VALUE_SEPARATOR,
    WEIGHT,
    Value,
)
from modules.data.histories import SPLITS, Cutoffs, Interactions
from modules.data.tables import Column, Part, Plan, Wanted, shown
from modules.data.time_histogram import TimeHistogram
from modules.errors import UserError
from modules.settings import ColumnSplit, LeaveLastOutSplit, Slice, Split, Tables, TemporalSplit

EXAMPLES_KEY = standard_component_specs.EXAMPLES_KEY
TABLES_KEY = "tables"
SPLIT_KEY = "split"
WANTED_KEY = "wanted"
FINGERPRINT_KEY = "fingerprint"
CODE_KEY = "code"

# So many users' times are collected before they are counted together.
_PIECES = 1024
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
            report = Report.load(report_file)
            report.raise_problems(settings, split)
        except Exception:
            _empty(artifact.uri)
            raise
        fileio.remove(report_file)

        artifact.split_names = artifact_utils.encode_split_names([*SPLITS, CATALOGUE])
        examples_utils.set_payload_format(artifact, example_gen_pb2.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(artifact, write_split.to_file_format_str(example_gen_pb2.FORMAT_TFRECORDS_GZIP))
        for name, count in report.counts.items():
            artifact.set_int_custom_property(name, count)


class Problem(NamedTuple):
    """Something in the tables that only a person can put right."""

    where: str
    what: str
    """Follows the number of cases."""
    fix: str


class Report:
    """What the workers counted and found, added up."""

    def __init__(self, counts: dict[str, int], problems: dict[Problem, tuple[int, str]]) -> None:
        self.counts = dict.fromkeys((*_COUNTS, *(f"examples_{split}" for split in (*SPLITS, CATALOGUE))), 0) | counts
        self._problems = problems

    @classmethod
    def load(cls, path: str) -> Report:
        with fileio.open(path, "r") as file:
            entries = json.load(file)
        counts = {key[0]: count for key, (count, _) in entries if len(key) == 1}
        problems = {Problem(*key): (count, example) for key, (count, example) in entries if len(key) > 1}
        return cls(counts, problems)

    def raise_problems(self, settings: Tables, split: Split) -> None:
        """Raises a UserError for everything that was found, or else for the first split that is empty."""
        if self._problems:
            raise UserError(
                "; ".join(
                    f"{problem.where}: {count:,} {problem.what}, for instance {example}: {problem.fix}"
                    for problem, (count, example) in sorted(self._problems.items())
                )
            )
        counts = self.counts
        if not counts["items"]:
            raise UserError(f"tables.items: {settings.items.path} has no rows; it must list the catalogue")
        if not counts["interactions"]:
            raise UserError(f"tables.interactions: {settings.interactions.path} has no rows")
        kept = sum(counts[f"interactions_{split}"] for split in SPLITS)
        if not kept:
            raise UserError(
                f"tables.interactions: none of the {counts['interactions']:,} interactions has an item and a user that "
                f"the other tables know; do {settings.interactions.item} and {settings.items.id} hold the same ids?"
            )
        for name in SPLITS:
            if not counts[f"interactions_{name}"]:
                raise UserError(f"split: the {name} split of {kept:,} interactions is empty; {_fix_of(name, split)}")
        if counts["cut_train_interactions"] == counts["interactions_train"]:
            raise UserError(
                f"tables.max_sequence is {settings.max_sequence}, which leaves validation interactions alone; raise it"
            )
        if not counts["weighted_train"]:
            raise UserError(
                f"tables.interactions.weight: all interactions of the train split have the weight 0 in column "
                f"{settings.interactions.weight!r} of {settings.interactions.path}, which leaves nothing to learn; "
                "correct the column, or leave tables.interactions.weight out"
            )


_COUNTS = ("interactions", "users", "items", "items_not_in_table", "dropped_items_not_in_table", "users_not_in_table",
           "dropped_users_not_in_table", "weighted_train", *(f"interactions_{split}" for split in SPLITS),
           "cut_sequences", "cut_interactions", "cut_train_interactions")  # fmt: skip


def _fix_of(empty: str, split: Split) -> str:
    if isinstance(split, TemporalSplit) and split.validation_from is not None:
        return "move split.validation_from and split.eval_from into the time that the interactions cover"
    if isinstance(split, ColumnSplit):
        return f"write {empty!r} into column {split.column!r} of some interactions"
    if isinstance(split, LeaveLastOutSplit):
        return "no user has three interactions; choose another split.strategy"
    if isinstance(split, TemporalSplit):
        return "a temporal split needs three different times; choose another split.strategy or bring more interactions"
    key = "or lower both fractions" if empty == "train" else f"or raise split.{empty}"
    return f"bring more interactions, {key}"


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
        | "AddUp" >> beam.CombinePerKey(_add_up)
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

    table: str

    def unreadable(self, error: tables.TableError) -> Any:
        return _problem(error.key, "files cannot be read", f"{error.file} ({error.reason})", error.fix)

    def _report(self, column: str, faults: Iterable[Fault], part: Part, first_row: int) -> Iterator[Any]:
        for fault in faults:
            place = f"{fault.example} in row {first_row + int(np.argmax(fault.rows)) + 1} of {part.path}"
            count = int(fault.rows.sum())
            yield _problem(f"tables.{self.table}", f"values of {column!r} {fault.what}", place, fault.fix, count)

    def _nameless(
        self, column: str, ids: Sequence[bytes | None] | np.ndarray, part: Part, first_row: int, fix: str
    ) -> Iterator[Any]:
        """Reports rows without an id."""
        missing = pd.isna(np.asarray(ids, object))
        if missing.any():
            place = f"row {first_row + int(np.argmax(missing)) + 1} of {part.path}"
            yield _problem(f"tables.{self.table}", f"rows have no {column}", place, fix, int(missing.sum()))

    def _cells(
        self, part: Part, first_row: int, batch: pa.RecordBatch, wanted: Sequence[Column], slices: Sequence[Slice] = ()
    ) -> tuple[dict[str, Sequence[Value]], list[Any]]:
        """Columns and slices of a batch by key of the example, [N] each, and reports."""
        by_name: dict[str, Sequence[Value]] = {}
        faults: dict[str, list[Fault]] = {}
        for column in wanted:
            by_name[column.name], faults[column.source] = columns.cells(batch, column)
        for by in slices:
            by_name[SLICE_PREFIX + by.column], wrong = columns.slice_values(batch, by)
            # A column that is a feature as well is wrong once, not twice.
            faults[by.column] = faults.get(by.column) or wrong
        return by_name, [p for name, wrong in faults.items() for p in self._report(name, wrong, part, first_row)]


def _encoded(cells: dict[str, Sequence[Value]], rows: int) -> list[bytes]:
    """Serialized features of each row, [N]."""
    by_row = zip(*cells.values(), strict=True) if cells else [()] * rows
    return [examples.features(zip(cells, row, strict=True)) for row in by_row]


class _ReadItems(_Read):
    """Yields (item id, its features and the columns of an answer, serialized)."""

    table = "items"

    def __init__(self, settings: Tables, plan: Plan) -> None:
        self._id = settings.items.id
        self._key = settings.interactions.item
        self._items = [c for c in (*plan.items, *plan.returned) if c.name != self._key]
        self.columns = [_id(self._id), *self._items]

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        ids = columns.ids(batch.column(self._id))
        yield from self._nameless(self._id, ids, part, first_row, "give every item an id")
        cells, reports = self._cells(part, first_row, batch, self._items)
        yield from reports
        for item, encoded in zip(ids, _encoded({self._key: ids, **cells}, len(ids)), strict=True):
            if item is not None:
                yield item, encoded


class _ReadUsers(_Read):
    """Yields (user id, (the user's features, the user's slices)), serialized."""

    table = "users"

    def __init__(self, settings: Tables, plan: Plan) -> None:
        assert settings.users is not None
        self._id = settings.users.id
        self._users, self._slices = plan.users, plan.user_slices
        self.columns = [_id(self._id), *self._users, *map(Column.of_slice, self._slices)]

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        ids = columns.ids(batch.column(self._id))
        yield from self._nameless(self._id, ids, part, first_row, "give every user an id")
        cells, reports = self._cells(part, first_row, batch, self._users, self._slices)
        yield from reports
        slices = {key: cells.pop(key) for key in [SLICE_PREFIX + s.column for s in self._slices]}
        for user, *about in zip(ids, _encoded(cells, len(ids)), _encoded(slices, len(ids)), strict=True):
            if user is not None:
                yield user, tuple(about)


class _ReadInteractions(_Read):
    """Yields (user id, `Interactions`): what a batch has of one user."""

    table = "interactions"

    def __init__(self, settings: Tables, split: Split, plan: Plan) -> None:
        self._names = settings.interactions
        self._split = split.column if isinstance(split, ColumnSplit) else None
        self._context, self._slices = plan.interactions, plan.interaction_slices
        self._kinds = {column.name: column.kind for column in self._context}
        names = self._names
        self.columns = [_id(names.user), _id(names.item), Column(name="", source=names.timestamp, kind="int64")]
        if names.weight is not None:
            self.columns.append(Column(name="", source=names.weight, kind="float32"))
        if self._split is not None:
            self.columns.append(Column(name="", source=self._split))
        self.columns += [*self._context, *map(Column.of_slice, self._slices)]

    def rows(self, part: Part, first_row: int, batch: pa.RecordBatch) -> Iterator[Any]:
        names = self._names
        yield _count("interactions", batch.num_rows)
        users = np.array(columns.ids(batch.column(names.user)), object)
        items = np.array(columns.ids(batch.column(names.item)), object)
        remove = "correct or remove those rows"
        yield from self._nameless(names.user, users, part, first_row, remove)
        yield from self._nameless(names.item, items, part, first_row, remove)
        times, faults = columns.moments(batch.column(names.timestamp))
        yield from self._report(names.timestamp, faults, part, first_row)

        weights = np.ones(batch.num_rows, np.float32)
        if names.weight is not None:
            weights, light = columns.weights(batch.column(names.weight))
            yield from self._report(names.weight, light, part, first_row)
            faults += light

        codes = None
        if self._split is not None:
            named = columns.texts(batch.column(self._split))
            codes = np.array([_CODES.get(name or b"", -1) for name in named], np.int8)
            other = codes < 0
            if other.any():
                name = named[int(np.argmax(other))]
                example = shown(None if name is None else name.decode())
                none = Fault(other, "are none of train, validation and eval", "write one of the three", example)
                yield from self._report(self._split, [none], part, first_row)
                faults.append(none)
        bad = np.logical_or.reduce([pd.isna(users), pd.isna(items), *(fault.rows for fault in faults)])

        cells, reports = self._cells(part, first_row, batch, self._context, self._slices)
        yield from reports
        context, told = {}, set()
        for key, values in cells.items():
            column = key.removeprefix(SLICE_PREFIX)
            joined = np.array([isinstance(cell, list) and _holds_separator(cell) for cell in values], bool)
            # A column that is a feature and a slice is wrong once, not twice.
            if joined.any() and column not in told:
                told.add(column)
                what = "hold the character U+001F, which separates the values of a list"
                yield from self._report(column, [Fault(joined, what, "remove it", "a list")], part, first_row)
            context[key] = examples.aligned(values, self._kinds.get(key, "string"))
        everything = Interactions(
            timestamp=times,
            # Files hold fewer rows than this.
            order=(part.file << 40) + first_row + np.arange(batch.num_rows, dtype=np.int64),
            item=items,
            weight=weights,
            split=codes,
            context=context,
        )
        yield from histories.by_user(users[~bad], everything.take(~bad))


def _id(column: str) -> Column:
    return Column(name="", source=column)


_CODES = {name.encode(): code for code, name in enumerate(SPLITS)}


def _holds_separator(values: Sequence[bytes]) -> bool:
    return any(VALUE_SEPARATOR.encode() in value for value in values)


class _UniqueItems(beam.DoFn):
    """(item id, its rows) → (item id, None), and to the catalogue its example."""

    def __init__(self, settings: Tables) -> None:
        self._id = settings.items.id

    def process(self, element: tuple[bytes, Iterable[bytes]]) -> Iterator[Any]:
        item, rows = element
        features, *others = rows
        if others:
            yield _duplicate("items", self._id, item)
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
            yield _duplicate("users", settings.users.id, user)
        if not pieces:
            return
        interactions = histories.in_time_order(pieces)

        known = np.fromiter((item in catalogue for item in interactions.item), bool, len(interactions))
        unknown = int(len(known) - known.sum())
        if unknown:
            yield _count("items_not_in_table", unknown)
            if settings.items_not_in_table == "fail":
                yield _problem(
                    "tables.interactions", f"rows have an item that {settings.items.path} lacks",
                    shown(interactions.item[np.argmin(known)].decode()),
                    "add those items, or set tables.items_not_in_table to drop or keep", unknown,
                )  # fmt: skip
            if settings.items_not_in_table != "keep":
                yield _count("dropped_items_not_in_table", unknown)
                interactions = interactions.take(known)
        if settings.users is not None and not attributes:
            yield _count("users_not_in_table", len(known))
            if settings.users_not_in_table == "fail":
                yield _problem(
                    "tables.interactions", f"rows have a user that {settings.users.path} lacks", shown(user.decode()),
                    "add those users, or set tables.users_not_in_table to drop or keep", len(known),
                )  # fmt: skip
            if settings.users_not_in_table != "keep":
                yield _count("dropped_users_not_in_table", len(interactions))
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

    def process(
        self,
        element: tuple[bytes, tuple[bytes, bytes] | None, Interactions],
        cutoffs: Cutoffs | None,
    ) -> Iterator[Any]:
        user, attributes, interactions = element
        about, slices = attributes or (b"", self._unknown)
        about += examples.features([(self._names.user, user)])
        codes = histories.assign(user, interactions, self._split, cutoffs)
        kept = np.bincount(codes, minlength=len(SPLITS))
        yield _count("weighted_train", np.count_nonzero(interactions.weight[codes == SPLITS.index(TRAIN)]))
        for name, count in zip(SPLITS, kept.tolist(), strict=True):
            yield _count(f"interactions_{name}", count)

        places = histories.sequence(codes)
        active = float(len(places))
        slices += examples.features((key, columns.ranges(boundaries)(active)) for key, boundaries in self._activity)
        if len(places):
            newest = histories.sequence(codes, self._max_sequence)
            yield from _written(TRAIN, [examples.example(about, self._sequence(interactions, codes, newest))])
            if len(newest) < len(places):
                cut = codes[places[: len(places) - len(newest)]]
                yield _count("cut_sequences")
                yield _count("cut_interactions", len(cut))
                yield _count("cut_train_interactions", np.count_nonzero(SPLITS.index(TRAIN) == cut))
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


def _count(name: str, count: int = 1) -> beam.pvalue.TaggedOutput:
    return beam.pvalue.TaggedOutput(_REPORT, ((name,), (int(count), "")))


def _problem(where: str, what: str, example: str, fix: str, count: int = 1) -> beam.pvalue.TaggedOutput:
    return beam.pvalue.TaggedOutput(_REPORT, (tuple(Problem(where, what, fix)), (int(count), example)))


def _duplicate(table: str, column: str, key: bytes) -> beam.pvalue.TaggedOutput:
    return _problem(
        f"tables.{table}", f"values of {column!r} are there more than once", shown(key.decode()), "keep one row of each"
    )


def _add_up(findings: Iterable[tuple[int, str]]) -> tuple[int, str]:
    """Sums counts and keeps the first example by alphabet, so that the same tables give the same words."""
    total, first = 0, ""
    for count, example in findings:
        total += count
        first = min(first, example) if first else example
    return total, first


def _write_json(report: list[Any], path: str) -> None:
    with fileio.open(path, "w") as file:
        json.dump(report, file)


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
