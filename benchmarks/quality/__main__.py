"""`make bench-quality`: every system on every protocol, judged on rows that it has not seen, in one table."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd
from rich.console import Console

from benchmarks.quality import protocols, report, tables, worker
from benchmarks.quality.judge import ANSWER, Protocol, RefusedAnswerError, Row, start
from benchmarks.quality.systems import SYSTEMS, base
from modules.errors import UserError
from pipeline.config import load

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all measured; 1: a system failed; 2: a mistake in what was asked."""
    try:
        return _main(_parser().parse_args(arguments))
    except UserError as error:
        print(f"bench-quality: {error}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bench-quality", description=__doc__)
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
                        help="a key of the configuration, for ours")  # fmt: skip
    parser.add_argument("--protocols", default=",".join(protocols.PROTOCOLS))
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", default="3", metavar="N", help="fits of each system that draws (default 3)")
    parser.add_argument("--draw", default="2027", help="seed of the cuts (default 2027)")
    parser.add_argument(
        "--budget",
        default="6",
        metavar="MINUTES",
        help="of tuning, CPU time, a system and protocol (default 6; a transformer is given five times as much)",
    )
    parser.add_argument("--output", default="results/quality", metavar="FOLDER")
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the output folder already")
    return parser


def _main(options: argparse.Namespace) -> int:
    chosen = _names("--protocols", options.protocols, protocols.PROTOCOLS)
    systems = _names("--systems", options.systems, tuple(SYSTEMS))
    seeds = [str(seed) for seed in range(1, int(_number("--seeds", options.seeds, 1)) + 1)]
    draw, budget = int(_number("--draw", options.draw, 0)), _number("--budget", options.budget, 0)
    config = load(options.config, options.overrides)
    everything = tables.read(config)
    output = Path(options.output).resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {options.output}: {error.strerror}") from None

    started = time.monotonic()
    cuts = [Protocol(name, everything, draw, output / name / "task") for name in chosen]
    measurements = [
        _Measurement(system, cut, output / cut.name / system, seeds, budget, options)
        for cut in cuts for system in systems if cut.name in SYSTEMS[system].protocols
    ]  # fmt: skip
    rows: list[Row] = []
    failures: dict[tuple[str, str], str] = {}
    for alone in (False, True):
        # Ours uses every core; the others one each.
        some = [m for m in measurements if (m.system == "ours") == alone]
        with ThreadPoolExecutor(1 if alone else os.cpu_count()) as pool:
            for measurement, outcome in zip(some, pool.map(_Measurement.run, some), strict=True):
                if isinstance(outcome, str):
                    failures[measurement.cut.name, measurement.system] = outcome
                else:
                    rows += outcome
    about = {
        "configuration": options.config, "draw": draw, "seeds": len(seeds), "CPU minutes of tuning at most": budget,
        "seconds": round(time.monotonic() - started),
    }  # fmt: skip
    report.render(rows, failures, Console(highlight=False, width=None if sys.stdout.isatty() else 240))
    report.write(output, rows, failures, about)
    print(f"written to {output / 'results.md'} and results.json; {about['seconds']} s")
    return 1 if failures else 0


@dataclass(frozen=True)
class _Measurement:
    """One system on one protocol."""

    system: str
    cut: Protocol
    folder: Path
    seeds: Sequence[str]
    budget: float
    options: argparse.Namespace

    def run(self) -> list[Row] | str:
        """Its rows, or why it failed."""
        entry, options = SYSTEMS[self.system], self.options
        seconds = 60 * self.budget * entry.budgets
        given = ["--seeds", ",".join(self.seeds if entry.seeded else self.seeds[:1]), "--budget", str(seconds)]
        key = _key(self.system, self.cut.task, given)
        stamp = self.folder / "key.txt"
        begun = time.monotonic()
        # What the pipeline need not do again it knows itself.
        reused = self.system != "ours" and not options.fresh and _read(stamp) == key
        try:
            if not reused:
                stamp.unlink(missing_ok=True)
                if self.system == "ours":
                    tables = self.cut.write_pipeline_tables(self.folder / "tables")
                    given += ["--tables", str(tables), "--config", options.config]
                    given += [part for override in options.overrides for part in ("--set", override)]
                start(self.system, self.cut.task, self.folder, given, ROOT)
            answers = pd.read_parquet(self.folder / ANSWER)
            rows = self.cut.judge(self.system, answers, json.loads((self.folder / "report.json").read_text()))
        except (RefusedAnswerError, RuntimeError) as error:
            self._say(f"failed, see {self.folder / 'log.txt'}")
            return str(error)
        stamp.write_text(key)
        how = "re-used" if reused else f"{time.monotonic() - begun:.0f} s"
        self._say(f"{how:>8}   NDCG@10 {rows[0].mean['ndcg@10']:.4f}")
        return rows

    def _say(self, words: str) -> None:
        print(f"{self.cut.name:<15}{self.system:<20}{words}", file=sys.stderr, flush=True)


def _names(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"{option}: there is no {name!r}; known are {', '.join(known)}")
    if not names:
        raise UserError(f"{option}: name at least one of {', '.join(known)}")
    return names


def _number(option: str, text: str, least: int) -> float:
    try:
        value = float(text) if option == "--budget" else int(text)
    except ValueError:
        value = -1
    if not least <= value < 2**31:
        raise UserError(f"{option}: expected a number from {least}, not {text!r}")
    return value


def _key(system: str, task: Path, given: Sequence[str]) -> str:
    """What an answer depends on: what was handed out and asked for, and the code."""
    digest = hashlib.sha256(json.dumps([system, *given]).encode())
    module = ROOT / "benchmarks/quality/systems" / f"{SYSTEMS[system].implementation.split(':')[0]}.py"
    code = [module, *(Path(inspect.getfile(part)) for part in (worker, protocols, base))]
    for path in [*code, *sorted(task.iterdir())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
