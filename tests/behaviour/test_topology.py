"""Who is connected with whom, and when: topology and lazy."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.behaviour.test_nested import connections
from tests.helpers.polling import poll_for

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


def links() -> dict[int, dict[int, str]]:
    """What each worker is connected to."""
    return {pid: hd.remotecall_fetch(connections, pid) for pid in hd.workers()}


def full_mesh(pids: list[int], scheme: str) -> dict[int, dict[int, str]]:
    return {pid: {other: scheme for other in [1, *pids] if other != pid} for pid in pids}


class Named(hd.LocalManager):
    """Gives its workers names, and says with which names each is to be connected."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        super().__init__(len(names))
        self.names = names

    def launch(self, params: Any, launched: Any, notify: Any) -> None:
        names = iter(self.names.items())

        def name_it() -> None:
            launched[-1].ident, launched[-1].connect_idents = next(names)
            notify()

        super().launch(params, launched, name_it)


# ---- lazy ---------------------------------------------------------------------------------------------------------


def test_lazy_connects_on_first_use(transport: str) -> None:
    one, two, three = hd.addprocs(3, transport=transport)
    assert links() == {pid: {1: transport} for pid in (one, two, three)}
    for _ in range(2):
        assert hd.remotecall_fetch(hd.remotecall_fetch, one, hd.myid, three) == three
    assert links() == {
        one: {1: transport, three: transport},
        two: {1: transport},
        three: {1: transport, one: transport},
    }


def test_without_lazy_all_are_connected_when_addprocs_returns(transport: str) -> None:
    """New with new, new with old, and each pair once."""
    pids: list[int] = []
    for count in (1, 3, 2):
        pids += hd.addprocs(count, transport=transport, lazy=False)
        assert links() == full_mesh(pids, transport)
    everybody = [hd.remotecall(lambda: [hd.remotecall_fetch(hd.myid, pid) for pid in hd.workers()], p) for p in pids]
    assert [future.fetch() for future in everybody] == [pids] * 6
    assert links() == full_mesh(pids, transport)


def test_without_lazy_some_come_and_some_go(transport: str) -> None:
    for _ in range(3):
        old = hd.addprocs(2, transport=transport, lazy=False)
        removal = hd.rmprocs(old, waitfor=0)
        new = hd.addprocs(2, transport=transport, lazy=False)
        assert links() == full_mesh(new, transport)
        removal.wait(30)
        hd.rmprocs(new)


def test_lazy_must_match() -> None:
    (one,) = hd.addprocs(1, lazy=False)
    for keywords in ({"lazy": True}, {}):
        with pytest.raises(ValueError, match="workers with lazy=False already exist; lazy=True cannot be set"):
            hd.addprocs(1, **keywords)
    hd.rmprocs(one)
    assert hd.addprocs(1, lazy=True) == [one + 1]
    with pytest.raises(ValueError, match="workers with lazy=True already exist; lazy=False cannot be set"):
        hd.addprocs(1, lazy=False)
    assert hd.workers() == [one + 1]
    hd.shutdown()
    assert hd.addprocs(1, lazy=False) == [one + 2]


# ---- a worker that cannot be connected -----------------------------------------------------------------------------


def test_a_worker_that_cannot_be_connected_is_no_member(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    """The old one is stopped: it cannot answer, so the new ones cannot be what they should be."""
    old, fine = hd.addprocs(2, transport=transport, lazy=False)
    ospid = hd.remotecall_fetch(os.getpid, old)
    monkeypatch.setenv("HYBRIDDIST_WORKER_TIMEOUT", "0.5")
    os.kill(ospid, signal.SIGSTOP)
    try:
        with pytest.raises(hd.CompositeException) as info:
            hd.addprocs(2, transport=transport, lazy=False)
    finally:
        os.kill(ospid, signal.SIGCONT)
    assert info.value.pids == []
    assert [(type(error), error.host, error.stage) for error in info.value] == [
        (hd.LaunchTimeout, "localhost", "mesh")
    ] * 2
    assert str(info.value.exceptions[0]).startswith(f"worker {fine + 1} cannot be connected with worker {old}: ")
    monkeypatch.delenv("HYBRIDDIST_WORKER_TIMEOUT")
    assert hd.workers() == [old, fine]
    assert hd.remotecall_fetch(hd.workers, fine) == [old, fine]
    (new,) = hd.addprocs(1, transport=transport, lazy=False)
    assert links() == full_mesh([old, fine, new], transport)


def test_time_limit_of_the_whole_call() -> None:
    """Who has joined stays, and is connected as soon as that can be."""
    (old,) = hd.addprocs(1, lazy=False)
    ospid = hd.remotecall_fetch(os.getpid, old)
    os.kill(ospid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError, match=r"did not finish within 1\.5 seconds") as info:
            hd.addprocs(1, lazy=False, timeout=1.5)
    finally:
        os.kill(ospid, signal.SIGCONT)
    assert info.value.pids == [old + 1]  # type: ignore[attr-defined]
    assert hd.workers() == [old, old + 1]
    assert hd.remotecall_fetch(hd.remotecall_fetch, old, hd.myid, old + 1) == old + 1
    assert links() == full_mesh([old, old + 1], "shm")


# ---- topology ----------------------------------------------------------------------------------------------------


def test_topology_cannot_change_while_there_are_workers() -> None:
    one, two = hd.addprocs(2, topology="master_worker")
    for other in ("all_to_all", "custom"):
        with pytest.raises(hd.TopologyError, match=f"master_worker already exist; the requested topology {other} cann"):
            hd.addprocs(1, topology=other)
    assert hd.addprocs(1, topology="master_worker") == [two + 1]
    hd.rmprocs(one, two, two + 1)
    three, four = hd.addprocs(2, topology="all_to_all")
    assert hd.remotecall_fetch(hd.remotecall_fetch, four, hd.myid, three) == three


@pytest.mark.parametrize("lazy", [{}, {"lazy": True}, {"lazy": False}], ids=str)
def test_master_worker_connects_no_workers(lazy: dict[str, bool], transport: str) -> None:
    one, two = hd.addprocs(2, topology="master_worker", transport=transport, **lazy)
    text = rf"peer {one} is not connected to {two}\. Topology: master_worker"
    with pytest.raises(hd.RemoteException, match=text) as info:
        hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, one)
    assert isinstance(info.value.__cause__, hd.TopologyError)
    assert hd.remotecall_fetch(hd.remotecall_fetch, two, hd.myid, 1) == 1
    assert links() == {one: {1: transport}, two: {1: transport}}


def test_custom_connects_those_that_name_each_other_at_once(transport: str) -> None:
    """Whatever ``lazy`` says: a topology of one's own is never lazy."""
    named = Named({"a": ["b"], "b": [], "c": ["a"]})
    a, b, c = hd.addprocs(named, topology="custom", transport=transport)
    assert {pid: sorted(links()[pid]) for pid in (a, b, c)} == {a: [1, b, c], b: [1, a], c: [1, a]}
    (d,) = hd.addprocs(Named({"d": ["c", "a"]}), topology="custom", transport=transport)
    assert {pid: sorted(links()[pid]) for pid in (a, c, d)} == {a: [1, b, c, d], c: [1, a, d], d: [1, a, c]}
    with pytest.raises(hd.RemoteException, match=rf"peer {d} is not connected to {b}\. Topology: custom") as info:
        hd.remotecall_fetch(hd.remotecall_fetch, b, hd.myid, d)
    assert isinstance(info.value.__cause__, hd.TopologyError)


def test_custom_by_parity(transport: str) -> None:
    """Eight workers: the even ones know each other, and the odd ones; nobody knows both."""
    names = {str(number): [str(other) for other in range(number % 2, number, 2)] for number in range(8)}
    pids = hd.addprocs(Named(names), topology="custom", transport=transport)
    family = {pid: [other for other in pids if other % 2 == pid % 2 and other != pid] for pid in pids}
    assert links() == {pid: dict.fromkeys([1, *family[pid]], transport) for pid in pids}
    for pid in pids:
        answers = hd.remotecall_fetch(ask_everybody, pid, [other for other in pids if other != pid])
        assert answers == {
            other: other if other in family[pid] else f"peer {other} is not connected to {pid}. Topology: custom"
            for other in pids
            if other != pid
        }


def ask_everybody(pids: list[int]) -> dict[int, int | str]:
    answers: dict[int, int | str] = {}
    for pid in pids:
        try:
            answers[pid] = hd.remotecall_fetch(hd.myid, pid)
        except hd.TopologyError as error:
            answers[pid] = str(error).rpartition(":")[0]
    return answers


class Slowly(Named):
    """The last of its workers comes when the others have been there for a while."""

    def launch(self, params: Any, launched: Any, notify: Any) -> None:
        names = dict(self.names)

        def name_it() -> None:
            launched[-1].ident, launched[-1].connect_idents = next(iter(names.items()))
            names.pop(launched[-1].ident)
            notify()
            if len(names) == 1:
                poll_for(lambda: len(hd.workers()) == len(self.names) - 1)

        hd.LocalManager.launch(self, params, launched, name_it)


def test_custom_waits_until_those_it_names_are_there(transport: str) -> None:
    a, b, c = hd.addprocs(Slowly({"a": ["c"], "b": [], "c": []}), topology="custom", transport=transport)
    assert links() == {a: {1: transport, c: transport}, b: {1: transport}, c: {1: transport, a: transport}}


def test_custom_names_that_nobody_has() -> None:
    """Whoever is to be connected with them cannot be what it should be; and so whoever waits for that one."""
    named = Named({"a": [], "b": ["nobody", "a"], "c": ["b"], "d": ["a"]})
    with pytest.raises(hd.CompositeException) as info:
        hd.addprocs(named, topology="custom")
    a, d = info.value.pids
    assert [(type(error), error.stage) for error in info.value] == [(hd.LaunchError, "mesh")] * 2
    assert [error.message for error in info.value] == [
        f"worker {a + 1} is to be connected with 'nobody', and no worker has that ident (topology: custom)",
        f"worker {a + 2} is to be connected with 'b', and no worker has that ident (topology: custom)",
    ]
    assert hd.workers() == [a, d]
    assert links() == {a: {1: "shm", d: "shm"}, d: {1: "shm", a: "shm"}}


# ---- counts of connections ------------------------------------------------------------------------------------------


def count_ends() -> int:
    """Ends of connections at workers."""
    return sum(map(len, links().values()))


def test_each_new_pair_adds_one_connection(transport: str) -> None:
    pids = hd.addprocs(8, transport=transport)
    assert count_ends() == 8  # with the driver
    pairs = [(pids[0], pids[7]), (pids[7], pids[0]), (pids[3], pids[2]), (pids[2], pids[3]), (pids[2], pids[7])]
    counts = []
    for one, other in pairs:
        for _ in range(2):
            assert hd.remotecall_fetch(hd.remotecall_fetch, one, hd.myid, other) == other
        counts.append(count_ends())
    assert counts == [10, 10, 12, 12, 14]


def test_a_full_mesh_of_eight(transport: str) -> None:
    pids = hd.addprocs(8, transport=transport, lazy=False)
    assert count_ends() == 64
    assert links() == full_mesh(pids, transport)


def test_master_worker_of_eight() -> None:
    hd.addprocs(8, topology="master_worker")
    assert count_ends() == 8


def test_the_driver_listens_nowhere_and_a_worker_once(transport: str) -> None:
    pids = hd.addprocs(2, transport=transport)

    def listening() -> int:
        import psutil

        connections = psutil.Process().net_connections("tcp")
        return sum(connection.status == psutil.CONN_LISTEN for connection in connections)

    assert listening() == 0
    assert [hd.remotecall_fetch(listening, pid) for pid in pids] == [1, 1]


def test_the_first_words_of_a_fresh_pair_may_be_an_array(transport: str) -> None:
    one, two = hd.addprocs(2, transport=transport)
    array = np.arange(200_000.0)
    there = hd.remotecall_fetch(lambda: hd.remotecall_fetch(np.negative, two, array), one)
    assert np.array_equal(there, -array)
