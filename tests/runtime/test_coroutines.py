"""The event loop of a process: started when needed, ended without leaving anything."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from hybriddist.runtime.coroutines import Coroutines


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def coroutines() -> Iterator[Coroutines]:
    made = Coroutines(spawn)
    yield made
    made.close()


async def give(value: int) -> int:
    await asyncio.sleep(0)
    return value


def test_nothing_is_started_before_the_first_coroutine() -> None:
    threads = threading.active_count()
    made = Coroutines(spawn)
    made.close()
    assert threading.active_count() == threads


def test_one_thread_for_all(coroutines: Coroutines) -> None:
    threads = threading.active_count()
    ends = [coroutines.start(give(i)) for i in range(100)]
    assert threading.active_count() == threads + 1
    assert [end.result(10) for end in ends] == list(range(100))


def test_an_exit_ends_its_own_coroutine_only(coroutines: Coroutines) -> None:
    async def leave() -> None:
        sys.exit(3)

    async def wait(event: asyncio.Event) -> int:
        await event.wait()
        return 5

    async def make() -> asyncio.Event:
        return asyncio.Event()

    event = coroutines.run(make())
    waiting = coroutines.start(wait(event))
    with pytest.raises(SystemExit):
        coroutines.start(leave()).result(10)

    async def set_it() -> None:
        event.set()

    coroutines.run(set_it())
    assert waiting.result(10) == 5


def test_a_coroutine_cannot_wait_for_its_own_loop(coroutines: Coroutines) -> None:
    async def block() -> int:
        return coroutines.run(give(1))  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="await"):
        coroutines.run(block())


def test_close_cancels_what_is_under_way(coroutines: Coroutines) -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    under_way = coroutines.start(forever())
    coroutines.run(give(1))
    coroutines.close()
    assert under_way.cancelled()
    assert ended == ["cancelled"]


def test_a_loop_that_cannot_be_made(coroutines: Coroutines, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(asyncio, "new_event_loop", fail)
    with pytest.raises(OSError, match="too many open files"):
        coroutines.loop()
    monkeypatch.undo()
    assert coroutines.run(give(3)) == 3


def test_several_who_ask_first_at_the_same_time(coroutines: Coroutines) -> None:
    barrier = threading.Barrier(8)
    loops: list[asyncio.AbstractEventLoop] = []

    def ask() -> None:
        barrier.wait(10)
        loops.append(coroutines.loop())

    threads = [spawn(ask, "asks") for _ in range(8)]
    for thread in threads:
        thread.join(10)
    assert len(loops) == 8
    assert len(set(loops)) == 1


def test_the_loop_and_its_thread(coroutines: Coroutines) -> None:
    loop = coroutines.loop()
    assert coroutines.loop() is loop
    assert not coroutines.is_own_thread()

    async def where() -> tuple[bool, bool]:
        return asyncio.get_running_loop() is loop, coroutines.is_own_thread()

    assert coroutines.run(where()) == (True, True)
