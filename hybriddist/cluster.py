"""The cluster as its driver sees it: adding and removing workers.

Only process 1 can. What every process can ask is in ``listing.py``. What this module does not know: what
is kept of workers, how they are brought in and removed (``managers``), and how processes speak with each other
(``runtime``).
"""

from __future__ import annotations

import atexit
import operator
import os
import secrets
import threading
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final

from hybriddist import limits
from hybriddist.deadline import Deadline, seconds_of
from hybriddist.errors import ClusterError, CompositeException, HybridDistError, LaunchTimeout, NotDriverError
from hybriddist.ids import DRIVER, as_pid
from hybriddist.managers.base import ClusterManager, reject_unknown_keywords
from hybriddist.managers.driver import Cluster
from hybriddist.managers.interrupting import interrupt_workers
from hybriddist.managers.launching import Launch
from hybriddist.managers.local import LocalManager
from hybriddist.managers.removing import Removal, shut_down
from hybriddist.runtime.context import become
from hybriddist.runtime.current import current
from hybriddist.runtime.process import Process
from hybriddist.settings import Settings

TOPOLOGIES: Final = ("all_to_all", "master_worker", "custom")
TRANSPORTS: Final = ("auto", "shm", "tcp")


def cluster_of(process: Process) -> Cluster:
    """The cluster that ``process`` drives.

    Raises:
        NotDriverError: it is not process 1.
    """
    if process.pid != DRIVER:
        raise NotDriverError
    if process.owner is None:
        process.owner = cluster = Cluster(process)
        cluster.at_exit = partial(_leave, cluster)
        atexit.register(cluster.at_exit)
    owner: Cluster = process.owner
    return owner


def _leave(cluster: Cluster) -> None:
    """The interpreter ends. Threads that wait now are daemons, which nobody waits for; what they hear is no news."""
    show = threading.excepthook

    def show_others(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, HybridDistError | CompositeException):
            show(failure)

    threading.excepthook = show_others
    shut_down(cluster)


# ---- adding and removing ------------------------------------------------------------------------------------------


def addprocs(what: Any = None, /, **keywords: Any) -> list[int]:
    """Add worker processes.

    Args:
        what: how many local workers (default: the usable CPUs; also as ``n=``), or a `ClusterManager`.
        **keywords: ``restrict`` (True: local workers listen on the loopback address only), ``transport`` ("auto",
            "shm", "tcp"), ``dir``, ``exename`` (a path or a list of words), ``exeflags`` (a string or a list),
            ``env`` (a dict), ``topology`` ("all_to_all", "master_worker", "custom"), ``lazy`` (True: workers
            connect with each other on first use; False: all of them before this returns),
            ``enable_threaded_blas`` (False), ``timeout`` (seconds for the whole call), ``on_failure`` ("raise", or
            "continue" with a warning that names the hosts). A manager of your own gets all others as well.

    Returns:
        The new pids, sorted.

    Raises:
        TypeError, ValueError: an argument is wrong, or ``lazy`` is not what the living workers have; nothing was
            started.
        TopologyError: there are workers, and they have another ``topology``.
        NotDriverError: called on a worker.
        CompositeException: of `LaunchError`; its ``pids`` are the workers that did start, and stay.
        TimeoutError: ``timeout`` is over; ``pids`` likewise.

    Example::

        hd.addprocs(2)      # [2, 3]

    Source: Julia's Distributed, ``addprocs``.
    """
    process = current()
    if process.pid != DRIVER:
        raise NotDriverError
    if what is None:
        what = keywords.pop("n", None)
    on_failure = keywords.pop("on_failure", "raise")
    _one_of("on_failure", on_failure, ("raise", "continue"))
    manager = what if isinstance(what, ClusterManager) else _local_manager(what, keywords.pop("restrict", True))
    params = _check_params(manager, keywords)
    if isinstance(manager, LocalManager) and manager.n == 0:
        return []
    try:
        return _launch_and_tell(cluster_of(process), manager, params)
    except CompositeException as error:
        if on_failure == "raise":
            raise
        hosts = ", ".join(dict.fromkeys(getattr(failure, "host", "?") for failure in error.exceptions))
        warnings.warn(f"addprocs goes on without workers on {hosts}: {error}", RuntimeWarning, stacklevel=2)
        return error.pids


def _addprocs_in_full(
    n: int | ClusterManager | None = None,
    *,
    restrict: bool = True,
    transport: str = "auto",
    dir: str | os.PathLike[str] | None = None,
    exename: Any = None,
    exeflags: Any = None,
    env: dict[str, str] | None = None,
    topology: str = "all_to_all",
    lazy: bool = True,
    enable_threaded_blas: bool = False,
    timeout: float | None = None,
    on_failure: str = "raise",
    **of_the_manager: Any,
) -> list[int]:
    """What `addprocs` shows of itself. It cannot be written so: a manager has defaults of its own, so it matters what
    was given.
    """
    raise NotImplementedError


addprocs.__dict__["__wrapped__"] = _addprocs_in_full  # `inspect.signature` and `help` follow it


def _local_manager(count: Any, restrict: Any) -> LocalManager:
    _true_or_false("restrict", restrict)
    if count is None:
        return LocalManager(None, restrict)
    if isinstance(count, bool) or not hasattr(type(count), "__index__"):
        text = f"addprocs takes a number of workers or a ClusterManager, not {type(count).__name__}"
        if isinstance(count, str | list | tuple):
            text += ": workers on other hosts over SSH are not built yet; a ClusterManager of your own can start some"
        raise TypeError(text)
    return LocalManager(operator.index(count), restrict)


def _launch_and_tell(cluster: Cluster, manager: ClusterManager, params: dict[str, Any]) -> list[int]:
    """Launch, between the functions that are to hear of it; without the lock, so that they may do what they like."""
    cluster.events.starting(manager, params)
    try:
        pids = _launch(cluster, manager, params)
    except (CompositeException, LaunchTimeout) as error:
        try:
            cluster.events.started(error.pids)
        except Exception as another:
            error.add_note(f"and a function for started workers failed: {another!r}")
        raise
    cluster.events.started(pids)
    return pids


def _launch(cluster: Cluster, manager: ClusterManager, params: dict[str, Any]) -> list[int]:
    with cluster.lock:
        if cluster.closed:
            raise ClusterError("the cluster has been shut down")
        cluster.process.guard.install()
        # Read at each launch, so that a program may change its mind between two.
        cluster.process.settings = Settings.from_environment()
        cluster.process.membership.choose_topology(params["topology"], params["lazy"])
        if isinstance(manager, LocalManager):
            manager.attach(cluster.local_context(), params)
        launch = cluster.launching = Launch(cluster, manager, params)
        try:
            return launch.run()
        finally:
            cluster.launching = None


def _check_params(manager: ClusterManager, keywords: dict[str, Any]) -> dict[str, Any]:
    if isinstance(manager, LocalManager):
        reject_unknown_keywords(manager, keywords)
        if manager.n < 0:
            raise ValueError(f"n, the number of workers to add, must not be negative: {manager.n}")
    params = {**manager.default_addprocs_params(), **keywords}
    _one_of("transport", params["transport"], TRANSPORTS)
    _one_of("topology", params["topology"], TOPOLOGIES)
    _true_or_false("lazy", params["lazy"])
    _true_or_false("enable_threaded_blas", params.get("enable_threaded_blas", False))
    Deadline(params.get("timeout"))
    return params


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _true_or_false(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def replace_worker(pid: int) -> int | None:
    """End a worker that does not react, and start another one like it.

    Returns:
        The new pid; None if the worker's manager cannot start a single one (only local workers are replaced).

    Raises:
        NotDriverError: called on a worker.
        CompositeException: of the `LaunchError`, if there is no new one.
    """
    cluster = cluster_of(current())
    config, manager, params = cluster.configs.get(pid), cluster.managers.get(pid), cluster.params.get(pid)
    if config is None or manager is None or params is None:
        return None  # it is gone already
    manager.kill(pid, config)
    if not isinstance(manager, LocalManager):
        return None
    (new,) = _launch_and_tell(cluster, LocalManager(1, manager.restrict), {**params, "timeout": None})
    return new


def rmprocs(*pids: Any, waitfor: float | None = None) -> Removal:
    """Remove workers: asked politely, then with SIGTERM, then with SIGKILL.

    Args:
        *pids: pids or lists of pids; unknown ones and those that are gone are ignored, 1 gives a warning.
        waitfor: seconds to wait; None until all are gone; 0 returns at once.

    Returns:
        A waitable: ``.wait(timeout=None)``, ``.isready()``.

    Raises:
        TypeError, ValueError: what is given is no pid, or ``waitfor`` no duration. Nobody is removed.
        RemovalTimeout: not gone in ``waitfor`` seconds; ``.pids`` are those left. The removal goes on.
        NotDriverError: called on a worker.

    Source: Julia's Distributed, ``rmprocs``.
    """
    process = current()
    if process.pid != DRIVER:
        raise NotDriverError
    wanted = list(_flatten(pids, "rmprocs"))
    if waitfor is not None and seconds_of(waitfor, "waitfor") < 0:
        raise ValueError(f"waitfor must not be negative: {waitfor!r}; None waits until all are gone")
    if DRIVER in wanted:
        warnings.warn("process 1 not removed", RuntimeWarning, stacklevel=2)
    removal = Removal(cluster_of(process), [pid for pid in wanted if pid != DRIVER])
    removal.start()
    return removal if waitfor == 0 else removal.wait(waitfor)


def _flatten(pids: Iterable[Any], taker: str) -> Iterator[int]:
    for pid in pids:
        of_characters = isinstance(pid, str | bytes | bytearray)
        if of_characters or not (isinstance(pid, Iterable) or hasattr(type(pid), "__index__")):
            raise TypeError(f"{taker} takes pids and lists of pids, not {pid!r}")
        if isinstance(pid, Iterable):
            yield from _flatten(pid, taker)
        else:
            yield as_pid(pid)


def interrupt(*pids: Any) -> None:
    """Send Ctrl-C to the calls that run on workers; to all workers, with no argument.

    The calls end with a `RemoteException` of ``KeyboardInterrupt``; an idle worker is not touched, and calls that have
    not begun are not. The workers are told at the same time; this returns when all have been told, which does not mean
    that the calls have ended: one may catch the interrupt.

    Args:
        *pids: pids or lists of pids. Nobody is interrupted if one of them is wrong.

    Raises:
        NotDriverError: called on a worker.
        NoSuchProcessError, ProcessExitedException, ClusterError: a pid is unknown, gone, or the driver's own.
        CompositeException: a manager failed to tell several workers (the error itself, if it is one).
        TimeoutError: not all were told within `limits.INTERRUPT_SECONDS`; the text names them.

    Example::

        future = hd.remotecall(time.sleep, 2, 3600)
        hd.interrupt(2)

    Source: Julia's Distributed, ``interrupt``.
    """
    process = current()
    if process.pid != DRIVER:
        raise NotDriverError("Only process 1 can interrupt workers")
    # Named by the user: also an empty list is a list. Without a name: all.
    wanted = (
        list(_flatten(pids, "interrupt")) if pids else [pid for pid in process.membership.workers() if pid != DRIVER]
    )
    for pid in wanted:
        if pid == DRIVER:
            raise ClusterError("process 1 is not a worker: it cannot be interrupted from here")
        process.membership.require(pid)
    interrupt_workers(cluster_of(process), wanted)


def cluster_cookie(cookie: str | None = None) -> str:
    """The cluster's secret; with an argument set it, for the workers added from now on.

    Raises:
        ValueError: not 1 to 256 ASCII characters on one line.
        ClusterError: there are workers already, who know the old one.
    """
    process = current()
    if cookie is not None:
        if not isinstance(cookie, str):
            raise TypeError(f"the cookie is text, not {type(cookie).__name__}")
        if not 1 <= len(cookie) <= limits.MAX_COOKIE_CHARACTERS or not cookie.isascii() or not cookie.isprintable():
            raise ValueError(f"the cookie must be 1 to {limits.MAX_COOKIE_CHARACTERS} printable ASCII characters")
        if len(cookie) < limits.SHORT_COOKIE_CHARACTERS:
            warnings.warn(
                f"a cookie of {len(cookie)} characters can be guessed; use {limits.SHORT_COOKIE_CHARACTERS} or more",
                RuntimeWarning,
                stacklevel=2,
            )
        if process.pid != DRIVER:
            raise NotDriverError("Only process 1 can set the cluster's cookie")
        if len(process.membership.members()) > 1:
            raise ClusterError("the cookie cannot be changed while there are workers that know the old one")
        process.cookie = cookie
    elif not process.cookie:
        process.cookie = secrets.token_urlsafe(32)
    return process.cookie


def shutdown() -> None:
    """Remove every worker and close everything; `addprocs` may follow. Also run at interpreter exit.

    Raises:
        NotDriverError: called on a worker.
    """
    process = current()
    if process.pid != DRIVER:
        raise NotDriverError("Only process 1 can shut the cluster down")
    if process.owner is not None:
        cluster = cluster_of(process)
        shut_down(cluster)
        atexit.unregister(cluster.at_exit)
        fresh = Process(DRIVER, cookie=process.cookie, membership=process.membership)
        become(fresh)
        if len(cluster.events):  # they are for all workers, also of the next addprocs
            cluster_of(fresh).events = cluster.events
    elif not process.is_copy:  # no workers so far, but there may be an event loop
        process.close()
        become(Process(DRIVER, cookie=process.cookie, membership=process.membership))
