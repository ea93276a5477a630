"""Errors: what a failing call raises here, and that no error costs anybody the connection."""

from __future__ import annotations

import asyncio
import operator
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

import hybriddist as hd
from tests.helpers.printed import Printed

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

SHOWN_BYTES = 1_000_000
"""More than any text of an error may be."""


class CustomError(Exception):
    """With an `__init__` that pickle cannot guess."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}: {detail}")
        self.code = code
        self.detail = detail


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("not for sale")


class FailsElsewhere:
    """Can be pickled; what comes out of the pickle fails, by ``how``."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return fail_to_be_made, (self.how,)


def fail_to_be_made(how: str) -> NoReturn:
    if how == "exit":
        sys.exit(3)
    if how == "recursion":
        return fail_to_be_made(how)
    if how == "memory":
        raise MemoryError
    raise LookupError("there is no such thing here")


class HostileError(Exception):
    """Its text cannot be had, nor can it be pickled."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickle")


class InterruptingError(Exception):
    """Its text raises what else only Ctrl-C does."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class FieldsError(Exception):
    """With a `__getattr__` that knows its own names only."""

    def __getattr__(self, name: str) -> Any:
        return {"code": 5}[name]


class UntouchableError(Exception):
    def __getattribute__(self, name: str) -> Any:
        sys.exit(3)


class FailsToComeBack(Exception):
    """Can be pickled, and cannot be rebuilt."""

    def __reduce__(self) -> Any:
        return fail_to_be_made, ("lookup",)


def raise_it(error: BaseException | Callable[[], BaseException]) -> NoReturn:
    raise error if isinstance(error, BaseException) else error()


def fail_deep(depth: int) -> Any:
    return fail_deep(depth - 1) if depth else operator.truediv(1, 0)


async def fail_later() -> NoReturn:
    await asyncio.sleep(0.001)
    raise CustomError(7, detail="later")


@pytest.fixture(params=["self", "other"])
def where(request: pytest.FixtureRequest, cluster: list[int]) -> int:
    return 1 if request.param == "self" else cluster[0]


@pytest.fixture(autouse=True)
def connections_stay(cluster: list[int]) -> Iterator[None]:
    """After each crime the workers are there, on the same connections, and right."""
    before = {pid: hd.remotecall_fetch(id, pid, None) and hd.path_to(pid) for pid in cluster}
    yield
    assert hd.workers() == cluster
    assert {pid: hd.path_to(pid) for pid in cluster} == before
    assert [hd.remotecall_fetch(abs, pid, -pid) for pid in cluster] == cluster


def by_fetch(f: Any, pid: int, *args: Any) -> Any:
    return hd.remotecall_fetch(f, pid, *args)


def by_wait(f: Any, pid: int, *args: Any) -> Any:
    return hd.remotecall_wait(f, pid, *args)


def by_future(f: Any, pid: int, *args: Any) -> Any:
    return hd.remotecall(f, pid, *args).fetch()


def by_waiting(f: Any, pid: int, *args: Any) -> Any:
    return hd.remotecall(f, pid, *args).wait()


FAMILY = [by_fetch, by_wait, by_future, by_waiting]


# ---- a function that raises ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", FAMILY)
def test_the_original_is_the_cause(call: Any, where: int) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        call(operator.truediv, where, 1, 0)
    error = caught.value
    assert error.pid == where
    assert type(error.__cause__) is ZeroDivisionError
    assert error.captured.ex is error.__cause__
    assert str(error).startswith(f"On worker {where}:\n")
    assert "division by zero" in str(error)


@pytest.mark.parametrize("call", FAMILY)
def test_exceptions_of_ones_own_arrive_whole(call: Any, where: int) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        call(raise_it, where, lambda: CustomError(5, detail="broken"))
    cause = caught.value.__cause__
    assert type(cause) is CustomError
    assert (cause.code, cause.detail, str(cause)) == (5, "broken", "code 5: broken")


def test_the_traceback_tells_the_functions_there(where: int) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(fail_deep, where, 2)
    text = caught.value.captured.traceback_text
    assert text.count("in fail_deep") == 3
    assert __file__ in text
    assert "execution.py" not in text  # nothing of the library's own way to the call
    assert text in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, MemoryError])
def test_exceptions_that_are_no_errors(kind: type[BaseException], cluster: list[int]) -> None:
    for call in FAMILY:
        with pytest.raises(hd.RemoteException) as caught:
            call(raise_it, cluster[0], kind(3))
        assert type(caught.value.__cause__) is kind


def test_sys_exit_leaves_the_worker(where: int) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(sys.exit, where, 3)
    assert isinstance(caught.value.__cause__, SystemExit)
    assert caught.value.__cause__.code == 3


def test_chains_and_groups_and_notes_arrive(cluster: list[int]) -> None:
    def fail() -> None:
        try:
            operator.truediv(1, 0)
        except ZeroDivisionError as error:
            group = ExceptionGroup("several", [ValueError("one"), CustomError(2, detail="two")])
            group.add_note("a note")
            raise group from error

    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(fail, cluster[0])
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert [type(each) for each in group.exceptions] == [ValueError, CustomError]
    assert group.__notes__ == ["a note"]
    assert type(group.__cause__) is ZeroDivisionError


def test_remote_exceptions_survive_pickling(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(raise_it, cluster[0], lambda: CustomError(5, detail="broken"))
    back = pickle.loads(pickle.dumps(caught.value))
    assert type(back) is hd.RemoteException
    assert back.pid == cluster[0]
    assert type(back.__cause__) is CustomError
    assert str(back) == str(caught.value)


def test_what_is_attached_to_an_exception_stays_with_it(cluster: list[int]) -> None:
    """Notes, the index of a map's item, and what users attach: through pickling, and on the way from a worker."""

    def invert(x: int) -> float:
        return 1 / x

    def fail_on_worker() -> tuple[Any, Any]:
        try:
            hd.pmap(invert, [1, 0])
        except hd.RemoteException as error:
            return error.index, error
        raise AssertionError

    assert (lambda index, error: (index, error.index))(*hd.remotecall_fetch(fail_on_worker, cluster[0])) == (1, 1)
    errors: list[Exception] = [hd.ConnectError("no way", "host:1")]
    with pytest.raises(hd.RemoteException) as one:
        hd.remotecall_fetch(invert, cluster[0], 0)
    with pytest.raises(hd.CompositeException) as several:
        hd.remotecall_all(invert, 0)
    for error in [*errors, one.value, several.value]:
        error.add_note("a note")
        error.mine = 5  # type: ignore[attr-defined]
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.__notes__, again.mine) == (str(error), ["a note"], 5)


def test_nested_failures_name_every_process_on_the_way(cluster: list[int]) -> None:
    a, b, c = cluster

    def pass_on(pids: list[int]) -> Any:
        return hd.remotecall_fetch(pass_on, pids[0], pids[1:]) if pids else operator.truediv(1, 0)

    with pytest.raises(hd.RemoteException) as caught:
        pass_on([a, b, c])
    error: BaseException | None = caught.value
    pids = []
    while isinstance(error, hd.RemoteException):
        pids.append(error.pid)
        error = error.__cause__
    assert pids == [a, b, c]
    assert type(error) is ZeroDivisionError
    text = str(caught.value)
    assert [text.count(f"On worker {pid}:") for pid in cluster] == [1, 1, 1]
    assert text.count("ZeroDivisionError: division by zero") <= 2  # its headline, and the end of its traceback


def test_an_async_failure_is_a_failure(where: int) -> None:
    for call in FAMILY:
        with pytest.raises(hd.RemoteException) as caught:
            call(fail_later, where)
        assert type(caught.value.__cause__) is CustomError
        assert "in fail_later" in caught.value.captured.traceback_text


def test_each_fetch_raises_anew(where: int) -> None:
    future = hd.remotecall(operator.truediv, where, 1, 0)
    errors = []
    for _ in range(3):
        with pytest.raises(hd.RemoteException) as caught:
            future.fetch()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in errors}) == 1


# ---- what cannot be pickled or unpickled --------------------------------------------------------------------------


@pytest.mark.parametrize("call", [*FAMILY, lambda *a: hd.remote_do(*a)])
@pytest.mark.parametrize(
    "thing", [Unpicklable(), threading.Lock(), (i for i in ()), sys._getframe()], ids=lambda x: type(x).__name__
)
def test_an_argument_that_cannot_be_pickled(call: Any, thing: Any, cluster: list[int]) -> None:
    """The caller's own error, before anything is sent: the function does not run."""
    marks = hd.Future().put([])
    for args in ((thing,), ([1, {"key": thing}],)):
        with pytest.raises(hd.SerializeError) as caught:
            call(lambda x: marks.fetch().append(1), cluster[0], *args)
        assert type(thing).__name__ in str(caught.value)
        assert caught.value.__cause__ is not None
    assert marks.fetch() == []


def test_a_function_that_cannot_be_pickled(cluster: list[int]) -> None:
    lock = threading.Lock()
    for call in FAMILY:
        with pytest.raises(hd.SerializeError, match="lock"):
            call(lambda: lock.locked(), cluster[0])


def test_own_calls_take_what_cannot_be_pickled(cluster: list[int]) -> None:
    lock = threading.Lock()
    for call in FAMILY[:1] + FAMILY[2:3]:
        assert call(lambda x: x, 1, lock) is lock


@pytest.mark.parametrize("call", [by_fetch, by_future])
@pytest.mark.parametrize("make", [Unpicklable, threading.Lock, lambda: [threading.Lock()], sys._getframe])
def test_a_result_that_cannot_be_pickled(call: Any, make: Any, cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        call(lambda m: m(), cluster[0], make)
    assert caught.value.pid == cluster[0]
    assert isinstance(caught.value.__cause__, hd.SerializeError)
    assert "cannot pickle" in str(caught.value)


def test_a_result_that_cannot_be_pickled_is_of_use_where_it_is(cluster: list[int]) -> None:
    future = hd.remotecall_wait(threading.Lock, cluster[0])
    assert future.isready()
    assert hd.remotecall_fetch(lambda f: f.fetch().locked(), cluster[0], future) is False


@pytest.mark.parametrize("call", FAMILY)
@pytest.mark.parametrize("how", ["lookup", "exit", "recursion", "memory"])
def test_an_argument_that_cannot_be_unpickled(call: Any, how: str, cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        call(lambda x: x, cluster[0], FailsElsewhere(how))
    assert isinstance(caught.value.__cause__, hd.DeserializeError)
    assert caught.value.pid == cluster[0]


def test_an_argument_of_a_module_that_is_not_there(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException, match="no_such_module_anywhere") as caught:
        hd.remotecall_fetch(lambda x: x, cluster[0], NamesMissingModule())
    assert isinstance(caught.value.__cause__, hd.DeserializeError)


class NamesMissingModule:
    def __reduce__(self) -> Any:
        return __import__, ("no_such_module_anywhere",)


def test_an_argument_of_remote_do_that_cannot_be_unpickled_is_shown(cluster: list[int]) -> None:
    with Printed() as printed:
        hd.remote_do(lambda x: x, cluster[0], FailsElsewhere("lookup"))
        printed.wait_for("there is no such thing here", "err")


@pytest.mark.parametrize("call", [by_fetch, by_future])
@pytest.mark.parametrize("how", ["lookup", "exit", "memory"])
def test_a_result_that_cannot_be_unpickled_here(call: Any, how: str, cluster: list[int]) -> None:
    with pytest.raises(hd.DeserializeError):
        call(FailsElsewhere, cluster[0], how)


def test_a_stored_result_that_cannot_be_unpickled_fails_each_time(cluster: list[int]) -> None:
    future = hd.remotecall(FailsElsewhere, cluster[0], "lookup")
    for _ in range(2):
        with pytest.raises(hd.DeserializeError, match="no such thing"):
            future.fetch()


def test_a_put_value_that_cannot_be_unpickled_there(cluster: list[int]) -> None:
    future = hd.Future(cluster[0])
    with pytest.raises(hd.RemoteException) as caught:
        future.put(FailsElsewhere("lookup"))
    assert isinstance(caught.value.__cause__, hd.DeserializeError)
    assert not future.isready()
    assert future.put(1).fetch() == 1


@pytest.mark.parametrize("call", FAMILY)
@pytest.mark.parametrize("kind", [HostileError, InterruptingError, FieldsError, UntouchableError])
def test_an_exception_that_is_difficult(call: Any, kind: type[Exception], cluster: list[int]) -> None:
    """Its own code fails, wherever it is asked for something: the call ends all the same."""
    with pytest.raises(hd.RemoteException) as caught:
        call(raise_it, cluster[0], kind)
    assert kind.__name__ in str(caught.value)
    assert "in raise_it" in str(caught.value) or kind is InterruptingError


@pytest.mark.parametrize("call", FAMILY)
def test_an_exception_that_cannot_be_unpickled_here(call: Any, cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        call(raise_it, cluster[0], lambda: FailsToComeBack("the message"))
    text = str(caught.value)
    assert "FailsToComeBack" in text
    assert "the message" in text
    assert "in raise_it" in text


def test_an_exception_with_an_endless_text(cluster: list[int]) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(raise_it, cluster[0], lambda: ValueError("x" * 10 * SHOWN_BYTES))
    assert len(str(caught.value)) < SHOWN_BYTES


def test_an_exception_in_an_argument_of_an_exception(cluster: list[int]) -> None:
    """The carried object, not the exception, is what cannot travel."""
    with pytest.raises(hd.RemoteException) as caught:
        hd.remotecall_fetch(raise_it, cluster[0], lambda: ValueError("text", threading.Lock()))
    assert "ValueError" in str(caught.value)
    assert "text" in str(caught.value)


def test_failures_side_by_side_do_not_mix(cluster: list[int]) -> None:
    """Good and bad calls of all kinds under way at once: each gets its own end."""
    crimes: list[tuple[Any, tuple[Any, ...], type[BaseException] | None]] = [
        (abs, (-3,), None),
        (operator.truediv, (1, 0), hd.RemoteException),
        (lambda x: x, (FailsElsewhere("lookup"),), hd.RemoteException),
        (Unpicklable, (), hd.RemoteException),
        (FailsElsewhere, ("lookup",), hd.DeserializeError),
        (raise_it, (HostileError,), hd.RemoteException),
        (fail_later, (), hd.RemoteException),
    ]
    futures = [(hd.remotecall(f, pid, *args), kind) for _ in range(5) for pid in cluster for f, args, kind in crimes]
    for future, kind in futures:
        if kind is None:
            assert future.fetch() == 3
        else:
            with pytest.raises(kind):
                future.fetch()
