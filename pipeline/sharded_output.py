"""A folder of Parquet files that Beam's workers write, a shard each, and the workers' report of it."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from modules.errors import UserError
from pipeline import atomic, beam_service
from pipeline.config import Config

REPORT = "report"
"""Tag of the outputs that `write_report` takes, and the report's file."""


def check(config: Config, folder: str, option: str) -> None:
    """Refuses, before anything is read, what workers could not write.

    Args:
        config: `beam` says where the workers are.
        folder: Where the files are to go, an absolute path that workers see too.
        option: What asked for it, for messages.

    Raises:
        UserError: The folder has files, or Beam's runner cannot be reached or does not see it.
    """
    atomic.check_new_folder(folder)
    if config.beam.runner == "dataflow":
        raise UserError(f"{option}: Dataflow's workers do not see the folders of this machine; set another beam.runner")
    beam_service.check(config.beam, config.root)


def shard_of(user: bytes, shards: int) -> int:
    """The shard of a user, of so many."""
    return zlib.crc32(user) % shards


def file(folder: str, shard: int, shards: int) -> str:
    """The file of a shard."""
    return os.path.join(folder, f"part-{shard:05d}-of-{shards:05d}.parquet")


def write_report(reports: Sequence[beam.PCollection], folder: str) -> None:
    """Writes what workers say, for `read_report`: (what they counted, "" or what went wrong)."""
    _ = (
        reports
        | "Reports" >> beam.Flatten()
        | "OneReport" >> beam.combiners.ToList()
        | "WriteReport" >> beam.Map(_write_json, os.path.join(folder, REPORT))
    )


def read_report(folder: str) -> list[Any]:
    """What the workers counted, in any order.

    Raises:
        UserError: They tell of problems.
    """
    with open(os.path.join(folder, REPORT), encoding="utf-8") as file:
        report = json.load(file)
    problems = sorted({problem for _, problem in report if problem})
    if problems:
        raise UserError("; ".join(problems))
    return [counted for counted, _ in report]


def keep_only(paths: Sequence[str], folder: str) -> None:
    """Removes what else is below the folder: the report, and what attempts have left that a runner gave up.

    Raises:
        FileNotFoundError: One of the files is not there.
    """
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, "the workers' file is not seen from here", path)
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if path not in paths:
                os.remove(path)


def _write_json(report: list[Any], path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(report, file)
