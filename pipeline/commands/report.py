"""`twotower report`: the page of a run, to look at or to hand on."""

from __future__ import annotations

import os
import shutil
import webbrowser
from pathlib import Path

import click

from modules.errors import UserError
from pipeline import completion
from pipeline.commands.options import Common, LocalFile, configured


@click.command(
    epilog="""
    twotower report --open
    twotower report last~1 --output report.html
    """
)
@click.argument("run", default="last", metavar="[RUN|last|last~N]", shell_complete=completion.run_ids)
@click.option("--output", type=LocalFile(), metavar="F.html", help="where to copy it", shell_complete=completion.files)
@click.option("--open", "opened", is_flag=True, help="open it in the browser")
@configured
def report(common: Common, run: str, output: str | None, opened: bool) -> int:
    """The page of a run: data, training, quality, gates, index, recommendations. One file, without network."""
    from pipeline import runs, summary

    config = common.load()
    one = runs.read_run(config, run)
    page = summary.page(one)
    if page is None:
        failed = next((stage.name for stage in one.stages if stage.state not in ("done", "cached")), None)
        why = f"it ended in {failed}" if failed else "it was made before there were pages"
        raise UserError(f"run {one.id} has no page: {why}; `twotower runs {one.id}` shows what there is")
    if not os.path.exists(page):
        raise UserError(f"{page} is no longer there; `twotower run` with the same settings writes it again")
    if output is not None:
        page = _copied(page, output)
    if opened and not webbrowser.open(Path(page).absolute().as_uri()):
        raise UserError(f"--open: no browser was found on this machine; open {page} in one")
    common.answer({"run": one.id, "page": os.path.abspath(page)}, os.path.relpath(page))
    return 0


def _copied(page: str, output: str) -> str:
    """A copy that appears whole or not at all."""
    partial = f"{output}.partial"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        if os.path.isdir(output):
            raise UserError(f"--output {output}: is a folder; name a file in it")
        shutil.copyfile(page, partial)
        os.replace(partial, output)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror or error}") from None
    return output
