"""`twotower batch`: the top K of every user, as Parquet."""

from __future__ import annotations

import os

import click

from modules.data import user_tables
from modules.errors import UserError
from pipeline import completion, local_runner, terminal
from pipeline.commands import asking
from pipeline.commands.options import Common, Count, LocalFile, configured


@click.command(
    epilog="""
    twotower batch --output top.parquet --k 20
    twotower batch --output top.parquet --users users.txt --time 2026-11-23T09:00
    twotower batch --output top --shards 16
    """
)
@click.option("--output", required=True, type=LocalFile(), metavar="F.parquet", help="with --shards a new folder")
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
@configured
def batch(common: Common, output: str, shards: int | None, users: str | None, k: int, time: str | None) -> int:
    """The top K of every user, as Parquet; histories left out."""
    from pipeline.recommender import seconds

    now = None if time is None else seconds(time, f"--time {time}")
    if shards is not None:
        return _sharded(common, output, shards, users, k, now)
    if output.endswith("/") or os.path.isdir(output):
        raise UserError(f"--output {output}: is a directory; name a file, or give --shards for a folder of files")
    chosen = None if users is None else list(user_tables.listed(users))
    model = asking.recommender(common.load(), now)
    count = model.write_batch(output, k, model.requests(chosen))
    return _answer(common, output, count, model.version)


def _sharded(common: Common, output: str, shards: int, users: str | None, k: int, now: int | None) -> int:
    config = common.load()
    log = local_runner.new_log(config.root)
    try:
        with local_runner.captured_output(log):
            from pipeline import sharded_batch

            count, version = sharded_batch.write(config, output, shards, k, users, now)
    except UserError:
        raise
    except OSError as error:
        # Of the log: what the output does not allow is a UserError.
        raise UserError(f"{error.filename or log}: {error.strerror or error}") from None
    except Exception as error:
        terminal.tell_failure(error, "workers", log)
        return 1
    return _answer(common, output, count, version)


def _answer(common: Common, output: str, count: int, version: int) -> int:
    common.answer(
        {"users": count, "output": output, "model_version": version},
        f"{count:,} users → {output} (version {version})",
    )
    return 0
