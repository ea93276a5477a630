"""How two proven peers agree on shared memory, and how it is proved that they share it.

::

    connector                                             acceptor
      create the segment, write a nonce into it
      'S' | name (96 bytes) | nonce (32 bytes)    ---->   attach the name, compare the nonce in the segment
                                                  <----   '1', or '0': not mine
      unlink the name, in any case
      ======================= from here the socket is the doorbell, or, after '0', a plain stream ===============

    'T'                                           ---->   (a plain stream was wanted to begin with)

Memory is shared if the acceptor finds the connector's nonce under the connector's name: nothing is guessed from
addresses or host names. Everything has a fixed size; nothing is unpickled. What this module does not know: who the
peers are (they have proved the cookie already), and how frames travel.

The segment::

    0       nonce (32 bytes)
    4096    ring, connector to acceptor
            ring, acceptor to connector
            table of the connector's arena
            table of the acceptor's arena
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from hybriddist import limits
from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, RemoteProtocolError, TransportBroken
from hybriddist.shm import segment
from hybriddist.shm.arena import TABLE_BYTES
from hybriddist.shm.ring import HEADER_BYTES
from hybriddist.shm.segment import Budget, Segment
from hybriddist.shm.transport import Direction, ShmTransport

PATH_STREAM: Final = b"T"
PATH_SHM: Final = b"S"

_NONCE_BYTES: Final = 32
_OFFER: Final = Struct(f"{segment.MAX_NAME_BYTES}s{_NONCE_BYTES}s")
_ACCEPTED: Final = b"1"
_REFUSED: Final = b"0"

_START: Final = 4096
_RING: Final = HEADER_BYTES + limits.RING_BYTES
_SEGMENT_BYTES: Final = _START + 2 * _RING + 2 * TABLE_BYTES


def offer(
    sock: socket.socket,
    deadline: Deadline,
    *,
    budget: Budget | None = None,
    allocate: Callable[[int], Any] = bytearray,
) -> ShmTransport | None:
    """Offer shared memory to the peer, as the side that connected.

    Args:
        sock: connected, after the handshake; blocking or not. Its timeout is changed.
        deadline: when the answer must be here.
        budget: what the arenas of this process may take together; default: an own one.
        allocate: memory for received buffers that found no room in the arena.

    Returns:
        The transport, which has taken ``sock`` over. None: the peer does not share memory with us (or has none left);
        ``sock`` goes on as a plain stream, without a further byte.

    Raises:
        SharedMemoryFull: there is no shared memory here; nothing was sent.
        ConnectError: the peer did not answer in time, or ended the connection.
        RemoteProtocolError: it answered something else.
    """
    shared = Segment.create(_SEGMENT_BYTES)
    try:
        nonce = os.urandom(_NONCE_BYTES)
        shared.memory[:_NONCE_BYTES] = nonce
        _send(sock, PATH_SHM + _OFFER.pack(shared.name.encode(), nonce), deadline)
        answer = _receive(sock, 1, deadline)
    finally:
        shared.unlink()
    if answer == _REFUSED:
        return None
    if answer != _ACCEPTED:
        raise RemoteProtocolError(f"the peer answered {answer!r} to an offer of shared memory")
    there, back = _directions(shared.memory)
    return ShmTransport(sock, there, back, budget=budget, allocate=allocate)


def accept(
    sock: socket.socket,
    deadline: Deadline,
    *,
    budget: Budget | None = None,
    allocate: Callable[[int], Any] = bytearray,
) -> ShmTransport | None:
    """Answer an offer, as the side that was connected to; the byte `PATH_SHM` has been read already.

    Args and returns as `offer`. None if we cannot attach the offered memory: the peer has been told.

    Raises:
        ConnectError: the offer did not come in time, or the peer ended the connection.
        RemoteProtocolError: it offers a name that cannot be its own.
    """
    name, nonce = _OFFER.unpack(_receive(sock, _OFFER.size, deadline))
    from hmac import compare_digest  # `handshake.prepare` has loaded it

    shared = _attach(name.rstrip(b"\0").decode("ascii", "replace"), _SEGMENT_BYTES)
    if shared is None or not compare_digest(shared.memory[:_NONCE_BYTES], nonce):
        _send(sock, _REFUSED, deadline)
        return None
    there, back = _directions(shared.memory)
    _send(sock, _ACCEPTED, deadline)
    return ShmTransport(sock, back, there, budget=budget, allocate=allocate)


class Probe:
    """Memory that proves a shared node to whoever can read its nonce. Also a context manager.

    Attributes:
        name: tell it to the other process.
        nonce: what `answer_probe` must find there.
    """

    def __init__(self) -> None:
        self.nonce = os.urandom(_NONCE_BYTES)
        self._segment = Segment.create(_START)
        self._segment.memory[:_NONCE_BYTES] = self.nonce
        self.name = self._segment.name

    def close(self) -> None:
        """Remove it. Idempotent."""
        self._segment.unlink()
        self._segment.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def create_probe() -> Probe:
    """A probe of this node; close it when it has been answered.

    Raises:
        SharedMemoryFull: there is no shared memory here.
    """
    return Probe()


def answer_probe(name: str) -> bytes | None:
    """The nonce of a probe that another process created; None if there is none of that name here.

    Raises:
        RemoteProtocolError: no probe has such a name.
    """
    shared = _attach(name, _START)
    return None if shared is None else bytes(shared.memory[:_NONCE_BYTES])


def _attach(name: str, size: int) -> Segment | None:
    try:
        return Segment.attach(name, size)
    except TransportBroken:
        return None


def _directions(memory: memoryview) -> tuple[Direction, Direction]:
    """The memory from the connector to the acceptor, and back."""
    tables = _START + 2 * _RING
    return (
        Direction(memory[_START : _START + _RING], memory[tables : tables + TABLE_BYTES]),
        Direction(memory[_START + _RING : tables], memory[tables + TABLE_BYTES :]),
    )


def _send(sock: socket.socket, data: bytes, deadline: Deadline) -> None:
    try:
        sock.settimeout(_positive(deadline))
        sock.sendall(data)
    except OSError as error:
        raise ConnectError(f"the peer does not take our part of an agreement on shared memory: {error}") from error


def _receive(sock: socket.socket, count: int, deadline: Deadline) -> bytes:
    """Exactly ``count`` bytes: what follows belongs to somebody else."""
    data = b""
    try:
        while len(data) < count:
            sock.settimeout(_positive(deadline))
            piece = sock.recv(count - len(data))
            if not piece:
                raise ConnectError("the peer ended the connection during the agreement on shared memory")
            data += piece
    except ConnectError:
        raise
    except OSError as error:
        raise ConnectError(f"no answer from the peer in the agreement on shared memory: {error}") from error
    return data


def _positive(deadline: Deadline) -> float | None:
    """The deadline as a socket's timeout, for which 0 would mean "do not block"."""
    remaining = deadline.remaining()
    return None if remaining is None else max(remaining, 1e-6)
