"""An earlier pushed version again: a copy of it under a higher number, which is the one that TF Serving takes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import time
from dataclasses import dataclass
from typing import Any

from modules import manifest
from modules import push_destination as destinations
from modules.errors import UserError

# Who rolls back is in a hurry; an update can be under way, which the rollback then takes back.
_WAIT_SECONDS = 60.0
# Numbers that are times: the others were given by hand.
_FIRST_TIME = 1_000_000_000
# Records of how a version came about, which say nothing of what it answers.
_RECORDS = (destinations.STAMP_PATH, destinations.ROLLBACK_PATH)


@dataclass(frozen=True)
class Rollback:
    """What a rollback does, or has done."""

    copy_of: int
    """The version that is in force from now on."""
    in_place_of: int
    """The newest version before."""
    taken_back: tuple[int, ...]
    """Versions that were in force and no longer are, newest first."""
    version: int | None = None
    """The number that the copy was pushed as; None for a plan."""


@dataclass(frozen=True)
class Version:
    """One version of a push destination."""

    version: int
    when: datetime.datetime | None
    """When it was pushed; None where nothing says so."""
    made_by: str
    """run, update-index, update-users, rollback, or "" for a folder that somebody has put there."""
    made_from: int | None
    """The version that an update changed, or a rollback copied."""
    state: str
    """served (the newest), in force (an earlier one), taken back, or damaged."""
    stamp: str


def listed(push_destination: str) -> list[Version]:
    """All versions, newest first."""
    in_force = {int(version) for version in destinations.in_force(push_destination)}
    numbers = destinations.versions(push_destination)[::-1]
    found = []
    for number in numbers:
        folder = os.path.join(push_destination, str(number))
        made_by, made_from = _origin(folder)
        if not destinations.is_complete(folder):
            state = "damaged"
        elif number == numbers[0]:
            state = "served"
        else:
            state = "in force" if number in in_force else "taken back"
        stamp = destinations.read_stamp(folder)
        found.append(Version(number, _when(folder, number), made_by, made_from, state, stamp))
    return found


def plan(push_destination: str, to: int | None = None) -> Rollback:
    """What a rollback would do now.

    Args:
        push_destination: The model's folder, local or remote.
        to: The version to go back to; by default the one that was in force before the newest and answers otherwise.

    Raises:
        UserError: There is no such version, it is damaged or in force already, or there is none to go back to.
    """
    taken = destinations.versions(push_destination)
    if not taken:
        raise UserError(f"no model in {push_destination}: nothing has been pushed yet; start with `twotower run`")
    newest = taken[-1]
    in_force = [int(version) for version in destinations.in_force(push_destination)]
    now = _original(push_destination, newest)
    if to is None:
        chosen = _before(push_destination, in_force, newest, now)
        if chosen is None:
            left = [str(each) for each in taken if _original(push_destination, each) != now]
            others = f"; name another one with --to ({', '.join(left)})" if left else ""
            raise UserError(
                f"{push_destination}: nothing to roll back to: no version that differs was in force before {newest}"
                f"{others}"
            )
    else:
        if to not in taken:
            raise UserError(
                f"--to {to}: {push_destination} has no such version, but {', '.join(map(str, taken[::-1]))}"
            )
        folder = os.path.join(push_destination, str(to))
        if not destinations.is_complete(folder):
            raise UserError(f"--to {to}: is no whole version: {destinations.damage(folder) or 'it has no model'}")
        chosen = _original(push_destination, to)
        if chosen == now and destinations.is_complete(os.path.join(push_destination, str(newest))):
            raise UserError(f"--to {to}: is what version {newest} holds already; choose another one")
    taken_back = tuple(version for version in in_force if version > chosen)
    return Rollback(chosen, newest, taken_back)


def roll_back(push_destination: str, to: int | None = None, wait_seconds: float = _WAIT_SECONDS) -> Rollback:
    """Pushes a copy of an earlier version as the newest one.

    Args:
        push_destination: The model's folder, local or remote.
        to: As for `plan`.
        wait_seconds: How long to wait for whoever is publishing.

    Raises:
        UserError: As for `plan`; or somebody else is publishing for longer, or the destination cannot be written.
    """
    if not destinations.versions(push_destination):
        # Before the lock, which would make the folder.
        plan(push_destination, to)
    with destinations.exclusive(push_destination, wait_seconds):
        planned = plan(push_destination, to)
        source = _whole(push_destination, planned.copy_of, to)
        try:
            with destinations.staging(push_destination) as staging:
                staged = os.path.join(staging, "copy")
                destinations.bring(source, staged)
                _check(source, staged)
                done = dataclasses.replace(planned, version=destinations.next_version(push_destination))
                destinations.write_text(staged, destinations.ROLLBACK_PATH, json.dumps(dataclasses.asdict(done)))
                destinations.publish(staged, push_destination, done.version)
        except Exception as error:
            # OSError, or TensorFlow's own for its file systems.
            reason = getattr(error, "strerror", None) or getattr(error, "message", None)
            if isinstance(error, UserError) or reason is None:
                raise
            raise UserError(f"push to {push_destination}: {reason}; make room, or correct its rights") from None
    return done


def _before(push_destination: str, in_force: list[int], newest: int, now: int) -> int | None:
    """The version to go back to: where the newest one is damaged, what it is a copy of or the newest that is whole."""
    if not destinations.is_complete(os.path.join(push_destination, str(newest))):
        copied = now != newest and destinations.is_complete(os.path.join(push_destination, str(now)))
        return now if copied else next(iter(in_force), None)
    answers = _content(os.path.join(push_destination, str(now)))
    for version in in_force[1:]:
        content = _content(os.path.join(push_destination, str(version)))
        # Of one without a manifest nobody knows.
        if not content or content != answers:
            return version
    return None


def _original(push_destination: str, version: int) -> int:
    copied = destinations.copy_of(os.path.join(push_destination, str(version)))
    return version if copied is None else copied


def _whole(push_destination: str, version: int, to: int | None) -> str:
    """A folder that holds a version: its own, or that of a copy."""
    for number in (version, to, *reversed(destinations.versions(push_destination))):
        folder = os.path.join(push_destination, str(number))
        if number is not None and _original(push_destination, number) == version and destinations.is_complete(folder):
            return folder
    raise UserError(f"version {version} in {push_destination} is no longer whole; choose another one with --to")


def _check(source: str, staged: str) -> None:
    """Reads every file of a local copy: what is served again has long not been looked at."""
    if not destinations.is_remote(source):
        damage = manifest.damage(staged, os.path.join(source, destinations.MANIFEST_PATH), thorough=True)
        if damage:
            name = os.path.basename(source)
            raise UserError(
                f"version {name} is damaged: {damage.replace(staged, source)}; choose another one with --to"
            )


def _content(folder: str) -> dict[str, str]:
    if destinations.is_remote(folder):
        return {}
    files = manifest.read(os.path.join(folder, destinations.MANIFEST_PATH))
    return {name: file.sha256 for name, file in files.items() if name not in _RECORDS}


def _origin(folder: str) -> tuple[str, int | None]:
    copied = destinations.copy_of(folder)
    if copied is not None:
        return "rollback", copied
    try:
        update: dict[str, Any] = json.loads(destinations.read_text(folder, destinations.UPDATE_PATH))
        return "update-index" if "added" in update else "update-users", int(update["updated_version"])
    except (ValueError, LookupError, TypeError):
        return ("run" if destinations.read_stamp(folder) else ""), None


def _when(folder: str, version: int) -> datetime.datetime | None:
    """Versions are numbered by the time; of another number the manifest's file tells it, which is written last."""
    seconds: float = version
    if not _FIRST_TIME <= version <= time.time() + 86_400:
        try:
            seconds = os.stat(os.path.join(folder, destinations.MANIFEST_PATH)).st_mtime
        except OSError:
            return None
    return datetime.datetime.fromtimestamp(seconds).astimezone()
