"""One call on several processes, and their failures together: what `everywhere` and its kin stand on.

::

    send to each other process, in order ─► run here, if this process is one of them
                                             └► collect in order, this process last

The own run comes last so that it holds nobody up. What fails on one process does not keep the others from running:
the failures are collected. What this module does not know: what is called, and what for (`evaluation.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hybriddist.calls import remotecall, remotecall_fetch
from hybriddist.deadline import Deadline
from hybriddist.errors import (
    ClusterError,
    CompositeException,
    HybridDistError,
    NoSuchProcessError,
    ProcessExitedException,
    TransportError,
)
from hybriddist.future import Future
from hybriddist.ids import as_pid
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member


def as_pids(procs: int | Iterable[int] | None) -> list[int]:
    """The processes that are meant; that they exist is sure, that they live is not.

    Raises:
        TypeError: what is neither a pid nor pids.
        NoSuchProcessError: one of them never was.
    """
    process = current()
    if procs is None:
        return process.membership.procs()
    if isinstance(procs, str | bytes):
        raise TypeError(f"procs is a pid or several, not {procs!r}")
    pids = [as_pid(pid) for pid in procs] if isinstance(procs, Iterable) else [as_pid(procs)]
    for pid in pids:
        if pid != process.pid:
            try:
                member(process, pid)
            except NoSuchProcessError:
                raise
            except HybridDistError:
                pass  # it is gone: a failure of this process, which does not keep the others from running
    return pids


def on_one(pid: int, f: Callable[..., Any], args: tuple[Any, ...], what: str, timeout: float | None) -> Any:
    """Call ``f`` on one process: its value.

    Raises:
        TimeoutError: it had not ended after ``timeout`` seconds.
    """
    if timeout is None:
        return remotecall_fetch(f, pid, *args)
    Deadline(timeout)  # or a TypeError, before anything is sent
    try:
        return remotecall(f, pid, *args).fetch(timeout=timeout)
    except TimeoutError:
        raise TimeoutError(f"{what} did not end within {timeout} seconds on process {pid}; it goes on there") from None


def on_each(
    pids: list[int],
    f: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    what: str,
    timeout: float | None = None,
) -> dict[int, Any]:
    """Call ``f`` on each: the values by pid.

    Raises:
        CompositeException: of the failures, in order, this process last.
        TimeoutError: some had not ended after ``timeout`` seconds.
        SerializeError: something cannot be pickled; nothing was sent.
    """
    process = current()
    deadline = Deadline(timeout)
    own_count = pids.count(process.pid)
    begun: list[tuple[int, Future | Exception]] = []
    for pid in pids:
        if pid != process.pid:
            try:
                begun.append((pid, remotecall(f, pid, *args, **kwargs)))
            except (ProcessExitedException, ClusterError, TransportError) as error:
                begun.append((pid, error))
    values: dict[int, Any] = {}
    own_failures: list[Exception] = []
    for _ in range(own_count):
        if timeout is not None:  # a thread of its own, since nobody can leave what runs on this one
            begun.append((process.pid, remotecall(f, process.pid, *args, **kwargs)))
            continue
        try:
            values[process.pid] = process.call_here(f, args, kwargs)
        except HybridDistError as error:
            own_failures.append(error)
    failures: list[Exception] = []
    late: list[int] = []
    for pid, begin in begun:
        if isinstance(begin, Exception):
            failures.append(begin)
            continue
        try:
            values[pid] = begin.fetch(timeout=deadline.remaining())
        except TimeoutError:
            late.append(pid)
        except HybridDistError as error:
            failures.append(error)
    failures += own_failures
    if late:
        timed_out = TimeoutError(f"{what} did not end within {timeout} seconds on processes {late}; it goes on there")
        for failure in failures:
            timed_out.add_note(f"failed elsewhere: {failure!r}")
        raise timed_out
    if failures:
        raise CompositeException(f"{what} failed on {len(failures)} of {len(pids)} processes", failures)
    return values


__all__ = ["as_pids", "on_each", "on_one"]
