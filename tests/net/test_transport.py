"""Stream transports against raw sockets: whatever the other end does, frames are whole or there is an error.

What every transport promises is checked in tests/test_conformance.py.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist.core.frames import encode
from hybriddist.deadline import Deadline
from hybriddist.errors import FrameCorruptError, RemoteProtocolError, TransportBroken, TransportClosed
from hybriddist.net.listener import TcpListener
from hybriddist.net.socket import connect
from hybriddist.net.transport import RECEIVE_BUDGET_BYTES, RECEIVE_BYTES, StreamTransport
from hybriddist.testing.driving import beside, data, receive_some, transfer
from hybriddist.transport import Frame
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

GOODBYE = encode(b"")


@contextlib.contextmanager
def beside_raw_socket() -> Iterator[tuple[StreamTransport, socket.socket]]:
    ours, theirs = socket.socketpair()
    transport = StreamTransport(ours)
    try:
        with theirs:
            yield transport, theirs
    finally:
        transport.abort()


@pytest.fixture
def raw() -> Iterator[tuple[StreamTransport, socket.socket]]:
    with beside_raw_socket() as pair:
        yield pair


@pytest.fixture
def raw_tcp() -> Iterator[tuple[StreamTransport, socket.socket]]:
    listener = TcpListener()
    theirs = connect(listener.address, Deadline(10))
    transport = StreamTransport(poll_for(listener.accept))
    listener.close()
    with theirs:
        yield transport, theirs
    transport.abort()


def receive_until_end(transport: StreamTransport) -> tuple[list[Frame], Exception]:
    frames: list[Frame] = []
    try:
        while True:
            frames += receive_some(transport)
    except (TransportClosed, TransportBroken, RemoteProtocolError) as error:
        return frames, error


# ---- the end --------------------------------------------------------------------------------------------------------

SESSION = [(b"first", []), (b"second" * 9, [b"buffer" * 7, b""]), (b"third", [b"x" * 40])]
WIRE = b"".join(encode(head, [len(b) for b in buffers]) + b"".join(buffers) for head, buffers in SESSION) + GOODBYE


def whole_frames(count: int) -> int:
    """How many frames of the session end within its first ``count`` bytes."""
    ends, position = [], 0
    for head, buffers in SESSION:
        position += len(encode(head, [len(b) for b in buffers])) + sum(map(len, buffers))
        ends.append(position)
    return sum(end <= count for end in ends)


def test_a_session_cut_at_every_offset() -> None:
    for count in range(len(WIRE) + 1):
        with beside_raw_socket() as (transport, theirs):
            theirs.sendall(WIRE[:count])
            theirs.close()
            frames, end = receive_until_end(transport)
            assert [data(frame) for frame in frames] == SESSION[: whole_frames(count)]
            assert isinstance(end, TransportClosed if count == len(WIRE) else TransportBroken), count


def test_a_session_byte_by_byte(raw: tuple[StreamTransport, socket.socket]) -> None:
    transport, theirs = raw
    frames: list[Frame] = []
    for position in range(len(WIRE) - 1):
        theirs.send(WIRE[position : position + 1])
        frames += transport.receive()
    assert [data(frame) for frame in frames] == SESSION
    theirs.send(WIRE[-1:])
    with pytest.raises(TransportClosed, match="has closed the connection"):
        transport.receive()


def test_the_goodbye_alone_is_the_end(raw: tuple[StreamTransport, socket.socket]) -> None:
    """There is no need to wait for the end of file behind it; and this side does not send into the void."""
    transport, theirs = raw
    theirs.sendall(WIRE)
    assert [data(frame) for frame in transport.receive()] == SESSION
    for operation in (transport.receive, transport.flush, lambda: transport.send(b"head")):
        with pytest.raises(TransportClosed):
            operation()


def test_close_says_goodbye_and_abort_does_not() -> None:
    for end, last_words in ((lambda transport: transport.close(10.0), GOODBYE), (StreamTransport.abort, b"")):
        with beside_raw_socket() as (transport, theirs):
            end(transport)
            assert theirs.recv(100) == last_words
            assert theirs.recv(100) == b""


def test_no_goodbye_means_that_the_process_is_gone(raw_tcp: tuple[StreamTransport, socket.socket]) -> None:
    transport, theirs = raw_tcp
    host, port = theirs.getsockname()
    theirs.close()
    with pytest.raises(TransportBroken, match=f"to {host}:{port} ended without a goodbye: its process is gone"):
        receive_some(transport)


def test_a_reset_is_a_broken_connection(raw_tcp: tuple[StreamTransport, socket.socket]) -> None:
    transport, theirs = raw_tcp
    theirs.sendall(encode(b"before"))
    assert data(receive_some(transport)[0]) == (b"before", [])
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets
    theirs.close()
    with pytest.raises(TransportBroken, match="reset the connection"):
        receive_some(transport)
    with pytest.raises(TransportBroken):
        transport.send(b"head")


def test_close_when_the_peer_went_first(raw_tcp: tuple[StreamTransport, socket.socket]) -> None:
    transport, theirs = raw_tcp
    while transport.send(b"x" * 100_000):
        pass
    theirs.close()
    transport.close(30.0)
    assert transport.fileno() == -1


def test_close_waits_until_the_peer_has_all_although_it_goes_on_sending(
    raw_tcp: tuple[StreamTransport, socket.socket],
) -> None:
    """Bytes that come after a close reset the connection, and a reset throws away what is under way."""
    transport, theirs = raw_tcp
    content = bytes(6_000_000)
    received = bytearray()

    def talk_and_listen() -> None:
        theirs.setblocking(False)
        while piece := poll_for(read, what="bytes or the end"):
            received.extend(piece[0])
            if not piece[0]:
                return
            with contextlib.suppress(OSError):
                theirs.send(b"never read" * 100)

    def read() -> tuple[bytes] | None:
        try:
            return (theirs.recv(20_000),)
        except BlockingIOError:
            return None

    transport.send(content)
    with beside(talk_and_listen):
        transport.close(30.0)
    assert len(received) == len(encode(content)) + len(GOODBYE)
    assert received.endswith(GOODBYE)


def test_close_reads_on_so_that_a_peer_that_is_writing_can_come_to_reading(
    raw: tuple[StreamTransport, socket.socket],
) -> None:
    transport, theirs = raw
    while transport.send(b"x" * 100_000):
        pass
    received = bytearray()

    def write_then_read() -> None:
        theirs.sendall(bytes(8_000_000))
        while piece := theirs.recv(100_000):
            received.extend(piece)

    with beside(write_then_read):
        transport.close(10.0)
    assert received.endswith(GOODBYE)


def test_the_end_lets_go_of_buffers_and_of_a_begun_frame(raw: tuple[StreamTransport, socket.socket]) -> None:
    transport, theirs = raw
    lent = bytearray(10_000_000)
    assert transport.send(b"head", [lent]) is False
    theirs.sendall(encode(b"x" * 100_000)[:50_000])
    assert transport.receive() == []
    transport.abort()
    lent.clear()  # A view of it would forbid that.
    assert transport.pending_bytes() == 0


# ---- bytes that are no frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(50), bytes(16)])
def test_what_is_no_frame_ends_the_connection(raw: tuple[StreamTransport, socket.socket], noise: bytes) -> None:
    transport, theirs = raw
    theirs.sendall(noise)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            transport.receive()
    with pytest.raises(RemoteProtocolError):
        transport.send(b"head")


def test_frames_before_a_corrupt_one_are_delivered(raw: tuple[StreamTransport, socket.socket]) -> None:
    transport, theirs = raw
    filler = b"x" * (RECEIVE_BYTES - len(GOODBYE))  # so that the corrupt frame comes with a read of its own
    wire = bytearray(encode(filler) + encode(b"corrupt"))
    wire[-1] ^= 1
    theirs.sendall(wire)
    frames, end = receive_until_end(transport)
    assert [data(frame)[0] for frame in frames] == [filler]
    assert isinstance(end, FrameCorruptError)


# ---- where bytes go -------------------------------------------------------------------------------------------------


def test_large_buffers_are_read_into_allocated_memory() -> None:
    memory: list[bytearray] = []

    def allocate(length: int) -> memoryview:
        memory.append(bytearray(length))
        return memoryview(memory[-1])

    content = bytes(range(256)) * 4000
    ours, theirs = socket.socketpair()
    sender, receiver = StreamTransport(ours), StreamTransport(theirs, scheme="unix", allocate=allocate)
    assert (sender.scheme, receiver.scheme) == ("tcp", "unix")
    sender.send(b"head", [content, b"small"])
    frame = transfer(sender, receiver, 1)[0]
    assert data(frame) == (b"head", [content, b"small"])
    assert [bytes(piece) for piece in memory] == [content, b"small"]
    assert isinstance(frame.buffers[0], memoryview)
    assert frame.buffers[0].obj is memory[0]
    sender.abort()
    receiver.abort()


def test_bytes_read_with_the_handshake_come_first() -> None:
    ours, theirs = socket.socketpair()
    early = encode(b"first") + encode(b"second")
    transport = StreamTransport(ours, received=early[:-3])
    with theirs:
        assert transport.arm() is True
        theirs.sendall(early[-3:] + encode(b"third"))
        frames: list[Frame] = []
        while len(frames) < 3:
            frames += receive_some(transport)
        assert [data(frame)[0] for frame in frames] == [b"first", b"second", b"third"]
        assert transport.arm() is False
    transport.abort()


class EndlessSocket(socket.socket):
    """A socket from which the same bytes can be read without end."""

    def __init__(self, beginning: bytes) -> None:
        super().__init__()
        self.beginning = beginning
        self.read_bytes = 0

    def recv(self, count: int, *_: Any) -> bytes:
        data, self.beginning = self.beginning[:count] or bytes(count), self.beginning[count:]
        self.read_bytes += len(data)
        return data

    def recv_into(self, buffer: Any, count: int = 0, *_: Any) -> int:
        self.read_bytes += count
        return count


def test_one_receive_is_bounded() -> None:
    small = encode(b"x" * 1000)
    for beginning in (encode(b"large", [1 << 28]), small * (8 * RECEIVE_BUDGET_BYTES // len(small))):
        sock = EndlessSocket(beginning)
        transport = StreamTransport(sock)
        while not sock.read_bytes > RECEIVE_BYTES:
            transport.receive()
        assert sock.read_bytes <= RECEIVE_BUDGET_BYTES + 2 * RECEIVE_BYTES
        transport.abort()


frames_strategy = st.lists(
    st.tuples(st.binary(min_size=1, max_size=200), st.lists(st.binary(max_size=60_000), max_size=3)), max_size=20
)


@given(frames_strategy, st.integers(1, 400_000), st.booleans())
def test_frames_survive_any_division(frames: list[tuple[bytes, list[bytes]]], room: int, snapshot: bool) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    sender, receiver = StreamTransport(ours), StreamTransport(theirs)
    for head, buffers in frames:
        borrowed = [bytearray(buffer) for buffer in buffers]
        if not sender.send(head, borrowed) and snapshot:
            sender.snapshot()
            for buffer in borrowed:
                buffer[:] = bytes(len(buffer))
    assert [data(frame) for frame in transfer(sender, receiver, len(frames))] == frames
    sender.abort()
    receiver.abort()


# ---- threads and signals --------------------------------------------------------------------------------------------


class SlowSocket(socket.socket):
    """A socket whose reader stays inside `recv` until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Event()
        self.let_go = threading.Event()

    def recv(self, *_: Any) -> bytes:
        self.inside.set()
        self.let_go.wait(30)
        return b""


def test_the_descriptor_is_closed_by_the_last_thread_to_leave() -> None:
    """Else its number might be given to another file while this thread is about to read from it."""
    sock = SlowSocket()
    transport = StreamTransport(sock)

    def receive() -> None:
        with pytest.raises(TransportClosed, match="this end of the connection was ended"):
            transport.receive()

    with beside(receive):
        assert sock.inside.wait(30)
        transport.abort()
        assert transport.fileno() == -1
        assert sock.fileno() >= 0
        sock.let_go.set()
    assert sock.fileno() == -1


def test_a_process_that_dies_of_sigpipe_survives_the_death_of_its_peer(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import signal, socket
        from hybriddist.errors import TransportBroken
        from hybriddist.net.transport import StreamTransport
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for buffers in ([], [b"buffer"]):
            ours, theirs = socket.socketpair()
            theirs.close()
            transport = StreamTransport(ours)
            try:
                transport.send(b"head", buffers)
            except TransportBroken as error:
                print(error)
            transport.abort()
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the connection to the peer broke: the peer's process ended") == 2
