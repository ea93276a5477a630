"""pmap: items that fail, what the caller sees of that, handlers, and further attempts."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

BATCHES = pytest.mark.parametrize("batch_size", [1, 3, "auto"])
PLACES = pytest.mark.parametrize("distributed", [True, False])


def odd(x: int) -> int:
    """Fails for even numbers."""
    if x % 2 == 0:
        raise ValueError(f"{x} is even")
    return x


def fails_at_first(log: Path, times: int, x: int) -> int:
    """Each item fails so many times; the attempts stand in the log."""
    with log.open("a") as file:
        file.write(f"{x}\n")
    if attempts(log)[x] <= times:
        raise OSError(f"{x} is not ready")
    return x


def attempts(log: Path) -> Counter[int]:
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


class Unfit:
    """Can be pickled, but not unpickled elsewhere."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


# ---- raised -------------------------------------------------------------------------------------------------------


@BATCHES
@PLACES
def test_a_failure_is_raised_with_its_index(batch_size: Any, distributed: bool, cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException, match="4 is even") as caught:
        hd.pmap(odd, [1, 3, 5, 4, 7], batch_size=batch_size, distributed=distributed)
    error = caught.value
    assert error.index == 3  # type: ignore[attr-defined]
    assert error.__notes__ == ["raised for item 3 of a map"]
    assert (type(error.__cause__), error.__cause__ and error.__cause__.args) == (ValueError, ("4 is even",))
    assert error.captured.ex is error.__cause__
    assert error.pid in (cluster if distributed else [1])
    assert "odd" in error.captured.traceback_text


@PLACES
def test_a_failure_ends_the_reading(distributed: bool, cluster: list[int]) -> None:
    """The input is endless."""
    with pytest.raises(hd.RemoteException, match="0 is even"):
        hd.pmap(odd, (0 if x == 100 else 1 for x in iter(int, 1) for x in range(101)), distributed=distributed)


@BATCHES
def test_a_failure_does_not_wait_for_the_others(batch_size: Any, cluster: list[int]) -> None:
    gate = hd.Future()

    def item(x: int) -> None:
        if x == 0:
            raise ValueError("at once")
        gate.wait(20)

    begin = time.monotonic()
    with pytest.raises(hd.RemoteException, match="at once"):
        hd.pmap(item, range(9), batch_size=batch_size)
    assert time.monotonic() - begin < 10
    gate.put(None)
    assert sorted(set(hd.pmap(lambda _: hd.myid(), range(60)))) <= cluster  # they still work


@BATCHES
@PLACES
def test_an_error_of_the_iterator_goes_on_as_it_is(batch_size: Any, distributed: bool, cluster: list[int]) -> None:
    error = LookupError("no more")

    def items() -> Iterator[int]:
        yield from range(5)
        raise error

    with pytest.raises(LookupError) as caught:
        hd.pmap(abs, items(), batch_size=batch_size, distributed=distributed, on_error=lambda _: 0)
    assert caught.value is error
    assert hd.pmap(abs, [-1]) == [1]


# ---- what cannot be pickled ---------------------------------------------------------------------------------------


@BATCHES
def test_unpicklable_items_among_good_ones(batch_size: Any, cluster: list[int], transport: str) -> None:
    items = [1, 2, threading.Lock(), 4, threading.Lock(), 6, 7]
    with pytest.raises(hd.SerializeError, match="lock") as caught:
        hd.pmap(repr, items, batch_size=batch_size)
    index = caught.value.index  # type: ignore[attr-defined]
    assert index in (2, 4)
    assert caught.value.__notes__ == [f"raised for item {index} of a map"]
    result = hd.pmap(repr, items, batch_size=batch_size, on_error=type)
    assert result == ["1", "2", hd.SerializeError, "4", hd.SerializeError, "6", "7"]


def test_unpicklable_items_ahead_of_time(cluster: list[int]) -> None:
    """Of quick items, many go in one message."""
    items = [threading.Lock() if x % 50 == 49 else x for x in range(600)]
    result = hd.pmap(lambda x: x, items, on_error=type)
    assert result == [hd.SerializeError if x % 50 == 49 else x for x in range(600)]


@BATCHES
def test_items_that_cannot_be_unpickled_there(batch_size: Any, cluster: list[int]) -> None:
    result = hd.pmap(lambda x: x, [1, Unfit(), 3, 4], batch_size=batch_size, on_error=lambda error: str(error))
    assert (result[0], *result[2:]) == (1, 3, 4)
    assert "not a number" in result[1]


@BATCHES
def test_unpicklable_results_among_good_ones(batch_size: Any, cluster: list[int]) -> None:
    def item(x: int) -> Any:
        return threading.Lock() if x == 3 else x

    with pytest.raises(hd.RemoteException, match="lock") as caught:
        hd.pmap(item, range(6), batch_size=batch_size)
    assert caught.value.index == 3  # type: ignore[attr-defined]
    assert isinstance(caught.value.__cause__, hd.SerializeError)
    result = hd.pmap(item, range(6), batch_size=batch_size, on_error=type)
    assert result == [0, 1, 2, hd.SerializeError, 4, 5]


def test_results_that_cannot_be_unpickled_here(cluster: list[int]) -> None:
    assert hd.pmap(lambda x: Unfit() if x else x, [0, 1, 0], on_error=type) == [0, hd.DeserializeError, 0]


# ---- on_error -----------------------------------------------------------------------------------------------------


@BATCHES
@PLACES
def test_what_on_error_returns_stands_in_the_result(batch_size: Any, distributed: bool, cluster: list[int]) -> None:
    seen: list[Any] = []

    def handle(error: BaseException) -> str:
        seen.append((type(error), hd.myid(), threading.get_ident(), sys.exc_info()[1] is error))
        return str(error)

    result = hd.pmap(odd, range(6), on_error=handle, batch_size=batch_size, distributed=distributed)
    assert result == ["0 is even", 1, "2 is even", 3, "4 is even", 5]
    assert seen == [(ValueError, 1, threading.get_ident(), True)] * 3


@PLACES
def test_a_bare_raise_raises_the_failure_again(distributed: bool, cluster: list[int]) -> None:
    def handle(error: BaseException) -> int:
        if "4" in str(error):
            raise  # it runs inside an except block
        return -1

    with pytest.raises(hd.RemoteException, match="4 is even") as caught:
        hd.pmap(odd, [2, 4, 1], on_error=handle, distributed=distributed)
    assert caught.value.index == 1  # type: ignore[attr-defined]


@PLACES
def test_raising_what_on_error_got_is_the_same(distributed: bool, cluster: list[int]) -> None:
    def handle(error: BaseException) -> int:
        raise error

    with pytest.raises(hd.RemoteException, match="4 is even") as caught:
        hd.pmap(odd, [1, 4], on_error=handle, distributed=distributed)
    assert caught.value.index == 1  # type: ignore[attr-defined]


@BATCHES
def test_an_error_of_on_error_is_raised_instead(batch_size: Any, cluster: list[int]) -> None:
    def handle(error: BaseException) -> int:
        raise KeyError("of the handler")

    with pytest.raises(KeyError, match="of the handler") as caught:
        hd.pmap(odd, [1, 4, 1], on_error=handle, batch_size=batch_size)
    assert caught.value.index == 1  # type: ignore[attr-defined]
    assert isinstance(caught.value.__context__, hd.RemoteException)
    assert str(caught.value.__context__.__cause__) == "4 is even"


def test_none_is_a_value_of_on_error(cluster: list[int]) -> None:
    assert hd.pmap(odd, range(3), on_error=lambda error: None) == [None, 1, None]


# ---- further attempts ---------------------------------------------------------------------------------------------


@BATCHES
@PLACES
def test_retries(batch_size: Any, distributed: bool, cluster: list[int], tmp_path: Path) -> None:
    log = tmp_path / "log"
    item = partial(fails_at_first, log, 2)
    result = hd.pmap(item, range(8), retry_delays=[0, 0.001], batch_size=batch_size, distributed=distributed)
    assert result == list(range(8))
    assert attempts(log) == Counter(dict.fromkeys(range(8), 3))


@BATCHES
@PLACES
def test_retries_that_do_not_suffice(batch_size: Any, distributed: bool, cluster: list[int], tmp_path: Path) -> None:
    log = tmp_path / "log"
    item = partial(fails_at_first, log, 3)
    with pytest.raises(hd.RemoteException, match="5 is not ready") as caught:
        hd.pmap(item, [5], retry_delays=[0, 0.001], batch_size=batch_size, distributed=distributed)
    assert caught.value.index == 0  # type: ignore[attr-defined]
    assert attempts(log) == {5: 3}


def test_delays_are_kept(cluster: list[int], tmp_path: Path) -> None:
    begin = time.monotonic()
    assert hd.pmap(partial(fails_at_first, tmp_path / "log", 2), [1], retry_delays=(d for d in [0.05, 0.1])) == [1]
    assert time.monotonic() - begin >= 0.15


def test_others_go_on_while_an_item_waits_for_its_next_attempt(cluster: list[int], tmp_path: Path) -> None:
    """The input is read to its end before the second attempt begins."""
    log = tmp_path / "log"
    order: list[int] = []

    def items() -> Iterator[int]:
        yield from range(20)
        order.append(attempts(log)[0])

    def item(x: int) -> int:
        return fails_at_first(log, 1, x) if x == 0 else x

    assert hd.pmap(item, items(), retry_delays=[0.5]) == list(range(20))
    assert order in ([0], [1])
    assert attempts(log) == {0: 2}


def test_waiting_for_a_free_worker_with_a_retry_that_is_due_costs_nothing(cluster: list[int], tmp_path: Path) -> None:
    def item(x: int) -> int:
        if x == 0:
            return fails_at_first(tmp_path / "log", 1, x)
        time.sleep(0.3)  # all workers are at such items when the retry is due
        return x

    begin = time.thread_time()
    assert hd.pmap(item, range(6), retry_delays=[0.05]) == list(range(6))
    assert time.thread_time() - begin < 0.1


@BATCHES
@PLACES
@pytest.mark.parametrize("answer", [True, False, (None, True), (None, False)])
def test_retry_check_says_whether(
    answer: Any, batch_size: Any, distributed: bool, cluster: list[int], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    seen: list[Any] = []

    def check(state: Any, error: BaseException) -> Any:
        seen.append((state, type(error), str(error), threading.get_ident()))
        return answer

    def run() -> Any:
        item = partial(fails_at_first, log, 1)
        return hd.pmap(item, [7], retry_delays=[0], retry_check=check, batch_size=batch_size, distributed=distributed)

    if answer in (True, (None, True)):
        assert run() == [7]
    else:
        with pytest.raises(hd.RemoteException, match="7 is not ready"):
            run()
    assert attempts(log) == {7: 2 if answer in (True, (None, True)) else 1}
    assert seen == [(None, OSError, "7 is not ready", threading.get_ident())]


@PLACES
def test_retry_check_has_a_state_of_each_item(distributed: bool, cluster: list[int], tmp_path: Path) -> None:
    states: dict[str, list[Any]] = {"1 is not ready": [], "2 is not ready": []}

    def check(state: Any, error: BaseException) -> tuple[int, bool]:
        states[str(error)].append(state)
        return (state or 0) + 1, True

    item = partial(fails_at_first, tmp_path / "log", 3)
    assert hd.pmap(item, [1, 2], retry_delays=[0] * 3, retry_check=check, distributed=distributed) == [1, 2]
    assert states == {"1 is not ready": [None, 1, 2], "2 is not ready": [None, 1, 2]}


@PLACES
def test_an_error_of_retry_check_is_raised(distributed: bool, cluster: list[int]) -> None:
    def check(state: Any, error: BaseException) -> bool:
        raise KeyError("of the check")

    with pytest.raises(KeyError, match="of the check") as caught:
        hd.pmap(odd, [1, 4], retry_delays=[0], retry_check=check, distributed=distributed)
    assert caught.value.index == 1  # type: ignore[attr-defined]


@PLACES
def test_retry_check_alone_tries_nothing_again(distributed: bool, cluster: list[int], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(hd.RemoteException):
        hd.pmap(partial(fails_at_first, log, 1), [3], retry_check=lambda *_: True, distributed=distributed)
    assert attempts(log) == {3: 1}


@BATCHES
@PLACES
def test_on_error_comes_before_any_retry(
    batch_size: Any, distributed: bool, cluster: list[int], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    item = partial(fails_at_first, log, 1)
    result = hd.pmap(
        item, [1, 2], on_error=str, retry_delays=[0, 0], batch_size=batch_size, distributed=distributed
    )  # fmt: skip
    assert result == ["1 is not ready", "2 is not ready"]
    assert attempts(log) == {1: 1, 2: 1}


@BATCHES
@PLACES
def test_what_on_error_raises_is_tried_again(
    batch_size: Any, distributed: bool, cluster: list[int], tmp_path: Path
) -> None:
    """At the last attempt too it is asked first."""
    log = tmp_path / "log"
    checked: list[str] = []
    handled: list[str] = []

    def handle(error: BaseException) -> str:
        handled.append(str(error))
        if len(handled) < 3:
            raise KeyError("another")
        return "enough"

    def check(state: Any, error: BaseException) -> bool:
        checked.append(type(error).__name__)
        return True

    result = hd.pmap(
        partial(fails_at_first, log, 9), [1], on_error=handle, retry_delays=[0] * 5, retry_check=check,
        batch_size=batch_size, distributed=distributed,
    )  # fmt: skip
    assert result == ["enough"]
    assert handled == ["1 is not ready"] * 3
    assert checked == ["KeyError"] * 2
    assert attempts(log) == {1: 3}
