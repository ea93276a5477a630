"""`sync`: a block that ends when all that was begun in it has ended.

::

    with hd.sync():
        hd.spawn(f, 1) ──────────┐ each enters itself in the innermost scope
        hd.spawn(g, 2) ──────────┤ of its thread or asyncio task
        hd.distributed(h, xs) ───┘
    here all three have ended; their failures are raised, in this order, as one CompositeException

Which scope is the innermost is a context variable: threads begin without one, asyncio tasks inherit it, and so does
whatever is run in a copied context.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from hybriddist.deadline import Deadline
from hybriddist.errors import CompositeException

W = TypeVar("W", bound="Waitable")


class Waitable(Protocol):
    """What can be waited for in a scope."""

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the end; raise what went wrong."""


_innermost: Final[ContextVar[Scope | None]] = ContextVar("hybriddist_sync", default=None)
"""Belongs to whoever runs, like the process object in `runtime/context.py`."""


def sync(timeout: float | None = None) -> Scope:
    """A block that waits, at its end, for everything that was begun in it.

    That is each `spawnat`, `spawn`, and `distributed` without a reducer, also in functions that the block calls. It is
    not `remotecall`, and not what a thread begins that was started in the block. Blocks can be nested: each waits for
    its own. Nothing is cancelled when something fails: the others go on to their ends.

    If the block itself raises, what it began is waited for all the same. Its exception goes on as it is if nothing
    else failed, and is the first of the group otherwise. A `KeyboardInterrupt` or another exception that is no
    `Exception` leaves at once, in the block and while waiting.

    Args:
        timeout: seconds to wait at the end of the block; None waits without limit.

    Returns:
        A context manager, which gives itself. After a `TimeoutError` its ``wait(timeout)`` goes on waiting.

    Raises:
        CompositeException: (at the end of the block) all failures, in order of submission: a `RemoteException` or
            `ProcessExitedException` each.
        TimeoutError: (at the end of the block) not all ended within ``timeout``. Nothing is lost or cancelled.

    Example:
        >>> import hybriddist as hd
        >>> with hd.sync():
        ...     squares = [hd.spawn(pow, i, 2) for i in range(3)]
        >>> [square.fetch() for square in squares]
        [0, 1, 4]

    Source: Julia's ``@sync``.
    """
    Deadline(timeout)  # what is no timeout is said here, not at the end of the block
    return Scope(timeout)


class Scope:
    """What `sync` returns."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._begun: list[Waitable] = []
        self._error: Exception | None = None
        """What the block itself raised."""
        self._tokens: list[Token[Scope | None]] = []

    def wait(self, timeout: float | None = None) -> None:
        """Wait for all that was begun in the block so far.

        Raises:
            CompositeException, TimeoutError: as at the end of the block.
        """
        deadline = Deadline(timeout)
        failures: list[Exception] = [] if self._error is None else [self._error]
        for index, waitable in enumerate(self._begun):  # it may grow meanwhile
            try:
                waitable.wait(deadline.remaining())
            except TimeoutError as error:
                if timeout is None:
                    failures.append(error)
                    continue
                raise TimeoutError(
                    f"not all that was begun in the sync block ended within {timeout} seconds: the first that did not "
                    f"is number {index + 1} of {len(self._begun)}"
                ) from None
            except CompositeException as group:  # of a loop: its parts failed in their order
                failures += group.exceptions
            except Exception as error:
                failures.append(error)
        if failures and failures != [self._error]:
            raise CompositeException("sync: calls failed", failures)

    def __enter__(self) -> Scope:
        self._tokens.append(_innermost.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _innermost.reset(self._tokens.pop())
        if error is not None:
            if not isinstance(error, Exception):
                return
            self._error = error
        self.wait(self._timeout)


def joined(waitable: W) -> W:
    """Enter something in the innermost scope, if there is one; returns it."""
    scope = _innermost.get()
    if scope is not None:
        scope._begun.append(waitable)
    return waitable


__all__ = ["Scope", "joined", "sync"]
