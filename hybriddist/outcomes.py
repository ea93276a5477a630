"""What becomes of the items of a map: results in order, errors handled, retries planned, the shape kept.

`on_error` and `retry_check` are the user's functions and run here, on the caller's thread, with the original
exception. What this module does not know: where and how the items are computed.
"""

from __future__ import annotations

import itertools
import math
import numbers
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hybriddist.errors import RemoteException
from hybriddist.progress import Progress
from hybriddist.runtime.blocks import BlockHandle


class Outcomes:
    """What becomes of the items' ends; keeps all results, in order.

    Attributes:
        results: by index; complete when all items have ended.
    """

    def __init__(
        self,
        bar: Progress,
        on_error: Callable[[BaseException], Any] | None,
        delays: Iterable[float],
        check: Callable[[Any, BaseException], Any] | None,
    ) -> None:
        self._on_error = on_error
        self._delays = delays
        self._check = check
        self._retries: dict[int, tuple[Iterator[float], Any]] = {}
        """Of each item that has failed and has not ended: what is left of its delays, and its check's state."""
        self.results: list[Any] = []
        self._bar = bar

    def value(self, index: int, value: Any) -> None:
        """An item succeeded."""
        results = self.results
        if index == len(results):
            results.append(value)
        else:
            self._make_room(index + 1)
            results[index] = value
        if self._bar.shown or self._retries:
            self._ended(index)

    def values(self, indices: Sequence[int], values: list[Any]) -> None:
        """Several items succeeded."""
        if type(indices) is range:
            self._make_room(indices.start + len(values))
            self.results[indices.start : indices.start + len(values)] = values
            self._bar.advance(len(values))
        else:
            for index, value in zip(indices, values, strict=False):
                self.value(index, value)

    def _ended(self, index: int) -> None:
        if self._retries:  # an endless map must not keep them
            self._retries.pop(index, None)
        self._bar.advance()

    def _make_room(self, length: int) -> None:
        missing = length - len(self.results)
        if missing > 0:
            self.results.extend([None] * missing)

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
        try:
            delay = self._delay_after(index, original)
        except BaseException as raised:
            _set_index(raised, index)
            raise
        if delay is not None:
            return delay
        _set_index(final, index)
        raise final

    def _delay_after(self, index: int, original: BaseException) -> float | None:
        """Seconds until the next attempt of an item; None if there is to be none."""
        delays, state = self._retries.get(index) or (iter(self._delays), None)
        for delay in delays:
            state, again = try_again(self._check, state, original)
            if again:
                self._retries[index] = (delays, state)
                return checked_seconds("retry_delays", delay)
            break
        return None


class PassingOutcomes(Outcomes):
    """Keeps the results only until somebody takes them, in the order in which they come.

    Attributes:
        waiting: by index.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.waiting: dict[int, Any] = {}

    def value(self, index: int, value: Any) -> None:
        self.waiting[index] = value
        if self._bar.shown or self._retries:
            self._ended(index)

    def values(self, indices: Sequence[int], values: list[Any]) -> None:
        if type(indices) is range:
            self.waiting.update(zip(indices, values, strict=False))
            self._bar.advance(len(values))
        else:
            for index, value in zip(indices, values, strict=False):
                self.value(index, value)

    def take(self, index: int | None) -> deque[Any]:
        """Take the results from ``index`` on, as far as they are there; None: all that are."""
        waiting = self.waiting
        if index is None:
            came = deque(waiting.values())
            waiting.clear()
            return came
        came = deque()
        while index in waiting:
            came.append(waiting.pop(index))
            index += 1
        return came


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
    if not isinstance(answer, tuple):
        return state, answer
    if len(answer) != 2:
        raise TypeError(f"the check must return whether to try again, or (state, that), not a tuple of {len(answer)}")
    return answer


def _set_index(error: BaseException, index: int) -> None:
    """Have an exception say which item it is about, also to those who only see its traceback."""
    try:
        error.index = index  # type: ignore[attr-defined]
        note = f"raised for item {index} of a map"
        if note not in getattr(error, "__notes__", ()):  # raised again by a handler of the user's
            error.add_note(note)
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
    numpy: Any = sys.modules.get("numpy")
    if isinstance(iterable, BlockHandle):  # a shared array
        iterable = numpy.asarray(iterable)
    if numpy is not None and isinstance(iterable, numpy.ndarray) and iterable.ndim != 1:
        # The row of a matrix is a matrix again, also that of one with a single row.
        array: Any = numpy.asarray(iterable) if isinstance(iterable, numpy.matrix) else iterable
        return array.ravel()  # type: ignore[no-any-return]
    return iterable


def common_shape(iterables: Sequence[Any]) -> tuple[int, ...] | None:
    """The shape of the result, if the inputs are arrays.

    Raises:
        ValueError: arrays of different shapes.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    shapes: list[tuple[int, ...]] = [
        iterable.shape  # type: ignore[union-attr]
        for iterable in iterables
        if isinstance(iterable, numpy.ndarray | BlockHandle)
    ]
    if not shapes or len(shapes) < len(iterables):
        return None
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"a map over arrays of different shapes: {', '.join(map(str, shapes))}")
    return tuple(shapes[0])


def in_shape(results: list[Any], shape: tuple[int, ...]) -> Any:
    """An array of the results: of numbers if they are numbers, else of objects."""
    import numpy as np

    if all(isinstance(result, bool | int | float | complex | np.generic) for result in results):
        numbers = np.array(results)
        # Whole numbers that no whole type of numpy's holds together would be rounded.
        if (
            numbers.dtype.kind != "f"
            or not all(isinstance(result, int | np.integer) for result in results)
            or not results
        ):
            return numbers.reshape(shape)
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
        except (TypeError, OverflowError):  # most iterators have none; that of range(2**70) cannot be told
            pass
    return min(lengths, default=None)


class _ReadOnce:
    """The values of an iterator for several readers, of which each gets all; read when the first one wants them.

    So an iterator may be endless. What is kept is as much as the most patient reader has read.
    """

    def __init__(self, iterator: Iterator[float]) -> None:
        self._iterator = iterator
        self._read: list[float] = []

    def __iter__(self) -> Iterator[float]:
        for position in itertools.count():
            if position == len(self._read):
                try:
                    self._read.append(next(self._iterator))
                except StopIteration:
                    return
            yield self._read[position]


def checked_delays(delays: Iterable[float]) -> Iterable[float]:
    """Delays between attempts, in seconds, to be iterated for each item. They may be endless.

    A sequence is checked now; others when they are read. What can be iterated again is iterated for each item, so that
    an `ExponentialBackOff` draws each item's jitter; an iterator gives all items the same.

    Raises:
        TypeError, ValueError: one is not a number of seconds.
    """
    if isinstance(delays, list | tuple):
        return tuple(checked_seconds("retry_delays", delay) for delay in delays)
    try:
        iterator = iter(delays)
    except TypeError:
        raise TypeError(f"retry_delays must be an iterable of seconds, not {type(delays).__name__}") from None
    return _ReadOnce(iterator) if iterator is delays else delays


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
