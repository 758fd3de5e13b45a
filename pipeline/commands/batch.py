"""`twotower batch`: the top K of every user, as Parquet."""

from __future__ import annotations

import click

from modules.errors import UserError
from pipeline.commands import asking
from pipeline.commands.options import Common, LocalFile, configured


@click.command()
@click.option("--output", required=True, type=LocalFile(), metavar="F.parquet")
@click.option("--users", metavar="FILE", help="a file with one user id per line (default: every user)")
@click.option("--k", type=int, default=100, show_default=True)
@click.option("--time", metavar="T", help="ask as of this time: seconds since 1970 or ISO 8601 (default: now)")
@configured
def batch(common: Common, output: str, users: str | None, k: int, time: str | None) -> int:
    """The top K of every user, as Parquet; histories left out."""
    from pipeline.recommender import seconds

    now = None if time is None else seconds(time, f"--time {time}")
    chosen = None if users is None else users_of(users)
    model = asking.recommender(common.load(), now)
    count = model.write_batch(output, k, chosen)
    common.answer(
        {"users": count, "output": output, "model_version": model.version},
        f"{count:,} users → {output} (version {model.version})",
    )
    return 0


def users_of(path: str) -> list[str]:
    """The lines of a text file that are not empty, without a byte order mark."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise UserError(f"--users {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--users {path}: is not UTF-8; save it as text in UTF-8, one user id per line") from None
