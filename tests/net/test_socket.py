"""TCP sockets: how they are tuned, and what their errors become."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, TransportBroken
from hybriddist.net import socket as net_socket
from hybriddist.net.address import Address
from hybriddist.net.socket import address_of, broken, connect, connect_error, listen, out_of_resources, tune


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    sock = listen("127.0.0.1")
    yield sock
    sock.close()


def address(sock: socket.socket) -> Address:
    found = address_of(sock.getsockname())
    assert found is not None
    return found


def test_connect_gives_a_blocking_tuned_socket(listening: socket.socket) -> None:
    with connect(address(listening), Deadline(10)) as sock:
        assert sock.gettimeout() is None
        assert sock.getpeername() == listening.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == net_socket.KEEPALIVE_IDLE_SECONDS
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == net_socket.KEEPALIVE_PROBES
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # It would end the connection to a healthy peer that does not read.
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def test_tune_leaves_other_families_alone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tune(ours)


def test_a_refused_connection_says_what_to_look_for() -> None:
    with listen("127.0.0.1") as sock:
        gone = address(sock)
    with pytest.raises(ConnectError, match="nothing listens there") as caught:
        connect(gone, Deadline(10))
    assert caught.value.address == str(gone)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.address) == (str(caught.value), str(gone))


def test_an_unknown_name() -> None:
    with pytest.raises(ConnectError, match=r"the name 'no-such-host\.invalid' was not found"):
        connect(Address("no-such-host.invalid", 9000), Deadline(10))
    with pytest.raises(ConnectError, match="was not found"):
        connect(Address("a" * 300, 9000), Deadline(10))


class SocketThat(socket.socket):
    """A socket whose `connect` fails as told, or never gets an answer."""

    def __init__(self, outcome: OSError) -> None:
        super().__init__()
        self.outcome = outcome

    def connect(self, _: Any) -> None:
        raise self.outcome


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (OSError(errno.EHOSTUNREACH, "-"), "no route to the host"),
        (OSError(errno.ENETUNREACH, "-"), "network is unreachable"),
        (OSError(errno.ETIMEDOUT, "-"), "no answer in time"),
        (TimeoutError("timed out"), "no answer in time"),
        (OSError(errno.EMFILE, "-"), "ulimit -n"),
        (OSError(errno.EXDEV, "something never heard of"), "something never heard of"),
    ],
)
def test_other_failures(outcome: OSError, text: str) -> None:
    with pytest.raises(ConnectError, match=text):
        connect(Address("127.0.0.1", 9), Deadline(10), open_socket=lambda *_: SocketThat(outcome))


def test_a_socket_that_cannot_be_opened() -> None:
    def no_descriptors(*_: int) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(ConnectError, match="no descriptors left"):
        connect(Address("127.0.0.1", 9), Deadline(10), open_socket=no_descriptors)


def test_no_time_is_left(listening: socket.socket) -> None:
    with pytest.raises(ConnectError, match="no answer in time"):
        connect(address(listening), Deadline(0))


def test_the_next_address_of_a_name_is_tried(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1") as sock:
        dead = sock.getsockname()
    places = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in (dead, listening.getsockname())]
    monkeypatch.setattr(net_socket.socket, "getaddrinfo", lambda *_, **__: places)
    with connect(Address("two-addresses", 9000), Deadline(10)) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_the_time_is_shared_among_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    class Silent(socket.socket):
        def connect(self, _: Any) -> None:
            timeout = self.gettimeout()
            assert timeout is not None
            seen.append(timeout)
            raise TimeoutError("timed out")

    places = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in (1, 2, 3)]
    monkeypatch.setattr(net_socket.socket, "getaddrinfo", lambda *_, **__: places)
    with pytest.raises(ConnectError, match="no answer in time"):
        connect(Address("three-addresses", 9000), Deadline(600), open_socket=Silent)
    assert [round(timeout / 10) for timeout in seen] == [20, 30, 60]


def test_a_socket_that_the_kernel_connected_to_itself_is_refused() -> None:
    class ToItself(socket.socket):
        def connect(self, place: Any) -> None:
            self.bind(place)
            super().connect(place)

    with listen("127.0.0.1") as sock:
        free = address(sock)
    with pytest.raises(ConnectError, match="nothing listens there"):
        connect(free, Deadline(10), open_socket=ToItself)


def test_listen_binds_exactly_what_was_asked() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "localhost"):
        with listen(host) as sock:
            assert sock.getsockname()[0] == ("127.0.0.1" if host == "localhost" else host)
            assert sock.getsockname()[1] > 0
            assert sock.gettimeout() == 0.0


def test_listen_refuses_what_would_mean_every_interface() -> None:
    with pytest.raises(ValueError, match="every interface"):
        listen("")


def test_listen_fails_with_the_reason(listening: socket.socket) -> None:
    taken = address(listening)
    with pytest.raises(ConnectError, match="the port is taken") as caught:
        listen(*taken)
    assert caught.value.address == str(taken)
    with pytest.raises(ConnectError, match="no address of this host"):
        listen("203.0.113.1")
    with pytest.raises(ConnectError, match="the name was not found"):
        listen("no-such-host.invalid")


def test_address_of_a_socket_name() -> None:
    assert address_of(("10.0.0.1", 80)) == Address("10.0.0.1", 80)
    assert address_of(("::1", 80, 0, 0)) == Address("::1", 80)
    assert address_of("") is None
    assert address_of(b"\0abstract") is None


def test_broken_connections() -> None:
    for number in (errno.ECONNRESET, errno.EPIPE):
        error = broken(OSError(number, "-"), "10.0.0.1:80")
        assert isinstance(error, TransportBroken)
        assert str(error) == (
            "the connection to 10.0.0.1:80 broke: the peer's process ended, or its host reset the connection"
        )
    assert "cut" in str(broken(OSError(errno.ETIMEDOUT, "-"), "x"))
    assert "odd" in str(broken(OSError(errno.EXDEV, "odd"), "x"))


def test_shortages_are_told_from_failures() -> None:
    assert out_of_resources(OSError(errno.EMFILE, ""))
    assert not out_of_resources(OSError(errno.ECONNREFUSED, ""))
    assert "fs.file-max" in str(connect_error(OSError(errno.ENFILE, ""), Address("x", 1)))
