"""The lock on a folder, between real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from modules import lock

HOLD = """
import sys, time
from modules import lock
with lock.exclusive(sys.argv[1], 0) as is_ours:
    print(is_ours, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    return process


def test_one_process_at_a_time_and_the_next_waits(tmp_path: Path):
    folder = tmp_path / "served"
    process = hold(folder, 1.0)
    said: list[float] = []
    with lock.exclusive(str(folder), 0) as is_ours:
        assert not is_ours
    with lock.exclusive(str(folder), 30, lambda: said.append(time.monotonic())) as is_ours:
        assert is_ours and len(said) == 1
        assert process.wait(10) == 0
    assert list(folder.iterdir()) == [], "no file is left"


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path):
    process = hold(tmp_path, 600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with lock.exclusive(str(tmp_path), 0) as is_ours:
        assert is_ours


def test_threads_exclude_each_other_too(tmp_path: Path):
    inside = []

    def work() -> None:
        with lock.exclusive(str(tmp_path), 30) as is_ours:
            inside.append(+1)
            assert is_ours and sum(inside) == 1
            time.sleep(0.05)
            inside.append(-1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [+1, -1] * 4


def test_a_folder_that_was_replaced_is_locked_anew(tmp_path: Path):
    folder = tmp_path / "served"
    process = hold(folder, 600)
    try:
        shutil.rmtree(folder)
        with lock.exclusive(str(folder), 0) as is_ours:
            assert is_ours and folder.is_dir()
    finally:
        process.kill()
        process.wait()


def test_who_shares_lets_others_share_and_keeps_those_out_who_want_it_alone(tmp_path: Path):
    with lock.shared(str(tmp_path), 0) as first, lock.shared(str(tmp_path), 0) as second:
        assert first and second
        with lock.exclusive(str(tmp_path), 0) as is_ours:
            assert not is_ours
    with lock.exclusive(str(tmp_path), 0) as is_ours, lock.shared(str(tmp_path), 0) as is_shared:
        assert is_ours and not is_shared
