"""Frames that travel while their buffer is still being copied: complete for the receiver only when the buffer is."""

from __future__ import annotations

import select
from collections.abc import Callable

import pytest

from hybriddist import limits
from hybriddist.core.frames import encode_start
from hybriddist.errors import RemoteProtocolError, TransportBroken, TransportClosed
from hybriddist.shm.slots import FILLING, FREE
from hybriddist.shm.transport import _EARLY_BYTES, ShmTransport

Pair = tuple[ShmTransport, ShmTransport]
SIZES = [_EARLY_BYTES.start, 1_000_000, _EARLY_BYTES.stop - 1]


def content(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + bytes(size % 256)


def in_the_middle(monkeypatch: pytest.MonkeyPatch, transport: ShmTransport, action: Callable[[], None]) -> None:
    """Have ``action`` run after a frame is sent and before its buffer is copied."""
    fill = transport._arena.fill

    def act_and_fill(slot: object, buffer: object) -> None:
        action()
        fill(slot, buffer)  # type: ignore[arg-type]

    monkeypatch.setattr(transport._arena, "fill", act_and_fill)


def has_rung(transport: ShmTransport) -> bool:
    return bool(select.select([transport.fileno()], [], [], 0)[0])


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_received_before_the_buffer_is_there(pair: Pair, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    sender, receiver = pair
    looks = []

    def look() -> None:
        looks.extend([receiver.receive(), receiver.receive(), receiver.arm(), receiver.receive()])

    in_the_middle(monkeypatch, sender, look)
    sender.send(b"early", [content(size)])
    assert looks == [[], [], False, []]
    assert has_rung(receiver)  # it had said that it waits
    receiver.acknowledge()
    [(head, [buffer])] = receiver.receive()
    assert (head, bytes(buffer)) == (b"early", content(size))
    assert receiver.receive() == []


def test_a_sleeping_receiver_is_woken_for_the_beginning_and_for_the_end(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = pair
    assert not receiver.arm()
    rings = []

    def wake_and_sleep() -> None:
        rings.append(has_rung(receiver))
        receiver.acknowledge()
        assert receiver.receive() == []
        assert not receiver.arm()
        rings.append(has_rung(receiver))

    in_the_middle(monkeypatch, sender, wake_and_sleep)
    sender.send(b"early", [content(SIZES[0])])
    assert rings == [True, False]
    assert has_rung(receiver)


def test_what_is_filled_while_the_bell_is_armed_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = pair
    in_the_middle(monkeypatch, sender, lambda: receiver.receive() and None)
    sender.send(b"early", [content(SIZES[0])])
    assert receiver.arm()
    assert [frame.head for frame in receiver.receive()] == [b"early"]


def test_frames_before_and_behind_keep_their_order(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = pair
    heads = []
    in_the_middle(monkeypatch, sender, lambda: heads.extend(frame.head for frame in receiver.receive()))
    sender.send(b"before")
    sender.send(b"early", [content(SIZES[1])])
    assert heads == [b"before"]
    sender.send(b"behind")
    heads += [frame.head for frame in receiver.receive()]
    heads += [frame.head for frame in receiver.receive()]
    assert heads == [b"before", b"early", b"behind"]


def test_a_copy_that_fails_ends_the_connection(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = pair
    heads = []

    def fail() -> None:
        heads.extend(frame.head for frame in receiver.receive())
        raise MemoryError

    in_the_middle(monkeypatch, sender, fail)
    sender.send(b"before")
    with pytest.raises(MemoryError):
        sender.send(b"early", [content(SIZES[0])])
    assert heads == [b"before"]
    with pytest.raises(RemoteProtocolError, match="given up"):
        receiver.receive()


def test_a_peer_that_dies_in_the_middle(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had sent before is received all the same."""
    sender, receiver = pair

    def die() -> None:
        monkeypatch.setattr(sender._arena, "cancel", lambda token: None)  # who is killed does nothing more
        sender._doorbell.close()
        raise SystemExit

    in_the_middle(monkeypatch, sender, die)
    sender.send(b"before")
    with pytest.raises(SystemExit):
        sender.send(b"early", [content(SIZES[0])])
    assert [frame.head for frame in receiver.receive()] == [b"before"]
    receiver.acknowledge()
    with pytest.raises(TransportBroken, match="in the middle of a frame"):
        receiver.receive()


def test_a_peer_that_fills_and_leaves_is_heard(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is seen before its buffer is looked at again: the buffer is there all the same."""
    sender, receiver = pair
    in_the_middle(monkeypatch, sender, lambda: receiver.receive() and None)
    sender.send(b"early", [content(SIZES[0])])
    sender.close(0)
    receiver.acknowledge()
    [(head, [buffer])] = receiver.receive()
    assert (head, bytes(buffer)) == (b"early", content(SIZES[0]))
    with pytest.raises(TransportClosed):
        receiver.receive()


def test_without_room_in_the_ring_it_goes_as_ever(pair: Pair) -> None:
    sender, receiver = pair
    while sender.send(bytes(limits.KIB)):
        pass
    sender.send(b"late", [content(SIZES[0])])
    frames = []
    while not frames or frames[-1].head != b"late":
        frames += receiver.receive()
        sender.flush()
    assert bytes(frames[-1].buffers[0]) == content(SIZES[0])


def test_a_reserved_slot_is_given_away_and_not_copied(pair: Pair) -> None:
    sender, receiver = pair
    view = sender.reserve(SIZES[0])
    assert view is not None
    view[:] = content(SIZES[0])
    buffers = [view]
    del view
    sender.settle(buffers)
    sender.send(b"reserved", buffers)
    del buffers
    [(_, [buffer])] = receiver.receive()
    assert bytes(buffer) == content(SIZES[0])


class TestALyingPeer:
    @staticmethod
    def send_unfilled(sender: ShmTransport) -> tuple[memoryview, int, bytes]:
        """A frame whose buffer is never filled: the states, the slot, and the frame's bytes."""
        slot = sender._arena.begin(SIZES[0])
        assert slot is not None
        slab, number = slot
        assert slab.states[number] == FILLING
        data = encode_start(b"early", [SIZES[0]], [slab.token(number)]) + b"early"
        assert sender._producer.write(data, whole=True)
        return slab.states, number, data

    def test_who_gives_up_has_broken_the_rules(self, pair: Pair) -> None:
        sender, receiver = pair
        states, number, _ = self.send_unfilled(sender)
        assert receiver.receive() == []
        states[number] = FREE
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match="given up"):
                receiver.receive()

    def test_who_sends_it_twice_has_broken_the_rules(self, pair: Pair) -> None:
        sender, receiver = pair
        _, _, data = self.send_unfilled(sender)
        assert sender._producer.write(data, whole=True)
        with pytest.raises(RemoteProtocolError, match="holds no buffer for us"):
            receiver.receive()

    def test_who_goes_on_behind_it_is_not_heard(self, pair: Pair) -> None:
        sender, receiver = pair
        self.send_unfilled(sender)
        assert receiver.receive() == []
        sender.send(b"behind")
        assert receiver.receive() == []
        sender.abort()
        receiver.acknowledge()
        assert receiver.receive() == []  # there are bytes, and they may be
