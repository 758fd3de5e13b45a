"""`make bench-published`: the shipped pipeline on data that papers report on, our row beside the published ones.

Protocol of the papers: each user's last item is the test, the one before it validation, the rest train; the whole
catalogue is ranked, items of the history left out; HR@10 and NDCG@10 over the users. Our figures are the Evaluator's,
of the servable that is pushed. One configuration, configs/sequences.yaml, for every data set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.published.data import DATA_SETS, lay_out
from benchmarks.published.rows import ROWS
from modules.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2: a mistake in what was asked, or the data cannot be had."""
    parser = argparse.ArgumentParser(prog="bench-published", description=__doc__)
    parser.add_argument("--data", default=",".join(DATA_SETS), help=f"of {', '.join(DATA_SETS)}")
    parser.add_argument(
        "--from", type=Path, dest="source", metavar="FOLDER", help="has the files, in place of fetching"
    )
    parser.add_argument("--seeds", type=int, default=3, help="fits of each data set")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
                        help="a key of configs/sequences.yaml")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("results/published"))
    options = parser.parse_args(arguments)
    chosen = options.data.split(",")
    if unknown := set(chosen) - set(DATA_SETS):
        parser.error(f"--data: unknown {unknown.pop()!r}; known are {', '.join(DATA_SETS)}")
    try:
        for name in chosen:
            lay_out(name, options.output / name, options.source)
            runs = [_run(options.output.resolve() / name, seed, options.overrides) for seed in range(options.seeds)]
            (options.output / f"{name}.json").write_text(json.dumps(runs, indent=2))
            render(name, runs)
    except UserError as error:
        print(f"bench-published: {error}", file=sys.stderr)
        return 2
    return 0


def _run(folder: Path, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    settings = [
        f"tables.interactions.path={folder}/interactions.parquet", f"tables.items.path={folder}/items.parquet",
        f"output.root={folder}/runs", f"output.push={folder}/served", f"training.seed={seed}", *overrides,
    ]  # fmt: skip
    command = [str(Path(sys.executable).parent / "twotower"), "run", "--config", str(ROOT / "configs/sequences.yaml")]
    command += ["--json", *(part for setting in settings for part in ("--set", setting))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise UserError((ended.stderr.strip().splitlines() or ["killed"])[-1].removeprefix("twotower: "))
    outcome = json.loads(ended.stdout)
    overall = outcome["metrics"]["overall"]
    return {
        "seed": seed,
        "hit_rate": overall["hit_rate@10"],
        "ndcg": overall["ndcg@10"],
        "users": overall["queries"],
        "fit_seconds": outcome["training"]["seconds"],
        "seconds": outcome["seconds"],
        "stages": outcome["stages"],
    }


def render(name: str, runs: Sequence[dict[str, Any]]) -> None:
    """Prints all rows of a data set, the best NDCG first."""
    from rich.console import Console
    from rich.table import Table

    ours = (
        f"ours, {len(runs)} seed{'s' * (len(runs) > 1)}, {statistics.mean(run['users'] for run in runs):,.0f} users",
        [run["hit_rate"] for run in runs],
        [run["ndcg"] for run in runs],
        f"fitting {statistics.mean(run['fit_seconds'] for run in runs):,.0f} s",
    )
    rows = [ours, *((row.system, [row.hit_rate], [row.ndcg], row.source) for row in ROWS[name])]
    table = Table("system", "HR@10", "NDCG@10", "where it is from", title=name, title_justify="left")
    for system, hit_rates, ndcg, source in sorted(rows, key=lambda row: -statistics.mean(row[2])):
        style = "bold" if system == ours[0] else None
        table.add_row(system, _words(hit_rates), _words(ndcg), source, style=style)
    Console(width=int(os.environ.get("COLUMNS", 100))).print(table)


def _words(values: Sequence[float]) -> str:
    spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
