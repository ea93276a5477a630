"""TCP sockets: opened, tuned, and with their errors put into our words.

Every ``OSError`` of the network becomes one of ours here and nowhere else, with a text that says what to do about it.

What this module does not know: frames, the handshake, who is at the other end.

How it works. `connect` tries the addresses of a name one after the other and shares the time that is left among them,
so that an address that swallows packets does not use up the time of one that would answer. `tune` is for both ends:

* ``TCP_NODELAY``, and ``TCP_QUICKACK`` where there is one: a small message waits for nobody.
* Keepalive probes, so that a link that was cut silently is noticed at all. No ``TCP_USER_TIMEOUT``: it would also end
  the connection to a healthy peer that does not read for a while, such as a worker inside a long call of C code.
* No ``SO_SNDBUF`` and no ``SO_RCVBUF``: setting them turns the kernel's own tuning off, which long links need, and on
  loopback it gains little (100 MB at 2.0-2.2 GB/s with the kernel's sizes, 1.9-2.6 GB/s with sizes of 1 to 4 MiB).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from hybriddist.deadline import Deadline
from hybriddist.errors import NO_DESCRIPTORS, ConnectError, TransportBroken
from hybriddist.net.address import Address, join_host_port

KEEPALIVE_IDLE_SECONDS: Final = 10
KEEPALIVE_INTERVAL_SECONDS: Final = 5
KEEPALIVE_PROBES: Final = 4
"""Together: the kernel gives a silent link up after 10 + 4 * 5 = 30 s, as long as the default silence limit."""

BACKLOG: Final = 1024
"""Connections that wait to be accepted; the kernel lowers it to its own maximum. All workers may connect at once."""

_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
    ("TCP_KEEPALIVE", KEEPALIVE_IDLE_SECONDS),  # macOS's name for the same
    ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
    ("TCP_KEEPCNT", KEEPALIVE_PROBES),
)


def connect(address: Address, deadline: Deadline, *, open_socket: Callable[..., Any] = socket.socket) -> socket.socket:
    """A tuned, blocking TCP connection to ``address``, made before ``deadline``.

    Looking a name up may outlast the deadline: the system's resolver cannot be interrupted.

    Args:
        address: where to.
        deadline: when to give up.
        open_socket: makes the socket (a test's place to put a fault).

    Raises:
        ConnectError: none of the host's addresses answered; the text tells what happened at the last one.
    """
    try:
        found = socket.getaddrinfo(_plain(address.host), address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        text = f"cannot connect to {address}: the name {address.host!r} was not found ({_reason(error)})"
        raise ConnectError(text, str(address)) from error
    except OSError as error:
        raise connect_error(error, address) from error
    failure: OSError = TimeoutError("there was no time left")
    for position, (family, kind, protocol, _, place) in enumerate(found):
        left = deadline.remaining()
        if left == 0.0:
            break
        try:
            sock: socket.socket = open_socket(family, kind, protocol)
        except OSError as error:
            failure = error
            continue
        try:
            sock.settimeout(None if left is None else left / (len(found) - position))
            sock.connect(place)
            if sock.getsockname() == sock.getpeername():
                # Nobody listens on the port, but the kernel chose the very same one for us: TCP connects it to itself.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            tune(sock)
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise connect_error(failure, address) from failure


def listen(host: str, port: int = 0, *, backlog: int = BACKLOG) -> socket.socket:
    """A non-blocking listening socket, bound to exactly ``host`` and ``port`` (0: any free one).

    Args:
        host: a numeric address of this host, or a name of one. Never empty: that would mean every interface.
        port: the port.
        backlog: connections that may wait to be accepted.

    Raises:
        ValueError: the host is empty.
        ConnectError: the port is taken, or the address is none of this host.
    """
    if not host:
        raise ValueError("a listener needs a host: an empty one would mean every interface")
    shown = join_host_port(host, port)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            _plain(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConnectError(f"cannot listen on {shown}: {_advice(error)}", shown) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # A port is usable again right after its last owner.
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        if sock.getsockname()[0] != place[0]:
            raise OSError(errno.EADDRNOTAVAIL, f"the system bound {sock.getsockname()[0]} instead")
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConnectError(f"cannot listen on {shown}: {_advice(error)}", shown) from error
    return sock


def _plain(host: str) -> str | bytes:
    """As bytes where that is possible: for a str, `getaddrinfo` imports the codec of international names (5 ms)."""
    return host.encode() if host.isascii() else host


def tune(sock: socket.socket) -> None:
    """Make a connected socket quick for small messages and able to notice a dead link. Other families: no effect."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def address_of(name: object) -> Address | None:
    """The address in what ``getsockname`` or ``getpeername`` returned; None for other families than TCP's."""
    if isinstance(name, tuple) and len(name) >= 2 and isinstance(name[0], str) and isinstance(name[1], int):
        return Address(name[0], name[1])
    return None


# ---- foreign errors in our words ------------------------------------------------------------------------------------


def connect_error(error: OSError, address: Address) -> ConnectError:
    """The `ConnectError` for an attempt at ``address`` that failed with ``error``."""
    return ConnectError(f"cannot connect to {address}: {_advice(error)}", str(address))


def broken(error: OSError, peer: str) -> TransportBroken:
    """The `TransportBroken` for a connection to ``peer`` that failed with ``error``."""
    return TransportBroken(f"the connection to {peer} broke: {_BROKEN.get(error.errno or 0) or _reason(error)}")


def out_of_resources(error: OSError) -> bool:
    """Whether ``error`` tells of a shortage on this host that may pass (descriptors, memory), not of the peer."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


_BROKEN: Final = {
    errno.ECONNRESET: "the peer's process ended, or its host reset the connection",
    errno.EPIPE: "the peer's process ended, or its host reset the connection",
    errno.ETIMEDOUT: "the peer's host did not answer any more; it is down, or the network between is cut",
    errno.EHOSTUNREACH: "there is no route to the peer's host any more",
    errno.ENETUNREACH: "there is no route to the peer's network any more",
}

_ADVICE: Final = {
    errno.ECONNREFUSED: "connection refused: nothing listens there; has the process ended, or is the port wrong?",
    errno.EHOSTUNREACH: "no route to the host: is it up, and does a firewall stand between?",
    errno.ENETUNREACH: "the network is unreachable from here: is this an address of another network?",
    errno.ETIMEDOUT: "no answer in time: is the host up, and does a firewall drop packets to this port?",
    errno.EADDRINUSE: "the port is taken: choose another, or none to get any free one",
    errno.EADDRNOTAVAIL: "this is no address of this host that can be used now",
    errno.EACCES: "not permitted: ports below 1024 need privileges, and a firewall may forbid the connection",
    **NO_DESCRIPTORS,
}


def _advice(error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the name was not found ({_reason(error)})"
    if isinstance(error, TimeoutError):  # Python's own timeout carries no number.
        return _ADVICE[errno.ETIMEDOUT]
    return _ADVICE.get(error.errno or 0) or _reason(error)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
