"""`twotower batch --for-ranker`: rows for a ranking model, against what the small world's tables say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import world
from e2e_runs import Outcome, Small, twotower

from modules.data.examples import RELEVANT
from pipeline import ranker_hand_off, runs
from pipeline.config import load
from pipeline.ranker_hand_off import Wanted
from pipeline.ranker_rows import Rows
from pipeline.recommender import Recommender, Request

pytestmark = pytest.mark.slow

K = 20


def hand_off(small: Small, output: Path, *arguments: str) -> Outcome:
    run = small.outcome.answer["run"]
    return twotower("batch", "--config", small.config_path, "--for-ranker", "--run", run, "--output", str(output),
                    "--k", str(K), *arguments)  # fmt: skip


def table(folder: Path, name: str) -> pd.DataFrame:
    return pq.read_table(folder / name).to_pandas()


def asked(place: int) -> dict[str, tuple[int, list[str], str]]:
    """By user: the time, the history and the item of the query that asks for the so many last interaction."""
    by_user: dict[str, list[dict]] = {}
    for row in world.interactions():
        by_user.setdefault(str(row["user_id"]), []).append(row)
    return {
        user: (rows[place]["timestamp"], [str(row["item_id"]) for row in rows[:place]], str(rows[place]["item_id"]))
        for user, rows in by_user.items()
    }


@pytest.fixture(scope="module")
def everything(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """All rows of eval, in two shards, and what the command says of them."""
    folder = tmp_path_factory.mktemp("ranker") / "eval"
    outcome = hand_off(small, folder, "--split", "eval", "--shards", "2")
    assert outcome.code == 0, outcome.errors
    return folder, outcome.answer


def test_rows_are_what_the_servable_answers_and_the_tables_say(small: Small, everything: tuple[Path, dict]):
    folder, answer = everything
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet")) == [
        f"{name}/part-{shard:05d}-of-00002.parquet" for name in ("candidates", "queries") for shard in (0, 1)
    ]
    rows, queries, expected = table(folder, "candidates"), table(folder, "queries"), asked(-1)
    assert sorted(queries["query"]) == sorted(f"{user}/0" for user in expected)
    people = {str(person["user_id"]): person for person in world.users()}
    films = {str(film["item_id"]): film for film in world.items()}
    # The same questions by the way of the commands, from the tables.
    times = {str(r["user_id"]): [] for r in world.interactions()}
    for row in world.interactions():
        times[str(row["user_id"])].append(row["timestamp"])
    requests = [
        Request({"user_id": user, "age": people[user]["age"], "gender": people[user]["gender"], "timestamp": time},
                history, newest=times[user][-2])
        for user, (time, history, _) in expected.items()
    ]  # fmt: skip
    model = Recommender(load(small.config_path), version=answer["model_version"])
    answers = dict(zip(expected, model.recommend(requests), strict=True))

    assert len(rows) == answer["rows"] == world.USERS * K
    found = 0
    for query, of_query in rows.groupby("query"):
        user = query.removesuffix("/0")
        time, history, item = expected[user]
        assert of_query["item"].tolist() == [r.item_id for r in answers[user]]
        assert of_query["rank"].tolist() == list(range(1, K + 1))
        np.testing.assert_allclose(of_query["score"], [r.score for r in answers[user]], rtol=1e-4, atol=1e-4)
        assert of_query["label"].tolist() == [int(candidate == item) for candidate in of_query["item"]]
        assert set(of_query["user"]) == {user} and set(of_query["time"]) == {time} and set(of_query["weight"]) == {1.0}
        assert set(of_query["query_age"]) == {people[user]["age"]}
        assert set(of_query["query_gender"]) == {people[user]["gender"]}
        assert set(of_query["query_history_age"]) == {np.float32(time - times[user][-2])}
        of_items = [films[candidate] for candidate in of_query["item"]]
        assert [list(genres) for genres in of_query["item_genres"]] == [film["genres"] for film in of_items]
        assert of_query["item_price"].tolist() == pytest.approx([film["price"] for film in of_items])
        assert of_query["item_title"].tolist() == [film["title"] for film in of_items]
        [own] = queries[queries["query"] == query].to_dict("records")
        assert list(own["history"]) == history and list(own["relevant_items"]) == [item] and own["time"] == time
        found += item in set(of_query["item"])
    assert answer["queries"] == world.USERS and answer["positives"] == rows["label"].sum() == found
    assert answer[f"recall@{K}"] == pytest.approx(found / world.USERS)
    assert answer["missed"] == world.USERS - found and answer["injected"] == 0 and answer["note"] == ""
    # What the gate has measured on the same queries.
    assert answer[f"recall@{K}"] == pytest.approx(small.outcome.answer["metrics"]["overall"][f"recall@{K}"])


def test_each_column_says_what_it_is(small: Small, everything: tuple[Path, dict]):
    folder, answer = everything
    schemas = {name: [pq.read_schema(file) for file in sorted((folder / name).iterdir())]
               for name in ("candidates", "queries")}  # fmt: skip
    for one, other in schemas.values():
        assert one.equals(other, check_metadata=True)
        assert all(field.metadata[b"description"] for field in one)
    roles = {name: {field.name: field.metadata[b"role"].decode() for field in of_table[0]}
             for name, of_table in schemas.items()}  # fmt: skip
    assert [name for name, role in roles["candidates"].items() if role == "label"] == ["label"]
    assert [name for name, role in roles["queries"].items() if role == "label"] == ["relevant_items"]
    assert {role for name, role in roles["candidates"].items() if name.startswith("item_")} == {"item"}
    facts = schemas["candidates"][0].metadata
    assert facts[b"split"] == b"eval" and facts[b"run"].decode() == small.outcome.answer["run"]
    assert facts[b"model_version"].decode() == str(answer["model_version"])


def test_another_label_leaves_what_is_retrieved(small: Small, everything: tuple[Path, dict], tmp_path: Path):
    config = load(small.config_path)
    run = runs.read_run(config, small.outcome.answer["run"])
    task = ranker_hand_off.task_of(config, run, Wanted("eval", K))
    for split in ("eval", "catalogue"):
        (tmp_path / f"Split-{split}").mkdir()
        written = str(tmp_path / f"Split-{split}" / "data.gz")
        with tf.io.TFRecordWriter(written, "GZIP") as writer:
            [file] = Path(task.examples, f"Split-{split}").iterdir()
            for serialized in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator():
                example = tf.train.Example.FromString(serialized)
                if split == "eval":
                    # What the servable shows first, and what is no item at all.
                    user = example.features.feature["user_id"].bytes_list.value[0].decode()
                    rows = table(everything[0], "candidates")
                    first = rows[(rows["user"] == user) & (rows["rank"] == 1)]["item"].iloc[0]
                    example.features.feature[RELEVANT].bytes_list.value[:] = [first.encode(), b"nothing"]
                writer.write(example.SerializeToString())
    changed = dataclasses.replace(task, examples=str(tmp_path))
    counts = ranker_hand_off.carry_out(config, changed, str(tmp_path / "rows"))
    before, after = (
        table(folder, "candidates").sort_values(["query", "rank"], ignore_index=True)
        for folder in (everything[0], tmp_path / "rows")
    )
    assert counts.positives == world.USERS and counts.recall == world.USERS / 2
    assert after["label"].tolist() == (after["rank"] == 1).astype(int).tolist()
    assert not after["label"].equals(before["label"])
    scores = before.pop("score"), after.pop("score")
    np.testing.assert_allclose(*scores, atol=1e-5)
    pd.testing.assert_frame_equal(before.drop(columns="label"), after.drop(columns="label"))


def test_negatives_are_sampled_and_missed_items_injected_when_asked(
    small: Small, everything: tuple[Path, dict], tmp_path: Path
):
    outcome = hand_off(small, tmp_path / "few", "--split", "eval", "--negatives", "3", "--inject-missed")
    assert outcome.code == 0, outcome.errors
    rows, whole = table(tmp_path / "few", "candidates"), table(everything[0], "candidates")
    truth = asked(-1)
    config = load(small.config_path)
    model = Recommender(config, version=outcome.answer["model_version"])
    kept: Counter[int] = Counter()
    injected = rows[rows["rank"].isna()]
    retrieved = rows[rows["rank"].notna()].merge(whole, on=["query", "rank"], suffixes=("", "_of_all"))
    assert len(retrieved) == len(rows) - len(injected)
    assert (retrieved["item"] == retrieved["item_of_all"]).all()
    for query, of_query in rows.groupby("query"):
        hit = (whole[whole["query"] == query]["label"]).sum()
        negatives = of_query[of_query["label"] == 0]
        assert len(negatives) == 3 and of_query["label"].sum() == 1, "all positives, three of the others"
        assert of_query["weight"].sum() == pytest.approx(K - hit + 1), "the weights stand for all rows"
        assert of_query["rank"].dropna().is_monotonic_increasing
        kept.update(negatives["rank"].astype(int))
    # 160 draws of 3 among 19 or 20 places: about 24 for each place.
    assert len(kept) == K and min(kept.values()) > 8 and max(kept.values()) < 48
    assert outcome.answer["injected"] == outcome.answer["missed"] == len(injected) > 0
    assert injected["item"].tolist() == [truth[user][2] for user in injected["user"]]
    assert (injected["label"] == 1).all() and (injected["weight"] == 1).all()
    worst = whole.groupby("query")["score"].min()
    assert (injected["score"].to_numpy() <= worst[injected["query"]].to_numpy() + 1e-4).all(), "or it had been found"
    assert injected["item_title"].notna().all() and model.version == outcome.answer["model_version"]


def test_queries_of_validation_know_less_and_are_marked(small: Small, tmp_path: Path):
    outcome = hand_off(small, tmp_path / "rows", "--split", "validation")
    assert outcome.code == 0 and "chosen the epochs" in outcome.answer["note"], outcome.errors
    queries, expected = table(tmp_path / "rows", "queries"), asked(-2)
    for own in queries.to_dict("records"):
        time, history, item = expected[own["user"]]
        assert (own["time"], list(own["history"]), list(own["relevant_items"])) == (time, history, [item])


def test_a_worker_that_fails_leaves_nothing(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object) -> None:
        raise RuntimeError("the worker's last words")

    monkeypatch.setattr(Rows, "tables", fail)
    outcome = hand_off(small, tmp_path / "rows", "--split", "eval")
    assert outcome.code == 1 and "the worker's last words" in outcome.errors and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--for-ranker"], "say whose queries with --split eval"),
        (["--for-ranker", "--split", "eval", "--users", "u.txt"], "--users: not with --for-ranker"),
        (["--for-ranker", "--split", "eval", "--time", "5"], "--time: not with --for-ranker"),
        (["--for-ranker", "--split", "train"], "'train'"),
        (["--negatives", "3"], "--negatives: only with --for-ranker"),
        (["--inject-missed"], "--inject-missed: only with --for-ranker"),
        (["--for-ranker", "--split", "eval", "--k", "21"], "raise serving.k"),
        (["--for-ranker", "--split", "eval", "--run", "none"], "not in the metadata store"),
        (["--for-ranker", "--split", "eval", "--output", "."], "has files already; name a new folder"),
        (["--for-ranker", "--split", "eval", "--set", "output.root=elsewhere"], "nothing has run yet"),
    ],
)
def test_a_mistake_is_one_line(small: Small, tmp_path: Path, arguments: list[str], words: str):
    where = [] if "--output" in arguments else ["--output", str(tmp_path / "rows")]
    k = [] if "--k" in arguments else ["--k", "5"]
    run = ["--run", small.outcome.answer["run"]] if "--for-ranker" in arguments and "--run" not in arguments else []
    outcome = twotower("batch", "--config", small.config_path, *where, *k, *run, *arguments)
    assert outcome.code == 2 and words in outcome.errors and outcome.errors.count("\n") == 1, outcome.errors
    assert not list(tmp_path.iterdir()) and not Path("elsewhere").exists()
