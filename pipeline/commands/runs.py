"""`twotower runs`: what ran, with metrics; for one run its slices, stages and lineage."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline import completion, terminal
from pipeline.commands.options import Common, Count, configured
from pipeline.commands.runs_compare import compare


class _Runs(click.Group):
    """A command with an argument of its own, and commands below it: a first word that names none of these is a run."""

    # As of a command without any below it: options may follow the argument.
    allow_interspersed_args = True
    parse_args = click.Command.parse_args
    invoke = click.Command.invoke

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        below = self.commands.get(args[0]) if args else None
        if below is not None:
            return below.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _runs_or_commands(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [*completion.run_ids(ctx, param, incomplete), *click.Group.shell_complete(runs, ctx, incomplete)]


@click.group(
    cls=_Runs,
    subcommand_metavar="",
    epilog="""
    twotower runs --last 3
    twotower runs last
    twotower runs compare last~1 last
    """,
)
@click.argument("run", required=False, metavar="[RUN|last|last~N]", shell_complete=_runs_or_commands)
@click.option("--last", type=Count(), default=10, show_default=True, metavar="N", help="how many runs")
@configured
def runs(common: Common, run: str | None, last: int) -> int:
    """What ran, with metrics; with a run's id or the beginning of it, or `last`, its slices, stages and lineage."""
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
    one = runs.read_run(config, run)
    outcome = summary.summarize(config, one)
    if common.json:
        common.answer(outcome | {"lineage": runs.lineage(one)})
        return 0
    console = terminal.console()
    summary.render(outcome, console)
    summary.render_slices(outcome, console)
    summary.render_lineage(one, console)
    return 0


runs.add_command(compare)
