"""Everybody calls everybody at once, with small and large arguments: nothing is lost, torn, or late.

What is looked for above all is the lost wake-up: a message is there, and whoever should take it sleeps. It shows as a
call that takes a second and more, where the others take microseconds. Sleeps inside the called functions are load:
they move the moments at which everybody goes to sleep and wakes up.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.patterns import pattern, seed_of

pytestmark = pytest.mark.leaks_by_module

SECONDS = 2.0
STALL_SECONDS = 3.0
"""No call takes so long. The longest that the functions here sleep is 2 ms; but other tests run beside this one: with
five busy processes on two CPUs one call in a thousand took 1.1 s."""

SIZES = [8, 1 << 10, 12 << 10, 20 << 10, 200 << 10, 300 << 10, 2 << 20]
"""In bytes: on both sides of what travels inside a message, of what fills a ring, of what has a segment of its own."""


@pytest.fixture(scope="module", params=["shm", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    try:
        yield hd.addprocs(2, transport=request.param)
    finally:
        hd.shutdown()


def answer(array: Any, size: int, answer_size: int, pause: float) -> Any:
    """Check what came, take some time, and give something that can be checked."""
    seed = seed_of(array, size)
    if pause:
        time.sleep(pause)
    return pattern(seed + 1, answer_size)


class Slow(Exception):
    """A call took too long."""


def call_once(pid: int, choices: random.Random) -> float:
    """One call of a kind that chance decides; the seconds it took."""
    seed = choices.randrange(2**40)
    # Small ones mostly, or the copying is all that happens.
    size, answer_size = (choices.choice(SIZES[: choices.choice([2, 2, 2, 4, 7])]) for _ in range(2))
    pause = choices.choice([0.0, 0.0, choices.uniform(0, 100e-6), choices.uniform(0, 2e-3)])
    array = pattern(seed, size)
    begin = time.monotonic()
    if choices.random() < 0.7:
        result = hd.remotecall_fetch(answer, pid, array, size, answer_size, pause)
    else:
        result = hd.remotecall(answer, pid, array, size, answer_size, pause).fetch()
    took = time.monotonic() - begin
    if seed_of(result, answer_size) != seed + 1:
        raise ValueError(f"the answer to another call: {seed_of(result, answer_size)} instead of {seed + 1}")
    return took


def hammer(pid: int, seed: int, seconds: float, idle: float = 0.0) -> int:
    """Call ``pid`` for so long; how often.

    Raises:
        Slow: a call took a second or more.
    """
    choices = random.Random(seed)
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        took = call_once(pid, choices)
        count += 1
        if took > STALL_SECONDS:
            raise Slow(f"call {count} to {pid} with seed {seed} took {took:.1f} s")
        if idle:
            time.sleep(choices.uniform(0, idle))
    return count


def in_threads(functions: list[Callable[[], int]]) -> list[int]:
    """What they return, all called at once; the first exception, if there is one."""
    ends: list[Any] = [None] * len(functions)

    def run(index: int) -> None:
        try:
            ends[index] = functions[index]()
        except BaseException as error:
            ends[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 10)
    stuck = [str(index) for index, thread in enumerate(threads) if thread.is_alive()]
    assert not stuck, f"still calling: threads {', '.join(stuck)}"
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends


@pytest.fixture
def seed() -> int:
    """Another one for each run; printed, so that a failing test shows it."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return seed


def test_everybody_calls_everybody(pair: list[int], seed: int) -> None:
    """Two threads of the driver, and both workers each other."""
    a, b = pair
    futures = [hd.remotecall(hammer, a, b, seed, SECONDS), hd.remotecall(hammer, b, a, seed + 1, SECONDS)]
    counts = in_threads([lambda: hammer(a, seed + 2, SECONDS), lambda: hammer(b, seed + 3, SECONDS)])
    counts += [future.fetch(timeout=SECONDS + 10) for future in futures]
    assert min(counts) > 10, counts


def test_calls_into_the_driver(pair: list[int], seed: int) -> None:
    a, b = pair
    futures = [hd.remotecall(hammer, pid, 1, seed + pid, SECONDS / 2) for pid in pair]
    counts = in_threads([lambda: hammer(a, seed, SECONDS / 2), lambda: hammer(b, seed + 1, SECONDS / 2)])
    counts += [future.fetch(timeout=SECONDS + 10) for future in futures]
    assert min(counts) > 10, counts


@pytest.mark.parametrize("idle", [200e-6, 5e-3], ids=["now and then asleep", "mostly asleep"])
def test_everybody_goes_to_sleep_all_the_time(pair: list[int], seed: int, idle: float) -> None:
    """Between two calls there is a pause of any length: up to spinning's end, and far beyond."""
    a, b = pair
    future = hd.remotecall(hammer, a, b, seed, SECONDS, idle)
    assert hammer(b, seed + 1, SECONDS, idle) > 10
    assert future.fetch(timeout=SECONDS + 10) > 10


def test_many_threads_call_one_worker(pair: list[int], seed: int) -> None:
    pid = pair[0]
    counts = in_threads([lambda k=k: hammer(pid, seed + k, 1.0, 1e-3) for k in range(8)])  # type: ignore[misc]
    assert min(counts) > 2, counts


def test_many_calls_under_way(pair: list[int], seed: int) -> None:
    """Small and large ones, sent without waiting, answered in any order: each gets its own answer."""
    choices = random.Random(seed)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        sent = []
        for _ in range(100):
            own, size, answer_size = choices.randrange(2**40), *choices.choices(SIZES[:5], k=2)
            sent.append(
                (
                    own,
                    answer_size,
                    hd.remotecall(answer, choices.choice(pair), pattern(own, size), size, answer_size, 0.0),
                )
            )
        for own, answer_size, future in sent:
            assert seed_of(future.fetch(timeout=10), answer_size) == own + 1
