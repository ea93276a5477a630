"""pmap with batches of adapting size: many items in one call, each with its own end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from hybriddist.batches import BUDGET_SECONDS, Packed, run_batch
from hybriddist.runtime.asking import LOST
from hybriddist.runtime.context import this_process
from hybriddist.testing.clusters import memory_cluster

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


class Fragile:
    """Can be pickled, and unpickled only if it is good."""

    def __init__(self, good: bool) -> None:
        self.good = good

    def __reduce__(self) -> Any:
        return _revive, (self.good,)


def _revive(good: bool) -> Fragile:
    if not good:
        raise ValueError("this one does not come back")
    return Fragile(good)


def test_many_items_of_several_kinds(cluster: list[int]) -> None:
    kinds: list[Any] = [1, 2.5, None, "text", b"bytes", (1, 2), [3, 4], {"a": 1}, {5, 6}, range(3), True]
    items = kinds * 300
    assert hd.pmap(lambda x: x, items, batch_size="auto") == items


def test_arrays_among_other_results(cluster: list[int]) -> None:
    results = hd.pmap(lambda n: np.full(n, n) if n % 2 else n, range(200), batch_size="auto")
    for n, result in enumerate(results):
        if n % 2:
            assert result.flags.writeable
            np.testing.assert_array_equal(result, np.full(n, n))
        else:
            assert result == n


def test_results_with_references(cluster: list[int]) -> None:
    futures = hd.pmap(lambda x: hd.remotecall(pow, hd.myid(), x, 2), range(50), batch_size="auto")
    assert [future.fetch() for future in futures] == [x * x for x in range(50)]


def test_few_calls_for_many_items(cluster: list[int]) -> None:
    """It would be thousands, one by one."""
    before = time.perf_counter()
    assert hd.pmap(lambda x: x, range(20_000), batch_size="auto") == list(range(20_000))
    batches = set(hd.pmap(_which_call, range(20_000), batch_size="auto"))
    assert len(batches) < 500, time.perf_counter() - before


def _which_call(_: int) -> int:
    """The identity of the list that this call's items are in: the frame of `run_batch` has it."""
    import sys

    frame = sys._getframe(1)
    return hash((os.getpid(), hd.myid(), id(frame), frame.f_locals["end"]))


def test_each_item_has_its_own_end(cluster: list[int]) -> None:
    def f(x: int) -> Any:
        if x % 5 == 1:
            raise ValueError(x)
        if x % 5 == 2:
            return lambda: None  # goes by value
        if x % 5 == 3:
            return (i for i in range(3))
        return x

    results = hd.pmap(f, range(100), batch_size="auto", on_error=lambda error: type(error).__name__)
    for x, result in enumerate(results):
        if x % 5 == 1:
            assert result == "ValueError"
        elif x % 5 == 2:
            assert result() is None
        elif x % 5 == 3:
            assert result == "SerializeError"
        else:
            assert result == x


def test_a_result_that_does_not_come_back_takes_no_other_along(cluster: list[int]) -> None:
    results = hd.pmap(
        lambda x: Fragile(x != 7), range(20), batch_size="auto", on_error=lambda error: type(error).__name__
    )
    assert [x for x, result in enumerate(results) if result == "DeserializeError"] == [7]
    assert all(result.good for x, result in enumerate(results) if x != 7)


def test_several_iterables(cluster: list[int]) -> None:
    assert hd.pmap(pow, range(100), range(100), batch_size="auto") == [x**x for x in range(100)]


def test_a_tuple_is_one_argument(cluster: list[int]) -> None:
    items = [(x, x) for x in range(50)]
    assert hd.pmap(sum, items, batch_size="auto") == [2 * x for x in range(50)]


def test_retries_go_item_by_item(cluster: list[int], tmp_path: Path) -> None:
    def once(x: int) -> int:
        mark = tmp_path / str(x)
        if x % 10 == 0 and not mark.exists():
            mark.touch()
            raise OSError(x)
        return x

    assert hd.pmap(once, range(100), batch_size="auto", retry_delays=[0.0]) == list(range(100))
    assert len(list(tmp_path.iterdir())) == 10


def test_from_a_worker(cluster: list[int]) -> None:
    def inner() -> Any:
        return hd.pmap(lambda x: x + 1, range(5000), batch_size="auto")

    assert hd.remotecall_fetch(inner, cluster[0]) == list(range(1, 5001))


def test_a_batch_ends_when_its_time_is_over(cluster: list[int]) -> None:
    """It was made of quick ones, and these are not."""
    report = run_batch(time.sleep, [BUDGET_SECONDS / 3] * 100, several=False)
    assert 1 <= len(report.values) <= 4  # a sleep may last longer than it should, on a busy machine
    assert not report.errors


def test_a_batch_ends_when_its_results_are_large(cluster: list[int]) -> None:
    report = run_batch(bytes, [10 << 20] * 100, several=False)
    assert len(report.values) <= 3


def test_what_may_not_come_back_is_pickled_by_itself(cluster: list[int]) -> None:
    report = run_batch(lambda x: x, [1, "a", Fragile(False), [1, 2], [Fragile(True)]], several=False)
    assert [type(value) is Packed for value in report.values] == [False, False, True, False, True]
    assert report.packed == [2, 4]


def test_items_that_wait_go_to_all_of_many_workers(transport: str) -> None:
    """A map begins with a few of them, since tiny items are done before the others are awake."""
    if transport != "memory":
        pytest.skip("which workers a map asks does not depend on how they are reached")

    def wait_a_little(_: int) -> int:
        time.sleep(0.02)
        return hd.myid()

    with memory_cluster(12) as inside:
        assert set(hd.pmap(wait_a_little, range(200), batch_size="auto")) == set(inside.pids)


def _interrupting(x: int) -> int:
    if x % 1000 == 500:
        raise KeyboardInterrupt("of its own")
    return x


def test_an_interrupt_that_an_item_raises_is_that_items_alone(cluster: list[int]) -> None:
    result = hd.pmap(_interrupting, range(5000), batch_size="auto", on_error=type)
    assert result == [KeyboardInterrupt if x % 1000 == 500 else x for x in range(5000)]


def test_an_interrupt_ends_its_batch_and_spares_what_has_ended_and_what_has_not_begun(cluster: list[int]) -> None:
    report = run_batch(_interrupting, [1, 2, 500, 4], several=False)
    assert report.values == [1, 2, None]
    assert list(report.errors) == [2]


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_a_worker_found_gone_twice_has_its_items_run_once(
    cluster: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: Any
) -> None:
    """By the thread that sends to it, and by the one that buries its connection."""
    process = this_process()
    start_each = process.start_each
    refused: list[int] = []

    def refuse_once(f: Any, peer: Any, items: Any, units: Any, flags: int) -> None:
        if peer.pid in refused:
            start_each(f, peer, items, units, flags)
            return
        refused.append(peer.pid)
        for unit in units:
            unit.complete(LOST, hd.ProcessExitedException(peer.pid, "connection lost"))
        raise hd.ProcessExitedException(peer.pid, "connection lost")

    monkeypatch.setattr(process, "start_each", refuse_once)

    def note(x: int) -> int:
        with (tmp_path / "runs").open("a") as file:
            file.write(f"{x}\n")
        return x

    assert hd.pmap(note, range(40), batch_size=batch_size) == list(range(40))
    assert refused
    assert sorted(map(int, (tmp_path / "runs").read_text().split())) == list(range(40))
