"""A listener for connections inside the node: a Unix socket in a private folder.

The socket's file lies in a folder that only its owner may enter (0700), and each connection's user is asked of the
kernel before a byte is read. Abstract names are not used: anybody in the network namespace could connect to them. The
proof of the cookie is asked for all the same.

The file lives as long as the listener; leaving processes remove it (``runtime/leash.py`` also on a hurried exit), and
who made the folder removes the folder.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

BACKLOG = 128


class UnixListener:
    """Listens at ``path``; raises `OSError` if that cannot be done (the name is taken, or too long)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(path)
            os.chmod(path, 0o600)
            self._socket.listen(BACKLOG)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection of this user; None if there is none after all."""
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return None
        if not _is_own(sock):
            sock.close()
            return None
        sock.setblocking(True)
        return sock

    def close(self) -> None:
        """Listen no more and remove the name."""
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _is_own(sock: socket.socket) -> bool:
    """Whether the kernel says that our own user is at the other end; True where it cannot be asked."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return bool(uid == os.geteuid())
