"""`twotower init`: a configuration for one's own tables."""

from __future__ import annotations

import json
import os

import click

from modules.errors import UserError
from pipeline import config, data_check, terminal
from pipeline.commands.options import LocalFile


@click.command(
    epilog="""
    twotower init --interactions "data/orders-*.parquet" --items data/products.csv --output my.yaml
    twotower init --interactions plays.csv --items tracks.csv --users people.csv --timestamp played_at
    """
)
@click.option("--interactions", required=True, metavar="F", help="the table of interactions, a file or a glob")
@click.option("--items", required=True, metavar="F", help="the catalogue")
@click.option("--users", metavar="F", help="the users, where there is such a table")
@click.option("--output", type=LocalFile(), default="my.yaml", show_default=True, metavar="F.yaml")
@click.option("--force", is_flag=True, help="overwrite the output")
@click.option("--name", metavar="NAME", help="of the model (default: the name of the tables' folder)")
@click.option("--user", metavar="COLUMN", help="of the interactions: the user's id")
@click.option("--item", metavar="COLUMN", help="of the interactions: the item's id")
@click.option("--timestamp", metavar="COLUMN", help="of the interactions: the time")
@click.option("--weight", metavar="COLUMN", help="of the interactions: how much one counts")
@click.option("--item-id", metavar="COLUMN", help="of the items: the id")
@click.option("--title", metavar="COLUMN", help="of the items: what answers show")
@click.option("--user-id", metavar="COLUMN", help="of the users: the id")
@click.option("--json", "as_json", is_flag=True, help="machine-readable output")
def init(
    interactions: str, items: str, users: str | None, output: str, force: bool, name: str | None, as_json: bool,
    **columns: str | None,
) -> int:  # fmt: skip
    """Look at tables, and write a configuration for them with the reason of each choice."""
    from pipeline.proposal import document, proposal
    from pipeline.proposal.roles import Given

    if os.path.exists(output) and not force:
        raise UserError(f"--output {output}: is there already; name another file, or overwrite it with --force")
    say = (lambda line: None) if as_json else terminal.say
    given = Given(**columns)
    found = proposal.propose(name or proposal.name_of(interactions), interactions, items, users, given, say)
    content = document.text(found)
    _write(output, content, force)
    # By the project's own loader: what is written is what a run reads.
    findings = data_check.of_data(config.load(output))
    answer = {"output": output, **document.as_json(found), "check": data_check.as_json(findings)}
    if as_json:
        print(json.dumps(answer))
        return 0
    for line in content.splitlines():
        terminal.say(line)
    wrong = [finding for finding in findings if finding.level != "ok"]
    terminal.say(f"written to {output}; `twotower check` finds {'this:' if wrong else 'nothing wrong'}")
    for finding in wrong:
        terminal.say(f"  {finding.level}  {finding.where}{': ' * bool(finding.where)}{finding.what}")
    return 0


def _write(output: str, content: str, force: bool) -> None:
    try:
        with open(output, "w" if force else "x", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}") from None
