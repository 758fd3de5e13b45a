"""Mistakes on the command line that are found without a model: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import world
from e2e_runs import Outcome, twotower
from metadata_stores import began

from modules.data import user_tables
from pipeline import cli, runs
from pipeline.commands import options
from pipeline.config import load


def check(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.errors.count("\n") == 1 and "Traceback" not in outcome.errors, outcome.errors
    assert len(outcome.errors) < 2100
    for word in words:
        assert word in outcome.errors
    assert outcome.answer.keys() == {"error"}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small world's tables and configuration in the working directory; nothing has run."""
    world.write_parquet(tmp_path)
    world.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recommend", "--k", "many"], "'many'"),
        (["recommend", "--k", "9" * 5000], "'--k'"),
        (["recommend", "--nosuch", "\x1b[31m"], "--nosuch"),
        (["\x1b[31m"], "\\x1b[31m"),
        (["recommend", "--user", ""], "anonymous"),
        (["recommend", "--filter", "genres=War", "--filter", "genres=Drama"], "--filter genres=War,Drama"),
        (["recommend", "--filter", "genres="], "has no value"),
        (["recommend", "--filter", "genres=,,"], "has no value"),
        (["recommend", "--feature", "=3"], "expected column=value"),
        (["recommend", "--user", "caf\udce9"], "is not UTF-8"),
        (["recommend", "--user", "a\0b"], "NUL"),
        (["batch", "--output", "a\0b.parquet"], "NUL"),
        (["batch", "--output", ""], "no file"),
        (["batch", "--output", "x", "--shards", "0"], "is not a whole number from 1"),
        (["batch", "--output", "gs://bucket/top.parquet"], "gs://bucket/top.parquet"),
        (["schema", "--output", "s3://bucket/schema.pbtxt"], "s3://bucket/schema.pbtxt"),
        (["data", "movielens-100k", "--output", "gs://bucket/data"], "gs://bucket/data"),
        (["batch", "--output", "x.parquet", "--time", "9" * 5000], "expected seconds since 1970"),
        (["batch", "--output", "x.parquet", "--time", "²"], "expected seconds since 1970"),
        (["batch", "--output", "x.parquet", "--users", "."], "Is a directory"),
        (["runs", "--last", "0"], "from 1"),
        (["runs", "--last", "-5"], "--last"),
        (["runs", "--last", "²"], "from 1"),
        (["runs"], "nothing has run yet"),
        (["schema", "--output", "x.pbtxt"], "nothing has run yet"),
        (["recommend"], "nothing has been pushed yet"),
        (["update-index", "--remove", "1"], "nothing has been pushed yet"),
        (["update-index", "--remove", " , "], "nothing to update"),
        (["update-index", "--add", "none.parquet"], "--add: there is no file none.parquet"),
        (["run", "--config", "no\x1b[2Jsuch.yaml"], "no\\x1b[2Jsuch.yaml"),
    ],
)
def test_a_mistake_is_one_line(tables: Path, arguments: list[str], words: str):
    before = sorted(p.name for p in tables.iterdir())
    if "--config" not in arguments and arguments[0] != "data":
        arguments = [*arguments, "--config", "config.yaml"]
    check(twotower(*arguments), words)
    assert sorted(p.name for p in tables.iterdir()) == before, "nothing is written"


@pytest.mark.parametrize(
    ("tf_config", "words"),
    [
        (None, "training.distribution: multi_worker needs TF_CONFIG, which is not set"),
        ("host-a:2222", "TF_CONFIG is not JSON"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "is worker 2, but"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}',
            "a run is the chief's, a:1",
        ),
        ('{"cluster": {"worker": ["a:1", "b:1", "c:1"]}, "task": {"type": "worker", "index": 0}}', "by the 3 workers"),
    ],
)
def test_workers_that_cannot_be_are_found_before_a_run(
    tables: Path, monkeypatch: pytest.MonkeyPatch, tf_config: str | None, words: str
):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if tf_config is not None:
        monkeypatch.setenv("TF_CONFIG", tf_config)
    before = sorted(p.name for p in tables.iterdir())
    sets = ("--set", "training.distribution=multi_worker", "--set", "training.batch_size=2")
    check(twotower("run", "--config", "config.yaml", *sets), words)
    assert sorted(p.name for p in tables.iterdir()) == before, "nothing is written"


@pytest.mark.parametrize("content", ["3\ncafé\n".encode("latin-1"), "3\n4\n".encode("utf-16"), b"PAR1\xff\xfe\x00"])
def test_a_list_of_users_that_is_not_utf_8(tables: Path, content: bytes):
    (tables / "users.txt").write_bytes(content)
    arguments = ["batch", "--config", "config.yaml", "--output", "top.parquet", "--users", "users.txt"]
    check(twotower(*arguments), "users.txt: is not UTF-8")


def test_a_byte_order_mark_is_no_part_of_a_users_id(tmp_path: Path):
    (tmp_path / "users.txt").write_bytes("3\r\n\r\né\n".encode("utf-8-sig"))
    assert list(user_tables.listed(str(tmp_path / "users.txt"))) == ["3", "é"]


def test_an_argument_that_is_not_utf_8_in_a_process_of_its_own():
    command = [os.fsencode(sys.executable), b"-m", b"pipeline.cli", b"recommend", b"--user", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr == b"twotower: argument 'caf\\udce9': is not UTF-8; write it so, or rename the file\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_and_what_is_half_done_is_cleaned_up(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = {n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGINT, signal.SIGTERM)}
    cleaned = []

    def load(common: object) -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(signal.getsignal(number))

    try:
        monkeypatch.setattr(options.Common, "load", load)
        assert cli.main(["schema", "--output", "x.pbtxt"]) == code
        assert cleaned == [signal.SIG_DFL], "a second signal ends the process at once"
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert capsys.readouterr().err == "twotower: interrupted\n"


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with cli.Ending():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# The metadata store.


def store_of(folder: Path) -> Path:
    path = folder / "runs" / "small-world" / "metadata.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_runs_are_in_the_order_in_which_they_began_whatever_the_clock_said(tables: Path):
    began(store_of(tables), "first", "second", "third")
    with sqlite3.connect(store_of(tables)) as database:
        for name, time in (("first", 3), ("second", 1), ("third", 2)):
            database.execute("UPDATE Context SET create_time_since_epoch = ? WHERE name = ?", (time * 10**12, name))
    assert [run["run"] for run in twotower("runs", "--config", "config.yaml").answer] == ["third", "second", "first"]
    assert [run["run"] for run in twotower("runs", "--config", "config.yaml", "--last", "1").answer] == ["third"]
    assert twotower("runs", "--config", "config.yaml", "last").answer["run"] == "third"
    assert twotower("runs", "--config", "config.yaml", "first").answer["run"] == "first"
    check(twotower("runs", "--config", "config.yaml", "fourth"), "'fourth'")
    check(twotower("runs", "--config", "config.yaml", "--set", "name=other", "--set", f"output.root={tables}/runs"))


@pytest.mark.parametrize("command", ["run", "runs", "schema"])
@pytest.mark.parametrize("damage", ["garbage", "torn", "page", "folder"])
def test_a_damaged_store_is_named_with_what_to_do(tables: Path, command: str, damage: str):
    path = store_of(tables)
    if damage == "garbage":
        path.write_bytes(b"no database " * 400)
    elif damage == "folder":
        path.mkdir()
    else:
        began(path, *(f"run {n}" for n in range(60)))
        content = bytearray(path.read_bytes())
        if damage == "torn":
            del content[len(content) // 2 :]
        else:
            # Every page but the first, which says what the file is.
            content[4096:] = b"\xff" * (len(content) - 4096)
        path.write_bytes(content)
    arguments = ["--output", "schema.pbtxt"] if command == "schema" else []
    check(twotower(command, "--config", "config.yaml", *arguments), str(path), "; ")
    assert not (tables / "served").exists() and not (tables / "schema.pbtxt").exists()


@pytest.mark.parametrize("command", ["run", "runs"])
@pytest.mark.parametrize("kind", ["mysql", "postgresql"])
def test_a_database_that_cannot_be_reached_is_named(tables: Path, command: str, kind: str):
    with socket.socket() as taken:
        # Bound and not listened on: nobody answers here, and nobody else takes the port meanwhile.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        keys = {"kind": kind, "host": "127.0.0.1", "port": port, "database": "d", "user": "u"}
        settings = [a for key, value in keys.items() for a in ("--set", f"metadata.{key}={value}")]
        check(twotower(command, "--config", "config.yaml", *settings), f"{kind} at 127.0.0.1:{port}", "refused")
    check(twotower(command, "--config", "config.yaml", *settings, "--set", "metadata.host=no.such.invalid"), "invalid:")


def test_a_full_disk_under_the_store_is_one_line_with_the_remedy(tables: Path):
    """SQLite's own limit on pages stands for a disk: it ends in the same error."""
    path = store_of(tables)
    began(path, "first")
    config = load("config.yaml")
    with sqlite3.connect(path) as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(cli.UserError, match="make room") as error, runs.store_errors(config):
            database.execute("CREATE TABLE large AS SELECT zeroblob(1000000)")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    # What is no error of the store passes.
    with pytest.raises(RuntimeError, match="inputs were not found"), runs.store_errors(config):
        raise RuntimeError("Trainer could not start: its inputs were not found")


@pytest.mark.slow
def test_what_tfx_makes_of_an_error_of_the_store_is_one_line_too(tables: Path):
    path = store_of(tables)
    path.write_bytes(b"no database " * 400)
    code = textwrap.dedent(
        """
        import json, sys
        from pipeline import runs
        from pipeline.config import load
        from tfx.orchestration import metadata
        config = load("config.yaml")
        try:
            with runs.store_errors(config), metadata.Metadata(runs.connection(config)):
                pass
        except runs.UserError as error:
            print(json.dumps(str(error)))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)})  # fmt: skip
    message = json.loads(done.stdout.splitlines()[-1])
    assert message.startswith(f"metadata store {path} cannot be used (file is not a database); ")
