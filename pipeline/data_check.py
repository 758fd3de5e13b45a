"""What `twotower check` finds: everything that would stop a run before it trains, and what a run would not say.

An error is what the run itself refuses, found by the run's own code. A warning stops nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modules.data import survey as surveys
from modules.data import tables
from modules.data.examples import EVAL, SLICE_PREFIX, VALIDATION
from modules.data.survey import Cells, Survey
from modules.encodings.base import Encoding
from modules.encodings.bucketized import Bucketized
from modules.encodings.category import Categorical
from modules.encodings.features import Columns
from modules.errors import UserError, UserErrors
from modules.settings import LeaveLastOutSplit
from pipeline.config import Config, load, load_data

Level = Literal["error", "warning", "ok"]

_PLACE = re.compile(r"(?:tables|features|split|schema|serving|evaluation|model|training)(?:\.\w+)*(?=: )")
# Shares from which on something is worth a line.
_MOSTLY_MISSING, _NEARLY_ALL_DIFFERENT, _TWICE, USUAL_REPEATS = 0.95, 0.9, 0.01, 0.2
_FEW_ROWS = 100


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    level: Level
    where: str
    """A key of the configuration; "" when the line itself says it."""
    what: str

    @classmethod
    def of(cls, level: Level, sentence: str) -> Finding:
        """Of a sentence that begins with its key."""
        place = _PLACE.match(sentence)
        return cls(level, place[0], sentence[place.end() + 2 :]) if place else cls(level, "", sentence)


def check(path: str, overrides: tuple[str, ...] = ()) -> list[Finding]:
    """Looks at a configuration file and at the tables that it names, as far as they can be found.

    Args:
        path: A YAML file.
        overrides: As for `config.load`.

    Returns:
        Errors first, then warnings.

    Raises:
        UserError: There is no configuration to look at.
    """
    config: Config | None
    try:
        config = load(path, overrides)
    except UserErrors as error:
        findings = [Finding.of("error", mistake) for mistake in error.mistakes]
        config = load_data(path, overrides)
    else:
        findings = [Finding("ok", "", f"{path} is a configuration")]
    if config is not None:
        findings += of_data(config)
    return _ordered(findings)


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings."""
    order: dict[Level, int] = {"error": 0, "warning": 1, "ok": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def of_data(config: Config) -> list[Finding]:
    """What there is to say of the tables and the schema of a configuration, errors first, then warnings."""
    findings = [Finding.of("error", mistake) for mistake in _of_schema(config)]
    try:
        plan = tables.check_tables(config.tables, config.split, config.features, config.evaluation, config.serving)
    except UserErrors as error:
        return findings + [Finding.of("error", mistake) for mistake in error.mistakes]
    found = surveys.survey(config.tables, config.split, plan)
    problems = found.report.problems()
    findings += (Finding.of("error", problem) for problem in problems)
    shortage = found.report.shortage(config.tables, config.split)
    if shortage and not problems:
        if found.sampled.share == 1:
            findings.append(Finding.of("error", shortage))
        elif len(found.sampled.lengths):
            findings.append(Finding.of("warning", f"{shortage} (of a sample of users)"))
    findings += _of_tables(config, found)
    if len(found.sampled.lengths):
        findings += _of_users(config, found)
    findings += _of_features(config, found)
    return _ordered(findings)


def _of_schema(config: Config) -> Iterator[str]:
    path = config.data_schema.path
    if path is None:
        return
    if not os.path.exists(path):
        yield schema_is_missing(path)
        return
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    from modules import schema as schemas

    named = config.tables.interactions
    columns = Columns(user=named.user, item=named.item, timestamp=named.timestamp)
    try:
        with open(path, encoding="utf-8") as file:
            schema = text_format.Parse(file.read(), schema_pb2.Schema())
        schemas.check(schema, config.features, columns)
    except UserError as error:
        yield str(error)
    except (OSError, ValueError, text_format.ParseError) as error:
        yield f"schema.path: {path} cannot be read: {' '.join(str(error).split())}; write it with `twotower schema`"


def schema_is_missing(path: str) -> str:
    """What is wrong with a schema that is not there."""
    return f"schema.path: {path} does not exist; write it with `twotower schema`"


def _of_tables(config: Config, found: Survey) -> Iterator[Finding]:
    """Sizes, and ids that one table has and another lacks."""
    settings, counts = config.tables, found.report.counts
    rows = counts["interactions"]
    if not rows:
        return
    steps, shift = found.times.steps, found.times.shift
    span = f", {_day(int(steps[0]) << shift)} to {_day(int(steps[-1]) << shift)}" if len(steps) else ""
    yield Finding("ok", "tables.interactions", f"{rows:,} rows{span}")
    yield Finding("ok", "tables.items", f"{counts['items']:,} items")
    yield from _lacking(
        "items_not_in_table", counts["items_not_in_table"], rows, "an item", settings.items.path,
        {"drop": "they are dropped", "keep": "they stay in histories"}.get(settings.items_not_in_table),
        f"; {found.spaced:,} would have one without the spaces around the id" if found.spaced else "",
    )  # fmt: skip
    if settings.users is not None:
        yield Finding("ok", "tables.users", f"{found.users_in_table:,} users")
        yield from _lacking(
            "users_not_in_table", counts["users_not_in_table"], rows, "a user", settings.users.path,
            {"drop": "they are dropped", "keep": "they have no attributes"}.get(settings.users_not_in_table),
        )  # fmt: skip
    if found.constant_weight:
        yield Finding(
            "warning",
            "tables.interactions.weight",
            f"all weights are the same; leave {settings.interactions.weight!r} out",
        )


def _lacking(
    key: str, number: int, rows: int, what: str, path: str, then: str | None, more: str = ""
) -> Iterator[Finding]:
    if not number:
        yield Finding("ok", "tables.interactions", f"every row has {what} of {path}")
    elif then:
        words = f"{number:,} of {rows:,} rows ({number / rows:.1%}) have {what} that {path} lacks: {then}{more}"
        yield Finding("warning", f"tables.{key}", words)


def _of_users(config: Config, found: Survey) -> Iterator[Finding]:
    """Whether there is enough to learn from and to judge by."""
    sampled, about = found.sampled, "" if found.sampled.share == 1 else "about "
    users = found.report.counts["users"]
    short = float((sampled.lengths < 3).mean())
    words = f"{users:,} users; median {int(np.median(sampled.lengths))} interactions, most {sampled.lengths.max():,}"
    yield Finding("ok", "tables.interactions", words)
    if short > 0.5 or (short and isinstance(config.split, LeaveLastOutSplit)):
        left_out = ": leave_last_out cannot judge by them" if isinstance(config.split, LeaveLastOutSplit) else ""
        yield Finding(
            "warning",
            "tables.interactions",
            f"{about}{short:.1%} of the users have fewer than three interactions{left_out}",
        )
    for split in (VALIDATION, EVAL):
        judged = round(sampled.judged[split] / sampled.share)
        counted = found.report.counts[f"interactions_{split}"]
        words = f"{split}: {about}{counted:,} interactions of {judged:,} users"
        if judged < config.evaluation.min_queries:
            words += f"; a model judged by fewer than {config.evaluation.min_queries} is judged by luck"
            yield Finding("warning", "split", words)
        else:
            yield Finding("ok", "split", words)
    cut = found.report.counts["cut_interactions"]
    if cut:
        words = f"{about}{cut:,} interactions of {found.report.counts['cut_sequences']:,} users are older than that"
        yield Finding("warning", "tables.max_sequence", words)
    if sampled.twice > _TWICE:
        words = (
            f"{about}{sampled.twice:.1%} of the rows repeat user, item and time of another row; are they written twice?"
        )
        yield Finding("warning", "tables.interactions", words)
    if sampled.repeated > USUAL_REPEATS and config.serving.exclude_history:
        yield Finding(
            "warning", "serving.exclude_history",
            f"{about}{sampled.repeated:.1%} of the interactions repeat an item that the user had before, and answers "
            "leave those items out; set it to false where they should come again",
        )  # fmt: skip


def _of_features(config: Config, found: Survey) -> Iterator[Finding]:
    """Columns that say nothing, or the same of everybody."""
    named = config.tables.interactions
    for side in ("query", "candidate"):
        for feature in getattr(config.features, side):
            if feature.of_history or feature.column in (named.user, named.item, named.timestamp):
                continue
            sides = ("items",) if side == "candidate" else ("interactions", "users")
            known = [cells for table in sides if (cells := found.cells.get((table, feature.column)))]
            for cells in known:
                wrong = _useless(feature, cells)
                yield Finding("warning" if wrong else "ok", f"features.{side}.{feature.column}", wrong or _words(cells))
    for by in config.evaluation.slices:
        for table in ("interactions", "users"):
            cells = found.cells.get((table, SLICE_PREFIX + by.column), Cells())
            if cells.values.number > _FEW_ROWS:
                words = (
                    f"{by.column!r} makes {cells.values.number:,} slices; name a column of fewer values, or boundaries"
                )
                yield Finding("warning", "evaluation.slices", words)


def _useless(feature: Encoding, cells: Cells) -> str | None:
    """Why nothing can be learned from a column; None when something can."""
    if not cells.rows:
        return None
    there, different = cells.rows - cells.missing, cells.values.number
    if not there:
        return "every cell is empty; leave the feature out"
    if different == 1:
        return f"one value only, {cells.example}, which says nothing; leave the feature out"
    if cells.missing > _MOSTLY_MISSING * cells.rows:
        return f"{cells.missing / cells.rows:.1%} of the cells are empty"
    is_category = isinstance(feature, Categorical) and not feature.is_multivalued
    if is_category and there >= _FEW_ROWS and different > _NEARLY_ALL_DIFFERENT * there:
        return f"nearly every row has a value of its own ({different:,} of {there:,}); leave it out, or read it as text"
    if isinstance(feature, Bucketized) and feature.buckets is not None and different < feature.buckets:
        return f"{different} different values in {feature.buckets} buckets; take fewer, or a vocabulary"
    return None


def _words(cells: Cells) -> str:
    missing = f", {cells.missing / cells.rows:.1%} empty" if cells.missing else ""
    return f"{'' if cells.values.is_exact else 'about '}{cells.values.number:,} different values{missing}"


def _day(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def as_json(findings: list[Finding]) -> dict[str, object]:
    """The answer of `twotower check --json`."""
    levels = [finding.level for finding in findings]
    return {
        "errors": levels.count("error"),
        "warnings": levels.count("warning"),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
