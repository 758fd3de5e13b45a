"""Retrieval, ranking, last rules: what each stage gives on MovieLens-100K, by NDCG@10 over held-out queries.

Asks the model that the last run pushed for the rows of its eval split, as `twotower batch --for-ranker` does, and deals
the users into folds: each query is ranked by a model that has seen no query of its user. Users count alike, and
intervals are over users: the queries of one are not independent of each other.
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
from benchmarks.ranking import last_stage, ranker
from benchmarks.ranking.features import features
from modules import metrics
from modules.errors import UserError
from modules.intervals import DEFAULT_CONFIDENCE, Moments
from pipeline import local_runner
from pipeline.config import Config, load

if TYPE_CHECKING:
    from pipeline.ranker_hand_off import Outcome

_K = 10
_LIMITED = "item_genres"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-ranking", description=__doc__)
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--k", type=int, default=100, help="candidates of a query (default 100)")
    parser.add_argument("--negatives", type=int, metavar="N",
                        help="others of a query that the ranking model is trained on (default all)")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="models of a fold, whose scores are averaged (default 3)")
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
    config = load(options.config, options.overrides)
    options.output.mkdir(parents=True, exist_ok=True)
    handed = _hand_off(config, options.output, options.k, None)
    rows, queries = (pd.read_parquet(options.output / "rows" / table) for table in ("candidates", "queries"))
    if options.negatives is not None:
        # Trained on are fewer rows, with weights; judged are all.
        _hand_off(config, options.output, options.k, options.negatives)
        sampled = pd.read_parquet(options.output / "rows" / "candidates", columns=["query", "item", "weight"])
        rows = rows.drop(columns="weight").merge(sampled, "left", ["query", "item"])
    everything = tables.read(config)
    of_rows = features(rows, queries, everything.interactions, everything.users)
    scores = np.mean([ranker.held_out_scores(rows, of_rows, seed) for seed in range(1, options.seeds + 1)], axis=0)

    relevant = {key: set(items) for key, items in zip(queries["query"], queries["relevant_items"], strict=True)}
    seen = {key: set(items) for key, items in zip(queries["query"], queries["history"], strict=True)}
    genres = dict(zip(rows["item"], rows[_LIMITED], strict=True))
    retrieved = rankings(rows, rows["score"].to_numpy())
    ranked = rankings(rows, scores)
    limit = options.max_per_genre
    stages = {
        "retrieval": retrieved,
        "ranking": ranked,
        "last stage": {
            key: last_stage.answer(items, _K, seen[key], values=genres, most=limit) for key, items in ranked.items()
        },
    }
    user_of = dict(zip(queries["query"], queries["user"], strict=True))
    figures = {name: ndcg(answers, relevant, user_of) for name, answers in stages.items()}
    print(f"{handed.counts.queries:,} queries of eval by {len(set(user_of.values())):,} users, "
          f"recall@{options.k} {handed.recall:.4f}, version {handed.version}\n")  # fmt: skip
    print(f"| stage | NDCG@{_K} | beside the retrieval | most of one genre in an answer |")
    print("| --- | --- | --- | --- |")
    results = {}
    for name, values in figures.items():
        results[name] = _interval(values) | {"difference": _interval(values - figures["retrieval"])}
        of_difference = "" if name == "retrieval" else _shown(results[name]["difference"], sign="+")
        one_kind = np.mean([_of_one_value(items[:_K], genres) for items in stages[name].values()])
        print(f"| {name} | {_shown(results[name])} | {of_difference} | {one_kind:.2f} |")
    (options.output / "ranking.json").write_text(json.dumps(results, indent=1))
    return 0


def _hand_off(config: Config, output: Path, k: int, negatives: int | None) -> Outcome:
    folder = output / "rows"
    shutil.rmtree(folder, ignore_errors=True)
    with local_runner.captured_output(str(output / "log")):
        from pipeline import ranker_hand_off

        return ranker_hand_off.write(config, str(folder), ranker_hand_off.Wanted("eval", k, negatives))


def rankings(rows: pd.DataFrame, scores: np.ndarray) -> dict[str, list[str]]:
    """Query → its candidates by score, best first; equal scores in the order of the retrieval."""
    order = rows.assign(by=-scores).sort_values(["query", "by", "rank"], kind="stable")
    return {str(key): items.tolist() for key, items in order.groupby("query", sort=False)["item"]}


def ndcg(
    answers: Mapping[str, Sequence[str]], relevant: Mapping[str, set[str]], user_of: Mapping[str, str]
) -> np.ndarray:
    """[U] each user's mean NDCG@10 over the queries that have a relevant item, retrieved or not.

    Args:
        answers: Query → items, best first.
        relevant: Query → what is relevant.
        user_of: Query → who asks.
    """
    asked = [key for key, items in relevant.items() if items]
    hits = np.stack([metrics.hits(answers.get(key, ()), relevant[key], _K) for key in asked])
    values = metrics.ndcg(hits, np.array([len(relevant[key]) for key in asked]))
    return pd.Series(values).groupby([user_of[key] for key in asked]).mean().to_numpy()


def _interval(values: np.ndarray) -> dict:
    moments = Moments.of(values[:, np.newaxis])
    return {"mean": float(moments.means()[0]), "half_width": float(moments.half_widths(DEFAULT_CONFIDENCE)[0])}


def _shown(interval: Mapping[str, float], sign: str = "") -> str:
    return f"{interval['mean']:{sign}.4f} ±{interval['half_width']:.4f}"


def _of_one_value(items: Sequence[str], values: Mapping[str, Sequence[str]]) -> int:
    """Items of the value that has the most."""
    counts = pd.Series([value for item in items for value in values.get(item, ())]).value_counts()
    return int(counts.max()) if len(counts) else 0


if __name__ == "__main__":
    sys.exit(main())
