"""Cancelling: calls that have not begun are dropped, running ones interrupted, and all who hold the future hear it."""

from __future__ import annotations

import asyncio
import operator
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core.messages import Mode
from hybriddist.deadline import Deadline
from hybriddist.runtime.current import current
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

NOTED: list[Any] = []
"""What calls have noted on their process (in a memory cluster: on all of them)."""


def note(thing: Any) -> None:
    NOTED.append(thing)


def noted() -> list[Any]:
    """What was noted, which is forgotten."""
    things = list(NOTED)
    NOTED.clear()
    return things


def compute_for_ever(name: str) -> None:
    """Bytecode without end: an interrupt reaches it on any thread."""
    try:
        note(f"{name} began")  # in here: the interrupt may strike as soon as that is noted
        while True:
            time.sleep(0.001)
    except KeyboardInterrupt:
        note(f"{name} interrupted")
        raise
    finally:
        note(f"{name} ended")


def look() -> list[Any]:
    return list(NOTED)


def begun(pid: int, *things: Any) -> bool:
    return set(things) <= set(hd.remotecall_fetch(look, pid))


@pytest.fixture(autouse=True)
def nothing_noted(cluster: list[int]) -> None:
    for pid in [1, *cluster]:
        hd.remotecall_fetch(noted, pid)


@pytest.fixture(params=["self", "other"])
def where(request: pytest.FixtureRequest, cluster: list[int]) -> int:
    return 1 if request.param == "self" else cluster[0]


def assert_cancelled(future: hd.Future) -> None:
    assert future.isready()
    for see in (future.fetch, future.result, future.wait, lambda: future[0], lambda: hd.fetch(future)):
        with pytest.raises(CancelledError):
            see()
    with pytest.raises(hd.InvalidStateException):
        future.put(1)
    assert future.cancel()
    assert repr(future).endswith(", cancelled)")


def test_a_running_call_is_interrupted(where: int) -> None:
    future = hd.remotecall(compute_for_ever, where, "a")
    poll_for(lambda: begun(where, "a began"))
    assert future.cancel()
    assert_cancelled(future)
    poll_for(lambda: begun(where, "a interrupted", "a ended"))


def test_a_call_behind_another_is_interrupted_and_the_first_goes_on(where: int) -> None:
    """One of them runs on a worker's main thread, the other on a thread of its own; either may be cancelled."""
    for cancelled, other in (("b", "a"), ("a", "b")):
        futures = {name: hd.remotecall(compute_for_ever, where, name) for name in ("a", "b")}
        poll_for(lambda: begun(where, "a began", "b began"))
        assert futures[cancelled].cancel()
        poll_for(lambda cancelled=cancelled: begun(where, f"{cancelled} ended"))
        assert hd.remotecall_fetch(abs, where, -1) == 1
        assert not begun(where, f"{other} ended")
        assert futures[other].cancel()
        poll_for(lambda other=other: begun(where, f"{other} ended"))
        hd.remotecall_fetch(noted, where)


def test_sleep_on_a_workers_main_thread_is_interrupted(cluster: list[int], transport: str) -> None:
    if transport == "memory":
        pytest.skip("workers inside this interpreter have no main thread of their own")
    begin = time.monotonic()
    for _ in range(3):
        future = hd.remotecall(time.sleep, cluster[0], 60)
        waited = hd.remotecall(abs, cluster[0], -1)
        assert waited.fetch() == 1
        assert future.cancel()
        assert hd.remotecall_fetch(abs, cluster[0], -1) == 1
    assert time.monotonic() - begin < 20


def test_a_call_that_has_not_begun_is_dropped(cluster: list[int]) -> None:
    """The calls of a busy queue are cancelled from the last to the first: whichever began is interrupted."""
    pid = cluster[0]
    futures = [hd.remotecall(note, pid, number) for number in range(400)]
    cancelled = [number for number in reversed(range(400)) if futures[number].cancel()]
    for number in set(range(400)) - set(cancelled):
        assert futures[number].fetch() is None
    hd.remotecall_fetch(abs, pid, -1)
    done = hd.remotecall_fetch(noted, pid)
    assert set(range(400)) - set(cancelled) <= set(done)
    for number in cancelled:
        with pytest.raises(CancelledError):
            futures[number].fetch()


def test_what_has_ended_cannot_be_cancelled(where: int) -> None:
    good = hd.remotecall_wait(abs, where, -1)
    assert not good.cancel()
    assert good.fetch() == 1
    assert not good.cancel()
    bad = hd.remotecall(operator.truediv, where, 1, 0)
    with pytest.raises(hd.RemoteException):
        bad.fetch()
    assert not bad.cancel()
    gone = hd.Future(where)
    hd.finalize(gone)
    assert not gone.cancel()


def test_all_who_wait_hear_it(where: int, cluster: list[int]) -> None:
    future = hd.remotecall(compute_for_ever, where, "a")

    def outcome(f: hd.Future) -> str:
        try:
            f.fetch()
        except BaseException as error:
            return type(error).__name__
        return "a value"

    readers = [hd.remotecall(outcome, pid, future) for pid in cluster]
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(outcome(future)))
    thread.start()
    seen: list[hd.Future] = []
    future.add_done_callback(seen.append)
    assert hd.remotecall_fetch(lambda f: f.cancel(), cluster[1], future)
    thread.join(10)
    assert ends == ["CancelledError"]
    poll_for(lambda: seen == [future])
    assert [reader.fetch() for reader in readers] == ["CancelledError"] * 3
    assert_cancelled(future)
    assert hd.remotecall_fetch(outcome, cluster[2], future) == "CancelledError"  # it travels with its end


def test_a_future_without_a_call(where: int, cluster: list[int]) -> None:
    future = hd.Future(where)
    assert future.cancel()
    assert_cancelled(future)
    with pytest.raises(hd.InvalidStateException, match="was cancelled"):
        future.put(1)
    with pytest.raises(hd.RemoteException, match="was cancelled") as caught:
        hd.remotecall_fetch(lambda f: f.put(1), cluster[1], future)
    assert isinstance(caught.value.__cause__, hd.InvalidStateException)
    other = hd.Future(where)
    assert hd.remotecall_fetch(lambda f: f.cancel(), cluster[1], other)
    with pytest.raises(hd.InvalidStateException, match="was cancelled"):
        other.put(1)  # the holder says so


async def nap(name: str) -> str:
    note(f"{name} began")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note(f"{name} cancelled")
        raise
    return name


def test_a_coroutine_is_cancelled(where: int) -> None:
    future = hd.remotecall(nap, where, "a")
    poll_for(lambda: begun(where, "a began"))
    assert future.cancel()
    poll_for(lambda: begun(where, "a cancelled"))
    assert_cancelled(future)


@pytest.mark.parametrize("call", [hd.remotecall_fetch, hd.remotecall_wait])
def test_a_cancelled_call_cancels_its_coroutine(call: Callable[..., Any], cluster: list[int]) -> None:
    """And that of no other call."""
    pid = cluster[0]
    peer = current().peer(pid)
    ends: dict[str, Any] = {}

    def wait(name: str) -> None:
        with pytest.raises(hd.RemoteException, match="CancelledError") as caught:
            call(nap, pid, name)
        ends[name] = caught.value

    threads = []
    calls = []
    for name in ("a", "b"):
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        poll_for(lambda name=name: begun(pid, f"{name} began"))
        calls.append(list(peer.pending.values())[-1])
    for number, name in enumerate(("a", "b")):
        assert current().cancel_call(peer, calls[number])
        threads[number].join(10)
        assert list(ends) == ["a", "b"][: number + 1]
        assert begun(pid, f"{name} cancelled")


def test_a_call_that_is_cancelled_at_once_leaves_no_coroutine(cluster: list[int]) -> None:
    """Wherever the cancel finds it: in the queue, in the midst of its beginning, or awaiting."""
    process = current()
    peer = process.peer(cluster[0])
    for turn in range(200):
        call = process.start_call(nap, peer, (str(turn),), {}, Mode.FETCH, 0, 0)
        assert process.cancel_call(peer, call)
        assert call.wait(Deadline(10)), turn


def test_a_coroutine_that_goes_on_when_it_is_cancelled_is_answered_when_it_ends(cluster: list[int]) -> None:
    async def go_on(gate: hd.Future) -> str:
        note("began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note("cancelled")
        await gate
        return "ended"

    process = current()
    peer = process.peer(cluster[0])
    gate = hd.Future()
    call = process.start_call(go_on, peer, (gate,), {}, Mode.FETCH, 0, 0)
    poll_for(lambda: begun(cluster[0], "began"))
    assert process.cancel_call(peer, call)
    poll_for(lambda: begun(cluster[0], "cancelled"))
    assert not call.done
    gate.put(None)
    assert call.wait(Deadline(10))
    assert process.value_of(call, peer) == "ended"


def test_await_of_a_cancelled_future(where: int) -> None:
    future = hd.remotecall(compute_for_ever, where, "a")

    async def wait_for_it() -> str:
        asyncio.get_running_loop().call_later(0.01, future.cancel)
        try:
            await future
        except CancelledError:
            return "cancelled"
        return "a value"

    assert asyncio.run(wait_for_it()) == "cancelled"


def test_remotecall_wait_of_a_cancelled_call(cluster: list[int]) -> None:
    """The waiting call hears of a cancel by somebody else."""
    pid = cluster[0]
    before = set(hd.live_references(pid))  # of earlier tests, in cycles that no collector has come to
    handed: hd.RemoteChannel = hd.RemoteChannel()

    def run(handed: hd.RemoteChannel) -> None:
        compute_for_ever("a")

    ends: list[BaseException] = []

    def wait() -> None:
        try:
            hd.remotecall_wait(run, pid, handed)
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    poll_for(lambda: begun(pid, "a began"))
    (rrid,) = {rrid for rrid in hd.live_references(pid) if rrid.whence == 1} - before
    from hybriddist.runtime.cancelling import cancel_reference

    hd.remotecall_fetch(lambda: cancel_reference(current(), rrid), pid)
    thread.join(10)
    assert [type(end) for end in ends] == [CancelledError]


def test_the_values_of_cancelled_calls_are_freed(where: int) -> None:
    futures = [hd.remotecall(compute_for_ever, where, "a") for _ in range(5)]
    for future in futures:
        assert future.cancel()
    rrids = {hd.remoteref_id(future) for future in futures}
    del futures, future
    poll_for(lambda: rrids.isdisjoint(hd.live_references(where)))


# ---- in order of ending -------------------------------------------------------------------------------------------


def test_as_completed(cluster: list[int]) -> None:
    gates = [hd.Future() for _ in range(4)]
    futures = [hd.remotecall(hd.fetch, cluster[i % 3], gate) for i, gate in enumerate(gates)]
    ended = hd.as_completed([*futures, futures[0]], timeout=30)
    for i in (2, 0):
        gates[i].put(i)
        assert next(ended) is futures[i]
    assert futures[3].cancel()
    assert next(ended) is futures[3]
    gates[1].cancel()
    last = next(ended)
    assert last is futures[1]
    with pytest.raises(hd.RemoteException):
        last.fetch()
    assert list(ended) == []
    gates[3].put(None)


def test_as_completed_of_nothing_and_of_what_has_ended(where: int) -> None:
    assert list(hd.as_completed([])) == []
    futures = [hd.remotecall_wait(abs, where, -i) for i in range(3)]
    assert sorted(f.fetch() for f in hd.as_completed(iter(futures))) == [0, 1, 2]


def test_as_completed_with_a_timeout(where: int) -> None:
    never, done = hd.Future(where), hd.Future(where)
    done.put(1)
    ended = hd.as_completed([never, done], timeout=0.3)
    assert next(ended) is done
    with pytest.raises(TimeoutError, match="1 of 2 futures"):
        next(ended)
    never.put(2)
    assert [f.fetch() for f in hd.as_completed([never], timeout=10)] == [2]


def time_out(futures: list[hd.Future]) -> BaseException:
    with pytest.raises(TimeoutError, match="1 of 2 futures") as caught:
        list(hd.as_completed(futures, timeout=0.01))
    return caught.value  # with the traceback


def leave_early(futures: list[hd.Future]) -> None:
    for _ in hd.as_completed(futures):
        break


def never_begin(futures: list[hd.Future]) -> None:
    hd.as_completed(futures)


@pytest.mark.parametrize("give_up", [time_out, leave_early, never_begin], ids=lambda way: way.__name__)
def test_as_completed_that_is_given_up_keeps_no_future(give_up: Callable[..., Any], where: int) -> None:
    never, done = hd.Future(where), hd.Future(where)
    done.put(1)
    handle, rrid = weakref.ref(never), hd.remoteref_id(never)
    futures = [never, done]
    del never
    kept = give_up(futures)
    assert handle() is not None
    futures.clear()
    assert handle() is None
    poll_for(lambda: rrid not in hd.live_references(where))
    del kept


def test_as_completed_keeps_none_that_it_has_given(where: int) -> None:
    futures = [hd.remotecall_wait(abs, where, -i) for i in range(3)]
    handles = [weakref.ref(future) for future in futures]
    ended = hd.as_completed(futures)
    futures.clear()
    for left in (2, 1, 0):
        next(ended)
        poll_for(lambda left=left: sum(handle() is not None for handle in handles) == left)


def test_as_completed_of_what_is_no_future(cluster: list[int]) -> None:
    with pytest.raises(TypeError, match="takes futures, not int"):
        hd.as_completed([5])


# ---- maps ---------------------------------------------------------------------------------------------------------


def test_a_map_that_fails_cancels_what_is_under_way(cluster: list[int]) -> None:
    def item(i: int) -> None:
        if i == 3:
            raise ValueError("three")
        compute_for_ever(f"item {i}")

    with pytest.raises(hd.RemoteException, match="three"):
        hd.pmap(item, [3, *range(100, 102)])
    for pid in cluster:
        poll_for(
            lambda pid=pid: (
                {what.replace("began", "ended") for what in hd.remotecall_fetch(look, pid) if what.endswith("began")}
                <= set(hd.remotecall_fetch(look, pid))
            )
        )
        assert hd.remotecall_fetch(abs, pid, -1) == 1


def test_a_map_that_fails_cancels_the_coroutines_that_are_under_way(cluster: list[int]) -> None:
    async def item(i: int) -> None:
        if i < 3:
            await nap(f"item {i}")
        while not any(begun(pid, "item 0 began") for pid in cluster):
            await asyncio.sleep(0.01)
        raise ValueError("three")

    with pytest.raises(hd.RemoteException, match="three"):
        hd.pmap(item, range(4), batch_size=2)
    for pid in cluster:
        poll_for(
            lambda pid=pid: (
                {what.replace("began", "cancelled") for what in hd.remotecall_fetch(look, pid) if "began" in what}
                <= set(hd.remotecall_fetch(look, pid))
            )
        )


def test_calls_that_are_cancelled_while_they_call_break_no_connection(cluster: list[int], transport: str) -> None:
    """They run on threads of their own (the main thread is held), and send and receive all the time."""

    def call_for_ever(pid: int, began: hd.RemoteChannel) -> None:
        began.put(1)
        while True:
            hd.remotecall_fetch(abs, pid, -1)

    a, b, _ = cluster
    gate = hd.Future()
    began = hd.RemoteChannel(lambda: hd.Channel(100))
    holder = hd.remotecall(hd.fetch, a, gate)
    for _ in range(8):
        futures = [hd.remotecall(call_for_ever, a, pid, began) for pid in (b, b, 1)]
        for _ in futures:
            began.take(timeout=20)
        assert [future.cancel() for future in futures] == [True] * 3
    gate.put("held")
    assert holder.fetch(timeout=20) == "held"
    assert [hd.remotecall_fetch(lambda p=pid: hd.remotecall_fetch(abs, p, -1), a) for pid in (b, 1)] == [1, 1]
