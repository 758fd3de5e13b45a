"""One system in a process of its own: tunes on a validation part that it carves from train, refits, recommends.

It is given a folder without any test row: train.parquet, items.parquet, users.parquet, history.parquet and
queries.parquet (who is asked about, and when), candidates.parquet for a restricted ranking, task.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.quality import metrics
from benchmarks.quality.protocols import VALIDATION_SHARE, Carved, carve
from benchmarks.quality.systems import SYSTEMS
from benchmarks.quality.systems.base import ALL, COLD, Data, Queries, Score, Settings, System, rank

_BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--budget", type=float, required=True, help="CPU seconds")
    options = parser.parse_args()
    module, name = SYSTEMS[options.system].implementation.split(":")
    system = getattr(importlib.import_module(f"benchmarks.quality.systems.{module}"), name)()
    run(system, options.task, options.output, [int(seed) for seed in options.seeds.split(",")], options.budget)


def run(system: System, task: Path, output: Path, seeds: Sequence[int], budget: float) -> None:
    """Writes recommendations.parquet (`seed`, `ranking`, `user`, `rank`, `item`) and report.json.

    Args:
        system: What is measured.
        task: The folder that the judge wrote.
        output: Where to write.
        seeds: One fit of all of train for each.
        budget: Seconds of this process's own time (a busy machine shortens no search) after which no more are tried.
    """
    described = json.loads((task / "task.json").read_text())
    train, catalogue = (pd.read_parquet(task / f"{name}.parquet") for name in ("train", "items"))
    started = time.process_time()
    cut = carve(train, described["protocol"], described["draw"] + 1, VALIDATION_SHARE[described["protocol"]])
    settings, tried = tune(system, cut, catalogue, seeds[0], budget)
    tuned = time.process_time()

    data = Data.of(train, catalogue)
    asked = pd.read_parquet(task / "queries.parquet")
    queries = data.queries(asked, pd.read_parquet(task / "history.parquet"))
    rankings: dict[str, np.ndarray | None] = {ALL: None}
    if (task / "candidates.parquet").exists():
        rankings[COLD] = pd.Index(data.items).get_indexer(pd.read_parquet(task / "candidates.parquet")["item"])
    answers = []
    for seed in seeds:
        *_, (_, score) = system.fit(data, settings, seed)
        for ranking, candidates in rankings.items():
            places = _ranked(score, queries, candidates)
            row, column = np.nonzero(places >= 0)
            answers.append(pd.DataFrame({
                "seed": seed, "ranking": ranking, "user": asked["user"].to_numpy()[row], "rank": column + 1,
                "item": data.items[places[row, column]],
            }))  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    pd.concat(answers).to_parquet(output / "recommendations.parquet", index=False)
    report = {
        "settings": dict(settings), "tried": tried, "tune_seconds": tuned - started,
        "fit_seconds": (time.process_time() - tuned) / len(seeds),
    }  # fmt: skip
    (output / "report.json").write_text(json.dumps(report, indent=1))


def tune(
    system: System, cut: Carved, catalogue: pd.DataFrame, seed: int, budget: float
) -> tuple[Settings, list[dict[str, Any]]]:
    """The settings with the best NDCG@10 on the validation part, and everything that was tried."""
    data = Data.of(cut.train, catalogue)
    relevant = cut.relevant()
    asked = cut.queries()
    asked = asked[asked["user"].isin(relevant)].reset_index(drop=True)
    queries = data.queries(asked, cut.history)
    candidates = None if cut.candidates is None else pd.Index(data.items).get_indexer(cut.candidates)
    deadline = time.process_time() + budget
    tried: list[dict[str, Any]] = []
    for settings in system.space:
        best_of_fit, stale = -1.0, 0
        for point, score in system.fit(data, settings, seed):
            places = _ranked(score, queries, candidates)
            items = np.append(data.items, "")[places]
            values = [metrics.ndcg(row, relevant[user], metrics.K)
                      for user, row in zip(asked["user"], items, strict=True)]  # fmt: skip
            value = float(np.mean(values))
            tried.append({**point, "ndcg@10": value})
            print(f"{time.process_time() - deadline + budget:6.1f} s  {tried[-1]}", flush=True)
            stale = 0 if value > best_of_fit else stale + 1
            best_of_fit = max(best_of_fit, value)
            if stale >= system.patience or time.process_time() > deadline:
                break
        if time.process_time() > deadline:
            break
    chosen = max(tried, key=lambda trial: trial["ndcg@10"])
    return {key: value for key, value in chosen.items() if key != "ndcg@10"}, tried


def _ranked(score: Score, queries: Queries, candidates: np.ndarray | None) -> np.ndarray:
    """The top `metrics.DEPTH` of each query, [Q, ≤ DEPTH], histories left out."""
    starts = range(0, len(queries.user), _BATCH)
    return np.concatenate([
        rank(score(batch), batch.history, metrics.DEPTH, candidates)
        for batch in (queries.take(slice(start, start + _BATCH)) for start in starts)
    ])  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
    main()
