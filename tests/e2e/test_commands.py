"""What a person does after a run: recommend, similar, batch, runs, schema."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import world
from e2e_runs import Small, twotower, versions

from pipeline import cli
from pipeline.config import load
from pipeline.recommender import Recommender

pytestmark = pytest.mark.slow

PORTABLE = "beam={runner: portable, job_endpoint: 'localhost:1', worker_pool: 'localhost:1'}"
DATAFLOW = "beam={runner: dataflow, project: p, region: r, temp_location: 'gs://b/t', worker_image: i}"


def history(user: int) -> list[str]:
    return [str(r["item_id"]) for r in world.interactions() if r["user_id"] == user]


def items(small: Small, *arguments: str) -> list[dict]:
    outcome = twotower("recommend", "--config", small.config_path, *arguments)
    assert outcome.code == 0, outcome.errors
    return outcome.answer["items"]


def test_a_known_user_gets_titles_of_the_own_taste_and_nothing_seen(small: Small):
    answer = items(small, "--user", "42", "--k", "5")
    assert len(answer) == 5
    assert not {r["item_id"] for r in answer} & set(history(42))
    taste = world.TASTES[(42 - 1) % 4]
    assert sum(r["title"].startswith(taste) for r in answer) >= 4
    assert [r["score"] for r in answer] == sorted((r["score"] for r in answer), reverse=True)


def test_an_unknown_user_with_a_history_gets_that_taste(small: Small):
    drama = [str(i + 1) for i in range(world.ITEMS) if world.TASTES[i % 4] == "Drama"][:6]
    answer = items(small, "--user", "nobody", "--history", ",".join(drama), "--k", "5")
    assert sum(r["title"].startswith("Drama") for r in answer) >= 4
    assert not {r["item_id"] for r in answer} & set(drama)


def test_an_anonymous_request_gets_an_answer(small: Small):
    outcome = twotower("recommend", "--config", small.config_path, "--k", "20")
    assert outcome.code == 0 and len(outcome.answer["items"]) == 20
    outcome = twotower("recommend", "--config", small.config_path, "--user", "stranger")
    assert outcome.code == 0 and "has no history" in outcome.answer["note"]


def test_the_table_and_the_clock_tell_the_age_of_a_history(small: Small):
    config = load(small.config_path)
    last = max(row["timestamp"] for row in world.interactions() if row["user_id"] == 3)
    month = 30 * 86_400

    def scores(age: int, **values: float) -> dict[str, float]:
        recommender = Recommender(config, now=last + age)
        (answer,) = recommender.recommend([recommender.request("3", values={"timestamp": last + age} | values)])
        return {item.item_id: item.score for item in answer}

    for age in (0, month):
        assert scores(age) == scores(age, history_age=age)
    assert scores(0) != scores(0, history_age=month)
    # A history that is newer than the clock is of this moment, and so is one that comes with the request.
    assert scores(-month) == scores(-month, history_age=0)
    assert Recommender(config).request("3", history=["1"]).newest is None


def test_an_explanation_adds_up_and_names_films_of_the_history(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    titles = {str(row["item_id"]): row["title"] for row in world.items()}
    for item in items(small, "--user", "42", "--k", "3", "--explain"):
        parts = item["explanation"]["parts"]
        assert all(part["exact"] for part in parts)
        assert sum(part["score"] for part in parts) == pytest.approx(item["score"], abs=1e-4)
        reasons = item["explanation"]["reasons"]
        assert len(reasons) == 5 and item["explanation"]["reasons_exact"]
        assert all(r["item_id"] in history(42) and r["title"] == titles[r["item_id"]] for r in reasons)
    arguments = ["--config", small.config_path, "--user", "42", "--k", "1", "--explain"]
    assert cli.main(["recommend", *arguments]) == 0
    shown = capsys.readouterr().out
    assert " history " in shown and f"because of {titles[reasons[0]['item_id']]}"[:15] in shown
    # A version of before.
    pushed = small.serve_in(tmp_path)
    (pushed / "assets.extra" / "manifest.json").unlink()
    described = pushed / "assets.extra" / "servable.json"
    contract = json.loads(described.read_text())
    del contract["signatures"]["explain"]
    described.write_text(json.dumps(contract))
    outcome = twotower("recommend", *arguments, "--set", f"output.push={tmp_path}")
    assert outcome.code == 2 and "--explain: version" in outcome.errors and outcome.errors.count("\n") == 1


def test_exclude_and_filter(small: Small):
    first = [r["item_id"] for r in items(small, "--user", "7", "--k", "3")]
    rest = [r["item_id"] for r in items(small, "--user", "7", "--exclude", ",".join(first), "--k", "10")]
    assert not set(first) & set(rest)
    war = items(small, "--user", "7", "--filter", "genres=War", "--k", "5")
    assert len(war) == 5 and all(r["title"].startswith("War") for r in war)


def test_similar_items_share_the_genre_and_leave_out_the_item(small: Small):
    outcome = twotower("similar", "--config", small.config_path, "--item", "1", "--k", "5")
    assert outcome.code == 0, outcome.errors
    assert "1" not in {r["item_id"] for r in outcome.answer["items"]}
    assert sum(r["title"].startswith("Action") for r in outcome.answer["items"]) >= 4


def test_batch_writes_every_users_top_k(small: Small, tmp_path: Path):
    output = tmp_path / "top.parquet"
    outcome = twotower("batch", "--config", small.config_path, "--k", "7", "--output", str(output))
    assert outcome.code == 0, outcome.errors
    table = pq.read_table(output)
    assert table.column_names == ["user_id", "rank", "item_id", "score", "model_version"]
    rows = table.to_pylist()
    assert len(rows) == world.USERS * 7
    assert {str(r["model_version"]) for r in rows} <= set(versions(small.folder))
    by_user: dict[str, list[dict]] = {}
    for row in rows:
        by_user.setdefault(row["user_id"], []).append(row)
    for user in ("1", "42", "160"):
        assert [r["rank"] for r in by_user[user]] == list(range(1, 8))
        assert not {r["item_id"] for r in by_user[user]} & set(history(int(user)))
        # The same question, asked alone, has the same answer.
        assert [r["item_id"] for r in by_user[user]] == [r["item_id"] for r in items(small, "--user", user, "--k", "7")]


def test_batch_as_of_a_time(small: Small, tmp_path: Path):
    tables = []
    for number, time in enumerate(("2020-09-13T12:26:40", "1600000000", "2020-09-13T14:26:40+02:00", "1600030000")):
        path = str(tmp_path / f"{number}.parquet")
        outcome = twotower("batch", "--config", small.config_path, "--k", "7", "--time", time, "--output", path)
        assert outcome.code == 0, outcome.errors
        tables.append(pq.read_table(path))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    assert not tables[0].equals(tables[3]), "the time of day is a feature"


def test_batch_for_a_list_of_users(small: Small, tmp_path: Path):
    users = tmp_path / "users.txt"
    users.write_text("3\n\nstranger\n")
    output = tmp_path / "new folder" / "top.parquet"
    arguments = ["batch", "--config", small.config_path, "--k", "2", "--output", str(output), "--users", str(users)]
    assert twotower(*arguments).answer["users"] == 2
    assert pq.read_table(output)["user_id"].to_pylist() == ["3", "3", "stranger", "stranger"]


def awkward_tables(folder: Path) -> list[str]:
    """The small world in files and row groups of its own, with rows that a run would refuse or drop; as options."""
    rows = pa.Table.from_pylist(world.interactions())
    odd = {"item_id": [5, 5, None, 7, 999, 3], "rating": [1.0] * 6,
           "user_id": [None, 3, 3, 9001, 4, 4], "timestamp": [world.START, None, world.START, 5, 6, 6]}  # fmt: skip
    # More at one time than the model reads: the order of the table says which of them are the newest.
    at_once = {
        "item_id": list(range(1, 41)),
        "rating": [1.0] * 40,
        "user_id": [42] * 40,
        "timestamp": [1_690_000_000] * 40,
    }
    odd_rows = pa.table(
        {name: pa.array(odd[name] + at_once[name], rows.schema.field(name).type) for name in rows.column_names}
    )
    for number, part in enumerate((rows.slice(0, 1000), pa.concat_tables([rows.slice(1000), odd_rows]))):
        pq.write_table(part, folder / f"interactions-{number}.parquet", row_group_size=[300, 5][number])
    ages = [{"user_id": user, "age": 30, "gender": "F"} for user in (9002, 9003)]
    known = [*world.users()[5:], *ages, {"user_id": 42, "age": 60, "gender": "F"}, {"user_id": None}]
    pq.write_table(pa.Table.from_pylist(known), folder / "users.parquet", row_group_size=20)
    values = {"interactions.path": folder / "interactions-*.parquet", "users.path": folder / "users.parquet",
              "interactions.weight": "rating"}  # fmt: skip
    return [option for key, value in values.items() for option in ("--set", f"tables.{key}={value}")]


def in_order(path: Path) -> list[dict]:
    return sorted(pq.read_table(path).to_pylist(), key=lambda row: (row["user_id"], row["rank"]))


@pytest.mark.parametrize("users", [None, "3\n42\nstranger\n9001\n3\n9002\n"])
@pytest.mark.parametrize("time", ["1600000000", "1640000000"])
def test_shards_have_the_rows_of_the_file(small: Small, tmp_path: Path, users: str | None, time: str):
    options = ["--config", small.config_path, *awkward_tables(tmp_path), "--k", "7", "--time", time]
    if users is not None:
        (tmp_path / "users.txt").write_text(users)
        options += ["--users", str(tmp_path / "users.txt")]
    file, folder = tmp_path / "top.parquet", tmp_path / "new" / "top"
    whole = twotower("batch", *options, "--output", str(file))
    cut = twotower("batch", *options, "--output", str(folder), "--shards", "5")
    assert whole.code == cut.code == 0, whole.errors + cut.errors
    assert whole.answer["users"] == cut.answer["users"] == (world.USERS + 3 if users is None else 6)
    expected, found = in_order(file), in_order(folder)
    assert [row.pop("score") for row in found] == pytest.approx([row.pop("score") for row in expected], abs=1e-5)
    assert found == expected and {row["user_id"] for row in found} >= {"3", "42", "9001", "9002"}
    parts = sorted(folder.iterdir())
    assert [part.name for part in parts] == [f"part-{n:05d}-of-00005.parquet" for n in range(5)]
    of_parts = [set(pq.read_table(part)["user_id"].to_pylist()) for part in parts]
    assert sum(map(len, of_parts)) == len(set.union(*of_parts)), "a user is in one shard"
    assert users is not None or all(of_parts)


def test_shards_can_fill_an_empty_folder_and_be_more_than_the_users(small: Small, tmp_path: Path):
    (tmp_path / "users.txt").write_text("3\n")
    (tmp_path / "top").mkdir()
    options = ["--config", small.config_path, "--k", "2", "--shards", "3", "--users", str(tmp_path / "users.txt")]
    assert twotower("batch", *options, "--output", f"{tmp_path}/top/").code == 0
    tables = [pq.read_table(part) for part in sorted((tmp_path / "top").iterdir())]
    assert sorted(table.num_rows for table in tables) == [0, 0, 2] and len({str(table.schema) for table in tables}) == 1


def test_a_worker_that_fails_leaves_no_shards(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, written = Recommender.write_batch, []

    def fail_later(self: Recommender, path: str, *arguments: object) -> int:
        if written:
            assert Path(written[0]).exists()
            raise RuntimeError("the worker's last words")
        written.append(path)
        return write(self, path, *arguments)

    monkeypatch.setattr(Recommender, "write_batch", fail_later)
    options = ["--config", small.config_path, "--k", "2", "--shards", "3", "--output", str(tmp_path / "top")]
    outcome = twotower("batch", *options)
    reason, log = outcome.errors.splitlines()
    assert outcome.code == 1 and "the worker's last words" in reason and "Traceback" not in reason
    assert "last words" in Path(log.rpartition(" ")[2]).read_text()
    assert written and not list(tmp_path.iterdir())


def test_a_table_that_workers_cannot_read_is_one_line_and_leaves_no_shards(small: Small, tmp_path: Path):
    options = awkward_tables(tmp_path)
    torn = tmp_path / "interactions-1.parquet"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:100] + b"\xff" * 300 + whole[400:])
    before = sorted(tmp_path.iterdir())
    outcome = twotower("batch", "--config", small.config_path, *options, "--k", "2", "--shards", "3",
                       "--output", str(tmp_path / "top"))  # fmt: skip
    assert outcome.code == 2 and outcome.errors.count("\n") == 1, outcome.errors
    assert f"tables.interactions.path: {torn} cannot be read" in outcome.errors
    assert sorted(tmp_path.iterdir()) == before


def test_runs_has_metrics_and_lineage(small: Small):
    listed = twotower("runs", "--config", small.config_path)
    assert listed.code == 0 and listed.answer
    run = next(r for r in listed.answer if r["run"] == small.outcome.answer["run"])
    assert run["metrics"] == small.outcome.answer["metrics"] and run["pushed"] == small.outcome.answer["pushed"]
    shown = twotower("runs", "--config", small.config_path, run["run"]).answer
    read = {(stage, maker) for stage, _, maker in shown["lineage"]}
    assert {("Trainer", "Transform"), ("ScannIndexBuilder", "Trainer"), ("Evaluator", "ScannIndexBuilder")} <= read


def test_the_schema_can_be_taken_out_and_enforced(small: Small, tmp_path: Path):
    path = tmp_path / "schema.pbtxt"
    assert twotower("schema", "--config", small.config_path, "--output", str(path)).code == 0
    text = path.read_text()
    assert 'name: "gender"' in text
    # A schema that knows of no women: the data are not what it says, and nothing is trained. In a copy of the store:
    # the last run's schema is what `twotower schema` gives to other tests.
    path.write_text(text.replace('value: "F"', ""))
    shutil.copytree(small.folder / "runs", tmp_path / "runs")
    settings = ["--set", f"schema.path={path}", "--set", f"output.root={tmp_path / 'runs'}"]
    outcome = twotower("run", "--config", small.config_path, *settings)
    assert outcome.code == 2
    assert "gender" in outcome.errors and "F" in outcome.errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recommend", "--user", "1", "--k", "21"], "raise serving.k"),
        (["recommend", "--user", "1", "--k", "0"], "1 to 20"),
        (["recommend", "--user", "1", "--filter", "colour=red"], "filters by genres"),
        (["recommend", "--feature", "age"], "expected column=value"),
        (["recommend", "--feature", "age=old"], "expected a number"),
        (["recommend", "--feature", "age="], "expected a number"),
        (["recommend", "--feature", "age=nan"], "expected a number"),
        (["recommend", "--feature", "age=-inf"], "expected a number"),
        (["recommend", "--feature", "age=1e39"], "expected a number"),
        (["recommend", "--feature", "age=1_0"], "expected a number"),
        (["recommend", "--feature", "age=20", "--feature", "age=30"], "given 2 times"),
        (["recommend", "--feature", "gender=F", "--feature", "gender=F"], "given 2 times"),
        (["recommend", "--feature", "timestamp=abc"], "expected seconds since 1970"),
        (["recommend", "--feature", "timestamp=-5"], "expected seconds since 1970"),
        (["recommend", "--feature", "timestamp=" + "9" * 5000], "expected seconds since 1970"),
        (["recommend", "--feature", "timestamp=0001-01-01T00:00:00+23:59"], "expected seconds since 1970"),
        (["recommend", "--feature", "history_age=long"], "expected a number"),
        (["recommend", "--feature", "nosuch=1"], "the model asks for age, gender, history_age, timestamp"),
        (["recommend", "--feature", "aeg=1"], "did you mean 'age'?"),
        (["recommend", "--feature", "history=1,2"], "--history"),
        (["recommend", "--feature", "user_id=3"], "--user"),
        (["similar", "--item", "none"], "no such item"),
        (["similar", "--item", "action film 1"], "no such item; did you mean '1', Action film 1?"),
        (["batch", "--output", "/proc/nothing/top.parquet"], "cannot be written"),
        (["batch", "--output", "top.parquet", "--time", "yesterday"], "expected seconds since 1970"),
        (["batch", "--output", "top.parquet", "--time", "9" * 20], "expected seconds since 1970"),
        (["batch", "--output", "top.parquet", "--time", "1969-12-31"], "expected seconds since 1970"),
        (["batch", "--output", "x.parquet", "--users", "none.txt"], "none.txt"),
        (["runs", "no-such-run"], "not in the metadata store"),
        (["batch", "--output", "."], "give --shards"),
        (["batch", "--output", "new/"], "give --shards"),
        (["batch", "--output", ".", "--shards", "2"], "has files already; name a new folder"),
        (["batch", "--output", "README.md", "--shards", "2"], "is a file; name a new folder"),
        (["batch", "--output", "/proc/nothing/top", "--shards", "2"], "/proc/nothing/top: cannot be written"),
        (["batch", "--output", "new", "--shards", "2", "--k", "21"], "raise serving.k"),
        (["batch", "--output", "new", "--shards", "2", "--users", "none.txt"], "none.txt"),
        (["batch", "--output", "new", "--shards=2", "--set", PORTABLE], "beam.job_endpoint: localhost:1 cannot be"),
        (["batch", "--output", "new", "--shards=2", "--set", DATAFLOW], "Dataflow's workers do not see the folders"),
        (["schema", "--output", "no such folder/x.pbtxt"], "No such file or directory"),
        (["recommend", "--set", "output.push=elsewhere"], "nothing has been pushed yet"),
        (["runs", "--set", "output.root=elsewhere"], "nothing has run yet"),
        (["recommend", "--set", "features.query.age={column: age, encoding: vocabulary}"], "'age', which the config"),
        (["serve", "--model-base-path", "none"], "none"),
        (["serve", "--rest-port", "70000"], "ports are 0 to 65535"),
        (["serve", "--model-config-file", "none.config"], "none.config"),
    ],
)
def test_a_mistake_is_one_line(small: Small, arguments: list[str], words: str):
    if arguments[0] == "batch" and "--k" not in arguments:
        arguments = [*arguments, "--k", "5"]
    outcome = twotower(arguments[0], "--config", small.config_path, *arguments[1:])
    assert outcome.code == 2
    assert words in outcome.errors and outcome.errors.count("\n") == 1 and "Traceback" not in outcome.errors


def test_a_fresh_process_answers(small: Small):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "recommend", "--json", "--config", small.config_path, "--user", "2"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert len(answer["items"]) == 10
    assert done.stderr == ""


def test_a_feature_given_as_text_is_the_value_that_the_api_takes(small: Small):
    recommender = Recommender(load(small.config_path))
    given = {"age": "31", "gender": "F", "timestamp": "2020-09-13T12:26:40", "history_age": "3.5e2"}
    values = {column: recommender.given(column, [text]) for column, text in given.items()}
    assert values == {"age": 31.0, "gender": "F", "timestamp": 1_600_000_000, "history_age": 350.0}
    (answer,) = recommender.recommend([recommender.request(None, values=values)])
    options = [a for column, text in given.items() for a in ("--feature", f"{column}={text}")]
    assert [(r["item_id"], r["score"]) for r in items(small, *options)] == [(r.item_id, r.score) for r in answer[:10]]


def test_filters_that_leave_nothing_are_said_to(small: Small):
    outcome = twotower("recommend", "--config", small.config_path, "--filter", "genres=Nosuch")
    assert outcome.code == 0 and outcome.answer["items"] == [] and "no item is left" in outcome.answer["note"]


def test_a_byte_order_mark_is_no_part_of_a_users_id(small: Small, tmp_path: Path):
    (tmp_path / "users.txt").write_bytes("3\r\n4\r\n".encode("utf-8-sig"))
    output = tmp_path / "top.parquet"
    arguments = ["batch", "--config", small.config_path, "--k", "1", "--output", str(output)]
    assert twotower(*arguments, "--users", str(tmp_path / "users.txt")).answer["users"] == 2
    rows = pq.read_table(output).to_pylist()
    assert [row["user_id"] for row in rows] == ["3", "4"]
    assert rows[0]["item_id"] == items(small, "--user", "3", "--k", "1")[0]["item_id"], "3 is known, with a history"


def test_a_file_whose_name_has_a_colon_is_written(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["batch", "--config", small.config_path, "--k", "1", "--output", "s3:top.parquet"]
    assert twotower(*arguments).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["s3:top.parquet"]


def test_a_torn_second_table_is_one_line(small: Small, tmp_path: Path):
    table = pq.read_table(small.folder / "interactions.parquet")
    pq.write_table(table, tmp_path / "interactions-1.parquet")
    arguments = ["--config", small.config_path, "--set", f"tables.interactions.path={tmp_path}/interactions-*.parquet"]
    whole = (tmp_path / "interactions-1.parquet").read_bytes()
    torn = {"torn": whole[: len(whole) // 2], "empty": b"", "page": whole[:200] + b"\xff" * 400 + whole[600:]}
    for content in torn.values():
        (tmp_path / "interactions-2.parquet").write_bytes(content)
        outcome = twotower("recommend", *arguments, "--user", "3")
        assert outcome.code == 2 and outcome.errors.count("\n") == 1, outcome.errors
        assert f"tables.interactions.path: {tmp_path}/interactions-2.parquet cannot be read" in outcome.errors
    pq.write_table(table.drop_columns(["item_id"]), tmp_path / "interactions-2.parquet")
    outcome = twotower("recommend", *arguments, "--user", "3")
    assert outcome.code == 2 and "interactions-2.parquet cannot be read: it has no column 'item_id'" in outcome.errors
    ids = pa.array([b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"user_id": ids, "item_id": ids, "timestamp": [5]}), tmp_path / "interactions-2.parquet")
    outcome = twotower("recommend", *arguments, "--user", "3")
    assert outcome.code == 2 and "which is not text in UTF-8" in outcome.errors
    assert outcome.errors.count("\n") == 1


def test_a_folder_that_is_no_servable_is_named(small: Small, tmp_path: Path):
    pushed = small.serve_in(tmp_path)
    # As a version that was pushed before manifests were, or copied there by hand.
    (pushed / "assets.extra" / "manifest.json").unlink()
    arguments = ["--config", small.config_path, "--set", f"output.push={tmp_path}"]
    described = pushed / "assets.extra" / "servable.json"
    variables = pushed / "variables" / "variables.data-00000-of-00001"

    def refused(words: str) -> None:
        outputs = ["--output", str(tmp_path / "top.parquet"), "--k", "5"]
        for command in (
            ["recommend"],
            ["similar", "--item", "1"],
            ["batch", *outputs],
            ["update-index", "--remove", "1"],
        ):
            outcome = twotower(command[0], *arguments, *command[1:])
            assert outcome.code == 2 and outcome.errors.count("\n") == 1, outcome.errors
            assert str(pushed) in outcome.errors and words in outcome.errors
        assert not (tmp_path / "top.parquet").exists()

    whole = variables.read_bytes()
    variables.write_bytes(whole[: len(whole) // 2])
    refused("does not load")
    variables.write_bytes(whole)
    text = described.read_text()
    for content, words in (("{}", "Field required"), ("{" + text, "servable.json"), ("\0", "servable.json")):
        described.write_text(content)
        refused(words)
    described.unlink()
    refused("servable.json is missing")


def test_titles_with_markup_are_shown_as_they_are(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    titles = ["War [/b]", "[rec] (2007)", "War \x1b[31mred\x07", "War \u202etxt", ":bomb: War\nfilm"]
    rows = [{"item_id": f"[b]{n}", "title": t, "genres": ["Odd"], "price": 60.0} for n, t in enumerate(titles)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "new.parquet")
    small.serve_in(tmp_path)
    options = ["--config", small.config_path, "--set", f"output.push={tmp_path}"]
    assert cli.main(["update-index", *options, "--add", str(tmp_path / "new.parquet")]) == 0
    capsys.readouterr()
    assert cli.main(["recommend", *options, "--user", "4", "--filter", "genres=Odd"]) == 0
    shown = capsys.readouterr().out
    visible = ["War [/b]", "[rec] (2007)", "War \\x1b[31mred\\x07", "War \\u202etxt", ":bomb: War\\nfilm"]
    for number, title in enumerate(visible):
        assert title in shown and f"[b]{number}" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    # What a program reads is exact.
    answer = twotower("recommend", *options, "--user", "4", "--filter", "genres=Odd").answer["items"]
    assert sorted(r["title"] for r in answer) == sorted(titles)
    assert cli.main(["similar", *options, "--item", "[/b]\x1b[2J"]) == 2
    errors = capsys.readouterr().err
    assert "--item [/b]\\x1b[2J: " in errors and "\x1b" not in errors
    assert cli.main(["recommend", *options, "--user", "[/b] stranger\x1b"]) == 0
    assert "user [/b] stranger\\x1b has no history" in capsys.readouterr().out
