"""The doorbell: a connected socket that wakes the other process, and whose end tells of its death.

Frames do not pass through it. A byte on it means "look at the ring"; how many there are means nothing. The kernel
closes it when the process dies, however it dies, so end-of-file is the death signal.

What this module does not know: rings, frames, and when to ring.
"""

from __future__ import annotations

import contextlib
import socket
from threading import RLock
from typing import Final

_MANY: Final = 4096
"""Bytes taken off at once: more rings than anybody leaves unanswered."""

# Scripts that restore the default action of SIGPIPE must not die of a peer's death. macOS has no such flag.
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


class Doorbell:
    """One end of a doorbell. Takes over ``sock``: a connected stream socket on which nothing else travels any more.

    Attributes:
        peer_gone: the other end was found closed.
    """

    __slots__ = ("_lock", "_socket", "peer_gone")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # Else a byte could wait for the acknowledgement of the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        # Held over calls that do not block, so that no thread uses the number of a descriptor that another has just
        # closed. Reentrant: a signal handler may close while its own thread is inside.
        self._lock = RLock()
        self.peer_gone = False

    def ring(self) -> None:
        """Wake the other side. Never blocks or raises: a full socket has rung already, a broken one is remembered."""
        with self._lock:
            if self._socket.fileno() < 0:
                return
            try:
                self._socket.send(b"\1", _NO_SIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self.peer_gone = True

    def drain(self) -> None:
        """Take the bytes off, so that the descriptor can be waited on again; notice the end. Never blocks or raises."""
        with self._lock:
            # To the very end: a bell and the end of the connection often come together.
            while self._socket.fileno() >= 0 and not self.peer_gone:
                try:
                    self.peer_gone = not self._socket.recv(_MANY)
                except BlockingIOError:
                    return
                except OSError:
                    self.peer_gone = True

    def fileno(self) -> int:
        """The descriptor to wait on for readability; -1 after `close`."""
        return self._socket.fileno()

    def close(self, *, shutdown: bool = True) -> None:
        """End it. Idempotent, never raises.

        Args:
            shutdown: end it also for other processes that hold the descriptor. False in a forked child, which only
                lets go.
        """
        with self._lock:
            if self._socket.fileno() < 0:
                return
            if shutdown:
                # Wakes threads that wait on the descriptor, which `close` does not. Fails if the peer was first.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
