"""This process as a member of a cluster: its peers, its store, its threads, and the calls it makes.

One object holds everything; nothing of it is kept in modules, so that several can live in one interpreter::

                 ┌─ peers: pid ─► Peer (transport, protocol, what waits)
    Process ─────┼─ store: RRID ─► value           references: claims on other processes' stores
                 ├─ membership: who is there, on which node, how connected
                 └─ receiver, executor, poller: the threads

Nothing is started before the first peer comes: a process that only imports the library has no thread and no descriptor.

What this module does not know: what messages mean (``handlers.py``), how connections are made (``links.py``), how
worker processes are started (``managers``, ``cluster.py``).
"""

from __future__ import annotations

import itertools
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from hybriddist import limits
from hybriddist.core import captured as captured_module
from hybriddist.core.definitions import note_death
from hybriddist.core.engagements import Engagements
from hybriddist.core.exits import ExitReason
from hybriddist.core.lease import end_lease
from hybriddist.core.messages import Mode
from hybriddist.core.references import HolderBook
from hybriddist.deadline import NEVER, Deadline
from hybriddist.errors import RemoteException
from hybriddist.ids import RRID
from hybriddist.runtime import handlers, links, running
from hybriddist.runtime.asking import Asking, decline_value
from hybriddist.runtime.blocks import Blocks
from hybriddist.runtime.channel_requests import ChannelRequests
from hybriddist.runtime.channels import Channel
from hybriddist.runtime.claims import References
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.context import enter
from hybriddist.runtime.copies import mind_copies
from hybriddist.runtime.coroutines import Coroutines
from hybriddist.runtime.execution import Executor, call_in_user_code
from hybriddist.runtime.interrupts import InterruptGuard
from hybriddist.runtime.loans import Loan
from hybriddist.runtime.paths import Paths
from hybriddist.runtime.peer import Peer
from hybriddist.runtime.poller import Poller
from hybriddist.runtime.receiver import Receiver, SpinPolicy
from hybriddist.runtime.reserving import reserve
from hybriddist.runtime.roster import Roster
from hybriddist.runtime.signals import leave_to_main_thread
from hybriddist.runtime.store import Store
from hybriddist.runtime.trimming import Trimming
from hybriddist.runtime.waiting import wait_for_any, wait_here, wait_ready
from hybriddist.runtime.worker_channel import WorkerChannel
from hybriddist.settings import Settings
from hybriddist.shm.block import end_block
from hybriddist.shm.segment import end_handle

if TYPE_CHECKING:
    from hybriddist.runtime.alarm import SignalAlarm

# A plain number: looking up a member of an enumeration costs as much as a dictionary.
_FETCH = int(Mode.FETCH)


class Process(Asking):
    """One member of a cluster.

    Args:
        pid: 1 for the driver; 0 for a worker that has not been told yet.
        cookie: the cluster's secret.
        settings: from the environment by default.
        worker: its main thread belongs to the library.
        membership: of an earlier process object of this interpreter: pids are never used again.
    """

    def __init__(
        self,
        pid: int,
        *,
        cookie: str = "",
        settings: Settings | None = None,
        worker: bool = False,
        membership: Roster | None = None,
    ) -> None:
        self.pid = pid
        self.cookie = cookie
        self.settings = settings or Settings.from_environment()
        self.membership = membership or Roster(pid)
        self.owner: Any = None
        """Who manages this process on a higher floor: the driver's cluster."""
        self.guard = InterruptGuard(
            (
                *(Peer._send_now, Peer.flush, Peer.on_ready, Peer.wait_for, wait_for_any, wait_here),
                *(Channel.begin, WorkerChannel.take_now, WorkerChannel.put, Receiver.serve, Receiver.about_to_block),
                *(Loan.end, Loan.end_after, Loan.call_here, reserve),
                *(References.created, References.never_told, References.arrived, References.declined),
                *(References.released, References.tell, References.flush, References._count, References._tell),
                *(end_lease, end_handle, end_block, HolderBook._ring),  # finalisers: Python ignores what they raise
                note_death,  # likewise
                WeakSet()._remove,  # type: ignore[attr-defined]  # of every weak set, as that of the program's threads
            ),
            (call_in_user_code, running.perform, running.Each.call_if_wanted),
            waits=(wait_ready,),
            ignore_unless_exposed=worker,
            also=self._interrupt_threads,
        )
        self.handlers = handlers.TABLE
        self.poller = Poller()
        self.executor = Executor(self)
        self.receiver = Receiver(self)
        self.spin_policy = SpinPolicy(usable_cpu_count())
        self.store = Store(self.spawn)
        self.trimming = Trimming(self)
        self.paths = Paths(self.spawn, self.trimming.begin)
        self.references = References(self)
        self.blocks = Blocks(self)
        self.channels = ChannelRequests(self)
        self.links = links.Links(self)
        self.coroutines = Coroutines(self.spawn)
        self.peers: dict[int, Peer] = {}
        self.watched_peers: tuple[Peer, ...] = ()
        """Peers on other nodes: those with heartbeats."""
        self.on_exit: Callable[[int, Peer], ExitReason | None] | None = None
        """Asked for the reason when a peer is lost; may block for a second."""
        self.on_driver_gone: Callable[[], None] | None = None
        """What a worker does when the driver's connection is gone: it leaves."""
        self.addresses: list[str] = []
        """Where other processes of the cluster can connect to this one."""
        self.leaving = threading.Event()
        Asking.__init__(self)
        self.turns = itertools.count()
        """Whose turn it is when any worker will do."""
        self.engagements = Engagements()
        self.default_pool: Any = None
        """On the driver, once somebody has asked for it or set it."""
        self.alarm: SignalAlarm | None = None
        """On a worker whose main thread is the library's own."""
        self._lock = threading.Lock()
        self.is_copy = False
        """Whether this is a copy that user code has forked: no member of the cluster."""
        mind_copies(self)

    # ---- calls ------------------------------------------------------------------------------------------------

    def fetch_call(self, function: Any, pid: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`remotecall_fetch`."""
        peer = self.peers.get(pid)
        if peer is None or peer.lost is not None:
            if pid == self.pid:
                return self.call_here(function, args, kwargs)
            peer = self.peer(pid)
        completion = self.start_call(function, peer, args, kwargs, _FETCH, 0, 0)
        if not completion.done:
            try:
                self.wait(completion, peer)
            except BaseException:
                completion.add_callback(decline_value)
                raise
        return self.value_of(completion, peer)

    def wait(self, completion: Completion, peer: Peer | None = None, deadline: Deadline = NEVER) -> bool:
        """Wait for a completion: by receiving from ``peer`` on this thread, if nobody else does; whether it is done."""
        if peer is not None and self.guard.protects_this_thread() and (
            peer.wait_for(completion, self.spin_policy, deadline)
        ):  # fmt: skip
            return True
        self.receiver.about_to_block()
        return completion.wait(deadline)

    def wait_for_any(self, news: Completion, peers: Sequence[Peer], timeout: float | None) -> bool:
        """Wait until ``news`` is done, which callbacks of results from ``peers`` complete."""
        deadline = Deadline(timeout)
        if self.guard.protects_this_thread() and wait_for_any(peers, news, self.spin_policy, deadline):
            return True
        self.receiver.about_to_block()
        return news.wait(deadline)

    def wait_here(self, completion: Completion, hot: Peer | None, deadline: Deadline) -> bool:
        """Wait for what any peer or any thread of this process completes; ``hot``: the peer that is most likely to."""
        if self.peers and self.guard.protects_this_thread():
            return wait_here(self, completion, hot, self.spin_policy, deadline)
        self.receiver.about_to_block()
        return completion.wait(deadline)

    def call_here(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call to the own pid: on this thread, by reference; an error looks as if it came from elsewhere."""
        try:
            value = function(*args, **kwargs)
            if running.is_coroutine(value):
                return self.coroutines.run(value)
            return value
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RemoteException(self.pid, captured_module.capture(error, interruptible=True)) from error

    def store_call_here(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rrid: RRID | None,
        ended: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """A call to the own pid on another thread; its end goes to the store, or on stderr where nobody asks.

        ``ended`` is called when it does not run any more, also if nobody wants its value.
        """
        self.start()
        entry = None if rrid is None else self.store.peek(rrid)
        self.executor.submit(partial(running.run_here, self, function, args, kwargs, rrid, entry, ended))

    def ensure_default_pool(self, make: Callable[[], Any]) -> Any:
        """The default pool of workers, on the driver; ``make`` makes it if there is none yet."""
        with self._lock:
            if self.default_pool is None:
                self.default_pool = make()
            return self.default_pool

    def new_rrid(self) -> RRID:
        """A reference id that was never used."""
        return RRID(self.pid, next(self._ids))

    # ---- peers ------------------------------------------------------------------------------------------------

    def peer(self, pid: int) -> Peer:
        """The connection to ``pid``, made now if there is none.

        Raises:
            NoSuchProcessError, ProcessExitedException, TopologyError, ConnectError.
        """
        peer = self.peers.get(pid)
        return peer if peer is not None and peer.lost is None else self.links.connect(pid)

    def peer_lost(self, peer: Peer, error: BaseException) -> None:
        """A connection ended: find out why and tell everybody who waits, on a thread of its own."""
        try:
            self.spawn(lambda: self.links.bury(peer, error), "hybriddist-obituary")
        except RuntimeError:  # the system allows no more threads; it is better done late than never
            self.links.bury(peer, error)

    def describe(self, join: dict[str, Any]) -> dict[str, Any]:
        """What a worker tells the driver of itself when it joins."""
        import os
        import socket

        from hybriddist.shm import rendezvous

        probe = join.get("probe")
        return {
            "ospid": os.getpid(),
            "cpus": usable_cpu_count(),
            "host": socket.gethostname(),
            "addresses": self.addresses,
            "probe": rendezvous.answer_probe(probe) if probe else None,
        }

    def driver_gone(self) -> None:
        """The connection to the driver broke: a worker does not outlive it."""
        if self.on_driver_gone is not None:
            self.on_driver_gone()

    # ---- threads ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start receiving on a thread of its own, unless something receives already."""
        with self._lock:
            if self.receiver.started:
                return
            self.receiver.start()

    def housekeep(self) -> None:
        """Small chores, done by whoever has just received."""
        self.references.flush()
        self.trimming.look()

    def spawn(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Run something on a thread of its own, for this process.

        While the interpreter ends, Python 3.12 starts no more threads: then it is run here and now.
        """
        run = self.in_context(target)
        thread = threading.Thread(target=run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self.leaving.is_set() and not sys.is_finalizing() and threading.main_thread().is_alive():
                raise
            thread.run()
        return thread

    def in_context(self, target: Callable[[], None]) -> Callable[[], None]:
        """``target``, run on a thread that works for this process."""

        def run() -> None:
            leave_to_main_thread()
            enter(self)
            target()

        return run

    def _interrupt_threads(self) -> None:
        self.executor.interrupt_threads()
        self.coroutines.interrupt_all()

    def pause(self, seconds: float) -> None:
        """Let the other side work."""
        time.sleep(seconds)

    def wait_writable(self, descriptor: int, seconds: float) -> None:
        """Until a descriptor has room, or for so long."""
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.poll(seconds * 1000)

    def close(self, timeout: float = limits.POLITE_EXIT_SECONDS) -> None:
        """End every connection and thread; the object is not used afterwards."""
        deadline = Deadline(timeout)
        self.leaving.set()
        self.links.close()
        self.store.close()
        self.definitions.clear()
        self.blocks.close()
        for peer in list(self.peers.values()):
            peer.close(min(0.5, deadline.remaining() or 0.0))
            self.links.over(peer)
        self.peers.clear()
        self.receiver.close()
        self.executor.close()
        self.coroutines.close()
        self.poller.close()
        self.guard.uninstall()


def usable_cpu_count() -> int:
    """CPUs that this process may use by affinity."""
    import os

    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
