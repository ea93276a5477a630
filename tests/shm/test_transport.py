"""The transport: the promises of `Transport`, through shared memory."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import select
import signal
import socket
import threading
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from hybriddist import limits
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    TransportBroken,
    TransportClosed,
)
from hybriddist.shm import rendezvous
from hybriddist.shm.segment import Budget

RING = limits.RING_BYTES
OUT = limits.OUT_OF_BAND_BYTES


def names() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"hybriddist-{os.getpid()}-")]


def pump(sender, receiver, seconds: float = 20.0) -> list:
    """Flush and receive until nothing is pending and nothing comes."""
    frames, deadline = [], Deadline(seconds)
    while not deadline.expired():
        done = sender.flush()
        got = receiver.receive()
        frames += got
        if done and not got and not receiver._consumer.available():
            return frames
    raise AssertionError("no end of pumping")


def readable(transport, seconds: float = 0.0) -> bool:
    return bool(select.select([transport.fileno()], [], [], seconds)[0])


def wait_for_frames(transport, seconds: float = 20.0) -> list:
    """As a caller does: arm, wait, acknowledge, disarm. Fails instead of sleeping on a lost wake-up."""
    while True:
        frames = transport.receive()
        if frames:
            return frames
        if not transport.arm():
            assert readable(transport, seconds), "nobody rang"
            transport.acknowledge()
        transport.disarm()


def plain(frames) -> list[tuple[bytes, list[bytes]]]:
    return [(bytes(frame.head), [bytes(buffer) for buffer in frame.buffers]) for frame in frames]


class TestFrames:
    def test_kind(self, pair):
        assert (pair[0].scheme, pair[0].rings_doorbell, pair[0].wants_write()) == ("shm", True, False)

    def test_nothing_there(self, pair):
        assert pair[0].receive() == []

    @pytest.mark.parametrize("size", [1, 100, 70_000, RING - 16, RING, RING + 1, 5 * RING + 3])
    def test_heads(self, pair, size):
        head = os.urandom(size)
        pair[0].send(head)
        assert plain(pump(*pair)) == [(head, [])]

    @pytest.mark.parametrize("size", [0, 1, OUT - 1, OUT, OUT + 1, 1 << 20, 3_000_001])
    def test_buffers(self, pair, size):
        data = os.urandom(size)
        for kind in (bytes, bytearray, memoryview):
            pair[0].send(b"h", [kind(data), b"second"])
        assert plain(pump(*pair)) == [(b"h", [data, b"second"])] * 3

    def test_arena_buffers_are_not_borrowed(self, pair):
        data = bytearray(b"a" * 100_000)
        assert pair[0].send(b"h", [data])
        data[:] = b"b" * 100_000
        assert plain(pair[1].receive()) == [(b"h", [b"a" * 100_000])]

    @pytest.mark.parametrize("size", [100, 20_000, 2_000_000])
    def test_received_buffers_are_the_receivers_own(self, pair, size):
        here, there = pair
        sent = bytearray(os.urandom(size))
        here.send(b"h", [sent])
        (buffer,) = pump(*pair)[0].buffers
        expected = bytes(sent)
        array = np.frombuffer(buffer, np.uint8)
        del buffer
        here.close(1)
        there.abort()
        del pair, here, there
        gc.collect()
        assert array.tobytes() == expected
        array[:] = 0
        assert bytes(sent) == expected

    def test_over_the_limits(self, pair):
        with pytest.raises(LocalProtocolError):
            pair[0].send(b"h", [bytes(OUT)] * (limits.MAX_BUFFERS + 1))
        assert pair[0].pending_bytes() == 0
        assert not any(any(slab.states) for slab in pair[0]._arena._slabs.values())
        assert pair[0].send(b"still works")
        assert plain(pair[1].receive()) == [(b"still works", [])]

    def test_no_head(self, pair):
        with pytest.raises(LocalProtocolError):
            pair[0].send(b"", [b"buffer"])
        assert pair[0].send(b"still works")

    def test_order(self, pair):
        sent = []
        for number in range(200):
            head = bytes([number]) * (1 + number * 37 % 3000)
            buffers = [bytes([number]) * size for size in ([] if number % 3 else [5, 20_000, number * 100])]
            pair[0].send(head, buffers)
            sent.append((head, buffers))
        assert plain(pump(*pair)) == sent

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([1, 50, 5000, 100_000, 300_000]),
                st.lists(st.sampled_from([0, 1, 9000, 16_384, 50_000, 1_100_000]), max_size=3),
            ),
            max_size=6,
        )
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_whole_in_order_once(self, pair, shapes):
        sent = []
        for number, (head_size, sizes) in enumerate(shapes):
            frame = (bytes([number]) * head_size, [bytes([number + 9]) * size for size in sizes])
            pair[0].send(*frame)
            sent.append(frame)
        assert plain(pump(*pair)) == sent


class TestPending:
    def test_full_ring(self, pair):
        here, there = pair
        assert here.send(b"x" * (RING - 16))
        assert not here.send(b"more")
        assert here.pending_bytes() == 16 + 4
        assert not here.flush()
        assert len(there.receive()) == 1
        assert here.flush()
        assert here.pending_bytes() == 0
        assert plain(there.receive()) == [(b"more", [])]

    def test_pending_frames_are_not_overtaken(self, pair):
        here, there = pair
        here.send(b"1" * RING)
        here.send(b"2")
        here.send(b"3", [b"b" * 50_000])
        assert [frame.head[:1] for frame in pump(here, there)] == [b"1", b"2", b"3"]

    def inline(self, make_pair):
        return make_pair(budget=Budget(0))

    def test_borrowed_until_written(self, make_pair):
        here, there = self.inline(make_pair)
        data = bytearray(b"a" * 2 * RING)
        assert not here.send(b"h", [data])
        data[-1:] = b"b"
        assert plain(pump(here, there))[0][1][0][-1:] == b"b"

    def test_snapshot(self, make_pair):
        here, there = self.inline(make_pair)
        data = bytearray(b"a" * 2 * RING)
        assert not here.send(b"h", [data])
        here.snapshot()
        data[:] = b"b" * len(data)
        data.clear()  # Not referred to any more.
        assert plain(pump(here, there)) == [(b"h", [b"a" * 2 * RING])]

    def test_allocate(self, make_pair):
        asked = []

        def allocate(length):
            asked.append(length)
            return memoryview(bytearray(length))

        here, there = make_pair(budget=Budget(0), allocate=allocate)
        here.send(b"h", [b"a" * 50_000])
        assert plain(pump(here, there)) == [(b"h", [b"a" * 50_000])]
        assert asked == [50_000]

    def test_full_file_system(self, pair, monkeypatch):
        def no_room(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", no_room)
        data = os.urandom(1_500_000)
        pair[0].send(b"h", [data])
        assert plain(pump(*pair)) == [(b"h", [data])]
        assert names() == []

    def test_interrupted_anywhere(self, make_pair):
        # Ctrl-C in the middle of writing: the stream goes on where it was.
        here, there = self.inline(make_pair)
        interrupts = iter(range(1, 60))
        left = next(interrupts)
        real = here._producer

        class Interrupting:
            def __getattr__(self, name):
                nonlocal left
                left -= 1
                if left == 0:
                    left = next(interrupts, 10**9)
                    raise KeyboardInterrupt
                return getattr(real, name)

        here._producer = Interrupting()
        sent, got = [], []
        for number in range(40):
            head, data = bytes([number]) * (1 + 20_000 * (number % 5)), bytes([number]) * 70_000
            before = len(here._outbox)
            position = real.position()
            try:
                here.send(head, [data] if number % 2 else ())
            except KeyboardInterrupt:
                if len(here._outbox) == before and real.position() == position:
                    continue  # Not sent at all.
            sent.append((head, [data] if number % 2 else []))
            while here._outbox:
                with contextlib.suppress(KeyboardInterrupt):
                    here.flush()
                got += plain(there.receive())
            got += plain(there.receive())
        assert got == sent


class TestWaiting:
    def test_no_bell_without_arming(self, pair):
        pair[0].send(b"x")
        assert not readable(pair[1])

    def test_bell_rings_once(self, pair):
        here, there = pair
        assert not there.arm()
        here.send(b"x")
        here.send(b"y")
        assert readable(there)
        assert there._doorbell._socket.recv(100) == b"\1"
        assert len(there.receive()) == 2

    def test_something_came_before_arming(self, pair):
        pair[0].send(b"x")
        assert pair[1].arm()

    def test_disarmed(self, pair):
        assert not pair[1].arm()
        pair[1].disarm()
        pair[0].send(b"x")
        assert not readable(pair[1])

    def test_bell_rings_when_there_is_room(self, pair):
        here, there = pair
        here.send(b"x" * 2 * RING)
        assert not here.arm()
        assert not readable(here)
        there.receive()
        assert readable(here)
        here.acknowledge()
        assert here.arm()
        pump(here, there)
        here.disarm()

    def test_bell_for_a_sender_whose_other_thread_sleeps(self, pair):
        # The receiving thread armed before the sending one left something pending.
        here, there = pair
        assert not here.arm()
        here.send(b"x" * 2 * RING)
        there.receive()
        assert readable(here)

    @pytest.mark.timeout(60)
    def test_threads_that_sleep_whenever_they_may(self, pair):
        here, there = pair
        count = 1500

        def echo():
            left = count
            while left:
                for frame in wait_for_frames(there):
                    left -= 1
                    there.send(frame.head, frame.buffers)
                    while not there.flush():
                        time.sleep(0)

        thread = threading.Thread(target=echo)
        thread.start()
        got = []
        for number in range(count):
            here.send(b"%d" % number, [b"b" * OUT] if number % 7 == 0 else ())
            if number % 3 == 0:
                got += wait_for_frames(here)
        while len(got) < count:
            got += wait_for_frames(here)
        thread.join()
        assert [int(frame.head) for frame in got] == list(range(count))


class TestEnds:
    def test_close_hands_out_what_was_sent(self, pair):
        here, there = pair
        here.send(b"one")
        here.send(b"two", [b"b" * 100_000])
        here.close(1)
        there.acknowledge()
        assert plain(there.receive()) == [(b"one", []), (b"two", [b"b" * 100_000])]
        with pytest.raises(TransportClosed):
            there.receive()
        with pytest.raises(TransportClosed):
            there.send(b"x")
        assert names() == []

    def test_close_flushes(self, pair):
        here, there = pair
        data = os.urandom(3 * RING)
        here.send(data)
        thread = threading.Thread(target=here.close, args=(20,))
        thread.start()
        assert plain(wait_for_frames(there)) == [(data, [])]
        thread.join()
        with pytest.raises(TransportClosed):
            wait_for_frames(there)

    def test_close_that_could_not_flush(self, pair):
        here, there = pair
        here.send(b"x" * 3 * RING)
        here.close(0.05)
        there.acknowledge()
        assert there.receive() == []
        with pytest.raises(TransportBroken, match="middle of a frame"):
            there.receive()

    def test_close_wakes_a_sleeper(self, pair):
        here, there = pair
        assert not there.arm()
        here.close(1)
        assert readable(there)
        there.acknowledge()
        assert there.arm()

    def test_forked_child_that_ends_what_it_inherited(self, pair):
        here, there = pair
        here.send(b"h", [b"b" * OUT])
        ospid = os.fork()
        if not ospid:
            try:
                here.close(1)
                there.abort()
            finally:
                os._exit(0)
        assert os.waitpid(ospid, 0)[1] == 0
        assert not readable(here)
        assert plain(there.receive()) == [(b"h", [b"b" * OUT])]

    def test_own_close(self, pair):
        here, _ = pair
        here.close(1)
        here.close(1)
        here.abort()
        assert here.fileno() == -1
        assert here.arm()
        here.disarm()
        here.acknowledge()
        for use in (here.receive, here.flush, lambda: here.send(b"x"), lambda: here.send(b"x", [bytes(OUT)])):
            with pytest.raises(TransportClosed):
                use()

    def test_abort_is_broken_for_the_peer(self, pair):
        here, there = pair
        here.send(b"one")
        here.abort()
        here.abort()
        there.acknowledge()
        assert plain(there.receive()) == [(b"one", [])]
        with pytest.raises(TransportBroken):
            there.receive()
        with pytest.raises(TransportBroken):
            there.send(b"x")

    def test_abort_removes_names(self, pair):
        here, there = pair
        here.send(b"h", [bytes(OUT)])
        there.send(b"h", [bytes(OUT)])
        assert len(names()) == 2
        here.abort()
        assert names() == []

    def test_close_leaves_names_to_a_living_peer(self, pair):
        here, there = pair
        here.send(b"h", [b"b" * OUT])
        here.close(0)
        assert plain(there.receive()) == [(b"h", [b"b" * OUT])]
        assert names() == []

    def test_blocked_sender_learns_of_the_end(self, pair):
        here, there = pair
        here.send(b"x" * 2 * RING)
        assert not here.arm()
        there.abort()
        assert readable(here)
        here.acknowledge()
        with pytest.raises(TransportBroken):
            here.flush()

    def test_last_words_between_the_look_and_the_end(self, pair, monkeypatch):
        # The ring was empty, then the peer wrote and died, then its end was noticed.
        here, there = pair
        read = there._consumer.read

        def late():
            data = read()
            if not data and not there._doorbell.peer_gone:
                here.send(b"last words")
                here.close(1)
                there.acknowledge()
            return data

        class Late:
            def __init__(self, consumer):
                self.consumer = consumer

            def __getattr__(self, name):
                return late if name == "read" else getattr(self.consumer, name)

        monkeypatch.setattr(there, "_consumer", Late(there._consumer))
        assert there.receive() == []
        assert plain(there.receive()) == [(b"last words", [])]
        with pytest.raises(TransportClosed):
            there.receive()

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("turn", range(10))
    def test_abort_under_a_running_receiver_and_sender(self, pair, turn):
        here, there = pair
        ended = []

        def send():
            try:
                while True:
                    there.send(b"x" * 1000, [bytes(50_000)])
                    while not there.flush():
                        time.sleep(0)
            except (TransportClosed, TransportBroken) as error:
                ended.append(error)

        def receive():
            try:
                while True:
                    here.receive()
            except (TransportClosed, TransportBroken) as error:
                ended.append(error)

        threads = [threading.Thread(target=send), threading.Thread(target=receive)]
        for thread in threads:
            thread.start()
        time.sleep(random.Random(turn).random() * 0.01)
        here.abort()
        there.abort()
        for thread in threads:
            thread.join(20)
        assert len(ended) == 2


class TestHostile:
    def test_bytes_that_are_no_frame(self, pair):
        here, there = pair
        here._producer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
        for _ in range(2):
            with pytest.raises(RemoteProtocolError):
                there.receive()
        assert there.arm()

    def test_token_of_nothing(self, pair):
        from hybriddist.core.frames import encode

        here, there = pair
        here._producer.write(encode(b"h", [1000], [1 << 63 | 1 << 32]))
        with pytest.raises(RemoteProtocolError):
            there.receive()

    @pytest.mark.parametrize("side", ["there", "here"])
    def test_impossible_cursors(self, pair, side):
        here, there = pair
        words = here._producer._words
        if side == "there":
            words[0] = 2**40
            assert there.arm()
            with pytest.raises(RemoteProtocolError):
                there.receive()
        else:
            here.send(b"x" * 2 * RING)
            words[8] = 2**40
            assert here.arm()
            with pytest.raises(TransportBroken):
                here.flush()


# The peer of this test's process. Its sends are checked by their content: `head` says what the buffers must hold.
PEER = """
import os, random, select, signal, socket, sys
from hybriddist.deadline import Deadline
from hybriddist.shm import rendezvous
sock = socket.socket(fileno=int(sys.argv[1]))
link = rendezvous.offer(sock, Deadline(20))
print(os.getpid(), flush=True)
number = 0
while True:
    number += 1
    size = (100, 30_000, 400_000, 3_000_000)[number % 4]
    done = link.send(bytes([number % 256]) * size, [bytes([number % 256]) * size])
    while not done:
        if not link.arm():
            select.select([link.fileno()], [], [], 20)
            link.acknowledge()
        link.disarm()
        done = link.flush()
"""


class TestDeath:
    def receive_for_ever(self, link, held):
        received = 0
        while True:
            for head, buffers in wait_for_frames(link):
                received += 1
                size = (100, 30_000, 400_000, 3_000_000)[received % 4]
                expected = bytes([received % 256]) * size
                assert head == expected
                assert buffers[0] == expected
                held[:] = [*held[-3:], (buffers[0], expected)]

    @pytest.mark.timeout(120)
    @pytest.mark.parametrize("inline", [False, True], ids=["arena", "ring"])
    @pytest.mark.parametrize("turn", range(4))
    def test_killed_in_the_middle_of_sending(self, python, turn, inline):
        near, far = socket.socketpair()
        script = PEER
        if inline:
            script = script.replace("Deadline(20))", "Deadline(20), budget=rendezvous.Budget(0))")
        process = python.start(script, far.fileno(), pass_fds=[far.fileno()])
        far.close()
        near.settimeout(20)
        assert near.recv(1) == b"S"
        link = rendezvous.accept(near, Deadline(20))
        ospid = int(process.stdout.readline())
        lives = random.Random(turn).random() * 0.1
        killer = threading.Timer(lives, os.kill, [ospid, signal.SIGKILL])
        killer.start()
        held = []
        try:
            with pytest.raises(TransportBroken):
                self.receive_for_ever(link, held)
            assert process.wait(20) == -signal.SIGKILL
        finally:
            killer.join()
            link.abort()
        # What came stays, and no name does.
        assert all(view == expected for view, expected in held)
        assert [name for name in os.listdir("/dev/shm") if name.startswith(f"hybriddist-{ospid}-")] == []

    @pytest.mark.timeout(60)
    def test_receiver_killed_with_a_full_ring(self, python):
        near, far = socket.socketpair()
        process = python.start(
            "import socket, sys, time\n"
            "from hybriddist.deadline import Deadline\n"
            "from hybriddist.shm import rendezvous\n"
            "sock = socket.socket(fileno=int(sys.argv[1]))\n"
            "assert sock.recv(1) == b'S'\n"
            "link = rendezvous.accept(sock, Deadline(20))\n"
            "print('here', flush=True)\n"
            "sys.stdin.read()\n",
            far.fileno(),
            pass_fds=[far.fileno()],
        )
        far.close()
        link = rendezvous.offer(near, Deadline(20))
        assert process.stdout.readline() == b"here\n"
        link.send(b"x" * 3 * RING, [bytes(1 << 20)])
        assert not link.arm()
        assert not readable(link)
        process.kill()
        assert readable(link, 20)
        link.acknowledge()
        with pytest.raises(TransportBroken):
            link.flush()
        link.abort()
        assert names() == []

    @pytest.mark.timeout(60)
    def test_both_killed_then_swept(self, python):
        from hybriddist.shm import segment

        script = (
            "import os, signal, socket, threading\n"
            "from hybriddist.deadline import Deadline\n"
            "from hybriddist.shm import rendezvous\n"
            "a, b = socket.socketpair()\n"
            "thread = threading.Thread(target=lambda: (b.recv(1), rendezvous.accept(b, Deadline(20)).send(b'x')))\n"
            "thread.start()\n"
            "link = rendezvous.offer(a, Deadline(20)); thread.join()\n"
            "link.send(b'h', [bytes(1 << 20)])\n"
            "print(os.getpid(), flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        process = python.start(script)
        ospid = int(process.stdout.readline())
        process.wait()
        left = [name for name in os.listdir("/dev/shm") if name.startswith(f"hybriddist-{ospid}-")]
        assert len(left) == 1
        assert set(left) <= set(segment.sweep())
        assert [name for name in os.listdir("/dev/shm") if name.startswith(f"hybriddist-{ospid}-")] == []

    @pytest.mark.timeout(60)
    def test_interpreter_exit_with_everything_alive(self, python):
        result = python.run(
            "import socket, threading\n"
            "from hybriddist.deadline import Deadline\n"
            "from hybriddist.shm import rendezvous\n"
            "a, b = socket.socketpair()\n"
            "ends = []\n"
            "thread = threading.Thread(target=lambda: (b.recv(1), ends.append(rendezvous.accept(b, Deadline(20)))))\n"
            "thread.start()\n"
            "link = rendezvous.offer(a, Deadline(20)); thread.join()\n"
            "for size in (20_000, 2_000_000): link.send(b'h', [bytes(size)])\n"
            "frames = ends[0].receive()\n"
            "assert [len(frame.buffers[0]) for frame in frames] == [20_000, 2_000_000]\n"
            "link.close(1); ends[0].close(1)\n"
            "class Cycle: pass\n"
            "cycle = Cycle(); cycle.me = cycle; cycle.frames = frames\n"
        )
        assert (result.returncode, result.stderr) == (0, "")
