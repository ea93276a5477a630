"""A process that stands still for a while (SIGSTOP, a debugger, a swapped-out machine) is not dead.

Inside a node only the operating system tells of deaths, so however long somebody is silent, nothing is concluded from
it: calls to it take longer, everything else goes on.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.patterns import pattern, seed_of
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = pytest.mark.leaks_by_module

STOP_SECONDS = 1.2
"""More than twice the silence limit that these tests set."""

LARGE_BYTES = 2 << 20


@pytest.fixture(scope="module", params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # Less than the workers are going to be silent: it counts between nodes only.
        patch.setenv("HYBRIDDIST_SILENCE_LIMIT", "0.5")
        try:
            yield str(request.param)
        finally:
            hd.shutdown()


@pytest.fixture(scope="module")
def pair(transport: str) -> list[int]:
    return hd.addprocs(2, transport=transport)


@pytest.fixture
def stop() -> Iterator[Callable[[int], Callable[[], None]]]:
    """``stop(pid)`` stops a worker and returns a function that lets it continue; at the end all continue."""
    stopped: list[int] = []

    def stop(pid: int) -> Callable[[], None]:
        ospid = hd.remotecall_fetch(os.getpid, pid)
        os.kill(ospid, signal.SIGSTOP)
        stopped.append(ospid)

        def let_continue() -> None:
            stopped.remove(ospid)  # by the test's end it may have been removed, and its number be another's
            os.kill(ospid, signal.SIGCONT)

        return let_continue

    yield stop
    for ospid in stopped:
        os.kill(ospid, signal.SIGCONT)


class Caller(threading.Thread):
    """Calls a worker until told to stop."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self._step = step
        self._end = False
        self.turns = 0
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._end:
                self._step(self.turns)
                self.turns += 1
        except BaseException as error:
            self.error = error

    def finish(self) -> int:
        self._end = True
        self.join(10)
        assert not self.is_alive(), f"a call still waits after {self.turns} turns"
        if self.error is not None:
            raise self.error
        return self.turns


def small(pid: int, turn: int) -> None:
    assert hd.remotecall_fetch(abs, pid, -turn) == turn


def large(pid: int, turn: int) -> None:
    assert hd.remotecall_fetch(seed_of, pid, pattern(turn, LARGE_BYTES), LARGE_BYTES) == turn
    assert seed_of(hd.remotecall_fetch(pattern, pid, turn, LARGE_BYTES), LARGE_BYTES) == turn


def pipelined(pid: int, turn: int) -> None:
    futures = [hd.remotecall(abs, pid, -index) for index in range(200)]
    assert [future.fetch() for future in futures] == list(range(200))


ended: list[bool] = []
"""On each worker: whether `large_from_here` shall end."""


def large_from_here(pid: int) -> int:
    """On a worker: exchange arrays with another one until `end_it` is called; how many."""
    ended.clear()
    turns = 0
    while not ended:
        large(pid, turns)
        turns += 1
    return turns


def end_it() -> None:
    ended.append(True)


def test_under_load(pair: list[int], stop: Any) -> None:
    """Small and large calls to the stopped one wait, from the driver and from a worker; those to the other go on."""
    victim, other = pair
    there = hd.workers()
    callers = [Caller(lambda turn, step=step: step(victim, turn)) for step in (small, large, pipelined)]  # type: ignore[misc]
    unaffected = Caller(lambda turn: small(other, turn))
    from_other = hd.remotecall(large_from_here, other, victim)
    poll_for(lambda: all(caller.turns > 1 for caller in callers))
    time.sleep(random.uniform(0, 0.05))  # the moment of the fault
    let_continue = stop(victim)
    begin = time.monotonic()
    while time.monotonic() - begin < STOP_SECONDS:  # this is how long the fault lasts
        turns = unaffected.turns
        poll_for(lambda turns=turns: unaffected.turns > turns, timeout=1, what="calls to the other one")  # type: ignore[misc]
        time.sleep(0.05)
    assert all(caller.is_alive() for caller in callers)
    assert hd.workers() == there
    before = [caller.turns for caller in callers]
    let_continue()
    poll_for(lambda: all(caller.turns > was for caller, was in zip(callers, before, strict=True)), timeout=5)
    for caller in [*callers, unaffected]:
        caller.finish()
    hd.remotecall_fetch(end_it, other)
    assert from_other.fetch(timeout=10) > 0
    assert hd.workers() == there


def test_first_contact_with_a_stopped_worker(transport: str, stop: Any) -> None:
    """The connection between two workers is made at their first call; that waits as well."""
    older, younger = pids = hd.addprocs(2, transport=transport)
    for called, calling in (pids, reversed(pids)):
        let_continue = stop(called)
        waiting = hd.remotecall(hd.remotecall_fetch, calling, abs, called, -3)
        assert hd.remotecall_fetch(abs, calling, -4) == 4  # who waits can still be called
        with pytest.raises(TimeoutError):
            waiting.fetch(timeout=0.7)  # this is how long the fault lasts
        let_continue()
        assert waiting.fetch(timeout=5) == 3
    assert {older, younger} <= set(hd.workers())
    hd.rmprocs(pids)


def test_stopped_again_and_again(pair: list[int], stop: Any) -> None:
    """For some milliseconds each, in the midst of everything."""
    victim = pair[0]
    callers = [Caller(lambda turn, step=step: step(victim, turn)) for step in (small, large)]  # type: ignore[misc]
    moments = random.Random(5)
    for _ in range(30):
        let_continue = stop(victim)
        time.sleep(moments.uniform(0, 0.01))  # this is how long the fault lasts
        let_continue()
    assert min(caller.finish() for caller in callers) > 0
    assert victim in hd.workers()


def test_stopped_driver(run_python: ScriptRunner) -> None:
    """Workers wait for it as it waits for them, and leave only when it is gone."""
    result = run_python(
        """
        import os, signal, subprocess, time
        import hybriddist as hd

        ended = False
        calls = 0

        def call(pid):
            "Call until told to end; the longest time that a call took."
            global calls
            longest = 0.0
            while not ended:
                begin = time.monotonic()
                assert hd.remotecall_fetch(abs, pid, -7) == 7
                longest = max(longest, time.monotonic() - begin)
                calls += 1
            return longest

        def has_called():
            return calls > 0

        def end():
            global ended
            ended = True

        pids = hd.addprocs(2)
        futures = [hd.remotecall(call, pid, 1) for pid in pids]
        while not all([hd.remotecall_fetch(has_called, pid) for pid in pids]):
            pass
        subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -STOP {os.getpid()}; sleep 1.2; kill -CONT {os.getpid()}"])
        last, longest = time.monotonic(), 0.0
        while longest < 1.0:  # until it has stood still
            assert [hd.remotecall_fetch(abs, pid, -pid) for pid in pids] == pids
            longest, last = time.monotonic() - last, time.monotonic()
        assert [hd.remotecall_fetch(abs, pid, -pid) for pid in pids * 100] == pids * 100
        for pid in pids:
            hd.remotecall_fetch(end, pid)
        print([future.fetch(timeout=10) > 1.0 for future in futures], hd.workers() == pids)
        """,
        env={"HYBRIDDIST_SILENCE_LIMIT": "0.5"},
    )
    assert (result.stdout, result.stderr) == ("[True, True] True\n", "")
