"""A map in this process: on the caller's thread where there are no workers, on several threads if that is asked for.

What this module does not know: maps on workers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

from hybriddist.errors import RemoteException
from hybriddist.outcomes import Outcomes
from hybriddist.runtime.process import Process


def iterate_here(
    process: Process, f: Callable[..., Any], items: Iterator[Any], outcomes: Outcomes, threads: int
) -> Generator[None, None, None]:
    """Without workers: on this thread, or on some threads of this process. It stops after each item."""
    if threads == 1:
        for index, args in items:
            _attempt(process, f, index, args, outcomes)
            yield
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads, initializer=process.in_context(_nothing)) as pool:
        try:
            under_way: deque[tuple[int, Any, Any]] = deque()
            for index, args in items:
                under_way.append((index, args, pool.submit(process.call_here, f, args, {})))
                if len(under_way) >= 2 * threads:
                    _collect(process, f, under_way.popleft(), outcomes)
                    yield
            while under_way:
                _collect(process, f, under_way.popleft(), outcomes)
                yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _nothing() -> None:
    pass


def _collect(process: Process, f: Callable[..., Any], entry: tuple[int, Any, Any], outcomes: Outcomes) -> None:
    index, args, future = entry
    try:
        outcomes.value(index, future.result())
    except RemoteException as error:
        delay = outcomes.error(index, error)
        if delay is not None:
            time.sleep(delay)
            _attempt(process, f, index, args, outcomes)


def _attempt(process: Process, f: Callable[..., Any], index: int, args: Any, outcomes: Outcomes) -> None:
    while True:
        try:
            value = process.call_here(f, args, {})
        except RemoteException as error:
            delay = outcomes.error(index, error)
            if delay is None:
                return
            time.sleep(delay)
        else:
            outcomes.value(index, value)
            return
