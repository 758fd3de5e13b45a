"""`make bench-scale`: the whole pipeline on generated data of several sizes, and implicit's ALS on the same tables.

For each size: seconds and peak memory of every stage, how they grow, and recall@100 of the served model beside ALS and
beside the best possible one, which the law of the data knows. Every step runs in a process of its own, one after the
other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Most queries that ALS and the law are judged on; the Evaluator judges ours on all of them.
_QUERIES = 10_000


@dataclass(frozen=True)
class Size:
    """How much is drawn."""

    interactions: int
    users: int
    items: int


SIZES = {
    "10k": Size(10_000, 500, 500),
    "100k": Size(100_000, 5_000, 5_000),
    "1M": Size(1_000_000, 50_000, 30_000),
    "10M": Size(10_000_000, 300_000, 200_000),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where a size failed."""
    parser = argparse.ArgumentParser(prog="bench-scale", description=__doc__)
    parser.add_argument("--sizes", default="100k,1M,10M", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
                        help="a key of configs/synthetic.yaml")  # fmt: skip
    parser.add_argument("--no-als", action="store_true", help="leave ALS out, which needs `make bench-setup`")
    parser.add_argument("--output", type=Path, default=Path("results/scale"), help="tables and runs are kept there")
    parser.add_argument("--queries", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.queries:
        _write_queries(options.queries)
        return 0
    chosen = options.sizes.split(",")
    if unknown := set(chosen) - set(SIZES):
        parser.error(f"--sizes: unknown {unknown.pop()!r}; known are {', '.join(SIZES)}")
    rows = []
    for name in chosen:
        rows.append({"size": name, **_measure(SIZES[name], options.output.resolve() / name, options)})
        (options.output / "scale.json").write_text(json.dumps(rows, indent=2))
    render(rows)
    return int(any("error" in row for row in rows))


def _measure(size: Size, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tables = folder / "tables"
    twotower = [str(Path(sys.executable).parent / "twotower")]
    drawn = [f"--users={size.users}", f"--items={size.items}", f"--interactions={size.interactions}"]
    overrides = [
        f"tables.interactions.path={tables}/interactions-*.parquet", f"tables.items.path={tables}/items.parquet",
        f"tables.users.path={tables}/users.parquet", f"output.root={folder}/runs", f"output.push={folder}/served",
        *options.overrides,
    ]  # fmt: skip
    command = [*twotower, "run", "--config", str(ROOT / "configs/synthetic.yaml"), "--json"]
    try:
        _run([*twotower, "data", "synthetic", *drawn, f"--seed={options.seed}", "--output", str(tables)])
        run = _run(command + [part for override in overrides for part in ("--set", override)])
        _run([sys.executable, "-m", "benchmarks.scale", "--queries", str(folder)])
        als = {}
        if not options.no_als:
            python = str(ROOT / ".venv-bench/bin/python")
            als = _run([python, "-m", "benchmarks.scale.als", str(folder)])
    except RuntimeError as error:
        return {"error": str(error)}
    return {
        "seconds": run["seconds"],
        "peak_memory_bytes": run["peak_memory_bytes"],
        "stages": run["stages"],
        "epochs": run["training"]["epochs"],
        "recall": run["metrics"]["overall"]["recall@100"],
        "ndcg": run["metrics"]["overall"]["ndcg@10"],
        "popular": run["metrics"]["overall"]["popular_recall@100"],
        "best": json.loads((folder / "best.json").read_text()),
        "als": als,
    }


def _run(command: Sequence[str]) -> Any:
    """What a command prints as JSON; None where it prints none.

    Raises:
        RuntimeError: It ended with another code than 0.
    """
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["killed"])[-1]
        raise RuntimeError(f"{' '.join(command[:3])}: exit code {ended.returncode}: {last}")
    printed = ended.stdout.strip()
    return json.loads(printed[printed.index("{") :]) if "{" in printed else None


def _write_queries(folder: Path) -> None:
    """What ALS is fitted on and asked, and the recall of the law."""
    import numpy as np
    import pyarrow.parquet as pq

    from benchmarks.scale import queries

    # Beside an artifact lies its manifest.
    made = (folder / "runs/synthetic/InteractionExampleGen/examples").iterdir()
    examples = next(path for path in made if path.is_dir())

    def files(split: str) -> list[str]:
        return sorted(str(path) for path in (examples / f"Split-{split}").glob("*.gz"))

    for split in ("validation", "eval"):
        queries.read(files(split), _QUERIES).save(folder / f"{split}.npz")
    users, items, held_out = queries.read_train(files("train"))
    count = [pq.read_metadata(folder / "tables" / f"{name}.parquet").num_rows for name in ("users", "items")]
    np.savez(folder / "train.npz", users=users, items=items, held_out=held_out, count=np.array(count))
    best = queries.best_possible(queries.Asked.load(folder / "eval.npz"), folder / "tables")
    (folder / "best.json").write_text(json.dumps(best._asdict()))


def render(rows: Sequence[dict[str, Any]]) -> None:
    """Prints two tables: what each stage took at each size, and what came out."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=int(os.environ.get("COLUMNS", 120)))
    done = [row for row in rows if "error" not in row]
    for row in rows:
        if "error" in row:
            console.print(f"{row['size']}: {row['error']}")
    stages = Table(
        "stage", *(f"{row['size']}: s, GB" for row in done), *(f"slope to {row['size']}" for row in done[1:])
    )
    for place, stage in enumerate(done[0]["stages"] if done else []):
        of_rows = [row["stages"][place] for row in done]
        stages.add_row(stage["name"], *map(_costs, of_rows), *_slopes(done, [each["seconds"] for each in of_rows]))
    if done:
        stages.add_section()
        stages.add_row("all", *map(_costs, done), *_slopes(done, [row["seconds"] for row in done]))
        console.print(stages)
    quality = Table("size", "of", "recall@100", "NDCG@10", "costs")
    for row in done:
        ours = f"{row['epochs']} epochs, {row['seconds']:.0f} s in all"
        quality.add_row(row["size"], "ours", f"{row['recall']:.4f}", f"{row['ndcg']:.4f}", ours)
        if als := row["als"]:
            costs = f"{als['seconds']:.0f} s, {als['peak_gb']:.1f} GB"
            quality.add_row("", "ALS", f"{als['recall']:.4f}", f"{als['ndcg']:.4f}", costs)
        quality.add_row("", "most popular", f"{row['popular']:.4f}", "", "")
        quality.add_row("", "best possible", f"{row['best']['recall']:.4f}", f"{row['best']['ndcg']:.4f}", "")
        quality.add_section()
    if done:
        console.print(quality)


def _costs(costs: dict[str, Any]) -> str:
    memory = costs["peak_memory_bytes"]
    return f"{costs['seconds']:.1f}, {memory / 1e9:.1f}" if memory else f"{costs['seconds']:.1f}"


def _slopes(done: Sequence[dict[str, Any]], seconds: Sequence[float]) -> list[str]:
    """The exponent by which time grows with interactions from one size to the next: 1 is as fast as the data."""
    sizes = [SIZES[row["size"]].interactions for row in done]
    return [
        f"{math.log(late / early) / math.log(more / few):.2f}" if early > 1 and late > 1 else ""
        for early, late, few, more in zip(seconds, seconds[1:], sizes, sizes[1:], strict=False)
    ]


if __name__ == "__main__":
    sys.exit(main())
