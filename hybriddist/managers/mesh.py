"""The connections between workers, all made before `addprocs` returns: ``lazy=False``, and each topology but the usual.

::

    each new worker ◄── one message ── meet(2), meet(3) ...    it dials all below it that the topology connects it with
                     ── done, or why not ──►                   all are asked, then all are waited for

Of two workers the higher pid connects, and new workers are higher than all before them. So the new ones alone have to
be asked, and every pair is made once. Who is gone in the meantime is missing to nobody: its pairs are left out.

What this module does not know: how two workers connect (``runtime/links.py``), and what becomes of one that cannot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from hybriddist.deadline import Deadline
from hybriddist.errors import ProcessExitedException, RemoteException
from hybriddist.managers.base import WorkerConfig
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.meeting import meet
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process

_Attempt = tuple[Peer, int, Completion]
"""Who connects, to whom, and what is done when it has."""


def idents_of(config: WorkerConfig) -> list[Any] | None:
    """``config.connect_idents`` as a list, which travels to other processes.

    Raises:
        TypeError: they are no names; the text says so.
    """
    idents = config.connect_idents
    if idents is None:
        return None
    if isinstance(idents, str | bytes) or not isinstance(idents, Iterable):
        raise TypeError(f"connect_idents in a WorkerConfig is a list of names, not {idents!r}")
    return list(idents)


def connect_workers(process: Process, pids: Sequence[int], deadline: Deadline) -> dict[int, dict[int, Exception]]:
    """Connect new workers with all others, as far as the topology does; nothing to do where it is lazy.

    What is not done when ``deadline`` comes goes on by itself.

    Args:
        process: the driver.
        pids: the new workers. All workers must have been told of them.

    Returns:
        For each new worker that lacks connections: to whom, and why. `TimeoutError` where there was no answer in time.
    """
    missing: dict[int, dict[int, Exception]] = {}
    if process.membership.lazy:
        return missing
    attempts = deque(attempt for pid in pids for attempt in _begin(process, pid))
    while attempts:
        peer, other, completion = attempts.popleft()
        process.wait(completion, peer, deadline)
        try:
            if not completion.done:
                raise TimeoutError("no answer in time")
            process.value_of(completion, peer)
        except RemoteException as error:
            reason = error.captured.ex
            if isinstance(reason, KeyboardInterrupt):  # meant for the user's calls, and no reason to end a new worker
                attempts += _begin(process, peer.pid, other)
            elif _are_there(process, peer.pid, other):
                missing.setdefault(peer.pid, {})[other] = reason if isinstance(reason, Exception) else error
        except TimeoutError as error:
            if _are_there(process, peer.pid, other):
                missing.setdefault(peer.pid, {})[other] = error
        except ProcessExitedException:
            pass  # the new worker itself, and everybody is told
    return missing


def _begin(process: Process, pid: int, *others: int) -> list[_Attempt]:
    """Ask a new worker to connect to some others; by default to all that it should."""
    peer = process.peers.get(pid)
    if peer is None:
        return []
    try:
        attempts = [(peer, other, Completion()) for other in others or process.membership.connects_to(pid)]
        if attempts:
            process.start_each(meet, peer, [(other,) for _, other, _ in attempts], [each for _, _, each in attempts])
    except ProcessExitedException:
        return []  # it, or one of the others while the topology was asked
    return attempts


def _are_there(process: Process, *pids: int) -> bool:
    return set(pids) <= set(process.membership.workers())
