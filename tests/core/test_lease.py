"""Leases: memory that comes back when its last view dies."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybriddist import limits
from hybriddist.core.lease import POOLED_BYTES, Lessor, RecycledMemory, block_bytes

ROOT = str(Path(__file__).parents[2])


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": ROOT},
        check=False,
    )


def in_forked_child(action) -> int:
    """The exit code of a child that runs ``action``."""
    ospid = os.fork()
    if not ospid:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(ospid, 0)[1])


@pytest.fixture
def released() -> list[str]:
    return []


class TestLessor:
    def test_view_shows_the_part_and_is_writable(self, released):
        memory = bytearray(range(100))
        view = Lessor().lease(memory, 10, 5, lambda: released.append("x"))
        assert (bytes(view), view.format, view.readonly, view.ndim) == (b"\n\x0b\x0c\r\x0e", "B", False, 1)
        view[0] = 255
        assert memory[10] == 255

    @pytest.mark.parametrize(
        "derive",
        [
            lambda view: view[3:],
            lambda view: view.cast("Q"),
            lambda view: memoryview(view),
            lambda view: np.frombuffer(view, np.float64),
            lambda view: np.frombuffer(view, np.float64).reshape(2, 4)[:, 1::2].T,
            lambda view: iter([view]),
        ],
    )
    def test_released_once_when_the_last_view_dies(self, released, derive):
        view = Lessor().lease(bytearray(64), 0, 64, lambda: released.append("x"))
        derived = derive(view)
        del view
        gc.collect()
        assert released == []
        del derived
        assert released == ["x"]
        gc.collect()
        assert released == ["x"]

    def test_released_once_out_of_a_cycle(self, released):
        cycle = [Lessor().lease(bytearray(64), 0, 64, lambda: released.append("x"))]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert released == ["x"]

    def test_keeps_the_memory(self, released):
        memory = mmap(-1, 4096)
        view = Lessor().lease(memory, 0, 4096, lambda: released.append("x"))
        with pytest.raises(BufferError):
            memory.close()
        del memory
        gc.collect()
        view[:4] = b"here"
        assert bytes(view[:4]) == b"here"

    @pytest.mark.parametrize(("offset", "length"), [(0, 101), (100, 1), (-1, 5), (5, -1), (101, 0), (2**62, 2**62)])
    def test_part_outside_the_memory(self, released, offset, length):
        with pytest.raises(ValueError, match="do not lie in a memory of 100"):
            Lessor().lease(bytearray(100), offset, length, lambda: released.append("x"))
        assert released == []

    def test_read_only_memory(self, released):
        with pytest.raises(TypeError):
            Lessor().lease(memoryview(bytes(100)), 0, 10, lambda: released.append("x"))
        assert released == []

    def test_nothing_is_released_at_once(self, released):
        assert len(Lessor().lease(bytearray(10), 10, 0, lambda: released.append("x"))) == 0
        assert released == ["x"]

    def test_one_type_for_all_lengths(self):
        lessor, memory = Lessor(), bytearray(5000)
        views = [lessor.lease(memory, 0, length, bool) for length in range(1, 5000, 7)]
        assert len({type(view.obj) for view in views}) == 1

    def test_not_released_in_a_forked_child(self, released):
        view = Lessor().lease(bytearray(10), 0, 10, lambda: released.append("x"))
        held = [view]
        del view

        def drop():
            held.clear()
            gc.collect()
            assert released == []

        assert in_forked_child(drop) == 0
        held.clear()
        assert released == ["x"]

    def test_many_threads(self):
        lessor, count = Lessor(), []

        def work():
            for _ in range(500):
                lessor.lease(bytearray(10), 0, 10, lambda: count.append(1))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(count) == 2000

    def test_silent_at_interpreter_exit(self):
        result = run_python(
            "import gc, mmap, sys\n"
            "from functools import partial\n"
            "from hybriddist.core.lease import Lessor, RecycledMemory\n"
            "states = memoryview(mmap.mmap(-1, 4096)).cast('Q')\n"
            "view = Lessor().lease(mmap.mmap(-1, 4096), 0, 100, partial(states.__setitem__, 1, 0))\n"
            "block = RecycledMemory().allocate(1 << 20)\n"
            "class Keeper: pass\n"
            "keeper = Keeper(); keeper.me = keeper; keeper.view = view[2:]; keeper.block = block[5:]\n"
            "sys.keeper = keeper\n"
            "print('done')\n"
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")

    def test_ctypes_comes_with_the_first_lease(self):
        result = run_python(
            "import sys\n"
            "from hybriddist.core.lease import Lessor\n"
            "lessor = Lessor()\n"
            "assert 'ctypes' not in sys.modules\n"
            "lessor.lease(bytearray(8), 0, 8, bool)\n"
            "assert 'ctypes' in sys.modules\n"
        )
        assert (result.returncode, result.stderr) == (0, "")


def address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


class TestRecycledMemory:
    def test_block_is_handed_out_again(self):
        memory = RecycledMemory()
        view = memory.allocate(1_000_000)
        where = address(view)
        other = memory.allocate(1_000_000)
        assert address(other) != where
        del view
        again = memory.allocate(999_999)
        assert (address(again), len(again)) == (where, 999_999)

    @pytest.mark.parametrize("length", [0, 1, POOLED_BYTES - 1, POOLED_BYTES, POOLED_BYTES + 1, 5_000_000])
    def test_length_and_kind(self, length):
        view = RecycledMemory().allocate(length)
        assert (len(view), view.readonly, view.format) == (length, False, "B")
        if length:
            view[length - 1] = 7
            assert view[-1] == 7

    @pytest.mark.parametrize("length", [limits.OUT_OF_BAND_BYTES, 20_001, POOLED_BYTES - 1, POOLED_BYTES, 5_000_001])
    def test_begins_on_a_cache_line(self, length):
        memory = RecycledMemory()
        views = [memory.allocate(length) for _ in range(10)]
        assert [ctypes.addressof(ctypes.c_char.from_buffer(view)) % 64 for view in views] == [0] * 10

    def test_keeps_no_more_than_it_may(self):
        memory = RecycledMemory(kept_bytes=1_000_000)
        views = [memory.allocate(length) for length in (300_000, 300_000, 400_000, 500_000)]
        assert memory.idle_bytes() == 0
        while views:
            views.pop()
            assert memory.idle_bytes() <= 1_000_000
        assert memory.idle_bytes() >= 500_000

    def test_block_larger_than_all_that_is_kept(self):
        memory = RecycledMemory(kept_bytes=1000)
        memory.allocate(1_000_000)
        assert memory.idle_bytes() == 0

    def test_block_that_comes_back_while_the_lock_is_held(self):
        # A finaliser can run in the middle of `allocate`, in the same thread.
        memory = RecycledMemory()
        view = memory.allocate(1_000_000)
        size = block_bytes(1_000_000)
        with memory._lock:
            del view
        assert memory.idle_bytes() == size

    def test_contents_stay_with_their_holder(self):
        memory = RecycledMemory()
        views = []
        for number in range(50):
            view = memory.allocate(100_000)
            view[:] = bytes([number]) * 100_000
            views.append(view)
            if number % 3 == 0:
                views.pop(0)
        assert len({view[0] for view in views}) == len(views)
        assert all(view.tobytes() == bytes([view[0]]) * 100_000 for view in views)

    def test_forked_child_has_a_copy(self):
        view = RecycledMemory().allocate(1_000_000)
        view[0] = 1

        def write():
            view[0] = 2

        assert in_forked_child(write) == 0
        assert view[0] == 1

    def test_no_memory(self):
        with pytest.raises(MemoryError):
            RecycledMemory().allocate(1 << 60)

    def test_many_threads(self):
        memory = RecycledMemory(kept_bytes=2_000_000)
        wrong = []

        def work(mark):
            for turn in range(200):
                view = memory.allocate(100_000 + 50_000 * (turn % 3))
                view[:8] = bytes([mark]) * 8
                view[-8:] = bytes([mark]) * 8
                if bytes(view[:8]) + bytes(view[-8:]) != bytes([mark]) * 16:
                    wrong.append(mark)

        threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert 0 < memory.idle_bytes() <= 2_000_000


@given(st.integers(1, 1 << 40))
@settings(max_examples=200, deadline=None)
def test_block_bytes(length):
    size = block_bytes(length)
    assert size >= length
    assert size % 4096 == 0
    assert size - length <= max(4096, length // 8)
