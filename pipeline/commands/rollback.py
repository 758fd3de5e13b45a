"""`twotower rollback`: an earlier pushed version again."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
from rich.table import Table

from modules import rollback as rollbacks
from modules.errors import UserError
from pipeline import completion, terminal
from pipeline.commands.options import Common, Count, configured
from pipeline.config import Config


@click.command(
    epilog="""
    twotower rollback --list
    twotower rollback --dry-run
    twotower rollback --to 1795430953
    """
)
@click.option("--to", type=Count(), metavar="VERSION", shell_complete=completion.versions,
              help="where to go back to (default: to what was in force before and answers otherwise)")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="the versions there are, and do nothing")
@click.option("--dry-run", is_flag=True, help="say what would be done, and do nothing")
@configured
def rollback(common: Common, to: int | None, listing: bool, dry_run: bool) -> int:
    """Serve an earlier version again: a copy of it is pushed as the newest one."""
    config = common.load()
    base = config.push_destination
    if listing:
        return _show(common, config)
    done = rollbacks.plan(base, to) if dry_run else rollbacks.roll_back(base, to)
    away = [version for version in done.taken_back if version != done.in_place_of]
    also = f", and of {', '.join(map(str, away))}" if away else ""
    what = "would be pushed as a new version" if dry_run else f"pushed as version {done.version}"
    common.answer(
        dataclasses.asdict(done) | {"dry_run": dry_run},
        f"version {done.copy_of} {what}, in place of {done.in_place_of}{also}",
    )
    return 0


def _show(common: Common, config: Config) -> int:
    made_by_run = _runs(config)
    rows: list[dict[str, Any]] = [
        dataclasses.asdict(each)
        | {"when": each.when and each.when.isoformat(timespec="seconds"), "run": made_by_run.get(each.version)}
        for each in rollbacks.listed(config.push_destination)
    ]
    if common.json:
        common.answer({"push_destination": config.push_destination, "versions": rows})
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("version", "pushed", "by", "state"):
        table.add_column(name)
    for row in rows:
        made_by = f"run {row['run']}" if row["run"] else row["made_by"] or "hand"
        made_from = f" of {row['made_from']}" if row["made_from"] is not None else ""
        table.add_row(str(row["version"]), row["when"] or "", made_by + made_from, row["state"])
    console = terminal.console()
    console.print(table if rows else f"nothing has been pushed to {config.push_destination} yet")
    return 0


def _runs(config: Config) -> dict[int, str]:
    """Version → the run that pushed it, as far as there is a metadata store that can be asked."""
    from pipeline import runs

    try:
        return {run.pushed_version: run.id for run in runs.read_runs(config) if run.pushed_version is not None}
    except UserError:
        return {}
