"""`twotower runs`: what ran, with metrics; for one run its slices, stages and lineage."""

from __future__ import annotations

import click

from modules.errors import UserError
from pipeline import terminal
from pipeline.commands.options import Common, Count, configured


@click.command()
@click.argument("run", required=False, metavar="[RUN|last]")
@click.option("--last", type=Count(), default=10, show_default=True, metavar="N", help="how many runs")
@configured
def runs(common: Common, run: str | None, last: int) -> int:
    """What ran, with metrics; with a run's id, or `last`, its slices, stages and lineage."""
    from pipeline import runs, summary

    config = common.load()
    if run is None:
        newest = runs.read_runs(config, last=last)
        outcomes = [summary.summarize(config, each) for each in newest]
        if common.json:
            common.answer(outcomes)
        else:
            summary.render_runs(newest, outcomes, terminal.console())
        return 0
    chosen = runs.read_runs(config, last=1) if run == "last" else [runs.read_run(config, run)]
    if not chosen:
        raise UserError("no run has started yet; start with `twotower run`")
    (one,) = chosen
    outcome = summary.summarize(config, one)
    if common.json:
        common.answer(outcome | {"lineage": runs.lineage(one)})
        return 0
    console = terminal.console()
    summary.render(outcome, console)
    summary.render_slices(outcome, console)
    summary.render_lineage(one, console)
    return 0
