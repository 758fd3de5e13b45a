"""The command line, `twotower`: run the pipeline, ask the pushed model, look at what ran."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from modules.errors import UserError
from pipeline import local_runner
from pipeline.config import Config, load

DEFAULT_CONFIG = "configs/movielens-100k.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Exit code 0: done; 1: a gate refused, or a stage crashed; 2: a mistake in what was asked."""
    local_runner.quiet_libraries()
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except UserError as error:
        if options.json:
            print(json.dumps({"error": str(error)}))
        print(f"twotower: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone (`twotower recommend … | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="twotower", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str, *, config: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="machine-readable output")
        if config:
            sub.add_argument("--config", default=DEFAULT_CONFIG, help=f"configuration file (default {DEFAULT_CONFIG})")
            sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                             help="replace a key of the configuration, for instance training.epochs=3")  # fmt: skip
        return sub

    sub = command("run", _run, "run the whole pipeline; what has not changed since the last run is re-used")
    sub.add_argument("--verbose", action="store_true", help="show what TensorFlow, Beam and TFX write")
    sub.add_argument("--no-cache", action="store_true", help="execute every stage again")

    sub = command("data", _data, "fetch a data set and lay out its tables", config=False)
    sub.add_argument("name", choices=["movielens-100k"])
    sub.add_argument("--output", default="data/movielens-100k", metavar="FOLDER")

    sub = command("recommend", _recommend, "items for a user, from the pushed model")
    sub.add_argument("--user", help="user id; without one the request is anonymous")
    sub.add_argument("--history", metavar="ID,ID,…", help="items taken up so far, oldest first (default: the table's)")
    sub.add_argument("--feature", action="append", default=[], metavar="COLUMN=VALUE", help="a value of the request")
    sub.add_argument("--k", type=int, default=10)
    sub.add_argument("--exclude", default="", metavar="ID,ID,…", help="items to leave out")
    sub.add_argument("--filter", action="append", default=[], metavar="COLUMN=VALUE,…", help="required values of items")

    sub = command("similar", _similar, "items like an item, from the pushed model")
    sub.add_argument("--item", required=True)
    sub.add_argument("--k", type=int, default=10)

    sub = command("batch", _batch, "top-K for every user, as Parquet")
    sub.add_argument("--output", required=True, metavar="F.parquet")
    sub.add_argument("--users", metavar="FILE", help="a file with one user id per line (default: every user)")
    sub.add_argument("--k", type=int, default=100)
    sub.add_argument("--time", metavar="T", help="ask as of this time: seconds since 1970 or ISO 8601 (default: now)")

    sub = command("serve", _serve, "development server: the pushed model over TF Serving's gRPC and REST interface")
    sub.add_argument("--model-name", metavar="NAME", help="name in requests (default: the configuration's)")
    sub.add_argument("--model-base-path", metavar="FOLDER", help="folder with the versions (default: where runs push)")
    sub.add_argument("--model-config-file", metavar="F", help="TF Serving's: models, version policies and labels")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    sub.add_argument("--grpc-port", type=int, default=8500, help="0 takes a free one (default 8500)")
    sub.add_argument("--rest-port", type=int, default=8501, help="0 takes a free one (default 8501)")

    sub = command("update-index", _update_index, "add items to the pushed model and remove others; trains nothing")
    sub.add_argument("--add", metavar="FILE", help="a table with the columns of tables.items, Parquet or CSV")
    sub.add_argument("--remove", default="", metavar="ID,ID,…", help="items that are no longer recommended")

    sub = command("runs", _runs, "what ran, with metrics; with a run's id its stages and lineage")
    sub.add_argument("run", nargs="?", help="id of a run, or `last`")
    sub.add_argument("--last", type=int, default=10, metavar="N", help="how many runs (default 10)")

    _add_kubeflow(commands)

    sub = command("schema", _schema, "write the schema that the last run used, to be curated")
    sub.add_argument("--output", required=True, metavar="F.pbtxt")
    return parser


def _add_kubeflow(commands: Any) -> None:
    text = "the same pipeline on Kubeflow Pipelines or Vertex AI"
    actions = commands.add_parser("kubeflow", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )

    def action(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="machine-readable output")
        sub.add_argument("--config", default=DEFAULT_CONFIG, help=f"configuration file (default {DEFAULT_CONFIG})")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                         help="replace a key of the configuration")  # fmt: skip
        for key, words in (("image", "image of kubeflow/Dockerfile, as the cluster pulls it"),
                           ("pipeline_root", "bucket for artifacts: minio://, s3:// or gs://")):  # fmt: skip
            sub.add_argument(f"--{key.replace('_', '-')}", dest=key, help=f"{words} (default: kubeflow.{key})")
        return sub

    sub = action("compile", _kubeflow_compile, "write the pipeline for upload")
    sub.add_argument("--output", default="pipeline.yaml", help="default pipeline.yaml; spec 2.0 is written as .json")
    sub = action("submit", _kubeflow_submit, "compile, upload and run, once or on a schedule")
    sub.add_argument("--host", help="the Kubeflow Pipelines API (default: kubeflow.host)")
    sub.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE",
                     help="a runtime parameter, for instance epochs=5 or push_to=gs://bucket/folder")  # fmt: skip
    sub.add_argument("--schedule", metavar="CRON", help='six fields, seconds first: "0 0 3 * * *" is 3:00 every day')
    sub.add_argument("--wait", action="store_true", help="until the run has ended; exit code 1 when it failed")
    sub.add_argument("--timeout", type=float, default=86400, metavar="SECONDS", help="for --wait, default a day")


def _console() -> Console:
    """The person's terminal; a pipe or a file gets lines that are wide enough for a table."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    config = load(options.config, options.overrides)
    from components.baseline_resolver.versions import latest_version
    from components.interaction_example_gen.tables import check_tables

    check_tables(config.tables, config.split, config.features, config.evaluation, config.serving)
    if config.data_schema.path is not None and not os.path.exists(config.data_schema.path):
        raise UserError(f"schema.path: {config.data_schema.path} does not exist; write it with `twotower schema`")
    memory = local_runner.PeakMemory()
    memory.start()
    log = os.path.join(config.root, "logs", time.strftime("%Y%m%d-%H%M%S.log"))
    try:
        with local_runner.captured_output(None if options.verbose else log) as terminal:
            # TFX takes seconds to import: only once everything that can be checked without it is right.
            from pipeline.pipeline import create_pipeline

            pipeline = create_pipeline(config)
            pipeline.enable_cache = not options.no_cache
            os.makedirs(config.root, exist_ok=True)
            # Somebody who emptied the push destination wants it filled, whatever was pushed there before.
            uncached = [] if latest_version(config.push_destination) else ["Pusher"]
            run_id = local_runner.run(pipeline, terminal, uncached)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename or config.root}: {error.strerror or error}") from None
    except Exception as error:
        # A stage that crashed: TFX and Beam wrap the reason many times, the log has all of it.
        print(f"twotower: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        if not options.verbose:
            _append_traceback(log)
            print(f"twotower: everything the stages wrote is in {os.path.relpath(log)}", file=sys.stderr)
        return 1
    finally:
        peak_bytes = memory.stop()
    from pipeline import runs, summary

    (run,) = [r for r in runs.read_runs(config, last=1) if r.id == run_id]
    outcome = summary.summarize(config, run, seconds=time.monotonic() - started, peak_bytes=peak_bytes)
    if options.json:
        print(json.dumps(outcome))
    else:
        summary.render(outcome, _console())
    return 0 if outcome["pushed"] else 1


def _append_traceback(log: str) -> None:
    import traceback

    with open(log, "a", encoding="utf-8") as file:
        traceback.print_exc(file=file)


def _data(options: argparse.Namespace) -> int:
    from pipeline.datasets import movielens_100k

    outcome = movielens_100k.prepare(options.output)
    if options.json:
        print(json.dumps(dataclasses.asdict(outcome)))
        return 0
    how = f"fetched from {outcome.source}" if outcome.source else "already there"
    counts = f"{outcome.interactions:,} interactions, {outcome.users:,} users, {outcome.items:,} items"
    print(f"MovieLens-100K in {outcome.directory} ({how}): {counts}")
    print(outcome.licence)
    return 0


def _recommender(config: Config, now: int | None = None) -> Any:
    from pipeline.recommender import Recommender

    # What TensorFlow writes while it loads a model is of no use to who asks for recommendations.
    with local_runner.captured_output(os.devnull):
        return Recommender(config, now)


def _time(text: str | None) -> int | None:
    """Seconds since 1970; a time without a zone is UTC."""
    if text is None:
        return None
    try:
        if text.isdecimal():
            seconds = int(text)
        else:
            parsed = datetime.datetime.fromisoformat(text)
            seconds = int((parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp())
        # The inputs of a servable are int64, and below 0 is a missing time.
        if not 0 <= seconds < 2**63:
            raise ValueError
        return seconds
    except ValueError:
        raise UserError(f"--time {text}: expected seconds since 1970, or a time such as 2026-11-23T09:00") from None


def _recommend(options: argparse.Namespace) -> int:
    values = _pairs(options.feature, "--feature")
    filters = {column: _list(text) for column, text in _pairs(options.filter, "--filter").items()}
    recommender = _recommender(load(options.config, options.overrides))
    _check_k(options.k, recommender)
    history = None if options.history is None else _list(options.history)
    request = recommender.request(options.user, history=history, values=values)
    (answer,) = recommender.recommend([request], exclude=_list(options.exclude), filters=filters)
    note = ""
    if options.user is not None and not request.history:
        note = f"user {options.user} has no history: what is popular in this context"
    return _show(options, answer[: options.k], recommender.version, note)


def _similar(options: argparse.Namespace) -> int:
    recommender = _recommender(load(options.config, options.overrides))
    _check_k(options.k, recommender)
    (answer,) = recommender.similar([options.item])
    if not answer:
        raise UserError(f"--item {options.item}: the model's catalogue has no such item")
    return _show(options, answer[: options.k], recommender.version, "")


def _check_k(k: int, recommender: Any) -> None:
    if not 1 <= k <= recommender.servable["k"]:
        raise UserError(
            f"--k {k}: the model answers with 1 to {recommender.servable['k']} items; raise serving.k and run"
        )


def _show(options: argparse.Namespace, answer: Sequence[Any], version: int, note: str) -> int:
    if options.json:
        print(json.dumps({"model_version": version, "items": [r.as_dict() for r in answer], "note": note}))
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, side in (("rank", "right"), ("item", "left"), ("title", "left"), ("score", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for r in answer:
        table.add_row(str(r.rank), r.item_id, r.title, f"{r.score:.3f}")
    console = _console()
    console.print(table)
    console.print(f"model version {version}{'; ' if note else ''}{note}")
    return 0


def _batch(options: argparse.Namespace) -> int:
    users = None
    if options.users is not None:
        try:
            with open(options.users, encoding="utf-8") as file:
                users = [line.strip() for line in file if line.strip()]
        except OSError as error:
            raise UserError(f"--users {options.users}: {error.strerror}") from None
    recommender = _recommender(load(options.config, options.overrides), _time(options.time))
    count = recommender.write_batch(options.output, options.k, users)
    outcome = {"users": count, "output": options.output, "model_version": recommender.version}
    print(
        json.dumps(outcome) if options.json else f"{count:,} users → {options.output} (version {recommender.version})"
    )
    return 0


def _serve(options: argparse.Namespace) -> int:
    name, base_path = options.model_name, options.model_base_path
    if not options.model_config_file and not (name and base_path):
        config = load(options.config, options.overrides)
        name, base_path = name or config.name, base_path or config.push_destination
    from serving.development_server import server

    def announce(running: server.Server) -> None:
        if options.json:
            print(json.dumps({"grpc": running.grpc_address, "rest": running.rest_address}), flush=True)
        else:
            what = options.model_config_file or f"{name} from {base_path}"
            print(f"development server: {what}; gRPC {running.grpc_address}, REST {running.rest_address}", flush=True)

    server.serve(
        server.Options(
            model_name=name or "",
            model_base_path=base_path or "",
            model_config_file=options.model_config_file or "",
            host=options.host,
            grpc_port=options.grpc_port,
            rest_port=options.rest_port,
        ),
        announce,
    )
    return 0


def _update_index(options: argparse.Namespace) -> int:
    config = load(options.config, options.overrides)
    remove = _list(options.remove)
    if options.add is None and not remove:
        raise UserError("nothing to update: give --add FILE or --remove ID,ID,…")
    from components.interaction_example_gen import tables

    plan = None
    if options.add is not None:
        items = config.tables.items.model_copy(update={"path": options.add})
        changed = config.tables.model_copy(update={"items": items})
        plan = tables.plan(
            changed, config.split, tables.wanted(changed, config.features, config.evaluation, config.serving), "--add"
        )
    with local_runner.captured_output(os.devnull):
        from components.scann_index_builder import update

        new = update.NewItems({})
        if plan is not None:
            new = update.NewItems.read(options.add, config.tables.items.id, plan)
        outcome = update.update(
            config.push_destination,
            new,
            remove,
            config.features,
            config.serving,
            config.index,
            config.tables.interactions.item,
        )
    if options.json:
        print(outcome.model_dump_json())
    else:
        print(
            f"{outcome.added:,} items added, {outcome.removed:,} removed, {outcome.catalogue_size:,} in all; "
            f"recall@{outcome.recall_k} {outcome.recall:.3f} on warm-up requests"
        )
        print(f"version {outcome.version} pushed in {outcome.seconds:.1f} s, in place of {outcome.updated_version}")
    return 0


def _runs(options: argparse.Namespace) -> int:
    from pipeline import runs, summary

    config = load(options.config, options.overrides)
    found = runs.read_runs(config)
    if options.run is not None:
        chosen = [r for r in found if r.id == options.run] if options.run != "last" else found[:1]
        if not chosen:
            raise UserError(f"run {options.run!r}: not in the metadata store; `twotower runs` lists them")
        outcome = summary.summarize(config, chosen[0])
        if options.json:
            outcome["lineage"] = runs.lineage(chosen[0])
            print(json.dumps(outcome))
        else:
            console = _console()
            summary.render(outcome, console)
            summary.render_lineage(chosen[0], console)
        return 0
    outcomes = [summary.summarize(config, run) for run in found[: options.last]]
    if options.json:
        print(json.dumps(outcomes))
    else:
        summary.render_runs(found[: options.last], outcomes, _console())
    return 0


def _schema(options: argparse.Namespace) -> int:
    from pipeline import runs

    config = load(options.config, options.overrides)
    for run in runs.read_runs(config):
        for stage in run.stages:
            artifact = stage.output("schema")
            if artifact is not None and stage.state in ("done", "cached"):
                with open(os.path.join(artifact.uri, "schema.pbtxt"), encoding="utf-8") as file:
                    text = file.read()
                try:
                    with open(options.output, "w", encoding="utf-8") as file:
                        file.write(text)
                except OSError as error:
                    raise UserError(f"{options.output}: {error.strerror}") from None
                print(
                    json.dumps({"output": options.output})
                    if options.json
                    else f"schema of run {run.id} → {options.output}"
                )
                return 0
    raise UserError("no run has made a schema yet; start with `twotower run --set schema.path=null`")


def _kubeflow_config(options: argparse.Namespace) -> Config:
    given = {key: getattr(options, key, None) for key in ("image", "pipeline_root", "host")}
    config = load(options.config, options.overrides)
    found = {key: value for key, value in given.items() if value is not None}
    return config.model_copy(update={"kubeflow": config.kubeflow.model_copy(update=found)})


def _kubeflow_compile(options: argparse.Namespace) -> int:
    from kubeflow import runner

    config = _kubeflow_config(options)
    with local_runner.captured_output(os.devnull):
        job = runner.compile_pipeline(config, options.output)
    stages = list(job["pipelineSpec"]["root"]["dag"]["tasks"])
    parameters = {p.name: p.default for p in runner.parameters(runner.with_absolute_paths(config))}
    if options.json:
        print(json.dumps({"output": options.output, "stages": stages, "parameters": parameters}))
    else:
        print(f"{config.name}, {len(stages)} stages → {options.output} (spec {config.kubeflow.spec})")
        print("parameters of a run: " + ", ".join(f"{name}={value}" for name, value in parameters.items()))
    return 0


def _kubeflow_submit(options: argparse.Namespace) -> int:
    from kubeflow import submit

    outcome = submit.submit(
        _kubeflow_config(options),
        _pairs(options.parameter, "--parameter"),
        schedule=options.schedule,
        timeout_seconds=options.timeout if options.wait else None,
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(outcome)))
    else:
        print("\n".join(f"{name:<12} {value}" for name, value in dataclasses.asdict(outcome).items() if value))
    return 0 if outcome.state in ("", "SUCCEEDED") else 1


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"{option} {text!r}: expected column=value")
        pairs[key] = value
    return pairs


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
