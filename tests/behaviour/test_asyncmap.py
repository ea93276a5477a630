"""asyncmap: many calls at once in this process, on threads or on the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import operator
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = pytest.mark.leaks_by_module


@pytest.fixture(scope="module", autouse=True)
def _driver() -> Iterator[None]:
    """This process has no workers, except in tests with a cluster; its event loop ends with the module."""
    yield
    hd.shutdown()


def square(x: Any) -> Any:
    return x * x


async def square_later(x: Any) -> Any:
    await asyncio.sleep(0)
    return x * x


BOTH = pytest.mark.parametrize("f", [square, square_later])


class Crowd:
    """Calls that stay until they are let go, and how many there are."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = self.begun = 0

    def enter(self) -> None:
        with self.lock:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1

    def stay(self, x: Any) -> Any:
        self.enter()
        try:
            assert self.gate.wait(20)
        finally:
            self.leave()
        return x

    async def stay_async(self, x: Any) -> Any:
        self.enter()
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.001)
        finally:
            self.leave()
        return x

    def function(self, kind: str) -> Callable[[Any], Any]:
        return self.stay if kind == "threads" else self.stay_async


KINDS = pytest.mark.parametrize("kind", ["threads", "loop"])


class Running:
    """An asyncmap on another thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(args, kwargs))
        self._thread.start()

    def _run(self, args: Any, kwargs: Any) -> None:
        try:
            self.result = hd.asyncmap(*args, **kwargs)
        except BaseException as error:
            self.error = error

    def end(self) -> Running:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self

    def has_ended(self) -> bool:
        return not self._thread.is_alive()


# ---- values -------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("ntasks", [None, 1, 2, 7, 1000])
def test_the_order_is_that_of_the_input(f: Any, ntasks: int | None) -> None:
    result = hd.asyncmap(f, range(300), ntasks=ntasks)
    assert type(result) is list
    assert result == [x * x for x in range(300)]


def test_the_order_does_not_depend_on_who_ends_first() -> None:
    ended = [threading.Event() for _ in range(6)]

    def after_the_next(x: int) -> int:
        assert x == 5 or ended[x + 1].wait(10)
        ended[x].set()
        return x

    assert hd.asyncmap(after_the_next, range(6)) == list(range(6))


@BOTH
def test_no_items(f: Any) -> None:
    assert hd.asyncmap(f, []) == []
    assert hd.asyncmap(f, iter([])) == []
    assert hd.asyncmap(f, [], batch_size=3) == []


def test_several_iterables_are_taken_elementwise() -> None:
    assert hd.asyncmap(operator.add, [1, 2, 3], (10, 20, 30)) == [11, 22, 33]
    assert hd.asyncmap(lambda a, b, c: (a, b, c), "ab", range(2), iter([None, 5])) == [("a", 0, None), ("b", 1, 5)]
    assert hd.asyncmap(operator.add, [1, 2, 3], iter(int, 1)) == [1, 2, 3]  # as long as the shortest


def test_values_are_passed_by_reference() -> None:
    lock = threading.Lock()
    assert hd.asyncmap(lambda x: x, [lock])[0] is lock


@BOTH
@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (0, 4)])
def test_an_array_keeps_its_shape(f: Any, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape)
    result = hd.asyncmap(f, array)
    assert isinstance(result, np.ndarray)
    assert np.array_equal(result, array * array)


def test_arrays_of_different_shapes() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        hd.asyncmap(operator.add, np.ones(2), np.ones(3))


def test_a_function_that_gives_a_coroutine_is_awaited_too() -> None:
    assert hd.asyncmap(lambda x: square_later(x), range(5)) == [0, 1, 4, 9, 16]


def test_methods_partials_and_objects_of_async_functions() -> None:
    class Adder:
        async def add(self, x: int) -> int:
            return x + 1

        async def __call__(self, x: int) -> int:
            return x + 2

    async def add(x: int, y: int) -> int:
        return x + y

    threads = set(threading.enumerate())
    assert hd.asyncmap(Adder().add, [1, 2]) == [2, 3]
    assert hd.asyncmap(Adder(), [1, 2]) == [3, 4]
    assert hd.asyncmap(partial(add, 3), [1, 2]) == [4, 5]
    assert hd.asyncmap(hd.retry(add), [1], [2]) == [3]
    assert {thread.name for thread in set(threading.enumerate()) - threads} <= {"hybriddist-asyncio"}


# ---- how many at once ---------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("items", "ntasks", "expected"),
    [
        (range(5), None, 5),
        (range(150), None, 100),
        (lambda: iter(range(150)), None, 100),
        (range(20), 3, 3),
        (range(5), 1, 1),
        (range(150), 120, 120),
        (range(20), lambda: 4, 4),
    ],
)
def test_so_many_are_under_way(kind: str, items: Any, ntasks: Any, expected: int) -> None:
    crowd = Crowd()
    running = Running(crowd.function(kind), items() if callable(items) else items, ntasks=ntasks)
    try:
        poll_for(lambda: crowd.now == expected)
    finally:
        crowd.gate.set()
    assert running.end().error is None
    assert crowd.most == expected
    assert len(running.result) == crowd.begun


@KINDS
def test_the_number_of_tasks_follows_the_function(kind: str) -> None:
    """It grows and shrinks while the map runs."""
    crowd = Crowd()
    most_by_item: list[int] = []
    allowed = 1

    def items() -> Iterator[int]:
        nonlocal allowed
        for number in range(12):
            allowed = 5 if 3 <= number < 8 else 1
            yield number

    def note(x: int) -> int:
        most_by_item.append(x)
        return x

    async def note_async(x: int) -> int:
        return note(x)

    f = note if kind == "threads" else note_async
    assert hd.asyncmap(f, items(), ntasks=lambda: allowed) == list(range(12))
    assert sorted(most_by_item) == list(range(12))

    limits = iter([2, 2, 4, 4])
    running = Running(crowd.function(kind), range(20), ntasks=lambda: next(limits, 4))
    poll_for(lambda: crowd.now == 4)
    crowd.gate.set()
    assert running.end().result == list(range(20))
    assert crowd.most == 4


@pytest.mark.parametrize(("answer", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError)])
def test_a_bad_answer_of_ntasks_ends_the_map(answer: Any, error: type[Exception]) -> None:
    answers = iter([2, 2, answer])
    seen: list[int] = []
    with pytest.raises(error, match="what ntasks returns must be a whole number"):
        hd.asyncmap(seen.append, range(9), ntasks=lambda: next(answers))
    assert set(seen) <= {0, 1}


def test_an_error_of_ntasks_ends_the_map() -> None:
    with pytest.raises(ZeroDivisionError):
        hd.asyncmap(square, range(9), ntasks=lambda: 1 // 0)


@KINDS
def test_an_item_is_read_when_a_task_is_free_for_it(kind: str) -> None:
    crowd = Crowd()
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            read.append(threading.get_ident())
            yield number

    running = Running(crowd.function(kind), items(), ntasks=3)
    try:
        poll_for(lambda: crowd.now == 3)
        assert len(read) == 3
    finally:
        crowd.gate.set()
    assert running.end().result == list(range(10))
    assert len(set(read)) == 1  # on the caller's thread


def test_threads_are_used_again_and_end_with_the_map() -> None:
    before = threading.active_count()
    barrier = threading.Barrier(3)

    def meet(x: int) -> int:
        barrier.wait(10)
        return threading.get_ident()

    assert len(set(hd.asyncmap(meet, range(30), ntasks=3))) == 3
    assert threading.active_count() == before


def test_without_a_thread_to_be_had_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "hybriddist-asyncmap" and len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for allowed in (0, 2):
        started.clear()
        idents = set(hd.asyncmap(lambda _: threading.get_ident(), range(20), ntasks=5))
        if allowed == 0:
            assert idents == {threading.get_ident()}
        else:
            assert threading.get_ident() not in idents
            assert len(idents) <= 2


# ---- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ntasks", [1, 4])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_batches(ntasks: int, asynchronous: bool) -> None:
    seen: list[Any] = []

    def add(batch: list[tuple[int, int]]) -> list[int]:
        seen.append(batch)
        return [one + two for one, two in batch]

    async def add_later(batch: list[tuple[int, int]]) -> list[int]:
        await asyncio.sleep(0)
        return add(batch)

    f: Any = add_later if asynchronous else add
    assert hd.asyncmap(f, range(10), range(0, 100, 10), batch_size=4, ntasks=ntasks) == list(range(0, 110, 11))
    assert sorted(seen) == [
        [(0, 0), (1, 10), (2, 20), (3, 30)],
        [(4, 40), (5, 50), (6, 60), (7, 70)],
        [(8, 80), (9, 90)],
    ]


def test_a_batch_is_a_list_of_tuples_also_for_one_iterable_and_one_item() -> None:
    seen: list[Any] = []
    assert hd.asyncmap(lambda batch: seen.append(batch) or [5], [7], batch_size=1) == [5]
    assert seen == [[(7,)]]


def test_what_may_stand_for_a_list() -> None:
    assert hd.asyncmap(lambda batch: np.array(batch)[:, 0], [1, 2, 3], batch_size=2) == [1, 2, 3]
    assert hd.asyncmap(tuple, [1, 2, 3], batch_size=2) == [(1,), (2,), (3,)]
    assert hd.asyncmap(lambda batch: [-x for (x,) in batch], np.arange(6).reshape(2, 3), batch_size=4).tolist() == [
        [0, -1, -2],
        [-3, -4, -5],
    ]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1], ValueError, "for 3 items the function returned 1 results"),
        ([1] * 4, ValueError, "for 3 items the function returned 4 results"),
        (None, TypeError, "for 3 items the function must return a list, not NoneType"),
        ("abc", TypeError, "must return a list, not str"),
        ({1, 2, 3}, TypeError, "must return a list, not set"),
        (dict.fromkeys("abc"), TypeError, "must return a list, not dict"),
        (iter([1, 2, 3]), TypeError, "must return a list, not list_iterator"),
    ],
)
def test_a_batch_without_its_results(value: Any, error: type[Exception], message: str) -> None:
    async def later(batch: Any) -> Any:
        return value

    for f in (lambda batch: value, later):
        with pytest.raises(error, match=message) as caught:
            hd.asyncmap(f, [1, 2, 3], batch_size=5)
        assert "raised for items 0 to 2 of an asyncmap" in caught.value.__notes__


# ---- errors -------------------------------------------------------------------------------------------------------


@KINDS
def test_the_exception_itself_is_raised(kind: str) -> None:
    error = ValueError("three")

    def f(x: int) -> int:
        if x == 3:
            raise error
        return x

    async def f_async(x: int) -> int:
        return f(x)

    with pytest.raises(ValueError, match="three") as caught:
        hd.asyncmap(f if kind == "threads" else f_async, range(6))
    assert caught.value is error
    assert error.__notes__ == ["raised for item 3 of an asyncmap"]
    assert any(entry.name == "f" for entry in caught.traceback)


@KINDS
def test_an_error_stops_feeding_and_waits_for_the_others(kind: str) -> None:
    crowd = Crowd()
    failed = threading.Event()
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in iter(int, 1):  # endless
            read.append(number)
            yield len(read)

    def f(x: int) -> int:
        if x == 3:
            poll_for(lambda: crowd.now == 2)
            failed.set()
            raise ValueError("three")
        return crowd.stay(x)

    async def f_async(x: int) -> int:
        if x == 3:
            failed.set()
            raise ValueError("three")
        return await crowd.stay_async(x)

    running = Running(f if kind == "threads" else f_async, items(), ntasks=3)
    try:
        assert failed.wait(10)
        assert not running.has_ended()  # it waits for two
        assert crowd.now == 2
    finally:
        crowd.gate.set()
    assert str(running.end().error) == "three"
    assert crowd.now == 0
    assert len(read) == 3


def test_an_error_is_noticed_before_the_next_item_is_read() -> None:
    """Although tasks are free for it."""
    read: list[int] = []
    ended = threading.Event()

    def f(x: int) -> None:
        ended.set()
        raise ValueError("failed")

    def items() -> Iterator[int]:
        for number in range(50):
            read.append(number)
            yield number
            assert ended.wait(10)

    with pytest.raises(ValueError, match="failed"):
        hd.asyncmap(f, items(), ntasks=50)
    assert len(read) < 50


@KINDS
def test_an_error_of_the_iterator_waits_for_what_runs_too(kind: str) -> None:
    crowd = Crowd()
    error = LookupError("no more")
    raising = threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        poll_for(lambda: crowd.now == 3)
        raising.set()
        raise error

    running = Running(crowd.function(kind), items())
    assert raising.wait(10)
    assert not running.has_ended()
    crowd.gate.set()
    assert running.end().error is error
    assert crowd.now == 0
    assert not hasattr(error, "__notes__")  # it is no item's


@KINDS
@pytest.mark.parametrize("kind_of_error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_other_than_exceptions_interrupt_the_others(kind: str, kind_of_error: type[BaseException]) -> None:
    struck: list[int] = []
    crowd = Crowd()

    def f(x: int) -> None:
        if x == 0:
            poll_for(lambda: crowd.now == 2)
            raise kind_of_error
        crowd.enter()
        try:
            while True:
                time.sleep(0.001)
        except KeyboardInterrupt:
            struck.append(x)
            raise

    async def f_async(x: int) -> None:
        if x == 0:
            while crowd.now < 2:
                await asyncio.sleep(0.001)
            raise kind_of_error
        crowd.enter()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            struck.append(x)
            raise

    with pytest.raises(kind_of_error):
        hd.asyncmap(f if kind == "threads" else f_async, range(3))
    assert sorted(struck) == [1, 2]
    assert hd.asyncmap(square, [3]) == [9]
    assert hd.asyncmap(square_later, [3]) == [9]


def test_what_does_not_hear_of_the_interrupt_is_not_waited_for() -> None:
    gate = threading.Event()
    inside = threading.Event()

    def f(x: int) -> None:
        if x == 0:
            assert inside.wait(10)
            raise SystemExit
        inside.set()
        gate.wait(60)  # a lock of C: it looks up when it has it

    try:
        with pytest.raises(SystemExit):
            hd.asyncmap(f, range(2))
    finally:
        gate.set()
    poll_for(lambda: not any(thread.name == "hybriddist-asyncmap" for thread in threading.enumerate()))


def test_an_interrupt_waits_for_the_end_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within it, it could leave the module locked for ever."""
    crowd = Crowd()
    interrupted: list[bool] = []

    def load() -> None:
        crowd.enter()
        while not crowd.gate.is_set():
            time.sleep(0.001)

    def f(x: int) -> None:
        if x == 0:
            poll_for(lambda: crowd.now == 1)
            raise SystemExit
        try:
            import_module("takes_long_to_load")
            while True:
                time.sleep(0.001)
        except KeyboardInterrupt:
            interrupted.append("takes_long_to_load" in sys.modules)
            raise

    (tmp_path / "takes_long_to_load.py").write_text("import sys\nsys.load_for_test()\n")
    monkeypatch.setattr(sys, "load_for_test", load, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(SystemExit):
            hd.asyncmap(f, range(2))
        assert interrupted == []
    finally:
        crowd.gate.set()
    assert poll_for(lambda: interrupted) == [True]
    monkeypatch.delitem(sys.modules, "takes_long_to_load")


def test_an_interrupt_reaches_a_map_inside_a_map() -> None:
    crowd = Crowd()

    def inner(x: int) -> None:
        crowd.enter()
        try:
            while True:
                time.sleep(0.001)
        finally:
            crowd.leave()

    def outer(x: int) -> None:
        if x == 0:
            poll_for(lambda: crowd.now == 2)
            raise SystemExit
        hd.asyncmap(inner, range(2))

    with pytest.raises(SystemExit):
        hd.asyncmap(outer, range(2))
    poll_for(lambda: crowd.now == 0)


def test_an_exception_that_takes_no_note() -> None:
    class Bare(Exception):
        def add_note(self, note: str) -> None:
            raise TypeError("no notes")

    def f(x: int) -> None:
        raise Bare

    with pytest.raises(Bare):
        hd.asyncmap(f, [1])


CTRL_C = """
    import asyncio, os, signal, threading, time
    import hybriddist as hd

    ended = []

    def strike():
        together.wait()
        os.kill(os.getpid(), signal.SIGINT)

    def sleep(x):
        together.wait()
        time.sleep(60)

    def loop(x):
        try:
            together.wait()
            while True:
                pass
        finally:
            ended.append(x)

    async def sleep_async(x):
        try:
            await asyncio.to_thread(together.wait)
            await asyncio.sleep(60)
        finally:
            ended.append(x)

    for f in (loop, sleep_async, sleep):
        together = threading.Barrier(4)  # a new one: an interrupt may break it off
        threading.Thread(target=strike).start()
        try:
            hd.asyncmap(f, range(3))
        except KeyboardInterrupt:
            print(f.__name__, sorted(ended))
        ended.clear()
    print(hd.asyncmap(abs, [-1]))
"""


def test_ctrl_c(run_python: ScriptRunner) -> None:
    """At once; what can end ends before it is raised, and sleepers do not hold up the program's end."""
    done = run_python(CTRL_C)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["loop [0, 1, 2]", "sleep_async [0, 1, 2]", "sleep []", "[1]"]


# ---- where it runs ------------------------------------------------------------------------------------------------

tag: contextvars.ContextVar[str] = contextvars.ContextVar("tag", default="none")


@KINDS
def test_the_context_is_a_copy_of_the_callers(kind: str) -> None:
    def f(x: int) -> str:
        before = tag.get()
        tag.set(f"item {x}")
        return before

    async def f_async(x: int) -> str:
        return f(x)

    token = tag.set("the caller's")
    try:
        assert hd.asyncmap(f if kind == "threads" else f_async, range(20), ntasks=2) == ["the caller's"] * 20
        assert tag.get() == "the caller's"
    finally:
        tag.reset(token)


def test_what_the_calls_spawn_joins_the_callers_sync_block(cluster: list[int]) -> None:
    async def spawn_later(x: int) -> None:
        hd.spawn(divmod, 1, x)

    for f in (lambda x: hd.spawn(divmod, 1, x), spawn_later):
        with pytest.raises(hd.CompositeException) as caught, hd.sync():
            hd.asyncmap(f, [1, 0, 2, 0])
        assert len(caught.value.exceptions) == 2


def test_on_the_event_loop_that_would_have_to_run_it() -> None:
    async def inner() -> str:
        try:
            hd.asyncmap(square_later, [1])
        except RuntimeError as error:
            return str(error)
        return "it ran"

    assert "would block the event loop" in hd.remotecall_fetch(inner, 1)

    async def threads() -> Any:
        return hd.asyncmap(square, [3])  # needs no loop

    assert hd.remotecall_fetch(threads, 1) == [9]


def test_in_another_event_loop() -> None:
    async def main() -> Any:
        return await asyncio.to_thread(hd.asyncmap, square_later, range(4))

    assert asyncio.run(main()) == [0, 1, 4, 9]


def test_a_map_in_a_map() -> None:
    def row(n: int) -> Any:
        return hd.asyncmap(square, range(n))

    assert hd.asyncmap(row, range(5)) == [[x * x for x in range(n)] for n in range(5)]


def test_remote_calls_at_once(cluster: list[int]) -> None:
    """All of them wait for the last."""
    gate = hd.RemoteChannel(lambda: hd.Channel(20))

    def call(x: int) -> int:
        pid = cluster[x % len(cluster)]
        if x == 11:
            for number in range(11):
                gate.put(number)
            return hd.remotecall_fetch(abs, pid, -x)  # type: ignore[no-any-return]
        return hd.remotecall_fetch(lambda: (gate.take(timeout=20), x)[1], pid)  # type: ignore[no-any-return]

    assert hd.asyncmap(call, range(12)) == list(range(12))


def test_a_remote_failure_is_raised_as_it_is(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.asyncmap(lambda x: hd.remotecall_fetch(divmod, cluster[0], 1, x), [1, 0])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.pid == cluster[0]


@pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module")
def test_on_a_worker(cluster: list[int]) -> None:
    def run() -> Any:
        def call(x: int) -> tuple[int, Any]:
            return hd.myid(), hd.remotecall_fetch(abs, 1, -x)

        async def call_async(x: int) -> tuple[int, Any]:
            return hd.myid(), await hd.remotecall(abs, 1, -x)

        return hd.asyncmap(call, range(9)) + hd.asyncmap(call_async, range(9))

    pid = cluster[1]
    assert hd.remotecall(run, pid).fetch(20) == [(pid, x) for x in range(9)] * 2


def test_awaiting_futures(cluster: list[int]) -> None:
    async def call(x: int) -> Any:
        return await hd.remotecall(square, cluster[x % 3], x)

    assert hd.asyncmap(call, range(30)) == [x * x for x in range(30)]


def test_an_interrupt_of_a_worker_reaches_its_tasks(cluster: list[int]) -> None:
    here = hd.RemoteChannel(lambda: hd.Channel(10))

    def run() -> None:
        def loop(x: int) -> None:
            here.put(x)
            while True:
                time.sleep(0.001)

        hd.asyncmap(loop, range(3))

    call = hd.remotecall(run, cluster[0])
    assert sorted(here.take(timeout=10) for _ in range(3)) == [0, 1, 2]
    hd.interrupt(cluster[0])
    with pytest.raises(hd.RemoteException) as caught:
        call.fetch(timeout=20)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert hd.remotecall_fetch(abs, cluster[0], -3) == 3
    names = hd.remotecall_fetch(lambda: [thread.name for thread in threading.enumerate()], cluster[0])
    assert "hybriddist-asyncmap" not in names


# ---- bad arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "needs a function, not int", lambda f: hd.asyncmap(5, [1])),  # type: ignore[arg-type]
        (TypeError, "at least one iterable", lambda f: hd.asyncmap(f)),
        (TypeError, "int", lambda f: hd.asyncmap(f, 5)),  # type: ignore[arg-type]
        (TypeError, "int", lambda f: hd.asyncmap(f, [1], 5)),  # type: ignore[arg-type]
        (ValueError, "ntasks must be .* not 0", lambda f: hd.asyncmap(f, [1], ntasks=0)),
        (ValueError, "ntasks must be .* not -1", lambda f: hd.asyncmap(f, [1], ntasks=-1)),
        (TypeError, "ntasks must be .* not float", lambda f: hd.asyncmap(f, [1], ntasks=2.0)),  # type: ignore[arg-type]
        (TypeError, "ntasks must be .* not bool", lambda f: hd.asyncmap(f, [1], ntasks=True)),
        (ValueError, "batch_size must be .* not 0", lambda f: hd.asyncmap(f, [1], batch_size=0)),
        (TypeError, "batch_size must be .* not str", lambda f: hd.asyncmap(f, [1], batch_size="2")),  # type: ignore[arg-type]
        (TypeError, "nonsense", lambda f: hd.asyncmap(f, [1], nonsense=1)),  # type: ignore[call-arg]
    ],
)  # fmt: skip
def test_bad_arguments_are_told_before_anything_runs(
    error: type[Exception], message: str, call: Callable[[Any], Any]
) -> None:
    seen: list[Any] = []
    with pytest.raises(error, match=message):
        call(seen.append)
    assert seen == []


@KINDS
def test_nothing_of_a_map_is_kept(kind: str) -> None:
    class Item:
        pass

    def fail(item: Item) -> None:
        raise ValueError

    async def fail_async(item: Item) -> None:
        raise ValueError

    ghosts = []
    for f in (id, square_later) if kind == "loop" else (id, fail):
        item = Item()
        ghosts.append(weakref.ref(item))
        try:
            hd.asyncmap(fail_async if f is square_later else f, [item])
        except ValueError:
            pass
        del item
    poll_for(lambda: [ghost() for ghost in ghosts] == [None, None], what="the items are let go")


def test_shutdown_ends_the_event_loop_also_where_there_were_no_workers(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import threading
        import hybriddist as hd

        async def f(x):
            return -x

        for _ in range(2):
            before = threading.active_count()
            print(hd.asyncmap(f, [1, 2]), threading.active_count() - before, end=" ")
            hd.shutdown()
            print(threading.active_count() - before)
        print(hd.addprocs(1))
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[-1, -2] 1 0\n[-1, -2] 1 0\n[2]\n"
