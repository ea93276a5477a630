"""Drives the handshake over a connected socket.

Every connection of the library, a Unix socket inside a node as well as TCP between nodes, passes through `greet` before
anything else is read from it or written to it. What this module does not know: what is proved and how
(``core/handshake.py``), who listens and how many strangers may wait at once (the listeners), and what is said
afterwards.

How it works. One deadline holds for all steps together, so that a peer that sends one byte a second gets no more time
than a silent one. At most the bytes of the next step are read: what follows the handshake stays in the socket. Each
read and each write may block up to the deadline, so listeners call this away from the thread that accepts.
"""

from __future__ import annotations

import socket

from hybriddist.core.handshake import Handshake, Role
from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, VersionMismatchError


def greet(sock: socket.socket, role: Role, cookie: str, deadline: Deadline) -> None:
    """Prove the cookie to the peer and have it proved by the peer.

    Blocks until the handshake is done, has failed, or the deadline has come. Afterwards the socket is in blocking mode
    without a timeout and nothing beyond the handshake has been read. After an exception the caller closes the socket;
    its timeout is then undefined.

    Args:
        sock: a connected stream socket, AF_UNIX or TCP.
        role: `Role.CONNECTOR` for the side that called ``connect``, `Role.ACCEPTOR` for the other.
        cookie: the cluster's secret.
        deadline: the end of all steps together.

    Raises:
        AuthenticationError: the peer does not know the cookie.
        VersionMismatchError: the peer runs another version of the protocol or of Python; both sides raise it.
        RemoteProtocolError: the peer speaks something else.
        ConnectError: the peer closed early, the connection failed, or the deadline came; the text says which.
    """
    handshake = Handshake(role, cookie)
    try:
        _send(sock, handshake.start(), deadline)
        while not handshake.done:
            _limit(sock, deadline)
            data = sock.recv(handshake.needed)
            if not data:
                handshake.eof()
            _send(sock, handshake.receive(data), deadline)
        sock.settimeout(None)
    except VersionMismatchError:
        _say_farewell(sock, handshake.farewell, deadline)
        raise
    except ConnectError as error:
        error.address = _address(sock)
        raise
    except TimeoutError as error:
        raise ConnectError("the handshake was not done when its time was over", _address(sock)) from error
    except OSError as error:
        raise ConnectError(f"the connection failed in the handshake: {error}", _address(sock)) from error


def _send(sock: socket.socket, data: bytes, deadline: Deadline) -> None:
    if data:
        _limit(sock, deadline)
        sock.sendall(data)


def _limit(sock: socket.socket, deadline: Deadline) -> None:
    """Have the next operation end with the deadline (``sendall`` counts its timeout over all its writes)."""
    seconds = deadline.remaining()
    if seconds is not None and seconds <= 0:
        # A timeout of 0 would mean non-blocking mode.
        raise TimeoutError("no time left")
    sock.settimeout(seconds)


def _say_farewell(sock: socket.socket, farewell: bytes, deadline: Deadline) -> None:
    try:
        _send(sock, farewell, deadline)
    except OSError:
        # A courtesy to a peer of another version. What matters is our own error, which is on its way up.
        pass


def _address(sock: socket.socket) -> str:
    """The peer's address for error texts; empty if it has none (a pair of sockets) or it is gone already."""
    try:
        peer = sock.getpeername()
    except OSError:
        return ""
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer)
