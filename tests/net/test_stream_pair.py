"""Streams of all kinds as a transport. The promises of one are checked by the conformance suite."""

from __future__ import annotations

import io
import os
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hybriddist.core.handshake import Role
from hybriddist.deadline import Deadline
from hybriddist.errors import AuthenticationError, ConnectError, TransportBroken, TransportClosed
from hybriddist.net import stream_pair
from hybriddist.net.stream_pair import StreamBridge, StreamPairTransport, check_streams
from hybriddist.runtime.paths import Paths
from hybriddist.testing.driving import beside, end_of, receive_some, send_all
from hybriddist.transport import Transport
from tests.helpers.polling import poll_for


class Exact:
    """One direction, in memory. ``read(n)`` blocks until it has n bytes or the end, as buffered files do."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self._ended = False
        self.closed = 0

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and not self._ended:
            piece = self._pieces.get()
            self._ended = not piece
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def write(self, data: bytes) -> None:
        self._pieces.put(bytes(data))

    def close(self) -> None:
        self.closed += 1
        self._pieces.put(b"")


def greeted(reader: Any, writer: Any, role: Role, cookie: str = "secret") -> Transport:
    _, greet = Paths().over_streams(reader, writer, role, cookie, "mine", lambda target: target)
    return greet(Deadline(10))


def both_greeted(forth: Exact, back: Exact, cookies: tuple[str, str] = ("secret", "secret")) -> list[Any]:
    """Both ends, or what each raised."""
    ends: list[Any] = [None, None]

    def greet(number: int, *args: Any) -> None:
        try:
            ends[number] = greeted(*args)
        except Exception as error:
            ends[number] = error

    with beside(lambda: greet(1, forth, back, Role.ACCEPTOR, cookies[1])):
        greet(0, back, forth, Role.CONNECTOR, cookies[0])
    return ends


@pytest.fixture
def files() -> Iterator[tuple[Any, Any, socket.socket]]:
    """Reader and writer of one end, and the plain socket that is the other."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours.makefile("rb"), ours.makefile("wb"), theirs


def test_streams_that_block_until_they_have_all_they_were_asked_for() -> None:
    """Greeting, small and large frames, goodbye: nothing more is ever read than what comes next."""
    forth, back = Exact(), Exact()
    here, there = both_greeted(forth, back)
    assert here.scheme == there.scheme == "mine"
    content = os.urandom(700_000)
    for ours, theirs in ((here, there), (there, here)):
        for head, buffers in ((b"small", []), (content, []), (b"with buffers", [content, b"", content])):
            with beside(lambda ours=ours, head=head, buffers=buffers: send_all(ours, head, buffers)):  # type: ignore[misc]
                (frame,) = receive_some(theirs)
            assert (bytes(frame.head), [bytes(buffer) for buffer in frame.buffers]) == (head, buffers)
    with beside(lambda: here.close(10)):
        assert isinstance(end_of(lambda: receive_some(there)), TransportClosed)
    there.close(10)
    poll_for(lambda: forth.closed and back.closed)


def test_a_stranger_over_streams_is_refused_and_the_streams_are_closed() -> None:
    forth, back = Exact(), Exact()
    here, there = both_greeted(forth, back, ("secret", "guess"))
    assert isinstance(here, AuthenticationError)
    assert isinstance(there, Exception)
    poll_for(lambda: forth.closed and back.closed)


def test_silence_ends_with_the_deadline(files: tuple[Any, Any, socket.socket]) -> None:
    reader, writer, theirs = files
    _, greet = Paths().over_streams(reader, writer, Role.ACCEPTOR, "secret", "mine", lambda target: target)
    with pytest.raises(OSError, match="time was over"):
        greet(Deadline(0.05))
    theirs.settimeout(10)
    assert theirs.recv(1) == b""  # the other side hears the end at once
    theirs.close()
    poll_for(lambda: reader.closed and writer.closed)


@pytest.mark.parametrize("failing", ["read", "write"])
def test_what_a_stream_raises_is_a_broken_connection(failing: str, files: tuple[Any, Any, socket.socket]) -> None:
    reader, writer, theirs = files

    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise ValueError("the stream of my own fails")

        def write(self, data: Any) -> int:
            raise RuntimeError("so does this one")

    bad = Failing()
    with theirs:
        pair = (bad, writer) if failing == "read" else (reader, bad)
        transport = StreamPairTransport(StreamBridge(*pair, Role.CONNECTOR))

        def use() -> None:
            transport.receive() if failing == "read" else transport.send(b"something")

        assert poll_for(lambda: _end(use))
        transport.abort()
    poll_for(lambda: bad.closed)
    for stream in (reader, writer):
        stream.close()


def _end(operation: Any) -> Exception | None:
    try:
        operation()
    except TransportBroken as error:
        return error
    return None


class Counting(Exact):
    """Its ``write`` takes what it likes, and says how much."""

    def __init__(self, count: Callable[[int], Any]) -> None:
        super().__init__()
        self.count = count

    def write(self, data: bytes) -> Any:
        assert type(data) is bytes
        count = self.count(len(data))
        super().write(data[:count] if type(count) is int else data)
        return count


@pytest.mark.parametrize("count", [lambda size: min(size, 100), lambda size: True], ids=["part", "no count"])
def test_a_writer_that_takes_a_part_gets_the_rest(count: Callable[[int], Any]) -> None:
    here, there = both_greeted(Counting(count), Counting(count))
    content = os.urandom(100_000)
    for ours, theirs in ((here, there), (there, here)):
        with beside(lambda ours=ours: send_all(ours, b"head", [content])):  # type: ignore[misc]
            (frame,) = receive_some(theirs)
        assert bytes(frame.buffers[0]) == content
    here.close(10)
    there.close(10)


@pytest.mark.parametrize("wrong", [0, -1, 1_000_000])
def test_a_writer_that_counts_wrongly_breaks_the_connection(wrong: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever waits for an answer hears it at once."""
    forth = Counting(lambda size: size)
    here, there = both_greeted(forth, Exact())
    forth.count = lambda size: wrong
    here.send(b"something")
    error = end_of(lambda: receive_some(here))
    assert isinstance(error, TransportBroken)
    assert re.search(f"^the writer broke the connection: Counting.write returned {wrong} for [0-9]+ bytes$", str(error))
    assert f"hybriddist: {error}" in capfd.readouterr().err
    here.abort()
    there.abort()


def test_a_writer_that_counts_wrongly_from_the_start() -> None:
    here, _ = both_greeted(Counting(lambda size: 0), Exact())
    assert isinstance(here, ConnectError)
    assert "the writer broke the connection: Counting.write returned 0 for" in str(here)


def test_a_peer_that_does_not_read_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, files: tuple[Any, Any, socket.socket]
) -> None:
    monkeypatch.setattr(stream_pair, "LAST_WRITE_SECONDS", 0.05)
    monkeypatch.setattr(stream_pair, "LINGER_SECONDS", 0.05)
    reader, writer, _theirs = files
    transport = StreamPairTransport(StreamBridge(reader, writer, Role.CONNECTOR))
    while transport.send(bytes(100_000)):
        pass
    transport.abort()
    poll_for(lambda: reader.closed and writer.closed)
    poll_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("hybriddist-stream")])


def test_what_is_no_pair_of_binary_streams() -> None:
    good = io.BytesIO()
    check_streams(good, good)
    with pytest.raises(TypeError, match="the reader is a text file"):
        check_streams(io.StringIO(), good)
    with pytest.raises(TypeError, match=r"the writer must be a binary file object.*NoneType has no write"):
        check_streams(good, None)
    with pytest.raises(TypeError, match="socket has no read"), socket.socket() as sock:
        check_streams(sock, good)
