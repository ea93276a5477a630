"""Memory of arrays comes back: from those that are killed, over many clusters, and with copies of a process about."""

from __future__ import annotations

import gc
import operator
import os
import pickle
import signal
import time
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.mappings import mapped_sizes
from tests.helpers.patterns import pattern, seed_of
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module

SIZES = [100 << 10, 3 << 20]
"""In a slot of many; in a segment of its own."""


@pytest.fixture(scope="module", autouse=True)
def _shut_down() -> Any:
    yield
    hd.shutdown()


@pytest.fixture
def pair() -> Any:
    pids = hd.addprocs(2, transport="shm")
    yield pids
    hd.rmprocs([pid for pid in pids if pid in hd.workers()])


ROUNDS = 30
"""Clusters, one after the other."""

kept: list[Any] = []


def keep(array: Any) -> None:
    kept.append(array)


def fetch_and_keep(pid: int, size: int) -> None:
    kept.append(hd.remotecall_fetch(in_place, pid, size))


def in_place(size: int, seed: int = 5) -> Any:
    """A pattern, computed in the memory from which it is sent."""
    array = hd.empty(size // 8, "u8")
    array[:] = pattern(seed, size)
    return array


def keep_in_place(size: int) -> int:
    kept.append(in_place(size))
    return os.getpid()


def maps() -> int:
    return len(mapped_sizes())


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def names() -> list[str]:
    """Of the shared memory that any process could still find by its name."""
    return [name for name in os.listdir("/dev/shm") if name.startswith("hybriddist-")]


def kill(ospid: int, pid: int) -> float:
    """Kill a worker; when that was noticed."""
    os.kill(ospid, signal.SIGKILL)
    poll_for(lambda: pid not in hd.workers())
    return time.monotonic()


# ---- killed -----------------------------------------------------------------------------------------------------


def test_receiver_killed(pair: list[int]) -> None:
    """A worker holds arrays of the driver's and of another worker's: both have their memory back within a second."""
    holder, giver = pair
    before = maps(), hd.remotecall_fetch(maps, giver)
    ospid = hd.remotecall_fetch(os.getpid, holder)
    for size in SIZES:
        hd.remotecall_fetch(keep, holder, pattern(1, size))
        hd.remotecall_fetch(fetch_and_keep, holder, giver, size)
    assert maps() > before[0]
    assert hd.remotecall_fetch(maps, giver) > before[1]
    noticed = kill(ospid, holder)
    poll_for(lambda: maps() < before[0], what="the driver's arena is gone, and its ring")
    poll_for(lambda: hd.remotecall_fetch(maps, giver) <= before[1], what="the giver's is gone")
    assert time.monotonic() - noticed < 1
    for size in SIZES:
        assert seed_of(hd.remotecall_fetch(in_place, giver, size), size) == 5


def test_sender_killed(pair: list[int]) -> None:
    """What it has given is whole, and what it was computing in is nobody's any more, with no name left."""
    sender = pair[0]
    known_names = set(names())
    before = maps()
    arrays = [hd.remotecall_fetch(in_place, sender, size) for size in SIZES]
    ospid, _ = [hd.remotecall_fetch(keep_in_place, sender, size) for size in SIZES]
    noticed = kill(ospid, sender)
    for array, size in zip(arrays, SIZES, strict=True):
        assert seed_of(array, size) == 5
        array[:] = pattern(6, size)
        assert seed_of(array, size) == 6
    del array, arrays
    poll_for(lambda: maps() < before and set(names()) <= known_names)
    assert time.monotonic() - noticed < 1


def test_killed_while_it_computes_in_place(pair: list[int]) -> None:
    """A segment that the driver has never attached has its name yet."""
    known_names = set(names())
    gate = hd.RemoteChannel(lambda: hd.Channel(1))

    def compute() -> None:
        array = in_place(3 << 20)
        gate.put(os.getpid())
        time.sleep(60)
        raise AssertionError(array)

    future = hd.remotecall(compute, pair[0])
    ospid = gate.take()
    assert set(names()) - known_names
    kill(ospid, pair[0])
    with pytest.raises(hd.ProcessExitedException):
        future.fetch()
    poll_for(lambda: set(names()) <= known_names)


# ---- over and over ------------------------------------------------------------------------------------------------


def test_many_clusters_take_no_more() -> None:
    def round_trip() -> None:
        (pid,) = hd.addprocs(1, transport="shm")
        for size in SIZES:
            # A function that imports neither this module nor numpy, which would take ten times as long as all else.
            back = hd.remotecall_fetch(pickle.PickleBuffer, pid, pickle.PickleBuffer(pattern(3, size)))
            assert seed_of(np.frombuffer(back, "u8"), size) == 3
        hd.rmprocs(pid)

    def settled() -> tuple[int, int]:
        gc.collect()  # the last connection may lie in a cycle
        return descriptors(), maps()

    for _ in range(3):
        round_trip()
    before, resident = settled(), resident_bytes()
    for _ in range(ROUNDS):
        round_trip()
    poll_for(lambda: all(map(operator.le, settled(), before)), what=f"no more than {before}")
    # A tenth of what they have moved.
    assert resident_bytes() - resident < ROUNDS * sum(SIZES) * 2 / 10


# ---- copies of a process ------------------------------------------------------------------------------------------


def test_a_copy_of_a_worker_ends_and_arrays_stay(pair: list[int]) -> None:
    """User code forks; the copy has all arrays, and drops them, and ends."""

    def fork(received: Any) -> Any:
        own = in_place(3 << 20, 9)
        ospid = os.fork()
        if not ospid:
            assert seed_of(received, received.nbytes) == 4
            assert seed_of(own, own.nbytes) == 9
            del received, own
            kept.clear()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(ospid, 0)[1]) == 7
        assert seed_of(received, received.nbytes) == 4
        return own, received

    for size in SIZES:
        mine = hd.remotecall_fetch(in_place, pair[0], size)
        own, back = hd.remotecall_fetch(fork, pair[0], pattern(4, size))
        assert (seed_of(mine, size), seed_of(own, 3 << 20), seed_of(back, size)) == (5, 9, 4)
        assert np.array_equal(hd.remotecall_fetch(in_place, pair[0], size), mine)
