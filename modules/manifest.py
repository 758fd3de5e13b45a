"""Which files a folder held when it was whole, so that damage to one of them is found before it is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class File:
    """What is remembered of a file."""

    bytes: int
    changed: int
    """Time of the last change, in nanoseconds since 1970."""
    sha256: str


def of(folder: str) -> dict[str, File]:
    """Every file below a local folder, by its path from there."""
    files = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            status = os.stat(path)
            files[os.path.relpath(path, folder)] = File(status.st_size, status.st_mtime_ns, _sha256(path))
    return files


def write(path: str, files: Mapping[str, File]) -> None:
    """Writes a manifest; it appears whole."""
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump({name: asdict(entry) for name, entry in sorted(files.items())}, file)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def read(path: str) -> dict[str, File]:
    """What a manifest remembers; nothing when it is not there, or is no manifest."""
    try:
        with open(path, encoding="utf-8") as file:
            return {name: File(**entry) for name, entry in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def damage(folder: str, path: str, *, thorough: bool = False) -> str:
    """What is wrong with a folder: its first file that is not as the manifest remembers it, and why; "" for nothing.

    A file whose size and time are the remembered ones is not read, unless the search is thorough. Files that the
    manifest does not know are of no interest, and without a manifest nothing is known.

    Args:
        folder: The folder now.
        path: Its manifest.
        thorough: Whether to read every file.
    """
    for name, was in read(path).items():
        where = os.path.join(folder, name)
        try:
            status = os.stat(where)
            if status.st_size != was.bytes:
                return f"{where} has {status.st_size:,} of {was.bytes:,} bytes"
            if (thorough or status.st_mtime_ns != was.changed) and _sha256(where) != was.sha256:
                return f"{where} has other content than was written"
        except FileNotFoundError:
            return f"{where} is missing"
        except OSError as error:
            return f"{where} cannot be read ({error.strerror})"
    return ""


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
