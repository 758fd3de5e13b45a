"""A full disk behind the errors of Python, TensorFlow, Arrow and Beam: the kernel's own device for it, /dev/full."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from modules.full_disk import Refusal, in_words, refusal

FULL = "No space left on device"


def by_python() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def by_tensorflow() -> None:
    with tf.io.gfile.GFile("/dev/full", "w") as file:
        file.write("x")


def by_arrow() -> None:
    # By the file and not by its name: Arrow removes what it could not write.
    with pa.OSFile("/dev/full", "wb") as file:
        pq.write_table(pa.table({"a": [1]}), file)


def by_beam() -> None:
    with beam.Pipeline("DirectRunner", argv=["--direct_running_mode=in_memory"]) as pipeline:
        _ = pipeline | beam.Create([1]) | beam.Map(lambda _: by_tensorflow())


def by_another_error() -> None:
    try:
        by_tensorflow()
    except tf.errors.OpError as error:
        raise RuntimeError("the stage failed") from error


def while_cleaning_up() -> None:
    try:
        by_python()
    finally:
        raise KeyError("cleaning up failed, too")


def error_of(write: Callable[[], None]) -> BaseException:
    with pytest.raises(Exception) as caught:
        write()
    return caught.value


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (by_python, ""),
        (by_tensorflow, "/dev/full"),
        (by_arrow, ""),
        (by_beam, "/dev/full"),
        (by_another_error, "/dev/full"),
        (while_cleaning_up, ""),
    ],
)
def test_a_refused_write_is_found_behind_what_libraries_make_of_it(write: Callable[[], None], place: str):
    assert refusal(error_of(write)) == Refusal(FULL, place)


def test_the_file_is_named_where_python_knows_it(tmp_path: Path):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a b"))
    assert refusal(error) == Refusal(FULL, str(tmp_path / "a b"))
    # What copies folders puts its errors into a list.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "variables").write_text("x")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    copied = error_of(lambda: shutil.copytree(tmp_path / "model", tmp_path / "copy", copy_function=full))
    assert refusal(copied) == Refusal(FULL, str(tmp_path / "copy" / "variables"))


@pytest.mark.parametrize(
    "error",
    [ValueError("no space"), FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "f"), KeyboardInterrupt()],
)
def test_other_errors_are_no_refused_writes(error: BaseException):
    assert refusal(error) is None


def test_words_name_the_place_and_what_to_do():
    words = in_words(Refusal(FULL, ""), "/data/runs/Trainer", "choose another disk with output.root")
    assert words == (f"cannot write to /data/runs/Trainer: {FULL}; make room, or choose another disk with output.root")
    temporary = os.path.join(tempfile.gettempdir(), "assets")
    words = in_words(Refusal(FULL, temporary), "/data/runs/Trainer", "choose another disk with output.root")
    assert words.startswith(f"cannot write to {temporary}: {FULL}; make room, or ") and words.endswith("TMPDIR")
