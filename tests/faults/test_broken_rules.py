"""A member that breaks the rules of the wire: that connection ends, who waits hears of it, and nobody else does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core import payload
from hybriddist.core.exits import ExitReason
from hybriddist.core.messages import Call, Claims, Identify, Join, Leave, Left, Members, Mode
from hybriddist.runtime.current import current
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module


@pytest.fixture(scope="module", autouse=True)
def _driver() -> Iterator[None]:
    yield
    hd.shutdown()


@pytest.fixture
def workers(transport: str) -> Iterator[list[int]]:
    """Three that have met."""
    yield hd.addprocs(3, transport=transport, lazy=False)
    hd.rmprocs(hd.workers() if hd.nprocs() > 1 else [])


def pickled(value: Any) -> bytes:
    return payload.dumps(value)[0]


CRIMES: dict[str, Callable[[], bytes]] = {
    "no message": lambda: b"\xff" * 20,
    "cut short": lambda: Call(1, Mode.FETCH, 0, 0, 0, b"", ()).encode()[:3],
    "joins twice": lambda: Join(pickled({})).encode(),
    "introduces itself twice": lambda: Identify(pickled({"pid": 2, "to": 3})).encode(),
    "says who there is": lambda: Members(pickled(current().membership.snapshot())).encode(),
    "says who is gone": lambda: Left(pickled({"pid": 2, "reason": ExitReason.removed()})).encode(),
    "tells others to leave": lambda: Leave().encode(),
    "a negative number of calls": lambda: Call(1, Mode.EACH, 0, 0, -1, b"", ()).encode(),
    "claims that are no claims": lambda: Claims([]).encode() + b"\x01",
}


def commit(crime: str, pid: int) -> None:
    """Send to ``pid`` what this library would never send."""
    head = CRIMES[crime]()
    peer = current().peers[pid]
    with peer.send_lock:
        peer.transport.send(head, ())


def end_of(call: hd.Future) -> hd.ProcessExitedException:
    with pytest.raises((hd.ProcessExitedException, hd.RemoteException)) as info:
        call.fetch(timeout=10)
    error = info.value.__cause__ if isinstance(info.value, hd.RemoteException) else info.value
    assert isinstance(error, hd.ProcessExitedException)
    return error


# What is a crime is decided above the transports: one crime is enough to see that each passes it on.
EACH = [("shm", crime) for crime in CRIMES] + [("tcp", "no message")]


@pytest.mark.parametrize(("transport", "crime"), EACH)
def test_against_the_driver(crime: str, workers: list[int]) -> None:
    """The worker loses its driver, so it leaves; for all others it has died."""
    bad, good, other = workers
    waiting = [hd.remotecall(time.sleep, bad, 60), hd.remotecall(hd.remotecall_fetch, good, time.sleep, bad, 60)]
    going_on = hd.remotecall(hd.remotecall_fetch, good, abs, other, -7)
    hd.remote_do(commit, bad, crime, 1)
    assert [end_of(call).pid for call in waiting] == [bad, bad]
    assert going_on.fetch(timeout=10) == 7
    poll_for(lambda: hd.workers() == [good, other])
    for pid in (good, other):
        poll_for(lambda pid=pid: hd.remotecall_fetch(hd.workers, pid) == [good, other])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("transport", "crime", "turn"), [(*each, -1) for each in EACH] + [("shm", "no message", 1), ("tcp", "cut short", 1)]
)
def test_against_a_worker(crime: str, turn: int, workers: list[int]) -> None:
    """Both stay, and whoever of them wants to speak with the other connects anew."""
    bad, good = workers[:2][::turn]  # the higher of the two has made the connection
    waiting = [
        hd.remotecall(hd.remotecall_fetch, bad, time.sleep, good, 60),
        hd.remotecall(hd.remotecall_fetch, good, time.sleep, bad, 60),
    ]
    for pid, there in ((bad, good), (good, bad)):
        poll_for(lambda pid=pid, there=there: hd.remotecall_fetch(_waits_for, pid, there))  # type: ignore[misc]
    hd.remote_do(commit, bad, crime, good)
    ends = [end_of(call) for call in waiting]
    assert [(end.pid, end.reason) for end in ends] == [(good, "connection lost"), (bad, "connection lost")]
    assert hd.workers() == workers
    for pid in workers:
        assert [hd.remotecall_fetch(hd.remotecall_fetch, pid, hd.myid, there) for there in workers] == workers


def _waits_for(pid: int) -> bool:
    return bool(current().peers[pid].pending)
