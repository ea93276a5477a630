"""What a worker does about a process that it has not been told of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hybriddist.core.exits import ExitReason
from hybriddist.core.membership import Member
from hybriddist.errors import NoSuchProcessError, ProcessExitedException
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.process import Process
from hybriddist.testing.clusters import MemoryCluster, memory_cluster
from tests.helpers.polling import poll_for


@pytest.fixture
def inside() -> Iterator[MemoryCluster]:
    with memory_cluster(1) as cluster:
        yield cluster


def launching(cluster: MemoryCluster) -> Member:
    """A worker that is on its way, as the driver alone knows."""
    membership = cluster.driver.membership
    return membership.add(Member(membership.allocate_pid()))


def asked_by(process: Process, pid: int) -> tuple[threading.Thread, list[Any]]:
    """A thread of ``process`` that asks for a member, and where its answer comes."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(member(process, pid))
        except Exception as error:
            answers.append(error)

    return process.spawn(ask, "asking"), answers


def test_the_driver_is_asked_and_waits_until_it_is_up(inside: MemoryCluster) -> None:
    new = launching(inside)
    thread, answers = asked_by(inside.workers[2], new.pid)
    thread.join(0.05)
    assert answers == []
    new.addresses = ["memory:somewhere"]
    inside.driver.membership.joined(new.pid, same_node_as=1)
    thread.join(10)
    assert answers == [new]
    assert inside.workers[2].membership.workers() == [2, new.pid]


def test_it_never_comes_up(inside: MemoryCluster) -> None:
    new = launching(inside)
    thread, answers = asked_by(inside.workers[2], new.pid)
    inside.driver.membership.gone(new.pid, ExitReason("it was never started"))
    thread.join(10)
    assert [(type(error), error.pid, error.reason) for error in answers] == [
        (ProcessExitedException, new.pid, "it was never started")
    ]


def test_nobody_has_heard_of_it(inside: MemoryCluster) -> None:
    for process in (inside.driver, inside.workers[2]):
        with pytest.raises(NoSuchProcessError, match=r"99 exists \(the processes are 1, 2\)"):
            member(process, 99)
    with pytest.raises(TypeError, match="a pid is an integer, not list"):
        member(inside.workers[2], [2])  # type: ignore[arg-type]


def test_who_is_known_is_not_asked_for(inside: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = inside.workers[2]
    inside.add()
    poll_for(lambda: worker.membership.workers() == [2, 3])
    monkeypatch.setattr(Process, "fetch_call", None)
    assert [member(worker, pid).pid for pid in (1, 2, 3)] == [1, 2, 3]
    assert member(inside.driver, 2).pid == 2


def test_an_end_that_is_told_first_is_the_end(inside: MemoryCluster) -> None:
    """The driver's answer and its word of the end may be read by two threads, in the other order."""
    new = launching(inside)
    driver, worker = inside.driver, inside.workers[2]
    driver.membership.joined(new.pid, same_node_as=1)
    before = new.values()
    driver.links.announce_left(new.pid, ExitReason.removed())
    poll_for(lambda: worker.membership.why_gone(new.pid) is not None)
    worker.membership.learn(before)
    with pytest.raises(ProcessExitedException, match="it was removed"):
        member(worker, new.pid)
