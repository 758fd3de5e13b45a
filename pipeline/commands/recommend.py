"""`twotower recommend`: items for a user, from the pushed model."""

from __future__ import annotations

import click

from modules.errors import UserError
from pipeline import completion
from pipeline.commands import asking
from pipeline.commands.options import Common, configured, listed, pairs


@click.command(
    epilog="""
    twotower recommend --user 42 --k 5 --explain
    twotower recommend --user nobody --history 50,181,174 --feature history_age=0
    twotower recommend --user 42 --exclude 393,739 --filter genres=Comedy,Drama
    """
)
@click.option("--user", metavar="U", help="user id; without one the request is anonymous")
@click.option("--history", metavar="ID,ID,…", help="items interacted with, oldest first (default: the table's)")
@click.option("--feature", "features", multiple=True, metavar="COLUMN=VALUE", help="a value of the request",
              shell_complete=completion.features)  # fmt: skip
@click.option("--k", type=int, default=10, show_default=True)
@click.option("--exclude", default="", metavar="ID,ID,…", help="items to leave out")
@click.option("--filter", "filters", multiple=True, metavar="COLUMN=VALUE,…", help="required values of items",
              shell_complete=completion.filters)  # fmt: skip
@click.option("--explain", is_flag=True, help="say under each item what its score is made of")
@configured
def recommend(
    common: Common,
    user: str | None,
    history: str | None,
    features: tuple[str, ...],
    k: int,
    exclude: str,
    filters: tuple[str, ...],
    explain: bool,
) -> int:
    """Items for a user, from the pushed model."""
    given = pairs(features, "--feature")
    wanted = {}
    for column, texts in pairs(filters, "--filter").items():
        if len(texts) > 1:
            raise UserError(f"--filter {column} is given {len(texts)} times; give all values at once, of which an item "
                            f"must have one: --filter {column}={','.join(texts)}")  # fmt: skip
        wanted[column] = listed(texts[0])
        if not wanted[column]:
            raise UserError(f"--filter {column}={texts[0]}: has no value; leave it out, or give one")
    if user == "":
        raise UserError("--user: is empty; leave it out for an anonymous request")
    model = asking.recommender(common.load())
    model.check_k(k)
    model.check_filters(wanted)
    values = {column: model.given(column, texts) for column, texts in given.items()}
    request = model.request(user, history=None if history is None else listed(history), values=values)
    asking.load(model)
    (answer,) = model.recommend([request], exclude=listed(exclude), filters=wanted)
    note = ""
    if user is not None and not request.history:
        note = f"user {user} has no history: what is popular in this context"
    if not answer:
        note = "no item is left: all are filtered out, excluded, or in the history"
    answer = answer[:k]
    explained = model.explain(request, [r.item_id for r in answer]) if explain else ()
    return asking.show(common, answer, model.version, note, explained)
