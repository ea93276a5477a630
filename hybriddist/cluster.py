"""The cluster as its driver sees it: adding and removing workers, and who is there.

Only process 1 can add and remove workers; every process can ask who is there. What this module does not know: how
workers are started (``managers``) and how processes speak with each other (``runtime``).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from hybriddist import limits
from hybriddist.core import payload
from hybriddist.core.exits import ExitReason
from hybriddist.core.messages import Leave, Members
from hybriddist.deadline import Deadline
from hybriddist.errors import ClusterError, NotDriverError, RemovalTimeout, SharedMemoryFull, TransportError
from hybriddist.ids import DRIVER
from hybriddist.managers.base import ClusterManager, WorkerConfig
from hybriddist.managers.launching import Launch, removal_reason
from hybriddist.managers.local import LocalContext, LocalManager
from hybriddist.managers.removing import Removal
from hybriddist.runtime.current import become, current
from hybriddist.runtime.output import OutputRelay
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process
from hybriddist.shm import rendezvous, segment
from hybriddist.transport import Transport

TOPOLOGIES: Final = ("all_to_all", "master_worker", "custom")
TRANSPORTS: Final = ("auto", "shm", "tcp")


class Cluster:
    """What the driver keeps of its workers. One per driver process object.

    Attributes:
        configs: what the managers said of each worker, by pid.
        managers: who launched it.
        output: the relay of the workers' output.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.configs: dict[int, WorkerConfig] = {}
        self.managers: dict[int, ClusterManager] = {}
        self.output = OutputRelay()
        self.lock = threading.RLock()
        """One addprocs or rmprocs at a time."""
        self._folder: str | None = None
        self._context: LocalContext | None = None
        self._removing: set[int] = set()
        process.on_exit = self._on_exit
        if not process.cookie:
            process.cookie = secrets.token_urlsafe(32)
        atexit.register(self.close)

    # ---- adding -----------------------------------------------------------------------------------------------

    def add(self, manager: ClusterManager, params: dict[str, Any]) -> list[int]:
        """Launch workers through ``manager``; their pids."""
        with self.lock:
            self.process.guard.install()
            membership = self.process.membership
            membership.choose_topology(params["topology"], params["lazy"])
            if isinstance(manager, LocalManager):
                manager.attach(self.local_context())
            return Launch(self, manager, params).run()

    def local_context(self) -> LocalContext:
        """What is kept for workers of this node: a private folder for their sockets, the template processes."""
        if self._context is None:
            segment.sweep()
            self._folder = tempfile.mkdtemp(prefix=f"hybriddist-{os.getpid()}-")
            self._context = LocalContext(lambda: self.process.cookie, self._folder, self.process.settings)
        return self._context

    def create_probe(self) -> Any:
        """A segment whose content only processes of this node can read; None if memory cannot be shared now."""
        try:
            return rendezvous.create_probe()
        except SharedMemoryFull:
            return None

    def join(
        self, pid: int, config: WorkerConfig, transport: Transport, params: Any, probe: Any, deadline: Deadline
    ) -> None:
        """Make the process behind ``transport`` member ``pid``."""
        process = self.process
        membership = process.membership
        fields = {
            "pid": pid,
            "members": membership.snapshot(),
            "probe": None if probe is None else probe.name,
        }
        _, answer = process.links.join(pid, transport, fields, deadline)
        config.ospid = config.ospid or answer["ospid"]
        shares = transport.scheme == "shm" or (probe is not None and answer["probe"] == probe.nonce)
        member = membership.require(pid)
        member.ospid, member.host, member.addresses = answer["ospid"], answer["host"], answer["addresses"]
        member.ident, member.connect_idents = config.ident, config.connect_idents
        membership.joined(pid, same_node_as=DRIVER if shares else None)
        output = (config.environ or {}).get("output")
        if output is not None:
            self.output.assign(output, pid)
        self.managers[pid].manage(pid, config, "register")

    def announce_members(self) -> None:
        """Tell every worker who is there now."""
        body = payload.dumps(self.process.membership.snapshot())[0]
        for peer in list(self.process.peers.values()):
            with contextlib.suppress(TransportError):  # it is going, and will be announced as gone
                peer.send(Members(body))

    # ---- removing ---------------------------------------------------------------------------------------------

    def remove(self, pids: Iterable[int], waitfor: float | None) -> Removal:
        """Remove workers; see `rmprocs`."""
        wanted = []
        for pid in pids:
            if pid == DRIVER:
                warnings.warn("process 1 not removed", RuntimeWarning, stacklevel=3)
            elif pid in self.process.peers and pid not in self._removing:
                wanted.append(pid)
                self._removing.add(pid)
                self.process.membership.leaving(pid)
        removal = Removal(self, wanted)
        removal.start()
        if waitfor != 0:
            removal.wait_for(waitfor)
        return removal

    def ask_to_leave(self, pid: int) -> None:
        """The polite request; a peer that is gone needs none."""
        peer = self.process.peers.get(pid)
        if peer is not None:
            with contextlib.suppress(TransportError):
                peer.post(Leave())

    def drop(self, pid: int, reason: ExitReason) -> None:
        """A worker is gone: note it, tell the others."""
        process = self.process
        if process.membership.gone(pid, reason):
            process.links.announce_left(pid, reason)
        peer = process.peers.get(pid)
        if peer is not None:
            peer.lose(TransportError(reason.text))

    def _on_exit(self, pid: int, peer: Peer) -> ExitReason:
        """A worker's connection ended. Runs on a thread of its own."""
        config = self.configs.get(pid)
        expected = pid in self._removing
        if config is None:
            reason = ExitReason("connection lost")
        else:
            reason = removal_reason(config, expected=expected, timeout=1.0)
            output = (config.environ or {}).get("output")
            if output is not None:
                self.output.drain(output, 0.5)
                reason = replace(reason, stderr_tail=output.stderr_tail())
        first = self.process.membership.gone(pid, reason)
        if first:
            self.process.links.announce_left(pid, reason)
        if first and not expected:
            print(f"Worker {pid} terminated.", file=sys.stderr)
        if config is not None:
            self._finalize(pid, config)
        return self.process.membership.why_gone(pid) or reason

    def _finalize(self, pid: int, config: WorkerConfig) -> None:
        manager = self.managers.pop(pid, None)
        self.configs.pop(pid, None)
        if manager is not None:
            manager.manage(pid, config, "deregister")
            child = config.process
            if hasattr(child, "exit_status") and child.exit_status is None and pid not in self._removing:
                manager.kill(pid, config)  # its connection is gone: it is of no use to anybody
            manager.manage(pid, config, "finalize")
        self.output.detach(pid)
        self._removing.discard(pid)

    # ---- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove every worker and close everything. A later `addprocs` starts anew."""
        atexit.unregister(self.close)
        with self.lock:
            pids = list(self.process.peers)
            if pids:
                with contextlib.suppress(RemovalTimeout):
                    self.remove(pids, limits.SHUTDOWN_SECONDS)
            self.process.close()
            if self._context is not None:
                self._context.close()
            self.output.close()
            if self._folder is not None:
                _remove_folder(self._folder)


def _remove_folder(folder: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def cluster_of(process: Process) -> Cluster:
    """The cluster that ``process`` drives.

    Raises:
        NotDriverError: it is not process 1.
    """
    if process.pid != DRIVER:
        raise NotDriverError
    if process.owner is None:
        process.owner = Cluster(process)
    owner: Cluster = process.owner
    return owner


# ---- what users call ------------------------------------------------------------------------------------------------


def addprocs(what: Any = None, /, *, restrict: bool = True, **keywords: Any) -> list[int]:
    """Add worker processes.

    Args:
        what: how many local workers (default: the usable CPUs), or a `ClusterManager`.
        restrict: local workers listen on the loopback address only.
        **keywords: ``transport`` ("auto", "shm", "tcp"), ``dir``, ``exename`` (a path or a list of words),
            ``exeflags`` (a string or a list), ``env`` (a dict), ``topology``, ``lazy``, ``enable_threaded_blas``,
            ``timeout`` (seconds for the whole call).

    Returns:
        The new pids, sorted.

    Raises:
        TypeError, ValueError: an argument is wrong; nothing was started.
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
    on_failure = keywords.pop("on_failure", "raise")
    if on_failure not in ("raise", "continue"):
        raise ValueError(f"on_failure must be 'raise' or 'continue', not {on_failure!r}")
    manager: ClusterManager
    if isinstance(what, ClusterManager):
        manager = what
    elif what is None or (isinstance(what, int) and not isinstance(what, bool)):
        if what is not None and what < 0:
            raise ValueError(f"addprocs takes a number of workers of 0 and more, not {what}")
        manager = LocalManager(what, restrict)
    else:
        raise TypeError(
            f"addprocs takes a number of workers or a ClusterManager, not {type(what).__name__}"
        )
    params = _check_params(manager, keywords)
    if what == 0:
        return []
    cluster = cluster_of(process)
    try:
        return cluster.add(manager, params)
    except Exception as error:
        from hybriddist.errors import CompositeException

        if on_failure == "continue" and isinstance(error, CompositeException):
            warnings.warn(f"addprocs: {error}", RuntimeWarning, stacklevel=2)
            return error.pids
        raise


def _check_params(manager: ClusterManager, keywords: dict[str, Any]) -> dict[str, Any]:
    if isinstance(manager, LocalManager):
        from hybriddist.managers.base import reject_unknown_keywords

        reject_unknown_keywords(manager, keywords)
    params = {**manager.default_addprocs_params(), **keywords}
    _one_of("transport", params["transport"], TRANSPORTS)
    _one_of("topology", params["topology"], TOPOLOGIES)
    Deadline(params.get("timeout"))
    return params


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def rmprocs(*pids: Any, waitfor: float | None = None) -> Removal:
    """Remove workers: asked politely, then with SIGTERM, then with SIGKILL.

    Args:
        *pids: pids or lists of pids; unknown ones and those that are gone are ignored, 1 gives a warning.
        waitfor: seconds to wait; None until all are gone; 0 returns at once.

    Returns:
        A waitable: ``.wait(timeout=None)``, ``.isready()``.

    Raises:
        RemovalTimeout: not gone in ``waitfor`` seconds; ``.pids`` are those left. The removal goes on.
        NotDriverError: called on a worker.

    Source: Julia's Distributed, ``rmprocs``.
    """
    process = current()
    if process.pid != DRIVER:
        raise NotDriverError
    wanted = list(_flatten(pids))
    return cluster_of(process).remove(wanted, waitfor)


def _flatten(pids: Iterable[Any]) -> Iterable[int]:
    for pid in pids:
        if isinstance(pid, str) or (not isinstance(pid, Iterable) and not hasattr(type(pid), "__index__")):
            raise TypeError(f"rmprocs takes pids and lists of pids, not {pid!r}")
        if isinstance(pid, Iterable):
            yield from _flatten(pid)
        else:
            yield int(pid)


def interrupt(*pids: Any) -> None:
    """Send Ctrl-C to the calls that run on workers; to all workers, with no argument.

    The calls end with a `RemoteException` of ``KeyboardInterrupt``; an idle worker is not touched.

    Raises:
        NotDriverError, NoSuchProcessError, ProcessExitedException.

    Source: Julia's Distributed, ``interrupt``.
    """
    process = current()
    if process.pid != DRIVER:
        raise NotDriverError("Only process 1 can interrupt workers")
    cluster = cluster_of(process)
    for pid in list(_flatten(pids)) or [pid for pid in process.membership.workers() if pid != DRIVER]:
        if pid == DRIVER:
            raise ClusterError("process 1 is not a worker: it cannot be interrupted from here")
        process.membership.require(pid)
        config = cluster.configs.get(pid)
        if config is not None:
            cluster.managers[pid].manage(pid, config, "interrupt")


def nprocs() -> int:
    """How many processes the cluster has, this one's driver included."""
    return current().membership.nprocs()


def nworkers() -> int:
    """How many workers the cluster has; 1 if there is only the driver, which then is the worker."""
    return current().membership.nworkers()


def procs(pid: int | None = None) -> list[int]:
    """All pids, sorted; with ``pid`` those on its node."""
    membership = current().membership
    return membership.procs() if pid is None else membership.procs_on_node(pid)


def workers() -> list[int]:
    """The pids of the workers, sorted; ``[1]`` if there are none."""
    return current().membership.workers()


def myid() -> int:
    """The pid of this process."""
    return current().pid


def procs_on_node(pid: int | None = None) -> list[int]:
    """The processes that can share memory with ``pid`` (default: this one), itself included, sorted."""
    process = current()
    return process.membership.procs_on_node(process.pid if pid is None else pid)


def nodes() -> list[list[int]]:
    """The pids of each node, sorted."""
    return current().membership.nodes()


def path_to(pid: int) -> str:
    """The path a message from here to ``pid`` takes now: "self", "shm", "tcp"; connects if that was not done yet."""
    process = current()
    return "self" if pid == process.pid else process.peer(pid).transport.scheme


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
        if process.peers:
            raise ClusterError("the cookie cannot be changed while there are workers that know the old one")
        process.cookie = cookie
    elif not process.cookie:
        process.cookie = secrets.token_urlsafe(32)
    return process.cookie


def shutdown() -> None:
    """Remove every worker and close everything; `addprocs` may follow. Also run at interpreter exit."""
    process = current()
    if process.pid == DRIVER and process.owner is not None:
        process.owner.close()
        become(Process(DRIVER, cookie=process.cookie, membership=process.membership))


