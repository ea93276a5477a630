"""Asking the driver about a process that nobody has told this one of.

The driver lists a new worker as soon as it has joined; the other workers are told when all of the `addprocs` are
there. In between the driver may send one of them a call that needs the new one, or a reference to a value there::

    worker 2: call 5? never heard of it ──► driver: waits until 5 is up ──► 5 and where it listens, or: no such process

What this module does not know: how lists are told (``Members``), and how connections are made (``links.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybriddist.core.membership import Member, State
from hybriddist.errors import ClusterError, NoSuchProcessError, ProcessExitedException, RemoteException
from hybriddist.ids import DRIVER
from hybriddist.runtime.context import this_process

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


def member(process: Process, pid: int) -> Member:
    """The member with this pid. Blocks where the driver has to be asked.

    Raises:
        TypeError: ``pid`` is not an integer.
        NoSuchProcessError, ProcessExitedException: there is no such process, or no more.
        ClusterError: this process waits for its driver: it is nobody's member yet.
    """
    membership = process.membership
    if process.pid != DRIVER and isinstance(pid, int) and membership.is_news(pid):
        if membership.is_news(DRIVER):
            raise ClusterError("no driver has connected to this process yet: it can reach nobody before that")
        try:
            membership.learn(process.fetch_call(who_is, DRIVER, (pid,), {}))
        except RemoteException as error:
            told = error.captured.ex
            if isinstance(told, NoSuchProcessError | ProcessExitedException):
                raise told from None
            raise
    return membership.require(pid)


def who_is(pid: int) -> dict[str, Any]:
    """Runs on the driver: all there is to know of a process, once it has joined.

    Raises:
        NoSuchProcessError, ProcessExitedException.
    """
    process = this_process()
    membership = process.membership

    def is_settled() -> bool:
        found = membership.get(pid)
        return found is None or found.state is not State.LAUNCHING

    membership.wait_until(is_settled, process.settings.worker_timeout_seconds)
    return membership.require(pid).values()
