"""The driver's book of its workers: what the managers said of each, and what to do when one is gone.

::

    cluster.py ──► Launch (launching.py) ── join ──►  Cluster ──► links, peers, output
               └─► Removal (removing.py) ── drop ──►     ▲
                                                         └── a connection ended, or a child: why? tell the others

A worker's end is noticed twice, by its connection and by whoever is its parent. The connection alone is not enough:
a process that a call has forked may hold the connection open for as long as it likes. So whichever comes first counts.

What this module does not know: how workers are started (the managers), how they are brought in and removed
(``launching.py``, ``removing.py``), and how processes speak with each other (``runtime``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from hybriddist import limits
from hybriddist.core import payload
from hybriddist.core.exits import ExitReason
from hybriddist.core.membership import State
from hybriddist.core.messages import Leave, Members
from hybriddist.deadline import Deadline
from hybriddist.errors import ClusterError, LocalProtocolError, SharedMemoryFull, TransportError
from hybriddist.ids import DRIVER
from hybriddist.managers.base import ClusterManager, WorkerConfig
from hybriddist.managers.events import Events
from hybriddist.managers.local import LocalContext
from hybriddist.managers.streams import connect_at
from hybriddist.runtime.child import Child
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.folders import Folder
from hybriddist.runtime.output import OutputRelay
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.process import Process
from hybriddist.shm import rendezvous, segment
from hybriddist.transport import Transport

_STATUS_SECONDS: Final = 1.0
"""After the end of a connection: for the exit status, which comes by another way."""

_LAST_FRAMES_SECONDS: Final = 0.3
"""After the end of a process: for its last frames and the end of its connection."""

_LAST_LINES_SECONDS: Final = 0.5
"""After the end of a process: for its last lines of output."""

_CLOSING_CALLBACK_SECONDS: Final = 1.0
"""For each worker at the driver's end, which is to take no longer than `limits.SHUTDOWN_SECONDS`."""


class Unfinished(Protocol):
    """An `addprocs` under way."""

    def give_up(self) -> None:
        """End it now; what it has started is ended as well."""


class Cluster:
    """What the driver keeps of its workers.

    Attributes:
        configs: what the managers said of each worker, by pid.
        managers: who launched it.
        params: with which parameters.
        output: the relay of the workers' output.
        lock: held by one addprocs at a time, and by rmprocs while it chooses.
        launching: the addprocs under way.
        closed: nobody is added any more.
        events: the functions that hear of workers coming and going.
        at_exit: what the interpreter runs at its end to shut this cluster down.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.configs: dict[int, WorkerConfig] = {}
        self.managers: dict[int, ClusterManager] = {}
        self.params: dict[int, Mapping[str, Any]] = {}
        self.output = OutputRelay()
        self.events = Events()
        self._ends: dict[int, Completion] = {}
        """Of the workers that have joined: done when the last word about each is said."""
        self.lock = threading.RLock()
        self.launching: Unfinished | None = None
        self.closed = False
        self.at_exit: Callable[[], None] = self.close
        self.ospid = os.getpid()
        self._folder: Folder | None = None
        self._tidied = False
        self._context: LocalContext | None = None
        process.on_exit = self._on_exit
        mind = weakref.WeakMethod(self._let_go)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: (mind() or int)())
        if not process.cookie:
            process.cookie = secrets.token_urlsafe(32)

    # ---- adding -----------------------------------------------------------------------------------------------

    def local_context(self) -> LocalContext:
        """What is kept for workers of this node: a private folder for their sockets, the template processes."""
        settings = self.process.settings
        if self._context is None:
            self._folder = Folder()
            self._context = LocalContext(lambda: self.process.cookie, self.output, self._folder.path, settings)
        self._context.settings = settings
        return self._context

    def tidy(self) -> None:
        """Remove what dead drivers of this user have left; once."""
        if self._folder is not None and not self._tidied:
            with contextlib.suppress(OSError):  # no descriptor is left for a listing, say: that is for the next time
                segment.sweep()
                self._folder.sweep()
                self._tidied = True

    def create_probe(self) -> Any:
        """A segment whose content only processes of this node can read; None if memory cannot be shared now."""
        try:
            return rendezvous.create_probe()
        except SharedMemoryFull:
            return None

    def join(
        self, pid: int, config: WorkerConfig, transport: Transport, probe: Any, deadline: Deadline, streams: str = ""
    ) -> None:
        """Make the process behind ``transport`` member ``pid``.

        Args:
            streams: how its manager calls its own connections, if this is one of them.

        Raises:
            ClusterError: its manager's ``manage(..., "register")`` raised.
            TimeoutError, ProcessExitedException: it did not answer.
        """
        process = self.process
        membership = process.membership
        fields = {
            "pid": pid,
            "members": membership.snapshot(),
            "probe": None if probe is None else probe.name,
        }
        peer, answer = process.links.join(pid, transport, fields, deadline)
        config.ospid = config.ospid or answer["ospid"]
        shares = transport.scheme == "shm" or (probe is not None and answer["probe"] == probe.nonce)
        member = membership.require(pid)
        member.ospid, member.host, member.addresses = answer["ospid"], answer["host"], answer["addresses"]
        member.ident, member.connect_idents = config.ident, config.connect_idents
        member.cpus = config.cpu_threads = answer["cpus"]
        if streams:
            member.streams, member.connect_at = streams, connect_at(config)
        self._ends[pid] = Completion()
        membership.joined(pid, same_node_as=DRIVER if shares else None)
        output = output_of(config)
        if output is not None:
            self.output.assign(output, pid)
        if isinstance(config.process, Child):
            config.process.on_exit(lambda _status: self._child_ended(pid, peer))
        manager = self.managers[pid]
        try:
            manager.manage(pid, config, "register")
        except BaseException as error:  # also a sys.exit: it costs this worker, not the thread
            raise ClusterError(f"{type(manager).__name__}.manage(..., 'register') raised {error!r}") from error

    def announce_members(self) -> None:
        """Tell every worker who is there now."""
        body = payload.dumps(self.process.membership.snapshot())[0]
        for peer in list(self.process.peers.values()):
            # Going, and will be announced as gone; or still on its way in, given up, and will be killed.
            with contextlib.suppress(TransportError, LocalProtocolError):
                peer.post(Members(body))

    # ---- removing ---------------------------------------------------------------------------------------------

    def leaving(self, pid: int) -> bool:
        """Give ``pid`` no more work: it is to be removed. False if it is no worker, or is being removed already."""
        member = self.process.membership.get(pid)
        if member is None or member.state is not State.JOINED:
            return False
        self.process.membership.leaving(pid)
        return True

    def ask_to_leave(self, pid: int) -> None:
        """The polite request; a peer that is gone needs none."""
        peer = self.process.peers.get(pid)
        if peer is not None:
            with contextlib.suppress(TransportError):
                peer.post(Leave())

    def drop(self, pid: int, reason: ExitReason) -> None:
        """A worker is gone, or as good as gone: note it, tell the others, let go of its connection."""
        process = self.process
        if process.membership.gone(pid, reason):
            process.links.announce_left(pid, reason)
        peer = process.peers.get(pid)
        if peer is not None:
            peer.lose(TransportError(reason.text))

    def abandon(self, pid: int, reason: ExitReason) -> None:
        """A worker whose launch has failed: it is killed, whatever it is at, and finished."""
        # Taken first: the end of its connection, which comes of `drop`, would have it finished before it is killed.
        config, manager = self._take(pid)
        self.drop(pid, reason)
        if config is not None and manager is not None:
            self._finish(pid, config, manager, kill=True)

    def finish(self, pid: int) -> None:
        """The last words about a worker that is gone. Idempotent."""
        config, manager = self._take(pid)
        if config is not None and manager is not None:
            # Its connection is gone: if it still runs, it is of no use to anybody.
            runs = isinstance(config.process, Child) and config.process.exit_status is None
            self._finish(pid, config, manager, kill=runs)

    def _take(self, pid: int) -> tuple[WorkerConfig | None, ClusterManager | None]:
        self.params.pop(pid, None)
        return self.configs.pop(pid, None), self.managers.pop(pid, None)

    def _finish(self, pid: int, config: WorkerConfig, manager: ClusterManager, *, kill: bool) -> None:
        with contextlib.ExitStack() as stack:  # from the last to the first; each is done, whatever the others do
            stack.callback(self._tell_of_end, pid)
            stack.callback(self._close_output, config)
            stack.callback(manager.manage, pid, config, "finalize")
            stack.callback(manager.manage, pid, config, "deregister")
            if kill:
                stack.callback(manager.kill, pid, config)

    def _tell_of_end(self, pid: int) -> None:
        end = self._ends.get(pid)
        if end is not None:
            reason = self.process.membership.why_gone(pid) or ExitReason.lost()
            self.events.exited(pid, reason.text, self.process.spawn, self.callback_seconds)
            end.complete(0, None)
            del self._ends[pid]  # not before: who finds none need not wait

    @property
    def callback_seconds(self) -> float:
        """How long functions of the user's may hold up the end of a worker."""
        return limits.EXITING_CALLBACK_SECONDS if not self.closed else _CLOSING_CALLBACK_SECONDS

    def wait_finished(self, pid: int, seconds: float) -> bool:
        """Wait until the last word about a worker is said; whether it is."""
        end = self._ends.get(pid)
        return end is None or end.wait(Deadline(seconds))

    def _close_output(self, config: WorkerConfig) -> None:
        output = output_of(config)
        if output is not None:
            self.output.detach(output)
        else:  # nobody reads its output, and the streams are still whose they were
            for stream in (config.io, (config.environ or {}).get("stderr")):
                if stream is not None:
                    stream.close()

    # ---- ends that are noticed --------------------------------------------------------------------------------

    def _child_ended(self, pid: int, peer: Peer) -> None:
        """A process has ended. Its connection should end by itself; if it does not, somebody else holds it."""

        def look() -> None:
            if not self.process.membership.wait_gone(pid, _LAST_FRAMES_SECONDS):
                peer.lose(TransportError("its process has ended"))

        self.process.spawn(look, "hybriddist-mourner")

    def _on_exit(self, pid: int, _peer: Peer) -> ExitReason:
        """A worker's connection has ended: the reason. Runs on a thread of its own."""
        membership = self.process.membership
        member, config = membership.get(pid), self.configs.get(pid)
        unexpected = member is not None and member.state is State.JOINED
        if unexpected:
            membership.leaving(pid)  # while the reason is looked for, it gets no more work
        reason = ExitReason.lost()
        if config is not None:
            reason = self._why(config, expected=not unexpected)
        if membership.gone(pid, reason):
            self.process.links.announce_left(pid, reason)
            if unexpected:
                print(f"Worker {pid} terminated.", file=sys.stderr)
        if member is None or member.state is not State.LAUNCHING:
            self.process.spawn(lambda: self.finish(pid), "hybriddist-undertaker")
        return membership.why_gone(pid) or reason

    def _why(self, config: WorkerConfig, *, expected: bool) -> ExitReason:
        """Why a worker's connection ended, from its exit status and its last words where they come in time."""
        status = config.process.wait(Deadline(_STATUS_SECONDS)) if isinstance(config.process, Child) else None
        if status is None:
            return ExitReason.removed() if expected else ExitReason.lost()
        reason = ExitReason.ended(status.exitcode, status.signal)
        if expected:
            return reason._replace(text=f"it was removed ({reason.text})")
        output = output_of(config)
        if output is None:
            return reason
        self.output.drain(output, _LAST_LINES_SECONDS)
        return reason._replace(stderr_tail=output.stderr_tail())

    # ---- the end ----------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """In a forked copy of the driver, which may outlive it: don't hold the workers' leashes."""
        for config in list(self.configs.values()):
            if isinstance(config.process, Child):
                config.process.release()
        if self._context is not None:
            self._context.let_go()

    def close(self) -> None:
        """Let go of everything; workers that are still there are ended by force."""
        left = [member.pid for member in self.process.membership.members() if member.pid != DRIVER]
        with contextlib.ExitStack() as stack:  # from the last to the first; each is done, whatever the others do
            if self._folder is not None:
                stack.callback(self._folder.remove)
            stack.callback(self.output.close)
            for pid in list(self.configs):
                stack.callback(self.finish, pid)
            if self._context is not None:
                stack.callback(self._context.close)
            stack.callback(self.process.close)
            for pid in left:
                stack.callback(self.drop, pid, ExitReason.removed())


def output_of(config: WorkerConfig) -> Any:
    """What the relay keeps of a worker's output; None if nobody reads it."""
    return (config.environ or {}).get("output")
