"""What a shell offers, as click asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import world
from click.shell_completion import ShellComplete
from metadata_stores import began

from pipeline import cli

CONFIG = ("--config", "config.yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    world.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(*words: str) -> list[str]:
    """For the last word, behind the others."""
    shell = ShellComplete(cli.twotower, {}, "twotower", "_TWOTOWER_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


def test_runs_newest_first_and_what_can_be_done_with_them(folder: Path):
    assert offered("runs", *CONFIG, "") == ["last", "compare"], "nothing has run"
    began(folder / "runs" / "small-world" / "metadata.sqlite", "2026-a", "2026-b")
    assert offered("runs", *CONFIG, "") == ["last", "2026-b", "2026-a", "compare"]
    assert offered("runs", *CONFIG, "c") == ["compare"]
    assert offered("runs", "compare", *CONFIG, "2026-a", "2") == ["2026-b", "2026-a"]
    assert offered("runs", *CONFIG, "--set", "name=other", "2") == []


def test_keys_and_their_words(folder: Path):
    assert offered("run", *CONFIG, "--set", "training.ep") == ["training.epochs=", "training.epoch_steps="]
    assert offered("run", *CONFIG, "--set", "training.objective=") == [
        "training.objective=masked_items",
        "training.objective=next_item",
    ]
    assert "features.query.age.encoding=bucketized" in offered("run", *CONFIG, "--set", "features.query.age.encoding=b")


def test_columns_versions_and_commands(folder: Path):
    assert offered("recommend", *CONFIG, "--filter", "") == ["genres="]
    assert offered("recommend", *CONFIG, "--feature", "") == ["age=", "gender=", "timestamp=", "history_age="]
    for version in ("9", "10", ".staging-a-1-2-0f"):
        (folder / "served" / "small-world" / version).mkdir(parents=True)
    assert offered("rollback", *CONFIG, "--to", "") == ["10", "9"]
    assert offered("update") == ["update-index", "update-users"]
    assert "--explain" in offered("recommend", "--e")


def test_a_mistake_is_no_traceback(folder: Path):
    (folder / "config.yaml").write_text("name: [")
    for words in (("run", "--set", ""), ("runs", ""), ("recommend", "--filter", ""), ("rollback", "--to", "")):
        assert [word for word in offered(words[0], *CONFIG, *words[1:]) if word not in ("compare",)] == []


def test_a_process_answers_without_the_libraries_that_take_seconds(folder: Path):
    code = (
        "import sys\nfrom pipeline import cli\ncode = cli.main()\n"
        "print(sorted({'tensorflow', 'tfx', 'apache_beam', 'ml_metadata', 'pyarrow'} & set(sys.modules)))\n"
        "sys.exit(code)"
    )
    asked = {"_TWOTOWER_COMPLETE": "bash_complete", "COMP_WORDS": "twotower run --config config.yaml --set training.ep"}
    environment = os.environ | asked | {"COMP_CWORD": "5", "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.split() == ["plain,training.epochs=", "plain,training.epoch_steps=", "[]"]
