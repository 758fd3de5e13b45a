"""A process with one system: builds it, finds the effort for a recall, and is timed whenever it is asked to.

    python -m benchmarks.index.worker <system> <data.npz> <k> <target> <threads> [--partitions N] [--spherical]

Answers are lines of JSON on standard output: first what was built, then one for each line `<batch> <calls>` it reads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import numpy as np

_TRIED_CALLS = 15
# Vectors of a first, small build.
_FIRST = 5000


def main(
    name: str, data: str, k: int, target: float, threads: int, partitions: int | None = None, spherical: bool = False
) -> None:
    # TensorFlow and OpenMP read these when they start.
    os.environ.update(OMP_NUM_THREADS=str(threads), TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTEROP_THREADS=str(threads))
    # Threads that wait give way: whatever else the machine does shall not be measured.
    os.environ.update(TF_NUM_INTRAOP_THREADS=str(threads), OMP_WAIT_POLICY="passive")
    from benchmarks.index.systems import SYSTEMS, Effort

    # The libraries write progress to standard output; the answers keep it to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arrays = np.load(data)
    vectors, queries, best = arrays["vectors"], arrays["queries"], arrays["best"][:, :k]
    half = len(queries) // 2
    # Loads the library, which is no part of a build.
    SYSTEMS[name](vectors[:_FIRST], k, threads, partitions, spherical)
    started = time.perf_counter()
    system = SYSTEMS[name](vectors, k, threads, partitions, spherical)
    build_seconds = time.perf_counter() - started
    # Several processes hold as many copies.
    del vectors

    def recall(effort: Effort, of: slice, at: int) -> float:
        parts = [system.search(part, effort) for part in np.array_split(queries[of], max(1, half // 64))]
        found = np.concatenate(parts)[:, :at]
        return float(np.mean([len(np.intersect1d(a, b)) / at for a, b in zip(found, best[of, :at], strict=True)]))

    def milliseconds(effort: Effort, batch: int, calls: int) -> list[float]:
        taken = []
        for call in range(calls):
            start = half + call * batch % (half - batch + 1)
            asked = queries[start : start + batch]
            begun = time.perf_counter()
            system.search(asked, effort)
            taken.append(1000 * (time.perf_counter() - begun))
        return taken

    tried: list[tuple[Effort, float, float]] = []
    reached = 0
    for group in system.efforts():
        enough = False
        for effort in group:
            share = recall(effort, slice(0, half), k)
            tried.append((effort, share, float(np.median(milliseconds(effort, 1, _TRIED_CALLS)))))
            enough = share >= target
            if enough:
                break
        reached += enough
        # One group beyond the first success: more of one kind of effort may need much less of the other.
        if reached == 2:
            break
    good = [trial for trial in tried if trial[1] >= target]
    effort = min(good, key=lambda t: t[2])[0] if good else max(tried, key=lambda t: t[1])[0]

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    answer(
        build_seconds=round(build_seconds, 2),
        bytes=system.bytes(),
        effort=effort,
        recall_10=recall(effort, slice(half, None), 10),
        recall_k=recall(effort, slice(half, None), k),
        reached=bool(good),
        tried=tried,
    )
    for line in sys.stdin:
        batch, calls = map(int, line.split())
        answer(milliseconds=milliseconds(effort, batch, calls))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index.worker")
    for argument, kind in (("name", str), ("data", str), ("k", int), ("target", float), ("threads", int)):
        parser.add_argument(argument, type=kind)
    parser.add_argument("--partitions", type=int)
    parser.add_argument("--spherical", action="store_true")
    main(**vars(parser.parse_args()))
