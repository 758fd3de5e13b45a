"""`twotower batch`: the top K of every user, or of a split's queries with labels for a ranking model, as Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from modules.data import user_tables
from modules.errors import UserError
from pipeline import completion, local_runner, terminal
from pipeline.commands import asking
from pipeline.commands.options import Common, Count, LocalFile, configured
from pipeline.config import Config

if TYPE_CHECKING:
    from pipeline.ranker_hand_off import Outcome, Split


@click.command(
    epilog="""
    twotower batch --output top.parquet --k 20
    twotower batch --output top.parquet --users users.txt --time 2026-11-23T09:00
    twotower batch --output top --shards 16
    twotower batch --output rows --for-ranker --split eval --negatives 20
    """
)
@click.option("--output", required=True, type=LocalFile(), metavar="F.parquet",
              help="with --shards or --for-ranker a new folder")  # fmt: skip
@click.option("--shards", type=Count(), metavar="N",
              help="write N files with an Nth of the users each, on the Beam runner of the configuration")  # fmt: skip
@click.option(
    "--users",
    metavar="FILE",
    shell_complete=completion.files,
    help="a file with one user id per line (default: every user)",
)
@click.option("--k", type=int, default=100, show_default=True)
@click.option("--time", metavar="T", help="ask as of this time: seconds since 1970 or ISO 8601 (default: now)")
@click.option("--for-ranker", is_flag=True, help="training rows for a ranking model, from the queries of --split")
@click.option("--split", type=click.Choice(["validation", "eval"]), help="with --for-ranker: whose queries")
@click.option("--negatives", type=Count(), metavar="N",
              help="with --for-ranker: keep N candidates of a query that are not relevant (default: all)")  # fmt: skip
@click.option("--inject-missed", is_flag=True,
              help="with --for-ranker: rows of relevant items that were not retrieved, too")  # fmt: skip
@click.option("--run", metavar="RUN", help="with --for-ranker: whose split and model (default: the last run's)")
@configured
def batch(
    common: Common,
    output: str,
    shards: int | None,
    users: str | None,
    k: int,
    time: str | None,
    for_ranker: bool,
    split: Split | None,
    negatives: int | None,
    inject_missed: bool,
    run: str | None,
) -> int:
    """The top K of every user, as Parquet; histories left out. With --for-ranker of a split's queries, with labels."""
    of_ranker = {"--split": split, "--negatives": negatives, "--inject-missed": inject_missed or None, "--run": run}
    of_users = {"--users": users, "--time": time}
    for option, value in (of_users if for_ranker else of_ranker).items():
        if value is not None:
            raise UserError(f"{option}: {'not with' if for_ranker else 'only with'} --for-ranker")
    if for_ranker:
        if split is None:
            raise UserError("--for-ranker: say whose queries with --split eval or --split validation")
        return _for_ranker(common, output, split, k, negatives, inject_missed, shards or 1, run)

    from pipeline.recommender import seconds

    now = None if time is None else seconds(time, f"--time {time}")
    if shards is not None:
        return _sharded(common, output, shards, users, k, now)
    if output.endswith("/") or os.path.isdir(output):
        raise UserError(f"--output {output}: is a directory; name a file, or give --shards for a folder of files")
    chosen = None if users is None else list(user_tables.listed(users))
    model = asking.recommender(common.load(), now)
    model.check_k(k)
    asking.load(model)
    count = model.write_batch(output, k, model.requests(chosen))
    return _answer(common, output, count, model.version)


def _sharded(common: Common, output: str, shards: int, users: str | None, k: int, now: int | None) -> int:
    config = common.load()

    def write() -> tuple[int, int]:
        from pipeline import sharded_batch

        return sharded_batch.write(config, output, shards, k, users, now)

    written = _by_workers(config, write)
    return 1 if written is None else _answer(common, output, *written)


def _for_ranker(
    common: Common,
    output: str,
    split: Split,
    k: int,
    negatives: int | None,
    inject_missed: bool,
    shards: int,
    run: str | None,
) -> int:
    from pipeline import runs

    config = common.load()
    # Nothing is made below a root where nothing has run, a log neither.
    runs.read_runs(config, last=1)

    def write() -> Outcome:
        from pipeline import ranker_hand_off

        wanted = ranker_hand_off.Wanted(split, k, negatives, inject_missed, shards)
        return ranker_hand_off.write(config, output, wanted, run)

    outcome = _by_workers(config, write)
    if outcome is None:
        return 1
    counts = outcome.counts
    common.answer(
        {
            "queries": counts.queries,
            "rows": counts.rows,
            "positives": counts.positives,
            f"recall@{k}": outcome.recall,
            "missed": counts.missed,
            "injected": counts.injected,
            "seconds": outcome.seconds,
            "output": output,
            "split": split,
            "run": outcome.run,
            "model_version": outcome.version,
            "note": outcome.note,
        },
        f"{counts.queries:,} queries of {split}, {counts.rows:,} rows, {counts.positives:,} positives → {output} "
        f"(run {outcome.run}, version {outcome.version})",
        f"recall@{k} {outcome.recall or 0:.4f}: {counts.missed:,} relevant items were not retrieved"
        + (f", {counts.injected:,} of them are injected" if inject_missed else ""),
        *([f"note: {outcome.note}"] if outcome.note else []),
    )
    return 0


Written = TypeVar("Written")


def _by_workers(config: Config, write: Callable[[], Written]) -> Written | None:
    """What `write` returns; None where Beam's workers failed, which a person has been told."""
    log = local_runner.new_log(config.root)
    try:
        with local_runner.captured_output(log):
            return write()
    except UserError:
        raise
    except OSError as error:
        # Of the log: what the output does not allow is a UserError.
        raise UserError(f"{error.filename or log}: {error.strerror or error}") from None
    except Exception as error:
        terminal.tell_failure(error, "workers", log)
        return None


def _answer(common: Common, output: str, count: int, version: int) -> int:
    common.answer(
        {"users": count, "output": output, "model_version": version},
        f"{count:,} users → {output} (version {version})",
    )
    return 0
