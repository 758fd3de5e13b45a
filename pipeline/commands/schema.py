"""`twotower schema`: the schema that the last run used, to be curated."""

from __future__ import annotations

import os
import shutil

import click

from modules.errors import UserError
from pipeline.commands.options import Common, LocalFile, configured


@click.command(epilog="twotower schema --output schema.pbtxt")
@click.option("--output", required=True, type=LocalFile(), metavar="F.pbtxt")
@configured
def schema(common: Common, output: str) -> int:
    """Write the schema that the last run used, to be curated."""
    from pipeline import runs

    for run in runs.read_runs(common.load()):
        for stage in run.stages:
            artifact = stage.output("schema")
            if artifact is None or stage.state not in ("done", "cached"):
                continue
            source = os.path.join(artifact.uri, "schema.pbtxt")
            # A schema that somebody has removed: the run before has one, too.
            if os.path.exists(source):
                try:
                    shutil.copyfile(source, output)
                except OSError as error:
                    raise UserError(f"--output {output}: {error.strerror}") from None
                common.answer({"output": output}, f"schema of run {run.id} → {output}")
                return 0
    raise UserError("no run has made a schema yet; start with `twotower run --set schema.path=null`")
