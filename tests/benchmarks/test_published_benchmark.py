"""The benchmark on published data: what it lays out, what it refuses, and the order of its table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.published import __main__ as benchmark
from benchmarks.published import data
from modules.errors import UserError

SEQUENCES = b"1 7 10 9\n2 9 7 8\n"
ATTRIBUTES = json.dumps({"7": [3, 1, 3], "8": [2], "9": []}).encode()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small files of LastFM's names, which are taken for the right ones."""
    known = dataclasses.replace(
        data.DATA_SETS["lastfm"],
        sequences_sha256=hashlib.sha256(SEQUENCES).hexdigest(),
        attributes_sha256=hashlib.sha256(ATTRIBUTES).hexdigest(),
        users=2,
        items=4,
    )
    monkeypatch.setitem(data.DATA_SETS, "lastfm", known)
    (tmp_path / known.sequences).write_bytes(SEQUENCES)
    (tmp_path / known.attributes).write_bytes(ATTRIBUTES)
    return tmp_path


def test_tables_have_the_order_of_the_sequences_and_each_attribute_once(source: Path):
    data.lay_out("lastfm", source / "out", source)
    rows = pq.read_table(source / "out/interactions.parquet").to_pylist()
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in rows] == [
        ("1", "7", 0), ("1", "10", 1), ("1", "9", 2), ("2", "9", 0), ("2", "7", 1), ("2", "8", 2)
    ]  # fmt: skip
    items = pq.read_table(source / "out/items.parquet").to_pylist()
    assert {row["item_id"]: row["attributes"] for row in items} == {"7": ["3", "1"], "8": ["2"], "9": [], "10": []}


def test_another_file_than_the_papers_used_is_refused(source: Path):
    (source / "LastFM.txt").write_bytes(SEQUENCES + b"3 7 8 9\n")
    with pytest.raises(UserError, match=r"LastFM\.txt is torn or another file"):
        data.lay_out("lastfm", source / "out", source)
    assert not (source / "out").exists()


def test_a_folder_without_the_files_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["--from", str(tmp_path), "--data", "beauty", "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "Beauty.txt: No such file" in told and "--from" in told


def test_the_best_ndcg_is_first_and_ours_has_its_deviation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    runs = [{"hit_rate": 0.07, "ndcg": ndcg, "users": 1090.0, "fit_seconds": 10.0} for ndcg in (0.0428, 0.0430)]
    benchmark.render("lastfm", runs)
    lines = [line for line in capsys.readouterr().out.splitlines() if "0.0" in line]
    systems = [line.split()[1] for line in lines]
    assert systems == ["BSARec", "ours,", "S3-Rec", "SASRec", "BERT4Rec"]
    assert "0.0429 ±0.0001" in lines[1] and "1,090 users" in lines[1]
