"""The clock of the servable itself: every signature of a pushed version, without Python and without a server.

    python -m benchmarks.serving.native [VERSION_FOLDER | --config F] [--threads 2] [--seconds 2] [--output F.json]

TensorFlow's own C++ loader, which TF Serving runs, answers the version's warm-up requests (`serving/native`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.serving.pushed import newest_version
from serving.native import probe


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.native", description=__doc__)
    parser.add_argument("version", nargs="?", type=Path, help="a version folder (default: the newest that was pushed)")
    parser.add_argument("--config", default="configs/movielens-100k.yaml")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that ask at a time, beside one alone")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line of the table and number of threads")
    parser.add_argument("--answers", type=Path, help="write requests and answers, a TFRecord of PredictionLog")
    parser.add_argument("--output", type=Path, help="the same as JSON")
    options = parser.parse_args(arguments)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    version = options.version or newest_version(options.config)
    threads = sorted({1, options.threads})
    try:
        report = probe.run(version, threads, options.seconds, answers=options.answers)
    except probe.ProbeError as error:
        sys.exit(str(error))
    render(report, Console(highlight=False, width=None if sys.stdout.isatty() else 120))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"version": version.name, "load_average": os.getloadavg()[0], **asdict(report)}
        options.output.write_text(json.dumps(result, indent=1))
    return 0


def render(report: probe.Report, console: Console) -> None:
    """A line for each signature and batch size, with the columns of every number of threads side by side."""
    threads = sorted({timing.threads for timing in report.timings})
    title = f"TensorFlow {report.tensorflow}: loaded in {report.load_seconds:.1f} s, "
    title += f"{report.requests} warm-up requests answered in {report.replay_seconds:.1f} s"
    table = Table(box=None, padding=(0, 2, 0, 0), title=title)
    for name in ("signature", "batch"):
        table.add_column(name, justify="left" if name == "signature" else "right")
    for number in threads:
        for name in (f"{number} thread{'s' * (number > 1)}: p50 ms", "p99 ms", "requests/s"):
            table.add_column(name, justify="right")
    for (signature, batch), of_kind in itertools.groupby(report.timings, lambda t: (t.signature, t.batch)):
        numbers = [text for t in of_kind for text in (f"{t.p50_ms:.2f}", f"{t.p99_ms:.2f}", f"{t.per_second:.0f}")]
        table.add_row(signature, str(batch), *numbers)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
