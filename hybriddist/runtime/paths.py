"""Making proven transports: from an address to dial, or from a connection that was accepted.

::

    connector                                              acceptor
      connect ──────────────────────────────────────────►  (accepted)
      greet: mutual proof of the cookie  ◄──────────────►  greet
      "S" + offer of a segment  (the shared-memory probe) ►  attach ─► yes: shared memory, the socket is the doorbell
      or "T"                    ─────────────────────────►  plain stream frames

Nothing is unpickled here. What this module does not know: peers, pids, messages.
"""

from __future__ import annotations

import socket
import sys
import time
import warnings
from _thread import allocate_lock
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core.handshake import Role
from hybriddist.core.lease import RecycledMemory
from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, HybridDistError, RemoteProtocolError, SharedMemoryFull
from hybriddist.greeting import greet
from hybriddist.transport import Transport

if TYPE_CHECKING:
    from hybriddist.shm.segment import Budget


_QUEUE_SECONDS: Final = 0.005
"""Between two tries to get into a full queue of connections."""


class Paths:
    """The transports of one process: they share its memory budget and its recycled memory.

    Attributes:
        quiet: nobody is warned (any more) that there is no shared memory left. On a worker of the driver's own node
            from the start: the driver has said so, or will when it matters to it.

    Args:
        spawn: runs a function on a thread of its own; None: nobody is warned of shared memory that gets full.
        taken: called whenever a connection takes shared memory. It must not block.
    """

    def __init__(
        self,
        spawn: Callable[[Callable[[], None], str], object] | None = None,
        taken: Callable[[], None] | None = None,
    ) -> None:
        self._spawn = spawn
        self._taken = taken
        self._memory = RecycledMemory()
        self._budget: Budget | None = None
        self._budget_lock = allocate_lock()  # several connections are made at once, and share one
        self.quiet = False
        self.word = "custom"
        """What connections are called that a manager's program hands in."""
        self.openers: dict[str, Callable[[str], Transport]] = {}
        """For addresses of further schemes: makes a transport that needs no greeting, as inside one interpreter."""

    def accept(self, sock: socket.socket, cookie: str, deadline: Deadline) -> Transport:
        """Greet whoever has connected and agree on the path.

        Raises:
            HybridDistError, OSError: it is nobody of ours, or too slow; the caller closes the socket.
        """
        greet(sock, Role.ACCEPTOR, cookie, deadline)
        from hybriddist.shm import rendezvous

        path = self._read_path(sock, deadline)
        if path == rendezvous.PATH_SHM:
            shared = rendezvous.accept(sock, deadline, budget=self._shared_budget(), allocate=self._memory.allocate)
            if shared is not None:
                return shared
            path = self._read_path(sock, deadline)
        if path != rendezvous.PATH_STREAM:
            raise RemoteProtocolError(f"no path begins with {path!r}")
        return self._stream(sock)

    def over_streams(
        self,
        reader: Any,
        writer: Any,
        role: Role,
        cookie: str,
        scheme: str,
        prepare: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> tuple[socket.socket, Callable[[Deadline], Transport]]:
        """Two streams of a manager's own. They belong to the library from now on, whatever comes of it.

        Args:
            scheme: what `path_to` calls the path.
            prepare: makes a function ready to be run by a thread.

        Returns:
            A socket that ends it all when it is shut down, and what is left to do: greet, by a deadline, which gives
            the transport or raises `HybridDistError` or `OSError`.

        Raises:
            TypeError: these are no binary streams.
            ConnectError: there are no descriptors or no threads to be had.
        """
        from hybriddist.net.stream_pair import StreamBridge, StreamPairTransport
        from hybriddist.shm import rendezvous

        bridge = StreamBridge(reader, writer, role, prepare)
        sock = bridge.socket

        def greeted(deadline: Deadline) -> Transport:
            try:
                greet(sock, role, cookie, deadline)
                # The same words as on a socket, so that a worker which listens by itself may be at the other end.
                if role is Role.CONNECTOR:
                    sock.settimeout(deadline.remaining())
                    sock.sendall(rendezvous.PATH_STREAM)
                else:
                    path = self._read_path(sock, deadline)
                    if path != rendezvous.PATH_STREAM:
                        raise RemoteProtocolError(f"no path over streams begins with {path!r}")
                return StreamPairTransport(bridge, scheme=scheme, allocate=self._memory.allocate)
            except BaseException as error:
                sock.close()
                bridge.end()
                if bridge.failure:
                    raise ConnectError(bridge.failure) from error
                raise

        return sock, greeted

    def dial(self, addresses: list[str], preference: str, cookie: str, deadline: Deadline) -> Transport:
        """A proven transport to the first of ``addresses`` ("unix:PATH", "tcp:HOST:PORT") that answers.

        Args:
            preference: "auto" takes shared memory where it can be had, "shm" insists on it, "tcp" does without.

        Raises:
            HybridDistError, OSError: of the last address tried.
        """
        failure: Exception = ConnectError("the process announced no address to connect to")
        for address in addresses:
            if preference == "tcp" and address.startswith("unix:"):
                continue
            try:
                return self._dial_one(address, preference, cookie, deadline)
            except (HybridDistError, OSError) as error:
                failure = error
        raise failure

    def _dial_one(self, address: str, preference: str, cookie: str, deadline: Deadline) -> Transport:
        from hybriddist.shm import rendezvous

        scheme, _, where = address.partition(":")
        opener = self.openers.get(scheme)
        if opener is not None:
            return opener(where)
        sock = _open(scheme, where, deadline)
        try:
            greet(sock, Role.CONNECTOR, cookie, deadline)
            if preference == "shm" or (preference == "auto" and _may_share(scheme, where)):
                shared = self._offer(sock, preference, deadline)
                if shared is not None:
                    return shared
                if preference == "shm":
                    raise ConnectError(f"{address} cannot share memory with this process", address)
                if scheme == "unix":
                    raise ConnectError(f"{address} is for shared memory only", address)
            sock.settimeout(deadline.remaining())
            sock.sendall(rendezvous.PATH_STREAM)
            return self._stream(sock)
        except BaseException:
            sock.close()
            raise

    def _offer(self, sock: socket.socket, preference: str, deadline: Deadline) -> Transport | None:
        from hybriddist.shm import rendezvous

        try:
            return rendezvous.offer(sock, deadline, budget=self._shared_budget(), allocate=self._memory.allocate)
        except SharedMemoryFull as error:
            if preference == "shm":
                raise
            if not self.quiet:
                self.quiet = True
                _warn(f"{error}; TCP is used instead")
            return None

    def _shared_budget(self) -> Budget:
        from hybriddist.shm.segment import Budget

        with self._budget_lock:
            if self._budget is None:
                self._budget = Budget(warn=self._tell_of_no_room, taken=self._taken)
            return self._budget

    def _tell_of_no_room(self, error: SharedMemoryFull) -> None:
        """On a thread of its own: whoever shows warnings may want to send something, over the very connection."""
        if self._spawn is not None:
            text = f"{error}; large arrays take a slower way while that is so"
            self._spawn(lambda: _warn(text), "hybriddist-warning")

    def _stream(self, sock: socket.socket) -> Transport:
        from hybriddist.net.transport import StreamTransport

        sock.settimeout(None)
        return StreamTransport(sock, allocate=self._memory.allocate)

    @staticmethod
    def _read_path(sock: socket.socket, deadline: Deadline) -> bytes:
        sock.settimeout(deadline.remaining() or 1e-3)
        return sock.recv(1)


def _warn(text: str) -> None:
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=5)
    except RuntimeWarning:
        # Where warnings are made errors, this is still no reason to go without a connection.
        print(f"hybriddist: warning: {text}", file=sys.stderr)


def _open(scheme: str, where: str, deadline: Deadline) -> socket.socket:
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A blocking connect waits while the listener's queue is full; one with a time limit fails at once.
            sock.settimeout(deadline.remaining())
            while True:
                try:
                    sock.connect(where)
                    break
                except BlockingIOError:
                    if deadline.expired():
                        raise
                    time.sleep(_QUEUE_SECONDS)
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            raise ConnectError(f"cannot connect to {where}: {error}", f"unix:{where}") from error
        return sock
    from hybriddist.net import socket as net_socket
    from hybriddist.net.address import Address

    return net_socket.connect(Address.parse(where), deadline)


def _may_share(scheme: str, where: str) -> bool:
    """Whether a shared-memory offer is worth its round trip."""
    from hybriddist.net.address import Address, is_loopback

    return scheme == "unix" or is_loopback(Address.parse(where).host)
