"""The driver's private folder for its workers' sockets, and what is left of folders whose drivers were killed.

A worker that finds its driver dead removes its socket and then the folder, which succeeds for the last one
(``runtime/leash.py``). Only if all were killed at one stroke the folder stays, until the next driver sweeps it. Who is
alive is asked of the sockets, not of process numbers, which mean nothing in another container that shares the
temporary directory: a socket without a process behind it refuses connections.

What this module does not know: who listens there, and what is said.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from typing import Final

_PREFIX: Final = "hybriddist-"

_YOUNG_SECONDS: Final = 60.0
"""A folder younger than this may belong to a driver whose first worker has not made its socket yet."""


def make() -> str:
    """A new folder that only this user can enter."""
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")


def remove(folder: str) -> None:
    """Remove the folder with the sockets in it."""
    with contextlib.suppress(OSError):  # somebody else removes it too
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def sweep(newest: str, young_seconds: float = _YOUNG_SECONDS) -> list[str]:
    """Remove this user's folders beside ``newest`` behind whose sockets nobody is alive; their paths.

    Args:
        newest: a folder that was just made. Its age is zero by the clock of the file system.
        young_seconds: folders that were changed so short before are left alone.
    """
    root = os.path.dirname(newest)
    before = os.stat(newest).st_mtime - young_seconds
    swept = []
    for name in os.listdir(root):
        folder = os.path.join(root, name)
        if name.startswith(_PREFIX) and _is_old_and_ours(folder, before) and not _is_alive(folder):
            remove(folder)
            swept.append(folder)
    return swept


def _is_old_and_ours(folder: str, before: float) -> bool:
    try:
        found = os.lstat(folder)
    except OSError:
        return False  # gone meanwhile
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mtime <= before


def _is_alive(folder: str) -> bool:
    """Whether anything in the folder may still be in use; what is no socket is not ours to judge."""
    try:
        return any(_answers(os.path.join(folder, name)) for name in os.listdir(folder))
    except OSError:
        return True


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(0)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return not stat.S_ISSOCK(os.lstat(path).st_mode)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # its queue is full, or it is nothing that can be connected to
        return True
