"""`on_worker` and `off_worker`: have functions called when workers come and go.

Only the driver hears of that. What this module does not know: how the functions are called (``managers/events.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from hybriddist.cluster import cluster_of
from hybriddist.errors import NotDriverError
from hybriddist.ids import DRIVER
from hybriddist.managers.events import Events
from hybriddist.runtime.current import current


def on_worker(event: str, fn: Callable[..., Any], *, key: Hashable = None) -> Hashable:
    """Call ``fn`` whenever a worker comes or goes, from now until `off_worker`, also after `shutdown`.

    ============  =====================  ================================================================
    event         ``fn`` is called with  when, and what becomes of its errors
    ============  =====================  ================================================================
    ``starting``  ``(manager, params)``  before an `addprocs` starts anything, which raises them
    ``started``   ``(pid)``              before `addprocs` returns, which raises them; the worker stays
    ``exiting``   ``(pid)``              before a worker is asked to leave; it can still be called, for
                                         10 s at most. Shown on stderr
    ``exited``    ``(pid, reason)``      when a worker is gone, asked to or not; ``reason`` is a sentence,
                                         and `get_status` gives its last words. Shown on stderr
    ============  =====================  ================================================================

    Functions of one event run one after the other. One that takes longer than 10 s is named on stderr.

    Args:
        event: see above.
        fn: is not sent anywhere: it runs in this process.
        key: a name for `off_worker`; by default a new number.

    Returns:
        The key.

    Raises:
        ValueError: there is no such event, or the key is taken.
        TypeError: ``fn`` is no function, or cannot be called with what the event brings.
        NotDriverError: called on a worker.

    Example::

        key = hd.on_worker("exited", lambda pid, reason: print(pid, reason, hd.get_status(pid)))

    Source: DistributedNext, ``add_worker_started_callback`` and its like.
    """
    return _events().add(event, fn, key)


def off_worker(key: Hashable) -> None:
    """Call the function with this key no more; one that runs is not interrupted.

    Raises:
        ValueError: no function has this key.
        NotDriverError: called on a worker.

    Source: DistributedNext, ``remove_worker_started_callback`` and its like.
    """
    _events().remove(key)


def _events() -> Events:
    process = current()
    if process.pid != DRIVER:
        raise NotDriverError("Only process 1 hears of workers coming and going")
    return cluster_of(process).events
