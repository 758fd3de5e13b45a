"""Ours: `twotower run` with the shipped configuration, a seed at a time, and the answers of the pushed servable."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.quality.metrics import DEPTH
from benchmarks.quality.systems.base import ALL, COLD
from pipeline import cli, local_runner
from pipeline.config import Config, load
from pipeline.recommender import BATCH, Recommender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system")
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--budget", help="unused: training stops early on the validation part")
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument(
        "--tables", type=Path, required=True, help="the judge's interactions.parquet and history.parquet"
    )
    options = parser.parse_args()
    local_runner.quiet_libraries()
    asked = pd.read_parquet(options.task / "queries.parquet")
    items = pd.read_parquet(options.task / "items.parquet")["item"].tolist()
    restricted = options.task / "candidates.parquet"
    excluded: dict[str, list[str]] = {ALL: []}
    if restricted.exists():
        excluded[COLD] = sorted(set(items) - set(pd.read_parquet(restricted)["item"]))

    # Users who come with eval rows only have a history in them only where what came before the row counts.
    protocol = json.loads((options.task / "task.json").read_text())["protocol"]
    rolling = ["evaluation.history=rolling"] if protocol == "cold-users" else []
    answers, outcomes = [], []
    for seed in (int(seed) for seed in options.seeds.split(",")):
        overrides = [
            *options.overrides,
            *rolling,
            "split={strategy: column, column: split}",
            f"training.seed={seed}",
            f"serving.k={min(DEPTH, len(items))}",
            f"output.root={options.output / 'runs'}",
            f"output.push={options.output / f'served-{seed}'}",
            # A model that is measured here need not be good enough to ship, and there is nothing to compare it with.
            "evaluation.beat_popularity=false", "evaluation.floors={}", "evaluation.max_regression={}",
        ]  # fmt: skip
        shutil.rmtree(options.output / f"served-{seed}", ignore_errors=True)
        outcomes.append(
            run(options.config, [*overrides, f"tables.interactions.path={options.tables / 'interactions.parquet'}"])
        )
        config = load(options.config, [*overrides, f"tables.interactions.path={options.tables / 'history.parquet'}"])
        answers.append(ask(config, asked, excluded, seed))
    pd.concat(answers).to_parquet(options.output / "recommendations.parquet", index=False)
    (options.output / "report.json").write_text(json.dumps(_report(options, outcomes), indent=1))


def run(config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The summary of one run.

    Raises:
        SystemExit: Nothing was pushed.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(["run", "--json", "--config", config, *(part for o in overrides for part in ("--set", o))])
    if code:
        raise SystemExit(f"twotower run ended with {code}: {out.getvalue()}")
    return json.loads(out.getvalue())


def ask(config: Config, asked: pd.DataFrame, excluded: Mapping[str, Sequence[str]], seed: int) -> pd.DataFrame:
    """What the newest pushed version answers.

    Args:
        config: Its interactions table has the histories that requests are made from, and nothing later.
        asked: `user` and `timestamp` of the requests.
        excluded: Name of each ranking → items that it leaves out.
        seed: Written into each row.

    Returns:
        `seed`, `ranking`, `user`, `rank` (from 1), `item`, `score`.
    """
    recommender = Recommender(config)
    times = dict(zip(asked["user"], asked["timestamp"], strict=True))
    requests = [
        (user, replace(r, values={**r.values, config.tables.interactions.timestamp: times[user]}))
        for user, r in recommender.requests(asked["user"].tolist())
    ]
    rows = []
    for ranking, exclude in excluded.items():
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            answers = recommender.recommend([request for _, request in batch], exclude=exclude)
            for (user, _), answer in zip(batch, answers, strict=True):
                rows += [(seed, ranking, user, r.rank, r.item_id, r.score) for r in answer]
    return pd.DataFrame(rows, columns=["seed", "ranking", "user", "rank", "item", "score"])


def _report(options: argparse.Namespace, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As the worker's, and what the pipeline's own Evaluator measured (`pipeline`), by seed."""
    seconds = [sum(s["seconds"] for s in o["stages"] if s["name"] == "Trainer") for o in outcomes]
    return {
        "settings": {"config": options.config, **dict(o.split("=", 1) for o in options.overrides)},
        "tried": [],
        "tune_seconds": 0.0,
        "fit_seconds": float(np.mean(seconds)),
        "pipeline": [o["metrics"]["overall"] for o in outcomes],
        "training": [o["training"] for o in outcomes],
    }


if __name__ == "__main__":
    main()
