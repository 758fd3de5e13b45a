"""`twotower update-index`: items added to the pushed model or taken out of it, without training."""

from __future__ import annotations

import os

import click

from modules.errors import UserError
from pipeline import completion, local_runner
from pipeline.commands.options import Common, configured, listed


@click.command(
    name="update-index",
    epilog="""
    twotower update-index --add new-items.parquet
    twotower update-index --remove 393,739
    """,
)
@click.option("--add", metavar="FILE", shell_complete=completion.files,
              help="a table with the columns of tables.items, Parquet or CSV")  # fmt: skip
@click.option("--remove", default="", metavar="ID,ID,…", help="items that are no longer recommended")
@configured
def update_index(common: Common, add: str | None, remove: str) -> int:
    """Add items to the pushed model and remove others; trains nothing."""
    config = common.load()
    removed = listed(remove)
    if add is None and not removed:
        raise UserError("nothing to update: give --add FILE or --remove ID,ID,…")
    from modules.data import tables

    plan = None
    if add is not None:
        items = config.tables.items.model_copy(update={"path": add})
        changed = config.tables.model_copy(update={"items": items})
        wanted = tables.wanted(changed, config.features, config.evaluation, config.serving)
        plan = tables.plan(changed, config.split, wanted, "--add")
    with local_runner.captured_output(os.devnull):
        from modules.servable import update_index

        new = update_index.NewItems({})
        if add is not None and plan is not None:
            new = update_index.NewItems.read(add, config.tables.items.id, plan)
        outcome = update_index.update(
            config.push_destination,
            new,
            removed,
            config.features,
            config.serving,
            config.index,
            config.tables.interactions.item,
        )
    common.answer(
        outcome.model_dump(mode="json"),
        f"{outcome.added:,} items added, {outcome.removed:,} removed, {outcome.catalogue_size:,} in all; "
        f"recall@{outcome.recall_k} {outcome.recall:.3f} on warm-up requests",
        f"version {outcome.version} pushed in {outcome.seconds:.1f} s, in place of {outcome.updated_version}",
    )
    return 0
