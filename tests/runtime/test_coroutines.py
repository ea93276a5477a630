"""The event loop of a process: started when needed, ended without leaving anything."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from hybriddist.deadline import Deadline
from hybriddist.runtime.coroutines import Coroutines, Running, Tasks
from tests.helpers.polling import poll_for


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def coroutines() -> Iterator[Coroutines]:
    made = Coroutines(spawn)
    yield made
    made.close()


def result(running: Running) -> Any:
    assert running.end.wait(Deadline(10))
    if running.end.outcome:
        raise running.end.content
    return running.end.content


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
    assert [result(end) for end in ends] == list(range(100))


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
        result(coroutines.start(leave()))

    async def set_it() -> None:
        event.set()

    coroutines.run(set_it())
    assert result(waiting) == 5


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
    with pytest.raises(CancelledError):
        result(under_way)
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


class Stubborn:
    """A coroutine that goes on when it is cancelled, until it is let go."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.leave = False

    async def __call__(self) -> str:
        while not self.leave:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                self.cancelled += 1
        return "left"


def test_what_is_cancelled_ends_when_it_has_cleaned_up(coroutines: Coroutines) -> None:
    stubborn = Stubborn()
    running = coroutines.start(stubborn())
    coroutines.run(give(1))  # it has begun
    running.cancel()
    poll_for(lambda: stubborn.cancelled)
    assert not running.end.done
    stubborn.leave = True
    assert result(running) == "left"
    running.cancel()
    assert result(running) == "left"


def test_nobody_waits_for_what_ignores_the_end_of_its_process(coroutines: Coroutines) -> None:
    running = coroutines.start(Stubborn()())
    coroutines.close()
    with pytest.raises(CancelledError):
        result(running)


def test_one_that_has_not_begun_never_does(coroutines: Coroutines) -> None:
    begun: list[int] = []

    async def begin() -> None:
        begun.append(1)

    async def hold_the_loop() -> None:
        running.append(coroutines.start(begin()))
        running[0].cancel()

    running: list[Running] = []
    coroutines.run(hold_the_loop())
    with pytest.raises(CancelledError):
        result(running[0])
    assert not begun


def test_run_that_is_interrupted_cancels(coroutines: Coroutines, monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hybriddist.runtime.completion.Completion.wait", strike)
        with pytest.raises(KeyboardInterrupt):
            coroutines.run(asyncio.sleep(60))
    poll_for(lambda: not coroutines._under_way)


def test_all_are_interrupted(coroutines: Coroutines) -> None:
    under_way = [coroutines.start(asyncio.sleep(60)) for _ in range(5)]
    coroutines.interrupt_all()
    for running in under_way:
        with pytest.raises(KeyboardInterrupt):
            result(running)


# ---- whose they are -------------------------------------------------------------------------------------------------


def test_a_cancel_that_comes_first_cancels_what_is_added_later(coroutines: Coroutines) -> None:
    tasks = Tasks()
    assert not tasks.cancel(7)
    other, unwanted = (coroutines.start(asyncio.sleep(60)) for _ in range(2))
    tasks.add(8, other)
    tasks.add(7, unwanted)
    with pytest.raises(CancelledError):
        result(unwanted)
    assert not other.end.done
    assert tasks.cancel(8)
    with pytest.raises(CancelledError):
        result(other)
    assert not tasks.cancel(8)  # it has ended


@pytest.mark.parametrize("gone_first", [False, True])
def test_what_is_kept_outlives_its_asker(gone_first: bool, coroutines: Coroutines) -> None:
    tasks = Tasks()
    kept, unkept = (coroutines.start(asyncio.sleep(60), kept=keep) for keep in (True, False))
    if gone_first:
        tasks.asker_gone()
    tasks.add(1, kept)
    tasks.add(2, unkept)
    if not gone_first:
        tasks.asker_gone()
    with pytest.raises(CancelledError):
        result(unkept)
    coroutines.run(give(1))
    assert not kept.end.done
    assert tasks.cancel(1)
    with pytest.raises(CancelledError):
        result(kept)
