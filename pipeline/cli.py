"""The command line, `twotower`: run the pipeline, ask the pushed model, look at what ran."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.table import Table

from modules.errors import UserError
from pipeline import local_runner, terminal
from pipeline.config import Config, load
from serving.development_server import limits

DEFAULT_CONFIG = "configs/movielens-100k.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Exit code 0: done; 1: a gate refused, or a stage crashed; 2: a mistake in what was asked, or something a person can
    mend; 130 and 143: ended by Ctrl-C or by SIGTERM.
    """
    local_runner.quiet_libraries()
    terminal.never_fail_to_write()
    given = sys.argv[1:] if arguments is None else arguments
    ending = _Ending()
    try:
        with ending:
            options = _parser().parse_args([_text(argument) for argument in given])
            return options.command(options)
    except UserError as error:
        if "--json" in given:
            print(json.dumps({"error": str(error)}))
        terminal.complain(str(error))
        return 2
    except BrokenPipeError:
        # The reader of our output has gone (`twotower recommend … | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interruption:
        terminal.complain(str(interruption) or "interrupted")
        if arguments is None:
            # The threads of a stage that was left in the middle would hold this process until they are through.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ending.code)
        return ending.code


class _Ending:
    """While it is entered, SIGTERM ends a command as Ctrl-C does: what is half done is cleaned up behind it.

    A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.code = 128 + signal.SIGINT
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        # Signals come to the main thread, and nobody else can handle them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Who was started to ignore a signal, in the background of a script, goes on ignoring it.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._end)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: Any) -> None:
        for handled in self._before:
            signal.signal(handled, signal.SIG_DFL)
        self.code = 128 + number
        raise KeyboardInterrupt


class _ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says what there is")


def _text(argument: str) -> str:
    """An argument that can be a file's name, a table's id and a line of output: Unicode without NUL."""
    if "\0" in argument:
        raise UserError(f"argument {argument!r}: has a NUL character; leave it out")
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UserError(f"argument {argument!r}: is not UTF-8; write it so, or rename the file") from None
    return argument


def _local_file(text: str) -> str:
    """The type of an option that names a file to be written."""
    if not text or "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no file of this machine; write one here, then copy it")
    return text


def _count(text: str) -> int:
    """The type of an option that is a number of things, at least one."""
    if not text.isdecimal() or len(text) > 18 or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _ArgumentParser(prog="twotower", description=__doc__)
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
    sub.add_argument("--output", default="data/movielens-100k", metavar="FOLDER", type=_local_file)

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
    sub.add_argument("--output", required=True, metavar="F.parquet", type=_local_file)
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
    limits.add_flags(sub)

    sub = command("update-index", _update_index, "add items to the pushed model and remove others; trains nothing")
    sub.add_argument("--add", metavar="FILE", help="a table with the columns of tables.items, Parquet or CSV")
    sub.add_argument("--remove", default="", metavar="ID,ID,…", help="items that are no longer recommended")

    sub = command("runs", _runs, "what ran, with metrics; with a run's id its stages and lineage")
    sub.add_argument("run", nargs="?", help="id of a run, or `last`")
    sub.add_argument("--last", type=_count, default=10, metavar="N", help="how many runs (default 10)")

    _add_kubeflow(commands)

    sub = command("schema", _schema, "write the schema that the last run used, to be curated")
    sub.add_argument("--output", required=True, metavar="F.pbtxt", type=_local_file)
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
    sub.add_argument(
        "--output",
        default="pipeline.yaml",
        type=_local_file,
        help="default pipeline.yaml; spec 2.0 is written as .json",
    )
    sub = action("submit", _kubeflow_submit, "compile, upload and run, once or on a schedule")
    sub.add_argument("--host", help="the Kubeflow Pipelines API (default: kubeflow.host)")
    sub.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE",
                     help="a runtime parameter, for instance epochs=5 or push_to=gs://bucket/folder")  # fmt: skip
    sub.add_argument("--schedule", metavar="CRON", help='six fields, seconds first: "0 0 3 * * *" is 3:00 every day')
    sub.add_argument("--wait", action="store_true", help="until the run has ended; exit code 1 when it failed")
    sub.add_argument("--timeout", type=float, default=86400, metavar="SECONDS", help="for --wait, default a day")


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    config = load(options.config, options.overrides)
    from modules.data.tables import check_tables

    check_tables(config.tables, config.split, config.features, config.evaluation, config.serving)
    if config.data_schema.path is not None and not os.path.exists(config.data_schema.path):
        raise UserError(f"schema.path: {config.data_schema.path} does not exist; write it with `twotower schema`")
    from pipeline import runs, summary

    runs.check_store(config)
    memory = local_runner.PeakMemory()
    memory.start()
    # Two runs can start in the same second.
    log = os.path.join(config.root, "logs", time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}.log"))
    try:
        with (
            runs.store_errors(config),
            local_runner.captured_output(None if options.verbose else log) as stream,
        ):
            # TFX takes seconds to import: only once everything that can be checked without it is right.
            from pipeline.pipeline import create_pipeline

            pipeline = create_pipeline(config)
            pipeline.enable_cache = not options.no_cache
            os.makedirs(config.root, exist_ok=True)
            run_id = local_runner.run(pipeline, stream)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename or config.root}: {error.strerror or error}") from None
    except Exception as error:
        # A stage that crashed: TFX and Beam wrap the reason many times, the log has all of it.
        terminal.complain(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if not options.verbose:
            _append_traceback(log)
            terminal.complain(f"everything the stages wrote is in {os.path.relpath(log)}")
        return 1
    finally:
        peak_bytes = memory.stop()
    run = runs.read_run(config, run_id)
    outcome = summary.summarize(config, run, seconds=time.monotonic() - started, peak_bytes=peak_bytes)
    if options.json:
        print(json.dumps(outcome))
    else:
        summary.render(outcome, terminal.console())
    return 0 if outcome["pushed"] and not outcome["deleted"] else 1


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
    terminal.say(f"MovieLens-100K in {outcome.directory} ({how}): {counts}")
    terminal.say(outcome.licence)
    return 0


def _recommender(config: Config, now: int | None = None) -> Any:
    from pipeline.recommender import Recommender

    # What TensorFlow writes while it loads a model is of no use to who asks for recommendations.
    with local_runner.captured_output(os.devnull):
        return Recommender(config, now)


def _recommend(options: argparse.Namespace) -> int:
    given = _pairs(options.feature, "--feature")
    filters = {}
    for column, texts in _pairs(options.filter, "--filter").items():
        if len(texts) > 1:
            raise UserError(f"--filter {column} is given {len(texts)} times; give all values at once, of which an item "
                            f"must have one: --filter {column}={','.join(texts)}")  # fmt: skip
        filters[column] = _list(texts[0])
        if not filters[column]:
            raise UserError(f"--filter {column}={texts[0]}: has no value; leave it out, or give one")
    if options.user == "":
        raise UserError("--user: is empty; leave it out for an anonymous request")
    recommender = _recommender(load(options.config, options.overrides))
    recommender.check_k(options.k)
    values = {column: recommender.given(column, texts) for column, texts in given.items()}
    history = None if options.history is None else _list(options.history)
    request = recommender.request(options.user, history=history, values=values)
    (answer,) = recommender.recommend([request], exclude=_list(options.exclude), filters=filters)
    note = ""
    if options.user is not None and not request.history:
        note = f"user {options.user} has no history: what is popular in this context"
    if not answer:
        note = "no item is left: all are filtered out, excluded, or in the history"
    return _show(options, answer[: options.k], recommender.version, note)


def _similar(options: argparse.Namespace) -> int:
    recommender = _recommender(load(options.config, options.overrides))
    recommender.check_k(options.k)
    (answer,) = recommender.similar([options.item])
    if not answer:
        raise UserError(f"--item {options.item}: the model's catalogue has no such item")
    return _show(options, answer[: options.k], recommender.version, "")


def _show(options: argparse.Namespace, answer: Sequence[Any], version: int, note: str) -> int:
    if options.json:
        print(json.dumps({"model_version": version, "items": [r.as_dict() for r in answer], "note": note}))
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, side in (("rank", "right"), ("item", "left"), ("title", "left"), ("score", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for r in answer:
        table.add_row(str(r.rank), r.item_id, r.title, f"{r.score:.3f}")
    console = terminal.console()
    console.print(table)
    console.print(f"model version {version}{'; ' if note else ''}{note}")
    return 0


def _batch(options: argparse.Namespace) -> int:
    from pipeline.recommender import seconds

    now = None if options.time is None else seconds(options.time, f"--time {options.time}")
    users = None if options.users is None else _lines(options.users, "--users")
    recommender = _recommender(load(options.config, options.overrides), now)
    count = recommender.write_batch(options.output, options.k, users)
    if options.json:
        print(json.dumps({"users": count, "output": options.output, "model_version": recommender.version}))
    else:
        terminal.say(f"{count:,} users → {options.output} (version {recommender.version})")
    return 0


def _lines(path: str, option: str) -> list[str]:
    """The lines of a text file that are not empty, without a byte order mark."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{option} {path}: is not UTF-8; save it as text in UTF-8, one user id per line") from None


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
            where = f"gRPC {running.grpc_address}, REST {running.rest_address}"
            terminal.say(f"development server: {what}; {where}", flush=True)

    server.serve(
        server.Options(
            model_name=name or "",
            model_base_path=base_path or "",
            model_config_file=options.model_config_file or "",
            host=options.host,
            grpc_port=options.grpc_port,
            rest_port=options.rest_port,
            limits=limits.from_flags(options),
        ),
        announce,
    )
    return 0


def _update_index(options: argparse.Namespace) -> int:
    config = load(options.config, options.overrides)
    remove = _list(options.remove)
    if options.add is None and not remove:
        raise UserError("nothing to update: give --add FILE or --remove ID,ID,…")
    from modules.data import tables

    plan = None
    if options.add is not None:
        items = config.tables.items.model_copy(update={"path": options.add})
        changed = config.tables.model_copy(update={"items": items})
        wanted = tables.wanted(changed, config.features, config.evaluation, config.serving)
        try:
            plan = tables.plan(changed, config.split, wanted)
        except UserError as error:
            # It stands in for the items table, and is looked at as one.
            raise UserError(str(error).replace("tables.items.path", "--add")) from None
    with local_runner.captured_output(os.devnull):
        from modules.servable import update

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
        terminal.say(
            f"{outcome.added:,} items added, {outcome.removed:,} removed, {outcome.catalogue_size:,} in all; "
            f"recall@{outcome.recall_k} {outcome.recall:.3f} on warm-up requests"
        )
        terminal.say(
            f"version {outcome.version} pushed in {outcome.seconds:.1f} s, in place of {outcome.updated_version}"
        )
    return 0


def _runs(options: argparse.Namespace) -> int:
    from pipeline import runs, summary

    config = load(options.config, options.overrides)
    if options.run is not None:
        last = runs.read_runs(config, last=1) if options.run == "last" else [runs.read_run(config, options.run)]
        if not last:
            raise UserError("no run has started yet; start with `twotower run`")
        (run,) = last
        outcome = summary.summarize(config, run)
        if options.json:
            outcome["lineage"] = runs.lineage(run)
            print(json.dumps(outcome))
        else:
            console = terminal.console()
            summary.render(outcome, console)
            summary.render_lineage(run, console)
        return 0
    found = runs.read_runs(config, last=options.last)
    outcomes = [summary.summarize(config, run) for run in found]
    if options.json:
        print(json.dumps(outcomes))
    else:
        summary.render_runs(found, outcomes, terminal.console())
    return 0


def _schema(options: argparse.Namespace) -> int:
    from pipeline import runs

    config = load(options.config, options.overrides)
    for run in runs.read_runs(config):
        for stage in run.stages:
            artifact = stage.output("schema")
            if artifact is None or stage.state not in ("done", "cached"):
                continue
            source = os.path.join(artifact.uri, "schema.pbtxt")
            # A schema that somebody has removed: the run before has one, too.
            if os.path.exists(source):
                try:
                    shutil.copyfile(source, options.output)
                except OSError as error:
                    raise UserError(f"--output {options.output}: {error.strerror}") from None
                if options.json:
                    print(json.dumps({"output": options.output}))
                else:
                    terminal.say(f"schema of run {run.id} → {options.output}")
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
        terminal.say(f"{config.name}, {len(stages)} stages → {options.output} (spec {config.kubeflow.spec})")
        terminal.say("parameters of a run: " + ", ".join(f"{name}={value}" for name, value in parameters.items()))
    return 0


def _kubeflow_submit(options: argparse.Namespace) -> int:
    from kubeflow import submit

    outcome = submit.submit(
        _kubeflow_config(options),
        _single(options.parameter, "--parameter"),
        schedule=options.schedule,
        timeout_seconds=options.timeout if options.wait else None,
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(outcome)))
    else:
        for name, value in dataclasses.asdict(outcome).items():
            if value:
                terminal.say(f"{name:<12} {value}")
    return 0 if outcome.state in ("", "SUCCEEDED") else 1


def _pairs(texts: Sequence[str], option: str) -> dict[str, list[str]]:
    """Column → the values given for it, in their order."""
    pairs: dict[str, list[str]] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"{option} {text!r}: expected column=value")
        pairs.setdefault(key, []).append(value)
    return pairs


def _single(texts: Sequence[str], option: str) -> dict[str, str]:
    """Name → its one value."""
    pairs = _pairs(texts, option)
    for name, values in pairs.items():
        if len(values) > 1:
            raise UserError(f"{option} {name} is given {len(values)} times; keep one")
    return {name: value for name, (value,) in pairs.items()}


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
