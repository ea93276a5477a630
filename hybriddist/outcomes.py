"""What becomes of the items of a map: results in order, errors handled, retries planned, the shape kept.

`on_error` and `retry_check` are the user's functions and run here, on the caller's thread, with the original
exception. What this module does not know: where and how the items are computed.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hybriddist.errors import RemoteException
from hybriddist.progress import Progress


class Outcomes:
    """What becomes of the items' ends."""

    def __init__(
        self,
        on_error: Callable[[BaseException], Any] | None,
        delays: Sequence[float],
        check: Callable[[Any, BaseException], Any] | None,
        bar: Progress,
    ) -> None:
        self._on_error = on_error
        self._delays = delays
        self._check = check
        self._states: dict[int, tuple[int, Any]] = {}
        self.results: dict[int, Any] = {}
        self.bar = bar

    def value(self, index: int, value: Any) -> None:
        """An item succeeded."""
        self.results[index] = value
        self._states.pop(index, None)
        self.bar.advance()

    def error(self, index: int, error: Exception) -> float | None:
        """An item failed.

        Returns:
            Seconds until it is to be tried again; None if `on_error` gave a value for it.

        Raises:
            BaseException: it is final, or `on_error` or `retry_check` raised; the exception has ``index``.
        """
        original = original_of(error)
        final: BaseException = error
        if self._on_error is not None:
            try:
                self.value(index, _call_handler(self._on_error, original))
                return None
            except BaseException as raised:
                if raised is not original:  # a bare `raise` in the handler raises the original again
                    final = original = raised
        attempt, state = self._states.get(index, (0, None))
        if attempt < len(self._delays):
            try:
                state, again = try_again(self._check, state, original)
            except BaseException as raised:
                _set_index(raised, index)
                raise
            if again:
                self._states[index] = (attempt + 1, state)
                return self._delays[attempt]
        _set_index(final, index)
        raise final

    def in_order(self) -> list[Any]:
        """The results by index."""
        results = self.results
        return [results[index] for index in range(len(results))]


def original_of(error: BaseException) -> BaseException:
    """The exception that a call raised, wherever it ran: what handlers and checks get to see."""
    return error.captured.ex if isinstance(error, RemoteException) else error


def try_again(
    check: Callable[[Any, BaseException], Any] | None, state: Any, original: BaseException
) -> tuple[Any, bool]:
    """The check's new state, and whether to try again after this exception.

    Never after what is no `Exception` (a Ctrl-C, an exit): then the check is not asked.
    """
    if not isinstance(original, Exception):
        return state, False
    if check is None:
        return state, True
    answer = check(state, original)
    return answer if isinstance(answer, tuple) else (state, answer)


def _set_index(error: BaseException, index: int) -> None:
    try:
        error.index = index  # type: ignore[attr-defined]
    except Exception:
        pass  # a class of the user's that takes no attributes


def _call_handler(handler: Callable[[BaseException], Any], original: BaseException) -> Any:
    """Call a user's error handler inside an ``except`` block of its exception."""
    try:
        raise original
    except BaseException as caught:
        return handler(caught)


def flat(iterable: Iterable[Any]) -> Iterable[Any]:
    """The items; of an array of several dimensions its elements, in C order."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(iterable, numpy.ndarray) and iterable.ndim != 1:
        return iterable.ravel()  # type: ignore[no-any-return]
    return iterable


def common_shape(iterables: Sequence[Any]) -> tuple[int, ...] | None:
    """The shape of the result, if the inputs are arrays.

    Raises:
        ValueError: arrays of different shapes.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    shapes = [iterable.shape for iterable in iterables if isinstance(iterable, numpy.ndarray)]
    if not shapes or len(shapes) < len(iterables):
        return None
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"a map over arrays of different shapes: {', '.join(map(str, shapes))}")
    return tuple(shapes[0])


def in_shape(results: list[Any], shape: tuple[int, ...]) -> Any:
    """An array of the results: of numbers if they are numbers, else of objects."""
    import numpy as np

    if all(isinstance(result, bool | int | float | complex | np.generic) for result in results):
        return np.array(results).reshape(shape)
    array = np.empty(len(results), dtype=object)
    for index, result in enumerate(results):
        array[index] = result
    return array.reshape(shape)


def common_length(iterables: Sequence[Any]) -> int | None:
    """How many items there will be, as far as the inputs tell without being read."""
    lengths = []
    for iterable in map(flat, iterables):
        try:
            lengths.append(len(iterable))  # type: ignore[arg-type]
        except TypeError:  # most iterators have none
            pass
    return min(lengths, default=None)


def checked_delays(delays: Iterable[float]) -> tuple[float, ...]:
    """Delays between attempts, in seconds.

    Raises:
        TypeError, ValueError: one is not a number of seconds.
    """
    return tuple(checked_seconds("retry_delays", delay) for delay in delays)


def checked_seconds(name: str, seconds: float) -> float:
    """One of the durations that ``name`` is about.

    Raises:
        TypeError, ValueError: it is not a number of seconds.
    """
    if not isinstance(seconds, numbers.Real):
        raise TypeError(f"{name} must be numbers of seconds, not {type(seconds).__name__}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be seconds of 0 and more, not {seconds!r}")
    return float(seconds)
