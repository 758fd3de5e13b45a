"""Whatever tables somebody has, `twotower init` and `twotower check` give an answer, or a line that names the place."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from e2e_runs import twotower
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.data import survey, tables
from modules.errors import UserError
from pipeline.config import load

START = 1_600_000_000
EVIL = ["", " ", "a b", " 7", "007", "7.0", "🎬", "名前 é", "x" * 1024, 'a "q"', "x,y", "line\nbreak", "a|b|c", "a;b",
        "\x1f", "\ufeff", "nan", "null", "1e400", "inf", "-1", "2020-13-45", "2020-01-02", "=SUM(A1)", "[1]", "{", "#",
        "- x", ": y", "\u2028", "\u202e", "[/b]", "%s", "http://x", "true", "~"]  # fmt: skip
TEXTS = st.sampled_from(EVIL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBERS = st.sampled_from([0, 1, -1, 7, 0.5, 1e39, -1e300, float("nan"), float("inf"), 2**62, 1_600_000_000_000, START])
CELLS = {
    "texts": TEXTS | st.none(),
    "numbers": NUMBERS | st.none(),
    "whole": st.integers(-3, 3) | st.none(),
    "times": st.integers(START, START + 10**6),
    "mixed": st.one_of(st.none(), TEXTS, NUMBERS.map(str), st.booleans().map(str), st.integers().map(str)),
    "lists": st.lists(TEXTS, max_size=3) | st.none(),
    "truths": st.booleans() | st.none(),
    "structs": st.just({"a": 1}),
    "bytes": st.binary(max_size=3),
    "nothing": st.none(),
}
NAMES = st.sampled_from([
    "user_id", "item_id", "timestamp", "title", "age", "history", "history_age", "timestamp_bucket", "label", "Genre",
    "self", "größe", "a b", "", "x" * 200, "🎬", "a\nb", "sequence_item_id", "relevant_items", "exclude", "device",
    "weight", "id", "score", "filter_genre", "count", "no", "null", "created_at", "{a: b}", "# c",
])  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Columns in their order; names may be there twice."""

    columns: tuple[tuple[str, list[Any]], ...]

    @property
    def rows(self) -> int:
        return len(self.columns[0][1]) if self.columns else 0

    def content(self, suffix: str) -> bytes:
        if suffix == "parquet":
            arrays = [_array(values) for _, values in self.columns]
            out = io.BytesIO()
            pq.write_table(pa.Table.from_arrays(arrays, [name for name, _ in self.columns]), out)
            return out.getvalue()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([name for name, _ in self.columns])
        writer.writerows([[_cell(v) for v in row] for row in zip(*(values for _, values in self.columns), strict=True)])
        return text.getvalue().encode()


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if v is None else str(v) for v in values])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "|".join(map(str, value))
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Table]:
    """Tables that go together, but for some columns that are added, replaced, doubled, renamed or removed."""
    users, items = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    seen = [(u, (u + n) % items, n) for u in range(users) for n in range(draw(st.integers(1, 4)))]
    odd = draw(st.booleans())
    name = lambda n: EVIL[2 + n] if odd else f"{n}"  # noqa: E731
    known = {
        "interactions": [
            ("user_id", [name(u) for u, _, _ in seen]),
            ("item_id", [name(i) for _, i, _ in seen]),
            ("timestamp", [START + 1000 * n + u for u, _, n in seen]),
        ],
        "items": [("item_id", [name(i) for i in range(items)]), ("title", [f"film {i}" for i in range(items)])],
        "users": [("user_id", [name(u) for u in range(users)]), ("age", [20 + u for u in range(users)])],
    }
    found = {}
    for table, columns in known.items():
        rows = len(columns[0][1])
        for _ in range(draw(st.integers(0, 2))):
            cells = CELLS[draw(st.sampled_from(sorted(CELLS)))]
            values = draw(st.lists(cells, min_size=rows, max_size=rows))
            if draw(st.booleans()):
                values = values[:1] * rows
            new = (draw(NAMES), values)
            at = draw(st.integers(0, len(columns) - 1))
            # Mostly added: a world that has lost its ids is refused at once.
            how = draw(st.sampled_from([*["add"] * 12, "cells", "name", "remove", "replace"]))
            if how == "add":
                columns.append(new)
            elif how == "cells":
                columns[at] = (columns[at][0], values)
            elif how == "name":
                columns[at] = (new[0], columns[at][1])
            elif how == "replace":
                columns[at] = new
            elif len(columns) > 1:
                del columns[at]
        found[table] = Table(tuple(columns))
    return found


@dataclass(frozen=True)
class File:
    """A table as it is written."""

    table: Table
    suffix: str
    harm: str
    """An encoding, or what has happened to the bytes."""

    @property
    def content(self) -> bytes:
        written = self.table.content(self.suffix)
        if self.harm in ("latin-1", "utf-16"):
            return written.decode().encode(self.harm, "replace") if self.suffix == "csv" else written
        half = len(written) // 2
        return {"": written, "cut": written[:half], "bytes": written[half:], "hole": b"\0" * half + written}[self.harm]


@st.composite
def files(draw: st.DrawFn) -> dict[str, File]:
    """Each table in a format, now and then in another encoding or broken off."""
    harms = st.sampled_from([*[""] * 40, "latin-1", "utf-16", "cut", "bytes", "hole"])
    return {
        name: File(table, draw(st.sampled_from(["parquet", "csv"])), draw(harms))
        for name, table in draw(worlds()).items()
    }


BOUNDED = settings(
    max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@BOUNDED
@given(files=files(), later=files(), with_users=st.booleans())
def test_any_tables_give_a_configuration_and_findings_or_one_line(
    files: dict[str, File], later: dict[str, File], with_users: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.{file.suffix}" for name, file in files.items()}
        for name, file in files.items():
            paths[name].write_bytes(file.content)
        tables_ = {name: path for name, path in paths.items() if with_users or name != "users"}
        output = Path(folder) / "my.yaml"
        outcome = twotower(
            "init", *[a for name, path in tables_.items() for a in (f"--{name}", str(path))], "--output", str(output)
        )
        if outcome.code:
            assert outcome.code == 2 and outcome.errors.count("\n") == 1, outcome.errors
            assert len(outcome.errors) < 2000 and outcome.errors.startswith("twotower: "), outcome.errors
            assert any(name in outcome.errors for name in ("interactions", "items", "users", *map(str, paths.values())))
            assert not output.exists()
            return
        answers = outcome.answer["check"]["findings"], checked(output)
        assert answers[0] == [f for f in answers[1] if "is a configuration" not in f["what"]]
        # The tables of another day, under the same configuration.
        for name, file in later.items():
            paths[name].with_suffix(f".{files[name].suffix}").write_bytes(
                replace(file, suffix=files[name].suffix).content
            )
        checked(output)


def checked(path: Path) -> list[dict[str, str]]:
    """The check's findings, whose errors are what the run would say."""
    outcome = twotower("check", "--config", str(path))
    assert outcome.errors == "" and outcome.code == (2 if outcome.answer["errors"] else 0)
    errors = {
        f"{f['where']}: {f['what']}".removeprefix(": ") for f in outcome.answer["findings"] if f["level"] == "error"
    }
    assert all(each.isprintable() for each in errors)
    config = load(str(path))
    try:
        plan = tables.check_tables(config.tables, config.split, config.features, config.evaluation, config.serving)
        survey.survey(config.tables, config.split, plan).report.raise_problems(config.tables, config.split)
    except UserError as error:
        assert errors and all(each in str(error) for each in errors)
    else:
        assert not errors, json.dumps(sorted(errors))
    return outcome.answer["findings"]


def test_a_world_that_nothing_has_happened_to_passes(tmp_path: Path) -> None:
    """So the property above is not about refusals alone."""
    seen = [(u, (u + n) % 5, n) for u in range(5) for n in range(4)]
    known = {
        "interactions": Table((
            ("user_id", [EVIL[2 + u] for u, _, _ in seen]), ("item_id", [EVIL[2 + i] for _, i, _ in seen]),
            ("timestamp", [START + 1000 * n + u for u, _, n in seen]),
        )),
        "items": Table((("item_id", EVIL[2:7]), ("title", EVIL[6:11]))),
    }  # fmt: skip
    for suffix in ("csv", "parquet"):
        arguments = []
        for name, table in known.items():
            path = tmp_path / f"{name}.{suffix}"
            path.write_bytes(replace(table).content(suffix))
            arguments += [f"--{name}", str(path)]
        outcome = twotower("init", *arguments, "--output", str(tmp_path / "my.yaml"), "--force")
        assert outcome.code == 0 and outcome.answer["check"]["errors"] == 0, outcome
