"""The judge refuses what it did not ask for, and measures as counting by hand does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import world

from benchmarks.quality import __main__ as command
from benchmarks.quality import protocols, worker
from benchmarks.quality.judge import ANSWER, Protocol, RefusedAnswerError, start
from benchmarks.quality.systems import popular
from benchmarks.quality.tables import Tables, read
from pipeline.config import load

REPORT = {"settings": {}, "tune_seconds": 0.0, "fit_seconds": 0.0}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("tables")
    world.write_parquet(folder)
    return read(load(world.write_config(folder)))


@pytest.fixture
def random_split(tables: Tables, tmp_path: Path) -> Protocol:
    return Protocol("random", tables, 1, tmp_path / "task")


def popular_answers(protocol: Protocol, output: Path) -> pd.DataFrame:
    worker.run(popular.Popular(), protocol.task, output, [1], budget=60)
    return pd.read_parquet(output / "recommendations.parquet")


def test_a_table_of_either_format_is_read_as_the_same(tables: Tables, tmp_path: Path) -> None:
    world.write_csv(tmp_path)
    other = read(load(world.write_config(tmp_path, "csv")))
    pd.testing.assert_frame_equal(other.interactions, tables.interactions)
    pd.testing.assert_frame_equal(other.items, tables.items)
    assert tables.items["content"].iloc[0] == ["action", "film", "1", "genres=Action"]


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_the_folder_of_a_system_holds_no_test_row(tables: Tables, tmp_path: Path, name: str) -> None:
    protocol = Protocol(name, tables, 1, tmp_path)
    held = set(protocol.cut.test[["user", "item"]].itertuples(index=False, name=None))
    assert held
    for part in ("train", "history"):
        rows = pd.read_parquet(tmp_path / f"{part}.parquet")
        assert not held & set(rows[["user", "item"]].itertuples(index=False, name=None))
    asked = pd.read_parquet(tmp_path / "queries.parquet")
    assert list(asked) == ["user", "timestamp"]
    assert set(asked["user"]) == set(protocol.relevant)


def test_the_pipelines_tables_are_the_original_rows_with_their_split(tables: Tables, tmp_path: Path) -> None:
    for name in protocols.PROTOCOLS:
        protocol = Protocol(name, tables, 1, tmp_path / name)
        rows = pd.read_parquet(protocol.write_pipeline_tables(tmp_path / name) / "interactions.parquet")
        original = tables.raw.to_pandas()
        cut = protocol.cut
        used = original.loc[sorted([*cut.train.index, *cut.test.index])].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows[list(original)], used)
        assert (rows["split"] == "eval").sum() == len(cut.test)
        train = rows[rows["split"] != "eval"].astype({"user_id": str, "item_id": str})
        assert (train[["user_id", "item_id"]].to_numpy() == cut.train[["user", "item"]].to_numpy()).all()
        validation = rows["split"] == "validation"
        assert 0 < validation.sum() < 0.25 * len(rows)
        served = pd.read_parquet(tmp_path / name / "history.parquet").astype({"user_id": str, "item_id": str})
        assert (served[["user_id", "item_id"]].to_numpy() == cut.history[["user", "item"]].to_numpy()).all()


def test_measures_as_counting_by_hand(tables: Tables, tmp_path: Path) -> None:
    protocol = Protocol("random", tables, 1, tmp_path / "task")
    (row,) = protocol.judge("popular", popular_answers(protocol, tmp_path / "out"), REPORT)
    train, test = protocol.cut.train, protocol.cut.test
    counts = train["item"].value_counts().to_dict()
    place = {item: n for n, item in enumerate(tables.items.sample(frac=1, random_state=0)["item"])}
    order = sorted(place, key=lambda item: (-counts.get(item, 0), place[item]))
    gains, recalls = [], []
    for user in test["user"].unique():
        seen = set(train["item"][train["user"] == user])
        wanted = set(test["item"][test["user"] == user]) - seen
        if not wanted:
            continue
        ranking = [item for item in order if item not in seen]
        gain = sum(1 / math.log2(n + 2) for n in range(10) if ranking[n] in wanted)
        gains.append(gain / sum(1 / math.log2(n + 2) for n in range(min(10, len(wanted)))))
        recalls.append(len(wanted & set(ranking[:10])) / len(wanted))
    assert row.queries == len(gains)
    assert row.mean["ndcg@10"] == pytest.approx(np.mean(gains))
    assert row.mean["recall@10"] == pytest.approx(np.mean(recalls))
    assert row.mean["recall@100"] == pytest.approx(1.0)  # the catalogue has 80 items
    assert row.deviation is None


def test_slices_are_of_users_with_short_middling_and_long_histories(tables: Tables, tmp_path: Path) -> None:
    protocol = Protocol("random", tables, 1, tmp_path / "task")
    answers = popular_answers(protocol, tmp_path / "out")
    (row,) = protocol.judge("popular", answers, REPORT)
    lengths = protocol.cut.train.groupby("user")["item"].nunique().reindex(list(protocol.relevant), fill_value=0)
    low, high = sorted(lengths)[(len(lengths) - 1) // 3], sorted(lengths)[2 * (len(lengths) - 1) // 3]
    thirds = [lengths[lengths <= low], lengths[(lengths > low) & (lengths <= high)], lengths[lengths > high]]
    assert all(len(third) for third in thirds)
    share = np.array([len(third) for third in thirds]) / len(lengths)
    assert row.mean["ndcg@10"] == pytest.approx(share @ [part["ndcg@10"] for part in row.slices.values()])
    for third, part in zip(thirds, row.slices.values(), strict=True):
        top = answers[(answers["rank"] <= 10) & answers["user"].isin(third.index)]
        assert part["coverage@10"] == pytest.approx(top["item"].nunique() / len(tables.items))


def test_temporal_users_are_judged_apart(tables: Tables, tmp_path: Path) -> None:
    rows = tables.interactions
    late = rows.loc[rows["timestamp"].nlargest(20).index].assign(user=lambda r: "new " + r["user"])
    mixed = Tables(pd.concat([rows, late], ignore_index=True), tables.items, tables.users, tables.raw)
    protocol = Protocol("temporal", mixed, 1, tmp_path / "task")
    warm, cold = protocol.judge("popular", popular_answers(protocol, tmp_path / "out"), REPORT)
    assert (warm.protocol, cold.protocol) == ("temporal, warm users", "temporal, cold users")
    assert cold.queries == late["user"].nunique()
    assert warm.queries + cold.queries == len(protocol.relevant)


def test_cold_items_are_ranked_among_all_and_among_themselves(tables: Tables, tmp_path: Path) -> None:
    protocol = Protocol("cold-items", tables, 1, tmp_path / "task")
    answers = popular_answers(protocol, tmp_path / "out")
    among = answers[answers["ranking"] == "cold"]
    assert set(among["item"]) == set(protocol.cut.candidates)
    whole, cold = protocol.judge("popular", answers, REPORT)
    assert cold.protocol == "cold-items, among cold items"
    assert whole.mean["ndcg@10"] == 0.0 < cold.mean["ndcg@10"]


def _first(answers: pd.DataFrame, place: int = 0) -> int:
    return answers.index[answers["user"] == answers["user"].iloc[0]][place]


def unknown_item(answers: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    return answers.assign(item=answers["item"].where(answers.index != _first(answers), "no such film"))


def twice(answers: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    again = answers["item"][_first(answers, 1)]
    return answers.assign(item=answers["item"].where(answers.index != _first(answers), again))


def too_few(answers: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    return answers.drop(index=_first(answers, 3))


def nobody(answers: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    return answers[answers["user"] != answers["user"].iloc[0]]


def seen(answers: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    user = answers["user"].iloc[0]
    own = protocol.cut.train["item"][protocol.cut.train["user"] == user].iloc[0]
    return answers.assign(item=answers["item"].where(answers.index != _first(answers), own))


@pytest.mark.parametrize(
    "garbage, words",
    [
        (unknown_item, "item 'no such film', which is not one of the items to choose from"),
        (twice, "twice"),
        (too_few, "items, not"),
        (nobody, "0 items"),
        (seen, "of their own history"),
    ],
)
def test_garbage_is_refused_with_a_reason(random_split: Protocol, tmp_path: Path, garbage, words) -> None:
    answers = popular_answers(random_split, tmp_path / "out")
    user = answers["user"].iloc[0]
    with pytest.raises(RefusedAnswerError, match=rf"^random, seed 1: user '{user}' got .*{words}"):
        random_split.judge("popular", garbage(answers, random_split), REPORT)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--systems", "ours,oracle"], "--systems: there is no 'oracle'; known are ours, sasrec"),
        (["--protocols", "k-fold"], "--protocols: there is no 'k-fold'"),
        (["--protocols", ""], "--protocols: name at least one"),
        (["--seeds", "0"], "--seeds: expected a number from 1, not '0'"),
        (["--seeds", "many"], "--seeds: expected a number from 1, not 'many'"),
        (["--budget", "-1"], "--budget: expected a number from 0, not '-1'"),
        (["--budget", "nan"], "--budget: expected a number from 0, not 'nan'"),
        (["--draw", "2.5"], "--draw: expected a number from 0, not '2.5'"),
        (["--config", "nowhere.yaml"], "configuration nowhere.yaml: No such file"),
        (["--sedes", "3"], "unrecognized arguments: --sedes 3"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments, words) -> None:
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("bench-quality: ") and words in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_command_prints_one_table_writes_it_and_reuses_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write_parquet(tmp_path)
    results = tmp_path / "results"
    arguments = ["--config", world.write_config(tmp_path), "--protocols", "cold-items", "--seeds", "2",
                 "--systems", "content-knn,random", "--output", str(results)]  # fmt: skip
    assert command.main(arguments) == 0
    first = capsys.readouterr()
    found = json.loads((results / "results.json").read_text())
    content, random = found["rows"][0], found["rows"][2]
    assert (content["system"], random["system"]) == ("content-knn", "random")
    # Everybody's taste is a genre, and the content says it; a draw knows nothing.
    among = {(row["system"], row["protocol"]): row["mean"]["ndcg@10"] for row in found["rows"]}
    assert among["content-knn", "cold-items, among cold items"] > 0.8
    assert among["random", "cold-items, among cold items"] < 0.6
    assert content["deviation"] is None and random["deviation"]["ndcg@10"] > 0
    assert set(content["settings"]) == {"recency", "min_items"}
    markdown = (results / "results.md").read_text()
    for text in (first.out, markdown):
        assert f"{content['mean']['ndcg@10']:.4f}" in text and "item-kNN on content" in text

    assert command.main(arguments) == 0
    again = capsys.readouterr()
    assert again.err.count("re-used") == 2
    assert json.loads((results / "results.json").read_text())["rows"] == found["rows"]


def test_a_system_that_ends_without_an_answer_has_failed(tmp_path: Path) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho told to end\n")
    python.chmod(0o755)
    output = tmp_path / "output"
    output.mkdir()
    (output / ANSWER).write_text("of an earlier run")
    with pytest.raises(RuntimeError, match="told to end"):
        start("popular", tmp_path, output, [], tmp_path)
