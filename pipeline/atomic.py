"""What a command writes is there whole or not at all: a file, or a folder of files."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from typing import IO

from modules import full_disk
from modules.errors import UserError


@contextlib.contextmanager
def new_file(path: str) -> Iterator[IO[bytes]]:
    """A file to write to, which gets its name when the block ends well; an older one of the name is replaced.

    Raises:
        UserError: It cannot be written.
    """
    # Workers of different machines have the same process ids, and of two attempts at a file one may be late.
    partial = _partial(path)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Opened here: PyArrow would take a name with a colon for an address.
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def check_new_folder(folder: str) -> None:
    """Refuses an output folder that is there already, unless it is empty."""
    if os.path.exists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        what = "has files already" if os.path.isdir(folder) else "is a file"
        raise UserError(f"--output {folder}: {what}; name a new folder")


@contextlib.contextmanager
def new_folder(folder: str) -> Iterator[str]:
    """A folder beside the one that is wanted, which gets its name when the block ends well.

    Args:
        folder: An absolute path that `check_new_folder` has found free.

    Raises:
        UserError: It cannot be written.
    """
    staging = _partial(folder)
    try:
        os.makedirs(staging)
        yield staging
        os.replace(staging, folder)
    except UserError:
        raise
    except Exception as error:
        refused = full_disk.refusal(error)
        if refused is not None:
            raise UserError(full_disk.in_words(refused, folder, "choose another disk with --output")) from None
        if isinstance(error, OSError):
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _partial(path: str) -> str:
    return f"{path}.{uuid.uuid4().hex[:12]}.partial"
