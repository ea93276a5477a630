"""The calls: run a function on another process.

``remotecall`` and its family send a function and its arguments to a process. Consecutive calls to one process arrive
in order; their executions overlap where they block. A call to the own pid passes objects by reference; to any other
process it passes copies. In the place of a process a worker pool may stand: the call takes one of its workers, and puts
it back when it has ended.

What this module does not know: how calls travel (``runtime``), how workers come to be (``cluster``), and how a
pool works (``pools``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hybriddist.core.messages import Mode
from hybriddist.future import Future
from hybriddist.ids import as_pid
from hybriddist.pools import AbstractWorkerPool
from hybriddist.runtime.current import current
from hybriddist.runtime.loans import Loan
from hybriddist.runtime.process import Process
from hybriddist.scopes import joined

T = TypeVar("T")


def remotecall(f: Callable[..., Any], where: int | AbstractWorkerPool, /, *args: Any, **kwargs: Any) -> Future:
    """Run ``f(*args, **kwargs)`` on process ``where``; returns at once.

    Args:
        f: any callable; functions of the caller's script and lambdas travel by value.
        where: a pid; or a worker pool. Then this waits until a worker is free. Nobody else gets it from the pool until
            the call has ended, also if the future is dropped or cancelled before.

    Returns:
        A `Future` of the value, which stays on ``where`` until it is fetched.

    Raises:
        SerializeError: ``f`` or an argument cannot be pickled; nothing was sent.
        NoSuchProcessError, ProcessExitedException: there is no such process, or no more.
        ClusterError: no member of the pool lives.

    Example:
        >>> import hybriddist as hd
        >>> hd.remotecall(pow, hd.myid(), 2, 10).fetch()
        1024

    Source: Julia's Distributed, ``remotecall``.
    """
    return _call(f, where, args, kwargs, Mode.STORE)


def remotecall_fetch(f: Callable[..., T], where: int | AbstractWorkerPool, /, *args: Any, **kwargs: Any) -> T:
    """``remotecall(...).fetch()`` in one message each way: the value itself.

    Raises:
        RemoteException: ``f`` raised; the original exception is ``__cause__``.
        Others: as `remotecall`.

    Source: Julia's Distributed, ``remotecall_fetch``.
    """
    if type(where) is not int and isinstance(where, AbstractWorkerPool):
        return _fetch_on_pool(f, where, args, kwargs)  # type: ignore[no-any-return]
    return current().fetch_call(f, _check(f, where), args, kwargs)  # type: ignore[no-any-return]


def remotecall_wait(f: Callable[..., Any], where: int | AbstractWorkerPool, /, *args: Any, **kwargs: Any) -> Future:
    """`remotecall`, returning when the call is complete. The value stays on ``where``.

    Raises:
        RemoteException: ``f`` raised.

    Source: Julia's Distributed, ``remotecall_wait``.
    """
    return _call(f, where, args, kwargs, Mode.WAIT)


def remote_do(f: Callable[..., Any], where: int | AbstractWorkerPool, /, *args: Any, **kwargs: Any) -> None:
    """Run ``f`` on process ``where`` and forget about it. An exception is shown on that process's stderr.

    A worker of a pool is put back at once: nobody hears of the call's end.

    Source: Julia's Distributed, ``remote_do``.
    """
    if type(where) is not int and isinstance(where, AbstractWorkerPool):
        _do_on_pool(f, where, args, kwargs)
    else:
        _do(current(), f, _check(f, where), args, kwargs)


def spawnat(
    where: int | AbstractWorkerPool | Literal["any"], f: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Future:
    """`remotecall` with the process or pool first; ``"any"`` takes the workers in turn. A block of `sync` waits for it.

    Source: Julia's Distributed, ``@spawnat``.
    """
    return joined(_call(f, _place(where, f, "spawnat"), args, kwargs, Mode.STORE))


def spawn(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
    """``spawnat("any", f, ...)``."""
    return joined(_call(f, _any(), args, kwargs, Mode.STORE))


def fetchfrom(where: int | AbstractWorkerPool | Literal["any"], f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """The value of ``spawnat(where, f, ...)``, in one message each way.

    Source: Julia's Distributed, ``@fetchfrom`` and ``@fetch``.
    """
    return remotecall_fetch(f, _place(where, f, "fetchfrom"), *args, **kwargs)


# ---- on a process ---------------------------------------------------------------------------------------------------


def _call(
    f: Callable[..., Any], where: int | AbstractWorkerPool, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Mode
) -> Future:
    if type(where) is not int and isinstance(where, AbstractWorkerPool):
        return _call_on_pool(f, where, args, kwargs, mode)
    return _begin(current(), f, _check(f, where), args, kwargs, mode, None)


def _begin(
    process: Process, f: Callable[..., Any], pid: int, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Mode,
    loan: Loan | None,
) -> Future:  # fmt: skip
    """Begin a call, and in mode WAIT wait for its end.

    Args:
        loan: is to end with the call.
    """
    future = Future._of_call(process, pid)
    rrid = future._rrid
    if pid == process.pid:
        process.references.created(rrid, pid, future)
        if loan is None:
            process.store_call_here(f, args, kwargs, rrid)
        else:
            loan.call_here(f, args, kwargs, rrid)
        return future.wait() if mode == Mode.WAIT else future
    peer = process.peer(pid)
    # Before the call is sent: if a Ctrl-C strikes while it is, nobody knows whether it was, and the handle's end is to
    # release the value. If it was not, the owner is told to forget what it does not know, which does no harm.
    process.references.created(rrid, pid, future, announced=True)
    try:
        # In mode WAIT the worker tells when the call has ended, also if nobody here waits for that.
        told = mode if loan is None else Mode.WAIT
        completion = process.start_call(f, peer, args, kwargs, told, rrid.whence, rrid.id)
    except Exception:
        process.references.never_told(rrid)
        raise
    if loan is not None:
        loan.end_after(completion)
    if mode == Mode.WAIT:
        process.wait(completion, peer)
        if completion.outcome:
            future._finish((completion, peer))
            future._result()
    return future


def _do(process: Process, f: Callable[..., Any], pid: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if pid == process.pid:
        process.store_call_here(f, args, kwargs, None)
    else:
        process.start_call(f, process.peer(pid), args, kwargs, Mode.DO, 0, 0)


# ---- on a pool ------------------------------------------------------------------------------------------------------


def _call_on_pool(
    f: Callable[..., Any], pool: AbstractWorkerPool, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Mode
) -> Future:
    process, loan = _loan(f, pool)
    loan.pid = pool.take()
    try:
        return _begin(process, _function(f, pool, loan, process), loan.pid, args, kwargs, mode, loan)
    except BaseException:
        if not loan.is_under_way:
            loan.end()
        raise


def _fetch_on_pool(f: Any, pool: AbstractWorkerPool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    process, loan = _loan(f, pool)
    loan.pid = pool.take()
    completion = None
    try:
        if loan.pid == process.pid:
            return process.call_here(f, args, kwargs)
        peer = process.peer(loan.pid)
        completion = process.start_call(_function(f, pool, loan, process), peer, args, kwargs, Mode.FETCH, 0, 0)
        if not completion.done:
            process.wait(completion, peer)
    finally:
        if completion is None or completion.done:
            loan.end()
        else:  # a Ctrl-C: the worker is still at it
            loan.end_after(completion)
    return process.value_of(completion, peer)


def _do_on_pool(f: Any, pool: AbstractWorkerPool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    process, loan = _loan(f, pool)
    loan.pid = pool.take()
    try:
        function = _function(f, pool, loan, process)
        if loan.kept is None:
            _do(process, function, loan.pid, args, kwargs)
        else:  # the loan ends before the call: what is kept goes along with it
            _do(process, _call_keeping, loan.pid, (loan.kept, function, args, kwargs), {})
    finally:
        loan.end()


def _loan(f: Any, pool: AbstractWorkerPool) -> tuple[Process, Loan]:
    """For a worker that is about to be taken."""
    process = current()
    _check(f, process.pid)
    return process, Loan(process, pool.put, pool.is_here)


def _function(f: Any, pool: AbstractWorkerPool, loan: Loan, process: Process) -> Any:
    """What to send to the worker in the place of ``f``."""
    if loan.pid == process.pid:
        return f
    function, loan.kept = pool.function_on(loan.pid, f)
    return function


def _call_keeping(_kept: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs on the worker: a call, and what is to live until it has ended."""
    return function(*args, **kwargs)


# ---- checks ---------------------------------------------------------------------------------------------------------


def _check(f: Any, where: Any) -> int:
    if not callable(f):
        raise TypeError(f"the first argument must be callable, not {type(f).__name__}")
    if isinstance(where, str):
        raise TypeError(
            f"a pid is an integer, not str; a worker pool will do, but not {where!r}; "
            'for any worker there are spawn(f, ...) and spawnat("any", f, ...)'
        )
    return as_pid(where)


def _place(where: Any, f: Any, verb: str) -> Any:
    """Where a call is to run that names the place first."""
    if not callable(f):
        raise TypeError(f"{verb}(pid, f): the second argument must be callable, not {type(f).__name__}")
    if where == "any":
        return _any()
    if isinstance(where, str):
        raise TypeError(f'a pid is an integer, not str; a worker pool will do, or "any", but not {where!r}')
    return where


def _any() -> int:
    """The worker whose turn it is."""
    workers = current().membership.workers()
    return workers[next(current().turns) % len(workers)]


__all__ = [
    "fetchfrom", "remote_do", "remotecall", "remotecall_fetch", "remotecall_wait", "spawn", "spawnat",
]  # fmt: skip
