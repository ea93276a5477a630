"""Every transport keeps every promise."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hybriddist.core.handshake import Role
from hybriddist.deadline import Deadline
from hybriddist.memory import memory_pair
from hybriddist.net.listener import TcpListener
from hybriddist.net.socket import connect
from hybriddist.net.stream_pair import StreamBridge, StreamPairTransport
from hybriddist.net.transport import StreamTransport
from hybriddist.shm import rendezvous
from hybriddist.testing import conformance
from hybriddist.transport import Transport
from tests.helpers.polling import poll_for

Pair = Iterator[tuple[Transport, Transport]]


@contextlib.contextmanager
def memory() -> Pair:
    with ended(*memory_pair()) as pair:
        yield pair


@contextlib.contextmanager
def tcp() -> Pair:
    listener = TcpListener()
    try:
        ours = connect(listener.address, Deadline(10))
        theirs = poll_for(listener.accept, what="a connection to accept")
    finally:
        listener.close()
    with ended(StreamTransport(ours), StreamTransport(theirs)) as pair:
        yield pair


@contextlib.contextmanager
def unix() -> Pair:
    ours, theirs = socket.socketpair()
    with ended(StreamTransport(ours, scheme="unix"), StreamTransport(theirs, scheme="unix")) as pair:
        yield pair


@contextlib.contextmanager
def streams() -> Pair:
    """Over files of sockets, of the buffered kind at one end and of the raw kind at the other."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        raw = theirs.makefile("rwb", buffering=0)
        pair = over(ours.makefile("rb"), ours.makefile("wb"), raw, raw)
    with ended(*pair) as transports:
        yield transports


@contextlib.contextmanager
def pipes() -> Pair:
    """Over pipes, which nobody can shut down."""
    (read_one, write_one), (read_two, write_two) = os.pipe(), os.pipe()
    pair = over(*map(os.fdopen, (read_one, write_two, read_two, write_one), ("rb", "wb") * 2, (-1, -1, 0, 0)))
    with ended(*pair) as transports:
        yield transports


def over(reader: Any, writer: Any, their_reader: Any, their_writer: Any) -> tuple[Transport, Transport]:
    ours = StreamBridge(reader, writer, Role.CONNECTOR)
    theirs = StreamBridge(their_reader, their_writer, Role.ACCEPTOR)
    return StreamPairTransport(ours), StreamPairTransport(theirs)


@contextlib.contextmanager
def shm() -> Pair:
    ours, theirs = socket.socketpair()
    deadline = Deadline(30)

    def accept() -> Transport | None:
        assert theirs.recv(1) == rendezvous.PATH_SHM
        return rendezvous.accept(theirs, deadline)

    with ThreadPoolExecutor(1) as other:
        accepting = other.submit(accept)
        offered, accepted = rendezvous.offer(ours, deadline), accepting.result(30)
    assert offered is not None
    assert accepted is not None
    with ended(offered, accepted) as pair:
        yield pair


@contextlib.contextmanager
def ended(ours: Transport, theirs: Transport) -> Pair:
    try:
        yield ours, theirs
    finally:
        ours.abort()
        theirs.abort()


@pytest.mark.parametrize("make_pair", [memory, tcp, unix, streams, pipes, shm], ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_promise(check: conformance.Check, make_pair: conformance.PairMaker) -> None:
    check(make_pair)
