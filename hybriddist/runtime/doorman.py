"""A listener among what a process polls: each connection that comes is handed on.

What this module does not know: what becomes of a connection (``links.py``), and what kind of listener it is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    """Accepts connections."""

    def fileno(self) -> int: ...
    def accept(self) -> socket.socket | None: ...
    def close(self) -> None: ...


class Doorman:
    """Opens when the listener is ready.

    Args:
        welcome: gets each connection; must not block.
        listener: the listener.
    """

    def __init__(self, welcome: Callable[[socket.socket], None], listener: Listener) -> None:
        self._welcome = welcome
        self.listener = listener

    def on_ready(self) -> None:
        """See `poller.Source`."""
        sock = self.listener.accept()
        if sock is not None:
            self._welcome(sock)
