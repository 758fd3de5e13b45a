"""An earlier version again, on real folders: what is in force, what is copied, and what everybody else makes of it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from pushed_versions import push, write

from modules import push_destination as destinations
from modules.errors import UserError
from modules.rollback import listed, plan, roll_back


def publish(destination: str, content: str, stamp: str = "", **update: int) -> int:
    """As the Pusher does, or an update."""
    with destinations.staging(destination) as staging:
        # What it holds is its name.
        push(staging, content, stamp)
        staged = os.path.join(staging, content)
        if update:
            write(os.path.join(staged, destinations.UPDATE_PATH), json.dumps(update))
        return int(destinations.publish(staged, destination))


def content(destination: str, version: int | None) -> str:
    return destinations.read_text(os.path.join(destination, str(version)), "variables/variables.index")


def in_force(destination: str) -> list[int]:
    return [int(version) for version in destinations.in_force(destination)]


def test_the_version_before_is_served_again_under_a_higher_number(destination: str):
    first, second = publish(destination, "one", "a"), publish(destination, "two", "b")
    expected = plan(destination)
    assert (expected.copy_of, expected.in_place_of, expected.taken_back, expected.version) == (
        first,
        second,
        (second,),
        None,
    )
    assert destinations.versions(destination) == [first, second], "a plan does nothing"
    done = roll_back(destination)
    assert (done.copy_of, done.in_place_of, done.taken_back) == (first, second, (second,))
    assert destinations.versions(destination) == [first, second, done.version]
    folder = os.path.join(destination, str(done.version))
    assert content(destination, done.version) == "one" and destinations.is_complete(folder)
    assert destinations.newest_version(destination) == str(done.version), "who asks, asks this one"
    assert destinations.copy_of(folder) == first and destinations.read_stamp(folder) == "a"
    # The record is of the copy alone, though its other files may be the very same.
    assert destinations.copy_of(os.path.join(destination, str(first))) is None
    names = set(destinations._names(destination))
    assert names == {str(v) for v in destinations.versions(destination)}, "nothing half-written"


def test_a_run_finds_the_baseline_that_it_found_before(destination: str):
    """So nothing is evaluated and pushed again, which would undo the rollback, only because of it."""
    made, found = {}, {}
    for stamp in ("a", "b", "c"):
        found[stamp] = destinations.latest_version(destination, excluding_stamp=stamp)
        made[stamp] = publish(destination, f"by {stamp}", stamp)
    roll_back(destination)
    assert found == {"a": "", "b": str(made["a"]), "c": str(made["b"])}
    # c was taken back: for everybody it is as if it had not been pushed.
    for stamp in ("b", "c"):
        assert destinations.latest_version(destination, excluding_stamp=stamp) == found[stamp]
    assert destinations.latest_version(destination, excluding_stamp="new") == str(made["b"])
    last = os.path.join(destination, str(made["c"]))
    assert destinations.standing(last, "c") == last, "and its run need not push it again"
    assert destinations.is_taken_back(last) and not destinations.is_taken_back(last.replace(str(made["c"]), found["c"]))


def test_one_after_the_other_goes_back_and_back_and_forth_by_name(destination: str):
    one, two, three = (publish(destination, text, text) for text in ("one", "two", "three"))
    assert in_force(destination) == [three, two, one]
    back = roll_back(destination)
    assert back.copy_of == two and in_force(destination) == [two, one]
    again = roll_back(destination)
    assert again.copy_of == one and in_force(destination) == [one], "and not three, which came after two"
    with pytest.raises(UserError, match=f"nothing to roll back to.*--to.*{three}"):
        roll_back(destination)
    forth = roll_back(destination, to=three)
    assert content(destination, forth.version) == "three" and in_force(destination) == [three, two, one]
    copy = roll_back(destination, to=back.version)
    assert copy.copy_of == two, "of a copy's original"
    four = publish(destination, "four", "four")
    assert in_force(destination) == [four, two, one]
    states = {each.version: (each.made_by, each.made_from, each.state) for each in listed(destination)}
    assert states == {
        one: ("run", None, "in force"),
        two: ("run", None, "in force"),
        three: ("run", None, "taken back"),
        back.version: ("rollback", two, "taken back"),
        again.version: ("rollback", one, "taken back"),
        forth.version: ("rollback", three, "taken back"),
        copy.version: ("rollback", two, "taken back"),
        four: ("run", None, "served"),
    }


def test_a_version_that_answers_the_same_is_passed_over(tmp_path: Path):
    destination = str(tmp_path / "served")
    first, _ = publish(destination, "one", "a"), publish(destination, "two", "b")
    publish(destination, "two", "b")
    assert plan(destination).copy_of == first


def test_an_update_of_a_rollback_is_a_version_like_others(tmp_path: Path):
    destination = str(tmp_path / "served")
    one, two = publish(destination, "one", "a"), publish(destination, "two", "b")
    back = roll_back(destination)
    assert back.version is not None
    updated = publish(destination, "one, updated", "a", version=back.version + 1, updated_version=back.version, added=1)
    assert in_force(destination) == [updated, one]
    assert [(v.made_by, v.made_from) for v in listed(destination)[:2]] == [
        ("update-index", back.version),
        ("rollback", one),
    ]
    done = roll_back(destination)
    assert done.copy_of == one and done.taken_back == (updated,)
    assert two not in in_force(destination)


def test_a_copy_stands_in_for_an_original_that_is_gone(tmp_path: Path):
    destination = str(tmp_path / "served")
    one, two, three = (publish(destination, text, text) for text in ("one", "two", "three"))
    back = roll_back(destination)
    assert back.version is not None and back.copy_of == two
    with destinations.exclusive(destination):
        destinations.withdraw(destination, two)
    assert destinations.versions(destination) == [one, three, back.version]
    assert in_force(destination) == [back.version, one]
    forth = roll_back(destination, to=three)
    again = roll_back(destination, to=back.version)
    assert (forth.copy_of, again.copy_of) == (three, two) and content(destination, again.version) == "two"


def test_a_damaged_newest_version_is_a_reason_to_go_back(tmp_path: Path):
    destination = str(tmp_path / "served")
    first, second = publish(destination, "one", "a"), publish(destination, "two", "b")
    (tmp_path / "served" / str(second) / "saved_model.pb").unlink()
    done = roll_back(destination)
    assert (done.copy_of, done.in_place_of) == (first, second)
    assert destinations.newest_version(destination) == str(done.version)
    (tmp_path / "served" / str(done.version) / "saved_model.pb").unlink()
    assert plan(destination).copy_of == first, "a damaged copy is made again"


def test_damage_that_nobody_has_seen_is_not_served_again(tmp_path: Path):
    destination = str(tmp_path / "served")
    first, _ = publish(destination, "one", "a"), publish(destination, "two", "b")
    file = tmp_path / "served" / str(first) / "variables" / "variables.index"
    before = file.stat()
    file.write_text("eno")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    names = sorted(os.listdir(destination))
    with pytest.raises(UserError, match=f"version {first} is damaged: .*{first}/variables/variables.index has other"):
        roll_back(destination)
    assert sorted(os.listdir(destination)) == names


def test_mistakes_are_one_line_and_nothing_is_written(tmp_path: Path):
    destination = str(tmp_path / "served")
    for to in (None, 7):
        with pytest.raises(UserError, match="nothing has been pushed yet"):
            roll_back(destination, to)
    assert not os.path.exists(destination)
    only = publish(destination, "one", "a")
    with pytest.raises(UserError, match="nothing to roll back to: no version that differs was in force"):
        roll_back(destination)
    with pytest.raises(UserError, match=f"--to 7: .* has no such version, but {only}"):
        roll_back(destination, 7)
    with pytest.raises(UserError, match=f"--to {only}: is what version {only} holds already"):
        roll_back(destination, only)
    push(destination, "7", whole=False)
    with pytest.raises(UserError, match="--to 7: is no whole version"):
        roll_back(destination, 7)
    assert sorted(os.listdir(destination)) == sorted(["7", str(only)])


def test_who_publishes_is_waited_for_and_then_named(tmp_path: Path):
    destination = str(tmp_path / "served")
    publish(destination, "one", "a"), publish(destination, "two", "b")
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with destinations.exclusive(destination):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    with pytest.raises(UserError, match="another twotower has been publishing here"):
        roll_back(destination, wait_seconds=0)
    assert len(destinations.versions(destination)) == 2
    leave.set()
    thread.join()
    assert roll_back(destination, wait_seconds=60).version
