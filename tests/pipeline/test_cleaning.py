"""What goes and what stays, on a metadata store and folders as runs leave them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import world
from e2e_runs import twotower
from metadata_stores import Made, Written, opened
from ml_metadata.proto import metadata_store_pb2 as mlmd
from pushed_versions import push

from modules import lock, push_destination
from pipeline import cleaning, runs
from pipeline.cleaning import Wish
from pipeline.config import Config, load

CACHED = mlmd.Execution.CACHED


class World:
    """A configuration, its metadata store and its push destination."""

    def __init__(self, folder: Path) -> None:
        self.path = world.write_config(folder)
        self.config: Config = load(self.path)
        self.root = Path(self.config.root)
        self.served = self.config.push_destination
        self.written = Written(self.root / "metadata.sqlite")

    def finished(self, run_id: str, version: str, examples: int | str = "", baseline: str = "", stamp: str = "") -> int:
        """A run to its end; the number of its examples."""
        stages = [
            Made("InteractionExampleGen", {"examples": examples or f"examples of {run_id}"},
                 state=CACHED if isinstance(examples, int) else mlmd.Execution.COMPLETE),
            Made("Trainer", {"model": "m" * 5000, "model_run": "r"}),
            Made("BaselineResolver", {"baseline": "b"}, properties={"version": baseline}),
            Made("Evaluator", {"evaluation": "e" * 700}),
            Made("Pusher", {"pushed_model": "p"}, properties={"pushed_version": version, "pipeline_stamp": stamp}),
        ]  # fmt: skip
        made, *_ = self.written.run(run_id, *stages)
        for name, report in (("Trainer/model_run", "training.json"), ("Evaluator/evaluation", "summary.json")):
            newest = max(
                (self.root / name).iterdir(), key=lambda path: (path.is_dir(), path.name.isdigit() and int(path.name))
            )
            (newest / report).write_text(json.dumps({"of": run_id, "failures": []}))
        return made["examples"]

    def live(self) -> dict[str, bool]:
        """Folder of each artifact → whether TFX's cache would take it."""
        found = opened(self.root / "metadata.sqlite").get_artifacts()
        return {os.path.relpath(a.uri, self.root): a.state == mlmd.Artifact.LIVE for a in found}

    def files(self) -> set[str]:
        return {str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file() and "metadata" not in p.name}

    def command(self, *arguments: str):  # type: ignore[no-untyped-def]
        return twotower("clean", *arguments, "--config", self.path)


@pytest.fixture
def there(tmp_path: Path) -> World:
    return World(tmp_path)


def run_of(artifact: str) -> int:
    """Which run made an artifact: each has five stages here."""
    return (int(artifact.rpartition("/")[2]) - 1) // 5


def test_what_no_run_that_stays_refers_to_goes_and_is_marked_first(there: World):
    first = there.finished("a", "1")
    there.finished("b", "2")
    there.finished("c", "3", examples=first)
    before = there.files()
    sizes = {file: (there.root / file).stat().st_size for file in before}
    told = there.command("--keep", "1")
    assert told.code == 0 and told.answer["dry_run"] and there.files() == before and all(there.live().values())
    done = there.command("--keep", "1", "--yes").answer
    assert done["gone"] == told.answer["gone"] and done["bytes"] == told.answer["bytes"]
    # The newest run took its examples from the first one.
    kept = {f for f in there.live() if run_of(f) == 2} | {"InteractionExampleGen/examples/1"}
    assert {folder for folder, live in there.live().items() if live} == kept
    reports = {f for f in before if f.endswith(("training.json", "summary.json"))}
    expected = reports | {f for f in before for k in kept if f.startswith((f"{k}/", f"{k}.manifest"))}
    assert there.files() == expected
    assert done["bytes"] == sum(sizes[file] for file in before - there.files()) > 2 * 5000
    assert {s["what"] for s in done["stays"]} >= {"run c", "1 artifacts of other runs"}
    again = there.command("--keep", "1", "--yes").answer
    assert again["gone"] == [] and again["bytes"] == 0


def test_the_history_stays_with_its_figures(there: World):
    for name, version in (("a", "1"), ("b", "2")):
        there.finished(name, version)
    there.command("--keep", "1", "--yes")
    listed = twotower("runs", "--config", there.path).answer
    assert [(run["run"], run["training"]["of"]) for run in listed] == [("b", "b"), ("a", "a")]


def test_runs_that_are_not_finished_count_for_none(there: World):
    there.finished("a", "1")
    there.finished("b", "2")
    there.written.run(
        "killed", Made("InteractionExampleGen", {"examples": "x"}), Made("Trainer", {}, state=mlmd.Execution.RUNNING)
    )
    left = there.root / "Trainer" / "model" / "12"
    left.mkdir()
    (left / "half").write_text("half a model")
    stray = there.root / "Trainer" / "model" / "999"
    shutil.copytree(left, stray)
    plan = cleaning.plan(there.config, Wish(runs=1))
    why = {each.what: each.why for each in plan.stays}
    assert why == {"run killed": "began after one that stays", "run b": "one of the newest"}
    gone = {os.path.relpath(each.path, there.root) for each in plan.gone}
    assert "Trainer/model/999" in gone and "Trainer/model/12" not in gone, "what is left of a run that stays is its own"


def test_a_killed_training_goes_on_unless_it_is_said_otherwise(there: World):
    (made,) = there.written.run("x", Made("InteractionExampleGen", {"examples": "x"}))
    there.written.run("killed", Made("InteractionExampleGen", {"examples": made["examples"]}, state=CACHED),
                      Made("Trainer", {}, inputs=[made["examples"]], state=mlmd.Execution.FAILED))  # fmt: skip
    there.finished("b", "2")
    checkpoint = there.root / "checkpoints" / "0f" / "ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("c" * 100)
    assert there.command("--keep", "1", "--yes").answer["bytes"] == 0
    assert checkpoint.exists() and there.live()["InteractionExampleGen/examples/1"]
    done = there.command("--keep", "1", "--checkpoints", "--yes").answer
    assert done["bytes"] > 100 and not checkpoint.exists() and not there.live()["InteractionExampleGen/examples/1"]


def test_the_run_behind_what_is_served_stays_through_updates_and_rollbacks(there: World):
    for number, name in enumerate("abc", start=1):
        there.finished(name, str(number), stamp=f"stamp {name}")
        push(there.served, str(number), f"stamp {name}")
    # The newest is an update of what run b pushed.
    push(there.served, "4", "stamp b")
    why = {each.what: each.why for each in cleaning.plan(there.config, Wish(runs=1)).stays}
    assert why["run b"] == "it pushed what is served" and "run a" not in why
    push(there.served, "5", "stamp a")
    (Path(there.served) / "5" / push_destination.ROLLBACK_PATH).write_text(json.dumps({"copy_of": 1}))
    why = {each.what: each.why for each in cleaning.plan(there.config, Wish(runs=1)).stays}
    assert why["run a"] == "it pushed what is served" and "run b" not in why


def test_versions_that_something_needs_stay(there: World, tmp_path: Path):
    for number in range(1, 13):
        push(there.served, str(number), f"stamp {number}", whole=number != 12)
    (Path(there.served) / "11" / push_destination.ROLLBACK_PATH).write_text(json.dumps({"copy_of": 4}))
    there.finished("a", "3", baseline="2")
    there.finished("b", "8", baseline="7")
    models = tmp_path / "models.config"
    models.write_text(
        'model_config_list { config { name: "small-world" version_labels { key: "stable" value: 5 } '
        "model_version_policy { specific { versions: 5 versions: 6 } } } "
        'config { name: "another" model_version_policy { specific { versions: 1 } } } }'
    )
    options = ["--keep-versions", "2", "--model-config-file", str(models)]
    told = there.command(*options).answer
    why = {each["what"]: each["why"] for each in told["stays"]}
    assert why == {
        "version 12": "newer than what is served",
        "version 11": "it is served",
        "version 8": "the model of run b",
        "version 7": "the baseline of run b",
        "version 6": "the servers' configuration names it",
        "version 5": "the servers' configuration names it",
        "version 4": "version 11 is a copy of it",
    }
    assert push_destination.versions(there.served) == list(range(1, 13)), "nothing was done"
    assert there.command(*options, "--yes").answer["versions"] == [1, 2, 3, 9, 10]
    assert push_destination.versions(there.served) == [4, 5, 6, 7, 8, 11, 12]
    assert sorted(os.listdir(there.served)) == sorted(["11", "12", "4", "5", "6", "7", "8"]), "and nothing half-removed"
    assert all(there.live().values()), "artifacts stay where nothing is said of runs"
    models.write_text(
        'model_config_list { config { name: "small-world" model_version_policy { latest { num_versions: 3 } } } }'
    )
    assert "version 10" not in {s["what"] for s in there.command(*options).answer["stays"]}
    assert {"version 8", "version 7"} <= {s["what"] for s in there.command(*options).answer["stays"]}


def test_room_is_counted_once_for_files_with_several_names(there: World):
    there.finished("a", "1")
    there.finished("b", "2")
    model = there.root / "Trainer" / "model" / "2" / "data"
    os.link(model, there.root / "BaselineResolver" / "baseline" / "3" / "linked")
    plan = cleaning.plan(there.config, Wish(runs=1))
    elsewhere = there.root / "BaselineResolver" / "baseline" / "8" / "linked"
    os.link(model, elsewhere)
    assert plan.bytes - cleaning.plan(there.config, Wish(runs=1)).bytes == 5000, "what stays has it, too"


def test_refused_while_a_run_is_on(there: World):
    there.finished("a", "1")
    there.finished("b", "2")
    before = there.files()
    with lock.shared(str(there.root), 0):
        outcome = there.command("--keep", "1", "--yes")
        assert outcome.code == 2 and "a run is on" in outcome.errors and outcome.errors.count("\n") == 1
        assert there.command("--keep", "1").code == 0, "looking is allowed"
    assert there.files() == before and all(there.live().values())


def test_what_lies_elsewhere_or_has_been_moved_stays(there: World):
    there.finished("a", "1")
    there.finished("b", "2")
    elsewhere = load(there.path, [f"output.root={there.root.parent.parent}/other"])
    shutil.copytree(there.root, elsewhere.root)
    plan = cleaning.plan(elsewhere, Wish(runs=1))
    assert plan.artifacts == [] and plan.bytes == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to clean"),
        (["--keep", "0"], "from 1"),
        (["--keep", "1", "--model-config-file", "none.config"], "none.config: No such file"),
        (["--keep-versions", "1", "--set", "output.push=gs://bucket/served"], "is not on this machine"),
        (["--keep", "1", "--set", "output.root=elsewhere"], "nothing has run yet"),
    ],
)
def test_a_mistake_is_one_line(there: World, arguments: list[str], words: str):
    there.finished("a", "1")
    outcome = there.command(*arguments, "--yes")
    assert outcome.code == 2 and words in outcome.errors and outcome.errors.count("\n") == 1, outcome.errors
    assert all(there.live().values()) and not Path("elsewhere").exists()


def test_marked_artifacts_are_set_aside_one_by_one(there: World):
    number = there.finished("a", "1")
    runs.set_aside(there.config, [number])
    assert [folder for folder, live in there.live().items() if not live] == ["InteractionExampleGen/examples/1"]
