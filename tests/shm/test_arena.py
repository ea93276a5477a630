"""The arena: slots are lent, come back by themselves, stay within bounds, and no token reaches what it should not."""

from __future__ import annotations

import errno
import gc
import os

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hybriddist.errors import RemoteProtocolError, TransportBroken, TransportClosed
from hybriddist.shm import arena as arena_module
from hybriddist.shm import segment
from hybriddist.shm.arena import IDLE_SECONDS, LARGE_BYTES, TABLE_BYTES, Arena
from hybriddist.shm.arena_reader import ArenaReader
from hybriddist.shm.segment import Budget

SMALL = 20_000
LARGE = LARGE_BYTES + 5000


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(arena_module, "monotonic", clock)
    return clock


@pytest.fixture
def table() -> memoryview:
    return memoryview(bytearray(TABLE_BYTES))


@pytest.fixture
def arena(table):
    made = Arena(table, Budget(64 << 20))
    yield made
    made.end()


@pytest.fixture
def reader(table):
    made = ArenaReader(table)
    yield made
    made.end()


def names() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"hybriddist-{os.getpid()}-")]


def content(length: int, mark: int) -> bytes:
    return bytes([mark, mark ^ 255]) * (length // 2) + bytes([mark]) * (length % 2)


@pytest.mark.parametrize("length", [1, SMALL, 16384, 16385, LARGE_BYTES - 1, LARGE_BYTES, LARGE, 5_000_001])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_there_and_back(arena, reader, length, kind):
    token = arena.put(kind(content(length, 77)))
    view = reader.resolve(token, length)
    assert view == content(length, 77)
    assert (view.readonly, view.format) == (False, "B")
    assert np.frombuffer(view, np.uint8).ctypes.data % 64 == 0


@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_a_slot_is_used_again_when_the_last_view_dies(arena, reader, length):
    first = arena.put(content(length, 1))
    view = reader.resolve(first, length)
    array = np.frombuffer(view, np.uint8)[5:10]
    del view
    second = arena.put(content(length, 2))
    assert second != first
    assert array.tolist() == list(content(length, 1)[5:10])
    other = reader.resolve(second, length)
    del array
    for mark in range(200):
        reader.resolve(arena.put(content(length, mark)), length)
    assert len(arena._slabs) == (1 if length == SMALL else 2)
    assert other == content(length, 2)


def test_a_cancelled_slot_is_used_again(arena):
    token = arena.put(content(LARGE, 1))
    arena.cancel(token)
    assert arena.put(content(LARGE, 1)) == token


@pytest.mark.parametrize(("length", "again"), [(2 * LARGE, True), (2 * LARGE // 3, False), (3 * LARGE, False)])
def test_large_segments_serve_about_their_size(arena, length, again):
    token = arena.put(bytes(2 * LARGE))
    arena.cancel(token)
    assert (arena.put(bytes(length)) == token) is again


def test_receiver_writes_into_its_own(arena, reader):
    sent = bytearray(content(SMALL, 1))
    view = reader.resolve(arena.put(sent), SMALL)
    view[:] = bytes(SMALL)
    assert sent == content(SMALL, 1)


def test_nothing_for_an_empty_buffer(arena):
    assert arena.put(b"") is None


def test_more_than_4_gib(table, reader, monkeypatch):
    """In a segment without pages, of which only the ends are touched."""
    size = (4 << 30) + 12_345

    def copy_ends(memory, offset, buffer):
        memory[offset], memory[offset + len(buffer) - 1] = buffer[0], buffer[-1]

    monkeypatch.setattr(os, "posix_fallocate", lambda *args: None)
    monkeypatch.setattr(arena_module, "_copy_in_pieces", copy_ends)
    arena = Arena(table, Budget(8 << 30))
    huge = np.zeros(size, np.uint8)
    huge[0], huge[-1] = 5, 6
    view = reader.resolve(arena.put(memoryview(huge)), size)
    assert (len(view), view[0], view[-1], view[12_344]) == (size, 5, 6, 0)
    arena.end()


class TestBounds:
    def test_budget(self, table, reader):
        budget = Budget(3 << 20)
        arena = Arena(table, budget)
        views = []
        for mark in range(2000):
            token = arena.put(content(SMALL, mark % 251))
            if token is None:
                break
            views.append(reader.resolve(token, SMALL))
        assert 30 < len(views) < 200
        assert budget.taken_bytes <= 3 << 20
        assert all(view == content(SMALL, mark % 251) for mark, view in enumerate(views))
        views.pop()
        assert arena.put(content(SMALL, 1)) is not None
        assert arena.put(content(SMALL, 1)) is None
        arena.end()
        assert budget.taken_bytes == 0

    def test_segments(self, arena, reader):
        views = []
        while (token := arena.put(bytes(LARGE_BYTES))) is not None:
            views.append(reader.resolve(token, LARGE_BYTES))
        assert 50 < len(views) <= 64

    def test_full_file_system(self, arena, reader, clock, monkeypatch):
        def no_room(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        held = reader.resolve(arena.put(content(LARGE, 5)), LARGE)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", no_room)
            assert arena.put(bytes(LARGE)) is None
            assert arena.put(bytes(SMALL)) is None
        assert names() == []
        assert arena.put(bytes(LARGE)) is None  # Not asked again at once.
        clock.now += 1
        assert reader.resolve(arena.put(content(LARGE, 6)), LARGE) == content(LARGE, 6)
        assert held == content(LARGE, 5)

    def test_idle_segments_make_room_for_another_size(self, table, reader, clock):
        arena = Arena(table, Budget(8 << 20))
        view = reader.resolve(arena.put(bytes(5 << 20)), 5 << 20)
        assert arena.put(bytes(7 << 20)) is None
        del view
        clock.now += 1
        assert reader.resolve(arena.put(content(7 << 20, 3)), 7 << 20) == content(7 << 20, 3)
        arena.end()

    def test_interrupted_copy_frees_the_slot(self, arena, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        token = arena.put(bytes(2 << 20))
        arena.cancel(token)
        with monkeypatch.context() as patch:
            patch.setattr(arena_module, "_copy_in_pieces", interrupt)
            with pytest.raises(KeyboardInterrupt):
                arena.put(bytes(2 << 20))
        assert arena.put(bytes(2 << 20)) == token


class TestGivingBack:
    def test_idle_segments_are_given_back(self, table, reader, clock):
        budget = Budget(64 << 20)
        arena = Arena(table, budget)
        for length in (LARGE, 3 * LARGE, SMALL):
            reader.resolve(arena.put(bytes(length)), length)
        held = reader.resolve(arena.put(content(5 * LARGE, 9)), 5 * LARGE)
        assert len(reader._slabs) == 4
        clock.now += 2 * IDLE_SECONDS
        token = arena.put(bytes(SMALL))
        assert budget.taken_bytes < 7 * LARGE
        reader.resolve(token, SMALL)
        assert len(reader._slabs) == 2
        assert held == content(5 * LARGE, 9)
        arena.end()

    def test_what_is_used_stays(self, arena, reader, clock):
        tokens = set()
        for _ in range(10):
            token = arena.put(bytes(LARGE))
            tokens.add(token)
            reader.resolve(token, LARGE)
            clock.now += IDLE_SECONDS / 2
        assert len(tokens) == 1

    def test_an_index_used_again_has_another_generation(self, arena, reader, clock):
        old = arena.put(bytes(LARGE))
        reader.resolve(old, LARGE)
        clock.now += 2 * IDLE_SECONDS
        new = arena.put(content(3 * LARGE, 4))
        assert (old ^ new) >> 24 & 0xFF == 0
        with pytest.raises(RemoteProtocolError):
            reader.resolve(old, LARGE)
        assert reader.resolve(new, 3 * LARGE) == content(3 * LARGE, 4)


class TestNames:
    def test_unlinked_when_attached(self, arena, reader):
        token = arena.put(bytes(LARGE))
        assert len(names()) == 1
        assert arena.awaits_receiver()
        view = reader.resolve(token, LARGE)
        assert names() == []
        assert not arena.awaits_receiver()
        assert len(view) == LARGE

    def test_the_sender_removes_what_was_not_attached(self, arena):
        arena.put(bytes(LARGE))
        arena.put(bytes(SMALL))
        assert len(names()) == 2
        arena.end()
        assert names() == []

    def test_the_receiver_removes_what_it_did_not_attach(self, arena, reader):
        arena.put(bytes(LARGE))
        reader.end()
        assert names() == []

    def test_kept_for_a_receiver_that_lives(self, arena, reader):
        token = arena.put(content(LARGE, 8))
        seen = reader.resolve(arena.put(content(SMALL, 9)), SMALL)
        arena.put(bytes(300_000))
        arena.cancel(arena.put(bytes(600_000)))  # Nothing is under way in this one.
        arena.end(keep_names=True)
        assert len(names()) == 2
        assert reader.resolve(token, LARGE) == content(LARGE, 8)
        assert seen == content(SMALL, 9)
        reader.end()
        assert names() == []


class TestEnd:
    def test_views_live_on(self, arena, reader):
        views = [reader.resolve(arena.put(content(length, 3)), length) for length in (SMALL, LARGE)]
        arena.end()
        reader.end()
        arena.end()
        reader.end()
        gc.collect()
        assert [view == content(len(view), 3) for view in views] == [True, True]
        views[0][0] = 1

    def test_nothing_works_any_more(self, arena, reader):
        token = arena.put(bytes(SMALL))
        arena.end()
        assert arena.put(bytes(SMALL)) is None
        arena.cancel(token)
        reader.end()
        with pytest.raises(TransportClosed):
            reader.resolve(token, SMALL)


class TestHostile:
    @given(token=st.integers(1, 2**64 - 1), length=st.integers(0, 2**64 - 1))
    @settings(max_examples=200, deadline=None)
    def test_made_up(self, token, length):
        reader = ArenaReader(memoryview(bytearray(TABLE_BYTES)))
        with pytest.raises(RemoteProtocolError):
            reader.resolve(token, length)

    @pytest.mark.parametrize("bits", [1, 1 << 20, 1 << 24, 1 << 31, 1 << 32, 1 << 62, 1 << 63])
    def test_altered(self, arena, reader, bits):
        token = arena.put(bytes(SMALL))
        with pytest.raises(RemoteProtocolError):
            reader.resolve(token ^ bits, SMALL)
        reader.resolve(token, SMALL)

    @pytest.mark.parametrize("length", [0, 32_769, 2**40, -1])
    def test_wrong_length(self, arena, reader, length):
        token = arena.put(bytes(SMALL))
        with pytest.raises(RemoteProtocolError):
            reader.resolve(token, length)

    def test_replayed(self, arena, reader):
        token = arena.put(bytes(SMALL))
        view = reader.resolve(token, SMALL)
        with pytest.raises(RemoteProtocolError, match="holds no buffer"):
            reader.resolve(token, SMALL)
        del view
        with pytest.raises(RemoteProtocolError, match="holds no buffer"):
            reader.resolve(token, SMALL)

    @pytest.mark.parametrize(
        ("word", "value"),
        [
            *[(1, 0), (1, 2**63), (1, 100)],  # slot bytes
            *[(2, 0), (2, 2**24), (2, 2**63), (2, 10**5)],  # slots
            *[(3, 0), (3, 64), (3, 4100), (3, 2**62)],  # where they begin
        ],
    )
    def test_segment_that_is_laid_out_wrong(self, arena, reader, word, value):
        token = arena.put(bytes(SMALL))
        slab = arena._slabs[0]
        slab.words[word] = value
        with pytest.raises(RemoteProtocolError, match="laid out"):
            reader.resolve(token, SMALL)

    @pytest.mark.parametrize("name", [b"", b"/etc/passwd", b"\xff" * 96, b"hybriddist-1-1-1-00000000/../../x"])
    def test_name_of_something_else(self, arena, table, reader, name):
        token = arena.put(bytes(SMALL))
        own = bytes(table[136:232])
        table[136:232] = name.ljust(96, b"\0")
        with pytest.raises(RemoteProtocolError, match="not the name"):
            reader.resolve(token, SMALL)
        reader.end()
        table[136:232] = own

    def test_name_of_nothing(self, arena, table, reader):
        token = arena.put(bytes(SMALL))
        segment.unlink(bytes(table[136:232]).rstrip(b"\0").decode())
        with pytest.raises(TransportBroken):
            reader.resolve(token, SMALL)

    def test_segment_of_a_few_bytes(self, arena, table, reader):
        token = arena.put(bytes(SMALL))
        tiny = segment.Segment.create(16)
        own = bytes(table[136:232])
        table[136:232] = tiny.name.encode().ljust(96, b"\0")
        with pytest.raises(RemoteProtocolError, match="laid out"):
            reader.resolve(token, SMALL)
        segment.unlink(own.rstrip(b"\0").decode())
        tiny.unlink()


class ArenaModel(RuleBasedStateMachine):
    """Whatever is put, held and dropped in whatever order: what is held never changes, and the budget is kept."""

    def __init__(self):
        super().__init__()
        table = memoryview(bytearray(TABLE_BYTES))
        self.budget = Budget(12 << 20)
        self.arena = Arena(table, self.budget)
        self.reader = ArenaReader(table)
        self.under_way: list[tuple[int, bytes]] = []
        self.held: list[tuple[memoryview, bytes]] = []
        self.mark = 0

    @rule(length=st.sampled_from([1, 16_384, 16_385, 40_000, 200_000, 900_000, 1 << 20, 3 << 20, 5 << 20]))
    def put(self, length):
        self.mark += 1
        data = content(length, self.mark % 256)
        token = self.arena.put(data)
        if token is not None:
            self.under_way.append((token, data))

    @precondition(lambda self: self.under_way)
    @rule()
    def resolve(self):
        token, data = self.under_way.pop(0)
        self.held.append((self.reader.resolve(token, len(data)), data))

    @precondition(lambda self: self.under_way)
    @rule()
    def cancel(self):
        self.arena.cancel(self.under_way.pop()[0])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data):
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def slice_it(self, data):
        index = data.draw(st.integers(0, len(self.held) - 1))
        view, expected = self.held[index]
        self.held[index] = (view[1:] if len(view) > 1 else view, expected[1:] if len(view) > 1 else expected)

    @rule(seconds=st.sampled_from([0.1, 1, 30]))
    def time_passes(self, seconds):
        self.arena._next_look -= seconds
        self.arena._no_room_until -= seconds
        for slab in self.arena._slabs.values():
            slab.last_used -= seconds

    @invariant()
    def nothing_changes(self):
        assert all(view == expected for view, expected in self.held)
        assert self.budget.taken_bytes <= 12 << 20
        assert self.budget.taken_bytes == sum(len(slab.memory) for slab in self.arena._slabs.values())

    def teardown(self):
        self.arena.end()
        self.reader.end()
        self.nothing_changes()
        assert names() == []


TestArenaModel = ArenaModel.TestCase
TestArenaModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
