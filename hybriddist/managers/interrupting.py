"""Ctrl-C for the calls of several workers, at the same time.

A manager may need seconds to pass an interrupt on, by logging in to another host; and it is a user's code, which may
never come back. So each worker gets a thread, and all of them together one deadline.

What this module does not know: how a manager interrupts, and what a worker does then (``runtime/interrupts.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hybriddist.deadline import Deadline
from hybriddist.errors import CompositeException
from hybriddist.limits import INTERRUPT_SECONDS
from hybriddist.managers.driver import Cluster
from hybriddist.runtime.completion import Completion


def interrupt_workers(cluster: Cluster, pids: Sequence[int], seconds: float = INTERRUPT_SECONDS) -> None:
    """Have the managers of ``pids`` interrupt them; returns when all have done so.

    Raises:
        TimeoutError: some had not after ``seconds``; the text names them.
        CompositeException: several failed, in the order of ``pids``. The error itself, if it is one.
    """
    pids = list(dict.fromkeys(pids))
    told = {pid: Completion() for pid in pids}
    for pid, done in told.items():
        cluster.process.spawn(partial(_tell, cluster, pid, done), f"hybriddist-interrupt-{pid}")
    deadline = Deadline(seconds)
    late = [pid for pid, done in told.items() if not done.wait(deadline)]
    failures = [done.content for done in told.values() if done.done and done.outcome]
    if late:
        error = TimeoutError(f"the managers of workers {late} did not interrupt them within {seconds:g} seconds")
        for failure in failures:
            error.add_note(f"another manager failed: {failure!r}")
        raise error
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise CompositeException("workers could not be interrupted", failures)


def _tell(cluster: Cluster, pid: int, done: Completion) -> None:
    config, manager = cluster.configs.get(pid), cluster.managers.get(pid)
    try:
        if config is not None and manager is not None:
            manager.manage(pid, config, "interrupt")
    except Exception as error:
        done.complete(-1, error)
    except BaseException as error:
        done.complete(-1, RuntimeError(f"the manager raised {error!r}"))
    else:
        done.complete(0, None)
