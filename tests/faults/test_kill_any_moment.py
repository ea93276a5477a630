"""SIGKILL at a random moment, of a worker or of the driver, whatever is under way.

A worker: what waits for it ends in a value or in `ProcessExitedException`, everything else goes on, and no array is
ever torn. The driver: nothing of it stays, neither processes nor memory nor socket files. The moments come from a
seed, which a failing test shows.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers import leaks
from tests.helpers.patterns import pattern, seed_of
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ROOT

pytestmark = pytest.mark.leaks_by_module

LARGE_BYTES = 8 << 20
END_SECONDS = 3.0
"""From a death until everybody who waits for the dead has heard of it."""

ROUNDS = 3
torn: list[str] = []
"""On each worker: what was wrong with the arrays that came."""


# ---- what the workers do ------------------------------------------------------------------------------------------


def echo(value: Any) -> Any:
    return value


def accept(array: Any) -> int:
    """Check an array that somebody sent here. What is wrong with it is noted: its sender may be dead."""
    try:
        return seed_of(array, LARGE_BYTES)
    except ValueError as error:
        torn.append(str(error))
        raise


def make(seed: int) -> Any:
    return pattern(seed, LARGE_BYTES)


def swap(array: Any) -> Any:
    return pattern(accept(array) + 1, LARGE_BYTES)


def report() -> list[str]:
    return torn


def call_until_gone(pid: int) -> tuple[int, int, int | None]:
    """Send arrays to another worker until it is gone: how many arrived, and the pid and signal in the exception."""
    count = 0
    try:
        while True:
            if accept(hd.remotecall_fetch(swap, pid, make(count))) != count + 1:
                torn.append(f"another array than {count + 1}")
            count += 1
    except hd.ProcessExitedException as error:
        return count, error.pid, error.signal


# ---- what is under way when a worker dies -------------------------------------------------------------------------

Step = Callable[[int, int, int], None]


def small(victim: int, _: int, turn: int) -> None:
    assert hd.remotecall_fetch(echo, victim, turn) == turn


def pipelined(victim: int, _: int, turn: int) -> None:
    futures = [hd.remotecall(echo, victim, (turn, index)) for index in range(50)]
    assert [future.fetch() for future in futures] == [(turn, index) for index in range(50)]


def large_there(victim: int, _: int, turn: int) -> None:
    assert hd.remotecall_fetch(accept, victim, make(turn)) == turn


def large_back(victim: int, _: int, turn: int) -> None:
    assert accept(hd.remotecall_fetch(make, victim, turn)) == turn


def large_both_ways(victim: int, _: int, turn: int) -> None:
    futures = [hd.remotecall(swap, victim, make(turn + index)) for index in range(3)]
    assert [accept(future.fetch()) for future in futures] == [turn + 1, turn + 2, turn + 3]


def from_worker(victim: int, bystander: int, _: int) -> None:
    hd.remotecall_fetch(call_until_gone, victim, bystander)


def to_worker(victim: int, bystander: int, _: int) -> None:
    _, pid, number = hd.remotecall_fetch(call_until_gone, bystander, victim)
    assert (pid, number) == (victim, signal.SIGKILL)
    raise hd.ProcessExitedException(pid, signal=number)  # as the others end


def now_and_then(bystander: int, turn: int) -> None:
    small(bystander, 0, turn)
    time.sleep(0.002)  # leaves the CPUs to the others


class Caller(threading.Thread):
    """Takes one step after the other until one raises."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self._step = step
        self._stopped = False
        self.turns = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopped:
                self._step(self.turns)
                self.turns += 1
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stopped = True
        self.join(END_SECONDS)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module", params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bystander(transport: str) -> Iterator[int]:
    """A worker that nobody kills."""
    try:
        (pid,) = hd.addprocs(1, transport=transport)
        hd.remotecall_fetch(make, pid, 0)
        yield pid
        assert hd.remotecall_fetch(report, pid) == torn == []
    finally:
        hd.shutdown()


@pytest.mark.parametrize(
    "step", [small, pipelined, large_there, large_back, large_both_ways, from_worker, to_worker], ids=lambda s: s.__name__
)
def test_worker_killed(transport: str, bystander: int, step: Step) -> None:
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}")
    victims = hd.addprocs(ROUNDS, transport=transport)
    # They import what they need before that: the moment shall be one of a transfer.
    for future in [hd.remotecall(make, victim, 0) for victim in victims]:
        future.fetch()
    ospids = [hd.remotecall_fetch(os.getpid, victim) for victim in victims]
    unhurt = Caller(lambda turn: now_and_then(bystander, turn))
    unhurt.start()
    try:
        for victim, ospid in zip(victims, ospids, strict=True):
            caller = Caller(lambda turn, victim=victim: step(victim, bystander, turn))  # type: ignore[misc]
            caller.start()
            time.sleep(moments.uniform(0, 0.05))  # the moment of the fault
            os.kill(ospid, signal.SIGKILL)
            caller.join(END_SECONDS)
            assert not caller.is_alive(), f"a call still waits after {caller.turns} turns"
            error = caller.error
            assert isinstance(error, hd.ProcessExitedException), error
            assert (error.pid, error.signal) == (victim, signal.SIGKILL)
            assert victim not in hd.workers()
            turns = unhurt.turns
            large_both_ways(bystander, 0, 0)
            poll_for(lambda turns=turns: unhurt.turns > turns, what="calls to the other worker go on")  # type: ignore[misc]
            poll_for(lambda ospid=ospid: not leaks.segments_of(ospid), what="its shared memory is gone")  # type: ignore[misc]
    finally:
        unhurt.stop()
