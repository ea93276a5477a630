"""Who is connected with whom, and when: topology and lazy."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

import hybriddist as hd
from tests.behaviour.test_nested import connections

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
    named = Named({"a": ["b"], "b": [], "c": ["a", "d"]})
    a, b, c = hd.addprocs(named, topology="custom", transport=transport)
    assert {pid: sorted(links()[pid]) for pid in (a, b, c)} == {a: [1, b, c], b: [1, a], c: [1, a]}
    (d,) = hd.addprocs(Named({"d": []}), topology="custom", transport=transport)
    assert {pid: sorted(links()[pid]) for pid in (a, c, d)} == {a: [1, b, c], c: [1, a, d], d: [1, c]}
    with pytest.raises(hd.RemoteException, match=f"peer {d} is not connected to {b}") as info:
        hd.remotecall_fetch(hd.remotecall_fetch, b, hd.myid, d)
    assert isinstance(info.value.__cause__, hd.TopologyError)
