"""The private folder in which a driver's workers put their sockets: it goes with the last of them, however that goes.

The driver only gives it a name; a worker makes it when it is about to listen there. So a driver that is killed early
leaves nothing that nobody would remove. Each worker holds a shared lock on the folder, which the kernel takes back at
its death, so anybody can tell a folder in use from an abandoned one, without process numbers, which mean nothing in
another container that shares the temporary directory::

    a worker comes      makes the folder if there is none, locks it (shared), listens
    a worker leaves     removes its socket and asks for the exclusive lock: only the last one gets it, and removes all
    it could not leave  its template process, or its driver, does that for it
    all are killed at a stroke      the next driver of this user sweeps what nobody holds

What this module does not know: who listens there, and what is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
import weakref
from threading import Lock
from typing import Final

from hybriddist.errors import TransportError

_NAME: Final = re.compile(r"hybriddist-\d+-[0-9a-f]{8}")
"""Ours alone: other folders whose names begin with the library's are somebody's own."""

_MAX_ROOT_BYTES: Final = 55
"""A socket's path holds 104 bytes on macOS (108 on Linux), and our names below the root take up to 48."""

_LEAVE_SECONDS: Final = 0.5
"""What a leaving worker waits for its own other thread, which is just taking the seat."""


class Folder:
    """The name of a new folder. It is there while workers are, and only this user can enter it.

    Attributes:
        path: where it is, or will be.
    """

    def __init__(self) -> None:
        self.path = os.path.join(_root(), f"hybriddist-{os.getpid()}-{os.urandom(4).hex()}")

    def remove(self) -> None:
        """Remove it with the sockets in it, if it is there."""
        _remove(self.path)

    def sweep(self) -> list[str]:
        """Remove the abandoned folders of this user beside this one; their paths."""
        root = os.path.dirname(self.path)
        swept = []
        for name in os.listdir(root):
            path = os.path.join(root, name)
            if path != self.path and _is_ours(path) and _remove_abandoned(path):
                swept.append(path)
        return swept


class Seat:
    """A worker's place in the folder: the name of its socket, and its share of the lock.

    Args:
        socket_path: where the socket is going to be; its folder is the one.
    """

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self._fd = -1
        self._left = False
        self._lock = Lock()
        let_go = weakref.WeakMethod(self._let_go)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: (let_go() or int)())

    def take(self) -> None:
        """Make the folder if need be, and hold it from now on.

        Raises:
            TransportError: there is something of that name which is not ours alone.
            OSError: it cannot be made.
        """
        folder = os.path.dirname(self.socket_path)
        with self._lock:
            while self._fd < 0 and not self._left:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
                try:
                    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue  # the last of the others has removed it just now
                found = os.fstat(fd)
                if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                    os.close(fd)
                    raise TransportError(f"{folder} is not a folder that this user alone can enter")
                fcntl.flock(fd, fcntl.LOCK_SH)
                if _is_still(folder, fd):
                    self._fd = fd
                else:
                    os.close(fd)

    def leave(self) -> None:
        """Remove the socket and, if this was the last one, the folder. It cannot be taken any more. Never raises."""
        locked = self._lock.acquire(timeout=_LEAVE_SECONDS)
        try:
            fd, self._fd, self._left = self._fd, -1, True
            with contextlib.suppress(OSError):  # removed already
                os.unlink(self.socket_path)
            if fd >= 0:
                _remove_if_last(os.path.dirname(self.socket_path), fd)
        finally:
            if locked:
                self._lock.release()

    def _let_go(self) -> None:
        """In a forked copy of this worker, which may outlive it: the lock must end with the worker."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def clean_up(socket_path: str) -> None:
    """Do for a worker that is gone what it may not have done itself."""
    with contextlib.suppress(OSError):  # it has
        os.unlink(socket_path)
    leave_folder(os.path.dirname(socket_path))


def leave_folder(folder: str) -> None:
    """Remove the folder if nobody is in it any more. A folder that is not ours stays."""
    if _is_ours(folder):
        _remove_abandoned(folder)


def _root() -> str:
    """The temporary directory, unless the path of a socket in it would be too long for the system."""
    root = os.environ.get("TMPDIR") or "/tmp"
    if "tempfile" in sys.modules or not (os.path.isabs(root) and os.access(root, os.W_OK | os.X_OK)):
        import tempfile  # 5 ms before the first worker starts, where the answer is mostly known without

        root = tempfile.gettempdir()
    return root if len(os.fsencode(root)) <= _MAX_ROOT_BYTES else "/tmp"


def _is_ours(path: str) -> bool:
    if not _NAME.fullmatch(os.path.basename(path)):
        return False
    try:
        found = os.lstat(path)
    except OSError:
        return False  # gone meanwhile
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _is_still(path: str, fd: int) -> bool:
    """Whether ``path`` names the folder that ``fd`` is open on: it may have been removed before it was locked."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False


def _remove_abandoned(path: str) -> bool:
    """Remove the folder unless somebody holds it; whether it did."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    return _remove_if_last(path, fd)


def _remove_if_last(path: str, fd: int) -> bool:
    """Remove the folder unless somebody else holds it, and let go of our own hold, ``fd``.

    Of several who do this at the same time the last one succeeds: asking gives up one's own share, granted or not.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_still(path, fd) and _remove(path)
    except OSError:
        return False
    finally:
        os.close(fd)


def _remove(path: str) -> bool:
    """Remove the folder with the sockets in it; if there is anything else in it, it is not ours, and stays."""
    try:
        entries = [os.path.join(path, name) for name in os.listdir(path)]
        if not all(stat.S_ISSOCK(os.lstat(entry).st_mode) for entry in entries):
            return False
        for entry in entries:
            os.unlink(entry)
        os.rmdir(path)
    except OSError:  # it was never made, or somebody else removes it too
        return False
    return True
