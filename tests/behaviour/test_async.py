"""`async def` on both sides: functions that are awaited there, futures that are awaited here."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import operator
import sys
import time
import weakref
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


async def after(seconds: float, value: Any = None) -> Any:
    await asyncio.sleep(seconds)
    return value


async def who() -> int:
    return hd.myid()


async def exit_with(code: int) -> None:
    sys.exit(code)


class AsyncCallable:
    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0)
        return x + 1


@pytest.fixture(params=["self", "other"])
def where(request: pytest.FixtureRequest, cluster: list[int]) -> int:
    return 1 if request.param == "self" else cluster[0]


# ---- async functions there ----------------------------------------------------------------------------------------


def test_the_awaited_value_is_the_result(where: int) -> None:
    assert hd.remotecall_fetch(after, where, 0.001, "value") == "value"
    assert hd.remotecall(after, where, 0.001, "value").fetch() == "value"
    assert hd.remotecall_wait(after, where, 0.001, "value").fetch() == "value"
    assert hd.remotecall_fetch(AsyncCallable(), where, 1) == 2
    assert hd.remotecall_fetch(who, where) == where


def test_coroutines_of_one_process_overlap(where: int) -> None:
    """Each needs another one to end: one after the other they would never."""
    gates = [hd.Future() for _ in range(5)]

    async def chain(number: int) -> int:
        if number:
            await gates[number - 1]
        gates[number].put(number)
        return number

    futures = [hd.remotecall(chain, where, number) for number in reversed(range(5))]
    assert [future.fetch(timeout=20) for future in futures] == [4, 3, 2, 1, 0]


def test_coroutines_leave_room_for_plain_calls(where: int) -> None:
    gate = hd.Future()

    async def wait() -> Any:
        return await gate

    waiting = [hd.remotecall(wait, where) for _ in range(20)]
    assert hd.remotecall_fetch(abs, where, -1) == 1
    assert not any(future.isready() for future in waiting)
    gate.put(5)
    assert [future.fetch() for future in waiting] == [5] * 20


def test_a_coroutine_may_call(cluster: list[int]) -> None:
    async def ask(pid: int) -> int:
        return await hd.remotecall(who, pid)

    for pid in (1, *cluster):
        assert hd.remotecall_fetch(ask, cluster[0], pid) == pid


def test_a_coroutine_that_blocks_for_another_one_of_its_process_is_told(cluster: list[int]) -> None:
    """It would wait for ever: the other one needs the thread that it blocks."""

    async def block() -> Any:
        return hd.remotecall_fetch(after, hd.myid(), 0.001)

    with pytest.raises(hd.RemoteException, match="await"):
        hd.remotecall_fetch(block, cluster[0])


def test_an_exit_in_a_coroutine_leaves_the_others(where: int) -> None:
    gate = hd.Future()

    async def wait() -> Any:
        return await gate

    waiting = hd.remotecall(wait, where)
    for _ in range(2):
        with pytest.raises(hd.RemoteException) as caught:
            hd.remotecall_fetch(exit_with, where, 3)
        assert isinstance(caught.value.__cause__, SystemExit)
    assert hd.remotecall_fetch(after, where, 0, 1) == 1
    gate.put(2)
    assert waiting.fetch() == 2


def test_a_cancelled_coroutine_is_a_failure(where: int) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(hd.RemoteException, match="Cancelled"):
        hd.remotecall_fetch(give_up, where)


def test_remote_do_of_a_coroutine(where: int) -> None:
    done = hd.Future()

    async def put() -> None:
        await asyncio.sleep(0)
        done.put(hd.myid())

    hd.remote_do(put, where)
    assert done.fetch(timeout=10) == where


def test_a_coroutine_goes_on_when_nobody_holds_its_future_any_more(where: int) -> None:
    gate, done = hd.Future(), hd.Future()

    async def pass_on() -> None:
        done.put(await gate)

    future = hd.remotecall(pass_on, where)
    hd.finalize(future)
    hd.remotecall_fetch(abs, where, -1)
    gate.put(5)
    assert done.fetch(timeout=10) == 5


# ---- futures awaited here -----------------------------------------------------------------------------------------


def test_await_gives_the_value(where: int) -> None:
    async def main() -> Any:
        return await hd.remotecall(pow, where, 2, 5)

    assert asyncio.run(main()) == 32


def test_await_of_what_is_known_and_of_what_failed(where: int) -> None:
    known = hd.Future(where).put(1)
    failed = hd.remotecall(operator.truediv, where, 1, 0)

    async def main() -> Any:
        assert [await known, await known] == [1, 1]
        for _ in range(2):
            with pytest.raises(hd.RemoteException) as caught:
                await failed
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
        return True

    assert asyncio.run(main())


def test_many_are_awaited_together(cluster: list[int]) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*[hd.remotecall(abs, cluster[i % 3], -i) for i in range(100)])

    assert asyncio.run(main()) == list(range(100))


def test_awaiting_does_not_block_the_loop(cluster: list[int]) -> None:
    gate = hd.Future(cluster[0])

    async def open_gate() -> None:
        await asyncio.sleep(0.001)
        await asyncio.to_thread(gate.put, "open")

    async def main() -> Any:
        return (await asyncio.gather(gate, open_gate()))[0]

    assert asyncio.run(main()) == "open"


def test_a_cancelled_await_loses_nothing(where: int) -> None:
    future = hd.Future(where)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await future

    asyncio.run(main())
    future.put(6)
    assert future.fetch() == 6


def test_a_cancelled_await_keeps_no_future(where: int) -> None:
    async def main(future: hd.Future) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)

    future = hd.Future(where)
    handle, rrid = weakref.ref(future), hd.remoteref_id(future)
    asyncio.run(main(future))
    del future
    gc.collect()  # a task and its exception refer to each other
    assert handle() is None
    poll_for(lambda: rrid not in hd.live_references(where))


def test_the_value_may_come_after_the_loop_is_gone(where: int) -> None:
    future = hd.Future(where)
    waiting = []

    async def main() -> None:
        waiting.append(asyncio.ensure_future(asyncio.wait_for(future, 60)))
        await asyncio.sleep(0.001)

    asyncio.run(main())
    assert waiting[0].cancelled()
    future.put(1)
    assert future.fetch() == 1
    seen: list[Any] = []
    future.add_done_callback(seen.append)
    poll_for(lambda: seen == [future])


def test_context_is_the_callers_no_more(cluster: list[int]) -> None:
    """What the library keeps in a context variable does not leak into the user's own contexts."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("of the test")
    variable.set(1)

    async def main() -> tuple[int, int]:
        value = await hd.remotecall(who, cluster[0])
        return variable.get(), value

    assert asyncio.run(main()) == (1, cluster[0])
    assert hd.myid() == 1


def test_time_to_sleep_is_shared(cluster: list[int]) -> None:
    """A thousand sleeping coroutines on one process: no thread each, and all of them at once."""
    begin = time.monotonic()
    futures = [hd.remotecall(after, cluster[0], 0.5, i) for i in range(1000)]
    assert [future.fetch() for future in futures] == list(range(1000))
    assert time.monotonic() - begin < 30  # one after the other it would be 500
