"""Channels are references: counted across the cluster, canonical, dead outside of it, and gone with their processes."""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

KEPT: dict[str, Any] = {}


def keep(name: str, value: Any) -> None:
    KEPT[name] = value


def drop(name: str) -> None:
    del KEPT[name]


def take_kept(name: str) -> Any:
    return KEPT[name].take()


def is_held(rrid: hd.RRID, pid: int) -> bool:
    return rrid in hd.live_references(pid)


def make(pid: int, capacity: float = 4) -> hd.RemoteChannel:
    return hd.RemoteChannel(lambda: hd.Channel(capacity), pid)


def waiting_at(rrid: hd.RRID, pid: int) -> int:
    return hd.remotecall_fetch(lambda: hd.channel_from_id(rrid).waiting(), pid)


@pytest.fixture(autouse=True)
def nothing_left(cluster: list[int]) -> Iterator[None]:
    yield
    gc.collect()
    everywhere = [1, *cluster]
    poll_for(lambda: [hd.live_references(pid) for pid in everywhere] == [[]] * 4, what="references nobody released")


# ---- counting -----------------------------------------------------------------------------------------------------


def test_fetching_does_not_release_and_finalizing_does(cluster: list[int]) -> None:
    c = make(cluster[0])
    rrid = hd.remoteref_id(c)
    c.put(1)
    assert c.fetch() == c.take() == 1
    assert is_held(rrid, cluster[0])
    hd.finalize(c)
    poll_for(lambda: not is_held(rrid, cluster[0]))
    verbs = (c.take, c.fetch, c.wait, c.isready, c.isempty, c.isopen, c.close)
    for verb in (*verbs, lambda: c.put(1), lambda: c[0], lambda: list(c)):
        with pytest.raises(hd.InvalidStateException, match="finalized"):
            verb()
    hd.finalize(c)
    with pytest.raises(hd.RemoteException, match="finalized"):
        hd.remotecall_fetch(lambda c: c.take(), cluster[1], c)


@pytest.mark.parametrize("owner", ["driver", "worker"])
def test_it_is_freed_when_all_have_finalized(owner: str, cluster: list[int]) -> None:
    pid = 1 if owner == "driver" else cluster[0]
    c = make(pid)
    rrid = hd.remoteref_id(c)
    hd.remotecall_wait(keep, cluster[1], "c", c)
    c.put("still there")
    hd.finalize(c)
    for _ in range(3):
        assert is_held(rrid, pid)
    assert hd.remotecall_fetch(take_kept, cluster[1], "c") == "still there"
    assert is_held(rrid, pid)
    hd.remotecall_wait(drop, cluster[1], "c")
    poll_for(lambda: not is_held(rrid, pid))


def test_a_dropped_handle_frees_the_channel_without_any_message(cluster: list[int]) -> None:
    """Promptly: nothing else is sent from this process; the owner itself is asked by another one."""
    c = make(cluster[0])
    rrid = hd.remoteref_id(c)
    seen = hd.RemoteChannel(lambda: hd.Channel(1))

    def watch(owner: int, seen: hd.RemoteChannel) -> None:
        end = time.monotonic() + 10
        while rrid in hd.live_references(owner) and time.monotonic() < end:
            time.sleep(0.002)
        seen.put(rrid not in hd.live_references(owner))

    hd.remote_do(watch, cluster[1], cluster[0], seen)
    del c
    assert seen.take(timeout=20) is True


def test_a_channel_that_was_never_used_is_never_made(cluster: list[int]) -> None:
    c = hd.RemoteChannel(cluster[0])
    assert not is_held(hd.remoteref_id(c), cluster[0])
    assert c.isempty()
    assert is_held(hd.remoteref_id(c), cluster[0])


def test_a_channel_that_a_worker_never_stores_is_freed(cluster: list[int]) -> None:
    c = make(cluster[0])
    for pid in cluster:
        hd.remotecall_fetch(lambda c: None, pid, c)
    rrid = hd.remoteref_id(c)
    del c
    poll_for(lambda: not is_held(rrid, cluster[0]))


def test_items_that_nobody_took_are_freed_with_the_channel(cluster: list[int]) -> None:
    """References inside of them too, and large arrays."""
    c = make(cluster[0])
    inner = make(cluster[1])
    c.put([inner, hd.remotecall(abs, cluster[2], -1)])
    c.put(np.zeros(100_000))
    rrid = hd.remoteref_id(inner)
    del inner
    for _ in range(3):
        assert is_held(rrid, cluster[1])
    del c
    poll_for(lambda: not is_held(rrid, cluster[1]))


def test_finalizing_ends_a_wait_in_another_thread(cluster: list[int]) -> None:
    for pid in (cluster[0],):
        c = make(pid)
        ends: list[BaseException] = []

        def wait(c: hd.RemoteChannel = c, ends: list[BaseException] = ends) -> None:
            try:
                c.take()
            except BaseException as error:
                ends.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        rrid = hd.remoteref_id(c)
        poll_for(lambda rrid=rrid, pid=pid: waiting_at(rrid, pid) == 1)
        hd.finalize(c)
        thread.join(10)
        assert [type(end) for end in ends] == [hd.InvalidStateException]


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"key": [c]}], ids=["bare", "in containers"])
def test_a_pickle_to_elsewhere_is_dead(wrap: Any, cluster: list[int]) -> None:
    c = hd.RemoteChannel(lambda: hd.Channel(2, int), cluster[0])
    before = hd.live_references(cluster[0])
    dead = pickle.loads(pickle.dumps(wrap(c)))
    dead = dead if isinstance(dead, hd.RemoteChannel) else dead["key"][0]
    assert dead != c
    assert dead.type is int
    assert (dead.where, hd.remoteref_id(dead)) == (0, hd.RRID(0, 0))
    for verb in (dead.take, dead.isready, lambda: dead.put(1)):
        with pytest.raises(hd.InvalidStateException, match="outside"):
            verb()
    with pytest.raises(hd.InvalidStateException, match="outside"):
        pickle.loads(pickle.dumps(dead)).take()
    assert hd.live_references(cluster[0]) == before


def test_many_references_leave_nothing(cluster: list[int]) -> None:
    for _ in range(3):
        channels = [make(pid, 1) for pid in cluster for _ in range(30)]
        assert hd.remotecall_fetch(lambda cs: [c.put(i).take() for i, c in enumerate(cs)], cluster[1], channels) == (
            list(range(90))
        )
        del channels


# ---- whose connection is it ---------------------------------------------------------------------------------------


def test_worker_id_from_socket(cluster: list[int], transport: str) -> None:
    from hybriddist.runtime.current import current

    class Odd:
        def fileno(self) -> Any:
            return "none"

    assert hd.worker_id_from_socket(io.BytesIO()) == hd.myid()
    assert hd.worker_id_from_socket(Odd()) == -1
    assert hd.worker_id_from_socket(5.0) == -1
    with socket.socket() as stranger:
        assert hd.worker_id_from_socket(stranger) == -1
    assert hd.worker_id_from_socket(stranger) == -1  # closed
    for pid in cluster:
        peer = current().peer(pid)
        assert hd.worker_id_from_socket(peer.transport) == pid
        assert hd.worker_id_from_socket(peer.descriptor) == pid
        if transport != "memory":
            with socket.socket(fileno=os.dup(peer.descriptor)) as copy:
                assert hd.worker_id_from_socket(copy) == -1  # a descriptor of somebody else's, as far as we know


# ---- deaths -------------------------------------------------------------------------------------------------------


@pytest.fixture
def victim(cluster: list[int], transport: str) -> Iterator[int]:
    """A worker that the test may kill."""
    if transport == "memory":
        pytest.skip("a worker inside this interpreter cannot be killed")
    (pid,) = hd.addprocs(1, transport=transport)
    yield pid
    if pid in hd.workers():
        hd.rmprocs(pid)


def kill(pid: int) -> None:
    ospid = hd.remotecall_fetch(os.getpid, pid)
    os.kill(ospid, signal.SIGKILL)


def test_the_owners_death_ends_every_operation(victim: int, cluster: list[int]) -> None:
    c, full = make(victim, 1), make(victim, 0)
    futures = [hd.remotecall(lambda c, v=verb: getattr(c, v)(), cluster[1], c) for verb in ("take", "fetch", "wait")]
    futures.append(hd.remotecall(lambda c: c.put(1), cluster[2], full))
    poll_for(lambda: waiting_at(hd.remoteref_id(c), victim) == 3 and waiting_at(hd.remoteref_id(full), victim) == 1)
    kill(victim)
    for future in futures:
        with pytest.raises(hd.RemoteException) as caught:
            future.fetch(timeout=10)
        assert isinstance(caught.value.__cause__, hd.ProcessExitedException)
    for verb in (c.take, c.fetch, c.wait, c.isready, c.isopen, c.close, lambda: c.put(1), lambda: list(c)):
        with pytest.raises(hd.ProcessExitedException) as exited:
            verb()
        assert exited.value.pid == victim


def test_a_dead_takers_place_in_the_line_is_empty(victim: int, cluster: list[int]) -> None:
    """It has three takers waiting, and dies; the items go to the living."""
    for pid in (1, cluster[0]):
        c = make(pid)
        rrid = hd.remoteref_id(c)
        for _ in range(3 if pid == 1 else 0):
            hd.remote_do(lambda c: c.take(), victim, c)
        if pid == 1:
            poll_for(lambda rrid=rrid, pid=pid: waiting_at(rrid, pid) == 3)
            kill(victim)
            poll_for(lambda rrid=rrid, pid=pid: waiting_at(rrid, pid) == 0)
        for i in range(4):
            c.put(i)
        assert [c.take(timeout=10) for _ in range(4)] == [0, 1, 2, 3]


def test_a_dead_putters_item_is_gone_and_the_others_are_not(victim: int, cluster: list[int]) -> None:
    c = make(cluster[0], 1)
    rrid = hd.remoteref_id(c)
    c.put("mine")
    hd.remote_do(lambda c: c.put("the victim's"), victim, c)
    poll_for(lambda: waiting_at(rrid, cluster[0]) == 1)
    other = hd.remotecall(lambda c: c.put("another's") and None, cluster[1], c)
    poll_for(lambda: waiting_at(rrid, cluster[0]) == 2)
    kill(victim)
    poll_for(lambda: waiting_at(rrid, cluster[0]) == 1)
    assert [c.take(), c.take()] == ["mine", "another's"]
    other.fetch()


def test_a_dead_holders_claims_vanish_everywhere(victim: int, cluster: list[int]) -> None:
    channels = [make(pid) for pid in cluster]
    futures = [hd.remotecall(abs, pid, -1) for pid in cluster]
    hd.remotecall_wait(keep, victim, "all", (channels, futures))
    del channels, futures
    gc.collect()
    assert all(len(hd.live_references(pid)) == 2 for pid in cluster)
    kill(victim)
    poll_for(lambda: [hd.live_references(pid) for pid in cluster] == [[]] * 3)


def test_nothing_is_lost_or_doubled_when_takers_die_under_load(victim: int, cluster: list[int]) -> None:
    """What the dead taker had is missing, at most; each living taker's items are its own."""
    jobs, results = make(cluster[0], 3), make(1, 10_000)

    def work(jobs: hd.RemoteChannel, results: hd.RemoteChannel) -> None:
        for job in jobs:
            results.put(job)

    for pid in (victim, cluster[1], cluster[2]):
        hd.remote_do(work, pid, jobs, results)
    ospid = hd.remotecall_fetch(os.getpid, victim)
    for i in range(400):
        jobs.put(i)
        if i == 150:
            os.kill(ospid, signal.SIGKILL)
    jobs.close()
    poll_for(lambda: jobs.isempty())
    got: list[int] = []
    while len(got) < 399:
        got.append(results.take(timeout=10))
    try:
        got.append(results.take(timeout=0.5))
    except TimeoutError:
        pass
    assert len(set(got)) == len(got)
    assert set(got) <= set(range(400))


# ---- Ctrl-C -------------------------------------------------------------------------------------------------------


INTERRUPTED = """
    import signal, sys, threading, time
    import hybriddist as hd

    transport, owner = sys.argv[1:]
    (pid,) = hd.addprocs(1, transport=transport)
    c = hd.RemoteChannel(lambda: hd.Channel(4), 1 if owner == "self" else pid)
    main = threading.main_thread().ident
    got, interrupts = [], 0

    def soon(go, f, *args):
        go.wait()
        time.sleep(0.01)
        f(*args)

    for i in range(25):
        go = threading.Event()
        timer = threading.Thread(target=soon, args=(go, signal.pthread_kill, main, signal.SIGINT))
        putter = threading.Thread(target=soon, args=(go, c.put, i))
        for each in (timer, putter):
            each.start()
        try:
            go.set()  # not before: the interrupt is for what is tried here
            got.append(c.take(timeout=20))
            while True:
                time.sleep(0.01)  # until the interrupt strikes, if it has not
        except KeyboardInterrupt:
            interrupts += 1
        for each in (timer, putter):
            each.join()
        while not c.isempty():
            got.append(c.take(timeout=10))
    end = time.monotonic() + 10
    while len(got) < 25 and time.monotonic() < end:  # what an interrupted take had in hand comes back a moment later
        if not c.isempty():
            got.append(c.take(timeout=10))
    rrid = hd.remoteref_id(c)
    waiting = hd.remotecall_fetch(lambda: hd.channel_from_id(rrid).waiting(), c.where)
    print(sorted(got) == list(range(25)), interrupts, waiting)
"""


@pytest.mark.parametrize("owner", ["self", "other"])
def test_an_interrupted_take_swallows_nothing(owner: str, transport: str, run_python: ScriptRunner) -> None:
    """Ctrl-C while take waits, and just when an item comes. In a process of its own: Ctrl-C is for the whole of it."""
    if transport == "memory":
        return  # these clusters are inside this process
    done = run_python(INTERRUPTED, transport, owner)
    assert (done.stdout, done.stderr) == ("True 25 0\n", "")
