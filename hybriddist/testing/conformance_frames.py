"""Conformance checks of what travels: frames, sending without room, and what the receiver owns."""

from __future__ import annotations

import gc
import random

from hybriddist import limits
from hybriddist.deadline import Deadline
from hybriddist.errors import LocalProtocolError
from hybriddist.testing.driving import (
    LARGE_BYTES,
    PATIENCE_SECONDS,
    PairMaker,
    beside,
    clog,
    data,
    receive_some,
    send_all,
    transfer,
    wait,
)
from hybriddist.transport import Buffer

# ---- frames ---------------------------------------------------------------------------------------------------------


def frames_arrive_whole_and_in_order(make_pair: PairMaker) -> None:
    """Small and large heads and buffers, mixed, keep their order and their bytes."""
    numbers = random.Random(1)
    sizes = [0, 1, 7, 4096, 16 * limits.KIB, 100_000]
    sent = []
    for number in range(300):
        head = number.to_bytes(4, "little") + numbers.randbytes(numbers.choice(sizes))
        buffers = [numbers.randbytes(numbers.choice(sizes)) for _ in range(numbers.choice([0, 0, 0, 1, 2, 5]))]
        sent.append((head, buffers))
    with make_pair() as (ours, theirs):
        received: list[tuple[bytes, list[bytes]]] = []

        def send_every() -> None:
            for head, buffers in sent:
                send_all(ours, head, buffers)

        with beside(send_every):
            while len(received) < len(sent):
                received += [data(frame) for frame in receive_some(theirs)]
        assert received == sent


def nothing_is_received_when_nothing_was_sent(make_pair: PairMaker) -> None:
    """`receive` returns at once, and the other end's frames are not one's own."""
    with make_pair() as (ours, theirs):
        assert ours.receive() == []
        assert ours.send(b"head")
        assert ours.receive() == []
        assert data(receive_some(theirs)[0]) == (b"head", [])
        assert theirs.receive() == []


def buffers_of_every_size(make_pair: PairMaker) -> None:
    """From no byte to several megabytes, as bytes, bytearray, and views, readable and writable."""
    sizes = [0, 1, 15, 4096, 16 * limits.KIB - 1, 16 * limits.KIB, limits.MIB + 1, LARGE_BYTES]
    with make_pair() as (ours, theirs):
        for size in sizes:
            content = random.Random(size).randbytes(size)
            kinds: list[Buffer] = [content, bytearray(content), memoryview(content), memoryview(bytearray(content))]
            ours.send(b"all kinds", kinds)
            assert data(transfer(ours, theirs, 1)[0]) == (b"all kinds", [content] * len(kinds)), size


def as_many_buffers_as_allowed(make_pair: PairMaker) -> None:
    """`limits.MAX_BUFFERS` of them, among them empty ones."""
    buffers = [number.to_bytes(2, "little") * (number % 5) for number in range(limits.MAX_BUFFERS)]
    with make_pair() as (ours, theirs):
        ours.send(b"many", buffers)
        assert data(transfer(ours, theirs, 1)[0]) == (b"many", buffers)


def heads_larger_than_any_ring(make_pair: PairMaker) -> None:
    """A head of several megabytes passes, with frames before and behind it."""
    heads = [b"before", random.Random(2).randbytes(LARGE_BYTES), b"behind"]
    with make_pair() as (ours, theirs):
        for head in heads:
            ours.send(head)
        assert [data(frame)[0] for frame in transfer(ours, theirs, 3)] == heads


def illegal_frames_are_refused_and_the_transport_is_intact(make_pair: PairMaker) -> None:
    """No head, or more buffers than allowed: `LocalProtocolError`, and nothing was written."""
    with make_pair() as (ours, theirs):
        for head, buffers in ((b"", []), (b"", [b"buffer"]), (b"head", [b""] * (limits.MAX_BUFFERS + 1))):
            try:
                ours.send(head, buffers)
            except LocalProtocolError:
                pass
            else:
                raise AssertionError(f"a head of {len(head)} bytes with {len(buffers)} buffers was taken")
            assert ours.pending_bytes() == 0
        ours.send(b"legal", [b"buffer"])
        assert data(transfer(ours, theirs, 1)[0]) == (b"legal", [b"buffer"])


# ---- sending never blocks -------------------------------------------------------------------------------------------


def a_clogged_send_returns_false_and_flush_finishes(make_pair: PairMaker) -> None:
    """Nobody reads: `send` returns, what it took stays pending, and `flush` writes it when there is room."""
    with make_pair() as (ours, theirs):
        heads = clog(ours)
        assert 0 < ours.pending_bytes() <= len(heads) * limits.MIB + 1024
        assert ours.wants_write() is not ours.rings_doorbell
        assert ours.flush() is False
        heads.append(b"behind them")
        assert ours.send(heads[-1]) is False
        assert [data(frame)[0] for frame in transfer(ours, theirs, len(heads))] == heads
        assert ours.pending_bytes() == 0
        assert ours.flush() is True
        assert ours.wants_write() is False


def room_wakes_a_waiting_sender(make_pair: PairMaker) -> None:
    """A sender that waits on its descriptor learns of room, every time."""
    with make_pair() as (ours, theirs):
        heads = clog(ours)

        def drain() -> None:
            count = 0
            while count < len(heads):
                count += len(receive_some(theirs))

        deadline = Deadline(PATIENCE_SECONDS)
        with beside(drain):
            while not ours.flush():
                wait(ours, deadline, "room")


def snapshot_makes_pending_buffers_independent(make_pair: PairMaker) -> None:
    """After `snapshot` the owner may change what is not written yet."""
    with make_pair() as (ours, theirs):
        heads = clog(ours)
        buffers = [bytearray(b"a" * size) for size in (20_000, LARGE_BYTES)]
        assert ours.send(b"borrowed", buffers) is False
        pending = ours.pending_bytes()
        ours.snapshot()
        assert ours.pending_bytes() == pending
        for buffer in buffers:
            buffer[:] = b"b" * len(buffer)
            buffer.append(0)  # Nobody holds a view any more either.
        frames = transfer(ours, theirs, len(heads) + 1)
        assert [set(buffer) for buffer in data(frames[-1])[1]] == [set(b"a")] * 2


def written_buffers_are_given_back(make_pair: PairMaker) -> None:
    """When nothing is left to write, the owner may change the buffers, received or not."""
    with make_pair() as (ours, theirs):
        buffer = bytearray(b"a" * 40_000)
        while ours.send(b"borrowed", [buffer]):
            buffer[:] = b"b" * len(buffer)
            first = receive_some(theirs)[0]
            assert set(data(first)[1][0]) == set(b"a")
            buffer = bytearray(b"a" * 2 * len(buffer))
            if len(buffer) > LARGE_BYTES:
                break


# ---- what was received ----------------------------------------------------------------------------------------------


def received_buffers_are_private_and_writable(make_pair: PairMaker) -> None:
    """A receiver may write into what it got: the sender, and who got the same, do not see it."""
    with make_pair() as (ours, theirs):
        for size in (1, 20_000, limits.MIB):
            source = bytearray(b"a" * size)
            for _ in range(2):
                ours.send(b"same", [source])
            first, second = (memoryview(frame.buffers[0]) for frame in transfer(ours, theirs, 2))
            first[:] = b"b" * size
            assert set(source) == set(second) == set(b"a")


def received_frames_outlive_the_transport(make_pair: PairMaker) -> None:
    """Heads and buffers stay as they are while more comes, and after both ends are gone."""
    content = random.Random(3).randbytes(100_000)
    with make_pair() as (ours, theirs):
        ours.send(content, [content])
        kept = transfer(ours, theirs, 1)[0]
        for _ in range(20):
            ours.send(bytes(100_000), [bytes(100_000)])
            transfer(ours, theirs, 1)
        ours.close(PATIENCE_SECONDS)
        theirs.close(PATIENCE_SECONDS)
    del ours, theirs
    gc.collect()
    assert data(kept) == (content, [content])
    memoryview(kept.buffers[0])[:3] = b"new"
    assert bytes(kept.buffers[0][:3]) == b"new"
