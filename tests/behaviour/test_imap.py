"""imap and imap_unordered: maps over input that need not end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.maps import LOOK_AHEAD
from tests.helpers.polling import poll_for

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

BOTH = pytest.mark.parametrize("imap", [hd.imap, hd.imap_unordered])
BATCHES = pytest.mark.parametrize("batch_size", [1, 3, "auto"])


class Counting:
    """Counts, and how far it was read."""

    def __init__(self) -> None:
        self.read = 0
        self.thread = 0

    def __iter__(self) -> Iterator[int]:
        for i in itertools.count():
            self.read = i + 1
            self.thread = threading.get_ident()
            yield i


@BOTH
@BATCHES
def test_all_results(imap: Any, batch_size: Any, cluster: list[int]) -> None:
    results = list(imap(lambda x: x * x, range(1000), batch_size=batch_size))
    assert (results if imap is hd.imap else sorted(results)) == [x * x for x in range(1000)]


@BOTH
@BATCHES
def test_endless_input_and_an_early_end(imap: Any, batch_size: Any, cluster: list[int]) -> None:
    source = Counting()
    taken = []
    for result in imap(abs, source, batch_size=batch_size):
        taken.append(result)
        if len(taken) == 100:
            break
    assert source.thread == threading.get_ident()
    assert len(set(taken)) == 100
    assert hd.remotecall_fetch(hd.myid, cluster[0]) == cluster[0]


@BATCHES
def test_the_look_ahead_is_bounded(batch_size: Any, cluster: list[int]) -> None:
    """Nothing is taken but the first: the workers wait."""
    source = Counting()
    results = hd.imap(abs, source, batch_size=batch_size)
    assert source.read == 0
    assert next(results) == 0
    assert source.read <= 4 * LOOK_AHEAD * len(cluster)
    results.close()


def test_a_slow_item_stops_the_reading_of_an_ordered_map(cluster: list[int]) -> None:
    gate = hd.Future()
    source = Counting()
    results = hd.imap(lambda x: gate.wait(10) and x if x == 0 else x, source)
    first: list[Any] = []
    taker = threading.Thread(target=lambda: first.append(next(results)))
    taker.start()
    poll_for(lambda: source.read >= LOOK_AHEAD)
    gate.put(None)
    taker.join(10)
    assert len(first) == 1
    assert source.read <= 4 * LOOK_AHEAD * len(cluster)
    results.close()


def test_an_unordered_map_does_not_wait_for_a_slow_item(cluster: list[int]) -> None:
    gate = hd.Future()
    results = hd.imap_unordered(lambda x: gate.wait(10) and -1 if x == 0 else x, range(30))
    taken = [next(results) for _ in range(29)]
    assert sorted(taken) == list(range(1, 30))
    gate.put(None)
    assert len(list(results)) == 1


@BOTH
def test_an_early_end_cancels_what_is_outstanding(imap: Any, cluster: list[int], transport: str) -> None:
    if transport == "memory":
        return  # calls inside this process are not interrupted in a sleep
    started = hd.RemoteChannel(lambda: hd.Channel(100))

    def f(x: int) -> int:
        if x:
            started.put(hd.myid())
            hd.Future().wait(60)
        return x

    results = imap(f, range(50))
    assert next(results) == 0
    results.close()
    # The workers are free again: a plain call gets its turn on the main thread of each.
    busy = {started.take(timeout=10) for _ in range(1)} if started.isready() else set()
    for pid in {*busy, *cluster}:
        assert hd.remotecall(hd.myid, pid).fetch(timeout=10) == pid


@BATCHES
def test_a_failure_is_raised_with_its_index_after_what_came_before(batch_size: Any, cluster: list[int]) -> None:
    def f(x: int) -> int:
        if x == 20:
            raise ValueError(x)
        return x

    results = hd.imap(f, itertools.count(), batch_size=batch_size)
    taken: list[int] = []
    with pytest.raises(hd.RemoteException, match="ValueError: 20") as caught:
        taken.extend(results)
    assert caught.value.index == 20  # type: ignore[attr-defined]
    assert taken == list(range(len(taken)))
    assert list(results) == []


@BOTH
def test_on_error_and_retries(imap: Any, cluster: list[int]) -> None:
    results = imap(lambda x: 1 / x, [1, 0, 2], on_error=lambda error: "bad", retry_delays=[0.0])
    assert sorted(map(str, results)) == ["0.5", "1.0", "bad"]


@BOTH
def test_without_workers_and_not_distributed(imap: Any, cluster: list[int]) -> None:
    taken = list(itertools.islice(imap(lambda x: (hd.myid(), x), itertools.count(), distributed=False), 10))
    items = {x for _, x in taken}
    assert len(items) == 10
    assert max(items) < 10 + (2 * len(cluster) if imap is hd.imap_unordered else 0)  # as they come, of what was read
    assert {pid for pid, _ in taken} == {1}


def test_arguments_are_checked_at_the_call(cluster: list[int]) -> None:
    with pytest.raises(TypeError, match="imap needs a function"):
        hd.imap(3, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="imap_unordered needs at least one iterable"):
        hd.imap_unordered(abs)
    with pytest.raises(ValueError, match="batch_size"):
        hd.imap(abs, [1], batch_size=0)
    with pytest.raises(TypeError, match="nonsense"):
        hd.imap(abs, [1], nonsense=1)


@BOTH
def test_an_error_of_the_input_goes_on_as_it_is(imap: Any, cluster: list[int]) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("input")

    with pytest.raises(KeyError, match="input"):
        list(imap(abs, broken()))


@BOTH
def test_inside_of_each_other(imap: Any, cluster: list[int]) -> None:
    def inner(x: int) -> int:
        return sum(hd.imap(lambda y: x * y, range(5)))

    assert sorted(imap(inner, range(6))) == [10 * x for x in range(6)]
