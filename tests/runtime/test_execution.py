"""Which thread runs what: a worker's free main thread runs its calls, executor threads the library's chores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

import hybriddist as hd
from hybriddist.runtime import execution
from hybriddist.runtime.current import current
from hybriddist.runtime.process import Process
from tests.helpers.polling import poll_for

BUSY_THREADS = 3


@pytest.fixture(params=["shm", "tcp"])
def pid(request: pytest.FixtureRequest) -> Iterator[int]:
    """A worker of the test's own."""
    try:
        (pid,) = hd.addprocs(1, transport=request.param)
        yield pid
    finally:
        hd.shutdown()


def thread_name() -> str:
    return threading.current_thread().name


def test_a_free_main_thread_runs_the_calls(pid: int) -> None:
    """Also while executor threads look for work all the time. Signals reach no other thread."""

    def keep_executor_threads_busy() -> None:
        executor = current().executor

        def chore() -> None:
            time.sleep(0.0001)
            executor.submit(partial(chore))  # an object each: as long as one heads the queue, threads are added

        for _ in range(BUSY_THREADS):
            executor.submit(partial(chore))

    hd.remotecall_wait(keep_executor_threads_busy, pid)
    ran_on = {hd.remotecall_fetch(thread_name, pid) for _ in range(1000)}
    assert ran_on == {"MainThread"}


def test_chores_do_not_hold_up_the_main_thread(pid: int) -> None:
    """Nor wait for it: it blocks in `poll`, and there is no executor thread yet."""

    def submit_one_that_blocks() -> None:
        process = current()
        process.ended = threading.Event()  # type: ignore[attr-defined]
        threading.Timer(0.1, lambda: process.executor.submit(process.ended.wait)).start()  # type: ignore[attr-defined]

    def executor_threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "hybriddist-executor"]

    hd.remotecall_wait(submit_one_that_blocks, pid)
    poll_for(lambda: hd.remotecall_fetch(executor_threads, pid))
    assert hd.remotecall_fetch(thread_name, pid) == "MainThread"
    hd.remotecall_fetch(lambda: current().ended.set(), pid)  # type: ignore[attr-defined]


def test_calls_and_chores_go_on_while_the_main_thread_is_blocked(pid: int) -> None:
    def submit_from_within() -> tuple[str, str]:
        done: list[str] = []
        current().executor.submit(lambda: done.append(thread_name()))
        while not done:
            time.sleep(0)
        return thread_name(), done[0]

    blocked = hd.remotecall(time.sleep, pid, 60)
    assert hd.remotecall_fetch(submit_from_within, pid) == ("hybriddist-executor", "hybriddist-executor")
    assert not hd.isready(blocked)


def test_a_signal_in_the_middle_of_a_strike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler, on the same thread, strikes as well: it must not wait for what it has interrupted."""
    executor = Process(1).executor
    executor._interruptible[1] = (None, 0, 0, 0)  # no thread has this number
    struck: list[str] = []

    def interrupted() -> dict[int, object]:
        struck.append("a strike")
        if len(struck) == 1:
            executor.interrupt_threads()
        return {}

    monkeypatch.setattr(execution, "_current_frames", interrupted)
    striking = threading.Thread(target=executor.interrupt_threads, daemon=True)
    striking.start()
    striking.join(10)
    assert not striking.is_alive()
    assert len(struck) == 2
