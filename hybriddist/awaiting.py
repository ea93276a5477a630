"""What is done when a future ends: callbacks, `await`, and `as_completed`.

What this module does not know: futures, other than that they have ``add_done_callback``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
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
    ended: SimpleQueue[Any] = SimpleQueue()
    for future in distinct:
        future.add_done_callback(lambda each: ended.put(each))
    return _in_order_of_ending(ended, len(distinct), deadline, timeout)


def _in_order_of_ending(ended: SimpleQueue[Any], count: int, deadline: Deadline, timeout: float | None) -> Iterator[F]:
    for number in range(count):
        try:
            yield ended.get(timeout=deadline.remaining())
        except Empty:
            raise TimeoutError(f"{count - number} of {count} futures did not end within {timeout} seconds") from None


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

    future.add_done_callback(wake)
    yield from ended


def run_after(process: Process, end: Completion, run: Callable[[], None]) -> None:
    """Run something on a thread of the library when ``end`` has come."""

    def ended(_: Completion) -> None:
        # Not here: this thread receives, and must neither unpickle nor run what users wrote.
        process.start()
        process.executor.submit(run)

    end.add_callback(ended)
    process.start()


def run_callback(function: Callable[[T], Any], future: T) -> None:
    """Call a user's callback; what it raises is shown."""
    try:
        function(future)
    except Exception:
        import traceback

        traceback.print_exc()
