"""The push destination on real folders: which versions there are, which is whole, how a new one gets there."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pushed_versions import push

from modules import push_destination
from modules.errors import UserError
from modules.push_destination import (
    damage,
    is_complete,
    latest_version,
    newest_version,
    read_stamp,
    standing,
    versions,
)


def publish(destination: Path, stamp: str = "") -> str:
    """As Pusher and update do: its folder."""
    with push_destination.staging(str(destination)) as staging:
        push(staging, "model", stamp)
        with push_destination.exclusive(str(destination)):
            version = push_destination.publish(os.path.join(staging, "model"), str(destination))
    return str(destination / version)


def test_nothing_has_been_pushed(destination):
    assert versions(destination) == []
    assert latest_version(destination) == ""


def test_the_newest_version_is_the_highest_number(destination):
    for version in ("9", "10", "2"):
        push(destination, version, stamp="s")
    push(destination, "11", stamp="s", whole=False)
    push(destination, ".staging-host-1-2-ab", stamp="s")
    push(destination, "12.bak", stamp="s")
    assert versions(destination) == [2, 9, 10, 11]
    assert latest_version(destination) == "10"


def test_a_run_is_not_compared_with_its_own_model(destination):
    push(destination, "1", stamp="yesterday")
    push(destination, "2")
    push(destination, "3", stamp="today")
    assert latest_version(destination, excluding_stamp="today") == "2"
    assert latest_version(destination, excluding_stamp="tomorrow") == "3"
    assert latest_version(destination) == "3"


def test_a_published_version_is_whole_and_nothing_is_beside_it(tmp_path):
    first, second = (publish(tmp_path / "served", stamp) for stamp in ("a", "b"))
    assert [str(tmp_path / "served" / str(v)) for v in versions(str(tmp_path / "served"))] == [first, second]
    assert sorted(os.listdir(tmp_path / "served")) == sorted(map(os.path.basename, (first, second)))
    assert (read_stamp(first), read_stamp(second)) == ("a", "b")
    assert is_complete(first) and damage(first) == ""


def test_a_damaged_version_is_no_version_and_says_which_file(tmp_path):
    destination = tmp_path / "served"
    old, new = (Path(publish(destination, stamp)) for stamp in ("old", "new"))
    assert newest_version(str(destination)) == new.name
    (new / "variables" / "variables.index").write_bytes(b"in")
    assert not is_complete(str(new))
    assert latest_version(str(destination)) == old.name, "a baseline is whole"
    with pytest.raises(UserError, match=f"version {new.name} .* is damaged: .*variables.index has 2 of 5 bytes"):
        newest_version(str(destination))
    os.unlink(new / "saved_model.pb")
    with pytest.raises(UserError, match="is damaged"):
        newest_version(str(destination))
    # What never was a version is passed over.
    (destination / "99999999999").mkdir()
    shutil.rmtree(new)
    assert newest_version(str(destination)) == old.name


def test_where_a_pushed_model_stands(tmp_path):
    # An update keeps the stamp of what it was made from.
    first, second, third = (publish(tmp_path / "served", stamp) for stamp in "aba")
    assert [standing(first, "a"), standing(second, "b"), standing(third, "a")] == [first, second, third]
    shutil.rmtree(first)
    assert standing(first, "a") == third
    assert standing(first, "") == ""
    shutil.rmtree(second)
    assert standing(second, "b") == ""
    shutil.rmtree(third)
    assert standing(third, "a") == standing(first, "a") == ""


def test_versions_rise_when_the_clock_was_set_back(tmp_path, monkeypatch):
    first = publish(tmp_path / "served")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 400 * 24 * 3600)
    second, third = (publish(tmp_path / "served") for _ in range(2))
    numbers = [int(os.path.basename(version)) for version in (first, second, third)]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


def test_who_publishes_keeps_others_out_until_it_is_done(tmp_path):
    destination = tmp_path / "served"
    with push_destination.exclusive(str(destination)):
        thread = threading.Thread(target=publish, args=(destination,))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and versions(str(destination)) == []
        with pytest.raises(UserError, match="try again"), push_destination.exclusive(str(destination), wait_seconds=0):
            pass
    thread.join(60)
    assert len(versions(str(destination))) == 1


def test_a_destination_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "served").write_text("a file")
    with pytest.raises(
        UserError, match=r"push destination .*served: .*; choose a folder .* with output\.push"
    ) as error:
        publish(tmp_path / "served")
    assert "\n" not in str(error.value)


def test_looking_for_a_version_imports_neither_tfx_nor_tensorflow(tmp_path):
    code = (
        "import sys; from modules.push_destination import latest_version; "
        f"assert latest_version({str(tmp_path)!r}) == ''; "
        "assert not {'tfx', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
