"""Who is there: what every process can ask, whether driver or worker.

Kept apart from adding and removing, so that a worker that is asked for its id need not import how workers are started.
"""

from __future__ import annotations

from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member


def nprocs() -> int:
    """How many processes the cluster has, this one's driver included."""
    return current().membership.nprocs()


def nworkers() -> int:
    """How many workers the cluster has; 1 if there is only the driver, which then is the worker."""
    return current().membership.nworkers()


def procs(pid: int | None = None) -> list[int]:
    """All pids, sorted; with ``pid`` those on its node."""
    return current().membership.procs() if pid is None else procs_on_node(pid)


def workers() -> list[int]:
    """The pids of the workers, sorted; ``[1]`` if there are none."""
    return current().membership.workers()


def myid() -> int:
    """The pid of this process."""
    return current().pid


def procs_on_node(pid: int | None = None) -> list[int]:
    """The processes that can share memory with ``pid`` (default: this one), itself included, sorted."""
    process = current()
    return process.membership.procs_on_node(process.pid if pid is None else member(process, pid).pid)


def nodes() -> list[list[int]]:
    """The pids of each node, sorted."""
    return current().membership.nodes()


def path_to(pid: int) -> str:
    """The path a message from here to ``pid`` takes now: "self", "shm", "tcp"; connects if that was not done yet."""
    process = current()
    member(process, pid)
    return "self" if pid == process.pid else process.peer(pid).transport.scheme
