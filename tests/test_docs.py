"""What the pages promise exists: links, files, commands with their options, targets of make, and configurations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from pipeline import cli
from pipeline.config import load

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_CODE = re.compile(r"`([^`\n]+)`")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_of(text: str) -> list[str]:
    """Lines that are indented as code, without a prompt, continued ones joined; and what is between backquotes."""
    blocks = re.sub(r"\\\n\s*", "", text)
    lines = [line.strip().removeprefix("$ ") for line in blocks.splitlines() if line.startswith("    ")]
    return [*lines, *_CODE.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path):
    tops = "modules|components|pipeline|kubeflow|serving|tests|benchmarks|configs|docs"
    for path in re.findall(rf"`((?:{tops})/[\w./*-]*)`", page.read_text(encoding="utf-8")):
        assert list(ROOT.glob(path.rstrip("/"))), path


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command of a command line, and its arguments."""
    command: click.Command = cli.twotower
    context = click.Context(command, info_name="twotower")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        if inner is None and any(isinstance(parameter, click.Argument) for parameter in command.params):
            break
        assert inner is not None, f"there is no command {words[0]}"
        command, words = inner, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page: Path):
    for line in code_of(page.read_text(encoding="utf-8")):
        if not line.startswith("twotower "):
            continue
        line = line.replace("\\|", "|").partition("#")[0].partition("&&")[0].partition("…")[0].partition("|")[0]
        command, words = find(shlex.split(line)[1:])
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{line}: {command.name} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_of_make_exist(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_of(page.read_text(encoding="utf-8")):
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", line):
            assert target in targets, target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_load_and_parts_of_them_name_real_keys(page: Path, tmp_path: Path):
    blocks = re.findall(r"(?:^(?: {4}|\t).*\n|^\n(?= {4}))+", page.read_text(encoding="utf-8"), re.MULTILINE)
    for block in blocks:
        text = "\n".join(line[4:] for line in block.splitlines())
        if re.match(r"name: ", text):
            path = tmp_path / "config.yaml"
            path.write_text(text)
            load(str(path))
        elif re.match(r"\s*(tables|kubeflow|split|model|training|beam):\n", text):
            tree = yaml.safe_load(text)
            whole = yaml.safe_load((ROOT / "configs/movielens-100k.yaml").read_text(encoding="utf-8"))
            path = tmp_path / "part.yaml"
            path.write_text(yaml.safe_dump(whole | tree))
            load(str(path))


def test_keys_that_are_named_exist():
    """`section.key` between backquotes, for every section of the configuration."""
    config = load(str(ROOT / "configs/movielens-100k.yaml"))
    named = ("model", "training", "tuner", "index", "serving", "evaluation", "output", "beam", "kubeflow")
    sections = {section: getattr(config, section) for section in named}
    for page in PAGES:
        for key in _CODE.findall(page.read_text(encoding="utf-8")):
            section, _, field = key.partition(":")[0].partition(".")
            is_module = (ROOT / section / f"{field}.py").exists()
            if section in sections and re.fullmatch(r"[a-z_0-9]+", field) and not is_module:
                fields = type(sections[section]).model_fields
                assert field in fields, f"{name(page)}: {key}"
