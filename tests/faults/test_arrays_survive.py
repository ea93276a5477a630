"""A received array belongs to its receiver: it outlives everybody, and nobody else sees what is written into it.

An array that lies in memory which is unmapped kills the process that touches it, so a failure here is a crash.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.mappings import mapped_sizes
from tests.helpers.patterns import pattern, seed_of
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

SIZES = [4 << 10, 100 << 10, 3 << 20]
"""In the message; in a slot of many; in a segment of its own."""


@pytest.fixture
def pair(transport: str) -> Iterator[list[int]]:
    """Two workers for one test."""
    pids = hd.addprocs(2, transport=transport)
    yield pids
    hd.rmprocs(pids)


kept: dict[Any, Any] = {}
"""On each worker: what tests left with it."""


def keep(name: Any, array: Any) -> None:
    kept[name] = array


def kept_seed(name: Any, size: int) -> int:
    return seed_of(kept[name], size)


def give(name: Any) -> Any:
    return kept[name]


def keep_from(pid: int, name: Any, seed: int, size: int) -> None:
    kept[name] = hd.remotecall_fetch(pattern, pid, seed, size)


def overwrite_kept(name: Any, seed: int) -> None:
    array = kept[name]
    array[:] = pattern(seed, array.nbytes)


def forget() -> None:
    kept.clear()
    gc.collect()


def mapped_bytes() -> int:
    """Shared memory that this process has mapped for its connections and arrays."""
    return sum(mapped_sizes())


def segments() -> dict[str, int]:
    """The shared memory that this process has mapped: names and descriptors."""
    found = {}
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one by which the folder is read
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            if "/dev/shm/hybriddist-" in target:
                found[target] = int(descriptor)
    return found


def check_and_overwrite(array: Any, seed: int) -> None:
    """Read every byte, and write every byte."""
    assert seed_of(array, array.nbytes) == seed
    array[:] = pattern(seed + 1, array.nbytes)
    assert seed_of(array, array.nbytes) == seed + 1


# ---- outliving ----------------------------------------------------------------------------------------------------


def test_sender_removed(pair: list[int]) -> None:
    arrays = [hd.remotecall_fetch(pattern, pair[0], 7, size) for size in SIZES]
    views = [array[1:-1] for array in arrays]
    hd.rmprocs(pair[0])
    gc.collect()
    for array, view in zip(arrays, views, strict=True):
        check_and_overwrite(array, 7)
        assert (view == array[1:-1]).all()


def test_sender_killed(pair: list[int]) -> None:
    arrays = [hd.remotecall_fetch(pattern, pair[0], 7, size) for size in SIZES]
    os.kill(hd.remotecall_fetch(os.getpid, pair[0]), signal.SIGKILL)
    poll_for(lambda: pair[0] not in hd.workers())
    gc.collect()
    for array in arrays:
        check_and_overwrite(array, 7)


def test_everything_shut_down(transport: str) -> None:
    (pid,) = hd.addprocs(1, transport=transport)
    arrays = [hd.remotecall_fetch(pattern, pid, 7, size) for size in SIZES]
    hd.shutdown()
    gc.collect()
    for array in arrays:
        check_and_overwrite(array, 7)
    (pid,) = hd.addprocs(1, transport=transport)
    for array in arrays:
        assert hd.remotecall_fetch(seed_of, pid, array, array.nbytes) == 8
    hd.shutdown()


def test_sending_worker_removed(pair: list[int]) -> None:
    """The same between two workers, and for what the driver sent."""
    sender, receiver = pair
    for size in SIZES:
        hd.remotecall_fetch(keep_from, receiver, sender, size, 7, size)
        hd.remotecall_fetch(keep, receiver, -size, pattern(3, size))
    hd.rmprocs(sender)
    for size in SIZES:
        assert hd.remotecall_fetch(kept_seed, receiver, size, size) == 7
        hd.remotecall_fetch(overwrite_kept, receiver, size, 9)
        assert hd.remotecall_fetch(kept_seed, receiver, size, size) == 9
        assert hd.remotecall_fetch(kept_seed, receiver, -size, size) == 3


# ---- cutting short -----------------------------------------------------------------------------------------------


def test_a_segment_cut_short_by_somebody_costs_its_two_processes_only(transport: str) -> None:
    """Its name is gone, so this takes a process of the same user that looks into another one's descriptors."""
    if transport != "shm":
        pytest.skip("there is none")
    one, two, other = pids = hd.addprocs(3, transport=transport)
    try:
        hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, one)
        theirs = [hd.remotecall_fetch(segments, pid) for pid in (one, two)]
        (shared,) = theirs[0].keys() & theirs[1].keys()
        assert shared.endswith(" (deleted)")
        ospid = hd.remotecall_fetch(os.getpid, one)
        os.truncate(f"/proc/{ospid}/fd/{theirs[0][shared]}", 0)
        with pytest.raises((hd.ProcessExitedException, hd.RemoteException)) as caught:
            hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, one)
        # The one that asks, or the other one, if it looked first.
        gone = caught.value.__cause__ if isinstance(caught.value, hd.RemoteException) else caught.value
        assert isinstance(gone, hd.ProcessExitedException)
        assert gone.signal == signal.SIGBUS
        poll_for(lambda: hd.workers() == [other])
        assert hd.remotecall_fetch(abs, other, -3) == 3
    finally:
        hd.rmprocs(pids)


# ---- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_writing_alters_nobody_elses(pair: list[int], size: int) -> None:
    mine = pattern(1, size)
    for pid in pair:
        hd.remotecall_fetch(keep, pid, "a", mine)
    hd.remotecall_fetch(overwrite_kept, pair[0], "a", 2)
    assert seed_of(mine, size) == 1
    assert hd.remotecall_fetch(kept_seed, pair[1], "a", size) == 1
    # And a result: the worker has it still, and gives it once more.
    first, second = (hd.remotecall_fetch(give, pair[0], "a") for _ in range(2))
    check_and_overwrite(first, 2)
    assert seed_of(second, size) == 2
    assert hd.remotecall_fetch(kept_seed, pair[0], "a", size) == 2


@pytest.mark.parametrize("size", SIZES)
def test_read_only_arrays_arrive_writable(pair: list[int], size: int) -> None:
    mine = pattern(1, size)
    mine.flags.writeable = False
    hd.remotecall_fetch(keep, pair[0], "a", mine)
    hd.remotecall_fetch(overwrite_kept, pair[0], "a", 2)
    assert seed_of(mine, size) == 1


@pytest.mark.parametrize("size", SIZES)
def test_changed_after_the_call_was_sent(pair: list[int], size: int) -> None:
    """What counts is the array at the time of the call, also while it waits behind others."""
    array = pattern(0, size)
    futures = []
    for seed in range(20):
        array[:] = pattern(seed, size)
        futures.append(hd.remotecall(seed_of, pair[0], array, size))
    array[:] = 0
    assert [future.fetch() for future in futures] == list(range(20))


# ---- holding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64 << 10, 1 << 20])
def test_holding_many_does_not_stop_the_next(pair: list[int], size: int) -> None:
    """The slots in use are not had again; when they are all taken, the next arrays come another way."""
    pid = pair[0]
    before = mapped_bytes()
    held = [hd.remotecall_fetch(pattern, pid, seed, size) for seed in range(300)]
    most = mapped_bytes()
    assert most - before <= 2 * 300 * size
    assert [seed_of(array, size) for array in held] == list(range(300))
    held.clear()
    for turn in range(2):  # the slots have come back: no more memory is taken
        held = [hd.remotecall_fetch(pattern, pid, seed + turn, size) for seed in range(300)]
        assert mapped_bytes() <= most
        assert [seed_of(array, size) for array in held] == [seed + turn for seed in range(300)]
        held.clear()


def test_steady_stream_takes_no_more_memory(pair: list[int]) -> None:
    pid, size = pair[0], 1 << 20
    for _ in range(3):
        assert seed_of(hd.remotecall_fetch(pattern, pid, 5, size), size) == 5
        assert hd.remotecall_fetch(seed_of, pid, pattern(5, size), size) == 5
    before = mapped_bytes(), hd.remotecall_fetch(mapped_bytes, pid)
    for _ in range(300):
        hd.remotecall_fetch(pattern, pid, 5, size)
        hd.remotecall_fetch(seed_of, pid, pattern(5, size), size)
    assert (mapped_bytes(), hd.remotecall_fetch(mapped_bytes, pid)) == before


def test_holder_killed(transport: str, pair: list[int]) -> None:
    """What it held is given back, and its sender goes on with the others."""
    holder, other = pair
    before = mapped_bytes()
    for name in range(100):
        hd.remotecall_fetch(keep, holder, name, pattern(name, 256 << 10))
    assert mapped_bytes() > before or transport == "tcp"
    os.kill(hd.remotecall_fetch(os.getpid, holder), signal.SIGKILL)
    poll_for(lambda: holder not in hd.workers())
    poll_for(lambda: mapped_bytes() <= before, what="the memory is given back")
    assert hd.remotecall_fetch(seed_of, other, pattern(5, 1 << 20), 1 << 20) == 5


def test_holder_forgets(pair: list[int]) -> None:
    pid, size = pair[0], 256 << 10
    most = []
    for _ in range(3):
        for name in range(50):
            hd.remotecall_fetch(keep, pid, name, pattern(name, size))
        most.append(mapped_bytes())
        assert most[-1] <= most[0]
        assert hd.remotecall_fetch(kept_seed, pid, 49, size) == 49
        hd.remotecall_fetch(forget, pid)


def test_arrays_made_of_a_received_one_keep_it(pair: list[int]) -> None:
    """Views, views of views, other dtypes, an iterator: whichever is left last keeps the memory."""
    array = hd.remotecall_fetch(pattern, pair[0], 7, 1 << 20)
    expected = array.copy()
    row = array.reshape(-1, 8)[5]
    rest = iter(array[-3:])
    data = memoryview(array)
    as_bytes = array.view(np.uint8)[80:88]
    del array
    for seed in range(100, 110):  # would use the memory again if it could
        hd.remotecall_fetch(pattern, pair[0], seed, 1 << 20)
    assert (row == expected[40:48]).all()
    assert list(rest) == list(expected[-3:])
    assert data[1000] == expected[1000]
    assert as_bytes.tobytes() == expected[10].tobytes()
