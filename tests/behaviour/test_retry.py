"""retry and ExponentialBackOff: functions that are called again when they fail."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import hybriddist as hd
from tests.helpers.scripts import ScriptRunner

pytestmark = pytest.mark.leaks_by_module


class Flaky:
    """Fails so many times, then returns its arguments."""

    def __init__(self, times: int, error: Callable[[int], BaseException] = lambda n: OSError(f"attempt {n}")) -> None:
        self.calls = 0
        self._times = times
        self._error = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error(self.calls)
        return args, kwargs

    async def later(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return self(*args, **kwargs)

    def form(self, kind: str) -> Callable[..., Any]:
        """As a plain function, or as an async one; both are called the plain way."""
        return self if kind == "plain" else self.later


def outcome(value: Any) -> Any:
    """Of a call of either kind."""

    async def main() -> Any:
        return await value

    return asyncio.run(main()) if inspect.isawaitable(value) else value


KINDS = pytest.mark.parametrize("kind", ["plain", "async"])


# ---- ExponentialBackOff -------------------------------------------------------------------------------------------

# Not what is almost too small for a float: there a product of many factors depends on the order.
seconds = st.just(0.0) | st.floats(1e-9, 1e6)


@given(st.integers(0, 50), seconds, seconds, st.floats(0, 1e3), st.floats(0, 1))
def test_each_delay_is_within_its_bounds(
    n: int, first_delay: float, max_delay: float, factor: float, jitter: float
) -> None:
    delays = hd.ExponentialBackOff(n, first_delay, max_delay, factor, jitter)
    listed = list(delays)
    assert len(listed) == len(delays) == n
    for k, delay in enumerate(listed):
        nominal = min(max_delay, first_delay * factor**k)
        rounding = nominal * 1e-9 + 1e-300  # the latter for what has shrunk so far
        assert nominal * (1 - jitter) - rounding <= delay <= nominal * (1 + jitter) + rounding
        assert 0 <= delay <= max_delay


def test_the_nominal_delays() -> None:
    assert list(hd.ExponentialBackOff(n=5, jitter=0)) == [0.05, 0.25, 1.25, 6.25, 10]
    assert list(hd.ExponentialBackOff(n=3, first_delay=8, max_delay=5, factor=0.5, jitter=0)) == [5, 4, 2]
    assert list(hd.ExponentialBackOff(n=0)) == []
    assert len(list(hd.ExponentialBackOff())) == 1


def test_a_factor_that_leaves_the_floats() -> None:
    assert list(hd.ExponentialBackOff(n=2000, factor=1e300, jitter=0))[-1] == 10


def test_jitter_is_drawn_anew() -> None:
    delays = hd.ExponentialBackOff(n=5, max_delay=1e9, jitter=0.5)
    assert list(delays) != list(delays)
    half = hd.ExponentialBackOff(n=200, factor=1, jitter=0.5)
    assert min(half) < 0.035 < 0.065 < max(half)  # of 0.025 to 0.075; one in 10**30 runs fails


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "n must be a whole number of 0 and more, not -1", {"n": -1}),
        (ValueError, "n must be a whole number", {"n": 1.0}),
        (ValueError, "n must be a whole number", {"n": True}),
        (ValueError, "first_delay must be a finite number of 0 and more, not -1", {"first_delay": -1}),
        (ValueError, "first_delay must be", {"first_delay": float("nan")}),
        (ValueError, "max_delay must be a finite number of 0 and more, not inf", {"max_delay": float("inf")}),
        (ValueError, "factor must be", {"factor": -2}),
        (ValueError, "jitter must be a finite number of 0 and more, not -0.1", {"jitter": -0.1}),
        (ValueError, "jitter must be between 0 and 1, not 1.5", {"jitter": 1.5}),
        (TypeError, "factor must be a number, not str", {"factor": "2"}),
    ],
)
def test_bad_arguments_of_the_delays(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hd.ExponentialBackOff(**arguments)


def test_it_is_a_value() -> None:
    delays = hd.ExponentialBackOff(n=3, factor=2)
    assert repr(delays) == "ExponentialBackOff(n=3, first_delay=0.05, max_delay=10.0, factor=2, jitter=0.1)"
    assert delays == hd.ExponentialBackOff(n=3, factor=2) != hd.ExponentialBackOff(n=3)
    assert pickle.loads(pickle.dumps(delays)) == copy.copy(delays) == delays
    with pytest.raises(AttributeError):
        delays.n = 4  # type: ignore[misc]


def test_it_serves_pmap() -> None:
    flaky = Flaky(2)
    assert hd.pmap(flaky, [1], retry_delays=hd.ExponentialBackOff(n=2, first_delay=0)) == [((1,), {})]


# ---- attempts -----------------------------------------------------------------------------------------------------


@KINDS
def test_until_it_succeeds(kind: str) -> None:
    flaky = Flaky(2)
    assert outcome(hd.retry(flaky.form(kind), delays=[0] * 5)(1, two=2)) == ((1,), {"two": 2})
    assert flaky.calls == 3


@KINDS
def test_the_last_exception_is_raised(kind: str) -> None:
    flaky = Flaky(9)
    with pytest.raises(OSError, match="attempt 3") as caught:
        outcome(hd.retry(flaky.form(kind), delays=[0, 0])())
    assert flaky.calls == 3
    assert caught.value.__context__ is None


@KINDS
def test_one_more_attempt_by_default(kind: str) -> None:
    flaky = Flaky(1)
    begin = time.monotonic()
    assert outcome(hd.retry(flaky.form(kind))()) == ((), {})
    assert time.monotonic() - begin >= 0.045
    with pytest.raises(OSError, match="attempt 2"):
        outcome(hd.retry(Flaky(2).form(kind))())


def test_every_call_has_all_the_attempts() -> None:
    flaky = Flaky(10**9)
    retrying = hd.retry(flaky, delays=(delay for delay in [0, 0]))  # an iterator, which can be read once
    for number in (3, 6):
        with pytest.raises(OSError, match=f"attempt {number}"):
            retrying()


def test_delays_of_ones_own_are_read_at_each_call_and_only_as_far_as_needed() -> None:
    class Endless:
        def __iter__(self) -> Iterator[float]:
            reads.append("begun")
            for delay in itertools.repeat(0):
                reads.append("read")
                yield delay

    reads: list[str] = []
    retrying = hd.retry(Flaky(3), delays=Endless())
    assert reads.count("read") == 0
    assert retrying(1) == ((1,), {})
    assert reads.count("read") == 3
    retrying()
    assert reads.count("read") == 3


@KINDS
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_only_exceptions_are_tried_again(kind: str, error: type[BaseException]) -> None:
    async def fail_async() -> None:
        calls.append(1)
        raise error

    def fail() -> None:
        calls.append(1)
        raise error

    calls: list[int] = []
    retrying: Any = hd.retry(fail if kind == "plain" else fail_async, delays=[0] * 3)
    with pytest.raises(error):
        retrying() if kind == "plain" else retrying().send(None)  # without a loop, which would pass it on
    assert calls == [1]


def test_an_interrupt_of_a_worker_is_not_tried_again() -> None:
    captured = hd.CapturedException(KeyboardInterrupt(), "")
    flaky = Flaky(5, lambda _: hd.RemoteException(2, captured))
    checked: list[Any] = []
    with pytest.raises(hd.RemoteException):
        hd.retry(flaky, delays=[0] * 3, check=lambda *seen: checked.append(seen))()
    assert flaky.calls == 1
    assert checked == []


def test_an_async_function_can_be_cancelled_while_it_pauses() -> None:
    async def main() -> int:
        task = asyncio.ensure_future(hd.retry(flaky.later, delays=[60])())
        while not flaky.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return flaky.calls

    flaky = Flaky(5)
    assert asyncio.run(main()) == 1


def test_the_event_loop_goes_on_while_it_pauses() -> None:
    async def main() -> None:
        ticks = 0
        task = asyncio.ensure_future(hd.retry(Flaky(1).later, delays=[0.05])())
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.001)
        assert ticks > 3

    asyncio.run(main())


# ---- check --------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("answer", [False, None, 0, ("state", False)])
def test_check_refuses(kind: str, answer: Any) -> None:
    flaky = Flaky(9)
    with pytest.raises(OSError, match="attempt 1"):
        outcome(hd.retry(flaky.form(kind), delays=[0] * 5, check=lambda state, error: answer)())
    assert flaky.calls == 1


@KINDS
def test_check_has_a_state_of_each_call(kind: str) -> None:
    seen: list[Any] = []

    def check(state: Any, error: BaseException) -> tuple[int, bool]:
        seen.append((state, str(error)))
        return (state or 0) + 1, True

    flaky = Flaky(3)
    retrying = hd.retry(flaky.form(kind), delays=[0] * 9, check=check)
    outcome(retrying())
    flaky.calls = 1
    outcome(retrying())
    first = [(None, "attempt 1"), (1, "attempt 2"), (2, "attempt 3")]
    assert seen == [*first, (None, "attempt 2"), (1, "attempt 3")]


def test_check_without_a_new_state_keeps_the_old_one() -> None:
    seen: list[Any] = []

    def check(state: Any, error: BaseException) -> Any:
        seen.append(state)
        return ("set", True) if state is None else True

    hd.retry(Flaky(3), delays=[0] * 9, check=check)()
    assert seen == [None, "set", "set"]


@KINDS
def test_an_error_of_check_is_raised(kind: str) -> None:
    def check(state: Any, error: BaseException) -> bool:
        raise KeyError("of the check")

    with pytest.raises(KeyError, match="of the check") as caught:
        outcome(hd.retry(Flaky(1).form(kind), check=check)())
    assert isinstance(caught.value.__context__, OSError)


def test_check_is_not_asked_about_the_last_attempt() -> None:
    seen: list[str] = []
    with pytest.raises(OSError, match="attempt 2"):
        hd.retry(Flaky(9), delays=[0], check=lambda _, error: seen.append(str(error)) or True)()
    assert seen == ["attempt 1"]


# ---- what it makes of a function ----------------------------------------------------------------------------------


def documented(x: int, y: int = 2) -> int:
    """What it does."""
    return x + y


async def documented_async(x: int) -> int:
    """What it does later."""
    return x


@hd.retry(delays=[0, 0], check=lambda state, error: isinstance(error, OSError))
def decorated(log: Path, x: int) -> int:
    """Fails at first."""
    with log.open("a") as file:
        file.write("x")
    if len(log.read_text()) < 3:
        raise OSError
    return x


class Client:
    """Methods of all kinds."""

    def __init__(self) -> None:
        self.calls = 0

    @hd.retry(delays=[0] * 3)
    def load(self, x: int) -> int:
        self.calls += 1
        if self.calls < 3:
            raise OSError
        return x

    @hd.retry(delays=[0] * 3)
    async def load_async(self, x: int) -> int:
        return self.load(x)

    @staticmethod
    @hd.retry(delays=[0])
    def add(x: int, y: int) -> int:
        return x + y

    @classmethod
    @hd.retry(delays=[0])
    def name(cls) -> str:
        return cls.__name__


def test_it_looks_like_its_function() -> None:
    retrying: Any = hd.retry(documented, delays=[1], check=None)
    assert (retrying.__name__, retrying.__doc__, retrying.__module__) == ("documented", "What it does.", __name__)
    assert retrying.__wrapped__ is documented
    assert inspect.signature(retrying) == inspect.signature(documented)
    assert repr(retrying) == f"retry({documented!r}, delays=(1.0,), check=None)"
    assert decorated.__doc__ == "Fails at first."


def test_an_async_function_stays_one() -> None:
    retrying: Any = hd.retry(documented_async)
    assert retrying.__name__ == "documented_async"
    if sys.version_info >= (3, 12):
        assert inspect.iscoroutinefunction(retrying)
        assert not inspect.iscoroutinefunction(hd.retry(documented))
    assert outcome(retrying(5)) == outcome(hd.retry(retrying)(5)) == outcome(hd.retry(partial(retrying, 5))()) == 5


def test_as_a_decorator(tmp_path: Path) -> None:
    assert decorated(tmp_path / "log", 5) == 5
    bare = hd.retry(documented)
    assert bare(1) == 3


def test_methods() -> None:
    client = Client()
    assert client.load(5) == 5
    assert client.calls == 3
    assert outcome(Client().load_async(6)) == 6
    assert Client.load(Client(), 7) == 7
    assert (Client.add(1, 2), client.add(1, 2)) == (3, 3)
    assert (Client.name(), client.name()) == ("Client", "Client")


def test_of_something_that_is_no_method() -> None:
    class Length:
        of = hd.retry(len)

    assert Length.of("abc") == Length().of("abc") == 3  # as it is without retry


def test_retries_of_retries() -> None:
    flaky = Flaky(5)
    assert hd.retry(hd.retry(flaky, delays=[0]), delays=[0, 0])() == ((), {})
    assert flaky.calls == 6


def test_it_can_be_pickled_by_anybody_when_its_function_can() -> None:
    retrying = hd.retry(documented, delays=hd.ExponentialBackOff(n=2))
    again: Any = pickle.loads(pickle.dumps(retrying))
    assert again(1) == 3
    assert repr(again) == repr(retrying)
    later: Any = pickle.loads(pickle.dumps(hd.retry(documented_async)))
    assert outcome(later(4)) == 4


# ---- on workers ---------------------------------------------------------------------------------------------------


def test_it_travels_and_tries_there(cluster: list[int], tmp_path: Path) -> None:
    def flaky(x: int) -> tuple[int, int]:
        log = tmp_path / str(x)
        with log.open("a") as file:
            file.write(f"{hd.myid()} ")
        tried = log.read_text().split()
        if len(tried) < 3:
            raise OSError(x)
        return x, len(set(tried))

    assert hd.pmap(hd.retry(flaky, delays=[0, 0.001]), range(9)) == [(x, 1) for x in range(9)]  # each on one worker
    with pytest.raises(hd.RemoteException, match="ValueError"):
        hd.pmap(hd.retry(int, delays=[0]), ["a"])


def test_decorated_functions_and_methods_travel(cluster: list[int], tmp_path: Path) -> None:
    assert hd.remotecall_fetch(decorated, cluster[0], tmp_path / "log", 5) == 5
    assert hd.remotecall_fetch(Client().load, cluster[0], 5) == 5
    assert hd.remotecall_fetch(hd.retry(documented_async), cluster[0], 5) == 5


def test_decorated_functions_of_a_script_travel(run_python: ScriptRunner) -> None:
    done = run_python(
        """
        import hybriddist as hd

        hd.addprocs(2)
        seen = []

        @hd.retry(delays=hd.ExponentialBackOff(n=4, first_delay=0))
        def f(x):
            seen.append(x)
            if len(seen) % 3:
                raise OSError
            return -x

        @hd.retry()
        def calls_another(x):
            return f(x) - 1

        print(hd.pmap(f, range(6)), hd.pmap(calls_another, range(3)))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, -1, -2, -3, -4, -5] [-1, -2, -3]\n", "")


def test_of_a_remote_call_check_sees_the_original(cluster: list[int]) -> None:
    seen: list[type[BaseException]] = []

    def check(state: Any, error: BaseException) -> bool:
        seen.append(type(error))
        return True

    call = hd.retry(hd.remotecall_fetch, delays=[0], check=check)
    with pytest.raises(hd.RemoteException):
        call(divmod, cluster[0], 1, 0)
    assert seen == [ZeroDivisionError]


# ---- bad arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "retry needs a function, not int", lambda: hd.retry(5)),  # type: ignore[call-overload]
        (TypeError, "retry needs a function, not NoneType", lambda: hd.retry(None)),  # type: ignore[call-overload]
        (TypeError, "check must be a function, not bool", lambda: hd.retry(abs, check=True)),  # type: ignore[call-overload]
        (TypeError, "delays must be an iterable of seconds, not int", lambda: hd.retry(abs, delays=3)),  # type: ignore[call-overload]
        (TypeError, "delays must be numbers of seconds, not str", lambda: hd.retry(abs, delays=["1"])),  # type: ignore[list-item]
        (ValueError, "delays must be seconds of 0 and more, not -1", lambda: hd.retry(abs, delays=[1, -1])),
        (ValueError, "delays must be seconds of 0 and more, not inf", lambda: hd.retry(abs, delays=[float("inf")])),
        (ValueError, "more than 10000", lambda: hd.retry(abs, delays=itertools.repeat(1))),
    ],
)  # fmt: skip
def test_bad_arguments_are_told_at_once(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_check_that_returns_too_much_is_named() -> None:
    def fail() -> None:
        raise ValueError

    with pytest.raises(TypeError, match="the check must return whether to try again"):
        hd.retry(fail, delays=[0], check=lambda state, error: (state, True, 1))()
