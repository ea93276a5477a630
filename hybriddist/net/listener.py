"""A listening TCP socket that survives what happens to it.

What this module does not know: who connects (the handshake finds out), and how to wait (its descriptor goes into the
caller's selector).

How it works. `TcpListener.accept` never blocks and never raises because of a peer: a connection that was gone before it
could be accepted is skipped. A process without descriptors cannot accept, but the connection stays in the queue and the
descriptor stays readable, so that a selector would spin. Therefore the listener keeps one descriptor in reserve: it
gives that up, accepts, and hangs up at once. The peer sees an end instead of a silence, and this process goes on.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Final

from hybriddist.errors import ConnectError
from hybriddist.net.address import LOOPBACK, MAX_PORT
from hybriddist.net.socket import BACKLOG, address_of, listen, out_of_resources, tune

_BACK_OFF_SECONDS: Final = 0.01
"""Pause when not even the reserve helps; keeps the caller's loop from spinning, too short to be noticed elsewhere."""

_TRIES_FROM_HINT: Final = 1000


class TcpListener:
    """Accepts TCP connections on one address.

    Args:
        host: a numeric address of this host, or a name of one. The default is reached from this host alone.
        port: the port; 0: any free one.
        port_is_hint: whether, when ``port`` is taken, the next free one upward will do.
        backlog: connections that may wait to be accepted.

    Attributes:
        address: where it really listens, numeric.

    Raises:
        ValueError: the host is empty.
        ConnectError: the port is taken, or the address is none of this host.
    """

    def __init__(
        self, host: str = LOOPBACK, port: int = 0, *, port_is_hint: bool = False, backlog: int = BACKLOG
    ) -> None:
        self._sock = _listen_from(host, port, backlog) if port_is_hint and port else listen(host, port, backlog=backlog)
        address = address_of(self._sock.getsockname())
        assert address is not None
        self.address: Final = address
        self._reserve: int | None = None
        self._short_of_resources = False
        try:
            self._refill_reserve()
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """The descriptor that is readable when somebody waits; -1 after `close`."""
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection, tuned and non-blocking; None if nobody waits (or the one who waited is gone).

        Raises:
            ConnectError: the listener is closed.
        """
        if self._sock.fileno() < 0:
            raise ConnectError(f"the listener on {self.address} is closed", str(self.address))
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if out_of_resources(error):
                self._hang_up(error)
            # Everything else that accept can say is an error of the connection that it would have given: the kernel
            # passes pending network errors of the new connection on (accept(2): "treat them like EAGAIN").
            return None
        try:
            sock.setblocking(False)
            tune(sock)
        except OSError:
            sock.close()  # Reset between accept and tune: some systems then refuse the options.
            return None
        self._short_of_resources = False
        self._refill_reserve()
        return sock

    def close(self) -> None:
        """Stop listening; connections that wait are refused. Idempotent."""
        self._sock.close()
        self._give_up_reserve()

    def _hang_up(self, error: OSError) -> None:
        if not self._short_of_resources:
            self._short_of_resources = True  # Said once, until accepting works again.
            import logging  # 6 ms, and descriptors rarely run out

            logging.getLogger(__name__).warning(
                "cannot accept connections on %s: %s; they are dropped", self.address, error.strerror
            )
        had_reserve = self._give_up_reserve()
        try:
            sock, _ = self._sock.accept()
            sock.close()
        except BlockingIOError:
            return
        except OSError:
            had_reserve = False
        finally:
            self._refill_reserve()
        if not had_reserve:
            time.sleep(_BACK_OFF_SECONDS)

    def _refill_reserve(self) -> None:
        if self._reserve is None and self._sock.fileno() >= 0:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if not out_of_resources(error):
                    raise

    def _give_up_reserve(self) -> bool:
        if self._reserve is None:
            return False
        os.close(self._reserve)
        self._reserve = None
        return True


def _listen_from(host: str, port: int, backlog: int) -> socket.socket:
    """Listen on the first free port from ``port`` upward; if there is none near, on any."""
    for candidate in range(port, min(port + _TRIES_FROM_HINT, MAX_PORT + 1)):
        try:
            return listen(host, candidate, backlog=backlog)
        except ConnectError as error:
            if not _port_is_taken(error):
                raise
    return listen(host, 0, backlog=backlog)


def _port_is_taken(error: ConnectError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EADDRINUSE, errno.EACCES)
