"""`twotower similar`: items like an item, from the pushed model."""

from __future__ import annotations

import click

from modules.errors import UserError
from pipeline.commands import asking
from pipeline.commands.options import Common, configured


@click.command(epilog="twotower similar --item 50 --k 3")
@click.option("--item", required=True, metavar="I")
@click.option("--k", type=int, default=10, show_default=True)
@configured
def similar(common: Common, item: str, k: int) -> int:
    """Items like an item, from the pushed model."""
    model = asking.recommender(common.load())
    model.check_k(k)
    asking.load(model)
    (answer,) = model.similar([item])
    if not answer:
        raise UserError(f"--item {item}: the model's catalogue has no such item{model.meant_item(item)}")
    return asking.show(common, answer[:k], model.version)
