"""greeting.py: the handshake over real sockets, with peers that are slow, silent, gone, or something else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from hybriddist.core.handshake import HELLO_BYTES, Handshake, Role
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    AuthenticationError,
    ConnectError,
    HybridDistError,
    RemoteProtocolError,
    TransportError,
    VersionMismatchError,
)
from hybriddist.greeting import greet

COOKIE = "a cookie that is long enough"
PATIENCE_SECONDS = 30.0
"""For what must not time out; only reached when the test fails."""

Sockets = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def unix_pair() -> Iterator[Sockets]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def tcp_pair() -> Iterator[Sockets]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with ours, theirs:
            yield ours, theirs


@pytest.fixture(params=[unix_pair, tcp_pair], ids=["unix", "tcp"])
def sockets(request: pytest.FixtureRequest) -> Iterator[Sockets]:
    with request.param() as made:
        yield made


class Helper:
    """Runs a function on a thread; `result` joins it and tells how it ended."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> BaseException | None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        return self._error


def greeter(sock: socket.socket, role: Role, cookie: str = COOKIE, seconds: float = PATIENCE_SECONDS) -> Helper:
    """`greet`, and then close on failure, as callers do."""

    def run() -> None:
        try:
            greet(sock, role, cookie, Deadline(seconds))
        except BaseException:
            sock.close()
            raise

    return Helper(run)


@pytest.mark.parametrize("cookie", [COOKIE, ""])
@pytest.mark.parametrize("seconds", [PATIENCE_SECONDS, None])
def test_both_sides_agree(sockets: Sockets, cookie: str, seconds: float | None) -> None:
    ours, theirs = sockets
    ours.settimeout(0.0)
    acceptor = Helper(lambda: greet(theirs, Role.ACCEPTOR, cookie, Deadline(seconds)))
    greet(ours, Role.CONNECTOR, cookie, Deadline(seconds))
    assert acceptor.result() is None
    for sock in sockets:
        assert sock.gettimeout() is None
    ours.sendall(b"first words")
    assert theirs.recv(100) == b"first words"


def test_what_follows_stays_in_the_socket(sockets: Sockets) -> None:
    """The peer sends its first frame right behind the last byte of its handshake, in the same write."""
    ours, theirs = sockets
    acceptor = Handshake(Role.ACCEPTOR, COOKIE)
    acceptor.start()
    connector = greeter(ours, Role.CONNECTOR)
    theirs.sendall(acceptor.receive(theirs.recv(HELLO_BYTES, socket.MSG_WAITALL)))
    theirs.sendall(acceptor.receive(theirs.recv(acceptor.needed, socket.MSG_WAITALL)) + b"a frame")
    assert connector.result() is None
    assert ours.recv(100) == b"a frame"


def test_one_byte_at_a_time_is_slow_and_fine(sockets: Sockets) -> None:
    ours, theirs = sockets
    greeted = greeter(ours, Role.ACCEPTOR)
    connector = Handshake(Role.CONNECTOR, COOKIE)
    outgoing = connector.start()
    while not connector.done:
        for i in range(len(outgoing)):
            theirs.sendall(outgoing[i : i + 1])
        outgoing = connector.receive(theirs.recv(1))
    assert greeted.result() is None


def test_wrong_cookie(sockets: Sockets) -> None:
    ours, theirs = sockets
    acceptor = greeter(theirs, Role.ACCEPTOR, "some other cookie")
    assert isinstance(greeter(ours, Role.CONNECTOR).result(), AuthenticationError)
    error = acceptor.result()
    assert isinstance(error, ConnectError)
    assert "same cookie" in str(error)
    assert COOKIE not in str(error)


def test_a_connector_without_the_cookie_gets_no_answer_to_its_proof(sockets: Sockets) -> None:
    ours, theirs = sockets
    acceptor = greeter(ours, Role.ACCEPTOR)
    theirs.sendall(Handshake(Role.CONNECTOR, "").start())
    theirs.recv(80, socket.MSG_WAITALL)
    theirs.sendall(bytes(32))
    assert isinstance(acceptor.result(), AuthenticationError)
    assert theirs.recv(100) == b""


@pytest.mark.parametrize("we_are", Role)
def test_both_sides_name_both_versions(sockets: Sockets, we_are: Role) -> None:
    """The refused peer, played by hand, reads the acceptor's hello before the connection ends."""
    ours, theirs = sockets
    greeted = greeter(ours, we_are)
    peer = Handshake(we_are.other, COOKIE, python_version=(2, 7))
    theirs.settimeout(PATIENCE_SECONDS)
    theirs.sendall(peer.start())
    with pytest.raises(VersionMismatchError, match=r"Python 2\.7"):  # noqa: PT012  # In one of several reads.
        while True:
            data = theirs.recv(peer.needed)
            assert data
            peer.receive(data)
    if peer.farewell:
        theirs.sendall(peer.farewell)
    error = greeted.result()
    assert isinstance(error, VersionMismatchError)
    assert "Python 2.7" in str(error)
    assert theirs.recv(100) == b""


def test_a_farewell_to_a_peer_that_is_gone_does_not_hide_the_error(sockets: Sockets) -> None:
    ours, theirs = sockets
    theirs.sendall(Handshake(Role.CONNECTOR, COOKIE, python_version=(2, 7)).start())
    theirs.close()
    with pytest.raises(VersionMismatchError):
        greet(ours, Role.ACCEPTOR, COOKIE, Deadline(PATIENCE_SECONDS))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01", b"\x00"],
)
def test_noise_is_refused_at_once(sockets: Sockets, role: Role, noise: bytes) -> None:
    ours, theirs = sockets
    theirs.sendall(noise)
    with pytest.raises(RemoteProtocolError, match="does not speak this protocol"):
        greet(ours, role, COOKIE, Deadline(PATIENCE_SECONDS))


def test_a_stranger_hears_nothing(sockets: Sockets) -> None:
    ours, theirs = sockets
    acceptor = greeter(ours, Role.ACCEPTOR)
    theirs.sendall(b"G")
    assert isinstance(acceptor.result(), RemoteProtocolError)
    assert theirs.recv(100) == b""


@pytest.mark.parametrize("role", Role)
def test_silent_peer(sockets: Sockets, role: Role) -> None:
    ours, _ = sockets
    with pytest.raises(ConnectError, match="not done when its time was over") as caught:
        greet(ours, role, COOKIE, Deadline(0.05))
    assert isinstance(caught.value.__cause__, TimeoutError)


@pytest.mark.parametrize("role", Role)
def test_no_time_at_all(sockets: Sockets, role: Role) -> None:
    with pytest.raises(ConnectError, match="time was over"):
        greet(sockets[0], role, COOKIE, Deadline(0))


@pytest.mark.parametrize("role", Role)
def test_a_slow_sender_is_cut_at_the_deadline(sockets: Sockets, role: Role) -> None:
    """One byte every 50 ms is never late for a single read, and would take seconds for all."""
    ours, theirs = sockets
    drip = Handshake(role.other, COOKIE)._hello
    enough = threading.Event()

    def send_slowly() -> None:
        for byte in drip:
            if enough.wait(0.05):
                return
            theirs.sendall(bytes([byte]))
        raise AssertionError("the whole hello was accepted")

    slow = Helper(send_slowly)
    before = monotonic()
    with pytest.raises(ConnectError, match="time was over"):
        greet(ours, role, COOKIE, Deadline(0.3))
    after = monotonic()
    enough.set()
    assert slow.result() is None
    assert after - before >= 0.29


@pytest.mark.parametrize("kept", [0, 1, 8, HELLO_BYTES - 1])
@pytest.mark.parametrize("role", Role)
def test_early_close(sockets: Sockets, role: Role, kept: int) -> None:
    ours, theirs = sockets
    theirs.sendall(Handshake(role.other, COOKIE)._hello[:kept])
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectError, match="before the peer's hello came") as caught:
        greet(ours, role, COOKIE, Deadline(PATIENCE_SECONDS))
    assert not isinstance(caught.value, TimeoutError)


def test_reset() -> None:
    with tcp_pair() as (ours, theirs):
        # Linger 0: close sends a reset instead of the end.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        address = "{}:{}".format(*ours.getpeername())
        theirs.close()
        with pytest.raises(ConnectError, match="the connection failed in the handshake") as caught:
            greet(ours, Role.ACCEPTOR, COOKIE, Deadline(PATIENCE_SECONDS))
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert caught.value.address in ("", address)


def test_closed_socket() -> None:
    with unix_pair() as (ours, _):
        ours.close()
        with pytest.raises(ConnectError):
            greet(ours, Role.CONNECTOR, COOKIE, Deadline(PATIENCE_SECONDS))


def test_errors_name_the_peers_address() -> None:
    with tcp_pair() as (ours, theirs):
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectError) as caught:
            greet(ours, Role.ACCEPTOR, COOKIE, Deadline(PATIENCE_SECONDS))
        assert caught.value.address == "{}:{}".format(*ours.getpeername())
    with unix_pair() as (ours, theirs):
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectError) as caught:
            greet(ours, Role.ACCEPTOR, COOKIE, Deadline(PATIENCE_SECONDS))
        assert caught.value.address == ""


@pytest.mark.parametrize("cut", range(0, 2 * HELLO_BYTES, 7))
def test_only_our_own_errors_come_out(cut: int) -> None:
    """A peer that ends after any number of bytes, with ours unread: end or reset, never a bare OSError."""
    with tcp_pair() as (ours, theirs):
        theirs.sendall((Handshake(Role.ACCEPTOR, COOKIE)._hello * 2)[:cut])
        theirs.close()
        with pytest.raises(HybridDistError) as caught:
            greet(ours, Role.CONNECTOR, COOKIE, Deadline(PATIENCE_SECONDS))
    assert isinstance(caught.value, AuthenticationError | RemoteProtocolError | TransportError)
