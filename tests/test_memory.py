"""The memory transport's faults: each comes out as it would from a network.

What every transport promises is checked in tests/test_conformance.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist.core.frames import encode
from hybriddist.errors import RemoteProtocolError, TransportBroken, TransportClosed
from hybriddist.memory import FaultPlan, MemoryTransport, memory_pair
from hybriddist.testing.driving import data, receive_some, transfer
from hybriddist.transport import Frame

SESSION = [b"first", b"second" * 5, b"third" * 3]
ENDS = [len(b"".join(encode(head) for head in SESSION[: count + 1])) for count in range(len(SESSION))]


@contextlib.contextmanager
def pair(**options: Any) -> Iterator[tuple[MemoryTransport, MemoryTransport]]:
    ours, theirs = memory_pair(**options)
    try:
        yield ours, theirs
    finally:
        ours.abort()
        theirs.abort()


def send_session(transport: MemoryTransport) -> None:
    for head in SESSION:
        with contextlib.suppress(TransportBroken):
            transport.send(head)


def receive_until_end(transport: MemoryTransport) -> tuple[list[bytes], Exception]:
    heads: list[bytes] = []
    try:
        while True:
            heads += [bytes(frame.head) for frame in receive_some(transport)]
    except (TransportBroken, TransportClosed, RemoteProtocolError) as error:
        return heads, error


def test_a_connection_cut_at_every_offset() -> None:
    for count in range(ENDS[-1] + 1):
        with pair(faults=(FaultPlan(cut_after_bytes=count), None)) as (ours, theirs):
            send_session(ours)
            heads, end = receive_until_end(theirs)
            assert heads == [head for head, last in zip(SESSION, ENDS, strict=True) if last <= count]
            assert isinstance(end, TransportBroken)
            with pytest.raises(TransportBroken):
                ours.send(b"the cut is noticed here too")


def test_a_flipped_bit_is_never_delivered() -> None:
    for bit in range(8 * ENDS[-1]):
        with pair(faults=(None, FaultPlan(flip_bit=bit))) as (ours, theirs):
            send_session(theirs)
            theirs.close(1.0)
            heads, end = receive_until_end(ours)
            assert heads == SESSION[: len(heads)]
            assert heads != SESSION
            assert isinstance(end, RemoteProtocolError | TransportBroken), bit


def test_a_stalled_connection_takes_everything_and_tells_nothing() -> None:
    with pair(capacity_bytes=1000, faults=(FaultPlan(stall_after_bytes=ENDS[0]), None)) as (ours, theirs):
        send_session(ours)
        assert ours.send(bytes(1_000_000))
        assert [data(frame)[0] for frame in theirs.receive()] == SESSION[:1]
        ours.close(1.0)
        assert theirs.receive() == []
        assert theirs.arm() is False  # Only silence tells: nothing rings and nothing ends.


def test_a_peer_that_does_not_read() -> None:
    with pair(faults=(FaultPlan(refuse_room=True), None)) as (ours, theirs):
        assert ours.send(b"head") is False
        assert ours.pending_bytes() == len(encode(b"head"))
        assert ours.flush() is False
        assert theirs.receive() == []
        assert theirs.send(b"the other direction works")
        assert len(ours.receive()) == 1
        ours.close(0.01)
        with pytest.raises(TransportBroken):
            theirs.receive()


def test_room_is_bounded() -> None:
    with pair(capacity_bytes=100) as (ours, theirs):
        assert ours.send(b"x" * 84) is True
        assert ours.send(b"y") is False
        assert ours.pending_bytes() == len(encode(b"y"))
        assert ours.arm() is False
        assert len(theirs.receive()) == 1
        assert ours.arm() is True
        assert ours.flush() is True


def test_allocate_makes_the_memory_of_buffers() -> None:
    memory: list[bytearray] = []

    def allocate(length: int) -> bytearray:
        memory.append(bytearray(length))
        return memory[-1]

    with pair(allocate=allocate) as (ours, theirs):
        ours.send(b"head", [b"x" * 100_000])
        frame = transfer(ours, theirs, 1)[0]
        assert frame.buffers[0] is memory[0]


frame_strategy = st.tuples(st.binary(min_size=1, max_size=100), st.lists(st.binary(max_size=40_000), max_size=3))


@given(st.integers(1, 100_000), st.data())
def test_two_ends_in_any_order_of_calls(capacity: int, choices: st.DataObject) -> None:
    """Both directions against a model: what was sent, and what of it has come."""
    with pair(capacity_bytes=capacity) as ends:
        sent: tuple[list[Any], list[Any]] = ([], [])
        received: tuple[list[Frame], list[Frame]] = ([], [])
        for _ in range(choices.draw(st.integers(1, 15))):
            side = choices.draw(st.sampled_from([0, 1]))
            end = ends[side]
            action = choices.draw(st.sampled_from(["send", "flush", "receive", "snapshot"]))
            if action == "send":
                frame = choices.draw(frame_strategy)
                sent[side].append(frame)
                assert end.send(*frame) is (end.pending_bytes() == 0)
            elif action == "receive":
                received[side].extend(end.receive())
            elif action == "flush":
                assert end.flush() is (end.pending_bytes() == 0)
            else:
                end.snapshot()
            for here, there in ((0, 1), (1, 0)):
                assert [data(frame) for frame in received[there]] == sent[here][: len(received[there])]
        for here, there in ((0, 1), (1, 0)):
            missing = len(sent[here]) - len(received[there])
            received[there].extend(transfer(ends[here], ends[there], missing))
            assert [data(frame) for frame in received[there]] == sent[here]
