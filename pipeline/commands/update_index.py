"""`twotower update-index`: items added to the pushed model or taken out of it, without training."""

from __future__ import annotations

import os

import click

from modules.errors import UserError
from pipeline import local_runner
from pipeline.commands.options import Common, configured, listed


@click.command(name="update-index")
@click.option("--add", metavar="FILE", help="a table with the columns of tables.items, Parquet or CSV")
@click.option("--remove", default="", metavar="ID,ID,…", help="items that are no longer recommended")
@configured
def update_index(common: Common, add: str | None, remove: str) -> int:
    """Add items to the pushed model and remove others; trains nothing."""
    config = common.load()
    removed = listed(remove)
    if add is None and not removed:
        raise UserError("nothing to update: give --add FILE or --remove ID,ID,…")
    raise NotImplementedError
