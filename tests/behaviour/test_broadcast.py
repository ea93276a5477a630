"""`broadcast`: one copy per node, read-only, fetched when it is used or pushed, and freed with its last user."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers import leaks, mappings
from tests.helpers.mappings import has_mapped
from tests.helpers.names import name_of
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

N = 200_000


@pytest.fixture
def table() -> Any:
    return np.arange(N, dtype=np.float64)


def is_separate(cluster: list[int]) -> bool:
    """Whether the workers are processes of their own."""
    return hd.remotecall_fetch(os.getpid, cluster[0]) != os.getpid()


def total(shared: hd.Broadcast[Any]) -> float:
    return float(shared.value.sum())


def address(shared: hd.Broadcast[Any]) -> tuple[int, int]:
    return os.getpid(), shared.value.ctypes.data


def flags(shared: hd.Broadcast[Any]) -> tuple[bool, bool]:
    return shared.value.flags.writeable, shared.value is shared.value


def write(shared: hd.Broadcast[Any]) -> None:
    shared.value[0] = 1.0


def inode_of(shared: hd.Broadcast[Any]) -> str:
    return mappings.inode_of(shared.value)


kept: dict[str, Any] = {}


def keep(shared: Any) -> None:
    kept["it"] = shared


def keep_view(shared: Any) -> None:
    kept["it"] = shared.value[10:20]


def kept_sum() -> float:
    return float(kept["it"].sum())


def forget() -> None:
    kept.clear()
    gc.collect()


def test_the_value_is_the_same_everywhere(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table)
    assert hd.remotecall_all(total, shared, procs=[1, *cluster]) == dict.fromkeys([1, *cluster], table.sum())
    assert np.array_equal(shared.value, table)


def test_it_is_read_only_everywhere_and_unpickled_once(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table)
    assert flags(shared) == (False, True)
    assert table.flags.writeable
    for pid in cluster:
        assert hd.remotecall_fetch(flags, pid, shared) == (False, True)
        assert hd.remotecall_fetch(address, pid, shared) == hd.remotecall_fetch(address, pid, shared)
        with pytest.raises(hd.RemoteException, match="read-only"):
            hd.remotecall_fetch(write, pid, shared)


def test_a_change_of_the_original_is_not_seen(cluster: list[int], table: Any) -> None:
    before = table.sum()
    shared = hd.broadcast(table)
    table[:] = 0
    assert hd.remotecall_fetch(total, cluster[0], shared) == total(shared) == before


def test_a_node_has_it_once(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table)
    by_node: dict[tuple[int, ...], set[str]] = {}
    for pid in [1, *cluster]:
        node = tuple(hd.procs_on_node(pid))
        by_node.setdefault(node, set()).add(hd.remotecall_fetch(inode_of, pid, shared))
    assert all(len(inodes) == 1 for inodes in by_node.values()), by_node


def test_any_picklable_value(cluster: list[int]) -> None:
    value = {"big": [np.ones(N), np.zeros((3, N), dtype="f4", order="F")], "text": "x", "none": None, "few": np.ones(3)}
    shared = hd.broadcast(value)

    def look(shared: Any) -> Any:
        got = shared.value
        return got["big"][0].sum(), got["big"][1].shape, got["big"][1].flags.f_contiguous, got["text"], got["few"].sum()

    for pid in [1, *cluster]:
        assert hd.remotecall_fetch(look, pid, shared) == (N, (3, N), True, "x", 3.0)


@pytest.mark.parametrize("value", [None, 0, "", b"", [], np.empty(0), np.array(5), lambda x: x + 1], ids=name_of)
def test_small_and_empty_values(cluster: list[int], value: Any) -> None:
    shared = hd.broadcast(value)
    there = hd.remotecall_fetch(lambda shared: shared.value, cluster[0], shared)
    if callable(value):
        assert there(1) == shared.value(1) == 2
    else:
        assert np.array_equal(there, value)
        assert type(there) is type(value)


def test_pushed_it_is_there_before_it_is_used(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table, pids=cluster)
    for pid in cluster:
        # Looked at from the outside: using it would unpickle it.
        assert hd.remotecall_fetch(lambda shared: isinstance(shared._value, np.ndarray), pid, shared)
    assert hd.broadcast(table, pids=1).value.sum() == table.sum()


def test_lazily_it_is_not(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table)
    assert not hd.remotecall_fetch(lambda shared: isinstance(shared._value, np.ndarray), cluster[0], shared)


class Home:
    """Can be unpickled on process 1 only."""

    def __reduce__(self) -> Any:
        return only_at_home, ()


def only_at_home() -> Home:
    if hd.myid() != 1:
        raise ValueError(f"not on {hd.myid()}")
    return Home()


def test_failures_of_a_push_are_collected(cluster: list[int]) -> None:
    with pytest.raises(hd.CompositeException) as caught:
        hd.broadcast(Home(), pids=[1, *cluster])
    assert [error.pid for error in caught.value.exceptions] == cluster
    assert "not on" in str(caught.value.exceptions[0])


def test_bad_input(cluster: list[int]) -> None:
    with pytest.raises(hd.SerializeError, match="the value"):
        hd.broadcast(threading.Lock())
    with pytest.raises(hd.SerializeError, match="has references in it"):
        hd.broadcast([hd.remotecall(int, cluster[0])])
    with pytest.raises(hd.SerializeError, match="has references in it"):
        hd.broadcast(hd.broadcast(1))
    with pytest.raises(hd.NoSuchProcessError):
        hd.broadcast(1, pids=[999_999])
    with pytest.raises(TypeError):
        hd.broadcast(1, pids=["2"])  # type: ignore[list-item]


def test_it_travels_by_any_way(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table)
    first, second = cluster[:2]
    channel = hd.RemoteChannel(lambda: hd.Channel(2), first)
    channel.put(shared)
    assert hd.remotecall_fetch(lambda channel: total(channel.take()), second, channel) == table.sum()
    assert hd.pmap(lambda i: float(shared.value[i]), range(20)) == list(range(20))
    assert hd.remotecall_fetch(lambda x: x, first, shared) is shared
    assert hd.remotecall_fetch(lambda x: hd.remotecall_fetch(total, second, x), first, shared) == table.sum()


def test_sent_and_dropped_at_once(cluster: list[int], table: Any) -> None:
    futures = [hd.remotecall(total, cluster[i % 3], hd.broadcast(table + i)) for i in range(6)]
    assert [future.fetch() for future in futures] == [(table + i).sum() for i in range(6)]


@pytest.fixture
def forgetting(cluster: list[int]) -> Iterator[None]:
    yield
    hd.remotecall_all(forget, procs=cluster)


def test_it_is_freed_with_the_last_handle(cluster: list[int], table: Any, forgetting: None) -> None:
    if not is_separate(cluster):
        pytest.skip("one process has all handles")
    shared = hd.broadcast(table)
    inode = inode_of(shared)
    for pid in cluster:
        assert hd.remotecall_fetch(inode_of, pid, shared) == inode
    hd.remotecall_wait(keep, cluster[0], shared)
    del shared
    poll_for(lambda: not hd.remotecall_fetch(has_mapped, cluster[1], inode), what="who has not kept it lets go")
    assert hd.remotecall_fetch(has_mapped, cluster[0], inode)
    hd.remotecall_wait(forget, cluster[0])
    for pid in [1, *cluster]:
        poll_for(lambda: not hd.remotecall_fetch(has_mapped, pid, inode), what="all let go")  # noqa: B023


def test_a_view_keeps_the_memory_and_nothing_else_does(cluster: list[int], table: Any, forgetting: None) -> None:
    if not is_separate(cluster):
        pytest.skip("one process has all handles")
    shared = hd.broadcast(table)
    there = hd.remotecall_fetch(inode_of, cluster[0], shared)
    hd.remotecall_wait(keep_view, cluster[0], shared)
    del shared
    gc.collect()
    poll_for(lambda: all(hd.live_references(pid) == [] for pid in cluster), what="no handle is left")
    assert hd.remotecall_fetch(kept_sum, cluster[0]) == table[10:20].sum()
    assert hd.remotecall_fetch(has_mapped, cluster[0], there)
    hd.remotecall_wait(forget, cluster[0])
    poll_for(lambda: not hd.remotecall_fetch(has_mapped, cluster[0], there), what="the worker lets go")


def test_nothing_stands_in_the_file_system(cluster: list[int], table: Any) -> None:
    ospids = {os.getpid(), *(hd.remotecall_fetch(os.getpid, pid) for pid in cluster)}
    before = leaks.segments_of(*ospids)
    shared = hd.broadcast(table, pids=hd.procs_on_node())
    assert leaks.segments_of(*ospids) <= before
    assert total(shared) == table.sum()


def test_given_up_it_has_no_value(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table)
    view = shared.value[:3]
    hd.finalize(shared)
    assert list(view) == [0, 1, 2]
    with pytest.raises(hd.InvalidStateException, match="finalized"):
        shared.value  # noqa: B018
    assert repr(shared) == "<Broadcast, finalized>"
    with pytest.raises(hd.SerializeError, match="Broadcast was finalized"):
        hd.remotecall(total, cluster[0], shared)


def test_many_threads_get_one_value(cluster: list[int], table: Any) -> None:
    shared = hd.broadcast(table)
    found: list[Any] = []
    barrier = threading.Barrier(8)

    def look() -> None:
        barrier.wait()
        found.append(shared.value)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(value) for value in found}) == 1


def test_arrays_begin_at_cache_lines(cluster: list[int]) -> None:
    shared = hd.broadcast([np.ones(N + 3, "u1"), np.ones(N + 5, "u1")])
    assert [value.ctypes.data % 64 for value in shared.value] == [0, 0]
