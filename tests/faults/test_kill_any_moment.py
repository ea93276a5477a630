"""SIGKILL at a random moment, of a worker or of the driver, whatever is under way.

A worker: what waits for it ends in a value or in `ProcessExitedException`, everything else goes on, and no array is
ever torn. The driver: nothing of it stays, neither processes nor memory nor socket files. The moments come from a
seed, which a failing test shows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
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
    """The bystander may be the younger or the older of the two: only one of them makes the connection."""
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
    "step",
    [small, pipelined, large_there, large_back, large_both_ways, from_worker, to_worker],
    ids=lambda step: step.__name__,
)
def test_worker_killed(transport: str, bystander: int, step: Step) -> None:
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}")
    *victims, younger = hd.addprocs(ROUNDS + 1, transport=transport)
    # They import what they need before that: the moment shall be one of a transfer.
    for future in [hd.remotecall(make, pid, 0) for pid in [*victims, younger]]:
        future.fetch()
    ospids = [hd.remotecall_fetch(os.getpid, victim) for victim in victims]
    unhurt = Caller(lambda turn: now_and_then(bystander, turn))
    unhurt.start()
    try:
        for victim, ospid, other in zip(victims, ospids, itertools.cycle([bystander, younger])):
            caller = Caller(lambda turn, victim=victim, other=other: step(victim, other, turn))  # type: ignore[misc]
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
        assert hd.remotecall_fetch(report, younger) == []
    finally:
        unhurt.stop()
        hd.rmprocs(younger)


# ---- the driver ---------------------------------------------------------------------------------------------------

DRIVER = """
    import sys, time
    import hybriddist as hd
    from tests.helpers.patterns import pattern, seed_of

    phase = sys.argv[1]

    def make(seed): return pattern(seed, 8 << 20)
    def nap(_): time.sleep(0.001)
    def stuck(): sum(range(10**12))  # holds the interpreter's lock
    def nest(pid):
        import hybriddist as hd
        while True: hd.remotecall_fetch(abs, pid, -1)

    if phase == "addprocs":
        print("now", flush=True)
        while True:
            hd.rmprocs(hd.addprocs(2))
    a, b = hd.addprocs(2)
    if phase == "busy workers":
        hd.remotecall(stuck, a)
        hd.remotecall(nest, b, 1)
    else:
        hd.remotecall_fetch(make, a, 0)
    print("now", flush=True)
    while True:
        if phase == "arrays":
            seed_of(hd.remotecall_fetch(make, a, 1), 8 << 20)
            hd.remotecall_fetch(seed_of, b, make(2), 8 << 20)
        elif phase == "pmap":
            hd.pmap(nap, range(1000))
        elif phase == "calls":
            hd.remotecall_fetch(abs, a, -1)
        else:
            time.sleep(1)
"""

PHASES = ["addprocs", "calls", "arrays", "pmap", "busy workers"]
GONE_SECONDS = 5.0
"""From the driver's death until nothing of it is left."""

DRIVERS = 2


class Driver:
    """A driver in a process of its own, with a mark on all its descendants, and a folder for its socket files."""

    def __init__(self, folder: Path, phase: str) -> None:
        self.mark = f"{os.getpid()}-{random.SystemRandom().randrange(2**64):x}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(DRIVER), phase],
            env={**os.environ, leaks.RUN_VARIABLE: self.mark, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ospids = {self._process.pid}

    def started(self) -> None:
        """Wait until what it shall be killed at is under way."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "now\n"

    def look(self) -> dict[int, str]:
        """Its processes that there are now."""
        found = leaks.orphans(self.mark)
        self.ospids.update(found)
        return found

    def kill(self) -> None:
        self.look()
        self._process.kill()
        self._process.wait()

    def kill_everything(self) -> None:
        """All its processes at a stroke: none sees another one die."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            # The second look finds those that were forked after the first.
            for ospid in [*self.look(), *self.look()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(ospid, number)
        self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


Start = Callable[[str], Driver]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For socket files: their paths must be short, so it is not in the tests' own."""
    with tempfile.TemporaryDirectory(prefix="hdf-") as path:
        yield Path(path)


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """``start(phase)``: a driver, ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(phase: str) -> Driver:
            driver = Driver(folder, phase)
            stack.callback(driver.close)
            return driver

        yield start


@pytest.mark.parametrize("phase", PHASES)
def test_driver_killed(folder: Path, start: Start, phase: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}")
    drivers = [start(phase) for _ in range(DRIVERS)]
    for driver in drivers:
        driver.started()
        time.sleep(moments.uniform(0, 0.2))  # the moment of the fault
        driver.kill()
    for driver in drivers:
        poll_for(lambda driver=driver: not driver.look(), timeout=GONE_SECONDS, what="processes")  # type: ignore[misc]
        names = leaks.segments_of(*driver.ospids)
        assert not names
    assert not os.listdir(folder)


@pytest.mark.parametrize("phase", ["addprocs", "arrays"])
def test_everything_killed_at_a_stroke(folder: Path, start: Start, phase: str) -> None:
    """Then nobody is left to tidy up, and the next driver does."""
    driver = start(phase)
    driver.started()
    time.sleep(random.uniform(0, 0.1))  # the moment of the fault
    driver.kill_everything()
    poll_for(lambda: not driver.look(), timeout=GONE_SECONDS, what="processes")
    following = start("calls")
    following.started()
    assert not leaks.segments_of(*driver.ospids)
    assert len(os.listdir(folder)) == 1, "its own"
