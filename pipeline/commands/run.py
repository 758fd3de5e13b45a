"""`twotower run`: the whole pipeline; what has not changed since the last run is re-used."""

from __future__ import annotations

import functools
import os
import time

import click

from modules import full_disk
from modules.errors import UserError
from modules.training import cluster
from pipeline import local_runner, terminal
from pipeline.commands.options import Common, configured


@click.command(
    epilog="""
    twotower run
    twotower run --config my-shop.yaml --set training.epochs=3
    twotower run --no-cache --json
    """
)
@click.option("--verbose", is_flag=True, help="show what TensorFlow, Beam and TFX write")
@click.option("--no-cache", is_flag=True, help="execute every stage again")
@configured
def run(common: Common, verbose: bool, no_cache: bool) -> int:
    """Run the whole pipeline; what has not changed since the last run is re-used."""
    started = time.monotonic()
    config = common.load()
    from modules.data.tables import check_tables
    from pipeline import beam_service, data_check, lineage_events, runs, summary

    check_tables(config.tables, config.split, config.features, config.evaluation, config.serving)
    if config.training.distribution == "multi_worker":
        cluster.check_chief(config.training.batch_size)
    if config.data_schema.path is not None and not os.path.exists(config.data_schema.path):
        raise UserError(data_check.schema_is_missing(config.data_schema.path))

    # Before the metadata store, which is made when it is asked for.
    beam_service.check(config.beam, config.root)
    runs.check_store(config)
    lineage = lineage_events.LineageEvents(config)
    memory = local_runner.PeakMemory()
    memory.start()
    log = local_runner.new_log(config.root)
    try:
        with (
            runs.store_errors(config),
            local_runner.running(config.root),
            local_runner.captured_output(None if verbose else log) as stream,
        ):
            # TFX takes seconds to import: only once everything that can be checked without it is right.
            from pipeline.pipeline import create_pipeline

            pipeline = create_pipeline(config)
            pipeline.enable_cache = not no_cache
            os.makedirs(config.root, exist_ok=True)
            check = functools.partial(beam_service.check, config.beam, config.root)
            run_id = local_runner.run(pipeline, stream, check, memory, config.model_dump_json(by_alias=True), lineage)
    except UserError:
        raise
    except OSError as error:
        refused = full_disk.refusal(error)
        if refused is not None:
            remedy = "choose another disk with output.root"
            raise UserError(full_disk.in_words(refused, config.root, remedy)) from None
        raise UserError(f"{error.filename or config.root}: {error.strerror or error}") from None
    except Exception as error:
        terminal.tell_failure(error, "stages", None if verbose else log)
        return 1
    finally:
        memory.stop()
    ended = runs.read_run(config, run_id)
    outcome = summary.summarize(config, ended, seconds=time.monotonic() - started, memory=memory)
    if common.json:
        common.answer(outcome)
    else:
        summary.render(outcome, terminal.console())
    return 0 if outcome["pushed"] and not outcome["deleted"] else 1
