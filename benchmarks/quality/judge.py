"""The judge: it alone holds the test part, hands out what may be seen, checks what comes back and measures it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.quality import metrics
from benchmarks.quality.protocols import COLUMNS, TEST_SHARE, VALIDATION_SHARE, carve
from benchmarks.quality.systems import SYSTEMS, Entry
from benchmarks.quality.systems.base import ALL, COLD
from benchmarks.quality.tables import Tables
from modules.errors import UserError

ANSWER = "recommendations.parquet"
"""What a system writes."""
_EVERYBODY = "everybody"
_LOG_LINES = 12


class RefusedAnswerError(Exception):
    """A system recommended what it must not, or too little; the message says what and to whom."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what one system reached on one protocol."""

    protocol: str
    system: str
    mean: dict[str, float]
    deviation: dict[str, float] | None
    """Over seeds; None for a system without one."""
    seeds: int
    queries: int
    settings: dict[str, Any] = field(default_factory=dict)
    tune_seconds: float = 0.0
    fit_seconds: float = 0.0
    """Of one seed."""
    slices: dict[str, dict[str, float]] = field(default_factory=dict)
    """Means of the same metrics over users whose histories are short, middling and long."""


class Protocol:
    """One cut of the tables, and the folder that systems are given.

    Args:
        name: One of `protocols.PROTOCOLS`.
        tables: All there is.
        draw: Seed of the cut.
        folder: Where what may be seen is written.

    Raises:
        UserError: The cut leaves nothing to learn from or nothing to ask.
    """

    def __init__(self, name: str, tables: Tables, draw: int, folder: Path) -> None:
        self.name, self.task = name, folder
        self._draw, self._raw = draw, tables.raw
        cut = carve(tables.interactions, name, draw, TEST_SHARE[name])
        self.relevant = cut.relevant()
        if not self.relevant or not len(cut.train):
            raise UserError(f"--protocols {name}: {len(tables.interactions)} interactions are too few for this cut")
        asked = cut.queries()
        asked = asked[asked["user"].isin(self.relevant)].reset_index(drop=True)
        self.cut, self._items = cut, tables.items
        self._seen = cut.history.groupby("user")["item"].agg(set).to_dict()
        self._known = set(cut.train["user"])
        self._popularity = cut.train["item"].value_counts().to_dict()

        folder.mkdir(parents=True, exist_ok=True)
        cut.train[COLUMNS].to_parquet(folder / "train.parquet", index=False)
        cut.history[COLUMNS].to_parquet(folder / "history.parquet", index=False)
        tables.items.to_parquet(folder / "items.parquet", index=False)
        tables.users.to_parquet(folder / "users.parquet", index=False)
        asked.to_parquet(folder / "queries.parquet", index=False)
        if cut.candidates is not None:
            pd.DataFrame({"item": cut.candidates}).to_parquet(folder / "candidates.parquet", index=False)
        (folder / "task.json").write_text(json.dumps({"protocol": name, "draw": draw}))

    def write_pipeline_tables(self, folder: Path) -> Path:
        """Writes what our pipeline reads: the original rows with their split, and the histories that are served.

        The eval rows are in interactions.parquet because the pipeline's Evaluator reads them; that no fit depends on
        them is what tests/benchmarks/test_leaks.py holds.
        """
        # A held-out user's history has no place in train: there, the latest interactions of the users in train stand
        # for what held-out users are asked. An item without a row in train has no label to be validated by: rows are
        # drawn.
        protocol = {"cold-users": "latest", "cold-items": "random"}.get(self.name, self.name)
        held = carve(self.cut.train, protocol, self._draw + 1, VALIDATION_SHARE[protocol]).test.index
        split = pd.Series("train", self.cut.train.index)
        split[held] = "validation"
        split = pd.concat([split, pd.Series("eval", self.cut.test.index)]).sort_index()
        folder.mkdir(parents=True, exist_ok=True)
        for name, chosen in (("interactions", split), ("history", pd.Series("train", self.cut.history.index))):
            rows = self._raw.take(pa.array(chosen.index.to_numpy()))
            pq.write_table(rows.append_column("split", pa.array(chosen.to_numpy(object))), folder / f"{name}.parquet")
        return folder

    def judge(self, system: str, recommended: pd.DataFrame, report: Mapping[str, Any]) -> list[Row]:
        """Measures one system: one row, or two where users or rankings are judged apart.

        Args:
            system: Its name.
            recommended: `seed`, `ranking`, `user`, `rank` (from 1), `item`.
            report: `settings`, `tune_seconds`, `fit_seconds`.

        Raises:
            RefusedAnswerError: Something else came back than what was asked for.
        """
        groups = {self.name: self.relevant}
        if self.name == "temporal":
            groups = {
                f"temporal, {words} users": {u: r for u, r in self.relevant.items() if (u in self._known) == known}
                for words, known in (("warm", True), ("cold", False))
            }
        # Row → everybody and slices of them → seeds.
        measured: dict[str, dict[str, list[dict[str, float]]]] = {}
        for seed, answers in recommended.groupby("seed"):
            for ranking, candidates in self._rankings().items():
                rankings = self._checked(answers[answers["ranking"] == ranking], candidates, f"seed {seed}")
                for name, relevant in groups.items():
                    if relevant:
                        label = f"{name}, among cold items" if ranking == COLD else name
                        for words, some in {_EVERYBODY: relevant, **self._by_history(relevant)}.items():
                            values = metrics.measure(rankings, some, self._popularity, len(self._items))
                            measured.setdefault(label, {}).setdefault(words, []).append(values)
        seeds = recommended["seed"].nunique()
        queries = {name: len(relevant) for name, relevant in groups.items()}

        def mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
            return {m: float(np.mean([v[m] for v in values])) for m in metrics.NAMES}

        def deviation(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
            return {m: float(np.std([v[m] for v in values], ddof=1)) for m in metrics.NAMES}

        return [
            Row(
                label, system, mean(slices[_EVERYBODY]),
                deviation(slices[_EVERYBODY]) if seeds > 1 else None,
                seeds, queries[label.removesuffix(", among cold items")], dict(report["settings"]),
                report["tune_seconds"], report["fit_seconds"],
                {words: mean(values) for words, values in slices.items() if words != _EVERYBODY},
            )
            for label, slices in measured.items()
        ]  # fmt: skip

    def _by_history(self, relevant: Mapping[str, set[str]]) -> dict[str, dict[str, set[str]]]:
        """Thirds of the users by the length of what they bring; none where all bring about the same."""
        lengths = {user: len(self._seen.get(user, ())) for user in relevant}
        low, high = (int(x) for x in np.quantile(list(lengths.values()), (1 / 3, 2 / 3), method="lower"))
        if low == high or high == max(lengths.values()):
            return {}
        bounds = {
            f"to {low} items": (0, low),
            f"{low + 1} to {high}": (low + 1, high),
            f"from {high + 1}": (high + 1, max(lengths.values())),
        }
        return {
            words: {user: items for user, items in relevant.items() if least <= lengths[user] <= most}
            for words, (least, most) in bounds.items()
        }

    def _rankings(self) -> dict[str, set[str]]:
        everything = set(self._items["item"])
        return {ALL: everything} | ({} if self.cut.candidates is None else {COLD: set(self.cut.candidates)})

    def _checked(self, answers: pd.DataFrame, candidates: set[str], where: str) -> dict[str, list[str]]:
        """User → ranking, if every user has the items that were asked for."""
        ordered = answers.sort_values("rank", kind="stable")
        rankings = ordered.groupby("user")["item"].agg(list).to_dict()
        for user in self.relevant:
            ranking, seen = rankings.get(user, []), self._seen.get(user, set())
            wanted = min(metrics.DEPTH, len(candidates - seen))
            problem = None
            if len(ranking) != wanted:
                problem = f"got {len(ranking)} items, not {wanted}"
            elif len(set(ranking)) < len(ranking):
                problem = f"got item {next(item for item in ranking if ranking.count(item) > 1)!r} twice"
            elif not candidates.issuperset(ranking):
                problem = f"got item {min(set(ranking) - candidates)!r}, which is not one of the items to choose from"
            elif not seen.isdisjoint(ranking):
                problem = f"got item {min(seen.intersection(ranking))!r} of their own history"
            if problem:
                raise RefusedAnswerError(f"{self.name}, {where}: user {user!r} {problem}")
        return rankings


def start(name: str, task: Path, output: Path, arguments: Sequence[str], root: Path) -> None:
    """Runs one system in its own process and environment; its output goes to log.txt beside what it writes.

    Raises:
        UserError: Its environment is not there.
        RuntimeError: It ended with an error or without an answer; the message is the last lines of what it said.
    """
    entry: Entry = SYSTEMS[name]
    python = root / entry.environment / "bin" / "python"
    if not python.exists():
        raise UserError(f"{entry.environment} is not there, which {name} runs in; make it with `make bench-setup`")
    output.mkdir(parents=True, exist_ok=True)
    answer = output / ANSWER
    answer.unlink(missing_ok=True)
    module = "benchmarks.quality.systems.ours" if name == "ours" else "benchmarks.quality.worker"
    command = [str(python), "-m", module, "--system", name, "--task", str(task), "--output", str(output), *arguments]
    environment = os.environ | {
        "PYTHONPATH": str(root), "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_USE_LEGACY_KERAS": "1", "TF_ENABLE_ONEDNN_OPTS": "0",
    }  # fmt: skip
    if name != "ours":
        environment["OMP_NUM_THREADS"] = "1"
    with open(output / "log.txt", "w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)
    # A library that ends its process politely when it is told to makes it look like a success.
    if done.returncode or not answer.exists():
        lines = (output / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError("\n".join(lines[-_LOG_LINES:]))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
