"""`twotower update-users`: the pushed model learns of what users did since, without training."""

from __future__ import annotations

import os

import click

from modules.errors import UserError
from pipeline import completion, local_runner
from pipeline.commands.options import Common, configured


@click.command(
    name="update-users",
    epilog="""
    twotower update-users --interactions new.parquet
    twotower update-users --interactions new.parquet --users changed.csv
    """,
)
@click.option("--interactions", metavar="FILE", shell_complete=completion.files,
              help="a table with the columns of tables.interactions, Parquet or CSV")  # fmt: skip
@click.option("--users", metavar="FILE", shell_complete=completion.files,
              help="a table with the columns of tables.users, Parquet or CSV")  # fmt: skip
@configured
def update_users(common: Common, interactions: str | None, users: str | None) -> int:
    """Tell the pushed model what users did since; trains nothing."""
    config = common.load()
    given = {name: path for name, path in (("interactions", interactions), ("users", users)) if path is not None}
    if not given:
        raise UserError("nothing to update: give --interactions FILE or --users FILE")
    if users is not None and config.tables.users is None:
        raise UserError(f"--users {users}: the configuration has no tables.users, which says what its columns mean")
    changed = {name: getattr(config.tables, name).model_copy(update={"path": path}) for name, path in given.items()}
    with local_runner.captured_output(os.devnull):
        from modules.servable import update_users

        outcome = update_users.update(
            config.push_destination, config.tables.model_copy(update=changed), given, config.features, config.serving
        )
    left_out = f"; {outcome.unknown_items:,} with items it lacks left out" if outcome.unknown_items else ""
    common.answer(
        outcome.model_dump(mode="json"),
        f"{outcome.interactions:,} interactions added{left_out}; {outcome.known_users:,} users known",
        f"version {outcome.version} pushed in {outcome.seconds:.1f} s, in place of {outcome.updated_version}",
    )
    return 0
