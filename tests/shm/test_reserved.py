"""Slots in which user code computes: given away only when nobody sees them any more, and free again in any case."""

from __future__ import annotations

import pickle
import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hybriddist.shm.arena import LARGE_BYTES, TABLE_BYTES, Arena
from hybriddist.shm.arena_reader import ArenaReader
from hybriddist.shm.segment import Budget
from hybriddist.shm.slots import FREE, RESERVED, SENT

SMALL = 20_000
LARGE = LARGE_BYTES + 5000


class Ends:
    """Both sides of an arena."""

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        table = memoryview(bytearray(TABLE_BYTES))
        self.arena = Arena(table, Budget(limit_bytes))
        self.reader = ArenaReader(table)

    def computed(self, length: int, mark: int):
        """An array in a reserved slot."""
        array = np.frombuffer(self.arena.reserve(length), np.uint8)
        array[:] = mark
        return array

    def sent(self, buffers: list) -> list:
        """What the receiver has of the buffers of a frame."""
        lengths = [len(buffer) for buffer in buffers]
        self.arena.reserved.settle(buffers)
        tokens = [self.arena.put(buffer) for buffer in buffers]
        buffers.clear()
        return [np.frombuffer(self.reader.resolve(*pair), np.uint8) for pair in zip(tokens, lengths, strict=True)]

    def states(self) -> list[int]:
        """Of all slots that are not free."""
        return sorted(state for slab in self.arena._slabs.values() for state in slab.states if state != FREE)

    def end(self) -> None:
        self.arena.end()
        self.reader.end()


@pytest.fixture
def ends():
    made = Ends()
    yield made
    made.end()


def buffers_of(*values) -> list:
    """What a pickler hands over."""
    found = []
    pickle.dumps(values, 5, buffer_callback=lambda buffer: found.append(buffer.raw()))
    return found


@pytest.mark.parametrize("length", [SMALL, LARGE])
class TestGiven:
    def test_the_slot_itself(self, ends, length):
        array = ends.computed(length, 5)
        assert ends.states() == [RESERVED]
        buffers = buffers_of(array)
        del array
        (received,) = ends.sent(buffers)
        assert len(ends.states()) == 1
        assert received.tobytes() == b"\x05" * length
        received[:] = 6
        del received
        assert ends.states() == []

    def test_its_beginning(self, ends, length):
        array = ends.computed(length, 5)[:17_000]
        buffers = buffers_of(array)
        del array
        (received,) = ends.sent(buffers)
        assert (len(ends.states()), received.tobytes()) == (1, b"\x05" * 17_000)

    def test_a_shape_of_it(self, ends, length):
        array = ends.computed(length, 5).reshape(-1, 2).T
        buffers = buffers_of(array)
        del array
        (received,) = ends.sent(buffers)
        assert (len(ends.states()), received.tobytes()) == (1, b"\x05" * length)

    def test_taken_back(self, ends, length):
        buffers = buffers_of(ends.computed(length, 5))
        ends.arena.reserved.settle(buffers)
        token = ends.arena.put(buffers[0])
        assert ends.states() == [SENT]
        ends.arena.cancel(token)
        again = ends.computed(length, 6)
        buffers.clear()  # it is somebody else's slot by now
        assert ends.states() == [RESERVED]
        assert again.tobytes() == b"\x06" * length


@pytest.mark.parametrize("length", [SMALL, LARGE])
class TestCopied:
    @pytest.mark.parametrize(
        "keep",
        [
            lambda array: array,
            lambda array: array[7:9],
            lambda array: array.view(np.int8)[::2],
            memoryview,
            lambda array: memoryview(array.base),
            pickle.PickleBuffer,
            lambda array: iter(array),
            lambda array: lambda: array,
        ],
    )
    def test_somebody_has_kept_some_of_it(self, ends, length, keep):
        array = ends.computed(length, 5)
        expected = array.tobytes()
        kept = keep(array)
        buffers = buffers_of(array)
        del array
        (received,) = ends.sent(buffers)
        assert len(ends.states()) == 2
        received[:] = 9
        del kept
        assert len(ends.states()) == 1
        received[:] = 5
        assert received.tobytes() == expected
        del received
        assert ends.states() == []

    def test_not_let_go_of(self, ends, length):
        """A frame of somebody who still has the value: put without settling."""
        array = ends.computed(length, 5)
        token = ends.arena.put(buffers_of(array)[0])
        array[:] = 6
        assert bytes(ends.reader.resolve(token, length)) == b"\x05" * length

    def test_not_let_go_of_after_a_frame_that_was_not_sent(self, ends, length):
        """That frame's view does not count for the next one's."""
        array = ends.computed(length, 5)
        buffers = buffers_of(array)
        ends.arena.reserved.settle(buffers)
        buffers.clear()
        token = ends.arena.put(buffers_of(array)[0])
        array[:] = 6
        assert bytes(ends.reader.resolve(token, length)) == b"\x05" * length

    def test_twice_in_one_frame(self, ends, length):
        array = ends.computed(length, 5)
        buffers = buffers_of(array, array[:], array[1000:])
        del array
        first, second, third = ends.sent(buffers)
        first[:] = 1
        second[:] = 2
        third[:] = 3
        assert [set(each.tolist()) for each in (first, second, third)] == [{1}, {2}, {3}]

    def test_two_frames_at_a_time(self, ends, length):
        array = ends.computed(length, 5)
        one, two = buffers_of(array), buffers_of(array)
        del array
        ends.arena.reserved.settle(one)
        ends.arena.reserved.settle(two)
        tokens = [ends.arena.put(buffers[0]) for buffers in (one, two)]
        first, second = (np.frombuffer(ends.reader.resolve(token, length), np.uint8) for token in tokens)
        first[:] = 1
        assert set(second.tolist()) == {5}

    def test_a_copy_of_the_process_may_see_it(self, ends, length):
        array = ends.computed(length, 5)
        ends.arena.reserved.distrust()
        buffers = buffers_of(array)
        del array
        ends.arena.reserved.settle(buffers)
        ends.arena.put(buffers[0])
        assert ends.states() == [SENT, RESERVED]
        buffers.clear()
        assert ends.states() == [SENT]

    def test_read_only(self, ends, length):
        array = ends.computed(length, 5)
        array.flags.writeable = False
        buffers = buffers_of(array)
        del array
        (received,) = ends.sent(buffers)
        assert received.tobytes() == b"\x05" * length
        del buffers
        assert len(ends.states()) == 1


class TestFree:
    @pytest.mark.parametrize("length", [SMALL, LARGE])
    def test_never_sent(self, ends, length):
        array = ends.computed(length, 5)
        part = array[3:]
        del array
        assert ends.states() == [RESERVED]
        del part
        assert ends.states() == []

    def test_a_frame_that_is_not_sent(self, ends):
        buffers = buffers_of(ends.computed(SMALL, 5))
        ends.arena.reserved.settle(buffers)
        assert ends.states() == [RESERVED]
        del buffers
        assert ends.states() == []
        assert not ends.arena.reserved.by_address

    def test_after_the_end_of_the_connection(self, ends):
        array = ends.computed(LARGE, 5)
        buffers = buffers_of(array)
        ends.arena.end()
        assert ends.arena.reserve(LARGE) is None
        array[:] = 6
        del array
        ends.arena.reserved.settle(buffers)
        assert ends.arena.put(buffers[0]) is None
        assert bytes(buffers[0]) == b"\x06" * LARGE

    def test_no_room(self):
        ends = Ends(limit_bytes=1 << 20)
        assert ends.arena.reserve(2 << 20) is None
        assert ends.arena.reserve(0) is None
        ends.end()

    def test_one_array_by_many_threads(self, ends):
        """They all send the same array; no two of them may get the same memory, and none may get that of the array."""
        array = ends.computed(SMALL, 5)
        received = []
        start = threading.Barrier(4)

        def send(array) -> None:
            start.wait(10)
            for _ in range(50):
                buffers = buffers_of(array)
                ends.arena.reserved.settle(buffers)
                received.append(ends.arena.put(buffers[0]))

        threads = [threading.Thread(target=send, args=(array,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        del threads, thread
        assert len(set(received)) == 200
        assert ends.states() == [SENT] * 200 + [RESERVED]
        del array
        assert ends.states() == [SENT] * 200


class Model(RuleBasedStateMachine):
    """Whatever is computed, kept, sent, written to and dropped in whatever order: everybody sees his own."""

    def __init__(self):
        super().__init__()
        self.ends = Ends(12 << 20)
        self.arrays = []
        """The user's, with what each holds."""
        self.received = []
        self.mark = 0

    def next_mark(self) -> int:
        self.mark = self.mark % 255 + 1
        return self.mark

    @rule(length=st.sampled_from([16_384, 20_000, 200_000, 1 << 20, 3 << 20]))
    def compute(self, length):
        mark = self.next_mark()
        if self.ends.arena.reserve(length) is not None:  # dropped, and so free for the next
            self.arrays.append([self.ends.computed(length, mark)])

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), begin=st.integers(0, 100))
    def keep_a_part(self, data, begin):
        group = self.arrays[data.draw(st.integers(0, len(self.arrays) - 1))]
        group.append(group[0][begin:])

    @precondition(lambda self: self.arrays)
    @rule(data=st.data(), let_go=st.booleans())
    def send(self, data, let_go):
        index = data.draw(st.integers(0, len(self.arrays) - 1))
        group = self.arrays[index]
        expected = group[0].tobytes()
        buffers = buffers_of(group[0])
        if let_go:
            del group[0]
            if not group:
                del self.arrays[index]
        del group
        if len(buffers[0]) >= 16_384:
            lengths = [len(buffers[0])]
            self.ends.arena.reserved.settle(buffers)
            token = self.ends.arena.put(buffers[0])
            buffers.clear()
            if token is not None:
                view = self.ends.reader.resolve(token, lengths[0])
                self.received.append([np.frombuffer(view, np.uint8), expected])

    @precondition(lambda self: self.arrays)
    @rule(data=st.data())
    def write(self, data):
        self.arrays[data.draw(st.integers(0, len(self.arrays) - 1))][0][:] = self.next_mark()

    @precondition(lambda self: self.received)
    @rule(data=st.data())
    def write_received(self, data):
        pair = self.received[data.draw(st.integers(0, len(self.received) - 1))]
        pair[0][:] = self.next_mark()
        pair[1] = pair[0].tobytes()

    @precondition(lambda self: self.received)
    @rule(data=st.data())
    def drop_received(self, data):
        self.received.pop(data.draw(st.integers(0, len(self.received) - 1)))

    @precondition(lambda self: self.arrays)
    @rule(data=st.data())
    def drop(self, data):
        self.arrays.pop(data.draw(st.integers(0, len(self.arrays) - 1)))

    @invariant()
    def everybody_has_his_own(self):
        assert all(array.tobytes() == expected for array, expected in self.received)
        assert len(self.ends.states()) == len(self.arrays) + len(self.received)

    def teardown(self):
        self.arrays.clear()
        self.received.clear()
        assert self.ends.states() == []
        self.ends.end()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
