"""A file system that takes no more: found in whatever libraries make of its refusal, and said in one way."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Beam and TensorFlow keep the kernel's words and no number. TensorFlow puts `<file>; ` before them, Python ` '<file>'`
# behind them, and a path is all that may be had of either.
_WORDS = "|".join(re.escape(os.strerror(number)) for number in _ERRNOS)
_IN_A_MESSAGE = re.compile(rf"(?:(?P<before>/[^\s;:'\"]+); )?(?P<reason>{_WORDS})(?:: ['\"](?P<after>/[^'\"]+)['\"])?")


@dataclass(frozen=True)
class Refusal:
    """A write that the file system refused."""

    reason: str
    """The kernel's words, for instance "No space left on device"."""
    place: str
    """The file, "" when the error does not say it."""


def refusal(error: BaseException) -> Refusal | None:
    """The refused write behind an error, or behind what it was raised from; None when there is none."""
    refusals = [found for one in _behind(error) if (found := _of(one))]
    # Of several that tell of the same write, one may know the file.
    return next((found for found in refusals if found.place), refusals[0] if refusals else None)


def in_words(found: Refusal, folder: str, remedy: str) -> str:
    """One line: where, why, and what to do.

    Args:
        found: What was refused.
        folder: What was written to as far as the caller knows, for errors that do not say it.
        remedy: How another folder is chosen.
    """
    place = found.place or folder
    temporary = tempfile.gettempdir()
    # Below the folder for temporary files, unless that is where the output is as well.
    if _is_below(place, temporary) and not _is_below(folder, temporary):
        remedy = "choose another folder for temporary files with the environment variable TMPDIR"
    return f"cannot write to {place}: {found.reason}; make room, or {remedy}"


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from or beside."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__context__, one.__cause__]


def _of(error: BaseException) -> Refusal | None:
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return Refusal(os.strerror(error.errno), _text(error.filename2) or _text(error.filename))
    match = _IN_A_MESSAGE.search(str(error))
    return Refusal(match["reason"], match["before"] or match["after"] or "") if match else None


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else ""


def _is_below(path: str, folder: str) -> bool:
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), ""))
