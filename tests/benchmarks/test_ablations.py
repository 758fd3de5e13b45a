"""The parts that can be taken away are settings there are, and can be named on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality import ablations
from modules.settings import Model, Training
from pipeline.config import load


@pytest.mark.parametrize("part", ablations.PARTS)
def test_a_part_can_be_named_and_changes_settings_that_there_are(part: str) -> None:
    assert "," not in part
    sections = {"model": Model(), "training": Training()}
    for name, value in ablations.PARTS[part].items():
        if name == "features":
            assert value in {f.encoding for f in load("configs/movielens-100k.yaml").features.query}
            continue
        section, _, key = name.partition(".")
        assert getattr(sections[section], key) != value
        type(sections[section]).model_validate(sections[section].model_dump() | {key: value})


@pytest.mark.slow
def test_without_runs_it_says_what_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations.main(["--results", str(tmp_path)]) == 2
    assert "there is no run on random" in capsys.readouterr().err
