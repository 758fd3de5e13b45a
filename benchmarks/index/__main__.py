"""Compares the index layers with brute force, ScaNN's searchers, faiss, hnswlib and usearch at equal recall.

Each system lives in a process of its own; they are timed in turns, a few calls each, so that whatever else the machine
does meets all of them, and medians are taken. Building may use every processor, searching as many threads as asked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import data
from benchmarks.index.systems import SYSTEMS

_ROOT = Path(__file__).resolve().parents[2]
_ROUNDS = 8
_SINGLE_CALLS = 25
_BATCH, _BATCH_CALLS = 64, 2


class Worker:
    """One system in its process."""

    def __init__(self, name: str, file: str, arguments: argparse.Namespace) -> None:
        python = arguments.bench_python if SYSTEMS[name].in_bench_environment else sys.executable
        command = [python, "-m", "benchmarks.index.worker", name, file, str(arguments.k), str(arguments.target)]
        command.append(str(arguments.threads))
        if arguments.partitions is not None:
            command += ["--partitions", str(arguments.partitions)]
        if arguments.spherical:
            command.append("--spherical")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not arguments.verbose else None,
            text=True,
            cwd=_ROOT,
        )
        self.outcome = self._answer()

    def milliseconds(self, batch: int, calls: int) -> list[float]:
        assert self._process.stdin is not None
        # A process that the system has killed for want of memory reads no more; its end is told by the answer.
        with contextlib.suppress(BrokenPipeError):
            print(batch, calls, file=self._process.stdin, flush=True)
        return self._answer()["milliseconds"]

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        _, errors = self._process.communicate()
        last = [text for text in (errors or "").splitlines() if text.strip()][-1:]
        raise RuntimeError(f"exit code {self._process.returncode}: {' '.join(last)[:300]}")


def compare(kind: str, size: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every system on one data set."""
    vectors, queries = data.make(kind, size)
    workers: dict[str, Worker] = {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "data.npz")
        np.savez(file, vectors=vectors, queries=queries, best=data.exact(vectors, queries, arguments.k))
        raw = vectors.nbytes
        del vectors
        for name in arguments.systems:
            started = time.monotonic()
            rows[name] = {"kind": kind, "size": size, "system": name}
            try:
                workers[name] = Worker(name, file, arguments)
                rows[name] |= workers[name].outcome
                rows[name]["memory"] = rows[name]["bytes"] / raw
            except RuntimeError as error:
                rows[name]["error"] = str(error)
            print(
                f"{kind} {size:,} {name}: ready after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
            )
        taken: dict[tuple[str, int], list[float]] = {}
        for _ in range(_ROUNDS):
            for name in list(workers):
                try:
                    for batch, calls in ((1, _SINGLE_CALLS), (_BATCH, _BATCH_CALLS)):
                        # The first call finds caches that others have filled.
                        taken.setdefault((name, batch), []).extend(workers[name].milliseconds(batch, calls + 1)[1:])
                except RuntimeError as error:
                    rows[name]["error"] = str(error)
                    del workers[name]
        for name, worker in workers.items():
            for batch, key in ((1, "single"), (_BATCH, "batch")):
                median = float(np.median(taken[name, batch]))
                rows[name] |= {f"{key}_ms": median, f"{key}_qps": 1000 * batch / median}
            worker.close()
    for row in rows.values():
        for against, key in (("tensorflow", "vs_tensorflow"), ("scann_op", "vs_scann_op")):
            if "single_ms" in row and "single_ms" in rows.get(against, {}):
                row[key] = {b: rows[against][f"{b}_ms"] / row[f"{b}_ms"] for b in ("single", "batch")}
    return list(rows.values())


def markdown(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """One table; speeds against brute force and ScaNN's op are ratios of latencies, above 1 is faster."""
    lines = [
        f"recall@{arguments.k} ≥ {arguments.target} on other queries than those measured; {arguments.threads} search "
        f"thread(s); medians of {_ROUNDS} turns; `×` is times faster than TensorFlow brute force and than ScaNN's op, "
        "single query / batch of 64; a recall with * misses the target.",
        "",
        f"| data | items | system | recall@10 | recall@{arguments.k} | one query, ms | batch 64, ms | QPS, batch 64 "
        "| × brute force | × ScaNN op | build, s | memory ÷ raw |",
        "|" + " --- |" * 12,
    ]
    for row in rows:
        head = f"| {row['kind']} | {row['size']:,} | {row['system']} "
        if "error" in row:
            lines.append(f"{head}| {row['error']} |" + " |" * 8)
            continue
        ratios = [
            "{single:.2f} / {batch:.2f}".format(**row[key]) if key in row else ""
            for key in ("vs_tensorflow", "vs_scann_op")
        ]
        lines.append(
            f"{head}| {row['recall_10']:.3f} | {row['recall_k']:.3f}{'' if row['reached'] else '*'} "
            f"| {row['single_ms']:.2f} | {row['batch_ms']:.1f} | {row['batch_qps']:,.0f} | {ratios[0]} | {ratios[1]} "
            f"| {row['build_seconds']:.1f} | {row['memory']:.2f} |"
        )
    return "\n".join(lines)


def _number(text: str) -> int:
    factors = {"k": 1000, "M": 1_000_000}
    return int(float(text.rstrip("kM")) * factors.get(text[-1:], 1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__)
    parser.add_argument("--sizes", default="100k,1M", help="numbers of items (default 100k,1M; 5M needs 12 GB)")
    parser.add_argument(
        "--kinds", default="two_tower,clustered", help=f"of {', '.join(data.KINDS)} (default two of them)"
    )
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"of {', '.join(SYSTEMS)} (default all)")
    parser.add_argument("--target", type=float, default=0.95, help="recall@k to be reached (default 0.95)")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="of a search (default 1)")
    parser.add_argument("--bench-python", default=str(_ROOT / ".venv-bench" / "bin" / "python"), metavar="PYTHON",
                        help="interpreter that has the peers' libraries (default .venv-bench)")  # fmt: skip
    parser.add_argument("--output", default=str(_ROOT / "bench-results" / "index"), metavar="FOLDER")
    parser.add_argument("--partitions", type=int, metavar="N",
                        help="of every system that has them (default 2 √items)")  # fmt: skip
    parser.add_argument("--spherical", action="store_true", help="ScaNN's partitions are of directions, not of places")
    parser.add_argument("--verbose", action="store_true", help="show what the workers write")
    arguments = parser.parse_args()
    for option, known in (("kinds", data.KINDS), ("systems", SYSTEMS)):
        chosen = getattr(arguments, option).split(",")
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            parser.error(f"--{option}: unknown {unknown[0]!r}; known are {', '.join(known)}")
        setattr(arguments, option, chosen)
    try:
        sizes = [_number(text) for text in arguments.sizes.split(",")]
    except ValueError:
        parser.error(f"--sizes {arguments.sizes}: expected numbers such as 100k,1M")
    if arguments.partitions is not None and arguments.partitions < 1:
        parser.error(f"--partitions {arguments.partitions}: expected a number from 1")
    if any(SYSTEMS[s].in_bench_environment for s in arguments.systems) and not os.path.exists(arguments.bench_python):
        parser.error(f"{arguments.bench_python} does not exist: make bench-setup, or choose --systems without peers")
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for kind in arguments.kinds:
            rows += compare(kind, size, arguments)
            # Written after each data set: a run that is stopped leaves what it has.
            (output / "results.json").write_text(json.dumps(rows, indent=1))
            (output / "results.md").write_text(markdown(rows, arguments) + "\n")
    print(markdown(rows, arguments))


if __name__ == "__main__":
    main()
