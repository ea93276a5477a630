"""Pickles in blocks: the layout, tables that were written over, other nodes, no room. In one interpreter."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.runtime import pickled_blocks
from hybriddist.runtime.context import this_process
from hybriddist.runtime.process import Process
from hybriddist.runtime.shared_functions import ReceivedHandle
from hybriddist.shm.block import Block
from hybriddist.testing.clusters import MemoryCluster, memory_cluster
from tests.helpers.polling import poll_for

TABLE = np.arange(50_000)


@pytest.fixture
def inside() -> Iterator[MemoryCluster]:
    with memory_cluster(6) as cluster:
        yield cluster


def put_on_nodes(cluster: MemoryCluster, nodes: dict[int, int]) -> None:
    """Have every process believe that the processes are on these nodes."""
    for pid in cluster.pids:
        hd.remotecall_fetch(hd.myid, pid)  # behind the last news of who there is
    for process in (cluster.driver, *cluster.workers.values()):
        poll_for(lambda process=process: process.membership.procs() == sorted(nodes))  # the last word has come
        for pid, node in nodes.items():
            member = process.membership.get(pid)
            assert member is not None
            member.node = node


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Who read a block from whom, over a connection."""
    found: list[tuple[int, int]] = []
    fetch_call = Process.fetch_call

    def noting(process: Process, function: Any, pid: int, *rest: Any) -> Any:
        if function.__name__ == "read_block":
            found.append((process.pid, pid))
        return fetch_call(process, function, pid, *rest)

    monkeypatch.setattr(Process, "fetch_call", noting)
    return found


def total(shared: Any) -> int:
    return int(shared.value.sum())


def test_lazily_each_node_reads_it_once(inside: MemoryCluster, reads: list[tuple[int, int]]) -> None:
    put_on_nodes(inside, {1: 1, 2: 1, 3: 3, 4: 3, 5: 5, 6: 5, 7: 5})
    shared = hd.broadcast(TABLE)
    for pid in (4, 3, 6, 7, 5, 2):
        assert hd.remotecall_fetch(total, pid, shared) == TABLE.sum()
    assert reads == [(3, 1), (5, 1)]


def test_a_push_is_a_tree(inside: MemoryCluster, reads: list[tuple[int, int]]) -> None:
    put_on_nodes(inside, {1: 1, 2: 1, 3: 3, 4: 4, 5: 5, 6: 6, 7: 6})
    shared = hd.broadcast(TABLE, pids=[7, 6, 5, 4, 3, 2])
    assert (reads[:1], sorted(reads[1:3]), reads[3:]) == ([(3, 1)], [(4, 1), (5, 3)], [(6, 1)])
    for pid in range(2, 8):
        assert hd.remotecall_fetch(lambda shared: shared._value is not None and total(shared), pid, shared) == (
            TABLE.sum()
        )
    assert len(reads) == 4


def test_captured_data_go_to_each_node_once(inside: MemoryCluster, reads: list[tuple[int, int]]) -> None:
    put_on_nodes(inside, {1: 1, 2: 1, 3: 3, 4: 3, 5: 3, 6: 6, 7: 6})
    table = np.arange(300_000)
    assert hd.pmap(lambda i: int(table[i]), range(40)) == list(range(40))
    assert sorted(reads) == [(3, 1), (6, 1)]


def test_no_room_on_another_node(inside: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_nodes(inside, {1: 1, 2: 1, 3: 3, 4: 3, 5: 5, 6: 6, 7: 6})
    shared = hd.broadcast(TABLE)

    def full(length: int) -> Block:
        raise hd.SharedMemoryFull("there is no room")

    monkeypatch.setattr(Block, "create", full)
    with pytest.warns(RuntimeWarning, match="each process has a copy: .* no room"):
        assert [hd.remotecall_fetch(total, pid, shared) for pid in (4, 3, 7)] == [TABLE.sum()] * 3


def test_no_room_here(inside: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(length: int) -> Block:
        raise hd.SharedMemoryFull("there is no room")

    monkeypatch.setattr(Block, "create", full)
    with pytest.warns(RuntimeWarning, match=r"a broadcast value \(0.4 MiB\) is sent by value"):
        shared = hd.broadcast(TABLE, pids=[2])
    assert [hd.remotecall_fetch(total, pid, shared) for pid in (1, 2, 3)] == [TABLE.sum()] * 3
    assert hd.remotecall_fetch(lambda shared: hd.remotecall_fetch(total, 4, shared), 3, shared) == TABLE.sum()
    with pytest.raises(hd.RemoteException, match="read-only"):
        hd.remotecall_fetch(lambda shared: shared.value.sort(), 3, shared)


@pytest.mark.parametrize("count", [0, 1 << 20, 1 << 62])
def test_a_table_that_was_written_over(inside: MemoryCluster, count: int) -> None:
    shared = hd.broadcast(TABLE)
    shared._memory[:8] = struct.pack("<Q", count)
    with pytest.raises(hd.DeserializeError, match="something wrote over it"):
        shared.value  # noqa: B018


def test_a_table_that_tells_of_too_much(inside: MemoryCluster) -> None:
    shared = hd.broadcast(TABLE)
    shared._memory[16:24] = struct.pack("<Q", TABLE.nbytes + 64)
    with pytest.raises(hd.DeserializeError, match="more than there is"):
        shared.value  # noqa: B018


def test_own_arrays_are_seen_by_nobody_else(inside: MemoryCluster) -> None:
    process = this_process()
    handle = pickled_blocks.PickledBlock._with(process, *process.references.encode_for_all(TABLE), "it")  # type: ignore[misc]
    first, second = handle._load(own=True), handle._load(own=True)
    first[0] = 77
    assert (first[0], second[0], handle._load(own=False)[0], TABLE[0]) == (77, 0, 0, 0)


# ---- definitions of functions ---------------------------------------------------------------------------------------

TWO_AND_THREE = {1: 1, 2: 1, 3: 3, 4: 3, 5: 3, 6: 6, 7: 6}


def length_of(value: bytes) -> Callable[[], int]:
    return lambda: len(value)


def test_a_function_goes_to_each_node_once(inside: MemoryCluster, reads: list[tuple[int, int]]) -> None:
    put_on_nodes(inside, TWO_AND_THREE)
    f = length_of(b"x" * 100_000)
    for pid in (5, 3, 7, 4, 2, 6, 5):
        assert hd.remotecall_fetch(f, pid) == 100_000
    assert sorted(reads) == [(3, 1), (6, 1)]
    g = length_of(b"x" * 200_000)
    assert [call.fetch() for call in [hd.remotecall(g, pid) for pid in range(2, 8)]] == [200_000] * 6
    assert sorted(reads) == [(3, 1), (3, 1), (6, 1), (6, 1)]
    del f, g
    everybody = (inside.driver, *inside.workers.values())
    poll_for(lambda: gc.collect() >= 0 and not any([*process.blocks.kept.keys()] for process in everybody))
    assert not any(process.blocks.pins for process in everybody)


def test_a_small_node_gets_what_it_always_got(inside: MemoryCluster, reads: list[tuple[int, int]]) -> None:
    put_on_nodes(inside, {1: 1, 2: 1, 3: 1, 4: 1, 5: 5, 6: 6, 7: 7})
    f = length_of(b"x" * 100_000)
    assert [hd.remotecall_fetch(f, pid) for pid in range(2, 8)] == [100_000] * 6
    assert reads == []
    assert not inside.driver.blocks.origins


def test_a_handle_that_cannot_be_unpickled(inside: MemoryCluster) -> None:
    received = ReceivedHandle(b"\x80\x05cno_such_thing\nvalue\n.")
    received.arrive()
    for _ in range(2):
        with pytest.raises(hd.DeserializeError, match="no_such_thing"):
            received.load()


def test_no_room_for_a_function_on_another_node(inside: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_nodes(inside, TWO_AND_THREE)
    f = length_of(b"x" * 100_000)
    assert hd.remotecall_fetch(f, 2) == 100_000  # a handle, too

    def full(length: int) -> Block:
        raise hd.SharedMemoryFull("there is no room")

    monkeypatch.setattr(Block, "create", full)
    with pytest.warns(RuntimeWarning, match="each process has a copy: .* no room"):
        assert [hd.remotecall_fetch(f, pid) for pid in (4, 3, 7)] == [100_000] * 3


def test_the_first_of_a_node_cannot_be_asked(reads: list[tuple[int, int]]) -> None:
    """Workers may not be connected, so each asks whoever sent the function."""
    with memory_cluster(3, topology="master_worker") as cluster:
        put_on_nodes(cluster, {1: 1, 2: 2, 3: 2, 4: 2})
        f = length_of(b"x" * 100_000)
        assert [hd.remotecall_fetch(f, pid) for pid in (4, 3, 2)] == [100_000] * 3
        assert sorted(reads) == [(2, 1), (3, 1), (4, 1)]
