"""Conformance checks of waking, of several threads, and of the end of a connection."""

from __future__ import annotations

import gc
import os
import random
from time import sleep

from hybriddist.deadline import Deadline
from hybriddist.errors import TransportBroken, TransportClosed
from hybriddist.testing.driving import (
    PATIENCE_SECONDS,
    PairMaker,
    beside,
    clog,
    data,
    end_of,
    expect_end,
    is_readable,
    receive_some,
    send_all,
    wait,
)
from hybriddist.transport import Transport

# ---- waking ---------------------------------------------------------------------------------------------------------


def what_is_here_needs_no_doorbell(make_pair: PairMaker) -> None:
    """A frame that came before `arm`: either `arm` tells, or the descriptor is readable."""
    with make_pair() as (ours, theirs):
        ours.send(b"early")
        assert theirs.arm() or is_readable(theirs, PATIENCE_SECONDS)
        theirs.disarm()
        assert data(receive_some(theirs)[0]) == (b"early", [])


def the_doorbell_rings_only_while_armed(make_pair: PairMaker) -> None:
    """Armed, the descriptor becomes readable. Not armed, a transport with a doorbell spares the system call."""
    with make_pair() as (ours, theirs):
        for _ in range(3):
            assert theirs.arm() is False
            ours.send(b"ring")
            assert is_readable(theirs, PATIENCE_SECONDS)
            theirs.acknowledge()
            theirs.disarm()
            assert data(theirs.receive()[0]) == (b"ring", [])
            assert not is_readable(theirs)
            ours.send(b"quietly")
            # Frames may be on their way for a moment; a bell that must not ring has no moment.
            assert is_readable(theirs, 0.0 if theirs.rings_doorbell else PATIENCE_SECONDS) is not theirs.rings_doorbell
            assert data(theirs.receive()[0]) == (b"quietly", [])


def no_wake_up_is_lost(make_pair: PairMaker) -> None:
    """Two threads play ping-pong and fall asleep at ever different moments."""
    rounds = 400

    def play(transport: Transport, begins: bool) -> None:
        pauses = random.Random(begins)
        for number in range(rounds):
            if begins:
                transport.send(number.to_bytes(2, "little") + b"ping")
            (frame,) = receive_some(transport)
            assert bytes(frame.head[:2]) == number.to_bytes(2, "little")
            for _ in range(pauses.choice((0, 0, 20, 200))):
                pass
            if not begins:
                transport.send(number.to_bytes(2, "little") + b"pong")

    with make_pair() as (ours, theirs), beside(lambda: play(theirs, begins=False)):
        play(ours, begins=True)


# ---- both directions, several threads -------------------------------------------------------------------------------


def both_directions_at_once(make_pair: PairMaker) -> None:
    """Each end, in one thread, sends megabytes and receives as many: neither waits for the other to stop sending."""
    content = random.Random(4).randbytes(700_000)

    def exchange(transport: Transport) -> None:
        deadline = Deadline(PATIENCE_SECONDS)
        sent = received = 0
        while received < 10 or sent < 10 or transport.pending_bytes():
            if transport.flush() and sent < 10:
                transport.send(content, [content])
                sent += 1
            frames = transport.receive()
            assert all(data(frame) == (content, [content]) for frame in frames)
            received += len(frames)
            if not frames and (transport.pending_bytes() or sent == 10) and received < 10:
                wait(transport, deadline, "the other end")

    with make_pair() as (ours, theirs), beside(lambda: exchange(theirs)):
        exchange(ours)


def two_sides_by_two_threads(make_pair: PairMaker) -> None:
    """At both ends one thread only sends and one only receives."""
    heads = [number.to_bytes(4, "little") * (number * 37 % 9000 + 1) for number in range(400)]

    def receive_all(transport: Transport) -> None:
        received: list[bytes] = []
        while len(received) < len(heads):
            received += [bytes(frame.head) for frame in receive_some(transport)]
        assert received == heads

    def send_every(transport: Transport) -> None:
        for head in heads:
            send_all(transport, head)

    with make_pair() as (ours, theirs):
        others = [lambda: receive_all(ours), lambda: receive_all(theirs), lambda: send_every(theirs)]
        with beside(*others):
            send_every(ours)


# ---- the end --------------------------------------------------------------------------------------------------------


def close_delivers_everything_first(make_pair: PairMaker) -> None:
    """What was pending at `close` arrives, also against the stream of what nobody will read any more."""
    with make_pair() as (ours, theirs):
        theirs.send(b"never read")
        heads = clog(ours)
        received: list[bytes] = []

        def receive_on() -> None:
            while True:
                received.extend(bytes(frame.head) for frame in receive_some(theirs))

        with beside(lambda: end_of(receive_on)):
            ours.close(PATIENCE_SECONDS)
        assert received == heads
        expect_end(theirs, TransportClosed)


def both_ends_close_while_clogged(make_pair: PairMaker) -> None:
    """Neither end reads any more, and yet both closings come to an end, at the latest when their time is over."""
    with make_pair() as (ours, theirs):
        clog(ours)
        clog(theirs)
        with beside(lambda: theirs.close(1.0)):
            ours.close(1.0)
        assert ours.fileno() == theirs.fileno() == -1


def close_gives_up_in_time(make_pair: PairMaker) -> None:
    """The peer does not read: `close` returns, and the peer does not take the torn rest for an end in good order."""
    with make_pair() as (ours, theirs):
        heads = clog(ours)
        for _ in range(64):  # So much that no kernel's buffers grow to it meanwhile.
            heads.append(heads[-1])
            assert ours.send(heads[-1]) is False
        ours.close(0.05)
        received: list[bytes] = []

        def receive_on() -> None:
            while True:
                received.extend(bytes(frame.head) for frame in receive_some(theirs))

        assert isinstance(end_of(receive_on), TransportBroken)
        assert received == heads[: len(received)]
        assert len(received) < len(heads)


def close_wakes_and_ends_the_peer(make_pair: PairMaker) -> None:
    """A peer that waits is woken and told that this was in good order."""
    with make_pair() as (ours, theirs), beside(lambda: expect_end(theirs, TransportClosed)):
        ours.close(PATIENCE_SECONDS)


def abort_breaks_the_peer(make_pair: PairMaker) -> None:
    """A peer that waits is woken and told that this was no good order."""
    with make_pair() as (ours, theirs), beside(lambda: expect_end(theirs, TransportBroken)):
        ours.abort()


def sending_to_a_gone_peer_raises(make_pair: PairMaker) -> None:
    """At once, or after the wait that is due when there is nothing to do; `receive` is not needed for it."""
    for end in ("close", "abort"):
        with make_pair() as (ours, theirs):
            theirs.close(PATIENCE_SECONDS) if end == "close" else theirs.abort()

            def send_on(ours: Transport = ours) -> None:
                deadline = Deadline(PATIENCE_SECONDS)
                while True:
                    ours.send(b"is anybody there?")
                    wait(ours, deadline, "the end")

            end_of(send_on)


def what_a_gone_peer_had_sent_is_received(make_pair: PairMaker) -> None:
    """That nothing can be sent any more does not take away what came before."""
    with make_pair() as (ours, theirs):
        assert theirs.send(b"last words")
        theirs.close(PATIENCE_SECONDS)
        for _ in range(5):  # The first may still be taken; what comes after it meets the end.
            try:
                ours.send(b"is anybody there?")
            except (TransportClosed, TransportBroken):
                continue
        assert data(receive_some(ours)[0]) == (b"last words", [])
        expect_end(ours, TransportClosed)


def ending_twice_is_allowed(make_pair: PairMaker) -> None:
    """In every order; afterwards there is no descriptor, and both sides raise."""
    for ends in ("close close", "abort abort", "close abort", "abort close"):
        with make_pair() as (ours, _):
            for end in ends.split():
                ours.close(0.1) if end == "close" else ours.abort()
            assert ours.fileno() == -1
            expect_end(ours, TransportClosed, TransportBroken)
            ours.disarm()


def abort_ends_a_receive_in_another_thread(make_pair: PairMaker) -> None:
    """Whether that thread polls or waits on the descriptor."""

    def poll(transport: Transport) -> None:
        def receive_on() -> None:
            deadline = Deadline(PATIENCE_SECONDS)
            while not deadline.expired():
                transport.receive()

        end_of(receive_on)

    for follow in (poll, lambda transport: expect_end(transport, TransportClosed, TransportBroken)):
        with make_pair() as (ours, theirs):
            with beside(lambda follow=follow, ours=ours: follow(ours)):  # type: ignore[misc]
                ours.send(b"the thread may be anywhere now")
                receive_some(theirs)
                ours.abort()
            expect_end(theirs, TransportBroken)


def no_descriptor_is_left(make_pair: PairMaker) -> None:
    """After both ends are over, however they ended."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    before = len(os.listdir(folder))
    for end in ("close", "abort"):
        with make_pair() as (ours, theirs):
            ours.send(b"head", [bytes(100_000)])
            for transport in (ours, theirs):
                transport.close(0.1) if end == "close" else transport.abort()
            del ours, theirs, transport
    gc.collect()
    deadline = Deadline(PATIENCE_SECONDS)  # threads of a transport may have the last ones in their hands
    while len(os.listdir(folder)) > before:
        assert not deadline.expired(), f"{len(os.listdir(folder)) - before} descriptors are left"
        sleep(0.001)
