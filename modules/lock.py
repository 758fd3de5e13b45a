"""A lock on a local folder, for processes that must not work in it at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator

_LOOK_AGAIN_SECONDS = 0.1
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOSYS)


def exclusive(
    folder: str, wait_seconds: float, waiting: Callable[[], None] = lambda: None
) -> contextlib.AbstractContextManager[bool]:
    """Keeps others out of a folder; yields whether the lock was had in time.

    The lock is the kernel's, on the folder itself: it leaves no file behind and ends with the process that holds it. On
    a file system that knows no locks everybody has it.

    Args:
        folder: A local folder, made when it is not there.
        wait_seconds: How long to wait for whoever has the lock.
        waiting: Called once when there is somebody to wait for.

    Raises:
        OSError: There is no such folder, and none can be made.
    """
    return _locked(fcntl.LOCK_EX, folder, wait_seconds, waiting)


def shared(
    folder: str, wait_seconds: float, waiting: Callable[[], None] = lambda: None
) -> contextlib.AbstractContextManager[bool]:
    """Keeps those out who want a folder for themselves, and lets in who shares it; otherwise as `exclusive`."""
    return _locked(fcntl.LOCK_SH, folder, wait_seconds, waiting)


@contextlib.contextmanager
def _locked(kind: int, folder: str, wait_seconds: float, waiting: Callable[[], None]) -> Iterator[bool]:
    descriptor = _lock(kind, folder, time.monotonic() + wait_seconds, waiting)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Said to the lock and not left to `close`: a child that was forked meanwhile has this descriptor too.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _lock(kind: int, folder: str, deadline: float, waiting: Callable[[], None]) -> int | None:
    has_waited = False
    while True:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return descriptor
            os.close(descriptor)
            raise
        else:
            # Somebody may have removed the folder, or put another into its place, since it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                    return descriptor
            os.close(descriptor)
            continue
        if time.monotonic() >= deadline:
            return None
        if not has_waited:
            has_waited = True
            waiting()
        time.sleep(_LOOK_AGAIN_SECONDS)
