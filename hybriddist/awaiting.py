"""What is done when a future ends: callbacks, `await`, and `as_completed`.

What nobody waits for any more (a timeout, a loop that is left) is taken back: it would keep the future alive, and with
it the value on the process that has it.

What this module does not know: how the end comes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from hybriddist.deadline import Deadline

if TYPE_CHECKING:
    from hybriddist.future import Future
    from hybriddist.runtime.completion import Completion
    from hybriddist.runtime.process import Process

F = TypeVar("F", bound="Future")
T = TypeVar("T")


def as_completed(futures: Iterable[F], timeout: float | None = None) -> Iterator[F]:
    """The futures in the order in which they end: with a value, an error, or cancelled.

    Args:
        futures: each is returned once, also if it is given twice.
        timeout: seconds for all of them, from the call on; None waits without limit.

    Raises:
        TimeoutError: by the iterator, when the time is over and some have not ended; nothing is lost.
        TypeError: at once, if something is no future.

    Example::

        for future in hd.as_completed([hd.remotecall(f, pid) for pid in hd.workers()]):
            print(future.fetch())

    Source: `concurrent.futures.as_completed`.
    """
    deadline = Deadline(timeout)
    distinct = list(dict.fromkeys(futures))
    for future in distinct:
        if not hasattr(future, "add_done_callback"):
            raise TypeError(f"as_completed takes futures, not {type(future).__name__}")
    in_order = _in_order_of_ending(distinct, deadline, timeout)
    next(in_order)
    return in_order  # type: ignore[return-value]  # the None is out


def _in_order_of_ending(futures: list[F], deadline: Deadline, timeout: float | None) -> Iterator[F | None]:
    """First None, when it listens to all of them; from then on it is closed also if nobody goes on."""
    ended: SimpleQueue[int] = SimpleQueue()
    listening: dict[int, tuple[F, Callable[[], None]]] = {}
    count = len(futures)
    try:
        for number in range(count):
            listening[number] = futures[number], _listen(futures[number], partial(_put, ended, number))
        futures.clear()  # what is given out is the user's to keep or not
        yield None
        while listening:
            try:
                number = ended.get(timeout=deadline.remaining())
            except Empty:
                text = f"{len(listening)} of {count} futures did not end within {timeout} seconds"
                raise TimeoutError(text) from None
            yield listening.pop(number)[0]
    finally:
        while listening:  # also emptied: the traceback of a TimeoutError may live on
            listening.popitem()[1][1]()


def _put(ended: SimpleQueue[int], number: int, _: Any) -> None:
    ended.put(number)


def until_ended(future: Future) -> Generator[Any, None, None]:
    """Await the end of a future, without blocking the event loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ended.done():
            ended.set_result(None)

    def wake(_: Future) -> None:
        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody awaits any more

    take_back = _listen(future, wake)
    try:
        yield from ended
    finally:
        take_back()


def _listen(future: Any, function: Callable[[Any], None]) -> Callable[[], None]:
    """Have ``function(future)`` called when it has ended: what takes that back.

    What is no `Future`, such as a loop, keeps the function to its end.
    """
    if hasattr(future, "_when_done"):
        return future._when_done(function)  # type: ignore[no-any-return]
    future.add_done_callback(function)
    return _nothing


def when_done(future: F, function: Callable[[F], Any]) -> Callable[[], None]:
    """Call ``function(future)`` when its end is known, on a thread of the library or now: what takes that back."""
    source = future._begin()
    if source is None:
        run_callback(function, future)
        return _nothing

    def run() -> None:
        future._finish(source)
        run_callback(function, future)

    return _run_after(future._process, source[0], run)


def _run_after(process: Process, end: Completion, run: Callable[[], None]) -> Callable[[], None]:
    """Run something on a thread of the library when ``end`` has come: what takes that back."""

    def ended(_: Completion) -> None:
        # Not here: this thread receives, and must neither unpickle nor run what users wrote.
        process.start()
        process.executor.submit(run)

    end.add_callback(ended)
    process.start()
    return partial(end.remove_callback, ended)


def check_callback(function: Any) -> None:
    """See that it can be called."""
    if not callable(function):
        raise TypeError(f"add_done_callback takes a function, not {type(function).__name__}")


def run_callback(function: Callable[[T], Any], future: T) -> None:
    """Call a user's callback; what it raises is shown."""
    try:
        function(future)
    except Exception:
        import traceback

        traceback.print_exc()


def _nothing() -> None:
    """What there is to take back when it is over."""
