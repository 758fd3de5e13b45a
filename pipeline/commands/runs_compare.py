"""`twotower runs compare`: what differs between two runs."""

from __future__ import annotations

import dataclasses

import click

from pipeline import completion, terminal
from pipeline.commands.options import Common, configured


@click.command(
    epilog="""
    twotower runs compare last~1 last
    twotower runs compare 2026-11-29T03 2026-11-30T03 --json
    """
)
@click.argument("old", metavar="A", shell_complete=completion.run_ids)
@click.argument("new", metavar="B", shell_complete=completion.run_ids)
@configured
def compare(common: Common, old: str, new: str) -> int:
    """What differs between two runs: configuration, data, code, stages, quality and costs.

    A and B are ids of runs or their beginnings, `last`, or `last~N` for the Nth before that.
    """
    from pipeline import comparison, runs

    config = common.load()
    found = comparison.compare(
        runs.read_run(config, old), runs.read_run(config, new), config.evaluation.min_queries
    )  # fmt: skip
    if common.json:
        common.answer(dataclasses.asdict(found))
    else:
        comparison.render(found, terminal.console())
    return 0
