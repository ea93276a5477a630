"""`retry`: a function that calls another one again when it has failed, and `ExponentialBackOff`: when to.

The attempts are made where the function is called: `hd.pmap(hd.retry(f), xs)` tries again on the same worker, while
`hd.pmap(f, xs, retry_delays=...)` gives the item to any worker that is free.

What this module does not know: which exceptions are tried again, and what a check may answer (``outcomes.py``).
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, ParamSpec, TypeVar, overload

from hybriddist.ids import as_whole
from hybriddist.outcomes import checked_seconds, original_of, try_again

P = ParamSpec("P")
R = TypeVar("R")

Check = Callable[[Any, BaseException], Any]

_MOST_OF_AN_ITERATOR: Final = 10_000
"""An iterator can be read only once, so it is read to its end; an endless one must not fill the memory."""

_MISSING: Final = object()


def _check_number(name: str, value: Any) -> None:
    """Like a duration, and so is a factor: a number of 0 and more."""
    try:
        checked_seconds(name, value)
    except TypeError:
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None
    except ValueError:
        raise ValueError(f"{name} must be a finite number of 0 and more, not {value!r}") from None


@dataclass(frozen=True)
class ExponentialBackOff:
    """Delays between attempts, in seconds, that grow by a factor. It can be iterated again and again.

    Delay k is ``min(max_delay, first_delay * factor**k)``, times a random number between ``1 - jitter`` and
    ``1 + jitter``, which is drawn anew in each iteration, so that many who fail together do not all come back
    together. It is never more than ``max_delay``.

    Args:
        n: how many delays: so many further attempts.
        first_delay: seconds.
        max_delay: seconds.
        factor: from one delay to the next; below 1 they shrink.
        jitter: 0 (none) to 1.

    Raises:
        ValueError: one of them is out of its range.
        TypeError: one of the last four is no number.

    Example::

        list(hd.ExponentialBackOff(n=3, first_delay=1, factor=2, jitter=0))     # [1.0, 2.0, 4.0]

    Source: Julia's ``ExponentialBackOff``. There the first delay is exact.
    """

    n: int = 1
    first_delay: float = 0.05
    max_delay: float = 10.0
    factor: float = 5.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        n = as_whole(self.n)
        if n is None or n < 0:
            raise ValueError(f"n must be a whole number of 0 and more, not {self.n!r}")
        object.__setattr__(self, "n", n)
        for field in fields(self)[1:]:
            _check_number(field.name, getattr(self, field.name))
        if self.jitter > 1:
            raise ValueError(f"jitter must be between 0 and 1, not {self.jitter!r}")

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[float]:
        longest = float(self.max_delay)
        nominal = float(self.first_delay)
        for _ in range(self.n):
            yield min(longest, min(longest, nominal) * random.uniform(1 - self.jitter, 1 + self.jitter))
            nominal *= self.factor  # infinity, if ever, where a power would overflow


_ONE_DELAY: Final = ExponentialBackOff()


@overload
def retry(f: Callable[P, R], /, delays: Iterable[float] = ..., check: Check | None = None) -> Callable[P, R]: ...
@overload
def retry(
    *, delays: Iterable[float] = ..., check: Check | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def retry(f: Any = _MISSING, /, delays: Iterable[float] = _ONE_DELAY, check: Check | None = None) -> Any:
    """A function that calls ``f`` and, each time it raises an `Exception`, calls it again after the next delay.

    It can be sent to workers when ``f`` can, and makes its attempts there. Of an ``async def`` it makes one that
    awaits its delays. Without ``f`` it is a decorator::

        @hd.retry(delays=hd.ExponentialBackOff(n=3), check=lambda state, error: isinstance(error, OSError))
        def load(url): ...

    Args:
        f: the function.
        delays: seconds before each further attempt; when they are used up, the last exception is raised. Iterated at
            every call of the function, so that an `ExponentialBackOff` draws its jitter anew; an iterator is read to
            its end now.
        check: ``check(state, exception)`` returns whether to try again, or a new state and that. The state is None at
            first in every call of the function. Of a `RemoteException` it sees the original.

    Raises:
        TypeError: ``f`` or ``check`` is no function, or ``delays`` no iterable of numbers.
        ValueError: a delay is below 0 or not finite, or an iterator of delays seems to be endless.

    A `KeyboardInterrupt` or `SystemExit` is never tried again, also where it was raised by a worker.

    Source: Julia's ``retry``.
    """
    if f is _MISSING:
        return functools.partial(retry, delays=delays, check=check)
    if not callable(f):
        raise TypeError(f"retry needs a function, not {type(f).__name__}")
    if check is not None and not callable(check):
        raise TypeError(f"check must be a function, not {type(check).__name__}")
    return _retrying(f, _readable_again(delays), check)


def is_async(f: Callable[..., Any]) -> bool:
    """Whether a call of ``f`` returns something to await: an ``async def``, bound or not, or an object with one."""
    import inspect  # 5 ms

    while isinstance(f, functools.partial):
        f = f.func
    return inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(type(f).__call__)


def _readable_again(delays: Iterable[float]) -> Iterable[float]:
    """The same delays, as something that can be iterated at each call; checked now as far as they are known now."""
    if isinstance(delays, ExponentialBackOff):
        return delays
    try:
        is_iterator = iter(delays) is delays
    except TypeError:
        raise TypeError(f"delays must be an iterable of seconds, not {type(delays).__name__}") from None
    if is_iterator:
        delays = list(itertools.islice(delays, _MOST_OF_AN_ITERATOR + 1))
        if len(delays) > _MOST_OF_AN_ITERATOR:
            raise ValueError(
                f"the iterator of delays has more than {_MOST_OF_AN_ITERATOR} of them; for attempts without end, "
                "give an object whose __iter__ returns a new iterator each time"
            )
    if isinstance(delays, Sequence):
        return tuple(checked_seconds("delays", delay) for delay in delays)
    return delays


class _Retrying:
    """What `retry` returns. An object, not a closure: so it can be pickled by anybody, when its function can."""

    def __init__(self, f: Callable[..., Any], delays: Iterable[float], check: Check | None) -> None:
        functools.update_wrapper(self, f)
        self._f = f
        self._delays = delays
        self._check = check

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attempts = _Attempts(self._delays, self._check)
        while True:
            try:
                return self._f(*args, **kwargs)
            except Exception as error:
                delay = attempts.delay_after(error)
                if delay is None:
                    raise
            time.sleep(delay)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As an attribute of a class it is a method where its function would be one."""
        bind = getattr(type(self._f), "__get__", None)
        return self if bind is None else _retrying(bind(self._f, instance, owner), self._delays, self._check)

    def __repr__(self) -> str:
        return f"retry({self._f!r}, delays={self._delays!r}, check={self._check!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _retrying, (self._f, self._delays, self._check)


class _AsyncRetrying(_Retrying):
    """The same of an ``async def``."""

    def __init__(self, f: Callable[..., Any], delays: Iterable[float], check: Check | None) -> None:
        super().__init__(f, delays, check)
        import inspect

        if hasattr(inspect, "markcoroutinefunction"):  # from Python 3.12 on an object can say so
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import asyncio

        attempts = _Attempts(self._delays, self._check)
        while True:
            try:
                return await self._f(*args, **kwargs)
            except Exception as error:
                delay = attempts.delay_after(error)
                if delay is None:
                    raise
            await asyncio.sleep(delay)


def _retrying(f: Callable[..., Any], delays: Iterable[float], check: Check | None) -> _Retrying:
    return (_AsyncRetrying if is_async(f) else _Retrying)(f, delays, check)


class _Attempts:
    """One call of such a function: what is left of the delays, and the check's state."""

    def __init__(self, delays: Iterable[float], check: Check | None) -> None:
        self._delays = iter(delays)
        self._check = check
        self._state: Any = None

    def delay_after(self, error: Exception) -> float | None:
        """Seconds until the next attempt; None if there is to be none."""
        for delay in self._delays:
            self._state, again = try_again(self._check, self._state, original_of(error))
            return checked_seconds("delays", delay) if again else None
        return None


__all__ = ["ExponentialBackOff", "is_async", "retry"]
