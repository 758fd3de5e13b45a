"""New items beside known ones: what `model.exploration` costs the one and gains the other.

A world in which a tenth of the items come new with the test period, and another tenth with the validation period.
Rows are drawn into the periods as on a random split, and a new item has none from before it came: new items get as many
of a period's interactions as they would if they were known. One fit; its answers are ranked under each bonus, which is
added to the scores of the new items as `model.exploration` adds it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.quality import metrics, tables
from benchmarks.quality.systems import ours
from benchmarks.quality.systems.base import ALL
from modules.errors import UserError
from pipeline import local_runner
from pipeline.config import Config, load

BONUSES = (0.0, 1.0, 2.0, 4.0)
_SHARE = 0.1
"""Of the items that come new before a period, and of the rows that are in it."""
_DEPTH = 10


def split(interactions: pd.DataFrame, draw: int) -> tuple[pd.Series, np.ndarray]:
    """The split of each row, rows that nobody sees left out, and the items that are new in the test period.

    Args:
        interactions: Column `item`.
        draw: Seed.
    """
    rng = np.random.default_rng(draw)
    items = np.array(sorted(interactions["item"].unique()), object)
    size = max(1, round(_SHARE * len(items)))
    new, newish = np.split(rng.permutation(items)[: 2 * size], 2)
    period = rng.choice(["train", "validation", "eval"], len(interactions), p=[1 - 2 * _SHARE, _SHARE, _SHARE])
    of_new, of_newish = (interactions["item"].isin(some).to_numpy() for some in (new, newish))
    hidden = (of_new & (period != "eval")) | (of_newish & (period == "train"))
    return pd.Series(period, interactions.index)[~hidden], new


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-new-items", description=__doc__)
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--draw", type=int, default=2027, help="seed of the cut (default 2027)")
    parser.add_argument("--seed", type=int, default=1, help="of the fit (default 1)")
    parser.add_argument("--output", type=Path, default=Path("results/new-items"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        return _measure(options)
    except UserError as error:
        print(f"bench-new-items: {error}", file=sys.stderr)
        return 2


def _measure(options: argparse.Namespace) -> int:
    local_runner.quiet_libraries()
    everything = tables.read(load(options.config, options.overrides))
    of_rows, new = split(everything.interactions, options.draw)
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("interactions", of_rows), ("history", of_rows[of_rows != "eval"])):
        rows = everything.raw.take(pa.array(some.index.to_numpy()))
        column = pa.array(some.to_numpy(object))
        pq.write_table(rows.append_column("split", column), folder / f"{name}.parquet")
    overrides = [
        *options.overrides, "split={strategy: column, column: split}", f"training.seed={options.seed}",
        f"output.root={folder / 'runs'}", f"output.push={folder / 'served'}", "model.exploration=0",
        "evaluation.beat_popularity=false", "evaluation.floors={}", "evaluation.max_regression={}",
    ]  # fmt: skip
    # Answers that hold the whole catalogue, so that they can be ranked again.
    overrides += [f"serving.k={len(everything.items)}", "index.strategy=exact"]
    summary = ours.run(options.config, [*overrides, f"tables.interactions.path={folder / 'interactions.parquet'}"])
    offset = summary["training"]["calibration"]["new_item_offset"]
    config = load(options.config, [*overrides, f"tables.interactions.path={folder / 'history.parquet'}"])
    shown = everything.interactions.loc[of_rows.index]
    test = shown[of_rows == "eval"]
    seen = shown[of_rows != "eval"].groupby("user")["item"].agg(set).to_dict()
    relevant = {u: items - seen.get(u, set()) for u, items in test.groupby("user")["item"].agg(set).items()}
    asked = test.groupby("user")["timestamp"].min().reset_index()
    item_ids = everything.items["item"].to_numpy(object)
    users, scores = asked["user"].tolist(), score(config, asked, item_ids)
    table = curve(scores, users, item_ids, relevant, set(new), offset, config.training.temperature)
    share = np.mean(test["item"].isin(new))
    print(f"{len(new)} new of {len(item_ids)} items, {share:.3f} of the test rows; offset {offset}\n")
    print("| exploration | all | known items | new items | share of new items in the top 10 |")
    print("| --- | --- | --- | --- | --- |")
    for name, values in table.items():
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values.values()) + " |")
    (folder / "new_items.json").write_text(json.dumps({"offset": offset, "share": share, "table": table}, indent=1))
    np.savez(folder / "scores.npz", scores=scores)
    return 0


def score(config: Config, asked: pd.DataFrame, item_ids: np.ndarray) -> np.ndarray:
    """[Q, C] what the newest pushed version scores the items, −∞ at those of a user's history.

    Args:
        config: Its interactions table has the histories that requests are made from.
        asked: `user` and `timestamp` of the requests.
        item_ids: [C].
    """
    answers = ours.ask(config, asked, {ALL: []}, 0)
    scores = np.full((len(asked), len(item_ids)), -np.inf, np.float32)
    rows, columns = (
        pd.Index(ids).get_indexer(answers[key]) for key, ids in (("user", asked["user"]), ("item", item_ids))
    )
    scores[rows, columns] = answers["score"]
    return scores


def curve(
    scores: np.ndarray,
    users: Sequence[str],
    item_ids: np.ndarray,
    relevant: Mapping[str, set[str]],
    new: set[str],
    offset: float,
    temperature: float = 1.0,
) -> dict[str, dict[str, float]]:
    """NDCG@10 in the whole catalogue by what is added to the scores of new items.

    Args:
        scores: [Q, C] at exploration 0, −∞ at what a user has seen.
        users: [Q].
        item_ids: [C].
        relevant: User → items that were held out. A user counts for new items if one of theirs is new, and so on.
        new: The new items.
        offset: Of the calibration, which the scores of the new items hold already.
        temperature: `training.temperature`, by which log-odds become scores.
    """
    is_new = np.isin(item_ids, list(new))
    groups = {
        "all": relevant,
        "known": {user: items - new for user, items in relevant.items()},
        "new": {user: items & new for user, items in relevant.items()},
    }
    table = {}
    for name, bonus in {
        "0, not calibrated": -offset,
        **{f"{bonus:g}": temperature * bonus for bonus in BONUSES},
    }.items():
        moved = scores + np.float32(bonus) * is_new
        top = np.argsort(-moved, axis=1, kind="stable")[:, :_DEPTH]
        table[name] = {
            group: float(np.mean([
                metrics.ndcg(item_ids[row], wanted[user], _DEPTH)
                for user, row in zip(users, top, strict=True) if wanted.get(user)
            ]))
            for group, wanted in groups.items()
        } | {"shown": float(is_new[top].mean())}  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
