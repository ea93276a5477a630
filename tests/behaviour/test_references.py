"""References are counted across the cluster: a value lives exactly as long as somebody may ask for it."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core.messages import Call
from hybriddist.runtime.peer import Peer
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

KEPT: dict[str, Any] = {}
"""What a call leaves behind on a process (in a memory cluster: on all of them)."""


def keep(name: str, value: Any) -> None:
    KEPT[name] = value


def use(name: str) -> Any:
    return KEPT[name].fetch()


def drop(name: str) -> None:
    del KEPT[name]


def finalize_every_handle(rrid: hd.RRID) -> None:
    for thing in gc.get_objects():
        if type(thing) is hd.Future and hd.remoteref_id(thing) == rrid:
            hd.finalize(thing)


def live(pid: int) -> list[hd.RRID]:
    return hd.live_references(pid)


def is_held(future_or_id: Any, pid: int) -> bool:
    rrid = future_or_id if isinstance(future_or_id, hd.RRID) else hd.remoteref_id(future_or_id)
    return rrid in live(pid)


@pytest.fixture(autouse=True)
def nothing_left(cluster: list[int]) -> Iterator[None]:
    """Before and after each test no process holds anything for another."""
    yield
    gc.collect()
    poll_for(lambda: [live(pid) for pid in [1, *cluster]] == [[]] * 4, what="references that nobody released")


# ---- one holder ---------------------------------------------------------------------------------------------------


def test_the_owner_holds_the_value_until_it_is_fetched(cluster: list[int]) -> None:
    future = hd.remotecall_wait(abs, cluster[0], -1)
    assert live(cluster[0]) == [hd.remoteref_id(future)]
    future.fetch()
    poll_for(lambda: live(cluster[0]) == [])
    assert future.fetch() == 1


def test_a_call_under_way_is_held(cluster: list[int]) -> None:
    gate = hd.Future()
    future = hd.remotecall(hd.fetch, cluster[0], gate)
    poll_for(lambda: is_held(future, cluster[0]))
    assert is_held(gate, 1)
    gate.put(1)
    assert future.fetch() == 1


def test_a_dropped_future_frees_its_value(cluster: list[int]) -> None:
    future = hd.remotecall_wait(abs, cluster[0], -1)
    rrid = hd.remoteref_id(future)
    assert is_held(rrid, cluster[0])
    del future
    poll_for(lambda: not is_held(rrid, cluster[0]))


def test_a_future_dropped_before_its_call_ends(cluster: list[int]) -> None:
    """Nobody wants the value any more: it is not kept when it comes."""
    gate = hd.Future()
    rrid = hd.remoteref_id(hd.remotecall(hd.fetch, cluster[0], gate))
    poll_for(lambda: not is_held(rrid, cluster[0]))
    gate.put(1)
    assert hd.remotecall_fetch(abs, cluster[0], -1) == 1


def test_a_failed_call_is_held_and_released_alike(cluster: list[int]) -> None:
    future = hd.remotecall(operator.truediv, cluster[0], 1, 0)
    poll_for(lambda: hd.isready(future))
    assert is_held(future, cluster[0])
    with pytest.raises(hd.RemoteException):
        future.fetch()
    poll_for(lambda: not is_held(future, cluster[0]))


def test_a_future_made_for_another_process_creates_nothing_there_before_it_is_used(cluster: list[int]) -> None:
    future = hd.Future(cluster[0])
    assert not is_held(future, cluster[0])
    assert not future.isready()
    assert is_held(future, cluster[0])
    del future


def test_put_releases(cluster: list[int]) -> None:
    future = hd.Future(cluster[0])
    future.put(5)
    poll_for(lambda: not is_held(future, cluster[0]))
    assert future.fetch() == 5


@pytest.mark.parametrize("moment", ["before it is sent", "after it was sent"])
def test_a_call_that_ctrl_c_cuts_short_holds_nothing(
    moment: str, cluster: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets the future of such a call, and nobody knows whether the call is on its way."""
    send = Peer.send

    def struck(peer: Peer, message: Any) -> None:
        if isinstance(message, Call):
            if moment == "after it was sent":
                send(peer, message)
            raise KeyboardInterrupt
        send(peer, message)

    for call in (hd.remotecall, hd.remotecall_wait):
        with monkeypatch.context() as patch:
            patch.setattr(Peer, "send", struck)
            with pytest.raises(KeyboardInterrupt):
                call(abs, cluster[0], -1)
        assert hd.remotecall_fetch(abs, cluster[0], -1) == 1


def test_a_future_dropped_after_a_fetch_in_vain(cluster: list[int]) -> None:
    """The release may overtake the request: the call still holds the worker up when both come."""
    for _ in range(20):
        future = hd.remotecall(time.sleep, cluster[0], 0.03)
        for verb in (future.fetch, future.wait):
            with pytest.raises(TimeoutError):
                verb(timeout=0)
        del future, verb


def test_many_dropped_futures(cluster: list[int]) -> None:
    for _ in range(5):
        futures = [hd.remotecall(abs, pid, -1) for pid in cluster for _ in range(300)]
        del futures
    poll_for(lambda: [live(pid) for pid in cluster] == [[]] * 3)


def test_the_values_themselves_die(cluster: list[int]) -> None:
    """Not only the books are clean: nothing in the owner's machinery keeps the object."""

    class Thing:
        pass

    thing = Thing()
    died = weakref.ref(thing)
    future = hd.Future()
    future.put(thing)
    del thing
    hd.remotecall_wait(lambda f: f.isready(), cluster[0], future)
    hd.finalize(future)
    poll_for(lambda: died() is None)


def test_the_arguments_of_calls_die_with_the_calls(cluster: list[int]) -> None:
    class Thing:
        pass

    for call in (hd.remotecall_fetch, hd.remotecall_wait):
        thing = Thing()
        died = weakref.ref(thing)
        call(lambda _: None, 1, thing)
        del thing
        poll_for(lambda died=died: died() is None)


# ---- several holders ----------------------------------------------------------------------------------------------


def test_the_value_outlives_its_first_holder(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -7)
    rrid = hd.remoteref_id(future)
    hd.remotecall_wait(keep, cluster[1], "f", future)
    del future
    gc.collect()
    for _ in range(3):  # enough messages for a wrong release to have come through
        assert is_held(rrid, cluster[0])
    assert hd.remotecall_fetch(use, cluster[1], "f") == 7
    poll_for(lambda: not is_held(rrid, cluster[0]))
    hd.remotecall_wait(drop, cluster[1], "f")


def test_the_first_holders_fetch_leaves_it_to_the_second(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -7)
    hd.remotecall_wait(keep, cluster[1], "f", future)
    assert future.fetch() == 7
    for _ in range(3):
        assert is_held(future, cluster[0])
    assert hd.remotecall_fetch(use, cluster[1], "f") == 7
    poll_for(lambda: not is_held(future, cluster[0]))
    hd.remotecall_wait(drop, cluster[1], "f")


def test_a_reference_that_a_worker_never_stores_is_freed(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -7)
    hd.remotecall_fetch(lambda f: None, cluster[2], future)  # which had no connection to the owner before
    hd.remote_do(lambda f: None, cluster[1], future)
    assert future.fetch() == 7
    poll_for(lambda: not is_held(future, cluster[0]))


def test_a_reference_goes_from_hand_to_hand(cluster: list[int]) -> None:
    """Driver to a to b to c, each of whom forgets it at once; the last one fetches."""
    a, b, c = cluster

    def pass_on(f: hd.Future, pids: list[int]) -> Any:
        return hd.remotecall_fetch(pass_on, pids[0], f, pids[1:]) if pids else f.fetch()

    for owner in (1, a, b, c):
        future = hd.remotecall(abs, owner, -owner)
        assert hd.remotecall_fetch(pass_on, a, future, [b, c, a, 1, c]) == owner
        rrid = hd.remoteref_id(future)
        del future
        poll_for(lambda owner=owner, rrid=rrid: not is_held(rrid, owner))


def test_references_made_by_workers(cluster: list[int]) -> None:
    """A worker returns references to what itself, another worker and the driver hold."""
    a, b, _ = cluster

    def make() -> list[hd.Future]:
        return [hd.remotecall(abs, pid, -pid) for pid in (a, b, 1)]

    futures = hd.remotecall_fetch(make, a)
    assert [future.where for future in futures] == [a, b, 1]
    assert {hd.remoteref_id(future).whence for future in futures} == {a}
    assert [future.fetch() for future in futures] == [a, b, 1]


def test_references_inside_of_stored_values(cluster: list[int]) -> None:
    a, b, _ = cluster
    inner = hd.remotecall(abs, a, -3)
    outer = hd.remotecall(lambda f: [f], b, inner)
    rrid = hd.remoteref_id(inner)
    del inner
    assert outer.fetch()[0].fetch() == 3
    del outer
    poll_for(lambda: not is_held(rrid, a))


def test_the_owner_may_hold_a_handle_to_its_own_value(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -7)
    hd.remotecall_wait(keep, cluster[0], "f", future)
    assert future.fetch() == 7
    assert hd.remotecall_fetch(use, cluster[0], "f") == 7
    rrid = hd.remoteref_id(future)
    del future
    hd.remotecall_wait(drop, cluster[0], "f")
    poll_for(lambda: not is_held(rrid, cluster[0]))


def test_fetching_at_the_owner_claims_nothing_again(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -7)
    future.fetch()
    poll_for(lambda: not is_held(future, cluster[0]))
    assert hd.remotecall_fetch(hd.fetch, cluster[0], future) == 7
    assert not is_held(future, cluster[0])


def test_many_processes_and_threads_share_many_references(cluster: list[int]) -> None:
    failures: list[BaseException] = []

    def sum_up(fs: list[hd.Future]) -> int:
        return sum(hd.remotecall_fetch(hd.fetch, hd.workers()[f.fetch() % 3], f) for f in fs)

    def work() -> None:
        try:
            for _ in range(3):
                futures = [hd.remotecall(abs, cluster[i % 3], -i) for i in range(12)]
                assert [hd.remotecall_fetch(sum_up, pid, futures) for pid in cluster] == [66] * 3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


# ---- finalize -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_set", [False, True], ids=["unset", "set"])
@pytest.mark.parametrize("where", ["self", "other"])
def test_a_finalized_reference_is_dead(where: str, is_set: bool, cluster: list[int]) -> None:
    pid = 1 if where == "self" else cluster[0]
    future = hd.Future(pid)
    assert not future.isready()
    if is_set:
        hd.remotecall_wait(lambda f: f.put(1) and None, cluster[1], future)
    hd.finalize(future)
    poll_for(lambda: not is_held(future, pid))
    for verb in (future.fetch, future.wait, future.isready, lambda: future.put(2), lambda: future[0]):
        with pytest.raises(hd.InvalidStateException, match="finalized"):
            verb()
    assert repr(future).endswith(", finalized)")
    hd.finalize(future)


def test_finalizing_leaves_the_value_to_others(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -7)
    hd.remotecall_wait(keep, cluster[1], "f", future)
    hd.finalize(future)
    assert hd.remotecall_fetch(use, cluster[1], "f") == 7
    hd.remotecall_wait(drop, cluster[1], "f")


@pytest.mark.parametrize("is_kept", [False, True], ids=["by nobody", "by another process"])
def test_finalizing_ends_a_wait_in_another_thread(is_kept: bool, cluster: list[int]) -> None:
    """Whether or not the owner has anything to say about it."""
    for verb in ("fetch", "wait"):
        future = hd.Future(cluster[0])
        ends: list[BaseException] = []

        def wait(future: hd.Future = future, verb: str = verb, ends: list[BaseException] = ends) -> None:
            try:
                getattr(future, verb)()
            except BaseException as error:
                ends.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        poll_for(lambda future=future: is_held(future, cluster[0]))  # the thread has asked
        if is_kept:
            hd.remotecall_wait(keep, cluster[1], "f", future)
        hd.finalize(future)
        thread.join(10)
        if is_kept:
            hd.remotecall_wait(drop, cluster[1], "f")
        assert [type(end) for end in ends] == [hd.InvalidStateException]


def test_a_request_for_a_value_that_was_released_ends(cluster: list[int]) -> None:
    """The owner itself waits for the value, and its handle, the last one, is given up."""
    future = hd.Future(cluster[0])
    reader = hd.remotecall(hd.fetch, cluster[0], future)  # waits at the owner, on the owner's own handle
    poll_for(lambda: is_held(future, cluster[0]))
    hd.finalize(future)
    with pytest.raises(TimeoutError):
        reader.fetch(timeout=0.05)  # the owner's own claim keeps it
    hd.remotecall_wait(finalize_every_handle, cluster[0], hd.remoteref_id(future))
    with pytest.raises(hd.RemoteException) as caught:
        reader.fetch(timeout=10)
    assert isinstance(caught.value.__cause__, hd.InvalidStateException)


def test_what_cannot_be_finalized(cluster: list[int]) -> None:
    for thing in (5, None, "text", [hd.Future()]):
        with pytest.raises(TypeError, match="reference"):
            hd.finalize(thing)
        with pytest.raises(TypeError, match="reference"):
            hd.remoteref_id(thing)


# ---- pickles that leave the cluster -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: [f, {"key": (f,)}]], ids=["bare", "in containers"])
def test_a_pickle_to_elsewhere_holds_nothing_and_is_dead(wrap: Any, cluster: list[int]) -> None:
    future = hd.remotecall_wait(abs, cluster[0], -1)
    before = live(cluster[0])
    dead = pickle.loads(pickle.dumps(wrap(future)))
    dead = dead if isinstance(dead, hd.Future) else dead[1]["key"][0]
    assert dead != future
    for verb in (dead.fetch, dead.isready):
        with pytest.raises(hd.InvalidStateException, match="outside"):
            verb()
    assert repr(dead).endswith(", dead)")
    with pytest.raises(hd.RemoteException, match="outside"):
        hd.remotecall_fetch(hd.fetch, cluster[1], dead)
    with pytest.raises(hd.InvalidStateException, match="outside"):
        pickle.loads(pickle.dumps(dead)).fetch()
    assert live(cluster[0]) == before
    assert future.fetch() == 1
    assert pickle.loads(pickle.dumps(future)).fetch() == 1  # its value is known, and needs nobody


def test_messages_with_and_without_references_take_turns(cluster: list[int]) -> None:
    """After one with some, others are expected; that makes no pickle for elsewhere alive, and costs no claim."""
    a, b, _ = cluster
    for turn in range(3):
        future = hd.remotecall(abs, a, -turn)
        assert hd.remotecall_fetch(hd.fetch, b, future) == turn
        with pytest.raises(hd.InvalidStateException, match="outside"):
            pickle.loads(pickle.dumps(future)).fetch()
        for _ in range(turn):
            assert hd.remotecall_fetch(len, b, [1, 2]) == 2
            assert hd.remotecall_fetch(lambda: hd.remotecall(abs, a, -7), b).fetch() == 7


def test_calls_inside_of_pickling_have_claims_of_their_own(cluster: list[int]) -> None:
    """An argument whose `__reduce__` makes calls, with references, before its own references are met."""
    inner, outer = hd.remotecall(abs, cluster[0], -2), hd.remotecall(abs, cluster[1], -3)

    class Nested:
        def __reduce__(self) -> Any:
            assert hd.remotecall_fetch(lambda f: f.fetch(), cluster[2], inner) == 2
            return list, ([outer],)

    assert hd.remotecall_fetch(lambda x: x[0].fetch(), cluster[2], [outer, Nested()][1]) == 3
    assert hd.remotecall_fetch(lambda x, y: (x.fetch(), y[0].fetch()), cluster[2], outer, Nested()) == (3, 3)


def test_an_argument_that_cannot_be_pickled_gives_no_claims(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -2)
    with pytest.raises(hd.SerializeError):
        hd.remotecall_fetch(lambda *x: None, cluster[1], future, threading.Lock())
    assert future.fetch() == 2


def test_copies_are_not_counted(cluster: list[int]) -> None:
    future = hd.remotecall(abs, cluster[0], -2)
    copies = [copy.deepcopy(future) for _ in range(3)]
    del copies
    assert future.fetch() == 2
