"""The calls: run a function on another process.

``remotecall`` and its family send a function and its arguments to a process. Consecutive calls to one process arrive
in order; their executions overlap where they block. A call to the own pid passes objects by reference; to any other
process it passes copies.

What this module does not know: how calls travel (``runtime``), and how workers come to be (``cluster``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hybriddist.core.messages import Mode
from hybriddist.future import Future
from hybriddist.ids import as_pid
from hybriddist.runtime.current import current
from hybriddist.scopes import joined

T = TypeVar("T")


def remotecall(f: Callable[..., Any], where: int, /, *args: Any, **kwargs: Any) -> Future:
    """Run ``f(*args, **kwargs)`` on process ``where``; returns at once.

    Args:
        f: any callable; functions of the caller's script and lambdas travel by value.
        where: a pid.

    Returns:
        A `Future` of the value, which stays on ``where`` until it is fetched.

    Raises:
        SerializeError: ``f`` or an argument cannot be pickled; nothing was sent.
        NoSuchProcessError, ProcessExitedException: there is no such process, or no more.

    Example:
        >>> import hybriddist as hd
        >>> hd.remotecall(pow, hd.myid(), 2, 10).fetch()
        1024

    Source: Julia's Distributed, ``remotecall``.
    """
    return _call(f, where, args, kwargs, Mode.STORE)


def remotecall_fetch(f: Callable[..., T], where: int, /, *args: Any, **kwargs: Any) -> T:
    """``remotecall(...).fetch()`` in one message each way: the value itself.

    Raises:
        RemoteException: ``f`` raised; the original exception is ``__cause__``.
        Others: as `remotecall`.

    Source: Julia's Distributed, ``remotecall_fetch``.
    """
    return current().fetch_call(f, _check(f, where), args, kwargs)  # type: ignore[no-any-return]


def remotecall_wait(f: Callable[..., Any], where: int, /, *args: Any, **kwargs: Any) -> Future:
    """`remotecall`, returning when the call is complete. The value stays on ``where``.

    Raises:
        RemoteException: ``f`` raised.

    Source: Julia's Distributed, ``remotecall_wait``.
    """
    return _call(f, where, args, kwargs, Mode.WAIT)


def remote_do(f: Callable[..., Any], where: int, /, *args: Any, **kwargs: Any) -> None:
    """Run ``f`` on process ``where`` and forget about it. An exception is shown on that process's stderr.

    Source: Julia's Distributed, ``remote_do``.
    """
    where = _check(f, where)
    process = current()
    if where == process.pid:
        process.store_call_here(f, args, kwargs, None)
    else:
        process.start_call(f, process.peer(where), args, kwargs, Mode.DO, 0, 0)


def spawnat(where: int | Literal["any"], f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
    """`remotecall` with the process first; ``"any"`` takes the workers in turn. A block of `sync` waits for it.

    Source: Julia's Distributed, ``@spawnat``.
    """
    return joined(_call(f, _place(where), args, kwargs, Mode.STORE))


def spawn(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
    """``spawnat("any", f, ...)``."""
    return spawnat("any", f, *args, **kwargs)


def fetchfrom(where: int | Literal["any"], f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """The value of ``spawnat(where, f, ...)``, in one message each way.

    Source: Julia's Distributed, ``@fetchfrom`` and ``@fetch``.
    """
    return remotecall_fetch(f, _place(where), *args, **kwargs)


def _call(f: Callable[..., Any], where: int, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Mode) -> Future:
    where = _check(f, where)
    process = current()
    future = Future._of_call(process, where)
    rrid = future._rrid
    if where == process.pid:
        process.store.created(rrid)
        process.references.created(rrid, where, future, announced=True)
        process.store_call_here(f, args, kwargs, rrid)
        return future.wait() if mode == Mode.WAIT else future
    peer = process.peer(where)
    # Before the call is sent: if a Ctrl-C strikes while it is, nobody knows whether it was, and the handle's end is to
    # release the value. If it was not, the owner is told to forget what it does not know, which does no harm.
    process.references.created(rrid, where, future, announced=True)
    try:
        completion = process.start_call(f, peer, args, kwargs, mode, rrid.whence, rrid.id)
    except Exception:
        process.references.never_told(rrid)
        raise
    if mode == Mode.WAIT:
        process.wait(completion, peer)
        if completion.outcome:
            future._finish((completion, peer))
            future._result()
    return future


def _check(f: Any, where: Any) -> int:
    if not callable(f):
        raise TypeError(f"the first argument must be callable, not {type(f).__name__}")
    return as_pid(where)


def _place(where: int | Literal["any"]) -> int:
    if where == "any":
        workers = current().membership.workers()
        return workers[next(current().turns) % len(workers)]
    return where


__all__ = [
    "fetchfrom", "remote_do", "remotecall", "remotecall_fetch", "remotecall_wait", "spawn", "spawnat",
]  # fmt: skip
