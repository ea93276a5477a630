"""Claims reach their owner by whatever path there is, and before what depends on them."""

from __future__ import annotations

import collections
import enum
import fractions
import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist import future
from hybriddist.core import captured, payload
from hybriddist.ids import RRID
from hybriddist.runtime.claims import Claim
from hybriddist.testing.clusters import MemoryCluster, memory_cluster
from tests.helpers.polling import poll_for


@pytest.fixture(params=["all_to_all", "master_worker"])
def inside(request: pytest.FixtureRequest) -> Iterator[MemoryCluster]:
    with memory_cluster(3, topology=request.param) as cluster:
        yield cluster


def held(cluster: MemoryCluster) -> dict[int, list[hd.RRID]]:
    gc.collect()
    return {pid: rrids for pid in [1, *cluster.pids] if (rrids := hd.live_references(pid))}


def hand_on(f: hd.Future, pids: list[int]) -> bool:
    """Give the reference away, and forget it."""
    return hd.remotecall_fetch(hand_on, pids[0], f, pids[1:]) if pids else isinstance(f, hd.Future)


def test_a_holder_without_a_connection_to_the_owner(inside: MemoryCluster) -> None:
    """It has to connect to drop the reference; or, where it may not, to have the driver tell."""
    a, b, _ = inside.pids
    future = hd.remotecall(abs, a, -1)
    rrid = hd.remoteref_id(future)
    assert hd.remotecall_fetch(hand_on, b, future, [])
    del future
    poll_for(lambda: held(inside) == {})
    assert rrid.whence == 1


def test_references_are_handed_on_through_the_driver(inside: MemoryCluster) -> None:
    """Worker to driver to worker: each of them gives and drops claims on what a third one owns."""
    a, b, c = inside.pids
    futures = [hd.remotecall(abs, a, -i) for i in range(20)]
    assert all(hd.remotecall_fetch(hand_on, b, future, [1, c, 1, b, 1]) for future in futures)
    assert [future.fetch() for future in futures] == list(range(20))
    del futures
    poll_for(lambda: held(inside) == {})


def test_a_worker_that_may_not_fetch_is_told_so(inside: MemoryCluster) -> None:
    a, b, _ = inside.pids
    future = hd.remotecall(abs, a, -1)
    if inside.driver.membership.may_connect(a, b):
        assert hd.remotecall_fetch(hd.fetch, b, future) == 1
    else:
        with pytest.raises(hd.RemoteException) as caught:
            hd.remotecall_fetch(hd.fetch, b, future)
        assert isinstance(caught.value.__cause__, hd.TopologyError)
    assert future.fetch() == 1
    poll_for(lambda: held(inside) == {})


def test_the_owner_crashes_while_others_hold_references(inside: MemoryCluster) -> None:
    a, b, _ = inside.pids
    future = hd.remotecall_wait(abs, a, -1)
    assert hd.remotecall_fetch(hand_on, b, future, [1, b])
    inside.crash(a)
    with pytest.raises(hd.ProcessExitedException):
        future.fetch()
    assert hd.remotecall_fetch(abs, b, -1) == 1
    assert held(inside) == {}


def test_a_holder_crashes(inside: MemoryCluster) -> None:
    a, b, _ = inside.pids
    kept: list[hd.Future] = []
    future = hd.remotecall_wait(abs, a, -1)
    hd.remotecall_fetch(lambda f: kept.append(f), b, future)
    rrid = hd.remoteref_id(future)
    del future
    gc.collect()
    inside.crash(b)
    poll_for(lambda: rrid not in hd.live_references(a))


# ---- claims in what is not rebuilt ----------------------------------------------------------------------------------


class Reference:
    """Pickles as a Future of process 2 would, for whoever gets it from process 1."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return future._revive, (2, 1, self.number, 1)


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("content",)


class WithState(list[Any]):
    def __getnewargs_ex__(self) -> Any:
        return (), {}

    def __setstate__(self, state: Any) -> None:
        never()


class Tripwire:
    def __reduce__(self) -> Any:
        return never, ()


def never() -> None:
    pytest.fail("a pickle that is only read has run code")


def claimed(body: Any, buffers: Any = ()) -> list[int]:
    claims = payload.claims(body, buffers)
    assert all(claim == Claim(RRID(1, claim.rrid.id), 2, 1) for claim in claims)
    return [claim.rrid.id for claim in claims]


def test_claims_are_found_among_whatever_is_in_a_pickle() -> None:
    class Local:
        table = (Reference(0),)

    first, slotted, state, local = Reference(1), Slotted(), WithState([1]), Local()
    slotted.content = Reference(2)
    state.attribute = Reference(3)  # type: ignore[attr-defined]
    local.content = Reference(4)  # type: ignore[attr-defined]
    value = [
        Tripwire(), first, slotted, state, [first], collections.OrderedDict(a=Reference(5)), {Reference(6): {1, 2}},
        collections.deque([Reference(7)]), collections.defaultdict(list, {1: [Reference(8)]}), fractions.Fraction(1, 3),
        Colour.RED, threading.Lock, "text".join, len, np.arange(9999.0), np.float64(2), np.array([Reference(9)]),
        frozenset([Reference(10)]), bytearray(7), 2**80, Reference(11), 12,
    ]  # fmt: skip
    body, buffers = payload.dumps(value)
    assert claimed(body, buffers) == [1, 2, 3, *range(5, 12)]
    assert payload.walk(body, buffers)[0][-1] == 12
    by_value = claimed(*payload.dumps([local, lambda: value, Reference(12)]))
    assert sorted(by_value) == list(range(13))
    assert claimed(b"\x80nonsense revive") == claimed(b"") == []


def test_claims_in_exceptions() -> None:
    """Each that arrives, once: also of exceptions of which a part stays behind, and of those inside of values."""
    error = ValueError(Reference(1), threading.Lock(), [Reference(2)])
    error.__cause__ = KeyError(Reference(3), np.zeros(9999))
    failure = captured.capture(error)
    assert [claim.rrid.id for claim in captured.claims(*captured.dump(failure))] == [1, 2, 3]
    assert claimed(*payload.dumps([Tripwire(), failure, Reference(4)])) == [1, 2, 3, 4]
    assert claimed(*payload.dumps([hd.RemoteException(2, failure), lambda: None])) == [1, 2, 3]


def test_what_was_revived_is_not_given_up_again(monkeypatch: pytest.MonkeyPatch, inside: MemoryCluster) -> None:
    declined: list[int] = []
    monkeypatch.setattr(Claim, "decline", lambda claim: declined.append(claim.rrid.id))
    revived: list[int] = []
    monkeypatch.setattr(future, "_revive", revive := lambda *args: revived.append(args[2]))
    revive.__module__, revive.__qualname__ = future.__name__, "_revive"
    value = [Reference(1), [Reference(2), captured.capture(ValueError(Reference(3)))], Broken(), Reference(4)]
    body, buffers = payload.dumps([*value, captured.capture(ValueError(Reference(5)))])
    with pytest.raises(hd.DeserializeError, match="broken"):
        payload.loads(body, buffers)
    assert revived == [1, 2, 3]
    assert declined == [4, 5]


class Broken:
    def __reduce__(self) -> Any:
        return fail, ()


def fail() -> None:
    raise ValueError("broken")
