"""The ring: a model of it, its flags, impossible cursors, and two processes that hammer it."""

from __future__ import annotations

import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hybriddist.errors import RemoteProtocolError, TransportBroken
from hybriddist.shm.ring import HEADER_BYTES, Consumer, Fence, Producer, stores_are_ordered
from hybriddist.shm.segment import Segment

WORDS = {"written": 0, "read": 8, "consumer_waiting": 16, "producer_waiting": 24, "closed": 32}
STARTS = [0, 1, 63, 2**32 - 5, 2**32, 2**63 - 3, 2**64 - 1, 2**64 - 20]


def ring(capacity: int = 64, start: int = 0) -> memoryview:
    memory = memoryview(bytearray(HEADER_BYTES + capacity))
    words = memory[:HEADER_BYTES].cast("Q")
    words[WORDS["written"]] = words[WORDS["read"]] = start
    return memory


def word(memory: memoryview, name: str) -> int:
    return memory[:HEADER_BYTES].cast("Q")[WORDS[name]]


class RingModel(RuleBasedStateMachine):
    """A ring is a queue of bytes that takes what there is room for, wherever its cursors stand."""

    @initialize(capacity=st.sampled_from([1, 2, 8, 64]), start=st.sampled_from(STARTS))
    def begin(self, capacity, start):
        memory = ring(capacity, start)
        self.capacity = capacity
        self.producer, self.consumer = Producer(memory), Consumer(memory)
        self.queue = b""
        self.next_byte = 0

    @rule(count=st.integers(0, 150), view=st.booleans())
    def write(self, count, view):
        data = bytes((self.next_byte + number) % 251 for number in range(count))
        taken = self.producer.write(memoryview(data) if view else data)
        assert taken == min(count, self.capacity - len(self.queue))
        self.queue += data[:taken]
        self.next_byte += taken

    @rule()
    def fill(self):
        self.write(self.capacity - len(self.queue), False)
        assert self.producer.room() == 0
        assert self.producer.write(b"x") == 0
        assert not self.producer.wait_for_room()

    @rule()
    def read(self):
        assert self.consumer.read() == self.queue
        self.queue = b""
        assert not self.consumer.wait_for_bytes()

    @rule(count=st.integers(0, 100))
    def read_into(self, count):
        memory = bytearray(count)
        taken = self.consumer.read_into(memoryview(memory))
        assert taken == min(count, len(self.queue))
        assert memory[:taken] == self.queue[:taken]
        assert not any(memory[taken:])
        self.queue = self.queue[taken:]

    @invariant()
    def counts(self):
        if hasattr(self, "queue"):
            assert self.consumer.available() == len(self.queue)
            assert self.producer.room() == self.capacity - len(self.queue)


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_layout():
    memory = ring(64)
    producer, consumer = Producer(memory), Consumer(memory)
    producer.write(b"abc")
    assert (word(memory, "written"), word(memory, "read")) == (3, 0)
    assert bytes(memory[HEADER_BYTES : HEADER_BYTES + 3]) == b"abc"
    consumer.read()
    assert (word(memory, "written"), word(memory, "read")) == (3, 3)


@pytest.mark.parametrize("size", [0, HEADER_BYTES, HEADER_BYTES - 1, HEADER_BYTES + 3, HEADER_BYTES + 96])
def test_capacity_is_a_power_of_two(size):
    with pytest.raises(ValueError, match="power of two"):
        Producer(memoryview(bytearray(size)))


def test_a_waiting_consumer_is_reported_once():
    memory = ring()
    producer, consumer = Producer(memory), Consumer(memory)
    assert not producer.consumer_waits()
    assert not consumer.wait_for_bytes()
    producer.write(b"x")
    assert producer.consumer_waits()
    assert not producer.consumer_waits()
    assert consumer.wait_for_bytes()
    consumer.stop_waiting()
    assert not producer.consumer_waits()


def test_a_waiting_producer_is_reported_once():
    memory = ring()
    producer, consumer = Producer(memory), Consumer(memory)
    producer.write(bytes(64))
    assert not consumer.producer_waits()
    assert not producer.wait_for_room()
    consumer.read_into(memoryview(bytearray(1)))
    assert consumer.producer_waits()
    assert not consumer.producer_waits()
    assert producer.wait_for_room()
    producer.stop_waiting()
    assert not consumer.producer_waits()


def test_closed_is_seen_with_all_that_was_written():
    memory = ring()
    producer, consumer = Producer(memory), Consumer(memory)
    assert not consumer.closed()
    producer.write(b"last")
    producer.close()
    assert consumer.closed()
    assert consumer.read() == b"last"


@pytest.mark.parametrize("lie", [65, 2**63, 2**64 - 1])
def test_impossible_cursor_of_the_producer(lie):
    memory = ring()
    consumer = Consumer(memory)
    memory[:HEADER_BYTES].cast("Q")[WORDS["written"]] = lie
    for look in (consumer.read, consumer.available, consumer.wait_for_bytes):
        with pytest.raises(RemoteProtocolError, match="impossible cursors"):
            look()


@pytest.mark.parametrize("lie", [1, 2**63, 2**64 - 65])
def test_impossible_cursor_of_the_consumer(lie):
    memory = ring()
    producer = Producer(memory)
    memory[:HEADER_BYTES].cast("Q")[WORDS["read"]] = lie
    for look in (producer.room, producer.wait_for_room, lambda: producer.write(bytes(65))):
        with pytest.raises(TransportBroken, match="impossible cursors"):
            look()


def test_words_are_not_written_with_pack_into():
    # A reader of a word that is being packed may see zero.
    for path in (Path(__file__).parents[2] / "hybriddist" / "shm").glob("*.py"):
        assert "pack_into(" not in path.read_text(), path


class TestFence:
    @pytest.mark.parametrize("twice", [False, True])
    def test_mends_itself_after_an_interrupt(self, twice):
        # A signal handler may raise between the two calls; the lock then stays taken.
        fence = Fence(twice=twice)
        fence._acquire(False)
        fence()
        assert fence._acquire(False)
        fence()

    def test_where_stores_are_ordered(self):
        assert stores_are_ordered("x86_64")
        assert stores_are_ordered("AMD64")
        assert not stores_are_ordered("aarch64")
        assert not stores_are_ordered("arm64")

    def test_ring_on_a_machine_that_does_not_order_stores(self, monkeypatch):
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        memory = ring()
        producer, consumer = Producer(memory), Consumer(memory)
        for number in range(200):
            data = bytes([number]) * 40
            assert producer.write(data) == 40
            assert not producer.consumer_waits()
            assert consumer.read() == data
        producer.close()
        assert consumer.closed()


# Both processes count: the k-th 8 bytes are the number k. A torn, transient or wrapped cursor shows as a wrong number.
HAMMER = """
import os, sys, time
from array import array
from hybriddist.shm.ring import Producer
from hybriddist.shm.segment import Segment
shared = Segment.attach(sys.argv[1])
producer = Producer(shared.memory)
next_number, size, end = 0, 1, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    data = memoryview(array("Q", range(next_number, next_number + size)).tobytes())
    while data:
        taken = producer.write(data)
        if not taken:
            os.sched_yield()
        data = data[taken:]
    next_number += size
    size = size % 400 + 1
producer.close()
print(next_number)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("start", [0, 2**32 - 4096, 2**64 - 4096])
def test_two_processes_hammer(python, start):
    from array import array

    shared = Segment.create(HEADER_BYTES + 2048)
    words = shared.memory[:HEADER_BYTES].cast("Q")
    words[WORDS["written"]] = words[WORDS["read"]] = start
    process = python.start(HAMMER, shared.name, 0.7)
    consumer = Consumer(shared.memory)
    next_number, rest = 0, b""
    while True:
        ended = consumer.closed() or process.poll() is not None
        data = rest + consumer.read()
        whole = len(data) // 8 * 8
        numbers = array("Q", data[:whole])
        assert numbers == array("Q", range(next_number, next_number + len(numbers)))
        next_number += len(numbers)
        rest = data[whole:]
        if ended and not consumer.available():
            break
    shared.unlink()
    assert next_number == int(process.stdout.readline())
    assert next_number > 1000


def test_many_wake_ups_between_threads():
    # Producer and consumer sleep whenever they may; a lost wake-up would be a wait that times out.
    memory = ring(8)
    room, bytes_here = threading.Event(), threading.Event()
    lost = []

    def produce():
        producer = Producer(memory)
        for number in range(3000):
            while not producer.write(bytes([number % 251])):
                if not producer.wait_for_room() and not room.wait(20):
                    lost.append("room")
                    return
                room.clear()
            if producer.consumer_waits():
                bytes_here.set()

    thread = threading.Thread(target=produce)
    thread.start()
    consumer, got = Consumer(memory), b""
    while len(got) < 3000 and not lost:
        data = consumer.read()
        if data:
            got += data
            if consumer.producer_waits():
                room.set()
        elif not consumer.wait_for_bytes():
            assert bytes_here.wait(20)
            bytes_here.clear()
    thread.join()
    assert lost == []
    assert got == bytes(number % 251 for number in range(3000))
