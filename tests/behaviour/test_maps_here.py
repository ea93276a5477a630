"""Maps in this process: failures, time limits, retries and ends on its threads are what they are on workers."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.supply import Supply
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm"], indirect=True, scope="module"),
]

IMAPS = pytest.mark.parametrize("imap", [hd.imap, hd.imap_unordered])


class Stay:
    """Item 0 stays until it is interrupted, on its first attempts."""

    def __init__(self, attempts: int = 1000) -> None:
        self.attempts = attempts
        self.begun: list[int] = []
        self.left = 0

    def __call__(self, x: int) -> int:
        self.begun.append(x)
        if x or self.begun.count(0) > self.attempts:
            return x
        try:
            while True:
                time.sleep(0.001)
        finally:
            self.left += 1


# ---- time limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
@pytest.mark.parametrize("map_", [hd.pmap, hd.imap, hd.imap_unordered])
def test_an_item_that_takes_too_long_fails_alone(map_: Any, batch_size: Any, cluster: list[int]) -> None:
    item = Stay()
    keywords: dict[str, Any] = {"distributed": False, "item_timeout": 0.2, "batch_size": batch_size}
    results = list(map_(item, range(6), on_error=type, **keywords))
    assert sorted(results, key=str) == sorted([TimeoutError, 1, 2, 3, 4, 5], key=str)
    if map_ is not hd.imap_unordered:
        assert results == [TimeoutError, 1, 2, 3, 4, 5]
    poll_for(lambda: item.left == 1)


def test_it_is_raised_with_its_index(cluster: list[int]) -> None:
    item = Stay()
    with pytest.raises(TimeoutError, match=r"longer than 0\.2 seconds") as caught:
        hd.pmap(item, [3, 0, 3], distributed=False, item_timeout=0.2)
    assert caught.value.index == 1  # type: ignore[attr-defined]


def test_a_retry_has_its_own_time(cluster: list[int]) -> None:
    item = Stay(attempts=2)
    assert hd.pmap(item, range(4), distributed=False, item_timeout=0.2, retry_delays=[0, 0]) == [0, 1, 2, 3]
    assert item.begun.count(0) == 3


def test_it_is_noticed_while_others_end_all_the_time(cluster: list[int]) -> None:
    came = hd.imap_unordered(Stay(), itertools.count(), distributed=False, item_timeout=0.2, on_error=type)
    end = time.monotonic() + 20
    assert next(result for result in came if result is TimeoutError or time.monotonic() > end) is TimeoutError
    came.close()  # type: ignore[attr-defined]


def test_one_that_does_not_react_is_left_alone(cluster: list[int]) -> None:
    lock = threading.Lock()

    def item(x: int) -> int:
        if x % 2:
            with lock:  # in C: an interrupt is heard of when it has it
                pass
        return x

    with lock:  # more of them than there are threads
        results = hd.pmap(item, range(8), distributed=False, item_timeout=0.1, on_error=type)
    assert results == [
        0,
        TimeoutError,
        2,
        TimeoutError,
        4,
        TimeoutError,
        6,
        TimeoutError,
    ]  # more than there are threads


def test_coroutines_have_limits_too(cluster: list[int]) -> None:
    async def item(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    results = hd.pmap(item, [0, 60, 0], distributed=False, item_timeout=0.2, on_error=type)
    assert results == [0, TimeoutError, 0]


def test_without_workers(run_python: ScriptRunner, cluster: list[int]) -> None:
    done = run_python(
        """
        import threading, time
        import hybriddist as hd

        print(hd.pmap(time.sleep, [0, 60, 0], item_timeout=0.2, on_error=type))
        print(list(hd.imap(time.sleep, [0, 60, 0], item_timeout=0.2, on_error=type)))
        """
    )
    assert done.stdout == "[None, <class 'TimeoutError'>, None]\n" * 2, done.stderr


# ---- failures and ends --------------------------------------------------------------------------------------------


def fail_at_one(x: int, item: Callable[[int], int]) -> int:
    if x == 1:
        raise ValueError(x)
    return item(x)


@pytest.mark.parametrize("map_", [hd.pmap, hd.imap, hd.imap_unordered])
def test_a_failure_interrupts_the_others_and_does_not_wait_for_them(map_: Any, cluster: list[int]) -> None:
    item = Stay()
    with pytest.raises(hd.RemoteException) as caught:
        list(map_(fail_at_one, [0, 1, 2], [item] * 3, distributed=False))
    assert caught.value.index == 1  # type: ignore[attr-defined]
    poll_for(lambda: item.left == item.begun.count(0))


@IMAPS
def test_an_early_end_interrupts_what_is_under_way(imap: Any, cluster: list[int]) -> None:
    item = Stay()
    for x in imap(item, itertools.chain([1, 0], itertools.count(2)), distributed=False):
        assert x == 1
        poll_for(lambda: 0 in item.begun)
        break
    poll_for(lambda: item.left == 1)


def test_an_interrupt_that_the_function_raises_is_a_failure_of_its_item(cluster: list[int]) -> None:
    def item(x: int) -> int:
        if x == 1:
            raise KeyboardInterrupt("of its own")
        return x

    assert hd.pmap(item, range(3), distributed=False, on_error=type) == [0, KeyboardInterrupt, 2]


@pytest.mark.parametrize("call", ["pmap", "imap"])
def test_ctrl_c(call: str, run_python: ScriptRunner, cluster: list[int]) -> None:
    """Also while the items are in a blocking call of C."""
    done = run_python(
        """
        import signal, sys, threading, time
        import hybriddist as hd

        def item(x):
            begun.append(x)
            if len(begun) == 2:
                strike.set()
            time.sleep(60)

        def send():
            strike.wait()
            signal.pthread_kill(main, signal.SIGINT)

        begun, strike, main = [], threading.Event(), threading.main_thread().ident
        hd.addprocs(2)
        threading.Thread(target=send).start()
        try:
            list(getattr(hd, sys.argv[1])(item, range(9), distributed=False))
        except KeyboardInterrupt:
            print("struck", len(begun))
        """,
        call,
        timeout=20,
    )
    assert done.stdout == "struck 2\n", done.stderr


# ---- order --------------------------------------------------------------------------------------------------------


def test_results_come_as_they_are_ready(cluster: list[int]) -> None:
    gate = threading.Event()

    def item(x: int) -> int:
        if x == 0:
            gate.wait(20)
        return x

    came = hd.imap_unordered(item, range(5), distributed=False)
    assert sorted(itertools.islice(came, 4)) == [1, 2, 3, 4]
    gate.set()
    assert list(came) == [0]


def test_a_retry_that_is_not_due_holds_nobody_up(cluster: list[int]) -> None:
    others = threading.Semaphore(0)

    def item(x: int) -> int:
        begun.append(x)
        if x == 0 and begun.count(0) == 1:
            raise OSError
        if x == 0:
            assert all(others.acquire(timeout=0) for _ in range(9))
        else:
            others.release()
        return x

    begun: list[int] = []
    assert hd.pmap(item, range(10), distributed=False, retry_delays=[0.5]) == list(range(10))


# ---- input --------------------------------------------------------------------------------------------------------


class Counted:
    """Can be iterated, and counts how often it was."""

    def __init__(self) -> None:
        self.iterated = 0

    def __iter__(self) -> Iterator[int]:
        self.iterated += 1
        return iter(range(3))


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("map_", [hd.pmap, hd.imap])
def test_an_input_is_iterated_once(map_: Any, distributed: bool, cluster: list[int]) -> None:
    items = Counted()
    assert list(map_(abs, items, distributed=distributed)) == [0, 1, 2]
    assert items.iterated == 1


@IMAPS
@pytest.mark.parametrize("distributed", [True, False])
def test_a_range_longer_than_a_length_can_tell(imap: Any, distributed: bool, cluster: list[int]) -> None:
    came = imap(abs, range(2**70), distributed=distributed)
    assert sorted(itertools.islice(came, 3))[0] >= 0


# ---- from a coroutine ---------------------------------------------------------------------------------------------


async def absolute(x: int) -> int:
    return abs(x)


async def map_in_the_way(name: str, distributed: bool) -> Any:
    return list(getattr(hd, name)(absolute, [-1, -2, -3], distributed=distributed))


async def map_beside(distributed: bool) -> Any:
    return await asyncio.to_thread(hd.pmap, absolute, [-1, -2, -3], distributed=distributed)


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("name", ["pmap", "imap"])
def test_a_coroutine_that_maps_coroutines_is_told_what_to_do(name: str, distributed: bool, cluster: list[int]) -> None:
    """They would have to run on the event loop that waits for them."""
    with pytest.raises(hd.RemoteException, match=rf"await asyncio\.to_thread\(hd\.{name}, \.\.\.\)"):
        hd.remotecall(map_in_the_way, cluster[0], name, distributed).fetch(20)
    assert hd.remotecall(map_beside, cluster[0], distributed).fetch(20) == [1, 2, 3]


async def loop_in_the_way() -> Any:
    return hd.distributed(absolute, [-1, -2, -3], reduce=max)


async def loop_awaited() -> Any:
    return (await hd.distributed(absolute, [-1, -2, -3])).isready()


async def loop_beside() -> Any:
    return await asyncio.to_thread(hd.distributed, absolute, [-1, -2, -3], reduce=max)


def test_a_coroutine_with_a_loop_of_coroutines_is_told_what_to_do(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException, match=r"await asyncio\.to_thread\(hd\.distributed, \.\.\.\)"):
        hd.remotecall(loop_in_the_way, cluster[0]).fetch(20)
    assert hd.remotecall(loop_beside, cluster[0]).fetch(20) == 3
    assert hd.remotecall(loop_awaited, cluster[0]).fetch(20) is True


def test_a_retry_that_becomes_due_just_now_is_not_waited_for_for_ever(
    cluster: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is none to be waited for: the time until the next is infinite."""
    monkeypatch.setattr(Supply, "seconds", lambda _: math.inf)
    failures = itertools.count()

    def fail_once(x: int) -> int:
        if next(failures) == 0:
            raise OSError("not ready")
        return x

    assert hd.pmap(fail_once, [7], distributed=False, retry_delays=[0.01], item_timeout=20) == [7]
