"""Room on the disk: artifacts of old runs and old pushed versions go, as far as nothing that stays needs them.

What a run made is marked as deleted in the metadata store before its files go, so that no later run takes it from TFX's
cache. The history itself stays, and of each run the small files that `twotower runs` shows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from modules import lock, push_destination
from modules.errors import UserError
from pipeline import runs
from pipeline.config import Config
from pipeline.runs import Artifact, Run
from pipeline.summary import REPORTS

# An update holds the push destination for seconds.
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Wish:
    """How much is to stay."""

    runs: int | None = None
    """The newest finished ones; None removes no artifacts."""
    versions: int | None = None
    """The newest pushed ones; None removes none."""
    checkpoints: bool = False
    """Whether those go that a killed training would go on from."""
    labelled: Collection[int] = ()
    """Versions that a server is told to load."""
    loaded: int = 0
    """How many of the newest versions a server is told to load."""


@dataclass(frozen=True)
class Gone:
    """Something that goes."""

    what: str
    path: str
    bytes: int
    """Of its files, where nothing that stays has them under another name."""


@dataclass(frozen=True)
class Stays:
    """Something that could have gone."""

    what: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What goes and what stays."""

    gone: list[Gone]
    stays: list[Stays]
    artifacts: list[int]
    """Numbers of the artifacts that are to be marked as deleted."""
    versions: list[int]

    @property
    def bytes(self) -> int:
        """What becomes free."""
        return sum(each.bytes for each in self.gone)


def plan(config: Config, wish: Wish) -> Plan:
    """What would go now.

    Raises:
        UserError: Nothing has run yet, the metadata store cannot be read, or the push destination is not local.
    """
    if push_destination.is_remote(config.push_destination) and wish.versions is not None:
        raise UserError(f"--keep-versions: {config.push_destination} is not on this machine; remove versions there")
    every = runs.read_runs(config)
    gone: dict[str, str] = {}
    stays: list[Stays] = []
    artifacts: list[int] = []
    if wish.runs is not None:
        kept = _kept_runs(config, every, wish)
        stays += [Stays(f"run {run}", why) for run, why in kept.items()]
        old = [run for run in every if run.id not in kept]
        needed = {artifact.id for run in every if run.id in kept for artifact in _artifacts(run)}
        shared = {artifact.id for run in old for artifact in _outputs(run)} & needed
        if shared:
            stays.append(Stays(f"{len(shared)} artifacts of other runs", "runs that stay took them from the cache"))
        for run in reversed(old):
            for stage, artifact in _made(run):
                if artifact.id not in needed and _is_below(artifact.uri, config.root):
                    artifacts += [artifact.id] if artifact.is_live else []
                    for path in _files_of(stage, artifact):
                        gone.setdefault(path, f"run {run.id}: {stage}")
        for path in _left_over(config, every, kept):
            gone.setdefault(path, "left over from killed runs")
    if os.path.isdir(_checkpoints(config)) and os.listdir(_checkpoints(config)):
        if wish.checkpoints:
            gone[_checkpoints(config)] = "checkpoints of killed trainings"
        elif wish.runs is not None:
            stays.append(Stays("checkpoints", "a killed training goes on from there; --checkpoints removes them"))
    versions: list[int] = []
    if wish.versions is not None:
        why = _kept_versions(config, every, wish)
        stays += [Stays(f"version {version}", reason) for version, reason in why.items()]
        versions = [version for version in push_destination.versions(config.push_destination) if version not in why]
        for version in versions:
            gone[os.path.join(config.push_destination, str(version))] = f"version {version}"
    sizes = _freed(gone)
    return Plan([Gone(what, path, sizes[path]) for path, what in gone.items()], stays, sorted(set(artifacts)), versions)


def clean(config: Config, wish: Wish) -> Plan:
    """Does what `plan` says, while no run works here and nobody publishes.

    Raises:
        UserError: As for `plan`; or a run is on, or somebody publishes.
    """
    plan(config, wish)  # before the lock, which would make the folder
    with contextlib.ExitStack() as locks:
        if not locks.enter_context(lock.exclusive(config.root, wait_seconds=0)):
            raise UserError(f"{config.root}: a run is on; wait for it or end it, and clean again")
        if wish.versions is not None and os.path.isdir(config.push_destination):
            locks.enter_context(push_destination.exclusive(config.push_destination, _WAIT_SECONDS))
        planned = plan(config, wish)
        # Killed between the two, files are left that nobody takes for anything, and the next time removes them.
        if planned.artifacts:
            runs.set_aside(config, planned.artifacts)
        try:
            for version in planned.versions:
                push_destination.withdraw(config.push_destination, version)
            for each in planned.gone:
                _remove(each.path)
        except OSError as error:
            raise UserError(f"{error.filename or config.root}: {error.strerror}; correct its rights") from None
    return planned


def _kept_runs(config: Config, every: list[Run], wish: Wish) -> dict[str, str]:
    """Run → why it stays."""
    kept: dict[str, str] = {}
    finished = 0
    for run in every:
        if finished == wish.runs:
            break
        kept[run.id] = "one of the newest" if run.state == "done" else "began after one that stays"
        finished += run.state == "done"
    behind = _behind(config, every)
    if behind is not None:
        kept.setdefault(behind.id, "it pushed what is served")
    if not wish.checkpoints and os.path.isdir(_checkpoints(config)) and os.listdir(_checkpoints(config)):
        for run in every:
            trainer = run.stage("Trainer")
            # A checkpoint is of the very artifacts that were trained on.
            if trainer is not None and trainer.state not in ("done", "cached"):
                kept.setdefault(run.id, "its training was killed, and there are checkpoints to go on from")
    return kept


def _behind(config: Config, every: list[Run]) -> Run | None:
    """The run that made what is served, however it has been updated or rolled back to since."""
    base = config.push_destination
    served = push_destination.latest_version(base)
    stamp = push_destination.read_stamp(os.path.join(base, served)) if served else ""
    pushers = [(run, stage) for run in every if (stage := run.stage("Pusher")) and stage.state == "done"]
    for run, stage in pushers:
        pushed = stage.output("pushed_model")
        if pushed is not None and served and str(pushed.properties.get("pushed_version")) == served:
            return run
    for run, stage in pushers:
        pushed = stage.output("pushed_model")
        if pushed is not None and stamp and pushed.properties.get("pipeline_stamp") == stamp:
            return run
    return None


def _kept_versions(config: Config, every: list[Run], wish: Wish) -> dict[int, str]:
    """Version → why it stays."""
    base = config.push_destination
    taken = push_destination.versions(base)[::-1]
    whole = [version for version in taken if push_destination.is_complete(os.path.join(base, str(version)))]
    kept = {version: "newer than what is served" for version in taken if not whole or version > whole[0]}
    if whole:
        kept[whole[0]] = "it is served"
    for version in whole[: wish.loaded]:
        kept.setdefault(version, "the servers' configuration loads so many")
    for version in taken:
        if version in wish.labelled:
            kept.setdefault(version, "the servers' configuration names it")
    for version in taken[: wish.versions]:
        kept.setdefault(version, "one of the newest")
    recent = _kept_runs(config, every, Wish(runs=wish.runs or 1, checkpoints=True))
    for run in every:
        if run.id in recent:
            for version, why in _versions_of(run):
                if version in taken:
                    kept.setdefault(version, f"{why} of run {run.id}")
    for version in list(kept):
        original = push_destination.copy_of(os.path.join(base, str(version)))
        if original is not None and original in taken:
            kept.setdefault(original, f"version {version} is a copy of it")
    return {version: kept[version] for version in taken if version in kept}


def _versions_of(run: Run) -> Iterator[tuple[int, str]]:
    """Without them the same run again would not find everything done."""
    for name, key, of_artifact, why in (
        ("Pusher", "pushed_model", "pushed_version", "the model"),
        ("BaselineResolver", "baseline", "version", "the baseline"),
    ):
        stage = run.stage(name)
        artifact = stage.output(key) if stage else None
        version = str(artifact.properties.get(of_artifact, "")) if artifact else ""
        if version.isdecimal():
            yield int(version), why


def _artifacts(run: Run) -> Iterator[Artifact]:
    for stage in run.stages:
        yield from (*stage.inputs, *stage.outputs)


def _outputs(run: Run) -> Iterator[Artifact]:
    return (artifact for _, artifact in _made(run))


def _made(run: Run) -> Iterator[tuple[str, Artifact]]:
    for stage in run.stages:
        for artifact in stage.outputs:
            yield stage.name, artifact


def _files_of(stage: str, artifact: Artifact) -> Iterator[str]:
    """What lies in the folder of an artifact, but for what a person is told of it, and the manifest beside it."""
    report = REPORTS.get((stage, artifact.key))
    folder = artifact.uri.rstrip("/")
    names = _names(folder)
    if report not in names:
        yield from [folder] if os.path.isdir(folder) else []
    else:
        yield from (os.path.join(folder, name) for name in names if name != report)
    if os.path.exists(f"{folder}.manifest.json"):
        yield f"{folder}.manifest.json"


def _left_over(config: Config, every: list[Run], kept: Collection[str]) -> Iterator[str]:
    """Folders of outputs that were never published: their stage was killed."""
    # By node, key and number: the root may have been moved since.
    published = {tuple(artifact.uri.rstrip("/").split("/")[-3:]) for run in every for artifact in _artifacts(run)}
    numbers = {str(stage.execution) for run in every if run.id in kept for stage in run.stages}
    for node in sorted({stage.name for run in every for stage in run.stages}):
        for key in _names(os.path.join(config.root, node)):
            for number in _names(os.path.join(config.root, node, key)):
                path = os.path.join(config.root, node, key, number)
                is_known = number in numbers or (node, key, number) in published
                if number.isdecimal() and not is_known and os.path.isdir(path):
                    yield path


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _checkpoints(config: Config) -> str:
    return os.path.join(config.root, "checkpoints")


def _is_below(path: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return "://" not in path and os.path.commonpath([os.path.realpath(path), folder]) == folder


def _freed(paths: Iterable[str]) -> dict[str, int]:
    """Bytes by path. A file with several names is counted where its last name goes."""
    status = {path: list(_statuses(path)) for path in paths}
    names = Counter((each.st_dev, each.st_ino) for found in status.values() for each in found)
    seen: Counter[tuple[int, int]] = Counter()
    sizes = dict.fromkeys(status, 0)
    for path, found in status.items():
        for each in found:
            file = (each.st_dev, each.st_ino)
            seen[file] += 1
            if seen[file] == names[file] == each.st_nlink:
                sizes[path] += each.st_size
    return sizes


def _statuses(path: str) -> Iterator[os.stat_result]:
    if not os.path.isdir(path):
        yield os.lstat(path)
    for where, _, names in os.walk(path):
        yield from (os.lstat(os.path.join(where, name)) for name in names)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
