"""The listener: bound to what was asked, and alive after what happens to listeners."""

from __future__ import annotations

import logging
import os
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError
from hybriddist.net.listener import TcpListener
from hybriddist.net.socket import connect, listen
from tests.helpers.polling import poll_for


@pytest.fixture
def listener() -> Iterator[TcpListener]:
    listener = TcpListener()
    yield listener
    listener.close()


def test_it_listens_on_loopback_unless_asked(listener: TcpListener) -> None:
    assert listener.address.host == "127.0.0.1"
    assert listening_addresses(listener.address.port) == {"0100007F"}


def listening_addresses(port: int) -> set[str]:
    """The local addresses, as the kernel writes them, of all sockets that listen on a port."""
    found = set()
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(name):
            with open(name) as table:
                for line in list(table)[1:]:
                    where, state = line.split()[1], line.split()[3]
                    host, digits = where.split(":")
                    if state == "0A" and int(digits, 16) == port:
                        found.add(host)
    return found


def test_accept_gives_tuned_sockets_without_blocking(listener: TcpListener) -> None:
    assert listener.accept() is None
    with connect(listener.address, Deadline(10)) as ours, poll_for(listener.accept) as theirs:
        assert theirs.getpeername() == ours.getsockname()
        assert theirs.gettimeout() == 0.0
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert listener.accept() is None


def test_close(listener: TcpListener) -> None:
    listener.close()
    listener.close()
    assert listener.fileno() == -1
    with pytest.raises(ConnectError, match="is closed"):
        listener.accept()
    with pytest.raises(ConnectError, match="nothing listens there"):
        connect(listener.address, Deadline(10))


def test_a_port_is_taken_or_a_hint(listener: TcpListener) -> None:
    host, port = listener.address
    with pytest.raises(ConnectError, match="the port is taken"):
        TcpListener(host, port)
    near = TcpListener(host, port, port_is_hint=True)
    try:
        assert near.address.port != port
        assert near.address.host == host
    finally:
        near.close()
    with listen(host) as sock:
        free = sock.getsockname()[1]
    exact = TcpListener(host, free, port_is_hint=True)
    assert exact.address.port == free
    exact.close()


def test_a_hint_does_not_hide_other_errors() -> None:
    with pytest.raises(ConnectError, match="no address of this host"):
        TcpListener("203.0.113.1", 9000, port_is_hint=True)


def test_a_hint_near_the_end_of_the_ports() -> None:
    first = TcpListener("127.0.0.3", 65535, port_is_hint=True)
    second = TcpListener("127.0.0.3", 65535, port_is_hint=True)
    assert first.address.port == 65535
    assert second.address.port != 65535
    first.close()
    second.close()


def test_a_connection_that_is_gone_before_it_is_accepted_hurts_nobody(listener: TcpListener) -> None:
    gone = connect(listener.address, Deadline(10))
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets
    gone.close()
    with connect(listener.address, Deadline(10)) as ours:
        accepted: list[socket.socket] = []

        def ours_came() -> bool:
            if (sock := listener.accept()) is not None:
                accepted.append(sock)
            return any(_peer(sock) == ours.getsockname() for sock in accepted)

        poll_for(ours_came, what="the connection behind the one that is gone")
        for sock in accepted:
            sock.close()


def _peer(sock: socket.socket) -> object:
    try:
        return sock.getpeername()
    except OSError:
        return None


def test_without_descriptors_it_hangs_up_and_recovers(listener: TcpListener, caplog: pytest.LogCaptureFixture) -> None:
    waiting = [connect(listener.address, Deadline(10)) for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest limit that leaves no new descriptor: every number below the highest open one stays open.
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    try:
        with caplog.at_level(logging.WARNING):
            resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, hard))
            for _ in waiting:
                assert listener.accept() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    assert [record.message.count("cannot accept connections") for record in caplog.records] == [1]
    for sock in waiting:  # They are told, instead of being left in a queue.
        sock.settimeout(10)
        assert sock.recv(1) == b""
        sock.close()
    with connect(listener.address, Deadline(10)), poll_for(listener.accept):
        pass
