"""Handles to blocks: who owns them, copies on other nodes, messages that overtake each other. In one interpreter."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.runtime import block_arrivals
from hybriddist.runtime.block_handle import BlockHandle
from hybriddist.runtime.context import this_process
from hybriddist.shm.block import Block
from hybriddist.testing.clusters import MemoryCluster, memory_cluster
from tests.helpers.polling import poll_for


@pytest.fixture
def inside() -> Iterator[MemoryCluster]:
    with memory_cluster(4) as cluster:
        processes = [cluster.driver, *cluster.workers.values()]
        yield cluster
        for process in processes:
            process.kept_by_test = None  # type: ignore[attr-defined]


def put_on_nodes(cluster: MemoryCluster, nodes: dict[int, int]) -> None:
    """Have every process believe that the processes are on these nodes."""
    for pid in cluster.pids:
        hd.remotecall_fetch(hd.myid, pid)  # behind the last news of who there is
    for process in (cluster.driver, *cluster.workers.values()):
        for pid, node in nodes.items():
            member = process.membership.get(pid)
            assert member is not None
            member.node = node


TWO_NODES = {1: 1, 2: 1, 3: 3, 4: 3, 5: 3}


def make(length: int = 100, *, local_only: bool = False) -> BlockHandle:
    return BlockHandle._of(this_process(), Block.create(length), local_only=local_only)


def read(handle: BlockHandle) -> tuple[int, bool]:
    return handle._memory[0], handle._is_copy


def write(handle: BlockHandle, value: int) -> None:
    handle._memory[0] = value


def keep(handle: BlockHandle | None) -> None:
    this_process().kept_by_test = handle  # type: ignore[attr-defined]


def with_kept(what: Any, *args: Any) -> Any:
    return what(this_process().kept_by_test, *args)  # type: ignore[attr-defined]


def refresh(handle: BlockHandle) -> None:
    handle._refresh()


def publish(handle: BlockHandle, start: int, stop: int) -> None:
    handle._publish(start, stop)


def identity(handle: BlockHandle) -> int:
    return id(handle._block)


def pass_on(handle: BlockHandle, pid: int) -> tuple[int, bool]:
    return hd.remotecall_fetch(read, pid, handle)


def left(cluster: MemoryCluster, origin: hd.RRID) -> list[int]:
    """The processes that have anything left of a block."""
    gc.collect()
    found = []
    for process in (cluster.driver, *cluster.workers.values()):
        process.references.flush()
        if process.blocks.find(origin) is not None or process.store.claims():
            found.append(process.pid)
    return found


# ---- inside a node --------------------------------------------------------------------------------------------------


def test_a_handle_that_was_never_sent_is_known_to_nobody(inside: MemoryCluster) -> None:
    handle = make()
    origin = handle._origin
    assert inside.driver.store.claims() == {}
    assert not inside.driver.blocks.kept
    del handle
    assert inside.driver.blocks.find(origin) is None  # at once, without anybody having been told


def test_bare_references_are_counted_in_the_margin(inside: MemoryCluster) -> None:
    handle = make()
    for _ in range(5):
        hd.remotecall_fetch(read, 2, handle)
        hd.remotecall_fetch(read, 2, handle=handle)  # pickled, not stripped
    assert inside.driver.blocks.sent[handle._rrid.id].known == {2: 9}
    assert inside.workers[2].blocks.pins[handle._rrid][1] == 9
    origin = handle._origin
    del handle
    poll_for(lambda: left(inside, origin) == [])
    assert not inside.driver.blocks.sent
    assert not inside.workers[2].blocks.pins


def test_a_bare_reference_that_comes_first_is_asked_for(inside: MemoryCluster) -> None:
    """The call that would describe it is not unpickled yet, or was dropped."""
    handle = make()
    write(handle, 7)
    hd.remotecall_fetch(read, 2, handle)
    inside.workers[2].blocks.pins.clear()
    gc.collect()
    assert hd.remotecall_fetch(read, 2, handle) == (7, False)
    assert hd.remotecall_fetch(read, 2, handle=handle) == (7, False)


def test_to_be_forgotten_before_it_has_come(inside: MemoryCluster) -> None:
    """The notice overtakes the call that brings the handle, which must not be kept for ever then."""
    handle = make()
    hd.remotecall_fetch(block_arrivals.forget_handle, 2, *handle._rrid)
    hd.remotecall_fetch(read, 2, handle)
    assert not inside.workers[2].blocks.pins
    assert not inside.workers[2].blocks._too_late


def test_the_owner_dies_and_the_next_to_send_owns_it(inside: MemoryCluster) -> None:
    handle = hd.remotecall_fetch(make, 2)
    write(handle, 9)
    hd.remotecall_fetch(keep, 3, handle)
    assert handle.where == 2
    inside.crash(2)
    poll_for(lambda: inside.driver.membership.why_gone(2) and inside.workers[3].membership.why_gone(2))
    assert hd.remotecall_fetch(with_kept, 3, pass_on, 4) == (9, False)
    assert hd.remotecall_fetch(read, 4, handle) == (9, False)
    assert handle.where == 1
    assert hd.remotecall_fetch(lambda h: h is this_process().kept_by_test, 3, handle)  # type: ignore[attr-defined]
    origin = handle._origin
    hd.remotecall_fetch(keep, 3, None)
    del handle
    poll_for(lambda: left(inside, origin) == [])


def test_the_owner_gets_it_back_after_it_let_go(inside: MemoryCluster) -> None:
    handle = make()
    write(handle, 5)
    origin = handle._origin
    hd.remotecall_fetch(keep, 2, handle)
    del handle
    gc.collect()
    back = hd.remotecall_fetch(with_kept, 2, lambda h: h)
    assert back.where == 1
    assert hd.remotecall_fetch(read, 3, back) == (5, False)
    hd.remotecall_fetch(keep, 2, None)
    assert hd.remotecall_fetch(read, 3, back) == (5, False)
    del back
    poll_for(lambda: left(inside, origin) == [])


def test_many_processes_and_threads_pass_it_round(inside: MemoryCluster) -> None:
    handle = make()
    write(handle, 3)
    origin = handle._origin
    failures: list[BaseException] = []

    def work(handle: BlockHandle = handle) -> None:
        try:
            for i in range(20):
                assert hd.remotecall_fetch(pass_on, 2 + i % 4, handle, 2 + (i + 1) % 4) == (3, False)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    del handle, work, threads, thread
    poll_for(lambda: left(inside, origin) == [])


# ---- another node ---------------------------------------------------------------------------------------------------


def test_one_copy_for_all_of_another_node(inside: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_nodes(inside, TWO_NODES)
    reads = []
    original = BlockHandle._read
    monkeypatch.setattr(BlockHandle, "_read", lambda self: reads.append(self._process.pid) or original(self))
    handle = make()
    write(handle, 7)
    for pid in (5, 3, 4):
        hd.remotecall_fetch(keep, pid, handle)
    assert reads == []  # not before it is used
    assert [hd.remotecall_fetch(with_kept, pid, read) for pid in (5, 4, 3)] == [(7, True)] * 3
    assert reads == [3]  # by the first of the node, once
    hd.remotecall_fetch(with_kept, 5, write, 8)
    assert [hd.remotecall_fetch(with_kept, pid, read)[0] for pid in (3, 4)] == [8, 8]
    assert read(handle) == (7, False)
    origin = handle._origin
    for pid in (3, 4, 5):
        hd.remotecall_fetch(keep, pid, None)
    del handle
    poll_for(lambda: left(inside, origin) == [])


def test_the_copy_stays_while_anybody_of_the_node_has_it(
    inside: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_nodes(inside, TWO_NODES)
    handle = make()
    hd.remotecall_fetch(keep, 4, handle)
    assert hd.remotecall_fetch(with_kept, 4, read) == (0, True)
    write(handle, 6)
    assert hd.remotecall_fetch(with_kept, 4, pass_on, 5) == (0, True)  # the same copy, without asking again


def test_refresh_and_publish(inside: MemoryCluster) -> None:
    put_on_nodes(inside, TWO_NODES)
    handle = make()
    for pid in (3, 4):
        hd.remotecall_fetch(keep, pid, handle)
        hd.remotecall_fetch(with_kept, pid, read)
    write(handle, 5)
    assert hd.remotecall_fetch(with_kept, 3, read) == (0, True)
    hd.remotecall_fetch(with_kept, 4, refresh)
    assert hd.remotecall_fetch(with_kept, 3, read) == (5, True)
    hd.remotecall_fetch(with_kept, 3, write, 6)
    hd.remotecall_fetch(with_kept, 3, publish, 10, 20)  # another part
    assert read(handle) == (5, False)
    hd.remotecall_fetch(with_kept, 4, publish, 0, 10)
    assert read(handle) == (6, False)
    refresh(handle)
    publish(handle, 0, 10)
    assert read(handle) == (6, False)


def test_a_copy_outlives_the_owner(inside: MemoryCluster) -> None:
    """Whoever has a copy then owns what it has; nobody has the memory of before."""
    put_on_nodes(inside, {1: 1, 2: 2, 3: 3, 4: 3, 5: 3})
    handle = hd.remotecall_fetch(make, 2)
    hd.remotecall_fetch(write, 2, handle, 4)
    hd.remotecall_fetch(keep, 4, handle)
    assert hd.remotecall_fetch(with_kept, 4, read) == (4, True)
    inside.crash(2)
    poll_for(lambda: inside.driver.membership.why_gone(2) and inside.workers[4].membership.why_gone(2))
    assert hd.remotecall_fetch(with_kept, 4, pass_on, 5)[0] == 4
    assert read(handle) == (4, True)  # had never been read here: from whoever has it


def test_nobody_has_it_any_more(inside: MemoryCluster) -> None:
    put_on_nodes(inside, {1: 1, 2: 2, 3: 3, 4: 3, 5: 3})
    handle = hd.remotecall_fetch(make, 2)
    inside.crash(2)
    poll_for(lambda: inside.driver.membership.why_gone(2))
    with pytest.raises(hd.ProcessExitedException):
        read(handle)


def test_what_must_not_leave_its_node(inside: MemoryCluster) -> None:
    put_on_nodes(inside, TWO_NODES)
    handle = make(local_only=True)
    assert hd.remotecall_fetch(read, 2, handle) == (0, False)
    for _ in range(2):
        with pytest.raises(hd.SerializeError, match="on another node than the memory of this BlockHandle"):
            hd.remotecall_fetch(read, 3, handle)
    assert hd.remotecall_fetch(read, 2, handle) == (0, False)
    origin = handle._origin
    del handle
    poll_for(lambda: left(inside, origin) == [])


def test_shared_arrays_on_two_nodes(inside: MemoryCluster) -> None:
    put_on_nodes(inside, TWO_NODES)
    s = hd.SharedArray((4, 2), int)
    assert s.pids == [2]
    with pytest.raises(ValueError, match=r"processes \[3\] are on other nodes than process 1.* are \[1, 2\]"):
        hd.SharedArray(3, pids=[2, 3])

    def add_to(s: hd.SharedArray, rows: range) -> bool:
        s.refresh()
        s[rows.start : rows.stop] += 1
        s.publish(rows)
        return s.is_copy

    assert hd.remotecall_fetch(add_to, 3, s, range(1, 3))
    assert hd.remotecall_fetch(add_to, 4, s, range(2, 4))
    assert not hd.remotecall_fetch(add_to, 2, s, range(2, 3))
    assert s.tolist() == [[0, 0], [1, 1], [3, 3], [1, 1]]
    refused = hd.SharedArray(3, node_local=False)
    with pytest.raises(hd.SerializeError, match="node_local=False"):
        hd.remotecall_fetch(add_to, 3, refused, range(1))


def test_a_loop_sends_other_nodes_their_part_only(inside: MemoryCluster) -> None:
    put_on_nodes(inside, TWO_NODES)
    s = hd.SharedArray(8, int, node_local=False)

    def add(view: Any) -> list[int]:
        view += hd.myid()
        return view.tolist()

    parts = hd.distributed(add, s, reduce=lambda a, b: a + b, chunked=True)
    assert parts == [2, 2, 3, 3, 4, 4, 5, 5]
    assert s.tolist() == [2, 2, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("what", ["future", "block"])
def test_a_call_that_is_dropped_gives_up_what_it_brought(
    inside: MemoryCluster, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    sent: Any = make() if what == "block" else hd.Future(1)
    rrid = sent._rrid
    for _ in range(2):
        hd.remotecall_fetch(id, 2, sent)
    executor = inside.workers[2].executor
    poll_for(lambda: len(executor._idle) == executor._threads)  # no thread looks into the queue now
    with monkeypatch.context() as patch:
        patch.setattr(executor, "kick", lambda: None)  # so that it stays in the queue
        call = hd.remotecall(id, 2, sent)
        poll_for(lambda: executor.queue)
        cancelled: list[bool] = []
        canceller = threading.Thread(target=lambda cancel=call.cancel: cancelled.append(cancel()))
        canceller.start()
        poll_for(lambda: len(executor.queue) == 2)
    executor.kick()
    canceller.join()
    assert cancelled == [True]
    del sent, call, canceller
    poll_for(lambda: inside.driver.references.flush() or rrid not in inside.driver.store.claims())
