"""The driver's private folder for its workers' sockets, which goes when the driver goes, however that happens.

The driver holds a lock on the folder, which the kernel takes back at its death. So anybody can tell an abandoned folder
from one in use, without process numbers, which mean nothing in another container that shares the temporary
directory::

    driver ends in good order   removes the folder
    driver is killed            its workers and its template process leave; the last one removes the folder
    all are killed at a stroke  the next driver of this user sweeps it

What this module does not know: who listens there, and what is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from typing import Final

_PREFIX: Final = "hybriddist-"

_MAX_ROOT_BYTES: Final = 55
"""A socket's path holds 104 bytes on macOS (108 on Linux), and our names below the root take up to 48."""

_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.01
"""A dying process closes its descriptors one after the other: its leash may end before its lock does."""


class Folder:
    """A new folder that only this user can enter.

    Attributes:
        path: where it is.
    """

    def __init__(self) -> None:
        import tempfile  # 5 ms, and only the driver needs it

        while True:
            self.path = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_root())
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            if os.path.isdir(self.path):
                return
            os.close(self._fd)  # swept by somebody in the moment before it was locked

    def remove(self) -> None:
        """Remove it with the sockets in it. Idempotent."""
        if self._fd >= 0:
            _remove(self.path)
            os.close(self._fd)
            self._fd = -1

    def let_go(self) -> None:
        """In a forked copy of the driver: the lock is the original's, and must end with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def sweep(self) -> list[str]:
        """Remove the abandoned folders of this user beside this one; their paths."""
        root = os.path.dirname(self.path)
        swept = []
        for name in os.listdir(root):
            path = os.path.join(root, name)
            if name.startswith(_PREFIX) and path != self.path and _is_ours(path) and _remove_abandoned(path):
                swept.append(path)
        return swept


def leave(socket_path: str) -> None:
    """Remove the socket of a worker whose driver may be gone; if it is, and this was the last one, the folder too."""
    with contextlib.suppress(OSError):  # removed already
        os.unlink(socket_path)
    leave_folder(os.path.dirname(socket_path))


def leave_folder(folder: str) -> None:
    """Remove the folder if the driver is gone and no socket is left in it. A folder that is not ours stays."""
    if not os.path.basename(folder).startswith(_PREFIX):
        return
    with contextlib.suppress(OSError):  # gone meanwhile
        for _ in range(_TRIES):
            if os.listdir(folder) or _remove_abandoned(folder):
                return
            time.sleep(_PAUSE_SECONDS)


def _root() -> str:
    """The temporary directory, unless the path of a socket in it would be too long for the system."""
    import tempfile

    root = tempfile.gettempdir()
    return root if len(os.fsencode(root)) <= _MAX_ROOT_BYTES else "/tmp"


def _is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False  # gone meanwhile
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _remove_abandoned(path: str) -> bool:
    """Remove the folder unless its driver lives; whether it did."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):  # somebody else removes it too
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
