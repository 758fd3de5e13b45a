"""Retrieval, ranking, last rules: what each stage gives on MovieLens-100K, by NDCG@10 over queries that came later.

One way through time: the retrieval is fitted on the first part of the interactions, the ranking model on the queries of
the next part (validation), and all stages are judged on those of the last part (eval), a query for each interaction.
Queries count alike, as in the Evaluator's figures. Intervals are over users: the queries of one are not independent.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.quality import tables
from benchmarks.quality.systems import ours
from benchmarks.ranking import last_stage
from benchmarks.ranking.features import features
from benchmarks.ranking.ranker import Ranker
from modules import metrics
from modules.errors import UserError
from modules.intervals import DEFAULT_CONFIDENCE, Moments
from pipeline import local_runner
from pipeline.config import Config, load
from pipeline.ranker_rows import CANDIDATES, QUERIES

if TYPE_CHECKING:
    from pipeline.ranker_hand_off import Split

_K = 10
_LIMITED = "item_genres"
_PROTOCOL = (
    # The curated schema is that of another split.
    "split={strategy: temporal}", "evaluation.history=rolling", "training.refit=false", "schema.path=null",
    "evaluation.beat_popularity=false", "evaluation.floors={}", "evaluation.max_regression={}",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-ranking", description=__doc__)
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--k", type=int, default=100, help="candidates of a query (default 100)")
    parser.add_argument("--seeds", type=int, default=1, help="ranking models, whose scores are averaged (default 1)")
    parser.add_argument("--max-per-genre", type=int, default=4, metavar="M", help="of the last stage (default 4)")
    parser.add_argument("--output", type=Path, default=Path("results/ranking"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        return _measure(options)
    except UserError as error:
        print(f"bench-ranking: {error}", file=sys.stderr)
        return 2


def _measure(options: argparse.Namespace) -> int:
    local_runner.quiet_libraries()
    folder = options.output.resolve()
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    overrides = [*_PROTOCOL, f"output.root={folder / 'runs'}", f"output.push={folder / 'served'}", *options.overrides]
    ours.run(options.config, overrides)
    config = load(options.config, overrides)
    everything = tables.read(config)
    ratings = everything.raw.column("rating").to_numpy()[everything.interactions.index]
    interactions = everything.interactions.assign(rating=ratings)

    learned, asked = _hand_off(config, folder, "validation", options.k)
    of_learned = features(learned, asked, interactions)
    rankers = [Ranker(learned, of_learned, seed) for seed in range(1, options.seeds + 1)]
    rows, queries = _hand_off(config, folder, "eval", options.k)
    of_rows = features(rows, queries, interactions)
    scores = np.mean([ranker.scores(rows, of_rows) for ranker in rankers], axis=0)

    relevant = {key: set(items) for key, items in zip(queries["query"], queries["relevant_items"], strict=True)}
    seen = {key: set(items) for key, items in zip(queries["query"], queries["history"], strict=True)}
    genres = dict(zip(rows["item"], rows[_LIMITED], strict=True))
    ranked = rankings(rows, scores)
    limit = options.max_per_genre
    stages = {
        "retrieval": rankings(rows, rows["score"].to_numpy()),
        "ranking": ranked,
        "last stage": {
            key: last_stage.answer(items, _K, seen[key], values=genres, most=limit) for key, items in ranked.items()
        },
    }
    figures = {name: ndcg(answers, relevant) for name, answers in stages.items()}
    users = [user for user, items in zip(queries["user"], queries["relevant_items"], strict=True) if len(items)]
    print(f"trained on {len(asked):,} queries by {asked['user'].nunique():,} users, "
          f"judged on {len(queries):,} later ones by {queries['user'].nunique():,} users\n")  # fmt: skip
    print(f"| stage | NDCG@{_K} | beside the retrieval | most of one genre in an answer |")
    print("| --- | --- | --- | --- |")
    results: dict[str, dict] = {}
    for name, values in figures.items():
        results[name] = interval(values, users) | {"difference": interval(values - figures["retrieval"], users)}
        of_difference = "" if name == "retrieval" else _shown(results[name]["difference"], sign="+")
        one_kind = np.mean([_of_one_value(items[:_K], genres) for items in stages[name].values()])
        print(f"| {name} | {_shown(results[name])} | {of_difference} | {one_kind:.2f} |")
    shares = rankers[0].importance().head(8)
    print("\nwhat the trees split by: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))
    (folder / "ranking.json").write_text(json.dumps(results, indent=1))
    return 0


def _hand_off(config: Config, output: Path, split: Split, k: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The candidates and the queries of a split, as `twotower batch --for-ranker` writes them."""
    folder = output / "rows" / split
    shutil.rmtree(folder, ignore_errors=True)
    with local_runner.captured_output(str(output / "log")):
        from pipeline import ranker_hand_off

        ranker_hand_off.write(config, str(folder), ranker_hand_off.Wanted(split, k))
    return pd.read_parquet(folder / CANDIDATES), pd.read_parquet(folder / QUERIES)


def rankings(rows: pd.DataFrame, scores: np.ndarray) -> dict[str, list[str]]:
    """Query → its candidates by score, best first; equal scores in the order of the retrieval."""
    order = rows.assign(by=-scores).sort_values(["query", "by", "rank"], kind="stable")
    return {str(key): items.tolist() for key, items in order.groupby("query", sort=False)["item"]}


def ndcg(answers: Mapping[str, Sequence[str]], relevant: Mapping[str, set[str]]) -> np.ndarray:
    """[Q] NDCG@10 of the queries that have a relevant item, retrieved or not.

    Args:
        answers: Query → items, best first.
        relevant: Query → what is relevant.
    """
    asked = [key for key, items in relevant.items() if items]
    hits = np.stack([metrics.hits(answers.get(key, ()), relevant[key], _K) for key in asked])
    return metrics.ndcg(hits, np.array([len(relevant[key]) for key in asked]))


def interval(values: np.ndarray, users: Sequence[str]) -> dict[str, float]:
    """The mean over queries, and half of its interval where only users are independent draws.

    Student's interval of a ratio of two sums over users, by its linearization (Cochran, "Sampling Techniques", 1977,
    chapter 6): what a user's values are above the mean, in sum, is one value of the user's.

    Args:
        values: [Q].
        users: [Q] who asks.
    """
    above = pd.Series(values - values.mean()).groupby(list(users)).sum().to_numpy()
    moments = Moments.of(above[:, np.newaxis] * len(above) / len(values))
    return {"mean": float(values.mean()), "half_width": float(moments.half_widths(DEFAULT_CONFIDENCE)[0])}


def _shown(interval: Mapping[str, float], sign: str = "") -> str:
    return f"{interval['mean']:{sign}.4f} ±{interval['half_width']:.4f}"


def _of_one_value(items: Sequence[str], values: Mapping[str, Sequence[str]]) -> int:
    """Items of the value that has the most."""
    counts = pd.Series([value for item in items for value in values.get(item, ())]).value_counts()
    return int(counts.max()) if len(counts) else 0


if __name__ == "__main__":
    sys.exit(main())
