"""What goes wrong at the edges of a call: while something is pickled, unpickled, or dies. One table.

Each crime has exactly one end, whichever way the call was made; whoever did not die of it is there afterwards.
"""

from __future__ import annotations

import operator
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers import crimes
from tests.helpers.crimes import Bomb, LastWords
from tests.helpers.polling import poll_for
from tests.helpers.printed import Printed

pytestmark = pytest.mark.leaks_by_module

DEATHS = {"exit": (crimes.EXIT_CODE, None), "kill": (None, signal.SIGKILL)}
"""Deeds that end the process: exit code and signal."""

FAILURES = ["fail", "leave"]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    try:
        yield
    finally:
        hd.shutdown()


@pytest.fixture
def pids() -> list[int]:
    """Two workers; who died in the test before is replaced."""
    missing = 2 - (hd.nprocs() - 1)
    hd.addprocs(missing)
    return hd.workers()


def by_fetch(f: Any, pid: int, argument: Any) -> Any:
    return hd.remotecall_fetch(f, pid, argument)


def by_call(f: Any, pid: int, argument: Any) -> Any:
    return hd.remotecall(f, pid, argument).fetch(timeout=10)


def by_pmap(f: Any, _: int, argument: Any) -> Any:
    return hd.pmap(f, [argument])[0]


def by_loop(f: Any, pid: int, argument: Any) -> Any:
    return hd.distributed(f, [argument], reduce=operator.add, procs=[pid])


Way = Callable[[Any, int, Any], Any]
WAYS = [by_fetch, by_call, by_pmap, by_loop]


def causes(error: BaseException) -> list[type[BaseException]]:
    """The types of an exception and of what it came of."""
    found = []
    following: BaseException | None = error
    while following is not None:
        found.append(type(following))
        following = following.__cause__
    return found


STAGES: dict[str, tuple[Any, Callable[[str], Any], list[type[BaseException]]]] = {
    # stage: the function, its argument for a deed, and what a failure looks like to the caller
    "unpickling the argument": (
        crimes.take,
        lambda deed: Bomb("unpickle", deed),
        [hd.RemoteException, hd.DeserializeError],
    ),
    "running": (crimes.run, lambda deed: ("run", deed), [hd.RemoteException]),
    "pickling the result": (crimes.give, lambda deed: ("pickle", deed), [hd.RemoteException, hd.SerializeError]),
    "pickling the exception": (crimes.fail, lambda deed: ("pickle", deed), [hd.RemoteException]),
}
"""What happens on the worker."""


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("deed", FAILURES)
def test_failure_on_the_worker(pids: list[int], stage: str, deed: str, way: Way) -> None:
    function, argument, kinds = STAGES[stage]
    with pytest.raises(hd.RemoteException) as caught:
        way(function, pids[0], argument(deed))
    assert causes(caught.value)[: len(kinds)] == kinds
    expected = "guilty" if stage == "pickling the exception" else "to be expected" if deed == "fail" else "SystemExit"
    assert expected in str(caught.value)
    check_all_there(pids)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("deed", DEATHS)
def test_death_of_the_worker(pids: list[int], stage: str, deed: str, way: Way) -> None:
    function, argument, _ = STAGES[stage]
    with pytest.raises(hd.ProcessExitedException) as caught:
        way(function, pids[0], argument(deed))
    check_death(pids, caught.value, deed)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("deed", FAILURES)
def test_failure_of_pickling_the_argument(pids: list[int], deed: str, way: Way) -> None:
    """Here, before anything is sent."""
    with pytest.raises(hd.SerializeError):
        way(crimes.take, pids[0], Bomb("pickle", deed))
    with pytest.raises(hd.SerializeError):
        hd.remote_do(crimes.take, pids[0], Bomb("pickle", deed))
    check_all_there(pids)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("deed", FAILURES)
def test_failure_of_unpickling_the_result(pids: list[int], deed: str, way: Way) -> None:
    with pytest.raises(hd.DeserializeError):
        way(crimes.give, pids[0], ("unpickle", deed))
    check_all_there(pids)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("deed", FAILURES)
def test_failure_of_unpickling_the_exception(pids: list[int], deed: str, way: Way) -> None:
    """It arrives all the same, as what can be told of it."""
    with pytest.raises(hd.RemoteException, match="guilty"):
        way(crimes.fail, pids[0], ("unpickle", deed))
    check_all_there(pids)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("function", [crimes.take, crimes.collect], ids=["with the call", "by the collector"])
@pytest.mark.parametrize("deed", FAILURES)
def test_failure_of_a_finaliser(pids: list[int], deed: str, function: Any, way: Way) -> None:
    """Python shows it on the worker's stderr, and it is nobody's failure."""
    with Printed() as printed:
        assert way(function, pids[0], LastWords(deed)) == "taken"
        printed.wait_for("to be expected" if deed == "fail" else "SystemExit: 3", "err")
    check_all_there(pids)


@pytest.mark.parametrize("deed", DEATHS)
def test_death_by_the_collector(pids: list[int], deed: str) -> None:
    with pytest.raises(hd.ProcessExitedException) as caught:
        hd.remotecall_fetch(crimes.collect, pids[0], LastWords(deed))
    check_death(pids, caught.value, deed)


@pytest.mark.parametrize("deed", DEATHS)
def test_death_by_a_finaliser_of_a_stored_value(pids: list[int], deed: str) -> None:
    """The value goes with its last reference, long after the call."""
    future = hd.remotecall(LastWords, pids[0], deed, 1)
    future.wait()
    waiting = hd.remotecall(poll_for, pids[0], bool, timeout=10)
    del future
    with pytest.raises(hd.ProcessExitedException) as caught:
        waiting.fetch(timeout=5)
    check_death(pids, caught.value, deed)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("deed", [*FAILURES, *DEATHS])
def test_remote_do(pids: list[int], stage: str, deed: str) -> None:
    """Nobody waits for its end, and its result goes nowhere; a death is noticed all the same."""
    function, argument, _ = STAGES[stage]
    if stage.startswith("pickling") or deed in FAILURES:
        with Printed() as printed:
            hd.remote_do(function, pids[0], argument(deed))
            check_all_there(pids)
            if stage != "pickling the result":
                printed.wait_for(f"remote_do on process {pids[0]} failed:\n", "err")
        return
    hd.remote_do(function, pids[0], argument(deed))
    with pytest.raises(hd.ProcessExitedException) as caught:
        hd.remotecall_fetch(poll_for, pids[0], bool)
    check_death(pids, caught.value, deed)


def check_all_there(pids: list[int]) -> None:
    """The workers are there, on the connections that they had."""
    assert [hd.remotecall_fetch(abs, pid, -pid) for pid in pids] == pids
    assert hd.workers() == pids


def check_death(pids: list[int], error: hd.ProcessExitedException, deed: str) -> None:
    """The exception tells who died how; the other one goes on."""
    assert error.pid in pids
    assert (error.exitcode, error.signal) == DEATHS[deed]
    left = [pid for pid in pids if pid != error.pid]
    poll_for(lambda: hd.workers() == left)
    assert hd.remotecall_fetch(abs, left[0], -3) == 3
