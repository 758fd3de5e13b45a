"""`twotower check`: configuration and tables, before anything long starts."""

from __future__ import annotations

import click
from rich.table import Table

from pipeline import terminal
from pipeline.commands.options import Common, configured


@click.command(epilog="twotower check --config my.yaml")
@configured
def check(common: Common) -> int:
    """Look at the configuration and the tables: all that a run would refuse, at once."""
    from pipeline import data_check

    findings = data_check.check(common.path, common.overrides)
    answer = data_check.as_json(findings)
    if common.json:
        common.answer(answer)
    else:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for finding in findings:
            colour = {"error": "red", "warning": "yellow", "ok": "green"}[finding.level]
            table.add_row(terminal.styled((finding.level, colour)), finding.where, finding.what)
        console = terminal.console()
        console.print(table)
        console.print(f"{answer['errors']} errors, {answer['warnings']} warnings")
    return 2 if answer["errors"] else 0
