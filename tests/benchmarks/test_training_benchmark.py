"""The benchmark of a training step, on a catalogue of a few hundred items."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.training import __main__ as benchmark


@pytest.mark.slow
def test_all_systems_are_measured_on_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "results.json"
    arguments = ["--items", "500", "--steps", "5", "--batch-size", "32", "--dimension", "8", "--output", str(output),
                 "--systems", "sampled,catalogue,tfrs"]  # fmt: skip
    assert benchmark.main(arguments) == 0
    sampled, catalogue, tfrs = rows = json.loads(output.read_text())
    assert [row["system"] for row in rows] == ["sampled", "catalogue", "tfrs"]
    for row in rows:
        epoch = 5 * row["step_ms"] + row["epoch_end_ms"]
        assert row["rows_per_second"] == pytest.approx(5 * 32 * 1_000 / epoch, rel=0.01)
    assert tfrs["epoch_end_ms"] == 0
    printed = capsys.readouterr().out
    for ours in (sampled, catalogue):
        assert f"{ours['rows_per_second'] / tfrs['rows_per_second']:.1f}" in printed


@pytest.mark.slow
def test_a_case_that_cannot_be_measured_is_told_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [
        "--items",
        "500",
        "--systems",
        "sampled",
        "--dimension",
        "1",
        "--output",
        str(tmp_path / "results.json"),
    ]
    assert benchmark.main(arguments) == 0
    assert "sampled with 500 items: exit code 1: " in capsys.readouterr().out


def test_an_unknown_system_is_refused():
    with pytest.raises(SystemExit, match="known are sampled, catalogue, tfrs"):
        benchmark.main(["--systems", "theirs"])
